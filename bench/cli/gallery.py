"""`bench gallery`: held-out videos of the base and of the trained policies."""

from __future__ import annotations

import argparse

from bench.cli.command import Command
from bench.cli.consent import add_code_argument, check_consent
from bench.cli.output import print_written
from bench.cli.suite_arguments import add_suite_arguments, suite_place
from bench.cli.suite_records import recorded_suites
from bench.core.errors import BenchError
from bench.core.progress import working


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_suite_arguments(parser)
    add_code_argument(parser)
    parser.add_argument("--seed", type=int, default=0, help="training seed whose policies are shown (default: 0)")
    parser.add_argument("--videos", type=int, default=6, help="held-out prompts shown (default: 6)")


def execute(args: argparse.Namespace) -> int:
    from bench import store

    suite = recorded_suites(args)[0].suite
    if suite.variant:
        raise BenchError(f"{args.suite} is a study: name one suite, `bench gallery` shows no variants.")
    if args.seed not in suite.seeds or args.videos < 1:
        raise BenchError(f"--seed {args.seed} must be one of {suite.seeds}, and --videos at least 1.")
    check_consent(suite_place(args.suite), [suite], args)
    for row in suite.rows:
        policy = store.run_folder(args.results / suite.name, row.name, args.seed) / store.POLICY
        if not policy.is_file():
            raise BenchError(f"policy {policy} is missing: run `bench run` on this suite and seed.")
    with working("loading torch"):
        from bench.audit.gallery import build_gallery
        from bench.core.process_state import fix_process_state
        from bench.suite.prepared import prepare

        fix_process_state()
        prepared = prepare(suite)
    print_written(args, [build_gallery(prepared, args.results, args.seed, args.videos)])
    return 0


COMMAND = Command(
    name="gallery",
    help="show videos of the base and of the trained policies side by side",
    add_arguments=add_arguments,
    execute=execute,
    json="the written file",
    progress=True,
    examples=(
        "bench gallery nano",
        "bench gallery nano --seed 1 --videos 12",
    ),
)
