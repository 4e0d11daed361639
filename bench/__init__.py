"""A reference benchmark for reinforcement learning on video generators: GRPO variants under one budget.

`load_suite` reads a suite's YAML, `load_results` its records; neither imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.report.results import Results
    from bench.suite.schema import Suite

__version__ = "0.1.0"


def load_suite(path: Path | str, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite's YAML and apply overrides such as `budget.lr=1e-4`; see `bench.suite.load.load_suite`.

    A mistake in the file or in an override is a `BenchError`.
    """
    from bench.suite import load

    return load.load_suite(path, overrides)


def load_results(folder: Path | str) -> Results:
    """Read the records below a suite's folder, such as `results/nano`, or below a parent of several suites.

    Returns a `bench.report.results.Results` with the data frames `runs`, `scores` and `curves` and the method `table`.
    A folder without records, or with a record that is not valid, is a `BenchError`.
    """
    from bench.report import results

    return results.load_results(folder)
