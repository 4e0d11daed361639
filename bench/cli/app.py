"""The command line: `bench run | plan | table | figures | gallery | check | audit | replay | score | assets | ...`.

Exit code 0 only if all is well, 2 for a mistake the user can mend.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import __version__
from bench.cli.commands import COMMANDS
from bench.core.errors import BenchError
from bench.core.provenance import ROOT

LAUNCHERS = ("local", "torchrun", "slurm")
SHARDS = ("full", "grads")
NANO_PARTS = (
    "vae",
    "policy",
    "videoreward-start",
    "videoreward",
    "clip",
    "pickscore",
    "manifest",
    "golden",
    "measure",
)


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

    _run_options(commands, suite)
    _plan_options(commands, suite)
    table = commands.add_parser("table", help="write and print the suite's table from its records")
    suite(table)
    figures = commands.add_parser("figures", help="write the suite's figures and their numbers from its records")
    suite(figures)
    compare = commands.add_parser("compare", help="two folders of one suite's records: differences with intervals")
    compare.add_argument("a", type=Path, metavar="A", help="folder of records, e.g. results/nano")
    compare.add_argument("b", type=Path, metavar="B", help="folder to compare with, e.g. results/reference/nano")
    compare.add_argument("--open", action="store_true", help="compare other budgets or settings, with both ledgers")
    compare.add_argument("--csv", type=Path, default=None, metavar="FILE", help="write the numbers there as well")
    report = commands.add_parser("report", help="write the suite's report.html: everything about it on one page")
    suite(report)
    verify = commands.add_parser("verify", help="check stored records and tables: one line per finding")
    verify.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="default: results/ of the checkout")
    verify.epilog = "exit code: 0 if all is well, 1 if something is wrong; figures and weights are not looked into"
    check = commands.add_parser("check", help="check methods, evaluators and backbones: one line per broken promise")
    kinds = "a method, an evaluator, a backbone, or 'module:Class'"
    check.add_argument("names", nargs="+", metavar="NAME", help=kinds)
    check.add_argument("--suite", type=Path, default=None, help="YAML of a suite whose schedule is checked too")
    check.add_argument(
        "--params", nargs="+", default=[], metavar="KEY=VALUE", help="how it is made, e.g. checkpoint=DIR"
    )
    check.add_argument("--nano", action="store_true", help="use the packaged checkpoint (default without checkpoint=)")
    check.add_argument("--write-golden", action="store_true", help="store the golden scores beside the checkpoint")
    _audit_options(commands, suite)
    _replay_options(commands)
    gallery = commands.add_parser("gallery", help="show videos of the base and of the trained policies side by side")
    suite(gallery)
    gallery.add_argument("--seed", type=int, default=0, help="training seed whose policies are shown (default: 0)")
    gallery.add_argument("--videos", type=int, default=6, help="held-out prompts shown (default: 6)")
    _score_parser(commands.add_parser("score", help="score video files of your own with any evaluator"))
    assets = commands.add_parser("assets", help="what a suite needs, what is missing, and how to fetch it")
    assets.add_argument(
        "suite", nargs="?", type=Path, default=None, help="YAML of a suite (default: all known assets)"
    )
    assets.add_argument("overrides", nargs="*", help="the suite's overrides, as for `bench run`")
    assets.add_argument("--verify", action="store_true", help="also compare sha256 where known (reads all bytes)")
    sde = commands.add_parser("sde-study", help="how exactly methods sample Gaussian data, in closed form, in seconds")
    sde.add_argument("methods", nargs="*", metavar="METHOD", help="a method's name or 'module:Class' (default: all)")
    sde.add_argument("--steps", type=int, default=20, help="sampling steps (default: 20)")
    sde.add_argument("--shift", type=float, default=5.0, help="shift of the sigma schedule (default: 5)")
    sde.add_argument("--eta", type=float, default=None, help="noise scale of all methods (default: each one's own)")
    sde.add_argument("--out", type=Path, default=ROOT / "results" / "sde-study", help="folder of tables and figures")
    export = commands.add_parser("export", help="write a finished run's policy as files that diffusers loads")
    export.add_argument("run", type=Path, help="folder of the run, e.g. results/nano/cps-fixed/seed-0")
    export.add_argument("out", type=Path, help="folder to write: adapter_config.json and the weights as safetensors")
    _nano_options(commands)
    return main


def _audit_options(commands: Any, suite: Callable[[argparse.ArgumentParser], None]) -> None:
    audit = commands.add_parser("audit", help="is the ratio 1 before the first update, and what would move it")
    audit.epilog = "exit code: 0 if every row's ratio is 1 within the tolerance, 1 if one is not, 2 for a mistake"
    suite(audit)
    audit.add_argument("--row", nargs="+", action="extend", default=[], metavar="LABEL", help="rows (default: all)")
    audit.add_argument("--policy", type=Path, default=None, metavar="RUN", help="a finished run whose policy is taken")
    audit.add_argument("--json", action="store_true", help="print JSON instead of the tables")


def _replay_options(commands: Any) -> None:
    replay = commands.add_parser("replay", help="do a recorded run again: equal bits, or what differs first")
    replay.epilog = "exit code: 0 for equal bits or within --tolerance, 1 for more, 2 for a mistake"
    replay.add_argument("run", type=Path, help="folder of the run, e.g. results/nano/cps-fixed/seed-0")
    replay.add_argument("--updates", type=int, default=None, metavar="N", help="the first N only, nothing evaluated")
    replay.add_argument("--out", type=Path, default=None, help="folder of the second run (default: a temporary one)")
    replay.add_argument(
        "--tolerance", type=float, default=0.0, metavar="X", help="largest allowed difference of a number (default: 0)"
    )


def _nano_options(commands: Any) -> None:
    nano = commands.add_parser("nano", help="train one part of the nano checkpoints again, or measure them")
    nano.add_argument("part", choices=NANO_PARTS)
    nano.add_argument(
        "--out", type=Path, default=ROOT / "bench" / "nano" / "checkpoints", help="folder of the checkpoints"
    )
    nano.add_argument("--steps", type=int, default=None, help="training steps (default: the recipe's)")
    nano.add_argument("--seed", type=int, default=0)
    nano.add_argument("--device", default="cpu", help="where the part is trained: cpu (one thread, default) or cuda")


def _score_parser(score: argparse.ArgumentParser) -> None:
    score.epilog = "exit code: 0 if every video was scored, 1 if some failed (their rows say why), 2 for a mistake"
    score.add_argument(
        "evaluators", nargs="+", metavar="EVALUATOR", help="an evaluator's name (videoalign, ...) or 'module:Class'"
    )
    score.add_argument(
        "--videos",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="PATH",
        help="video files, images, or folders of them (default: the videos that --prompts names)",
    )
    score.add_argument(
        "--prompts",
        type=Path,
        help='CSV with the columns video,prompt, or JSON Lines {"video": ..., "prompt": ...}; paths relative to it',
    )
    score.add_argument("--out", type=Path, required=True, metavar="FILE.parquet", help="where the scores are written")
    score.add_argument(
        "--params",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME.KEY=VALUE",
        help="an evaluator's parameters, e.g. videoalign.checkpoint=checkpoints/VideoReward",
    )
    score.add_argument("--nano", action="store_true", help="use the packaged nano checkpoints (for trying things out)")
    score.add_argument("--batch", type=int, default=4, help="videos of equal shape scored together (default: 4)")
    score.add_argument("--dtype", choices=["float32", "bfloat16"], help="precision of all evaluators")
    score.add_argument("--device", choices=["cpu", "cuda"], help="where all evaluators run")
    score.add_argument("--overwrite", action="store_true", help="forget the scores that --out holds and start anew")


def _run_options(commands: Any, suite: Callable[[argparse.ArgumentParser], None]) -> None:
    run = commands.add_parser("run", help="train and evaluate the suite's unfinished runs")
    suite(run)
    run.add_argument("--dry-run", action="store_true", help="print what will run and what it will cost, and stop")
    run.add_argument("--processes", type=int, default=None, help="runs at a time (default: one per core)")
    run.add_argument("--launcher", choices=LAUNCHERS, default=None, help="where runs are done (default: local)")
    run.add_argument("--nproc", type=int, default=None, help="processes of one run, with torchrun or slurm")
    run.add_argument(
        "--shard",
        choices=SHARDS,
        default=None,
        help="spread each run's weights over its processes: full gathers them for each pass, grads once for both",
    )
    run.add_argument(
        "--launch", type=Path, default=None, metavar="FILE", help="YAML of these settings, or of accelerate"
    )


def _plan_options(commands: Any, suite: Callable[[argparse.ArgumentParser], None]) -> None:
    plan = commands.add_parser("plan", help="what a suite will cost before it runs: NFE, FLOPs, memory, hours")
    suite(plan)
    plan.add_argument("--gpu", default=None, help="h100 (default), h800, h200, a100 or l40s")
    plan.add_argument("--gpus", type=int, default=1, help="GPUs that share one run (default: 1)")
    plan.add_argument("--gpu-memory", type=float, default=None, metavar="GB", help="of one GPU (default: the table's)")
    plan.add_argument("--tflops", type=float, default=None, help="achieved TFLOP/s of one GPU (default: assumed)")
    plan.add_argument(
        "--context-parallel", type=int, default=None, metavar="N", help="GPUs that share one sample (default: suite's)"
    )
    plan.add_argument("--shard", choices=SHARDS, default=None, help="spread the weights over the GPUs of a run")
    plan.add_argument("--scorer-seconds", type=float, default=0.0, metavar="S", help="of all scorers, per video")
    plan.add_argument("--probe", action="store_true", help="time a few steps of the real backbone on this machine")
    plan.add_argument("--json", action="store_true", help="print JSON instead of the table")


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
    try:
        return COMMANDS[args.command](args)
    except BenchError as error:
        print(f"bench {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "finished runs are kept, and the same command takes each other run up at its last checkpoint"
        if args.command == "score":
            kept = "the scores so far are kept, and the same command goes on from there"
        if args.command == "replay":
            kept = "with --out the same command goes on from the last checkpoint, without it nothing is kept"
        print(f"interrupted; {kept}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
