"""`bench table`: the table of a suite, or of all variants of a study with their ablation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.cli.command import Command
from bench.cli.output import print_result, records
from bench.cli.suite_arguments import add_suite_arguments
from bench.cli.suite_records import ablation_levels, recorded_suites


def execute(args: argparse.Namespace) -> int:
    recorded = recorded_suites(args)
    import pandas as pd

    from bench.report.tables.ablation import build_ablation
    from bench.report.tables.main import build_table

    written: list[Path] = []
    printed: list[Path] = []
    document: dict[str, Any] = {"suites": {}}
    for each in recorded:
        paths = build_table(each.folder, rows=each.rows, seeds=each.suite.seeds)
        written += paths.values()
        document["suites"][each.suite.name] = records(pd.read_csv(paths["main.csv"]))
        printed += [] if each.suite.variant else [paths["main.md"]]
    levels = ablation_levels(recorded)
    if levels:
        folder = recorded[0].study_folder
        paths = build_ablation(folder, levels, folder.name)
        written += paths.values()
        document["ablation"] = records(pd.read_csv(paths["ablation.csv"]))
        printed.append(paths["ablation.md"])
    text = "\n".join(path.read_text(encoding="utf-8") for path in printed)
    print_result(args, text, {**document, "written": written})
    print("written: " + ", ".join(map(str, written)), file=sys.stderr)
    return 0


COMMAND = Command(
    name="table",
    help="write and print the suite's table from its records",
    add_arguments=add_suite_arguments,
    execute=execute,
    progress=True,
    json="the lines of main.csv of each suite, those of ablation.csv, and the written files",
    examples=(
        "bench table bench/configs/nano.yaml",
        "bench table bench/configs/nano.yaml seeds='[0,1,2,3,4]' --results results/reference",
        "bench table bench/configs/nano_kl.yaml",
    ),
)
