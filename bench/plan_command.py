"""`bench plan`: options to plans, plans to text or JSON."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence

from bench.base import BenchError
from bench.config import Experiment
from bench.machines import Machine, machine
from bench.plan import on_cpu, plan
from bench.plan_page import page, study
from bench.provenance import plain
from bench.workload import Price, flops, model


def plans(suites: Sequence[Experiment], args: argparse.Namespace) -> str:
    """Every variant's plan, and their sum; one JSON list with --json."""
    if not 0 <= args.scorer_seconds < math.inf:
        raise BenchError(f"--scorer-seconds is {args.scorer_seconds}: give a finite number of at least 0.")
    given = args.gpu or args.tflops or args.gpu_memory or args.gpus != 1 or args.context_parallel != 1
    where = None
    if given or not all(on_cpu(exp) for exp in suites):
        where = machine(args.gpu or "h100", args.gpus, args.gpu_memory, args.tflops, args.context_parallel)
    measured: Price | None = None
    lines: list[str] = []
    if args.probe:
        measured, lines = _probe(suites[0], where)
    made = [plan(exp, args.results, where, args.scorer_seconds, measured=measured) for exp in suites]
    if args.json:
        return json.dumps(plain(made), indent=1)
    pages = [page(each) for each in made]
    if len(made) > 1:
        pages.append(study(made))
    return "\n\n".join([*pages, *(["\n".join(lines)] if lines else [])])


def _probe(exp: Experiment, where: Machine | None) -> tuple[Price, list[str]]:
    """Seconds as measured on the suite's own backbone, and predicted against measured in words."""
    from bench.calibrate import probe

    found = model(exp)
    work, measured = flops(found), probe(exp)
    predicted = None if where is None else work.at(where.pace(found.latents)[0])
    return measured.price(exp), measured.lines(exp, work, predicted)
