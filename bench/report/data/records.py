"""The records of one suite, loaded, checked for fairness and cut into cells [seed, prompt]."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.core.errors import BenchError
from bench.core.hashing import canonical_json, digest
from bench.core.provenance import ROOT
from bench.store.record import RUN, RunRecord, read_record, read_run

BASE = "base"

#: Column of the table to the metric names it adds up, each with weight 1; `trained` adds the suite's own weights.
SUMS = {
    "overall": ("VQ", "MQ", "TA"),
    "vq": ("VQ",),
    "mq": ("MQ",),
    "ta": ("TA",),
    "clipscore": ("clipscore",),
    "pickscore": ("pickscore",),
    "gold_overall": ("gold_VQ", "gold_MQ", "gold_TA"),
}
#: Seeds from here on tune settings before the reported seeds are run (protocol); they enter a table only if all do.
PILOT_SEED = 100
#: Keys of the configuration, beside the budget, that a closed division holds equal.
EQUAL_SETTINGS = (
    *("reward", "decode", "last_step", "uncond_branch", "group_noise", "noise_policy", "advantage", "evaluation"),
    *("clip_reference_size", "evaluator_params", "shuffle_rewards"),
)
#: The ledger's totals that every run of a closed division spends alike.
EQUAL_SPENDING = ("nfe_rollout", "nfe_train", "reward_calls")


class Row(NamedTuple):
    """A row of the suite, as its YAML orders it."""

    label: str
    method: str
    kl: str
    variant: bool = False
    """Whether it sets parameters of the method itself: the published numbers are then not its own."""


@dataclass(frozen=True)
class Run:
    """One finished run: its record and its columns per prompt."""

    record: RunRecord
    cells: pd.DataFrame
    """Means over the videos of a prompt. Index: prompt_index; columns: those of `SUMS` that the scores allow,
    `trained`, and every further metric in lower case."""
    videos: str
    """Digest of which prompts and videos were scored."""
    folder: Path
    """Where the record lies; `train.jsonl` is beside it."""


@dataclass(frozen=True)
class RowRuns:
    """All runs of one row."""

    row: Row
    finished: list[Run] = field(default_factory=list)
    failed: list[RunRecord] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        """Seeds of the finished runs, ascending."""
        return [run.record.seed for run in self.finished if run.record.seed is not None]

    def matrix(self, column: str, seeds: Sequence[int] | None = None) -> npt.NDArray[np.float64] | None:
        """x[seed, prompt] of one column, for the given seeds or all; None if there are no runs or no such column."""
        runs = [run for run in self.finished if seeds is None or run.record.seed in seeds]
        if not runs or column not in runs[0].cells:
            return None
        return np.stack([run.cells[column].to_numpy() for run in runs])


@dataclass(frozen=True)
class Suite:
    """Everything a table or a figure of one suite needs."""

    name: str
    config: Mapping[str, Any]
    seeds: list[int]
    """The seeds that the suite asks for."""
    weights: dict[str, float]
    """The training reward: metric to weight."""
    base: Run | None
    rows: list[RowRuns]
    ignored: list[str] = field(default_factory=list)
    """Records that are not of this suite's seeds or rows (pilot runs), as `row/seed-<n>`."""

    @cached_property
    def columns(self) -> list[str]:
        """Columns of the table that the scores allow, in order."""
        runs = self.runs
        return list(runs[0].cells.columns) if runs else []

    @cached_property
    def runs(self) -> list[Run]:
        """The base and all finished runs."""
        return ([self.base] if self.base else []) + [run for row in self.rows for run in row.finished]

    @property
    def nano(self) -> bool:
        """Whether the model is the miniature one."""
        return is_nano(self.name, self.config)


def is_nano(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a suite of this name and configuration is of the miniature model."""
    backbone = config.get("backbone")
    checkpoint = backbone.get("checkpoint", "") if isinstance(backbone, Mapping) else ""
    return "nano" in name or "nano" in str(checkpoint)


def stored_folder(name: str, given: Path | None = None) -> Path:
    """Where the stored reference runs of the suite `name` lie, if there are any: `given`, or the project's own."""
    return given or ROOT / "results" / "reference" / name


def failed_gates(record: RunRecord) -> list[str]:
    """Validity gates that the run fails: recorded as false, or as a mapping whose "passed" is not true.

    A mapping whose "passed" is None says that the gate was not available, which is no failure.
    """
    gates = {
        name: gate.get("passed", False) if isinstance(gate, Mapping) else bool(gate)
        for name, gate in record.gates.items()
    }
    return sorted(name for name, passed in gates.items() if passed is not None and not passed)


def load_suite(folder: Path | str, rows: Sequence[Row] | None = None, seeds: Sequence[int] | None = None) -> Suite:
    """Read every record below `results/<suite>`; refuse records that do not compare.

    `rows` and `seeds` are the suite's, in YAML order; left out, they are taken from the records' own configuration.
    """
    records = dict(records_below(folder))
    if not records:
        raise BenchError(
            f"{folder} holds no records (*/{RUN}, */seed-*/{RUN}): run `bench run` on the suite's YAML first."
        )
    config = max((record.config for record in records.values()), key=lambda c: len(c.get("seeds", [])))
    wanted = sorted(seeds if seeds is not None else _planned_seeds(records.values()))
    plan = list(rows) if rows is not None else _planned_rows(config, records.values())
    labels = {row.label for row in plan}
    weights = _reward_weights(config)

    base: Run | None = None
    by_row: dict[str, RowRuns] = {row.label: RowRuns(row) for row in plan}
    ignored: list[str] = []
    for path, record in records.items():
        if record.seed is None:
            if record.status == "finished":
                base = _run(path, weights)
        elif record.row not in labels or record.seed not in wanted:
            ignored.append(f"{record.row}/seed-{record.seed}")
        elif record.status == "failed":
            by_row[record.row].failed.append(record)
        else:
            by_row[record.row].finished.append(_run(path, weights))
    for runs in by_row.values():
        runs.finished.sort(key=lambda run: run.record.seed or 0)
    suite = Suite(
        next(iter(records.values())).suite, config, wanted, weights, base, list(by_row.values()), sorted(ignored)
    )
    refuse_unequal(suite)
    return suite


def records_below(folder: Path | str) -> list[tuple[Path, RunRecord]]:
    """Folder and record of every run of `results/<suite>`, sorted by folder."""
    found = sorted([*Path(folder).glob(f"*/{RUN}"), *Path(folder).glob(f"*/seed-*/{RUN}")])
    return [(path.parent, read_record(path.parent)) for path in found]


def comparable_rows(run: Run) -> dict[str, Any]:
    """What the runs of one table must have in common, by name."""
    record = run.record
    return {
        "suite": record.suite,
        "prompts digest": record.prompts_digest,
        **{key: _given(record.config.get(key)) for key in EQUAL_SETTINGS},
        "backbone fingerprint": record.backbone,
        "evaluator fingerprints": record.evaluators,
        "budget": record.budget,
        "budget digest": record.budget_digest,
        "scored videos": run.videos,
        "metrics": list(run.cells.columns),
    }


def _given(setting: Any) -> Any:
    """A setting without the options that are off: a record made before an option existed has it off."""
    return {k: v for k, v in setting.items() if v is not None} if isinstance(setting, Mapping) else setting


def _incomparable(suite: Suite, other: Suite, ignoring: Sequence[str] = ()) -> str | None:
    """The first thing in which two suites do not compare; None if they do or one has no runs.

    Names may differ, and `evaluator_params` too: beyond the fingerprints they only say where a scorer runs.
    """
    if not (suite.runs and other.runs):
        return None
    mine, theirs = comparable_rows(suite.runs[0]), comparable_rows(other.runs[0])
    keys = [key for key in mine if key not in ("suite", "evaluator_params", *ignoring)]
    return next((key for key in keys if canonical_json(mine[key]) != canonical_json(theirs[key])), None)


def row_settings(record: RunRecord) -> dict[str, Any]:
    """The method, the KL policy and the parameters of both, as the record's own configuration gives them."""
    entries = [entry for entry in record.config.get("rows", []) if _label(entry) == record.row]
    _, params = _kl(entries[0]) if entries else (None, {})
    return {"method": record.method, "params": record.method_params, "kl": record.kl, "kl_params": params}


def refuse_unequal(suite: Suite) -> None:
    """Runs of one table share suite, budget, prompts, model, reward, scorers and videos, and spent alike."""
    runs = suite.runs
    for run in runs[1:]:
        right = comparable_rows(run)
        for what, left in comparable_rows(runs[0]).items():
            _refuse(what, runs[0].record, run.record, left, right[what])
    trained = [run.record for run in runs if run.record.seed is not None]
    for record in trained:
        for name in EQUAL_SPENDING:
            if name not in record.ledger:
                raise BenchError(f"run {_name(record)} has no {name} in its ledger: run it again with this version.")
            _refuse(f"ledger {name}", trained[0], record, trained[0].ledger[name], record.ledger[name])


def _refuse(what: str, a: RunRecord, b: RunRecord, left: Any, right: Any) -> None:
    if canonical_json(left) != canonical_json(right):
        left, right = differing_rows(left, right)
        raise BenchError(
            f"runs {_name(a)} and {_name(b)} do not compare: {what} {left} against {right}. Rows of a table must be "
            "equal in this; run the odd one again with the suite's settings, or move its folder away."
        )


def differing_rows(left: Any, right: Any) -> tuple[Any, Any]:
    """The parts of two mappings that differ; anything else as it is."""
    if not (isinstance(left, Mapping) and isinstance(right, Mapping)):
        return left, right
    keys = [key for key in sorted({*left, *right}) if left.get(key) != right.get(key)]
    return {key: left.get(key) for key in keys}, {key: right.get(key) for key in keys}


def _name(record: RunRecord) -> str:
    return record.row if record.seed is None else f"{record.row}/seed-{record.seed}"


# one run ------------------------------------------------------------------------------------------------------
def _run(folder: Path, weights: Mapping[str, float]) -> Run:
    record, scores = read_run(folder)
    if scores.groupby("metric")["evaluator"].nunique().max() > 1:
        raise BenchError(
            f"scores in {folder} have one metric from two evaluators: metric names must be unique in a suite."
        )
    videos = scores.pivot(index=["prompt_index", "prompt", "video"], columns="metric", values="value")
    missing = sorted(set(weights) - set(videos.columns))
    if missing:
        raise BenchError(
            f"scores in {folder} lack the trained metrics {missing}: add their evaluator to the suite's evaluation."
        )
    columns = {
        name: videos[list(parts)].sum(axis=1) for name, parts in SUMS.items() if set(parts) <= set(videos.columns)
    }
    if weights:
        columns["trained"] = (videos[list(weights)] * pd.Series(weights)).sum(axis=1)
    shown = {part for name, parts in SUMS.items() if len(parts) == 1 for part in parts}
    columns |= {str(name).lower(): videos[name] for name in sorted(set(videos.columns) - shown)}
    cells = pd.DataFrame(columns).groupby(level="prompt_index").mean()
    return Run(record, cells, digest([list(key) for key in videos.index]), folder)


# the plan, from the records -----------------------------------------------------------------------------------
def _reward_weights(config: Mapping[str, Any]) -> dict[str, float]:
    """{evaluator: {metric: weight}} as {metric: weight}."""
    reward = config.get("reward") or {}
    return {name: float(weight) for weights in reward.values() for name, weight in weights.items()}


def _planned_seeds(records: Iterable[RunRecord]) -> set[int]:
    records = list(records)
    planned = {int(seed) for record in records for seed in record.config.get("seeds", [])}
    planned = planned or {record.seed for record in records if record.seed is not None}
    return {seed for seed in planned if seed < PILOT_SEED} or planned


def _planned_rows(config: Mapping[str, Any], records: Iterable[RunRecord]) -> list[Row]:
    """Rows in the order of the configuration, then those that only the records know, by label."""
    known = {
        record.row: Row(record.row, record.method or BASE, record.kl or "none")
        for record in records
        if record.seed is not None
    }
    rows: list[Row] = []
    for entry in config.get("rows", []):
        method, (kl, kl_params) = str(entry.get("method")), _kl(entry)
        label = entry.get("label")
        variant = bool(kl_params) or any(entry[key] for key in entry if key not in ("method", "kl", "label"))
        matching = [r for r in known.values() if (r.label == label if label else (r.method, r.kl) == (method, kl))]
        rows += [row._replace(variant=variant) for row in sorted(matching)]
        rows += [] if matching else [Row(_label(entry), method, kl, variant)]
    rows += sorted(known.values())
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.label, row)
    return list(first.values())


def _kl(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a configured row's KL policy, which is a name or a mapping of both."""
    kl = entry.get("kl") or "none"
    return (str(kl["name"]), dict(kl.get("params", {}))) if isinstance(kl, Mapping) else (str(kl), {})


def _label(entry: Mapping[str, Any]) -> str:
    """Label of a configured row, which is also its folder's name."""
    return str(entry.get("label") or f"{str(entry.get('method')).replace(':', '.')}-{_kl(entry)[0]}")
