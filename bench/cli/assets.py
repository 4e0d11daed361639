"""`bench assets`: the checkpoints that a suite needs."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "suite", nargs="?", type=Path, default=None, help="YAML of a suite (default: all known assets)"
    )
    parser.add_argument("overrides", nargs="*", help="the suite's overrides, as for `bench run`")
    parser.add_argument("--verify", action="store_true", help="also compare sha256 where known (reads all bytes)")


def execute(args: argparse.Namespace) -> int:
    from bench.suite.assets import catalogue, report
    from bench.suite.load import load_variants

    if args.suite is None:
        print(catalogue())
        return 0
    text, wrong = report(load_variants(args.suite, args.overrides), args.verify)
    print(text)
    return 1 if wrong else 0


COMMAND = Command(
    name="assets",
    help="list the files a suite needs, which are missing, and how to download them",
    add_arguments=add_arguments,
    execute=execute,
    examples=(
        "bench assets",
        "bench assets bench/configs/hunyuanvideo15_480p.yaml",
        "bench assets bench/configs/hunyuanvideo15_480p.yaml --verify",
    ),
    exit_codes="0 if everything is present, 1 if something is missing or wrong, 2 for a mistake",
)
