"""CLIPScore (Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Metric
from evaluators.clip.huggingface import HuggingFaceClip
from evaluators.clip.open_clip import CONFIG_FILE, OpenClip, find_weights
from evaluators.clip.scorer import ClipEvaluator

WEIGHT = 2.5
"""w of Hessel et al., which scales typical values to about [0, 1]."""


METRICS: Mapping[str, Metric] = {
    "clipscore": Metric(True, "2.5 * cosine", "mean over frames of 2.5 * max(cosine, 0)"),
    "clip_cosine": Metric(True, "cosine", "mean over frames of the cosine between frame and prompt"),
}


@dataclass(eq=False, repr=False)
class ClipScore(ClipEvaluator):
    """2.5 * max(cosine, 0) per frame, and the plain cosine; means over 8 uniform frames.

    The model is one of transformers or of open_clip. The two agree if activation and tokens do. open_clip cleans the
    text with ftfy and unescapes HTML before it makes tokens; the tokenizer.json of transformers does not.

    Other programs print 100 * cosine or cosine * logit scale / 30, with other models and prefixes: compare differences
    within one protocol only.

    `checkpoint` is a `CLIPModel` folder of transformers, or an open_clip weight file or folder.
    """

    name: ClassVar[str] = "clipscore"
    metrics = METRICS

    processor: str | Path | None = None
    """Folder of tokenizer and image constants, for transformers only; null: the checkpoint."""
    _: KW_ONLY
    model: str | Path | None = None
    """open_clip's name of the model ("ViT-L-14-quickgelu" for OpenAI's weights) or its JSON file; null: the
    open_clip_config.json beside the weights."""
    activation: str | None = None
    """Activation, "quick_gelu" (OpenAI) or "gelu" (LAION); required if the open_clip configuration does not state it,
    and an error if it contradicts a configuration."""
    prefix: str = ""
    """Text before each prompt. The original uses "A photo depicts ", today's video tables use none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._prefix = self.prefix

    def _load(self) -> HuggingFaceClip | OpenClip:
        """A folder with config.json is one of transformers, unless `model` names an open_clip model."""
        path, processor = Path(self.checkpoint), self.processor
        foreign = path.is_dir() and not (path / "config.json").is_file() and (path / CONFIG_FILE).is_file()
        if self.model is None and not path.is_file() and not foreign:
            return HuggingFaceClip(self.name, path, None if processor is None else Path(processor), self.activation)
        if processor is not None:
            raise BenchError(
                f"clipscore has processor= for the open_clip checkpoint {path}: leave it out, open_clip brings its "
                "own tokenizer."
            )
        return OpenClip(find_weights(path), self.model, self.activation)

    def _metrics(self, cosine: Float[Tensor, "b n"]) -> dict[str, Float[Tensor, "b n"]]:
        return {"clipscore": WEIGHT * cosine.clamp(min=0), "clip_cosine": cosine}
