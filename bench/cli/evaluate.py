"""`bench evaluate`: score policies that were trained elsewhere as a suite scores its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.cli.command import Command
from bench.cli.consent import add_code_argument
from bench.cli.output import print_result, records
from bench.cli.suite_arguments import add_suite_arguments, one_suite
from bench.core.errors import BenchError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_suite_arguments(parser)
    add_code_argument(parser)
    parser.add_argument(
        "--policy",
        type=Path,
        action="append",
        default=[],
        dest="policies",
        metavar="PATH",
        help="a LoRA's file or folder (peft or diffusers layout), or the folder of a finished run; may be given "
        "several times (default: the base alone)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="score anew where the scores of another policy are stored"
    )


def execute(args: argparse.Namespace) -> int:
    for path in args.policies:
        if not path.exists():
            raise BenchError(f"policy {path} does not exist: name a LoRA's file or folder, or the folder of a run.")
    prepared = one_suite(args)
    from bench.audit.evaluation import evaluate_policies
    from bench.audit.evaluation_page import evaluation_page, evaluation_table

    scored = evaluate_policies(prepared, args.results, args.policies, args.overwrite)
    document = {
        "suite": prepared.suite.name,
        "policies": [
            {**line, "what": each.evaluation.what, "folder": each.folder}
            for line, each in zip(records(evaluation_table(scored)), scored, strict=True)
        ],
    }
    print_result(args, evaluation_page(scored), document)
    print("stored: " + ", ".join(str(each.folder) for each in scored), file=sys.stderr)
    return 0


COMMAND = Command(
    name="evaluate",
    help="score policies that were trained elsewhere as a suite scores its own",
    add_arguments=add_arguments,
    execute=execute,
    json="each policy's held-out scores and their differences to the base, with intervals",
    progress=True,
    examples=(
        "bench evaluate nano --policy my-lora/pytorch_lora_weights.safetensors",
        "bench evaluate nano --policy my-lora --policy results/nano/cps-fixed/seed-0",
        "bench evaluate hunyuanvideo15_single_gpu --policy /loras/mine",
    ),
    interrupted="policies that are scored are kept, and the same command does the others",
)
