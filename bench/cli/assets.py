"""`bench assets`: the checkpoints that a suite needs."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cli.command import Command
from bench.cli.output import print_result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "suite", nargs="?", type=Path, default=None, help="YAML file or name of a suite (default: all known assets)"
    )
    parser.add_argument("overrides", nargs="*", default=(), help="the suite's overrides, as for `bench run`")
    parser.add_argument("--verify", action="store_true", help="also compare sha256 where known (reads all bytes)")


def execute(args: argparse.Namespace) -> int:
    from bench.suite.assets import all_assets, catalogue, report, states
    from bench.suite.load import load_variants

    if args.suite is None:
        assets = {name: asset.model_dump(by_alias=True, exclude_none=True) for name, asset in all_assets().items()}
        print_result(args, catalogue(), {"assets": assets})
        return 0
    suites = load_variants(args.suite, args.overrides)
    needs = states(suites, args.verify)
    text, wrong = report(suites[0].study, needs)
    document = [{"use": need.use, "path": need.path, "good": good, "lines": lines} for need, lines, good in needs]
    print_result(args, text, {"suite": suites[0].study, "needs": document})
    return 1 if wrong else 0


COMMAND = Command(
    name="assets",
    help="list the files a suite needs, which are missing, and how to download them",
    add_arguments=add_arguments,
    execute=execute,
    progress=True,
    json="each file that the suite needs and whether it is present; without a suite, all known assets",
    examples=(
        "bench assets",
        "bench assets hunyuanvideo15_480p",
        "bench assets hunyuanvideo15_480p --verify",
    ),
    exit_codes="0 if everything is present, 1 if something is missing or wrong, 2 for a mistake",
)
