"""`bench figures`: the figures of a suite, a search or a study, or with `--paper` those of SAGE-GRPO's paper."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.cli.command import Command
from bench.cli.output import print_written
from bench.cli.suite_arguments import RESULTS, add_suite_arguments
from bench.cli.suite_records import ablation_levels, recorded_suites
from bench.core.errors import BenchError
from bench.core.progress import working

PAPER = "paper"
"""Folder of the paper's figures, below the folder of the results."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_suite_arguments(parser, optional=True)
    parser.add_argument(
        "--paper",
        nargs="?",
        type=Path,
        const=RESULTS,
        metavar="FOLDER",
        help="instead: what SAGE-GRPO's Figures 1, 3, 4 and 8 and its table show, from all results in FOLDER "
        "(default: results/ below the current folder, else the stored reference), into FOLDER/paper or results/paper",
    )


def execute(args: argparse.Namespace) -> int:
    if args.paper is not None:
        return _draw_paper(args)
    if args.suite is None:
        raise BenchError("name a suite, such as nano, or give --paper for the figures of the paper.")
    recorded = recorded_suites(args)
    from bench.report.figures.ablation import build_ablation_figure
    from bench.report.figures.suite import build_figures
    from bench.report.figures.tuning import build_tuning_figure

    written: list[Path] = []
    for each in recorded:
        with working(f"drawing the figures of {each.suite.name}"):
            build = build_figures if each.suite.search is None else build_tuning_figure
            written += build(each.folder, each.rows, each.suite.seeds).values()
    levels = ablation_levels(recorded)
    if levels:
        written += build_ablation_figure(recorded[0].study_folder, levels).values()
    print_written(args, written)
    return 0


def _draw_paper(args: argparse.Namespace) -> int:
    """Exit code 1 if a figure is left out because its records are missing."""
    if args.suite is not None:
        raise BenchError(f"--paper takes a folder of results and no suite, so leave out {args.suite}.")
    with working("drawing the figures of the paper"):
        from bench.report.data.paper import stored_suites
        from bench.report.data.stored import STORED
        from bench.report.figures.paper import build_paper

        own = args.paper != RESULTS or bool(stored_suites(RESULTS))
        written, missing = build_paper(args.paper if own else STORED, args.paper / PAPER)
    for sentence in missing:
        print(sentence, file=sys.stderr)
    print_written(args, written.values())
    return 1 if missing else 0


COMMAND = Command(
    name="figures",
    help="write the suite's figures and their numbers from its records",
    add_arguments=add_arguments,
    execute=execute,
    json="the written files",
    progress=True,
    exit_codes="0 if all figures are drawn, 1 if --paper leaves one out for want of records, 2 for a mistake",
    examples=(
        "bench figures nano",
        "bench figures nano_equalizer  # also the ablation's forest plot",
        "bench figures nano_search  # the best after k trials",
        "bench figures --paper  # what Figures 1, 3, 4 and 8 of SAGE-GRPO's paper show",
    ),
)
