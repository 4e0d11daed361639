"""PickScore (Kirstain et al. 2023, "Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation")."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from bench.api import Metric
from evaluators.clip.huggingface import HuggingFaceClip
from evaluators.clip.scorer import ClipEvaluator

#: flow_grpo divides by this, to bring typical values near 1.
DIVISOR = 26.0


class PickScore(ClipEvaluator):
    """exp(logit scale) * cosine per frame, in three units; means over 8 uniform frames."""

    name = "pickscore"

    def __init__(
        self,
        checkpoint: str | Path,
        processor: str | Path | None = None,
        dtype: str = "float32",
        *,
        micro_batch: int = 64,
        device: str | None = None,
    ):
        """`checkpoint`: the `CLIPModel` folder; `processor`: folder with tokenizer and image constants, if another."""
        folder = None if processor is None else Path(processor)
        super().__init__(HuggingFaceClip(self.name, Path(checkpoint), folder), dtype, "", micro_batch, device)
        self.metrics = {
            "pickscore": Metric(
                True, "raw", "mean over frames of exp(logit scale) * cosine; about 17 to 24 for real images"
            ),
            "pickscore_div26": Metric(True, "raw / 26", "the unit of flow_grpo's training logs"),
            "pickscore_cosine": Metric(True, "cosine", "the unit of DanceGRPO"),
        }

    def _metrics(self, cosine: Float[Tensor, "b n"]) -> dict[str, Float[Tensor, "b n"]]:
        raw = self._scale * cosine
        return {"pickscore": raw, "pickscore_div26": raw / DIVISOR, "pickscore_cosine": cosine}
