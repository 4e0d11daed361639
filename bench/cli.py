"""The command line: `bench run | table | figures | gallery | check | sde-study | nano`.

Exit code 0 only if all is well, 2 for a mistake the user can mend.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import __version__
from bench.base import BenchError
from bench.provenance import ROOT, source_digest

if TYPE_CHECKING:
    from bench.config import Experiment
    from bench.report.records import Row

LAUNCHERS = ("local", "torchrun", "slurm")
NANO_PARTS = ("vae", "policy", "videoreward-start", "videoreward", "clip", "pickscore", "manifest", "measure")


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="bench",
        description="Compare GRPO variants on video generators under one budget, with equal seeds and error bars.",
    )
    main.add_argument("--version", action="version", version=__version__)
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def suite(command: argparse.ArgumentParser) -> None:
        command.add_argument("suite", type=Path, help="YAML file of the suite, e.g. bench/configs/nano.yaml")
        command.add_argument("overrides", nargs="*", help="dotted overrides such as budget.updates=10 or seeds='[0]'")
        command.add_argument(
            "--results",
            type=Path,
            default=ROOT / "results",
            help="folder of the records (default: results/ of the checkout)",
        )

    run = commands.add_parser("run", help="train and evaluate the suite's unfinished runs")
    suite(run)
    run.add_argument("--dry-run", action="store_true", help="print what will run and what it will cost, and stop")
    run.add_argument("--processes", type=int, default=None, help="runs at a time (default: one per core)")
    run.add_argument("--launcher", choices=LAUNCHERS, default=None, help="where runs are done (default: local)")
    run.add_argument("--nproc", type=int, default=None, help="processes of one run, with torchrun or slurm")
    run.add_argument("--launch", type=Path, default=None, metavar="FILE", help="YAML with launcher, nproc and slurm")
    table = commands.add_parser("table", help="write and print the suite's table from its records")
    suite(table)
    figures = commands.add_parser("figures", help="write the suite's figures and their numbers from its records")
    suite(figures)
    check = commands.add_parser("check", help="check methods like a linter: one line per broken promise")
    check.add_argument("methods", nargs="+", metavar="METHOD", help="a method's name or 'module:Class'")
    check.add_argument("--suite", type=Path, default=None, help="YAML of a suite whose schedule is checked too")
    gallery = commands.add_parser("gallery", help="show videos of the base and of the trained policies side by side")
    suite(gallery)
    gallery.add_argument("--seed", type=int, default=0, help="training seed whose policies are shown (default: 0)")
    gallery.add_argument("--videos", type=int, default=6, help="held-out prompts shown (default: 6)")
    sde = commands.add_parser("sde-study", help="how exactly methods sample Gaussian data, in closed form, in seconds")
    sde.add_argument("methods", nargs="*", metavar="METHOD", help="a method's name or 'module:Class' (default: all)")
    sde.add_argument("--steps", type=int, default=20, help="sampling steps (default: 20)")
    sde.add_argument("--shift", type=float, default=5.0, help="shift of the sigma schedule (default: 5)")
    sde.add_argument("--eta", type=float, default=None, help="noise scale of all methods (default: each one's own)")
    sde.add_argument("--out", type=Path, default=ROOT / "results" / "sde-study", help="folder of tables and figures")
    nano = commands.add_parser("nano", help="train one part of the nano checkpoints again, or measure them")
    nano.add_argument("part", choices=NANO_PARTS)
    nano.add_argument(
        "--out", type=Path, default=ROOT / "bench" / "nano" / "checkpoints", help="folder of the checkpoints"
    )
    nano.add_argument("--steps", type=int, default=None, help="training steps (default: the recipe's)")
    nano.add_argument("--seed", type=int, default=0)
    nano.add_argument("--device", default="cpu", help="where the part is trained: cpu (one thread, default) or cuda")
    return main


def _run(args: argparse.Namespace) -> int:
    from bench import config, launch

    suites = config.load_all(args.suite, args.overrides)
    if args.dry_run:
        for exp in suites:
            launch.check(exp)
            print(launch.describe(exp, launch.jobs(exp, args.results)))
        return 0
    how = launch.how(args.launch, launcher=args.launcher, nproc=args.nproc, processes=args.processes)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is handled like Ctrl-C
    outcome = launch.run(suites, args.results, how)
    print(
        f"records: {args.results / suites[0].study}; the table: bench table with the same arguments", file=sys.stderr
    )
    if outcome.errors or outcome.failed:
        print(f"{outcome.failed} run(s) failed and {outcome.errors} stopped with an error, see above", file=sys.stderr)
    return 2 if outcome.errors else int(outcome.failed > 0)


def _table(args: argparse.Namespace) -> int:
    from bench.report.tables import build_table

    exp, rows = _recorded(args)
    written = build_table(args.results / exp.suite, rows=rows, seeds=exp.seeds)
    print(written["main.md"].read_text(encoding="utf-8"))
    print("written: " + ", ".join(str(path) for path in written.values()), file=sys.stderr)
    return 0


def _figures(args: argparse.Namespace) -> int:
    from bench.report.figures import build_figures

    exp, rows = _recorded(args)
    written = build_figures(args.results / exp.suite, rows=rows, seeds=exp.seeds)
    print("written: " + ", ".join(str(path) for path in written.values()), file=sys.stderr)
    return 0


def _gallery(args: argparse.Namespace) -> int:
    import torch

    torch.set_num_threads(1)
    exp, _ = _recorded(args)
    if args.seed not in exp.seeds or args.videos < 1:
        raise BenchError(f"--seed {args.seed} must be one of {exp.seeds}, and --videos at least 1.")
    from bench.gallery import build

    print(f"written: {build(exp, args.results, args.seed, args.videos)}", file=sys.stderr)
    return 0


def _recorded(args: argparse.Namespace) -> tuple[Experiment, list[Row]]:
    """The suite and its rows, after a look whether the records are its own."""
    from bench import config
    from bench.report.records import Row

    exp = config.load(args.suite, args.overrides)
    _refuse_other_settings(exp, args.results / exp.suite, args.command)
    return exp, [
        Row(row.name, row.method, row.kl_spec.name, variant=bool(row.params or row.kl_spec.params)) for row in exp.rows
    ]


def _refuse_other_settings(exp: Experiment, folder: Path, command: str) -> None:
    """Records made with other settings than the suite's are no rows of its table or figures."""
    from bench import store
    from bench.config import difference

    sources, stale = source_digest(), 0
    runs = [folder / "base", *(store.run_folder(folder, row.name, seed) for row in exp.rows for seed in exp.seeds)]
    for run in runs:
        if not (run / store.RUN).exists():
            continue
        record = store.read_record(run)
        change = difference(record.config, exp.shared())
        if change:
            raise BenchError(
                f"record {run} was made with other settings: {change}. Give `bench {command}` the YAML and the "
                "overrides of that run, or run the suite under a name of its own with suite=NAME."
            )
        stale += record.provenance.get("source_digest") != sources
    if stale:
        print(f"note: the sources have changed since {stale} of these runs were made", file=sys.stderr)


def _check(args: argparse.Namespace) -> int:
    from bench import config
    from bench.flow import sigma_schedule
    from bench.lint import report

    suites = [] if args.suite is None else [config.load(args.suite).budget]
    text, failed = report(args.methods, [sigma_schedule(budget.steps, budget.shift) for budget in suites])
    print(text)
    return 1 if failed else 0


def _sde_study(args: argparse.Namespace) -> int:
    import torch

    torch.set_num_threads(1)
    from bench.report.sde_page import build_page, main_tables
    from bench.sde_study import contenders, study

    entries = contenders(args.methods, args.eta)
    frames = study(entries, args.steps, args.shift)
    words = [*args.methods, f"--steps {args.steps}", f"--shift {args.shift:g}"]
    words += [] if args.eta is None else [f"--eta {args.eta:g}"]
    title = f"SDE study: {args.steps} steps, shift {args.shift:g}"
    written = build_page(args.out, frames, title, f"bench sde-study {' '.join(words)}")
    print(main_tables(frames))
    print("written: " + ", ".join(str(path) for path in written.values()), file=sys.stderr)
    return 0


def _nano(args: argparse.Namespace) -> int:
    import torch

    if args.device == "cpu":
        torch.set_num_threads(1)
    from bench.nano import make

    make.part(args.part, args.out, args.steps, args.seed, args.device)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments; overrides may stand before and after options."""
    main = parser()
    args, rest = main.parse_known_args(argv)
    stray = [word for word in rest if word.startswith("-") or "=" not in word]
    if rest and (stray or not hasattr(args, "overrides")):
        main.error(f"unrecognized arguments: {' '.join(stray or rest)}")
    if rest:
        args.overrides += rest
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded behind a user's back
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    args = _parse(argv)
    commands = {
        **{"run": _run, "table": _table, "figures": _figures, "gallery": _gallery},
        **{"check": _check, "sde-study": _sde_study, "nano": _nano},
    }
    try:
        return commands[args.command](args)
    except BenchError as error:
        print(f"bench {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; finished runs are kept, and the same command takes each other run up at its last checkpoint",
            file=sys.stderr,
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
