"""`bench verify`: stored records and tables against each other."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.cli.command import Command
from bench.cli.consent import add_code_argument, check_consent
from bench.cli.output import print_result
from bench.cli.suite_arguments import RESULTS
from bench.core.errors import BenchError
from bench.core.progress import working

if TYPE_CHECKING:
    from bench.audit.verify_replay import PartialReplay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        help="folder of records (default: results/ below the current folder)",
    )
    parser.add_argument(
        "--replay",
        metavar="K",
        help="do K runs again, drawn at random: their first updates and their evaluation; or 'all'",
    )
    parser.add_argument(
        "--draw",
        type=int,
        metavar="N",
        help="draw the runs of --replay by this number (default: a new one, which is printed)",
    )
    add_code_argument(parser)


def _count(text: str) -> int | Literal["all"]:
    """The number of runs that are done again."""
    if text == "all":
        return "all"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise BenchError(f"--replay is {text}: give a number of runs of at least 1, or all.")
    return int(text)


def _replay(
    folder: Path, repeatable: Sequence[Path], count: int | Literal["all"], number: int, allow_code: bool
) -> list[PartialReplay]:
    """Do drawn runs again, after consent to the code that their records name."""
    from bench import store
    from bench.audit.verify_replay import draw, replay_runs
    from bench.core.process_state import fix_process_state
    from bench.suite.recorded import suite_of_record

    runs = draw(repeatable, count, number)
    suites = [suite_of_record(run, store.read_record(run)) for run in runs]
    check_consent(folder, suites, allow_code)
    fix_process_state()  # as in a run
    return replay_runs(runs)


def execute(args: argparse.Namespace) -> int:
    count = None if args.replay is None else _count(args.replay)
    if args.draw is not None and count is None:
        raise BenchError("--draw draws the runs of --replay: add --replay K.")
    folders = args.folders or [RESULTS]
    for folder in folders:  # before torch is imported
        if not folder.is_dir():
            raise BenchError(f"{folder} holds no run, as there is no such folder: name a folder of records.")
    with working("loading the checks"):
        from bench.audit.findings import Finding
        from bench.audit.verify import verify
        from bench.core.rules import RULES

    report = verify(folders)
    number = secrets.randbelow(10**9) if args.draw is None else args.draw
    replays = [] if count is None else _replay(folders[0], report.repeatable, count, number, args.allow_code)
    found = [each.finding for each in replays]
    if count is not None and not replays:
        found.append(Finding(folders[0], f"no run to do again: none has finished under rules {RULES}", wrong=False))
    report = report._replace(
        findings=[*report.findings, *filter(None, found)],
        drawn=None if count is None else len(replays),
        repeated=sum(each.complete for each in replays),
    )
    document = {
        "runs": report.runs,
        "suites": report.suites,
        "tables": report.tables,
        "wrong": report.wrong,
        "draw": number if replays else None,
        "drawn": report.drawn,
        "repeated": report.repeated,
        "findings": [{"path": each.path, "text": each.text, "wrong": each.wrong} for each in report.findings],
        "replays": [each.document() for each in replays],
    }
    lines = [f"again {each.run}: {each.text}." for each in replays if each.finding is None]
    how = [f"drawn by the number {number}; --draw {number} draws the same runs again"] if replays else []
    print_result(args, "\n".join([*how, *lines, report.text]), document)
    return 0 if report.passed else 1


COMMAND = Command(
    name="verify",
    help="check stored records and tables: one line per finding",
    add_arguments=add_arguments,
    execute=execute,
    json="the findings, counts of runs, suites, tables and of what is wrong, and the runs that were done again",
    progress=True,
    examples=(
        "bench verify",
        "bench verify results/reference/nano results/reference/nano_kl",
        "bench verify results/nano --replay 3",
        "bench verify results/nano --replay 3 --draw 271828",
    ),
    exit_codes="0 if all is well, 1 if something is wrong or a drawn run could not be done again, 2 for a mistake; "
    "figures are not checked",
)
