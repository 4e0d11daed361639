"""The records of one suite, averaged to cells [seed, prompt]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.core.errors import BenchError
from bench.report.data.metrics import (
    REWARD,
    MetricColumn,
    mean_scores,
    metric_columns,
)
from bench.report.data.selection import Row
from bench.store.record import MetricEntry, RunRecord
from bench.suite.paths import packaged

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
                        f"runs {run_name(first.record)} and {run_name(run.record)} declare opposite directions of "
                        f"metric {metric}: set higher_is_better in its evaluator once, and run one of them again."
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
        return is_nano(self.config)


def is_nano(config: Mapping[str, Any]) -> bool:
    """Whether a suite of this configuration trains the miniature model, by the rule of `Suite.scale`."""
    backbone = config.get("backbone")
    return isinstance(backbone, Mapping) and packaged(str(backbone.get("checkpoint") or ""))


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


def run_name(record: RunRecord) -> str:
    """The run's folder below that of its suite."""
    return record.row if record.seed is None else f"{record.row}/seed-{record.seed}"
