"""CLIPScore (Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", section 3)."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Metric
from evaluators.clip.huggingface import HuggingFaceClip
from evaluators.clip.open_clip import CONFIG_FILE, OpenClip, find_weights
from evaluators.clip.scorer import ClipEvaluator

#: Hessel et al.'s w, which stretches typical values to about [0, 1].
WEIGHT = 2.5


class ClipScore(ClipEvaluator):
    """2.5 * max(cosine, 0) per frame, and the plain cosine; means over 8 uniform frames.

    The model is transformers' or open_clip's; the two agree where activation and tokens do. open_clip mends the text
    (ftfy) and unescapes html before it makes tokens, the tokenizer.json of transformers does not.

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
        model: str | Path | None = None,
        activation: str | None = None,
        prefix: str = "",
        micro_batch: int = 64,
        device: str | None = None,
    ):
        """`checkpoint`: a `CLIPModel` folder of transformers, or an open_clip weight file or folder.

        `processor`: another folder for tokenizer and image constants, with transformers only. `model`: open_clip's
        name of the model ("ViT-L-14-quickgelu" for OpenAI's weights) or its JSON file; by default the
        open_clip_config.json beside the weights. `activation`: "quick_gelu" (OpenAI) or "gelu" (LAION); needed where
        the open_clip configuration does not state it, refused where a configuration says otherwise. `prefix` is put
        before each prompt; the original uses "A photo depicts ", today's video tables none.
        """
        clip = self._load(Path(checkpoint), processor, model, activation)
        super().__init__(clip, dtype, prefix, micro_batch, device)
        self.metrics = {
            "clipscore": Metric(True, "2.5 * cosine", "mean over frames of 2.5 * max(cosine, 0)"),
            "clip_cosine": Metric(True, "cosine", "mean over frames of the cosine between frame and prompt"),
        }

    def _load(
        self, path: Path, processor: str | Path | None, model: str | Path | None, activation: str | None
    ) -> HuggingFaceClip | OpenClip:
        """A folder with config.json is transformers', unless `model` asks for open_clip."""
        foreign = path.is_dir() and not (path / "config.json").is_file() and (path / CONFIG_FILE).is_file()
        if model is None and not path.is_file() and not foreign:
            return HuggingFaceClip(self.name, path, None if processor is None else Path(processor), activation)
        if processor is not None:
            raise BenchError(
                f"clipscore got processor= for the open_clip checkpoint {path}: leave it out, open_clip brings its "
                "own tokenizer."
            )
        return OpenClip(find_weights(path), model, activation)

    def _metrics(self, cosine: Float[Tensor, "b n"]) -> dict[str, Float[Tensor, "b n"]]:
        return {"clipscore": WEIGHT * cosine.clamp(min=0), "clip_cosine": cosine}
