"""`bench plan`: options to plans, plans to text or JSON."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence

from bench.base import BenchError
from bench.build import copies
from bench.config import Experiment
from bench.machines import Machine, machine
from bench.plan import on_cpu, plan
from bench.plan_page import page, study
from bench.provenance import plain
from bench.workload import Price, flops, model


def plans(suites: Sequence[Experiment], args: argparse.Namespace) -> tuple[str, str | None]:
    """Every variant's plan, and their sum; one JSON list with --json. Then why one cannot run, if so."""
    if not 0 <= args.scorer_seconds < math.inf:
        raise BenchError(f"--scorer-seconds is {args.scorer_seconds}: give a finite number of at least 0.")
    cpu = not _given(args) and all(on_cpu(exp) for exp in suites)
    places = [None if cpu else _machine(exp, args) for exp in suites]
    measured: Price | None = None
    lines: list[str] = []
    if args.probe:
        measured, lines = _probe(suites[0], places[0])
    pairs = zip(suites, places, strict=True)
    made = [plan(exp, args.results, where, args.scorer_seconds, measured=measured) for exp, where in pairs]
    refused = next((each["refused"] for each in made if each["refused"]), None)
    if args.json:
        return json.dumps(plain(made), indent=1), refused
    pages = [page(each) for each in made]
    if len(made) > 1:
        pages.append(study(made))
    return "\n\n".join([*pages, *(["\n".join(lines)] if lines else [])]), refused


def _given(args: argparse.Namespace) -> bool:
    """Whether the command line says anything about GPUs."""
    wanted = (args.gpu, args.tflops, args.gpu_memory, args.context_parallel, args.shard)
    return args.gpus != 1 or any(value is not None for value in wanted)


def _machine(exp: Experiment, args: argparse.Namespace) -> Machine:
    """The command line's GPUs; a sample is shared as the suite says, or as --context-parallel does."""
    context = copies(exp) if args.context_parallel is None else args.context_parallel
    return machine(args.gpu or "h100", args.gpus, args.gpu_memory, args.tflops, context, args.shard)


def _probe(exp: Experiment, where: Machine | None) -> tuple[Price, list[str]]:
    """Seconds as measured on the suite's own backbone, and predicted against measured in words."""
    from bench.calibrate import probe

    found = model(exp)
    work, measured = flops(found), probe(exp)
    predicted = None if where is None else work.at(where.pace(found.latents, found.settings["dtype"])[0])
    return measured.price(exp), measured.lines(exp, work, predicted)
