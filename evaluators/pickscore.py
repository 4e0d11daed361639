"""PickScore (Kirstain et al. 2023, "Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from bench.api import Metric
from evaluators.clip.huggingface import HuggingFaceClip
from evaluators.clip.scorer import ClipEvaluator

DIVISOR = 26.0
"""flow_grpo divides by this, so that typical values are near 1."""


METRICS: Mapping[str, Metric] = {
    "pickscore": Metric(True, "raw", "mean over frames of exp(logit scale) * cosine; about 17 to 24 for real images"),
    "pickscore_div26": Metric(True, "raw / 26", "the unit of flow_grpo's training logs"),
    "pickscore_cosine": Metric(True, "cosine", "the unit of DanceGRPO"),
}


@dataclass(eq=False, repr=False)
class PickScore(ClipEvaluator):
    """exp(logit scale) * cosine per frame, in three units; means over 8 uniform frames.

    `checkpoint` is a `CLIPModel` folder of transformers.
    """

    name: ClassVar[str] = "pickscore"
    metrics = METRICS

    processor: str | Path | None = None
    """Folder of tokenizer and image constants; null: the checkpoint."""

    def _load(self) -> HuggingFaceClip:
        processor = None if self.processor is None else Path(self.processor)
        return HuggingFaceClip(self.name, Path(self.checkpoint), processor)

    def _metrics(self, cosine: Float[Tensor, "b n"]) -> dict[str, Float[Tensor, "b n"]]:
        raw = self._scale * cosine
        return {"pickscore": raw, "pickscore_div26": raw / DIVISOR, "pickscore_cosine": cosine}
