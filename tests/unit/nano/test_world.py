"""The nano world: a pure renderer, captions that parse, and gold scores that each follow their own corruption."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from bench.api import BenchError
from bench.core.rng import stream
from bench.nano import gold, world
from bench.nano.gold import Gold
from tests.helpers.nano_suite import tiny

AXES = ("gold_VQ", "gold_MQ", "gold_TA")
#: Mean score over the held-out captions, clean: rendering on whole pixels costs a little of each.
CLEAN = {"gold_VQ": -0.1, "gold_MQ": -0.05, "gold_TA": -0.005}


def captions() -> world.Captions:
    """The held-out captions, four starts each."""
    held_out = world.split()[1]
    return world.Captions(*(getattr(held_out, field.name).repeat(4) for field in fields(held_out)))


def render(truth: world.Captions, **strength: float) -> Tensor:
    b = len(truth)
    parts = {field.name: torch.full((b,), strength.get(field.name, 0.0)) for field in fields(world.Corruption)}
    return world.render(truth, world.Corruption(**parts), stream(0, "test_world"))


def means(clips: Tensor, texts: list[str]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in Gold().score(clips, texts, world.FPS).items()}


def test_clean_renders_score_best() -> None:
    truth = captions()
    best = means(render(truth), truth.texts())
    assert all(CLEAN[axis] < best[axis] <= 0 for axis in AXES), best
    every = gold.caption_correct(gold.fit(render(truth)), truth)
    assert torch.equal(every, torch.ones_like(every))


#: Corruption, its strengths, the axis it belongs to, how far that axis falls at least and the others at most.
#: Others move a little for a reason: a soft or noisy shape is located less exactly, and a jittered or bent path is
#: fitted with a slightly wrong velocity.
CORRUPTIONS = [
    ("blur", (0.0, 0.4, 0.8, 1.2, 1.6), "gold_VQ", 2.0, 0.5),
    ("grain", (0.0, 0.03, 0.06, 0.09, 0.12), "gold_VQ", 2.0, 0.2),
    ("jitter", (0.0, 0.3, 0.6, 0.9, 1.2), "gold_MQ", 3.0, 0.2),
    ("warp", (0.0, 0.3, 0.6, 0.9, 1.2), "gold_MQ", 1.5, 0.1),
    ("warp", (0.0, -0.3, -0.6, -0.9, -1.2), "gold_MQ", 2.0, 0.2),
]


@pytest.mark.parametrize(("kind", "strengths", "axis", "falls", "holds"), CORRUPTIONS)
def test_each_corruption_lowers_its_own_axis_and_spares_the_others(
    kind: str, strengths: tuple[float, ...], axis: str, falls: float, holds: float
) -> None:
    truth = captions()
    scores = [means(render(truth, **{kind: strength}), truth.texts()) for strength in strengths]
    own = [score[axis] for score in scores]
    assert own == sorted(own, reverse=True)
    assert len(set(own)) == len(own)
    assert own[0] - own[-1] > falls
    for other in set(AXES) - {axis}:
        drift = max(abs(score[other] - scores[0][other]) for score in scores)
        print(f"{kind} up to {strengths[-1]}: {other} moves by {drift:.3f}, {axis} falls by {own[0] - own[-1]:.3f}")
        assert drift < holds


def test_wrong_words_lower_the_text_score_alone() -> None:
    truth = captions()
    clips = render(truth)
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    scores = [
        means(clips, world.wrong_word(truth, share, stream(0, "test_world", "words")).texts()) for share in shares
    ]
    own = [score["gold_TA"] for score in scores]
    assert own == sorted(own, reverse=True)
    assert own[0] - own[-1] > 0.5
    for other in ("gold_VQ", "gold_MQ"):
        assert len({score[other] for score in scores}) == 1  # they do not read the caption


@pytest.mark.parametrize("which", ["colour", "shape", "direction", "speed"])
def test_each_attribute_counts_and_is_read_back(which: str) -> None:
    truth = captions()
    clips, fits = render(truth), gold.fit(render(truth))
    size = {"colour": 6, "shape": 3, "direction": 4, "speed": 2}[which]
    parts = {field.name: getattr(truth, field.name) for field in fields(truth)}
    wrong = world.Captions(**{**parts, which: (parts[which] + 1) % size})
    column = ["colour", "shape", "direction", "speed"].index(which)
    right = gold.caption_correct(fits, wrong).mean(0)
    assert right[column] == 0
    assert right.sum() == 3
    fall = Gold().score(clips, truth.texts(), world.FPS)["gold_TA"] - gold.text_alignment(fits, wrong)
    assert fall.min() > 0.25, fall.min()  # in every single clip, by a fair share of the attribute's 1 (speed: 0.5)


def test_a_clip_scores_the_same_alone_and_in_a_batch() -> None:
    truth = captions()[torch.arange(70)]  # more than one internal batch of 64
    clips = render(truth, grain=0.05, jitter=0.4)
    texts = truth.texts()
    batch = Gold().score(clips, texts, world.FPS)
    for i in (0, 33, 63, 64, 69):
        alone = Gold().score(clips[i : i + 1], texts[i : i + 1], world.FPS)
        for name in AXES:
            # matrix products of another size add in another order: float32 roundings on scores of order one
            assert abs(float(alone[name][0] - batch[name][i])) < 1e-4, (name, i)


@pytest.mark.usefixtures("global_random_state_is_left_alone")
def test_the_renderer_is_a_pure_function_of_its_stream() -> None:
    truth = captions()
    parts = {"jitter": 0.5, "grain": 0.05}
    assert torch.equal(render(truth, **parts), render(truth, **parts))
    corruption = world.Corruption.none(len(truth))
    other = world.render(truth, corruption, stream(1, "test_world"))
    assert not torch.equal(other, render(truth))
    first, second = (world.corpus(8, stream(5, "corpus")) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]
    clips = render(truth, **parts)
    assert clips.shape == (len(truth), 3, world.FRAMES, world.SIZE, world.SIZE)
    assert 0 <= clips.min() <= clips.max() <= 1


def test_the_split_is_disjoint_complete_and_balanced() -> None:
    train, held_out = world.split()
    texts, others = train.texts(), held_out.texts()
    assert len(set(texts)) == 108
    assert len(set(others)) == 36
    assert set(texts) | set(others) == set(world.all_captions().texts())
    assert not set(texts) & set(others)
    for part in (train, held_out):
        for field in fields(part):
            counts = torch.bincount(getattr(part, field.name))
            assert len(set(counts.tolist())) == 1, field.name


def test_validation_captions_are_taken_from_those_of_the_recipes_and_balanced() -> None:
    lists, (train, held_out) = tiny().read_prompts(), world.split()
    assert lists.validation is not None
    assert len(lists.validation) == 12
    assert sorted([*lists.train, *lists.validation]) == sorted(train.texts())
    assert sorted(lists.held_out) == sorted(held_out.texts())
    for part in map(world.parse, (lists.train, lists.validation)):
        for field in fields(part):
            counts = torch.bincount(getattr(part, field.name))
            assert len(set(counts.tolist())) == 1, field.name


def test_captions_parse_back() -> None:
    every = world.all_captions()
    again = world.parse(every.texts())
    assert all(torch.equal(getattr(every, field.name), getattr(again, field.name)) for field in fields(every))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a red circle moving left quickly now",
        "a pink circle moving left quickly",
        "a red star moving left quickly",
        "a red circle moving away quickly",
        "a red circle moving left fast",
        "the red circle moving left quickly",
    ],
)
def test_a_text_outside_the_world_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a caption of the nano world: write it as 'a <colour>"):
        world.parse([text])
    with pytest.raises(BenchError, match="is not a caption of the nano world"):
        Gold().score(torch.zeros(1, 3, world.FRAMES, world.SIZE, world.SIZE), [text], world.FPS)


def test_gold_scores_refuse_what_they_are_not_defined_on() -> None:
    good, text = torch.zeros(1, 3, world.FRAMES, world.SIZE, world.SIZE), ["a red circle moving left quickly"]
    assert set(Gold().score(good, text, world.FPS)) == set(AXES)
    with pytest.raises(BenchError, match="score these videos by another evaluator"):
        Gold().score(good[:, :, :5], text, world.FPS)
    with pytest.raises(BenchError, match="score these videos by another evaluator"):
        Gold().score(good, text, 24.0)
    good[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(BenchError, match="non-finite pixels"):
        Gold().score(good, text, world.FPS)
