"""`bench plan`: options to plans, plans to text or JSON."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence

from bench.core.errors import BenchError
from bench.core.hashing import plain
from bench.plan.estimate import on_cpu, plan
from bench.plan.hardware import Hardware, gpu_hardware
from bench.plan.page import plan_page, study_totals
from bench.plan.workload import UnitCost, suite_model, unit_flops
from bench.suite.devices import cp_degree
from bench.suite.schema import Experiment


def plans(suites: Sequence[Experiment], args: argparse.Namespace) -> tuple[str, str | None]:
    """Every variant's plan, and their sum; one JSON list with --json. Then why one cannot run, if so."""
    if not 0 <= args.scorer_seconds < math.inf:
        raise BenchError(f"--scorer-seconds is {args.scorer_seconds}: give a finite number of at least 0.")
    cpu = not _given(args) and all(on_cpu(exp) for exp in suites)
    places = [None if cpu else _machine(exp, args) for exp in suites]
    measured: UnitCost | None = None
    lines: list[str] = []
    if args.probe:
        measured, lines = _probe(suites[0], places[0])
    pairs = zip(suites, places, strict=True)
    made = [plan(exp, args.results, where, args.scorer_seconds, measured=measured) for exp, where in pairs]
    refused = next((each["refused"] for each in made if each["refused"]), None)
    if args.json:
        return json.dumps(plain(made), indent=1), refused
    pages = [plan_page(each) for each in made]
    if len(made) > 1:
        pages.append(study_totals(made))
    return "\n\n".join([*pages, *(["\n".join(lines)] if lines else [])]), refused


def _given(args: argparse.Namespace) -> bool:
    """Whether the command line says anything about GPUs."""
    wanted = (args.gpu, args.tflops, args.gpu_memory, args.context_parallel, args.shard)
    return args.gpus != 1 or any(value is not None for value in wanted)


def _machine(exp: Experiment, args: argparse.Namespace) -> Hardware:
    """The command line's GPUs; a sample is shared as the suite says, or as --context-parallel does."""
    context = cp_degree(exp) if args.context_parallel is None else args.context_parallel
    return gpu_hardware(args.gpu or "h100", args.gpus, args.gpu_memory, args.tflops, context, args.shard)


def _probe(exp: Experiment, where: Hardware | None) -> tuple[UnitCost, list[str]]:
    """Seconds as measured on the suite's own backbone, and predicted against measured in words."""
    from bench.plan.probe import run_probe

    found = suite_model(exp)
    work, measured = unit_flops(found), run_probe(exp)
    predicted = None if where is None else work.at(where.pace(found.latents, found.settings["dtype"])[0])
    return measured.price(exp), measured.lines(exp, work, predicted)
