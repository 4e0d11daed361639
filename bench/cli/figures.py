"""`bench figures`: the figures of a suite or a search, or of all variants of a study with their forest plot."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cli.command import Command
from bench.cli.output import print_written
from bench.cli.suite_arguments import add_suite_arguments
from bench.cli.suite_records import ablation_levels, recorded_suites
from bench.core.progress import working


def execute(args: argparse.Namespace) -> int:
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


COMMAND = Command(
    name="figures",
    help="write the suite's figures and their numbers from its records",
    add_arguments=add_suite_arguments,
    execute=execute,
    json="the written files",
    progress=True,
    examples=(
        "bench figures nano",
        "bench figures nano_equalizer  # also the ablation's forest plot",
        "bench figures nano_search  # the best after k trials",
    ),
)
