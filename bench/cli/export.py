"""`bench export`: a trained policy as files for diffusers."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cli.command import Command
from bench.cli.consent import add_code_argument, check_consent
from bench.cli.output import print_written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of the run, e.g. results/nano/cps-fixed/seed-0")
    parser.add_argument("out", type=Path, help="folder to write: adapter_config.json and the weights as safetensors")
    add_code_argument(parser)


def execute(args: argparse.Namespace) -> int:
    from bench import store
    from bench.suite.recorded import suite_of_record

    suite = suite_of_record(args.run, store.read_record(args.run))  # for its errors, before torch is imported
    check_consent(args.run, [suite], args.allow_code)
    from bench.train.export import export

    print_written(args, export(args.run, args.out))
    return 0


COMMAND = Command(
    name="export",
    help="write a finished run's policy as files that diffusers loads",
    add_arguments=add_arguments,
    execute=execute,
    json="the written files",
    examples=("bench export results/nano/cps-fixed/seed-0 lora",),
)
