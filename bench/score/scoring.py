"""The loop of `bench score`: decode, score in batches of videos of one shape, store every score, report failures."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from bench.api import Evaluator, SamplesFrames
from bench.core.errors import BenchError
from bench.core.hashing import sha256_file
from bench.core.progress import Work, say, working
from bench.score import videos
from bench.score.evaluators import evaluator_parameters, make_evaluator
from bench.score.partial import (
    PartialScores,
    Result,
    first_non_finite,
    prompt_notes,
    score_rows,
    score_table,
    summarise,
    video_notes,
    write_scores,
)
from bench.score.videos import VideoPrompt
from evaluators.video_io import Video, read_image, read_video


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
    """A decoded video, of which only the frames are kept that evaluators look at."""

    item: VideoPrompt
    sha256: str
    shape: tuple[int, float, int, int]
    """Frames, frames per second, height and width of the file, which are equal in a batch."""
    frames: Mapping[str, UInt8[Tensor, "n h w 3"]]
    """Each evaluator that has not scored the video yet to the frames that it looks at."""
    notes: tuple[str, ...]

    def result(self, scores: Mapping[str, float] | None = None, error: str | None = None) -> Result:
        return Result(self.sha256, self.shape, scores, error, notes=self.notes)


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
        with working(f"loading {name}"):
            evaluators[name], identity = make_evaluator(name, params[name])
        partial.register(name, identity)
    with working("computing scores", len(items) * len(evaluators)) as progress:
        scoring = Scoring(evaluators, partial, request.batch, progress)
        results = scoring.run(items)
    if scoring.reused:
        say(f"{scoring.reused} of {len(results)} scores are taken from {partial.partial}")
    rows = score_rows(items, {name: list(evaluator.metrics) for name, evaluator in evaluators.items()}, results)
    earlier = partial.other_rows(rows)
    if earlier:
        say(f"note: {len(earlier)} rows of earlier calls stay in {request.out}, --overwrite drops them")
    rows += earlier
    notes = [*prompt_notes(results), *video_notes(results)]
    for note in notes:
        say(f"note: {note}")
    summary = summarise(rows)
    identities = {name: partial.identities[name] for name in dict.fromkeys(row["evaluator"] for row in rows)}
    summary_file = write_scores(request.out, rows, identities, summary, notes)
    print(score_table(summary))
    failed = {item for (item, _), result in results.items() if result.error is not None}
    if failed:
        say(f"{len(failed)} of {len(items)} videos failed: their rows have the error and no value")
    say(f"written: {request.out}, {summary_file}")
    return len(failed)


@dataclass
class Scoring:
    """One pass over the videos; in memory are one whole video, and the frames to score of at most `2 * batch`."""

    evaluators: Mapping[str, Evaluator]
    partial: PartialScores
    batch: int
    progress: Work
    results: dict[tuple[VideoPrompt, str], Result] = field(default_factory=dict)
    earlier: set[tuple[str, str, str]] = field(init=False)
    """Scores that an earlier call has left."""
    reused: int = 0
    """Number of scores of an earlier call."""
    reported: set[str] = field(default_factory=set)
    """Types of unexpected exceptions whose traceback was printed."""

    def __post_init__(self) -> None:
        self.earlier = set(self.partial.done)

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
                raise BenchError(f"video {item.video} {item.problem}.")
            names = []
            for name in self.evaluators:
                known = self.partial.done.get((sha256, item.prompt, name))
                if known is None:
                    names.append(name)
                else:
                    self._record(item, name, known)
                    self.reused += (sha256, item.prompt, name) in self.earlier
            if not names:
                return None
            read = read_image if item.path.suffix.lower() in videos.IMAGES else read_video
            video = read(item.path)
        except Exception as error:  # the other videos are scored all the same
            sentence = self._sentence(error)
            say(f"{item.video}: {sentence}")
            for name in self.evaluators:
                if (item, name) not in self.results:
                    self._record(item, name, Result(sha256, error=sentence))
            return None
        return self._sample(item, sha256, video, names)

    def _sample(self, item: VideoPrompt, sha256: str, video: Video, names: Sequence[str]) -> DecodedVideo | None:
        """The frames that the evaluators `names` look at; None if none of them can choose any."""
        whole = torch.from_numpy(video.frames)
        shape = len(whole), video.fps, whole.shape[1], whole.shape[2]
        frames: dict[str, Tensor] = {}
        decoded = DecodedVideo(item, sha256, shape, frames, video.notes)
        for name in names:
            try:
                frames[name] = _looked_at(self.evaluators[name], whole, video.fps)
            except Exception as error:  # the other evaluators score it all the same
                self._fail(name, decoded, self._sentence(error))
        return decoded if frames else None

    def _score(self, batch: Sequence[DecodedVideo]) -> None:
        """Score videos of one shape by all evaluators, and store the results."""
        for name in self.evaluators:
            own = [video for video in batch if name in video.frames]
            for video, result in zip(own, self._evaluate(name, own), strict=True):
                if result.error is None:
                    self.partial.add(video.item, name, result)
                    self._record(video.item, name, result)
                else:
                    self._fail(name, video, result.error)

    def _fail(self, name: str, video: DecodedVideo, sentence: str) -> None:
        say(f"{video.item.video}, {name}: {sentence}")
        self._record(video.item, name, video.result(error=sentence))

    def _evaluate(self, name: str, batch: Sequence[DecodedVideo]) -> list[Result]:
        """One evaluator's results; if it raises for several videos, each is scored alone."""
        if not batch:
            return []
        evaluator = self.evaluators[name]
        try:
            scores = _scores(evaluator, name, batch)
            columns = {metric: scores[metric].detach().double().cpu() for metric in evaluator.metrics}
            wrong = next((metric for metric, column in columns.items() if column.shape != (len(batch),)), None)
            if wrong is not None:
                raise BenchError(f"evaluator {name!r} did not return one number per video for {wrong!r}: fix it.")
            cuts = _prompt_cuts(evaluator, len(batch))
        except Exception as error:  # the error of a batch does not show which video causes it
            if len(batch) > 1:
                return [result for video in batch for result in self._evaluate(name, [video])]
            return [batch[0].result(error=self._sentence(error))]
        return [
            replace(self._result(name, video, {m: float(c[i]) for m, c in columns.items()}), **cuts[i])
            for i, video in enumerate(batch)
        ]

    def _result(self, name: str, video: DecodedVideo, scores: Mapping[str, float]) -> Result:
        metric = first_non_finite(scores)
        if metric is None:
            return video.result(scores)
        return video.result(
            error=f"evaluator {name!r} gave {metric} = {scores[metric]}: look at the evaluator and at this video."
        )

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
            say("".join(traceback.format_exception(error)).rstrip())
        return f"{kind}: {text}"


def _looked_at(evaluator: Evaluator, whole: Tensor, fps: float) -> Tensor:
    """The frames [n, h, w, 3] of a video that the evaluator looks at."""
    if isinstance(evaluator, SamplesFrames):
        return whole[list(evaluator.frame_indices(len(whole), fps))]
    return whole


def _scores(evaluator: Evaluator, name: str, batch: Sequence[DecodedVideo]) -> Mapping[str, Tensor]:
    """Scores by metric of videos of one shape."""
    pixels = torch.stack([video.frames[name] for video in batch]).permute(0, 4, 1, 2, 3).float().div_(255)
    prompts, (total, fps, *_) = [str(video.item.prompt) for video in batch], batch[0].shape
    if isinstance(evaluator, SamplesFrames):
        return evaluator.score_frames(pixels, prompts, total, fps)
    return evaluator.score(pixels, prompts, fps)


def _prompt_cuts(evaluator: Evaluator, count: int) -> list[dict[str, Any]]:
    """For each of `count` videos of the last call, `truncated` and `token_limit` of its `Result`."""
    details = evaluator.details()
    if not {"video", "prompt_truncated"} <= set(details.columns):
        return [{}] * count
    limit = int(details["token_limit"].iloc[0]) if "token_limit" in details.columns else None
    cut = details.groupby("video")["prompt_truncated"].any()
    return [{"truncated": bool(cut[i]), "token_limit": limit} for i in range(count)]
