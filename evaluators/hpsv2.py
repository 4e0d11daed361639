"""HPSv2 (Wu et al. 2023, "Human Preference Score v2: A Solid Benchmark for Evaluating Human Preferences of
Text-to-Image Synthesis"), versions 2.0 and 2.1: CLIP ViT-H/14 tuned on human choices between images.

The score is the plain cosine of image and prompt, without logit scale; benchmark tables print 100 times it. The
original's `score()` uses version 2.0 unless told otherwise, its benchmark and DanceGRPO use 2.1: the two are different
models, so the version is stated, checked and recorded.

Departs: a frame whose longer side is already the model's size is padded like any other; the original forgets to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Metric
from evaluators.clip.frames import LetterboxRule
from evaluators.clip.open_clip import CONFIG_FILE, OpenClip, find_weights
from evaluators.clip.scorer import ClipEvaluator
from evaluators.common import file_sha256

#: Version to the file of the release (hub repository xswu/HPSv2).
RELEASED = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}
ARCHITECTURE = "ViT-H-14"


class HPSv2(ClipEvaluator):
    """Cosine per frame after letterboxing, and 100 times it; means over 8 uniform frames."""

    name = "hpsv2"

    def __init__(
        self,
        checkpoint: str | Path,
        version: str | float,
        dtype: str = "float32",
        *,
        sha256: str | None = None,
        model: str | Path | None = None,
        micro_batch: int = 64,
        device: str | None = None,
    ):
        """`checkpoint`: the released file {"state_dict": ...}, or the folder that holds it under its released name.

        `version`: 2.0 or 2.1; a file that carries the other version's name is refused. `sha256`: what the file
        must have, if you know it. `model`: open_clip name or JSON file; by default the open_clip_config.json beside
        the file, else ViT-H-14. The released files hold fp16 weights, which are scored in float32 or bfloat16; on a
        GPU the original rounds to fp16, so that its scores come in steps of 0.00024.
        """
        version = str(version)
        if version not in RELEASED:
            raise BenchError(f"HPSv2 version '{version}' is unknown: choose one of {', '.join(RELEASED)}.")
        path = find_weights(Path(checkpoint), [RELEASED[version]])
        _check_version(path, version, sha256)
        self._version = version
        if model is None and not (path.parent / CONFIG_FILE).is_file():
            model = ARCHITECTURE
        super().__init__(OpenClip(path, model, "gelu", LetterboxRule, "state_dict"), dtype, "", micro_batch, device)
        self.metrics = {
            "hpsv2": Metric(True, "cosine", f"HPS v{version}, mean over frames of the cosine; about 0.20 to 0.35"),
            "hpsv2_x100": Metric(True, "100 * cosine", f"HPS v{version} as benchmark tables print it"),
        }

    def _metrics(self, cosine: Float[Tensor, "b n"]) -> dict[str, Float[Tensor, "b n"]]:
        return {"hpsv2": cosine, "hpsv2_x100": 100 * cosine}

    def fingerprint(self) -> Mapping[str, str]:
        """As every CLIP scorer's, and the version."""
        return {**super().fingerprint(), "version": self._version}


def _check_version(path: Path, version: str, sha256: str | None) -> None:
    """Refuse a file with the name of the other version's release, or with another digest than asked for."""
    for other, name in RELEASED.items():
        if path.name == name and other != version:
            raise BenchError(
                f"HPSv2 file {path} is the release of version {other}, but version is '{version}': set version to "
                f"'{other}', or pass {RELEASED[version]}."
            )
    if sha256 is not None and (digest := file_sha256(path)) != sha256.lower():
        raise BenchError(
            f"HPSv2 file {path} has sha256 {digest[:12]}..., not {sha256[:12]}... as asked: pass the file of version "
            f"{version}."
        )
