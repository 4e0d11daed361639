"""`bench table`: the table of a suite or a search, or of all variants of a study with their ablation."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.cli.command import Command
from bench.cli.output import print_result, records
from bench.cli.suite_arguments import add_suite_arguments
from bench.cli.suite_records import ablation_levels, recorded_suites


def execute(args: argparse.Namespace) -> int:
    recorded = recorded_suites(args)
    import pandas as pd

    from bench.report.tables.ablation import AblationTable, write_ablation_files
    from bench.report.tables.main import load_main_table, write_table_files
    from bench.report.tables.screen import ablation_screen, main_screen
    from bench.report.tables.tuning import load_tuning_table, tuning_screen, write_tuning_files

    written: list[Path] = []
    printed: list[str] = []
    document: dict[str, Any] = {"suites": {}}
    for each in recorded:
        if each.suite.search is not None:
            tuning = load_tuning_table(each.folder, each.rows, each.suite.seeds)
            paths = write_tuning_files(tuning)
            written += paths.values()
            document["suites"][each.suite.name] = records(pd.read_csv(paths["tuning.csv"]))
            printed.append(tuning_screen(tuning))
            continue
        main = load_main_table(each.folder, each.rows, each.suite.seeds)
        paths = write_table_files(each.folder, main)
        written += paths.values()
        document["suites"][each.suite.name] = records(pd.read_csv(paths["main.csv"]))
        printed += (
            []
            if each.suite.variant
            else [main_screen(main, partial(_run_command, each.study_folder), str(paths["main.md"]))]
        )
    levels = ablation_levels(recorded)
    if levels:
        folder = recorded[0].study_folder
        ablation = AblationTable(levels, folder.name)
        paths = write_ablation_files(folder, ablation)
        written += paths.values()
        document["ablation"] = records(pd.read_csv(paths["ablation.csv"]))
        printed.append(ablation_screen(ablation, str(paths["ablation.md"])))
    print_result(args, "\n".join(printed), {**document, "written": written})
    print("written: " + ", ".join(map(str, written)), file=sys.stderr)
    return 0


def _run_command(folder: Path, seeds: Sequence[int]) -> str:
    """`bench run` on the suite of a results folder with other seeds."""
    from bench.report.tables.main import more_seeds

    return f"{shlex.join(['bench', 'run', str(folder)])} {more_seeds(seeds)}"


COMMAND = Command(
    name="table",
    help="write and print the suite's table from its records",
    add_arguments=add_suite_arguments,
    execute=execute,
    progress=True,
    json="the lines of main.csv or tuning.csv of each suite, those of ablation.csv, and the written files",
    examples=(
        "bench table nano",
        "bench table results/reference/nano  # a folder in place of the suite: with the settings that it stores",
        "bench table nano_kl",
        "bench table nano_search  # the trials of a search, and the rows with the chosen settings",
    ),
)
