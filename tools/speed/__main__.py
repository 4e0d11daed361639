"""`python -m tools.speed`: measure speed, and write performance.json and performance.md. Exit code 2 on an error."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.core.provenance import ROOT, git_state, hardware, package_versions
from tools.speed.page import SECTIONS, write

LEAST_UPDATES = 3
"""One ordinary update, one with a KL probe, one with a checkpoint."""


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="tools.speed", description=__doc__)
    main.add_argument(
        "sections", nargs="*", help=f"any of {', '.join(SECTIONS)} (default: all that this machine can measure)"
    )
    main.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="device of the sections loops, loading and gpu (default: cuda if there is a GPU)",
    )
    main.add_argument("--updates", type=int, default=15, help="updates of the harness per row (default: %(default)s)")
    main.add_argument("--repeats", type=int, default=3, help="repeats of each loop (default: %(default)s)")
    main.add_argument(
        "--minutes",
        type=float,
        default=8.0,
        help="time of the section gpu; settings for which none is left are named (default: %(default)s)",
    )
    main.add_argument(
        "--checkpoint",
        type=Path,
        help="folder of HunyuanVideo-1.5, which loading needs; without it gpu writes one with random weights",
    )
    main.add_argument("--out", type=Path, help="folder of the two files (default: results/ of the checkout)")
    main.add_argument("--tiny", action="store_true", help="run all code on tiny models, on any machine; needs --out")
    return main


def select_sections(args: argparse.Namespace, cuda: bool) -> list[str]:
    """The sections to measure. `BenchError` for a requested section that this machine cannot measure."""
    for name in args.sections:
        if name not in SECTIONS:
            raise BenchError(f"speed: there is no section {name!r}: name any of {', '.join(SECTIONS)}.")
    if args.device == "cuda" and not cuda:
        raise BenchError("speed: --device cuda, but torch sees no GPU: leave it out, or run on a machine with one.")
    if args.tiny and args.out is None:
        raise BenchError("speed: --tiny would replace stored figures by those of tiny models: give --out FOLDER too.")
    if args.updates < LEAST_UPDATES or args.repeats < 1:
        raise BenchError(
            f"speed: --updates {args.updates} and --repeats {args.repeats} are too few: "
            f"give at least {LEAST_UPDATES} and 1."
        )
    possible = {
        **dict.fromkeys(SECTIONS, True),
        "gpu": args.tiny or (cuda and args.device != "cpu"),
        "loading": args.tiny or args.checkpoint is not None,
    }
    if "gpu" in args.sections and not possible["gpu"]:
        raise BenchError("speed: the section gpu needs a GPU: run it on a machine with one, or give --tiny.")
    if "loading" in args.sections and not possible["loading"]:
        raise BenchError(
            "speed: the section loading needs a folder of HunyuanVideo-1.5: give --checkpoint FOLDER; "
            "`python -m tools.random_checkpoint FOLDER` writes one with random weights."
        )
    return [name for name in SECTIONS if name in (args.sections or SECTIONS) and possible[name]]


def say(what: str) -> None:
    """Report progress on stderr."""
    print(f"speed: {what} ...", file=sys.stderr, flush=True)


def measure_section(name: str, args: argparse.Namespace, device: Any) -> dict[str, Any]:
    """The figures of one section."""
    from tools.speed.compare_loops import BOUND, CASES, TINY_LOOPS, compare
    from tools.speed.overhead import TINY_OVERHEAD, measure_overhead

    if name == "overhead":
        return measure_overhead(TINY_OVERHEAD if args.tiny else (), args.updates)
    if name == "loops":
        cases = TINY_LOOPS if args.tiny else CASES
        results = []
        for case in cases:
            say(case.label)
            results.append(compare(case, device, args.repeats, memory=not args.tiny))
        return {"bound": BOUND, "cases": results}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        return measure_loaded(args, device, folder) if name == "loading" else measure_gpu(args, device, folder)


def measure_loaded(args: argparse.Namespace, device: Any, folder: Path) -> dict[str, Any]:
    """The figures of the section loading. `folder`: where a checkpoint in miniature may be written."""
    from tools.random_checkpoint import mini, write_checkpoint
    from tools.speed.loading import measure_loading

    if args.checkpoint is None:
        write_checkpoint(folder, mini())
    return dict(measure_loading(args.checkpoint or folder, device.type, say))


def measure_gpu(args: argparse.Namespace, device: Any, folder: Path) -> dict[str, Any]:
    """The figures of the section gpu. `folder`: where a random checkpoint may be written, 20 GB without --tiny."""
    from tools.random_checkpoint import write_checkpoint
    from tools.speed.full_size import FULL, TINY_MODEL, measure_full_size
    from tools.speed.settings import BUDGETS, checkpoint_configs, measure_settings

    until = time.monotonic() + 60 * args.minutes
    result = measure_full_size(device, TINY_MODEL if args.tiny else FULL)
    if args.checkpoint is None:
        say("a random checkpoint")
        write_checkpoint(folder, checkpoint_configs(args.tiny))
    say("suites at their size")
    figures = measure_settings(args.checkpoint or folder, device, tiny=args.tiny, until=until)
    return {**result, "budgets_gb": BUDGETS, "settings": figures}


def conditions(name: str, args: argparse.Namespace, device: Any) -> dict[str, Any]:
    """Hardware, versions, date and settings of a section."""
    import torch

    on_gpu = device.type == "cuda" and name != "overhead"
    state = git_state()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": package_versions(("torch", "diffusers", "transformers", "peft")),
        "commit": state["commit"],
        "changed_files": state["dirty"],
        "updates": args.updates,
        "repeats": args.repeats,
        "tiny": args.tiny,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the sections one after another, and store each as soon as it is measured."""
    args = parser().parse_args(argv)
    import torch

    torch.set_num_threads(1)
    try:
        cuda = torch.cuda.is_available()
        names = select_sections(args, cuda)
        device = torch.device(args.device or ("cuda" if cuda and not args.tiny else "cpu"))
        folder = args.out or ROOT / "results"
        if device.type == "cuda":  # with TF32, convolutions of one and of many samples differ by more than rounding
            torch.backends.cudnn.allow_tf32 = False
        for name in names:
            say(name)
            result = measure_section(name, args, device)
            path = write(folder, {name: {"where": conditions(name, args, device), "result": result}})
        print(f"written: {path}")
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
