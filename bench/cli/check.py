"""`bench check`: plug-ins against their interfaces."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cli.command import Command
from bench.cli.output import print_result
from bench.core.errors import BenchError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="name of a plug-in of any kind, or 'module:Class'")
    parser.add_argument("--suite", type=Path, default=None, help="YAML of a suite whose schedule is checked too")
    parser.add_argument(
        "--params", nargs="+", default=[], metavar="KEY=VALUE", help="constructor arguments, e.g. checkpoint=FOLDER"
    )
    parser.add_argument(
        "--nano", action="store_true", help="use the packaged checkpoint (default without checkpoint=)"
    )
    parser.add_argument("--write-golden", action="store_true", help="store the golden scores beside the checkpoint")


def execute(args: argparse.Namespace) -> int:
    from bench import plugins
    from bench.suite.load import load_variants

    for name in args.names:
        if ":" not in name:
            plugins.group_of(name)  # for its error, before torch is imported
    budgets = [] if args.suite is None else [suite.budget for suite in load_variants(args.suite)]
    params = _parameters(args.params)
    from bench.checks.report import check_report
    from bench.flow import sigma_schedule

    schedules = [sigma_schedule(budget.steps, budget.shift) for budget in budgets]
    reports = {name: check_report([name], schedules, params, args.nano, args.write_golden) for name in args.names}
    checked = [
        {"name": name, "passed": not failed, "lines": text.splitlines()} for name, (text, failed) in reports.items()
    ]
    print_result(args, "\n".join(text for text, _ in reports.values()), {"plugins": checked})
    return 1 if any(failed for _, failed in reports.values()) else 0


def _parameters(words: Sequence[str]) -> dict[str, Any]:
    """Parameter to value; values are YAML."""
    import yaml

    for word in words:
        if not word.partition("=")[2]:
            raise BenchError(f"--params takes KEY=VALUE, got {word!r}: write for example checkpoint=FOLDER.")
    try:
        return {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}
    except yaml.YAMLError as cause:
        raise BenchError(f"--params {' '.join(words)}: a value is not YAML; put it in quotes.") from cause


COMMAND = Command(
    name="check",
    help="check plug-ins: one line per violation",
    add_arguments=add_arguments,
    execute=execute,
    json="whether each plug-in passed, and its lines",
    examples=(
        "bench check my_grpo:MyGRPO",
        "bench check cps --suite mine.yaml",
        "bench check my_rules:FadingKL",
        "bench check videoalign --params checkpoint=/models/VideoReward base_model=/models/Qwen2-VL-2B-Instruct",
        "bench check my_reward:MyReward --params checkpoint=weights --write-golden",
    ),
    exit_codes="0 if every check passed, 1 if one failed, 2 for a mistake",
)
