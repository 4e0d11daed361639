"""The calibration of a score on those of held-out judges: a local-linear regression over the videos of some runs.

`bench.report.data.judge` says what it is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial.distance import cdist

from bench.report.data.records import Run
from bench.report.data.statistics import Array

Mask = npt.NDArray[np.bool_]

BANDWIDTHS = (4.0, 2.0, 1.0, 0.5, 0.25)
"""Standard deviations of the kernel that are tried, in those of a judge's scores over the calibration."""
RIDGE = 1e-6
"""Penalty of the slopes, as a share of the sum of the weights: only where videos do not determine them it matters."""
SUPPORT = 0.99
"""A video is outside if its nearest calibration video is farther than that of this share of the calibration videos."""
LEAST_VIDEOS = 10
"""With fewer calibration videos per coefficient of the local regression, no row is calibrated."""


class Videos(NamedTuple):
    """Scores of the videos of some runs, in the order of the runs."""

    judges: Array
    """Scores of the held-out judges, [video, judge]."""
    scores: Array
    """The scores to explain, [video, score]."""
    prompts: npt.NDArray[np.int64]
    """Number of each video's prompt."""
    runs: int

    def cells(self, values: Array) -> Array:
        """Means of values[video, score] over the videos of a run and a prompt, [score, run, prompt]."""
        by_run = values.reshape(self.runs, -1, values.shape[1])
        prompts = self.prompts[: by_run.shape[1]]
        return np.stack([by_run[:, prompts == prompt].mean(1).T for prompt in np.unique(prompts)], axis=2)


def videos_of(runs: Sequence[Run], judges: Sequence[str], scores: Mapping[str, Mapping[str, float]]) -> Videos:
    """The videos of these runs, which have the same prompts and videos; `scores` are the weights of columns."""
    clips = pd.concat([run.clips for run in runs])
    sums = [clips[list(weights)].to_numpy() @ np.array(list(weights.values())) for weights in scores.values()]
    prompts = clips.index.get_level_values("prompt_index").to_numpy()
    return Videos(clips[list(judges)].to_numpy(), np.column_stack(sums), prompts, len(runs))


def joined(videos: Sequence[Videos]) -> Videos:
    """All videos of several."""
    judges, scores, prompts, runs = zip(*videos, strict=True)
    return Videos(np.concatenate(judges), np.concatenate(scores), np.concatenate(prompts), sum(runs))


@dataclass(frozen=True)
class Calibration:
    """Scores against those of held-out judges."""

    videos: Videos
    centre: Array
    """Mean of each judge's scores."""
    scale: Array
    """Their standard deviation; distances between videos are in these units."""
    bandwidth: float

    def weights(self, videos: Videos) -> Iterator[tuple[Mask, Mask, Array, Array]]:
        """For the videos of each prompt: which they are, which calibration videos are of other prompts, the weights
        of these in the prediction, [video, calibration video], and the distance of the nearest one."""
        x, at = ((each.judges - self.centre) / self.scale for each in (self.videos, videos))
        for prompt in np.unique(videos.prompts):
            own, others = videos.prompts == prompt, self.videos.prompts != prompt
            yield own, others, *local_linear(x[others], at[own], self.bandwidth)

    @cached_property
    def own(self) -> tuple[Array, Array]:
        """Score - prediction of the calibration videos, [video, score], and the distance of the nearest other one."""
        residual, distance = self.videos.scores.copy(), np.empty(len(self.videos.scores))
        for own, others, weights, nearest in self.weights(self.videos):
            residual[own] -= weights @ self.videos.scores[others]
            distance[own] = nearest
        return residual, distance

    @property
    def explained(self) -> float:
        """Share of the variance of the first score over the calibration videos that the held-out judges explain."""
        return float(1 - (self.own[0][:, 0] ** 2).mean() / self.videos.scores[:, 0].var())

    def excess(self, videos: Videos) -> tuple[Array, float]:
        """Excess of each cell, [score, run, prompt], and the share of videos outside.

        From score - prediction, a mean per cell, the residuals of the calibration videos of the same prompt are taken
        away, with the weights that they have in the predictions for the run. This removes the bias of the smoothing
        to first order, and the spread of the cells then has the error of the calibration in it.
        """
        residual, far = videos.scores.copy(), 0
        own_residual, distance = self.own
        reach = np.quantile(distance, SUPPORT)
        used = np.zeros((videos.runs, len(self.videos.scores)))
        run = np.repeat(np.arange(videos.runs), len(residual) // videos.runs)
        for own, others, weights, nearest in self.weights(videos):
            residual[own] -= weights @ self.videos.scores[others]
            far += int((nearest > reach).sum())
            for number in range(videos.runs):
                used[number, others] += weights[run[own] == number].sum(0)
        used *= videos.runs / len(residual)
        prompts = np.unique(videos.prompts)
        error = np.stack(
            [used[:, at] @ own_residual[at] for at in (self.videos.prompts == p for p in prompts)], axis=1
        )
        return videos.cells(residual) - len(prompts) * np.moveaxis(error, 2, 0), far / len(residual)

    @property
    def suffices(self) -> bool:
        """Whether there are enough videos, of more than one prompt."""
        videos, judges = self.videos.judges.shape
        return videos >= LEAST_VIDEOS * (judges + 1) and len(np.unique(self.videos.prompts)) > 1


def calibrate(groups: Sequence[Videos]) -> Calibration:
    """The calibration on these videos.

    The bandwidth is the one of `BANDWIDTHS` whose predictions of the first score from the videos of other prompts have
    the least mean squared error; the widest one of equal ones.
    """
    videos = joined(groups)
    spread = videos.judges.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    tries = [Calibration(videos, videos.judges.mean(0), scale, bandwidth) for bandwidth in BANDWIDTHS]
    if not tries[0].suffices:
        return tries[0]
    return tries[int(np.argmin([(one.own[0][:, 0] ** 2).mean() for one in tries]))]


def local_linear(x: Array, at: Array, bandwidth: float) -> tuple[Array, Array]:
    """Weights of the points x[video, judge] in their local-linear regression at the points at[point, judge].

    At each point the regression line through the videos, weighted with `exp(-distance^2 / (2 bandwidth^2))`. Its
    values for scores y[video] are weights[point, video] @ y. Returns also the distance of each point's nearest video.
    """
    squares = cdist(at, x, "sqeuclidean")
    nearest = squares.min(1)
    kernel = np.exp((nearest[:, None] - squares) / (2 * bandwidth**2))  # relative to the nearest: never all 0
    design, points = (np.column_stack([np.ones(len(each)), each]) for each in (x, at))
    size = design.shape[1]
    moments = (kernel @ (design[:, :, None] * design[:, None, :]).reshape(len(x), -1)).reshape(-1, size, size)
    slopes = np.arange(1, size)
    moments[:, slopes, slopes] += RIDGE * moments[:, :1, 0]
    return kernel * (np.linalg.solve(moments, points[:, :, None])[:, :, 0] @ design.T), np.sqrt(nearest)
