"""Scores of video frames against prompts by a CLIP model: the base class of CLIPScore, PickScore and HPSv2.

The protocol for videos is that of `evaluators.clip.frames`: 8 uniform frames, each scored, and the mean.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import Evaluator
from evaluators.clip.frames import FRAMES
from evaluators.clip.huggingface import HuggingFaceClip
from evaluators.clip.open_clip import OpenClip
from evaluators.common import (
    Count,
    Device,
    Dtype,
    check_batch,
    check_finite,
    float_type,
    freeze,
    pick_device,
    scoring,
    to_uint8,
    uniform_indices,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(eq=False, repr=False)
class ClipEvaluator(Evaluator):
    """Cosines between a video's frames and its prompt, from which a subclass computes its metrics."""

    name: ClassVar[str]
    idle_weights = frozenset({"logit_scale"})  # read when PickScore loads; cosines do not need it

    checkpoint: str | Path
    """Local folder or file of the model."""
    _: KW_ONLY
    dtype: Dtype = "float32"
    """Type of the weights: "float32" (the reference) or "bfloat16"."""
    micro_batch: Count = 64
    """Frames, or prompts, per forward pass; an integer of at least 1."""
    device: Device | None = None
    """Device of the model; null: the GPU if there is one, else the CPU."""
    idle_device: Device | None = None
    """Device on which the model waits between calls, such as `cpu`; null: `device`. No score changes."""

    def __post_init__(self) -> None:
        """Load the model; nothing is downloaded."""
        clip = self._load()
        self._clip, self._rule, self._text, self._scale = clip, clip.rule, clip.text, clip.scale
        self._device, self._prefix, self._type = pick_device(self.device), "", float_type(self.dtype)
        self._idle = torch.device(self.idle_device or self._device)
        freeze(clip.model, self._type, self._idle)
        self._details = dict[str, Tensor]()

    @abstractmethod
    def _load(self) -> HuggingFaceClip | OpenClip:
        """The model in float32."""

    @abstractmethod
    def _metrics(self, cosine: Float[Tensor, "b n"]) -> dict[str, Float[Tensor, "b n"]]:
        """Every metric of every frame, from the cosines."""

    def score(
        self, videos: Float[Tensor, "b 3 f h w"], prompts: Sequence[str], fps: float
    ) -> Mapping[str, Float[Tensor, "b"]]:
        """Means over the scored frames of videos with pixels in [0, 1], rounded to 256 levels; `fps` is not used."""
        check_batch(videos, prompts, fps)
        total = videos.shape[2]
        return self.score_frames(videos[:, :, self.frame_indices(total, fps)], prompts, total, fps)

    def frame_indices(self, total: int, fps: float) -> list[int]:
        """8 uniform frames, both ends included; all of a shorter video."""
        return uniform_indices(total, min(FRAMES, total))

    def score_frames(
        self, frames: Float[Tensor, "b 3 n h w"], prompts: Sequence[str], total: int, fps: float
    ) -> Mapping[str, Float[Tensor, "b"]]:
        """`score` of videos of `total` frames, from the frames at `frame_indices`."""
        check_batch(frames, prompts, fps)
        indices = self.frame_indices(total, fps)
        pixels = to_uint8(frames).transpose(1, 2)
        with scoring(self._clip.model, self._device, self._idle):
            images = self._images(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
            texts, tokens = self._texts(prompts)
            cosine = (images * texts[:, None]).sum(-1).to(frames.device)
        check_finite(self.name, cosine)
        values = self._metrics(cosine)
        b, n = cosine.shape
        limit = self._text.context
        self._details = {
            "video": torch.arange(b).repeat_interleave(n),
            "frame": torch.arange(n).repeat(b),
            "frame_index": torch.tensor(indices).repeat(b),
            "total_frames": torch.full((b * n,), total),
            "prompt_tokens": tokens.repeat_interleave(n),
            "token_limit": torch.full((b * n,), limit),
            "prompt_truncated": (tokens > limit).repeat_interleave(n),
            **{name: value.flatten().cpu() for name, value in values.items()},
        }
        return {name: value.mean(1) for name, value in values.items()}

    def _images(self, frames: Tensor) -> Float[Tensor, "n d"]:
        """Unit image embeddings of uint8 frames [n, 3, h, w]."""
        features = [
            self._clip.image_features(self._rule.pixels(chunk).to(self._device, self._type)).float()
            for chunk in frames.split(self.micro_batch)
        ]
        return torch.nn.functional.normalize(torch.cat(features), dim=-1)

    def _texts(self, prompts: Sequence[str]) -> tuple[Float[Tensor, "b d"], Tensor]:
        """Unit text embeddings, each different prompt embedded once, and each prompt's tokens before the cut."""
        unique = list(dict.fromkeys(prompts))
        ids, tokens = self._text.batch([self._prefix + prompt for prompt in unique])
        chunks = [self._clip.text_features(chunk.to(self._device)) for chunk in ids.split(self.micro_batch)]
        features = torch.nn.functional.normalize(torch.cat(chunks).float(), dim=-1)
        rows = [unique.index(prompt) for prompt in prompts]
        return features[rows], torch.tensor(tokens)[rows]

    def details(self) -> pd.DataFrame:
        """One row per scored frame of the last call.

        `video` is the index in the batch, `frame_index` the index of the frame in the video, `prompt_tokens` the
        length of prefix and prompt before the cut at `token_limit`, start and end token included. One column per
        metric follows.
        """
        import pandas as pd

        return pd.DataFrame({name: column.numpy() for name, column in self._details.items()})

    def fingerprint(self) -> Mapping[str, str]:
        """Hashes of weights and tokenizer, preprocessing constants, number of frames, prefix and dtype."""
        clip = self._clip
        model = {"evaluator": self.name, "checkpoint": clip.checkpoint, "prefix": self._prefix, "dtype": self.dtype}
        return {**model, **clip.hashes, **clip.constants, **self._rule.constants()}
