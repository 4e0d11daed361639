"""The nano reward models: they load, agree with their recipes, and order clips as the gold scores do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import bench.nano
from bench.core.rng import stream
from bench.nano import clip, videoreward, world
from bench.nano.recipe import CLIP_MEAN, CLIP_STD
from bench.nano.reward_training import RewardRecipe, pair_accuracy
from bench.nano.scored_clips import AXES, ClipBatches, ScoredClips, load_all
from bench.nano.sources import renders
from bench.nano.vocabulary import save_clip_tokenizer, save_qwen_tokenizer
from evaluators import common
from evaluators.clipscore import ClipScore
from evaluators.pickscore import PickScore
from evaluators.videoalign.scorer import VideoAlign

CHECKPOINTS = Path(bench.nano.__file__).parent / "checkpoints"
CLIPS = 128


@pytest.fixture(scope="module")
def clips() -> ScoredClips:
    """Fresh renders of held-out captions, half of them corrupted, some with a wrong word."""
    return load_all(ClipBatches(renders, world.split()[1], CLIPS, (1, "test", "nano_rewards")))


def pixels(clips: ScoredClips) -> Tensor:
    return clips.clips.float() / 255


def test_videoreward_orders_pairs_on_each_axis(clips: ScoredClips) -> None:
    evaluator = VideoAlign(checkpoint=CHECKPOINTS / "videoreward")
    scores = evaluator.score(pixels(clips), clips.captions.texts(), world.FPS)
    gold = clips.scores()
    accuracy = {axis: pair_accuracy(scores[axis], gold[axis]).share for axis in AXES}
    assert min(accuracy.values()) > 0.7, accuracy


def test_videoreward_recipe_and_evaluator_agree(clips: ScoredClips) -> None:
    """The training forward is the evaluator's; the tolerance is for float32 rounding."""
    texts = clips.captions.texts()[:16]
    scores = VideoAlign(checkpoint=CHECKPOINTS / "videoreward").score(pixels(clips)[:16], texts, world.FPS)
    raw = videoreward.load(CHECKPOINTS / "videoreward").score(clips.clips[:16], texts)
    for i, axis in enumerate(AXES):
        torch.testing.assert_close(scores[f"{axis}_raw"], raw[:, i], rtol=0, atol=1e-4)


def test_pickscore_orders_pairs_by_overall(clips: ScoredClips) -> None:
    scores = PickScore(checkpoint=CHECKPOINTS / "pickscore").score(pixels(clips), clips.captions.texts(), world.FPS)
    assert pair_accuracy(scores["pickscore"], clips.overall()).share > 0.65


def test_clipscore_prefers_the_caption_that_is_shown(clips: ScoredClips) -> None:
    evaluator = ClipScore(checkpoint=CHECKPOINTS / "clip")
    shown = clips.fitted_captions()
    colour = world.Captions((shown.colour + 1) % len(world.COLOURS), shown.shape, shown.direction, shown.speed)
    shape = world.Captions(shown.colour, (shown.shape + 1) % len(world.SHAPES), shown.direction, shown.speed)
    right, *wrong = (
        evaluator.score(pixels(clips), captions.texts(), world.FPS) for captions in (shown, colour, shape)
    )
    for other in wrong:
        assert (right["clip_cosine"] > other["clip_cosine"]).double().mean() > 0.75


def test_flipped_clips_keep_their_gold_scores(clips: ScoredClips) -> None:
    """Mirroring and playing backwards move the fit and the caption along with the pixels."""
    rng = stream(2, "test_nano_rewards")
    mirror, backwards = torch.rand(2, CLIPS, generator=rng) < 0.5
    flipped = clips.flipped(mirror, backwards)
    for axis, value in clips.scores().items():
        torch.testing.assert_close(flipped.scores()[axis], value, rtol=0, atol=1e-4)


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
    batches = ClipBatches(renders, world.split()[0], 20, (1, "test", "workers"), size=8)
    alone, shared = load_all(batches), load_all(batches, workers=2)
    assert len(alone) == 20
    assert torch.equal(alone.clips, shared.clips)
    assert torch.equal(alone.fits.centre, shared.fits.centre)
    assert alone.captions.texts() == shared.captions.texts()


def test_recipes_and_evaluators_have_the_same_constants() -> None:
    assert (CLIP_MEAN, CLIP_STD) == (common.CLIP_MEAN, common.CLIP_STD)


def test_a_recipe_saves_a_checkpoint_and_a_report(tmp_path: Path) -> None:
    sizes = {"steps": 2, "batch": 8, "lr": 1e-3, "pool": 16, "tests": 16}
    clip.train_clip(tmp_path, RewardRecipe(source=renders, eval_source=renders, seed=3, **sizes))
    report = json.loads((tmp_path / "clip" / "report.json").read_text())
    assert report["recipe"] == {"source": "renders", "seed": 3, **sizes}
    assert set(report["measured"]) == {"retrieval_of_8", "cosine_mean", "cosine_std"}
    assert ClipScore(tmp_path / "clip").fingerprint()["evaluator"] == "clipscore"
