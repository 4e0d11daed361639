"""Which rows and seeds a table shows: those of a suite's YAML, or those that its records were made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from bench.core.provenance import ROOT
from bench.report.data.ablation import AblationLevel, levels_of_study, levels_of_suite
from bench.report.data.records import Row, Suite, records_below
from bench.store.record import RunRecord
from bench.suite.difference import first_difference
from bench.suite.load import load_all
from bench.suite.schema import Experiment, RowSpec

CONFIGS = ROOT / "bench" / "configs"


class Selection(NamedTuple):
    """What a call of `bench table` shows of one suite."""

    rows: list[Row]
    seeds: list[int]


def rows_of(specs: Sequence[RowSpec]) -> list[Row]:
    """A suite's rows as a table needs them."""
    return [
        Row(row.name, row.method, row.kl_spec.name, variant=bool(row.params or row.kl_spec.params)) for row in specs
    ]


def levels_of(suites: Mapping[str, Suite]) -> list[AblationLevel]:
    """Levels of a study (variant to suite), or of the one suite whose variant is ""; [] where nothing is compared."""
    return levels_of_suite(suites[""]) if list(suites) == [""] else levels_of_study(suites)


def candidate_plans(folder: Path) -> Iterator[Selection]:
    """Every plan that `bench table` may have had for the records below `results/<suite>`, the likeliest first.

    Rows: those of the project's own YAML of this name, if its settings are the records', then those of each
    configuration that the records were made with. Seeds: all that these configurations name, then those of each one.
    """
    records = records_of(folder)
    configs = [Experiment.model_validate(record.config) for record in records]
    own = packaged_suites().get(configs[0].suite)
    fits = own is not None and all(first_difference(record.config, own.shared()) is None for record in records)
    exps = [*([own] if own is not None and fits else []), *configs]
    seeds = [sorted({seed for exp in configs for seed in exp.seeds}), *(exp.seeds for exp in exps)]
    seen = []
    for rows in (rows_of(exp.rows) for exp in exps):
        for wanted in seeds:
            plan = Selection(rows, sorted(wanted))
            if plan not in seen:
                seen.append(plan)
                yield plan


def records_of(folder: Path) -> list[RunRecord]:
    """All records of one suite, sorted by row and seed."""
    return [record for _, record in records_below(folder)]


@cache
def packaged_suites() -> dict[str, Experiment]:
    """The suites and variants that come with the project, by name; of two of one name the first file's."""
    found: dict[str, Experiment] = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        for exp in load_all(path):
            found.setdefault(exp.suite, exp)
    return found
