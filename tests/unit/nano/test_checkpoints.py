"""The nano reward models: they load through the evaluators, agree with their recipes, and know the gold scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import bench.nano
from bench.core.rng import stream
from bench.nano import clip, videoreward, world
from bench.nano.preferences import AXES, Parts, ScoredClips, judge, pair_accuracy, renders
from bench.nano.vocabulary import save_clip_tokenizer, save_qwen_tokenizer
from evaluators.clipscore import ClipScore
from evaluators.pickscore import PickScore
from evaluators.videoalign.scorer import VideoAlign

CHECKPOINTS = Path(bench.nano.__file__).parent / "checkpoints"
CLIPS = 128


@pytest.fixture(scope="module")
def judged() -> ScoredClips:
    """Fresh renders of held-out captions, half of them corrupted, some with a wrong word."""
    return judge(Parts(renders, world.split()[1], CLIPS, (1, "test", "nano_rewards")))


def pixels(judged: ScoredClips) -> Tensor:
    return judged.clips.float() / 255


def test_videoreward_orders_pairs_on_each_axis(judged: ScoredClips) -> None:
    evaluator = VideoAlign(checkpoint=CHECKPOINTS / "videoreward")
    scores = evaluator.score(pixels(judged), judged.captions.texts(), world.FPS)
    gold = judged.scores()
    accuracy = {axis: pair_accuracy(scores[axis], gold[axis]) for axis in AXES}
    assert min(accuracy.values()) > 0.7, accuracy


def test_videoreward_recipe_and_evaluator_agree(judged: ScoredClips) -> None:
    """The training forward is the evaluator's; the tolerance is for float32 rounding."""
    texts = judged.captions.texts()[:16]
    scores = VideoAlign(checkpoint=CHECKPOINTS / "videoreward").score(pixels(judged)[:16], texts, world.FPS)
    raw = videoreward.load(CHECKPOINTS / "videoreward").score(judged.clips[:16], texts)
    for i, axis in enumerate(AXES):
        torch.testing.assert_close(scores[f"{axis}_raw"], raw[:, i], rtol=0, atol=1e-4)


def test_pickscore_orders_pairs_by_overall(judged: ScoredClips) -> None:
    scores = PickScore(checkpoint=CHECKPOINTS / "pickscore").score(pixels(judged), judged.captions.texts(), world.FPS)
    assert pair_accuracy(scores["pickscore"], clip.overall(judged)) > 0.65


def test_clipscore_prefers_the_caption_that_is_shown(judged: ScoredClips) -> None:
    evaluator = ClipScore(checkpoint=CHECKPOINTS / "clip")
    seen = judged.seen()
    colour = world.Captions((seen.colour + 1) % len(world.COLOURS), seen.shape, seen.direction, seen.speed)
    shape = world.Captions(seen.colour, (seen.shape + 1) % len(world.SHAPES), seen.direction, seen.speed)
    right, *wrong = (
        evaluator.score(pixels(judged), captions.texts(), world.FPS) for captions in (seen, colour, shape)
    )
    for other in wrong:
        assert (right["clip_cosine"] > other["clip_cosine"]).double().mean() > 0.75


def test_turned_clips_keep_their_gold_scores(judged: ScoredClips) -> None:
    """Mirroring and playing backwards move the fit and the caption along with the pixels."""
    rng = stream(2, "test_nano_rewards")
    mirror, backwards = torch.rand(2, CLIPS, generator=rng) < 0.5
    turned = judged.turned(mirror, backwards)
    for axis, value in judged.scores().items():
        torch.testing.assert_close(turned.scores()[axis], value, rtol=0, atol=1e-4)


def test_tokenizers_make_each_word_one_token(tmp_path: Path) -> None:
    texts = world.all_captions().texts()
    qwen = save_qwen_tokenizer(tmp_path / "qwen", texts, ["<|VQ_reward|>"])
    assert [len(row) for row in qwen(texts)["input_ids"]] == [6] * len(texts)
    assert qwen.decode(qwen("é<|VQ_reward|> red?\n")["input_ids"]) == "é<|VQ_reward|> red?\n"
    assert qwen.convert_tokens_to_ids("<|VQ_reward|>") == len(qwen) - 1
    small = save_clip_tokenizer(tmp_path / "clip", texts)
    rows = small(texts)["input_ids"]
    assert all(len(row) == 8 and row[-1] == max(row) == small.eos_token_id for row in rows)


def test_the_number_of_processes_changes_no_clip() -> None:
    parts = Parts(renders, world.split()[0], 20, (1, "test", "workers"), size=8)
    alone, shared = judge(parts), judge(parts, workers=2)
    assert len(alone) == 20
    assert torch.equal(alone.clips, shared.clips)
    assert torch.equal(alone.found.centre, shared.found.centre)
    assert alone.captions.texts() == shared.captions.texts()
