"""The records of one suite, loaded, checked to be comparable, and averaged to cells [seed, prompt]."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.core.errors import BenchError
from bench.core.hashing import canonical_json, digest
from bench.report.data.division import OPEN, division
from bench.report.data.metrics import (
    REWARD,
    MetricColumn,
    column_names,
    mean_scores,
    metric_columns,
    reward_weights,
    video_scores,
)
from bench.report.data.selection import Row, recorded_rows, recorded_seeds
from bench.store.files import find
from bench.store.record import RUN, SCORES, MetricEntry, RunRecord, read_record, read_run
from bench.suite.difference import differences, differing_parts, without_extra_files

#: Keys of the configuration, besides the budget, that must be equal in the closed division.
EQUAL_SETTINGS = (
    *("reward", "decode", "last_step", "uncond_branch", "group_noise", "noise_policy", "advantage", "evaluation"),
    *("clip_reference_size", "evaluator_params", "shuffle_rewards"),
)
#: Totals of the ledger that must be equal for all runs of the closed division.
EQUAL_SPENDING = ("nfe_rollout", "nfe_train", "reward_calls")
#: Settings in which two suites may differ: their names, and parameters of evaluators, which choose a device.
#: What decides an evaluator's scores is in its fingerprint.
SUITE_SPECIFIC = ("suite", "evaluator_params")
#: Backbone to the name of the model that it drives at full size.
FULL_MODELS = {"hunyuanvideo15": "HunyuanVideo-1.5", "wan21": "Wan2.1"}


@dataclass(frozen=True)
class Run:
    """One finished run: its record and its scores per video and per prompt."""

    record: RunRecord
    clips: pd.DataFrame
    """Score units. Index: prompt_index, prompt, video; columns: those of `SUMS` whose metrics were scored, `trained`,
    and every metric under its column name."""
    videos: str
    """Digest of the list of scored prompts and videos."""
    folder: Path
    """Folder of the record; `train.jsonl` is in it too."""
    sources: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Evaluator and metric of each column that is no sum."""

    @cached_property
    def cells(self) -> pd.DataFrame:
        """Means over the videos of a prompt. Index: prompt_index; columns: those of `clips`."""
        return mean_scores(self.clips)


@dataclass(frozen=True)
class RowRuns:
    """All runs of one row."""

    row: Row
    finished: list[Run] = field(default_factory=list)
    failed: list[RunRecord] = field(default_factory=list)

    @property
    def records(self) -> list[RunRecord]:
        """The records of all runs, the finished ones first."""
        return [*(run.record for run in self.finished), *self.failed]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the finished runs, ascending."""
        return [run.record.seed for run in self.finished if run.record.seed is not None]

    def matrix(self, column: str, seeds: Sequence[int] | None = None) -> npt.NDArray[np.float64] | None:
        """x[seed, prompt] of one column, for these seeds or all; None if there are no runs or no such column."""
        runs = [run for run in self.finished if seeds is None or run.record.seed in seeds]
        if not runs or column not in runs[0].cells:
            return None
        return np.stack([run.cells[column].to_numpy() for run in runs])


@dataclass(frozen=True)
class SuiteRecords:
    """The records of one suite, for its tables and figures."""

    folder: Path
    """`results/<suite>`."""
    name: str
    config: Mapping[str, Any]
    seeds: list[int]
    """The seeds that the suite plans."""
    weights: dict[str, float]
    """The training reward: metric to weight."""
    base: Run | None
    rows: list[RowRuns]
    """In the order of the suite, those of the open division last."""
    ignored: list[str] = field(default_factory=list)
    """Records of other seeds or rows than the suite's (pilot runs), as `row/seed-<n>`."""

    @cached_property
    def columns(self) -> list[str]:
        """Columns of the table whose metrics were scored, in order."""
        runs = self.runs
        return list(runs[0].cells.columns) if runs else []

    @cached_property
    def metrics(self) -> dict[str, MetricColumn]:
        """Column to its label, direction and unit, in order; two runs that declare another direction are refused."""
        declared: dict[str, tuple[MetricEntry, Run]] = {}
        for run in self.runs:
            for metric, entry in run.record.metrics.items():
                known, first = declared.setdefault(metric, (entry, run))
                if known.higher_is_better != entry.higher_is_better:
                    raise BenchError(
                        f"runs {_name(first.record)} and {_name(run.record)} declare opposite directions of metric "
                        f"{metric}: set higher_is_better in its evaluator once, and run one of them again."
                    )
        sources = self.runs[0].sources if self.runs else {}
        return metric_columns(self.columns, sources, {metric: entry for metric, (entry, _) in declared.items()})

    @property
    def primary(self) -> str:
        """The column that rows are compared by: Overall, else the reward, else the first metric."""
        return next((name for name in ("overall", REWARD, *self.columns) if name in self.columns), "overall")

    @cached_property
    def runs(self) -> list[Run]:
        """The base and all finished runs."""
        return ([self.base] if self.base else []) + [run for row in self.rows for run in row.finished]

    @property
    def nano(self) -> bool:
        """Whether the model is nano, the miniature one."""
        return is_nano(self.name, self.config)


def is_nano(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a suite of this name and configuration trains the miniature model."""
    backbone = config.get("backbone")
    checkpoint = backbone.get("checkpoint", "") if isinstance(backbone, Mapping) else ""
    return "nano" in name or "nano" in str(checkpoint)


def full_model(config: Mapping[str, Any]) -> str:
    """Name of the full-size model whose miniature a suite of this configuration trains."""
    backbone = config.get("backbone")
    name = backbone.get("name") if isinstance(backbone, Mapping) else None
    return FULL_MODELS.get(str(name), FULL_MODELS["hunyuanvideo15"])


def failed_gates(record: RunRecord) -> list[str]:
    """Names of the validity gates that the run fails: recorded as false, or as a mapping whose "passed" is not true.

    A mapping whose "passed" is None means that the gate was not available, which is not a failure.
    """
    gates = {
        name: gate.get("passed", False) if isinstance(gate, Mapping) else bool(gate)
        for name, gate in record.gates.items()
    }
    return sorted(name for name, passed in gates.items() if passed is not None and not passed)


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


def comparable_settings(run: Run) -> dict[str, Any]:
    """Everything that must be equal for the runs of one table, by name."""
    return {**recorded_settings(run.record), "scored videos": run.videos, "metrics": list(run.cells.columns)}


def recorded_settings(record: RunRecord) -> dict[str, Any]:
    """The part of `comparable_settings` that needs no scores."""
    return {
        "suite": record.suite,
        "rules": record.rules,
        "prompts digest": record.prompts_digest,
        **{key: _with_defaults(key, record.config.get(key)) for key in EQUAL_SETTINGS},
        "backbone fingerprint": record.backbone,
        "evaluator fingerprints": record.evaluators,
        "budget": record.budget,
        "budget digest": record.budget_digest,
    }


LATER_OPTIONS: dict[str, dict[str, Any]] = {"evaluation": {"prompts": "heldout"}}
"""Options that older records do not have, with their value there; of all others it is None."""


def _with_defaults(key: str, setting: Any) -> Any:
    """A setting without options that are None or decide no score, and with those that older records do not have."""
    if not isinstance(setting, Mapping):
        return setting
    deciding = without_extra_files(setting) if key == "evaluation" else setting
    return {k: v for k, v in {**LATER_OPTIONS.get(key, {}), **deciding}.items() if v is not None}


def differing_settings(a: SuiteRecords, b: SuiteRecords, ignoring: Sequence[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Name to the two values of each comparable setting in which two suites differ; empty if one has no runs.

    The runs of one suite are equal in all of these (`load_records`), so that the first run stands for all. The names
    in `SUITE_SPECIFIC` and in `ignoring` do not count.
    """
    if not (a.runs and b.runs):
        return {}
    pairs = differences(comparable_settings(a.runs[0]), comparable_settings(b.runs[0]))
    return {name: pair for name, pair in pairs.items() if name not in (*SUITE_SPECIFIC, *ignoring)}


def incomparable_setting(a: SuiteRecords, b: SuiteRecords, ignoring: Sequence[str] = ()) -> str | None:
    """Name of the first setting of `differing_settings`; None if the suites compare."""
    return next(iter(differing_settings(a, b, ignoring)), None)


def refuse_unequal(suite: SuiteRecords) -> None:
    """Raise a `BenchError` unless all runs have equal `comparable_settings` and the same spending."""
    problem = "do not compare"
    fix = (
        "Rows of a table must be equal in this; run the run that differs again with the suite's settings, or move "
        "its folder away."
    )
    runs = suite.runs
    for run in runs[1:]:
        values = comparable_settings(run)
        for setting, value in comparable_settings(runs[0]).items():
            sides = (_name(runs[0].record), value), (_name(run.record), values[setting])
            check_equal(setting, *sides, problem=problem, fix=fix)
    trained = [run.record for run in runs if run.record.seed is not None]
    for record in trained:
        for name in EQUAL_SPENDING:
            if name not in record.ledger:
                raise BenchError(f"run {_name(record)} has no {name} in its ledger: run it again with this version.")
            sides = (_name(trained[0]), trained[0].ledger[name]), (_name(record), record.ledger[name])
            check_equal(f"ledger {name}", *sides, problem=problem, fix=fix)


def check_equal(setting: str, a: tuple[str, Any], b: tuple[str, Any], *, problem: str, fix: str) -> None:
    """Raise a `BenchError` unless two runs, each with its name and its value of `setting`, have equal values."""
    if canonical_json(a[1]) != canonical_json(b[1]):
        left, right = differing_parts(a[1], b[1])
        raise BenchError(f"runs {a[0]} and {b[0]} {problem}: {setting} {left} against {right}. {fix}")


def _name(record: RunRecord) -> str:
    return record.row if record.seed is None else f"{record.row}/seed-{record.seed}"
