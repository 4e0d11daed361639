"""Load the records of one suite, checked to be comparable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from bench.core.errors import BenchError
from bench.core.hashing import digest
from bench.report.data.comparable import refuse_unequal
from bench.report.data.division import OPEN, division
from bench.report.data.metrics import column_names, reward_weights, video_scores
from bench.report.data.records import RowRuns, Run, SuiteRecords
from bench.report.data.selection import Row, recorded_rows, recorded_seeds
from bench.store.files import find
from bench.store.record import RUN, SCORES, RunRecord, read_record, read_run


def load_records(
    folder: Path | str, rows: Sequence[Row] | None = None, seeds: Sequence[int] | None = None
) -> SuiteRecords:
    """Read every record below `results/<suite>`; records that do not compare are a `BenchError`.

    `rows` and `seeds` are those of the suite's YAML; left out, they are taken from the records' own configuration.
    """
    records = dict(records_below(folder))
    if not records:
        raise BenchError(f"{folder} holds no records (*/{RUN}, */seed-*/{RUN}): run `bench run` on this suite first.")
    config = max((record.config for record in records.values()), key=lambda c: len(c.get("seeds", [])))
    wanted = sorted(seeds if seeds is not None else recorded_seeds(records.values()))
    selected = list(rows) if rows is not None else recorded_rows(config, records.values())
    labels = {row.label for row in selected}
    weights = reward_weights(config)

    base: Run | None = None
    _refuse_copies(records)
    by_row: dict[str, RowRuns] = {row.label: RowRuns(row) for row in selected}
    ignored: list[str] = []
    for path, record in records.items():
        if record.seed is None:
            if record.status == "finished":
                base = _read_run(path, weights)
        elif record.row not in labels or record.seed not in wanted:
            ignored.append(f"{record.row}/seed-{record.seed}")
        elif record.status == "failed":
            by_row[record.row].failed.append(record)
        else:
            by_row[record.row].finished.append(_read_run(path, weights))
    for runs in by_row.values():
        runs.finished.sort(key=lambda run: run.record.seed or 0)
    suite = SuiteRecords(
        folder=Path(folder),
        name=next(iter(records.values())).suite,
        config=config,
        seeds=wanted,
        weights=weights,
        base=base,
        rows=_closed_first(by_row.values()),
        ignored=sorted(ignored),
    )
    refuse_unequal(suite)
    return suite


def _closed_first(rows: Iterable[RowRuns]) -> list[RowRuns]:
    """The rows with their division, those of the open one last."""
    known = [replace(runs, row=runs.row._replace(open=division(runs.records) == OPEN)) for runs in rows]
    return sorted(known, key=lambda runs: runs.row.open)


def records_below(folder: Path | str) -> list[tuple[Path, RunRecord]]:
    """Folder and record of every run of `results/<suite>`, sorted by folder."""
    paths = sorted([*find(folder, f"*/{RUN}"), *find(folder, f"*/seed-*/{RUN}")])
    return [(path.parent, read_record(path.parent)) for path in paths]


def _refuse_copies(records: Mapping[Path, RunRecord]) -> None:
    """Raise a `BenchError` if two folders hold the run of one row and seed."""
    folders: dict[tuple[str, int | None], Path] = {}
    for path, record in records.items():
        first = folders.setdefault((record.row, record.seed), path)
        if first != path:
            seed = "" if record.seed is None else f" seed {record.seed}"
            raise BenchError(
                f"{record.row}{seed} is there twice: {first} and {path}. Move the copy away; a run counts once."
            )


def _read_run(folder: Path, weights: Mapping[str, float]) -> Run:
    paths = [path for path in (folder / RUN, folder / SCORES) if path.is_file()]
    return _run_of_files(
        folder, tuple(weights.items()), tuple((s.st_mtime_ns, s.st_size) for s in map(Path.stat, paths))
    )


@lru_cache(maxsize=1024)
def _run_of_files(folder: Path, weights: tuple[tuple[str, float], ...], state: tuple[tuple[int, int], ...]) -> Run:
    """The run in the folder, read once while its files are in this state: a check of many tables reads it often."""
    record, scores = read_run(folder)
    videos = scores[["prompt_index", "prompt", "video"]].drop_duplicates()
    videos_digest = digest([list(key) for key in videos.itertuples(index=False)])
    evaluators = dict(zip(scores["metric"], scores["evaluator"], strict=True))
    sources = {column: (str(evaluators[metric]), metric) for metric, column in column_names(scores).items()}
    return Run(record, video_scores(scores, dict(weights), folder), videos_digest, folder, sources)
