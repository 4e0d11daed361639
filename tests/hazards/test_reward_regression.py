"""The golden gate: packaged evaluators reproduce their scores, and each known wrong way to load one is caught.

Every mistake is made by replacing one function. Without it the same gate passes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import plugins
from bench.api import BenchError, Evaluator
from bench.checks.golden import GOLDEN, check_golden, golden_path, tolerance, write_golden
from bench.suite.paths import resolve
from bench.suite.schema import NANO
from evaluators import common
from evaluators.clip import scorer as clip_scorer
from evaluators.clip.frames import ImageRule
from evaluators.videoalign import checkpoint, scorer
from evaluators.videoalign.inputs import Text, frame_count, read_template
from evaluators.videoalign.network import RewardModel
from evaluators.videoalign.scorer import VideoAlign

NAMES = [*NANO["evaluator_params"], "gold"]
REWARD = resolve("nano/videoreward")


def packaged_evaluator(name: str) -> tuple[Evaluator, Path | None]:
    params = dict(NANO["evaluator_params"].get(name, {}))
    if "checkpoint" in params:
        params["checkpoint"] = resolve(params["checkpoint"])
    evaluator = plugins.evaluator(name, **params)
    return evaluator, golden_path(evaluator, params)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_committed_file(name: str) -> None:
    evaluator, path = packaged_evaluator(name)
    entry = check_golden(name, evaluator, path)
    assert entry["passed"] is True
    assert entry["largest"] <= entry["tolerance"] == tolerance(evaluator)[0]


def spatial_positions(self: RewardModel, ids: Tensor, grid: Tensor) -> Tensor:
    """Qwen2-VL's own M-RoPE positions: what a plain call of today's Qwen2VLModel computes."""
    positions: Tensor = self.backbone.get_rope_index(
        ids, mm_token_type_ids=2 * (ids == self.backbone.config.video_token_id).int(), video_grid_thw=grid
    )[0]
    assert not torch.equal(positions, torch.arange(ids.shape[1]).expand_as(positions))
    return positions


def before_the_merger(self: RewardModel, pixels: Tensor, grid: Tensor) -> Tensor:
    """Four times too many rows."""
    state: Tensor = self.backbone.visual(pixels, grid_thw=grid).last_hidden_state
    return state


def head_of_the_longer_sequence(self: RewardModel, pixels: Tensor, grid: Tensor) -> Tensor:
    """What masked_scatter makes of features from before the merger: it takes the first ones, without an error."""
    state, rows = before_the_merger(self, pixels, grid), int(grid.prod(1).sum()) // 4
    hidden = self.rm_head.in_features
    return state.flatten()[: rows * hidden].view(rows, hidden)


def random_head(module: torch.nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """The head keeps its initial values, as after a load that is not strict."""
    common.load_exact(module, weights, source)
    head = module.rm_head.weight  # type: ignore[union-attr]
    with torch.no_grad():
        head.copy_(0.05 * torch.randn(head.shape, generator=torch.Generator().manual_seed(0)))  # type: ignore[operator, arg-type]


def written_at_8_fps(total: int, fps: float, sample_fps: float | None, num_frames: int | None) -> int:
    return frame_count(total, 8.0, sample_fps, num_frames)


def stripped_template(path: Path) -> str:
    return "\n".join(line.rstrip() for line in read_template(path).strip().splitlines())


right_padded = Text.batch


def left_padded(self: Text, prompts: Sequence[str], video_tokens: int) -> tuple[Tensor, Tensor]:
    ids, at = right_padded(self, prompts, video_tokens)
    rows = [right_padded(self, [prompt], video_tokens)[0][0] for prompt in prompts]
    short = torch.tensor([ids.shape[1] - len(row) for row in rows])
    return torch.stack([row.roll(int(by)) for row, by in zip(ids, short, strict=True)]), at + short[:, None]


def tokens_in_another_order(self: Text, prompts: Sequence[str], video_tokens: int) -> tuple[Tensor, Tensor]:
    """TA, VQ, MQ: what a permutation of the head's rows is for a head of one."""
    ids, at = right_padded(self, prompts, video_tokens)
    return ids, at.roll(1, dims=1)


def without_lora(weights: dict[str, Tensor], *rest: Any) -> None:
    """The adapter is left out."""


WRONG: dict[str, tuple[object, str, Callable[..., Any]]] = {
    "M-RoPE positions": (RewardModel, "positions", spatial_positions),
    "features before the merger": (RewardModel, "features", before_the_merger),
    "head of the longer feature sequence": (RewardModel, "features", head_of_the_longer_sequence),
    "random head": (checkpoint, "load_exact", random_head),
    "LoRA left out": (checkpoint, "merge_lora", without_lora),
    "wrong frame rate": (scorer, "frame_count", written_at_8_fps),
    "left padding": (Text, "batch", left_padded),
    "tokens in another order": (Text, "batch", tokens_in_another_order),
}


@pytest.mark.hazard(1)
@pytest.mark.hazard(3)
@pytest.mark.hazard(5)
@pytest.mark.hazard(6)
@pytest.mark.hazard(9)
@pytest.mark.parametrize(("owner", "name", "wrong"), WRONG.values(), ids=WRONG)
def test_a_wrong_videoreward_is_caught(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, wrong: Callable[..., Any]
) -> None:
    monkeypatch.setattr(owner, name, wrong)
    message = "install the transformers version" if wrong is before_the_merger else "does not reproduce"
    with pytest.raises(BenchError, match=message):
        check_golden("videoalign", *packaged_evaluator("videoalign"))


@pytest.fixture
def head_of_three(tmp_path: Path) -> Path:
    """The packaged checkpoint with three outputs, and its golden scores."""
    root = Path(shutil.copytree(REWARD, tmp_path / "three"))
    config = json.loads((root / "model_config.json").read_text(encoding="utf-8"))
    config["model_config"]["output_dim"] = 3
    (root / "model_config.json").write_text(json.dumps(config), encoding="utf-8")
    state = torch.load(root / "checkpoint-1" / "model.pth", weights_only=True)
    (name,) = [name for name in state if name.endswith("rm_head.weight")]
    state[name] = torch.cat([scale * state[name] for scale in (1.0, 0.5, 2.0)])
    torch.save(state, root / "checkpoint-1" / "model.pth")
    write_golden(VideoAlign(root), root / GOLDEN)
    return root


@pytest.fixture
def blanks(tmp_path: Path) -> Path:
    """The packaged checkpoint with blanks at its template's line ends, as the official one has; and golden scores."""
    root = Path(shutil.copytree(REWARD, tmp_path / "blanks"))
    template = (root / "prompt_template.txt").read_bytes()
    (root / "prompt_template.txt").write_bytes(template.replace(b"\n", b"  \n"))
    write_golden(VideoAlign(root), root / GOLDEN)
    return root


@pytest.mark.hazard(10)
def test_a_stripped_template_is_caught(blanks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = blanks / GOLDEN
    assert check_golden("videoalign", VideoAlign(blanks), path)["passed"] is True
    monkeypatch.setattr(scorer, "read_template", stripped_template)
    with pytest.raises(BenchError, match="does not reproduce"):
        check_golden("videoalign", VideoAlign(blanks), path)


@pytest.mark.hazard(20)
def test_permuted_rows_of_the_head_are_caught(head_of_three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def permuted(module: torch.nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
        common.load_exact(module, {**weights, "rm_head.weight": weights["rm_head.weight"].roll(1, 0)}, source)

    path = head_of_three / GOLDEN
    assert check_golden("videoalign", VideoAlign(head_of_three), path)["passed"] is True
    monkeypatch.setattr(checkpoint, "load_exact", permuted)
    with pytest.raises(BenchError, match="does not reproduce"):
        check_golden("videoalign", VideoAlign(head_of_three), path)


def bilinear(self: ImageRule, frames: Tensor) -> Tensor:
    """FlowCPS's resize in place of PIL's, without the crop."""
    images = torch.nn.functional.interpolate(frames.float() / 255, (self.crop, self.crop), mode="bilinear")
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
    return (images - mean) / std


def first_frames(total: int, count: int) -> list[int]:
    return list(range(count))


@pytest.mark.parametrize("name", ["clipscore", "pickscore"])
@pytest.mark.parametrize(
    ("owner", "attribute", "wrong"),
    [(ImageRule, "pixels", bilinear), (clip_scorer, "uniform_indices", first_frames)],
    ids=["another resize", "the first frames"],
)
def test_a_wrong_image_scorer_is_caught(
    monkeypatch: pytest.MonkeyPatch, name: str, owner: object, attribute: str, wrong: Callable[..., Any]
) -> None:
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(BenchError, match="does not reproduce"):
        check_golden(name, *packaged_evaluator(name))


def test_a_moved_grid_of_the_gold_scores_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.nano.world.BACKGROUND", 0.081)
    with pytest.raises(BenchError, match="does not reproduce"):
        check_golden("gold", *packaged_evaluator("gold"))
