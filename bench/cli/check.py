"""`bench check`: plug-ins against their interfaces."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli.command import Command
from bench.cli.consent import add_code_argument, check_consent
from bench.cli.output import print_result
from bench.cli.suite_arguments import suite_place
from bench.core.errors import BenchError

if TYPE_CHECKING:
    from bench.suite.schema import Suite


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="name of a plug-in of any kind, or 'module:Class'")
    parser.add_argument(
        "--suite",
        type=Path,
        default=None,
        help="suite that methods are checked against, by name or file; overrides such as budget.steps=20 may follow",
    )
    add_code_argument(parser)
    parser.set_defaults(overrides=[])
    parser.add_argument("--train", action="store_true", help="train two updates of each method on nano, in seconds")
    parser.add_argument(
        "--params", nargs="+", default=[], metavar="KEY=VALUE", help="constructor arguments, e.g. checkpoint=FOLDER"
    )
    parser.add_argument(
        "--nano", action="store_true", help="use the packaged checkpoint (default without checkpoint=)"
    )
    parser.add_argument("--write-golden", action="store_true", help="store the golden scores beside the checkpoint")


def execute(args: argparse.Namespace) -> int:
    names = [name for name in args.names if "=" not in name]
    overrides = [*(word for word in args.names if "=" in word), *args.overrides]
    if args.suite is None and overrides:
        raise BenchError(f"{overrides[0]} overrides a setting of a suite: name the suite with --suite.")
    from bench import plugins
    from bench.suite.load import load_variants

    for name in names:
        if ":" not in name:
            plugins.group_of(name)  # for its error, before torch is imported
    suites: list[Suite] = []
    if args.suite is not None:
        suites = load_variants(args.suite, overrides)
        check_consent(suite_place(args.suite), suites, args.allow_code, overrides)
    params = _parameters(args.params)
    from bench.checks.report import check_report

    importlib.import_module("bench.train.run")  # the whole harness, so that a plug-in that replaces code is noticed
    checked, texts = [], []
    for name in names:
        text, failed = check_report(name, suites, params, args.nano, args.write_golden)
        if args.train:
            trained, passed = _train(name, suites)
            text, failed = f"{text}\n{trained}", failed or not passed
        checked.append({"name": name, "passed": not failed, "lines": text.splitlines()})
        texts.append(text)
    print_result(args, "\n".join(texts), {"plugins": checked})
    return 0 if all(each["passed"] for each in checked) else 1


def _train(name: str, suites: Sequence[Suite]) -> tuple[str, bool]:
    """Lines on two updates of a method, under the settings of each suite, and whether they went well."""
    from bench.checks.report import plugin_group
    from bench.train.trial import train_trial

    if plugin_group(name) != "methods":
        raise BenchError(f"{name} is not a method: --train is for methods.")
    chosen: Sequence[Suite | None] = suites or [None]
    lines = []
    for suite in chosen:
        prefix = name if suite is None else f"{name}, {suite.name}"
        try:
            lines += [f"{prefix}: {line}" for line in train_trial(name, suite)]
        except BenchError as error:
            return "\n".join([*lines, f"{prefix}: training: {error}"]), False
    return "\n".join(lines), True


def _parameters(words: Sequence[str]) -> dict[str, Any]:
    """Parameter to value; values are YAML."""
    from bench.core.strict_yaml import parse_yaml
    from bench.core.text import shown
    from bench.suite.paths import is_path_key

    for word in words:
        if not word.partition("=")[2]:
            raise BenchError(f"--params takes KEY=VALUE, got {word!r}: write for example checkpoint=FOLDER.")
    parts = (word.partition("=") for word in words)
    return {key: parse_yaml(value, f"--params {shown(f'{key}={value}')}", key, is_path_key) for key, _, value in parts}


COMMAND = Command(
    name="check",
    help="check plug-ins: one line per violation",
    add_arguments=add_arguments,
    execute=execute,
    json="whether each plug-in passed, and its lines",
    examples=(
        "bench check my_grpo:MyGRPO",
        "bench check my_grpo:MyGRPO --train",
        "bench check cps --suite mine.yaml budget.steps=20",
        "bench check my_rules:FadingKL",
        "bench check videoalign --params checkpoint=/models/VideoReward base_model=/models/Qwen2-VL-2B-Instruct",
        "bench check my_reward:MyReward --params checkpoint=weights --write-golden",
    ),
    exit_codes="0 if every check passed, 1 if one failed, 2 for a mistake",
)
