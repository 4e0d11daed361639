"""`bench export`: a trained policy as files for diffusers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of the run, e.g. results/nano/cps-fixed/seed-0")
    parser.add_argument("out", type=Path, help="folder to write: adapter_config.json and the weights as safetensors")


def execute(args: argparse.Namespace) -> int:
    from bench.train.export import export

    print("written: " + ", ".join(str(path) for path in export(args.run, args.out)), file=sys.stderr)
    return 0


COMMAND = Command(
    name="export",
    help="write a finished run's policy as files that diffusers loads",
    add_arguments=add_arguments,
    execute=execute,
    examples=("bench export results/nano/cps-fixed/seed-0 lora",),
)
