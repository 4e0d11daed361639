"""CLIPScore (Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", section 3)."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from bench.api import Metric
from evaluators.clip_model import ClipEvaluator

#: Hessel et al.'s w, which stretches typical values to about [0, 1].
WEIGHT = 2.5


class ClipScore(ClipEvaluator):
    """2.5 * max(cosine, 0) per frame, and the plain cosine; means over 8 uniform frames.

    Other programs print 100 * cosine or cosine * logit scale / 30, with other models and prefixes: compare differences
    within one protocol only.
    """

    name = "clipscore"

    def __init__(
        self,
        checkpoint: str | Path,
        processor: str | Path | None = None,
        dtype: str = "float32",
        *,
        prefix: str = "",
        micro_batch: int = 64,
        device: str | None = None,
    ):
        """`checkpoint`: a `CLIPModel` folder; `processor`: another folder for tokenizer and image constants.

        `prefix` is put before each prompt; the original uses "A photo depicts ", today's video tables none.
        """
        super().__init__(checkpoint, processor, dtype, prefix, micro_batch, device)
        self.metrics = {
            "clipscore": Metric(True, "2.5 * cosine", "mean over frames of 2.5 * max(cosine, 0)"),
            "clip_cosine": Metric(True, "cosine", "mean over frames of the cosine between frame and prompt"),
        }

    def _metrics(self, cosine: Float[Tensor, "b n"]) -> dict[str, Float[Tensor, "b n"]]:
        return {"clipscore": WEIGHT * cosine.clamp(min=0), "clip_cosine": cosine}
