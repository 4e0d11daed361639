"""A scorer for tests: mean brightness, in no time, with a list of what it was asked and prompts that make it fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from bench.api import BenchError, Evaluator, Metric


class Brightness(Evaluator):
    """Mean brightness times `scale`; the prompts "refused", "broken", "endless" and "misshapen" make it fail."""

    asked: ClassVar[list[list[str]]] = []
    """Prompts of each call that gave scores, since the list was last cleared."""
    metrics = {"brightness": Metric(True, "scale"), "frames": Metric(True, "count")}  # noqa: RUF012

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> Mapping[str, Tensor]:
        if "refused" in prompts:
            raise BenchError("the prompt is refused: write another one.")
        if "broken" in prompts:
            raise RuntimeError("out of\nmemory")
        self.asked.append(list(prompts))
        brightness = videos.mean((1, 2, 3, 4)) * self.scale
        brightness[[i for i, prompt in enumerate(prompts) if prompt == "endless"]] = float("inf")
        frames = torch.full((len(videos) + prompts.count("misshapen"),), float(videos.shape[2]))
        return {"brightness": brightness, "frames": frames}

    def fingerprint(self) -> Mapping[str, str]:
        return {"scale": str(self.scale)}
