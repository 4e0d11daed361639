"""`bench plan`: the cost of a suite before it runs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.cli.command import Command
from bench.cli.consent import add_code_argument
from bench.cli.output import print_result
from bench.cli.suite_arguments import add_suite_arguments, prepare_suites
from bench.core.errors import BenchError
from bench.core.parallelism import SHARDS
from bench.plan.hardware import GPUS, Hardware, gpu_hardware

if TYPE_CHECKING:
    from bench.plan.workload import UnitCost
    from bench.suite.prepared import PreparedSuite

DEFAULT_GPU = "h100"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_suite_arguments(parser)
    add_code_argument(parser)
    parser.add_argument("--gpu", default=None, help=f"one of {', '.join(GPUS)} (default: {DEFAULT_GPU})")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that share one run (default: 1)")
    parser.add_argument(
        "--gpu-memory", type=float, default=None, metavar="GB", help="memory of one GPU (default: that of --gpu)"
    )
    parser.add_argument("--tflops", type=float, default=None, help="achieved TFLOP/s of one GPU (default: assumed)")
    parser.add_argument(
        "--context-parallel",
        type=int,
        default=None,
        metavar="N",
        help="GPUs that share one sample (default: the suite's)",
    )
    parser.add_argument("--shard", choices=SHARDS, default=None, help="shard the weights over the GPUs of a run")
    parser.add_argument(
        "--scorer-seconds", type=float, default=0.0, metavar="S", help="seconds of all evaluators per video"
    )
    parser.add_argument("--probe", action="store_true", help="time a few steps of the real backbone on this machine")


def execute(args: argparse.Namespace) -> int:
    suites = prepare_suites(args)
    from bench.plan.estimate import on_cpu, plan_suite

    if not 0 <= args.scorer_seconds < math.inf:
        raise BenchError(f"--scorer-seconds is {args.scorer_seconds}: give a finite number of at least 0.")
    cpu = not _has_gpu_options(args) and all(on_cpu(prepared.suite) for prepared in suites)
    hardware = [None if cpu else _gpus(prepared, args) for prepared in suites]
    measured, probe_lines = _probe(suites[0], hardware[0]) if args.probe else (None, [])
    plans = [
        plan_suite(prepared, args.results, machine, evaluator_seconds=args.scorer_seconds, probed=measured)
        for prepared, machine in zip(suites, hardware, strict=True)
    ]
    print_result(args, _text(plans, probe_lines), plans)
    refusal = next((each["refused"] for each in plans if each["refused"]), None)
    if refusal:
        raise BenchError(refusal)
    return 0


def _has_gpu_options(args: argparse.Namespace) -> bool:
    """Whether an option about GPUs is used."""
    values = (args.gpu, args.tflops, args.gpu_memory, args.context_parallel, args.shard)
    return args.gpus != 1 or any(value is not None for value in values)


def _gpus(prepared: PreparedSuite, args: argparse.Namespace) -> Hardware:
    """The GPUs of the options; the context-parallel degree is the suite's unless --context-parallel sets it."""
    return gpu_hardware(
        args.gpu or DEFAULT_GPU,
        gpus=args.gpus,
        memory_gb=args.gpu_memory,
        tflops=args.tflops,
        context=prepared.cp_degree if args.context_parallel is None else args.context_parallel,
        shard=args.shard,
    )


def _probe(prepared: PreparedSuite, hardware: Hardware | None) -> tuple[UnitCost, list[str]]:
    """Seconds measured on the suite's own backbone, and lines that compare them with the predicted ones."""
    from bench.plan.probe import run_probe
    from bench.plan.workload import UnitCost, suite_model, unit_flops

    model, timings = suite_model(prepared), run_probe(prepared)
    work = UnitCost(0.0, 0.0, None) if model is None else unit_flops(model)
    predicted = None
    if hardware is not None and model is not None:
        predicted = work.at(hardware.throughput(model.latents, model.dtype)[0])
    return timings.unit_cost(prepared.suite), timings.lines(prepared.suite, work, predicted)


def _text(plans: Sequence[dict[str, Any]], probe_lines: Sequence[str]) -> str:
    """Every variant's plan, their sum, and the probe's lines."""
    from bench.plan.page import plan_page, study_totals

    paragraphs = [plan_page(each) for each in plans]
    if len(plans) > 1:
        paragraphs.append(study_totals(plans))
    if probe_lines:
        paragraphs.append("\n".join(probe_lines))
    return "\n\n".join(paragraphs)


COMMAND = Command(
    name="plan",
    help="predict the cost of a suite before it runs: NFE, FLOPs, memory, hours",
    add_arguments=add_arguments,
    execute=execute,
    json="a list with the plan of each suite",
    progress=True,
    examples=(
        "bench plan hunyuanvideo15_480p --gpus 64",
        "bench plan hunyuanvideo15_480p --gpus 8 --shard full",
        "bench plan hunyuanvideo15_single_gpu --gpu h200 --scorer-seconds 2",
        "bench plan nano --probe",
    ),
)
