"""`bench run`: train and evaluate a suite."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path

from bench.cli.command import Command
from bench.cli.consent import add_code_argument, code_names, trust
from bench.cli.output import print_result
from bench.cli.suite_arguments import add_suite_arguments, prepare_suites
from bench.core.parallelism import SHARDS
from bench.core.progress import working
from bench.launch.config import LAUNCHERS, TRACKERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_suite_arguments(parser)
    add_code_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what will run and what it will cost, and stop")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew the runs whose folders hold another run, which is removed when the new one begins",
    )
    parser.add_argument("--processes", type=int, default=None, help="runs at a time (default: one per core)")
    parser.add_argument("--launcher", choices=LAUNCHERS, default=None, help="how runs are started (default: local)")
    parser.add_argument("--nproc", type=int, default=None, help="processes of one run, with torchrun or slurm")
    parser.add_argument(
        "--shard",
        choices=SHARDS,
        default=None,
        help="shard each run's weights over its processes: full gathers them for each pass, grads once for both",
    )
    parser.add_argument(
        "--tracker",
        choices=TRACKERS,
        action="append",
        default=None,
        dest="trackers",
        help="show each run live, offline, below its suite's folder trackers/ (may be given several times)",
    )
    parser.add_argument(
        "--launch", type=Path, default=None, metavar="FILE", help="YAML of these settings, or of accelerate"
    )


def execute(args: argparse.Namespace) -> int:
    from bench.launch.config import load_launch_config

    launch = load_launch_config(
        args.launch,
        launcher=args.launcher,
        nproc=args.nproc,
        processes=args.processes,
        shard=args.shard,
        trackers=args.trackers,
    )
    suites = prepare_suites(args)
    with working("loading the launchers"):
        from bench.launch.jobs import all_jobs
        from bench.launch.run import describe, run_suites
        from bench.launch.summary import planned_runs, run_results
        from bench.train.preflight import check_suite

    if args.dry_run:
        for prepared in suites:
            check_suite(prepared)
        jobs = all_jobs(suites, args.results)
        own = [(prepared, [job for job in jobs if job.prepared is prepared]) for prepared in suites]
        text = "\n".join(describe(*each, args.overwrite) for each in own)
        print_result(args, text, {"suites": [planned_runs(*each, args.overwrite) for each in own]})
        return 0
    if code_names(each.suite for each in suites):
        trust(args.results / suites[0].suite.study)  # whose stored suite will name the same code
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is handled like Ctrl-C
    outcome = run_suites(suites, args.results, launch, args.overwrite)
    folder, runs = args.results / suites[0].suite.study, run_results(outcome)
    if outcome.errors or outcome.failed:
        print(f"{outcome.failed} run(s) failed and {outcome.errors} stopped with an error:", file=sys.stderr)
    for run in runs:
        if run["status"] != "finished":
            print(f"  {run['label']} in {run['folder']}: {run['reason']}", file=sys.stderr)
    print(f"records: {folder}; print the table with: {shlex.join(['bench', 'table', str(folder)])}", file=sys.stderr)
    counts = {status: sum(run["status"] == status for run in runs) for status in ("finished", "failed", "error")}
    print_result(args, "", {"suite": suites[0].suite.study, "folder": folder, "outcome": counts, "runs": runs})
    return 2 if outcome.errors else int(outcome.failed > 0)


COMMAND = Command(
    name="run",
    help="train and evaluate the suite's unfinished runs",
    add_arguments=add_arguments,
    execute=execute,
    json="the outcome, and label, digest, folder, status and seconds of each run; with --dry-run the runs to do",
    progress=True,
    examples=(
        "bench run nano --dry-run",
        "bench run nano",
        "bench run nano suite=mine budget.updates=10 seeds='[0]' rows='[{method: cps, kl: fixed}]'",
        "bench run nano suite=mine rows+='[{method: my_grpo:MyGRPO, label: mine}]' --overwrite",
        "bench run results/mine seeds+='[3, 4]'",
        "bench run mine.yaml --launcher torchrun --nproc 8",
        "bench run mine.yaml --tracker tensorboard",
        "bench run mine.yaml --launch examples/launch/slurm.yaml",
    ),
    exit_codes="0 if every run finished, 1 if some diverged, 2 for a mistake or a run that stopped with an error",
    interrupted="finished runs are kept, and the same command continues each other run from its last checkpoint",
)
