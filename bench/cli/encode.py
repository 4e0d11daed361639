"""`bench encode`: the text states of a suite's prompts, into its cache."""

from __future__ import annotations

import argparse
import sys

from bench.cli.command import Command
from bench.cli.consent import add_code_argument
from bench.cli.output import print_result
from bench.cli.suite_arguments import add_suite_arguments, prepare_suites
from bench.core.errors import BenchError
from bench.core.progress import working

CACHE = "text_cache"
"""Key of `backbone.train` with the folder of the text states."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_suite_arguments(parser)
    add_code_argument(parser)


def execute(args: argparse.Namespace) -> int:
    suites = prepare_suites(args)
    from bench.suite.prepared import encode_first
    from bench.train.preflight import check_backbone

    done = []
    for prepared in suites:
        name, folder = prepared.suite.name, prepared.suite.backbone.train.get(CACHE)
        if folder is None:
            raise BenchError(f"suite {name} has no cache for text states: add backbone.train.{CACHE}=FOLDER.")
        check_backbone(prepared)
        prompts = prepared.all_prompts
        with working(f"encoding {len(prompts)} prompts of {name}"):
            states = encode_first(prepared, prompts)
        if states is None:
            raise BenchError(
                f"suite {name} keeps its text encoders in memory, or its backbone cannot run them alone: set "
                "backbone.train.text_encoders=released."
            )
        print(f"{name}: the text states of {len(prompts)} prompts are in {folder}", file=sys.stderr)
        done.append({"suite": name, "prompts": len(prompts), "folder": folder})
    print_result(args, "", {"suites": done})
    return 0


COMMAND = Command(
    name="encode",
    help="fill the cache with the text states of a suite's prompts, and load nothing but the text encoders",
    add_arguments=add_arguments,
    execute=execute,
    json="each suite with the number of its prompts and the folder of their states",
    progress=True,
    examples=("bench encode hunyuanvideo15_single_gpu backbone.train.text_cache=cache/prompts",),
)
