"""`bench gallery`: kept videos of the base and of the rows, of a suite or of all variants of a study."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cli.command import Command
from bench.cli.output import print_written
from bench.cli.suite_arguments import add_suite_arguments
from bench.cli.suite_records import recorded_suites
from bench.core.errors import BenchError
from bench.core.progress import working


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_suite_arguments(parser)
    parser.add_argument("--seed", type=int, default=None, help="training seed that is shown (default: the first)")
    parser.add_argument("--videos", type=int, default=6, help="prompts that are shown, at least 3 (default: 6)")


def execute(args: argparse.Namespace) -> int:
    recorded = recorded_suites(args)
    seeds = recorded[0].suite.seeds
    seed = seeds[0] if args.seed is None else args.seed
    if seed not in seeds:
        raise BenchError(f"--seed {seed} is no seed of the suite: choose one of {', '.join(map(str, seeds))}.")
    if args.videos < 3:
        raise BenchError(f"--videos is {args.videos}: give at least 3.")
    from bench.report.figures.gallery import build_gallery

    written: list[Path] = []
    for each in recorded:
        with working(f"drawing the gallery of {each.suite.name}"):
            written += build_gallery(each.folder, each.rows, each.suite.seeds, seed, args.videos)
    print_written(args, written)
    return 0


COMMAND = Command(
    name="gallery",
    help="show kept videos of the base and of the rows on prompts of gain and of loss",
    add_arguments=add_arguments,
    execute=execute,
    json="the written files",
    progress=True,
    examples=(
        "bench gallery nano",
        "bench gallery nano --seed 1 --videos 12",
        "bench gallery nano_kl  # one per variant of a study",
    ),
)
