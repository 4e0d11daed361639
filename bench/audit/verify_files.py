"""Checks of `bench verify` on the held-out curve and on the kept videos of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench import store
from bench.audit.findings import RERUN, Finding, StoredRun
from bench.audit.verify_scores import check_scores
from bench.core.errors import BenchError
from bench.core.ledger import sampling_nfe
from bench.store.videos import INDEX, VIDEOS, read_videos, videos_digest


def check_curve(run: StoredRun) -> Iterator[Finding]:
    """The curve is that of the record; its points, prompts and videos are those of the suite."""
    try:
        curve = store.read_curve(run.folder, run.record)
    except BenchError as error:
        yield Finding(run.folder, str(error).rstrip("."))
        return
    for problem in _curve_problems(replace(run, scores=curve)):
        yield Finding(run.folder, f"{problem}: {RERUN}")
    if run.record.status == "finished":
        own = run.scores[run.scores["video"] < run.suite.evaluation.curve_videos]
        for update, point in curve.groupby("update"):
            columns = [name for name in store.SCORE_COLUMNS if name != "value"]
            if not point[columns].reset_index(drop=True).equals(own[columns].reset_index(drop=True)):
                text = f"point {update} of {store.CURVE} has other prompts, videos or metrics than {store.SCORES}"
                yield Finding(run.folder, f"{text}: {RERUN}")
            else:
                for problem in check_scores(replace(run, scores=point)):
                    yield Finding(run.folder, f"point {update} of {store.CURVE}: {problem}: {RERUN}")


def _curve_problems(run: StoredRun) -> Iterator[str]:
    """Points that are missing or too many, and a ledger with another cost; the scores of `run` are the curve."""
    record, spec, budget = run.record, run.suite.evaluation, run.suite.budget
    planned = [] if spec.every is None or record.seed is None else list(range(spec.every, budget.updates, spec.every))
    expected = [update for update in planned if update <= record.updates_done]
    points = sorted(set(run.scores["update"]))
    # a run that fails in a point has done the updates before it
    if points != expected and not (record.status == "failed" and points == expected[:-1]):
        yield f"{store.CURVE} has the points {points}, its settings ask for {expected}"
        return
    videos = len(run.scores[["update", "prompt_index", "video"]].drop_duplicates())
    nfe = sampling_nfe(videos, spec.steps, budget.guidance)
    for name, count in {"curve_videos": videos, "nfe_curve": nfe}.items():
        if record.ledger.get(name, 0) != count:
            yield f"its ledger has {name} {record.ledger.get(name, 0)}, {store.CURVE} has cost {count}"


def check_videos(run: StoredRun) -> Iterator[Finding]:
    """The index is that of the record, the files are those of the index, and the clips those that the suite keeps."""
    for problem in _video_problems(run):
        yield Finding(run.folder, f"{problem}: {RERUN}")


def _video_problems(run: StoredRun) -> Iterator[str]:
    folder, record, keep = run.folder, run.record, run.suite.evaluation.keep_videos
    own = videos_digest(folder)
    if own != record.videos_digest:
        states = ("is missing", "is of another run, the record has none")
        yield f"{VIDEOS}/{INDEX} {'was changed' if own and record.videos_digest else states[own is not None]}"
        return
    try:
        kept = read_videos(folder)
    except BenchError as error:
        yield str(error).partition(": restore")[0]
        return
    if kept is not None:
        yield from kept.problems()
    clips = [] if kept is None else [(clip["prompt_index"], clip["video"]) for clip in kept.index["clips"]]
    prompts = sorted(set(run.scores["prompt_index"]))
    expected = [(p, video) for p in prompts for video in range(keep)] if record.status == "finished" else []
    if clips != expected:
        yield f"it keeps {len(clips)} videos, its settings ask for the first {keep} of {len(prompts)} prompts"
    listed = {folder / VIDEOS / INDEX, *(kept.path(*clip) for clip in clips if kept is not None)}
    present = set((folder / VIDEOS).iterdir()) if (folder / VIDEOS).is_dir() else set()
    for path in sorted(present - listed):
        yield f"{VIDEOS}/{path.name} is no file of the kept videos"
