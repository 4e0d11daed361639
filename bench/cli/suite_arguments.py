"""The arguments SUITE, OVERRIDES and --results, which several commands share, and the suites that they name."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.suite.prepared import PreparedSuite

RESULTS = Path("results")
"""Default folder of the records, below the current folder."""


def add_suite_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the suite's YAML file, its overrides and the folder of the records."""
    parser.add_argument("suite", type=Path, help="YAML file of the suite, e.g. bench/configs/nano.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=(), help="dotted overrides such as budget.updates=10 or seeds='[0]'"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="folder of the records (default: results/ below the current folder)",
    )


def prepare_suites(args: argparse.Namespace) -> list[PreparedSuite]:
    """The prepared suite, or every variant of a study; what is misspelt in it is refused before torch is imported."""
    from bench.core.progress import working
    from bench.suite.load import load_variants
    from bench.suite.names import check_names

    suites = load_variants(args.suite, args.overrides)
    for suite in suites:
        check_names(suite)
    with working(f"loading torch, methods and evaluators for {suites[0].study}"):
        from bench.core.process_state import fix_process_state
        from bench.suite.prepared import prepare_all

        fix_process_state()  # so that a plug-in that changes a global setting is noticed here
        return prepare_all(suites)


def command_line(command: str, args: argparse.Namespace) -> str:
    """Another command on the same suite, quoted for a shell: `bench COMMAND SUITE OVERRIDES [--results FOLDER]`."""
    results = [] if args.results == RESULTS else ["--results", str(args.results)]
    return shlex.join(["bench", command, str(args.suite), *args.overrides, *results])
