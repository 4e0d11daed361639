"""The loop of `bench score`: decode, score in batches of videos of one shape, store every score, report failures."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from bench.api import Evaluator
from bench.core.errors import BenchError
from bench.core.hashing import sha256_file
from bench.core.progress import LINE_EVERY, say
from bench.score import videos
from bench.score.evaluators import evaluator_parameters, make_evaluator
from bench.score.partial import (
    PartialScores,
    Result,
    first_non_finite,
    score_rows,
    score_table,
    summarise,
    write_scores,
)
from bench.score.videos import VideoPrompt
from evaluators.video_io import read_image, read_video


@dataclass(frozen=True)
class ScoreRequest:
    """The arguments of one call."""

    evaluators: Sequence[str]
    """Names, or 'module:Class'."""
    videos: Sequence[Path]
    """Files and folders; empty: the videos of the list `prompts`."""
    out: Path
    """Parquet file to write."""
    prompts: Path | None = None
    """CSV or JSON Lines file of videos and prompts."""
    params: Sequence[str] = ()
    """Parameters of evaluators, "name.key=value" each."""
    nano: bool = False
    """Whether evaluators without a checkpoint use the packaged ones."""
    batch: int = 4
    """Videos per call of an evaluator."""
    dtype: str | None = None
    device: str | None = None
    overwrite: bool = False
    """Whether the scores of an earlier call with the same `out` are deleted."""


@dataclass(frozen=True)
class DecodedVideo:
    """A decoded video and the evaluators that have not scored it yet."""

    item: VideoPrompt
    sha256: str
    frames: UInt8[Tensor, "f h w 3"]
    fps: float
    evaluators: Sequence[str]

    @property
    def shape(self) -> tuple[int, float, int, int]:
        """Frames, frames per second, height and width, which are equal in a batch."""
        return len(self.frames), self.fps, self.frames.shape[1], self.frames.shape[2]


def score(request: ScoreRequest) -> int:
    """Score everything, write `out`, print the summary; returns the number of failed videos."""
    if request.batch < 1:
        raise BenchError(f"--batch is {request.batch}: give at least 1.")
    items, unused = videos.read_items(request.videos, request.prompts)
    if unused:
        say(f"note: {unused} line(s) of {request.prompts} name a video that is not among --videos")
    params = evaluator_parameters(request.evaluators, request.params, request.nano, request.dtype, request.device)
    partial = PartialScores(request.out, request.overwrite)
    evaluators: dict[str, Evaluator] = {}
    for name in request.evaluators:
        evaluators[name], identity = make_evaluator(name, params[name])
        partial.register(name, identity)
    with _progress(len(items) * len(evaluators)) as progress:
        scoring = Scoring(evaluators, partial, request.batch, progress)
        results = scoring.run(items)
    if scoring.reused:
        say(f"{scoring.reused} of {len(results)} scores are taken from {partial.partial}")
    rows = score_rows(items, {name: list(evaluator.metrics) for name, evaluator in evaluators.items()}, results)
    summary = summarise(rows)
    summary_file = write_scores(request.out, rows, {name: partial.identities[name] for name in evaluators}, summary)
    print(score_table(summary))
    failed = {item for (item, _), result in results.items() if result.error is not None}
    if failed:
        say(f"{len(failed)} of {len(items)} videos failed: their rows have the error and no value")
    say(f"written: {request.out}, {summary_file}")
    return len(failed)


@dataclass
class Scoring:
    """One pass over the videos; at most `2 * batch` decoded videos are in memory."""

    evaluators: Mapping[str, Evaluator]
    partial: PartialScores
    batch: int
    progress: ScoreProgress
    results: dict[tuple[VideoPrompt, str], Result] = field(default_factory=dict)
    reused: int = 0
    """Number of scores of an earlier call."""
    reported: set[str] = field(default_factory=set)
    """Types of unexpected exceptions whose traceback was printed."""

    def run(self, items: Sequence[VideoPrompt]) -> dict[tuple[VideoPrompt, str], Result]:
        """A result for every video and evaluator."""
        waiting: dict[tuple[int, float, int, int], list[DecodedVideo]] = {}
        for item in items:
            video = self._load(item)
            if video is None:
                continue
            batch = waiting.setdefault(video.shape, [])
            batch.append(video)
            if len(batch) == self.batch:
                self._score(waiting.pop(video.shape))
            elif sum(map(len, waiting.values())) >= 2 * self.batch:
                self._score(waiting.pop(max(waiting, key=lambda shape: len(waiting[shape]))))
        for batch in waiting.values():
            self._score(batch)
        return self.results

    def _load(self, item: VideoPrompt) -> DecodedVideo | None:
        """The decoded video; None if all its scores are known, or if it cannot be read."""
        sha256 = None
        try:
            sha256 = sha256_file(item.path)
            if item.prompt is None:
                raise BenchError(f"video {item.video} has no prompt: add it to the list given with --prompts.")
            names = []
            for name in self.evaluators:
                known = self.partial.done.get((sha256, item.prompt, name))
                if known is None:
                    names.append(name)
                else:
                    self._record(item, name, known)
                    self.reused += 1
            if not names:
                return None
            read = read_image if item.path.suffix.lower() in videos.IMAGES else read_video
            video = read(item.path)
        except Exception as error:  # the other videos are scored all the same
            sentence = self._sentence(error)
            self.progress.say(f"{item.video}: {sentence}")
            for name in self.evaluators:
                if (item, name) not in self.results:
                    self._record(item, name, Result(sha256, error=sentence))
            return None
        return DecodedVideo(item, sha256, torch.from_numpy(video.frames), video.fps, names)

    def _score(self, batch: Sequence[DecodedVideo]) -> None:
        """Score videos of one shape by all evaluators, and store the results."""
        for name in self.evaluators:
            own = [video for video in batch if name in video.evaluators]
            for video, result in zip(own, self._evaluate(name, own), strict=True):
                if result.error is None:
                    self.partial.add(video.item, name, result)
                else:
                    self.progress.say(f"{video.item.video}, {name}: {result.error}")
                self._record(video.item, name, result)

    def _evaluate(self, name: str, batch: Sequence[DecodedVideo]) -> list[Result]:
        """One evaluator's results; if it raises for several videos, each is scored alone."""
        if not batch:
            return []
        evaluator = self.evaluators[name]
        try:
            pixels = torch.stack([video.frames for video in batch]).permute(0, 4, 1, 2, 3).float() / 255
            scores = evaluator.score(pixels, [str(video.item.prompt) for video in batch], batch[0].fps)
            columns = {metric: scores[metric].detach().double().cpu() for metric in evaluator.metrics}
            wrong = next((metric for metric, column in columns.items() if column.shape != (len(batch),)), None)
            if wrong is not None:
                raise BenchError(f"evaluator {name!r} did not return one number per video for {wrong!r}: fix it.")
        except Exception as error:  # the error of a batch does not show which video causes it
            if len(batch) > 1:
                return [result for video in batch for result in self._evaluate(name, [video])]
            return [Result(batch[0].sha256, batch[0].shape, error=self._sentence(error))]
        return [
            self._result(name, video, {m: float(c[i]) for m, c in columns.items()}) for i, video in enumerate(batch)
        ]

    def _result(self, name: str, video: DecodedVideo, scores: Mapping[str, float]) -> Result:
        metric = first_non_finite(scores)
        if metric is None:
            return Result(video.sha256, video.shape, scores)
        sentence = f"evaluator {name!r} gave {metric} = {scores[metric]}: look at the evaluator and at this video."
        return Result(video.sha256, video.shape, error=sentence)

    def _record(self, item: VideoPrompt, name: str, result: Result) -> None:
        self.results[item, name] = result
        self.progress.step()

    def _sentence(self, error: Exception) -> str:
        """The error as one line; the traceback of the first of each unexpected type is printed."""
        text = " ".join(str(error).split())
        if isinstance(error, BenchError):
            return text
        kind = type(error).__name__
        if kind not in self.reported:
            self.reported.add(kind)
            self.progress.say("".join(traceback.format_exception(error)).rstrip())
        return f"{kind}: {text}"


class ScoreProgress:
    """Number of scores on stderr: a bar on a terminal, elsewhere a line at intervals."""

    def __init__(self, total: int):
        from tqdm import tqdm

        self.total, self.count, self.last_line = total, 0, time.monotonic()
        self.bar = tqdm(total=total, unit="score", leave=False) if sys.stderr.isatty() else None

    def step(self) -> None:
        """Count one score."""
        self.count += 1
        if self.bar is not None:
            self.bar.update()
        elif time.monotonic() - self.last_line > LINE_EVERY:
            self.last_line = time.monotonic()
            say(f"{self.count} of {self.total} scores")

    def say(self, text: str) -> None:
        """Print a line on stderr."""
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            say(text)


@contextmanager
def _progress(total: int) -> Iterator[ScoreProgress]:
    progress = ScoreProgress(total)
    try:
        yield progress
    finally:
        if progress.bar is not None:
            progress.bar.close()
