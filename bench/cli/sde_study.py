"""`bench sde-study`: the methods' noisy steps on Gaussian data, in closed form."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.cli.command import Command
from bench.cli.output import print_result, records
from bench.cli.suite_arguments import RESULTS
from bench.core.progress import working


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "methods",
        nargs="*",
        metavar="METHOD",
        help="method or 'module:Class' (default: the four of SAGE-GRPO's paper)",
    )
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default: 20)")
    parser.add_argument("--shift", type=float, default=5.0, help="shift of the sigma schedule (default: 5)")
    parser.add_argument("--eta", type=float, default=None, help="noise scale of all methods (default: each one's own)")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / "sde-study",
        help="folder of tables and figures (default: results/sde-study below the current folder)",
    )


def execute(args: argparse.Namespace) -> int:
    from bench import plugins

    for name in args.methods:
        plugins.check_name("methods", name)
    with working("loading torch"):
        from bench.audit.sde.page import build_page, main_tables
        from bench.audit.sde.study import contenders, study
        from bench.core.process_state import fix_process_state
    fix_process_state()
    with working("computing the study"):
        frames = study(contenders(args.methods, args.eta), args.steps, args.shift)
    words = [*args.methods, f"--steps {args.steps}", f"--shift {args.shift:g}"]
    words += [] if args.eta is None else [f"--eta {args.eta:g}"]
    title = f"SDE study: {args.steps} steps, shift {args.shift:g}"
    written = build_page(args.out, frames, title=title, command=f"bench sde-study {' '.join(words)}")
    tables = {name: records(frame) for name, frame in frames.items()}
    print_result(args, main_tables(frames), {"tables": tables, "written": list(written.values())})
    print("written: " + ", ".join(str(path) for path in written.values()), file=sys.stderr)
    return 0


COMMAND = Command(
    name="sde-study",
    help="compute how exactly methods sample Gaussian data, in closed form, in seconds",
    add_arguments=add_arguments,
    execute=execute,
    json="the lines of each CSV file, and the written files",
    progress=True,
    examples=(
        "bench sde-study",
        "bench sde-study cps sage_grpo --steps 10 --shift 3 --eta 0.5 --out sde-eta0.5",
        "bench sde-study my_grpo:MyGRPO",
    ),
)
