"""`bench nano`: train the packaged checkpoints again, or measure them."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cli.command import Command
from bench.nano.parts import PARTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", choices=PARTS, help="part to train, or manifest, golden or measure")
    parser.add_argument(
        "--out", type=Path, default=None, help="folder of the checkpoints (default: the packaged ones)"
    )
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: 0)")
    parser.add_argument("--device", default="cpu", help="device of the training: cpu (one thread, default) or cuda")


def execute(args: argparse.Namespace) -> int:
    from bench.core.provenance import check_not_installed
    from bench.suite.paths import resolve

    folder = args.out or resolve("nano").parent
    check_not_installed(folder, "give another folder with --out")
    import torch

    if args.device == "cpu":
        torch.set_num_threads(1)
    from bench.nano.build import build_part

    build_part(args.part, folder, args.steps, args.seed, args.device)
    return 0


COMMAND = Command(
    name="nano",
    help="train one part of the nano checkpoints again, or measure them",
    add_arguments=add_arguments,
    execute=execute,
    progress=True,
    examples=(
        "bench nano vae --out checkpoints --device cuda",
        "bench nano policy --out checkpoints  # after the part vae",
        "bench nano wan-policy --out checkpoints  # after the part vae; the same world on Wan2.1's classes",
        "bench nano measure",
    ),
)
