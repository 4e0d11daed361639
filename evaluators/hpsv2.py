"""HPSv2 (Wu et al. 2023, "Human Preference Score v2: A Solid Benchmark for Evaluating Human Preferences of
Text-to-Image Synthesis"), versions 2.0 and 2.1: CLIP ViT-H/14 tuned on human choices between images.

The score is the plain cosine of image and prompt, without logit scale; benchmark tables print 100 times it. The
original's `score()` uses version 2.0 by default, its benchmark and DanceGRPO use 2.1. The two are different models, so
the version is a required parameter, is checked against the file's name, and is recorded.

Departs: a frame whose longer side is already the model's size is padded like any other; the original forgets to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Metric
from evaluators.clip.frames import LetterboxRule
from evaluators.clip.open_clip import CONFIG_FILE, OpenClip, find_weights
from evaluators.clip.scorer import ClipEvaluator
from evaluators.common import file_sha256

RELEASED = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}
"""Version to the file of the release (hub repository xswu/HPSv2)."""
ARCHITECTURE = "ViT-H-14"


METRICS: Mapping[str, Metric] = {
    "hpsv2": Metric(True, "cosine", "mean over frames of the cosine; about 0.20 to 0.35"),
    "hpsv2_x100": Metric(True, "100 * cosine", "the cosine as benchmark tables print it"),
}


@dataclass(eq=False, repr=False)
class HPSv2(ClipEvaluator):
    """Cosine per frame after letterboxing, and 100 times it; means over 8 uniform frames.

    The released files hold fp16 weights, which are scored in float32 or bfloat16. On a GPU the original rounds to
    fp16, so its scores have steps of 0.00024.

    `checkpoint` is the released file {"state_dict": ...}, or the folder that holds it under its released name.
    """

    name: ClassVar[str] = "hpsv2"
    metrics = METRICS

    version: str | float
    """2.0 or 2.1; a file with the name of the other version is an error."""
    _: KW_ONLY
    sha256: str | None = None
    """Expected sha256 of the file; null: not checked."""
    model: str | Path | None = None
    """open_clip's name of the model or its JSON file; null: the open_clip_config.json beside the file, else
    ViT-H-14."""

    def __post_init__(self) -> None:
        self.version = str(self.version)
        super().__post_init__()

    def _load(self) -> OpenClip:
        version = str(self.version)
        if version not in RELEASED:
            raise BenchError(f"HPSv2 version '{version}' is unknown: choose one of {', '.join(RELEASED)}.")
        path = find_weights(Path(self.checkpoint), [RELEASED[version]])
        _check_version(path, version, self.sha256)
        model = self.model
        if model is None and not (path.parent / CONFIG_FILE).is_file():
            model = ARCHITECTURE
        return OpenClip(path, model, "gelu", rule=LetterboxRule, state_key="state_dict")

    def _metrics(self, cosine: Float[Tensor, "b n"]) -> dict[str, Float[Tensor, "b n"]]:
        return {"hpsv2": cosine, "hpsv2_x100": 100 * cosine}

    def fingerprint(self) -> Mapping[str, str]:
        """That of every CLIP evaluator, and the version."""
        return {**super().fingerprint(), "version": str(self.version)}


def _check_version(path: Path, version: str, sha256: str | None) -> None:
    """Reject a file with the name of the other version's release, or with another digest than `sha256`."""
    for other, name in RELEASED.items():
        if path.name == name and other != version:
            raise BenchError(
                f"HPSv2 file {path} is the release of version {other}, but version is '{version}': set version to "
                f"'{other}', or pass {RELEASED[version]}."
            )
    if sha256 is not None and (digest := file_sha256(path)) != sha256.lower():
        raise BenchError(
            f"HPSv2 file {path} has sha256 {digest[:12]}..., not {sha256[:12]}... as in the parameter: pass "
            f"the file of version {version}."
        )
