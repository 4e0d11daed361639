"""VideoReward of VideoAlign (Liu et al. 2025, "Improving Video Generation with Human Feedback"): VQ, MQ and TA.

The input is a few frames of the video and an evaluation text with the prompt near its end. The model computes one
number at each of three reward tokens: visual quality, motion quality, text alignment. The tokens of VQ and MQ precede
the prompt, so these two do not depend on it.

Scores of a video in a batch and alone differ by rounding only (at most 5e-6 in float32).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Evaluator, Metric
from evaluators.common import (
    Count,
    Device,
    Dtype,
    Rate,
    check_batch,
    check_finite,
    file_sha256,
    float_type,
    freeze,
    pick_device,
    scoring,
    to_uint8,
    uniform_indices,
)
from evaluators.videoalign.checkpoint import AXES, RewardConfig, build, find_step, read_config, used_files
from evaluators.videoalign.inputs import (
    MERGE,
    PATCH,
    TEMPORAL,
    Text,
    frame_count,
    frame_size,
    patches,
    read_template,
    resize,
)

if TYPE_CHECKING:
    import pandas as pd


OFFICIAL_WEIGHTS = "48375908e6112de9f0248402db156a23b480709a6960b091c598c6f4c88d21b9"
"""sha256 of the published model.pth (KlingTeam/VideoReward, checkpoint-11352)."""
OFFICIAL_TEMPLATE = "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700"
"""sha256 of the evaluation text that these weights were trained with."""

MEANING = {"VQ": "visual quality", "MQ": "motion quality", "TA": "text alignment"}
METRICS: Mapping[str, Metric] = {
    **{axis: Metric(True, "standard deviations of the authors' validation set", MEANING[axis]) for axis in AXES},
    **{f"{axis}_raw": Metric(True, "raw", f"{MEANING[axis]}, not normalised") for axis in AXES},
}


@dataclass(eq=False, repr=False)
class VideoAlign(Evaluator):
    """VQ, MQ and TA, normalised as in the paper, and VQ_raw, MQ_raw and TA_raw, the outputs of the head."""

    metrics = METRICS
    prompt_free = frozenset({"VQ", "MQ", "VQ_raw", "MQ_raw"})
    float32_spread = (
        5e-4,
        "twice 2.5e-4: a resized pixel halfway between two of 256 levels is rounded to either by the AVX and the "
        "scalar kernels, and one such pixel moves a nano score by so much; all else is below 2e-6",
    )

    checkpoint: str | Path
    """Local folder with model_config.json and checkpoint-N."""
    base_model: str | Path | None = None
    """Folder of Qwen2-VL: config.json, and weights for the adapter layout only; null: `<checkpoint>/base`."""
    _: KW_ONLY
    dtype: Dtype = "float32"
    """Type of the weights: "float32" (the reference) or "bfloat16" (as published)."""
    normalise: bool = True
    """Whether VQ, MQ and TA are (raw - mean) / std with the checkpoint's constants; without constants they are raw."""
    prompt_template: str | Path | None = None
    """File of the evaluation text; null: `<checkpoint>/prompt_template.txt`."""
    step: Count | None = None
    """N of checkpoint-N; null: the highest."""
    sample_fps: Rate | None = None
    """Frames sampled per second of video; null: the checkpoint's. With another value here, in `num_frames` or in
    `max_frame_pixels`, scores are not comparable with published ones."""
    num_frames: Count | None = None
    """Number of sampled frames, in place of a rate; null: the checkpoint's."""
    max_frame_pixels: Count | None = None
    """Largest area of a frame, pixels; null: the checkpoint's."""
    micro_batch: Count = 16
    """Videos per forward pass; an integer of at least 1."""
    device: Device | None = None
    """Device of the model; null: the GPU if there is one, else the CPU."""
    idle_device: Device | None = None
    """Device on which the model waits between calls, such as `cpu`; null: `device`. No score changes."""

    def __post_init__(self) -> None:
        """Load the checkpoint; nothing is downloaded."""
        root = Path(self.checkpoint)
        folder = find_step(root, self.step)
        self._config = _override(read_config(root), self.sample_fps, self.num_frames, self.max_frame_pixels)
        base = root / "base" if self.base_model is None else Path(self.base_model)
        if not base.is_dir():
            raise BenchError(f"base model folder {base} does not exist: name the Qwen2-VL folder with base_model=.")
        template_file = root / "prompt_template.txt" if self.prompt_template is None else Path(self.prompt_template)
        template = read_template(template_file)
        self._hashes = {f"sha256:{file.name}": file_sha256(file) for file in used_files(folder, base)}
        self._hashes["sha256:prompt_template"] = file_sha256(template_file)
        self._check_official(template_file)
        own = folder / "tokenizer" / "tokenizer.json"
        tokenizer_file = own if own.is_file() else base / "tokenizer.json"
        self._text = Text(template, tokenizer_file, template_file)
        self._hashes |= {f"sha256:{file.name}": file_sha256(file) for file in (tokenizer_file, base / "config.json")}
        self._hashes["sha256:model_config.json"] = file_sha256(root / "model_config.json")
        self._device = pick_device(self.device)
        self._idle = torch.device(self.idle_device or self._device)
        model = build(folder, base, self._config, self._text.size)
        self._model = freeze(model, float_type(self.dtype), self._idle)
        self._norm = self._config.norm if self.normalise else None
        self._details: dict[str, list[object]] = {}
        if self._norm is None:
            self.metrics = {name: replace(metric, unit="raw") for name, metric in METRICS.items()}

    def _check_official(self, template_file: Path) -> None:
        official = self._hashes.get("sha256:model.pth") == OFFICIAL_WEIGHTS
        if official and self._hashes["sha256:prompt_template"] != OFFICIAL_TEMPLATE:
            raise BenchError(
                f"prompt template {template_file} is not the one that the official VideoReward was trained with "
                f"(sha256 {OFFICIAL_TEMPLATE[:12]}...): save VideoAlign's 'detailed_special' template byte for byte."
            )

    def score(
        self, videos: Float[Tensor, "b 3 f h w"], prompts: Sequence[str], fps: float
    ) -> Mapping[str, Float[Tensor, "b"]]:
        """VQ, MQ, TA and their raw values; higher is better.

        Pixels in [0, 1], rounded to 256 levels as in a lossless file. `fps`: frame rate of the videos, which decides
        how many frames the model sees.
        """
        check_batch(videos, prompts, fps)
        total = videos.shape[2]
        return self.score_frames(videos[:, :, self.frame_indices(total, fps)], prompts, total, fps)

    def frame_indices(self, total: int, fps: float) -> list[int]:
        """Frames at about `sample_fps` per second, or `num_frames` of them, both ends included."""
        return uniform_indices(total, frame_count(total, fps, self._config.sample_fps, self._config.num_frames))

    def score_frames(
        self, frames: Float[Tensor, "b 3 n h w"], prompts: Sequence[str], total: int, fps: float
    ) -> Mapping[str, Float[Tensor, "b"]]:
        """`score` of videos of `total` frames, from the frames at `frame_indices`."""
        check_batch(frames, prompts, fps)
        indices, videos = self.frame_indices(total, fps), len(frames)
        height, width = frames.shape[3:]
        size = frame_size(height, width, self._config.min_frame_pixels, self._config.max_frame_pixels)
        tokens = [self._text.ids(prompt) for prompt in prompts]
        rows = []
        with scoring(self._model, self._device, self._idle):
            for first in range(0, videos, self.micro_batch):
                batch = slice(first, first + self.micro_batch)
                rows.append(self._raw(to_uint8(frames[batch]).cpu().transpose(1, 2), prompts[batch], size))
        raw = torch.cat(rows).to(frames.device)
        check_finite("VideoReward", raw)
        self._details = {
            "video": list(range(videos)),
            "total_frames": [total] * videos,
            "fps": [float(fps)] * videos,
            "frame_indices": [indices] * videos,
            "height": [size[0]] * videos,
            "width": [size[1]] * videos,
            "text_tokens": [len(ids) for ids in tokens],
            "prompt_truncated": [False] * videos,
            **{f"{axis}_raw": raw[:, i].tolist() for i, axis in enumerate(AXES)},
        }
        norm = self._norm or dict.fromkeys(AXES, (0.0, 1.0))
        scores = {axis: (raw[:, i] - norm[axis][0]) / norm[axis][1] for i, axis in enumerate(AXES)}
        return scores | {f"{axis}_raw": raw[:, i] for i, axis in enumerate(AXES)}

    def _raw(self, frames: Tensor, prompts: Sequence[str], size: tuple[int, int]) -> Float[Tensor, "b 3"]:
        """Raw scores of one micro-batch of sampled frames, uint8 [b, n, 3, h, w]."""
        b, n = frames.shape[:2]
        sized = resize(frames.flatten(0, 1), size).unflatten(0, (b, n))
        pixels = patches(sized.to(self._device))
        grid = torch.tensor([[n // TEMPORAL, size[0] // PATCH, size[1] // PATCH]] * b)
        ids, at = self._text.batch(prompts, int(grid[0].prod()) // MERGE**2)
        ids, at, grid = (tensor.to(self._device) for tensor in (ids, at, grid))
        scores: Tensor = self._model(ids, at, pixels.flatten(0, 1), grid, self._text.video_id)
        return scores

    def details(self) -> pd.DataFrame:
        """One row per video of the last call: sampled frames, their size, tokens of the text, raw scores."""
        import pandas as pd

        return pd.DataFrame(self._details)

    def fingerprint(self) -> Mapping[str, str]:
        """Hashes of weights, text and tokenizer, the sampling constants, the scale and the dtype."""
        config = self._config
        sampling = {
            "sample_fps": config.sample_fps,
            "num_frames": config.num_frames,
            "max_frame_pixels": config.max_frame_pixels,
            "min_frame_pixels": config.min_frame_pixels,
            "resize": "bicubic, antialias, uint8",
        }
        return {
            "evaluator": "videoalign",
            **self._hashes,
            **{name: str(value) for name, value in sampling.items()},
            "normalised": str(dict(self._norm) if self._norm else False),
            "dtype": self.dtype,
        }


def _override(
    config: RewardConfig, sample_fps: float | None, num_frames: int | None, max_pixels: int | None
) -> RewardConfig:
    """The checkpoint's sampling with the caller's values; exactly one of rate and number of frames is set."""
    if sample_fps is not None:
        config = replace(config, sample_fps=sample_fps, num_frames=num_frames)
    elif num_frames is not None:
        config = replace(config, sample_fps=None, num_frames=num_frames)
    if max_pixels is not None:
        config = replace(config, max_frame_pixels=max_pixels)
    if (config.sample_fps is None) == (config.num_frames is None):
        raise BenchError(
            "VideoReward samples by a frame rate or by a number of frames: set one of sample_fps and num_frames."
        )
    for name in ("sample_fps", "num_frames", "max_frame_pixels", "min_frame_pixels"):
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise BenchError(f"VideoReward has {name}={value}: set it to a finite value above 0.")
    return config
