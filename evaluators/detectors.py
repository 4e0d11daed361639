"""Detectors of reward hacking: statistics of plain pixels.

Videos that become dark, freeze, lose or gain texture, or have few colours can score well with a learned reward.
No direction of these numbers is better: a table shows how far a trained row differs from the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from bench.api import BenchError, Evaluator, Metric
from evaluators.common import check_batch

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the luma (ITU-R BT.601)."""
DARK = 16 / 255
"""Luma below which a pixel is dark: black in studio range (ITU-R BT.601)."""
EDGE = 0.1
"""Length of the luma's gradient above which a pixel is on an edge, in units of the [0, 1] range per pixel."""
BINS = 8
"""Levels of each colour channel in the histogram: 512 colours, so an entropy of 9 bits at most."""


class Detectors(Evaluator):
    """dark_fraction, edge_density, colour_entropy and motion_energy of each video; the prompt is not used."""

    metrics: Mapping[str, Metric] = {
        "dark_fraction": Metric(False, "share", f"pixels with luma below {DARK:.3f}, in [0, 1]"),
        "edge_density": Metric(True, "share", f"pixels whose luma changes by more than {EDGE} per pixel, in [0, 1]"),
        "colour_entropy": Metric(True, "bits", "entropy of the video's histogram of 8 x 8 x 8 colours, in [0, 9]"),
        "motion_energy": Metric(True, "luma / s", "mean change of a pixel's luma per second"),
    }
    prompt_free = frozenset(metrics)
    golden_folder = Path(__file__).parent / "golden" / "detectors"

    def __init__(self) -> None:
        self._details = pd.DataFrame()

    def score(
        self, videos: Float[Tensor, "b 3 f h w"], prompts: Sequence[str], fps: float
    ) -> dict[str, Float[Tensor, "b"]]:
        """Pixels in [0, 1], 2 frames of 3 x 3 pixels or more; a single image has no motion, so it is an error."""
        check_batch(videos, prompts, fps)
        frames, height, width = videos.shape[2:]
        if frames < 2 or min(height, width) < 3:
            raise BenchError(
                f"detectors got videos of {frames} frame(s) of {height} x {width}: "
                "give 2 frames of 3 x 3 pixels or more, or leave the evaluator out."
            )
        results = [self._one(video.detach().float(), fps) for video in videos]
        rows = [
            (i, frame, dark) for i, (_, frames) in enumerate(results) for frame, dark in enumerate(frames.tolist())
        ]
        self._details = pd.DataFrame(rows, columns=["video", "frame", "dark_fraction"])
        return {name: torch.stack([scores[name] for scores, _ in results]).cpu() for name in self.metrics}

    def _one(self, video: Float[Tensor, "3 f h w"], fps: float) -> tuple[dict[str, Tensor], Tensor]:
        """The four numbers of one video, and the share of dark pixels of each frame."""
        luma = torch.einsum("c,cfhw->fhw", torch.tensor(LUMA, device=video.device), video)
        dark = (luma < DARK).float().mean((1, 2))
        scores = {
            "dark_fraction": dark.mean(),
            "edge_density": (slope(luma) > EDGE).float().mean(),
            "colour_entropy": entropy(video),
            "motion_energy": (luma[1:] - luma[:-1]).abs().mean() * fps,
        }
        return scores, dark.cpu()

    def details(self) -> pd.DataFrame:
        """Columns video, frame, dark_fraction of the last call."""
        return self._details

    def fingerprint(self) -> dict[str, str]:
        return {"kind": "detectors", "luma": str(LUMA), "dark": repr(DARK), "edge": repr(EDGE), "bins": str(BINS)}


def slope(luma: Float[Tensor, "f h w"]) -> Float[Tensor, "f h2 w2"]:
    """Length of the luma's gradient per pixel by Sobel's operator, without a border of one pixel."""
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=luma.device) / 8
    gradient = functional.conv2d(luma[:, None], torch.stack([across, across.T])[:, None])
    return gradient.square().sum(1).sqrt()


def entropy(video: Float[Tensor, "3 f h w"]) -> Float[Tensor, ""]:
    """Shannon entropy in bits of the histogram of `BINS`^3 colours over all frames."""
    level = (video * BINS).long().clamp(max=BINS - 1)
    counts = torch.bincount(((level[0] * BINS + level[1]) * BINS + level[2]).flatten(), minlength=BINS**3)
    share = counts[counts > 0].double() / counts.sum()
    return -(share * share.log2()).sum().float()
