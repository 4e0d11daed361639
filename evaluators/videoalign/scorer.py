"""VideoReward of VideoAlign (Liu et al. 2025, "Improving Video Generation with Human Feedback"): VQ, MQ and TA.

The model looks at a few frames of the video, reads an evaluation text with the prompt near its end, and gives one
number at each of three reward tokens: visual quality, motion quality, text alignment. VQ and MQ are read before the
prompt, so that they do not depend on it.

A batch and a single video differ by rounding only (at most 5e-6 in float32).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Evaluator, Metric
from evaluators.common import (
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


#: The published model.pth (KlingTeam/VideoReward, checkpoint-11352) and the evaluation text it was trained with.
OFFICIAL_WEIGHTS = "48375908e6112de9f0248402db156a23b480709a6960b091c598c6f4c88d21b9"
OFFICIAL_TEMPLATE = "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700"

MEANING = {"VQ": "visual quality", "MQ": "motion quality", "TA": "text alignment"}


class VideoAlign(Evaluator):
    """VQ, MQ and TA, normalised as the paper reports them, and VQ_raw, MQ_raw and TA_raw as the head gives them."""

    prompt_free = frozenset({"VQ", "MQ", "VQ_raw", "MQ_raw"})
    float32_spread = (
        5e-4,
        "twice 2.5e-4: a resized pixel halfway between two of 256 levels is rounded to either by the AVX and the "
        "scalar kernels, and one such pixel moves a nano score by so much; all else is below 2e-6",
    )

    def __init__(
        self,
        checkpoint: str | Path,
        base_model: str | Path | None = None,
        dtype: str = "float32",
        normalise: bool = True,
        prompt_template: str | Path | None = None,
        *,
        step: int | None = None,
        sample_fps: float | None = None,
        num_frames: int | None = None,
        max_frame_pixels: int | None = None,
        micro_batch: int = 16,
        device: str | None = None,
    ):
        """Load a checkpoint folder; nothing is downloaded.

        `base_model`: folder of Qwen2-VL (config.json; weights only for the adapter layout), by default
        `<checkpoint>/base`. `dtype`: "float32" (the reference) or "bfloat16" (as published). `normalise`: VQ, MQ and
        TA are (raw - mean) / std with the checkpoint's constants; where it states none they stay raw.
        `prompt_template`: file with the evaluation text, by default `<checkpoint>/prompt_template.txt`. `step`: N of
        checkpoint-N, by default the highest. `sample_fps`, `num_frames`, `max_frame_pixels` replace the checkpoint's
        sampling: scores are then not comparable with published ones. `micro_batch`: videos per forward pass.
        """
        root = Path(checkpoint)
        folder = find_step(root, step)
        self._config = _override(read_config(root), sample_fps, num_frames, max_frame_pixels)
        base = root / "base" if base_model is None else Path(base_model)
        if not base.is_dir():
            raise BenchError(f"base model folder {base} does not exist: name the Qwen2-VL folder with base_model=.")
        template_file = root / "prompt_template.txt" if prompt_template is None else Path(prompt_template)
        template = read_template(template_file)
        self._hashes = {f"sha256:{file.name}": file_sha256(file) for file in used_files(folder, base)}
        self._hashes["sha256:prompt_template"] = file_sha256(template_file)
        self._check_official(template_file)
        own = folder / "tokenizer" / "tokenizer.json"
        tokenizer_file = own if own.is_file() else base / "tokenizer.json"
        self._text = Text(template, tokenizer_file, template_file)
        self._hashes |= {f"sha256:{file.name}": file_sha256(file) for file in (tokenizer_file, base / "config.json")}
        self._hashes["sha256:model_config.json"] = file_sha256(root / "model_config.json")
        self._dtype, self._device, self._micro_batch = dtype, pick_device(device), micro_batch
        model = build(folder, base, self._config, self._text.size)
        self._model = freeze(model, float_type(dtype), self._device)
        self._norm = self._config.norm if normalise else None
        self._details: dict[str, list[object]] = {}
        unit = "raw" if self._norm is None else "standard deviations of the authors' validation set"
        self.metrics = {axis: Metric(True, unit, MEANING[axis]) for axis in AXES}
        self.metrics |= {f"{axis}_raw": Metric(True, "raw", f"{MEANING[axis]}, not normalised") for axis in AXES}

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

        Pixels in [0, 1], taken to the nearest of 256 levels as a lossless file would; `fps`: frame rate of the videos,
        which decides how many frames are looked at.
        """
        check_batch(videos, prompts, fps)
        total, height, width = videos.shape[2:]
        indices = uniform_indices(total, frame_count(total, fps, self._config.sample_fps, self._config.num_frames))
        size = frame_size(height, width, self._config.min_frame_pixels, self._config.max_frame_pixels)
        tokens = [self._text.ids(prompt) for prompt in prompts]
        parts = []
        with scoring():
            for first in range(0, len(videos), self._micro_batch):
                some = slice(first, first + self._micro_batch)
                frames = to_uint8(videos[some, :, indices]).cpu().transpose(1, 2)
                parts.append(self._raw(frames, prompts[some], size))
        raw = torch.cat(parts).to(videos.device)
        check_finite("VideoReward", raw)
        self._details = {
            "video": list(range(len(videos))),
            "total_frames": [total] * len(videos),
            "fps": [float(fps)] * len(videos),
            "frame_indices": [indices] * len(videos),
            "height": [size[0]] * len(videos),
            "width": [size[1]] * len(videos),
            "text_tokens": [len(ids) for ids in tokens],
            "prompt_truncated": [False] * len(videos),
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
        """One row per video of the last call: frames looked at, their size, tokens of the text, raw scores."""
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
            "dtype": self._dtype,
        }


def _override(
    config: RewardConfig, sample_fps: float | None, num_frames: int | None, max_pixels: int | None
) -> RewardConfig:
    """The checkpoint's sampling with the caller's replacements; a rate and a number of frames exclude each other."""
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
            raise BenchError(f"VideoReward got {name}={value}: set it to a finite value above 0.")
    return config
