"""The loop of `bench score`: decode, score in batches of equal videos, keep every score, let bad videos fail alone."""

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

from bench.api import BenchError, Evaluator
from bench.core.hashing import sha256_file
from bench.core.progress import LINE_EVERY, say
from bench.score import videos
from bench.score.evaluators import evaluator_parameters, make_evaluators
from bench.score.partial import PartialScores, Result, not_finite, score_rows, score_table, summarise, write_scores
from bench.score.videos import Pair
from evaluators.video_io import read_image, read_video


@dataclass(frozen=True)
class ScoreRequest:
    """The arguments of one call."""

    evaluators: Sequence[str]
    videos: Sequence[Path]
    out: Path
    prompts: Path | None = None
    params: Sequence[str] = ()
    nano: bool = False
    batch: int = 4
    dtype: str | None = None
    device: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class VideoJob:
    """A decoded video and the evaluators that have not scored it yet."""

    pair: Pair
    sha256: str
    frames: UInt8[Tensor, "f h w 3"]
    fps: float
    waiting: Sequence[str]

    @property
    def shape(self) -> tuple[int, float, int, int]:
        """Frames, frames per second, height and width: what the videos of a batch share."""
        return len(self.frames), self.fps, self.frames.shape[1], self.frames.shape[2]


def score(request: ScoreRequest) -> int:
    """Score everything, write `--out`, print the summary; returns the number of failed videos."""
    if request.batch < 1:
        raise BenchError(f"--batch is {request.batch}: give at least 1.")
    pairs, unused = videos.pairs(request.videos, request.prompts)
    if unused:
        say(f"note: {unused} line(s) of {request.prompts} name a video that is not among --videos")
    params = evaluator_parameters(request.evaluators, request.params, request.nano, request.dtype, request.device)
    kept = PartialScores(request.out, request.overwrite)
    judges: dict[str, Evaluator] = {}
    for name in request.evaluators:
        judges[name], identity = make_evaluators(name, params[name])
        kept.claim(name, identity)
    with _progress(len(pairs) * len(judges)) as progress:
        scoring = Scoring(judges, kept, request.batch, progress)
        results = scoring.run(pairs)
    if scoring.taken:
        say(f"{scoring.taken} of {len(results)} scores are taken from {kept.partial}")
    rows = score_rows(pairs, {name: list(judge.metrics) for name, judge in judges.items()}, results)
    lines = summarise(rows)
    beside = write_scores(request.out, rows, {name: kept.identities[name] for name in judges}, lines)
    print(score_table(lines))
    failed = {pair for (pair, _), result in results.items() if result.error is not None}
    if failed:
        say(f"{len(failed)} of {len(pairs)} videos failed: their rows say why and have no value")
    say(f"written: {request.out}, {beside}")
    return len(failed)


@dataclass
class Scoring:
    """One pass over the videos; at most `2 * batch` decoded videos are held at a time."""

    judges: Mapping[str, Evaluator]
    kept: PartialScores
    batch: int
    progress: ScoreProgress
    results: dict[tuple[Pair, str], Result] = field(default_factory=dict)
    taken: int = 0
    """Scores that an earlier call left."""
    explained: set[str] = field(default_factory=set)
    """Kinds of unexpected exceptions whose traceback was shown."""

    def run(self, pairs: Sequence[Pair]) -> dict[tuple[Pair, str], Result]:
        """A result for every pair and evaluator."""
        held: dict[tuple[int, float, int, int], list[VideoJob]] = {}
        for pair in pairs:
            clip = self._load(pair)
            if clip is None:
                continue
            same = held.setdefault(clip.shape, [])
            same.append(clip)
            if len(same) == self.batch:
                self._score(held.pop(clip.shape))
            elif sum(map(len, held.values())) >= 2 * self.batch:
                self._score(held.pop(max(held, key=lambda shape: len(held[shape]))))
        for clips in held.values():
            self._score(clips)
        return self.results

    def _load(self, pair: Pair) -> VideoJob | None:
        """The decoded video; None if all its scores are known or none can be had."""
        sha256 = None
        try:
            sha256 = sha256_file(pair.path)
            if pair.prompt is None:
                raise BenchError(f"video {pair.video} has no prompt: add it to the list given with --prompts.")
            waiting = []
            for name in self.judges:
                known = self.kept.done.get((sha256, pair.prompt, name))
                if known is None:
                    waiting.append(name)
                else:
                    self._note(pair, name, known)
                    self.taken += 1
            if not waiting:
                return None
            read = read_image if pair.path.suffix.lower() in videos.IMAGES else read_video
            video = read(pair.path)
        except Exception as error:  # one video's failure is its rows' error, and the rest goes on
            sentence = self._sentence(error)
            self.progress.say(f"{pair.video}: {sentence}")
            for name in self.judges:
                if (pair, name) not in self.results:
                    self._note(pair, name, Result(sha256, error=sentence))
            return None
        return VideoJob(pair, sha256, torch.from_numpy(video.frames), video.fps, waiting)

    def _score(self, clips: Sequence[VideoJob]) -> None:
        for name in self.judges:
            some = [clip for clip in clips if name in clip.waiting]
            for clip, result in zip(some, self._ask(name, some), strict=True):
                if result.error is None:
                    self.kept.add(clip.pair, name, result)
                else:
                    self.progress.say(f"{clip.pair.video}, {name}: {result.error}")
                self._note(clip.pair, name, result)

    def _ask(self, name: str, clips: Sequence[VideoJob]) -> list[Result]:
        """One evaluator's results; where it raises for several videos it is asked one by one."""
        if not clips:
            return []
        judge = self.judges[name]
        try:
            pixels = torch.stack([clip.frames for clip in clips]).permute(0, 4, 1, 2, 3).float() / 255
            given = judge.score(pixels, [str(clip.pair.prompt) for clip in clips], clips[0].fps)
            columns = {metric: given[metric].detach().double().cpu() for metric in judge.metrics}
            wrong = next((metric for metric, column in columns.items() if column.shape != (len(clips),)), None)
            if wrong is not None:
                raise BenchError(f"evaluator {name!r} gave {wrong!r} no number per video: mend it.")
        except Exception as error:  # which video is to blame shows only one by one
            if len(clips) > 1:
                return [result for clip in clips for result in self._ask(name, [clip])]
            return [Result(clips[0].sha256, clips[0].shape, error=self._sentence(error))]
        return [self._result(name, clip, {m: float(c[i]) for m, c in columns.items()}) for i, clip in enumerate(clips)]

    def _result(self, name: str, clip: VideoJob, scores: Mapping[str, float]) -> Result:
        bad = not_finite(scores)
        if bad is None:
            return Result(clip.sha256, clip.shape, scores)
        sentence = f"evaluator {name!r} gave {bad} = {scores[bad]}: look at the evaluator and at this video."
        return Result(clip.sha256, clip.shape, error=sentence)

    def _note(self, pair: Pair, name: str, result: Result) -> None:
        self.results[pair, name] = result
        self.progress.step()

    def _sentence(self, error: Exception) -> str:
        """The error as one line; the first of each unexpected kind also with its traceback on stderr."""
        text = " ".join(str(error).split())
        if isinstance(error, BenchError):
            return text
        kind = type(error).__name__
        if kind not in self.explained:
            self.explained.add(kind)
            self.progress.say("".join(traceback.format_exception(error)).rstrip())
        return f"{kind}: {text}"


class ScoreProgress:
    """Scores so far on stderr: a bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, total: int):
        from tqdm import tqdm

        self.total, self.count, self.spoke = total, 0, time.monotonic()
        self.bar = tqdm(total=total, unit="score", leave=False) if sys.stderr.isatty() else None

    def step(self) -> None:
        self.count += 1
        if self.bar is not None:
            self.bar.update()
        elif time.monotonic() - self.spoke > LINE_EVERY:
            self.spoke = time.monotonic()
            say(f"{self.count} of {self.total} scores")

    def say(self, text: str) -> None:
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
