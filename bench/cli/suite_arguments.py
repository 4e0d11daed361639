"""The arguments SUITE, OVERRIDES and --results, which several commands share, and the suites that they name."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.errors import BenchError

if TYPE_CHECKING:
    from bench.suite.prepared import PreparedSuite
    from bench.suite.schema import Suite

RESULTS = Path("results")
"""Default folder of the records, below the current folder."""


def add_suite_arguments(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """Add the suite, its overrides and the folder of the records."""
    parser.add_argument(
        "suite",
        nargs="?" if optional else None,
        type=Path,
        help="name of a packaged suite such as nano (see `bench suites`), a YAML file, or a results folder such as "
        "results/mine",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        default=(),
        help="dotted overrides such as budget.updates=10 or seeds='[0]'; KEY+=LIST adds to a list: seeds+='[3]'",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=None,
        help="folder of the records (default: the one of the suite's folder, else results/ below the current folder)",
    )


def load_suites(args: argparse.Namespace) -> list[Suite]:
    """The suite, or every variant of a study; sets `args.results` where the option is not given."""
    from bench.suite.load import load_variants
    from bench.suite.recorded import results_of

    suites = load_variants(args.suite, args.overrides)
    if args.results is None:
        args.results = results_of(args.suite) if args.suite.is_dir() else RESULTS
    return suites


def suite_place(suite: Path) -> Path:
    """The file of a suite, or the results folder that stores it."""
    from bench.suite.load import is_results_folder
    from bench.suite.packaged import suite_file

    return suite if is_results_folder(suite) else suite_file(str(suite))


def prepare_suites(args: argparse.Namespace) -> list[PreparedSuite]:
    """The prepared suite, or every variant of a study; what is misspelt in it is refused before torch is imported."""
    from bench.cli.consent import check_consent
    from bench.core.progress import working
    from bench.suite.names import check_names

    suites = load_suites(args)
    check_consent(suite_place(args.suite), suites, args.allow_code, args.overrides)
    for suite in suites:
        check_names(suite)
    with working(f"loading torch, methods and evaluators for {suites[0].study}"):
        from bench.core.process_state import fix_process_state
        from bench.suite.prepared import prepare_all

        importlib.import_module("bench.train.run")  # the whole harness, so that a plug-in's change of it is noticed
        fix_process_state()  # so that a plug-in that changes a global setting is noticed here
        return prepare_all(suites)


def one_suite(args: argparse.Namespace) -> PreparedSuite:
    """The prepared suite; a study of several variants is refused."""
    suites = prepare_suites(args)
    if len(suites) > 1:
        names = ", ".join(each.suite.variant for each in suites)
        raise BenchError(f"{args.suite} is a study of {len(suites)} variants: pick one with variant=NAME ({names}).")
    return suites[0]
