"""One GPU against the CPU: equal up to rounding, bfloat16, a ratio of 1, memory within the plan, options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.api import BenchError
from bench.suite.prepared import make_backbone, make_evaluator
from bench.train.trainer import Trainer
from tests.helpers import parity
from tests.helpers.nano_suite import first_run, tiny
from tests.helpers.on_device import outputs, update_in_fresh_process
from tools.random_checkpoint import write_checkpoint
from tools.speed.settings import OPTIONS, TINY, checkpoint_configs

BOUNDS = {"velocity": 1e-5, "gradient": 1e-4, "pixels": 1e-4}
"""Largest difference between a GPU and a CPU in float32, over the largest value: sums in another order, a hundred
roundings of 6e-8 each. Without TF32 (2^-11), which torch's default allows for convolutions: those of the VAE, and the
one that embeds the patches."""
BFLOAT16 = {"velocity": 0.1, "gradient": 0.1}
"""Of bfloat16 to float32: a few roundings of 2^-8 each, under guidance 6; a gradient passes twice as many layers."""
CHANGED = {
    "base_weights": {"velocity": 0.1, "gradient": 0.3},
    "idle_models": {"velocity": 0.0, "gradient": 0.0, "pixels": 0.0},
    "attention": BFLOAT16,
    "lora_products": BFLOAT16,
    "guidance_branches": BFLOAT16,
    "execution": BFLOAT16,
}
"""Of an option to the default, in bfloat16, on one device. 8 bits: half a step of 1/127 per weight; other kernels and
batches round elsewhere."""
VALUES = [(name, value) for name, values in OPTIONS.items() for value in values]


def compare(what: str, got: dict[str, Tensor], want: dict[str, Tensor], bounds: dict[str, float]) -> None:
    for name, bound in bounds.items():
        top = want[name].abs().max()
        parity.within(f"{what}: {name} over the largest", got[name] / top, want[name] / top, bound)


@pytest.fixture(scope="module")
def on_cpu(folder: Path) -> dict[str, Tensor]:
    return outputs(folder, "cpu")


@pytest.fixture(scope="module")
def in_bfloat16(folder: Path, device: str) -> dict[str, Tensor]:
    return outputs(folder, device, dtype="bfloat16")


def test_a_device_computes_what_the_cpu_computes(folder: Path, device: str, on_cpu: dict[str, Tensor]) -> None:
    exact = dict.fromkeys(BOUNDS, 0.0)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = outputs(folder, device)
    compare(f"{device} to CPU", found, on_cpu, exact if device == "cpu" else BOUNDS)


def test_bfloat16_is_float32_but_for_rounding(
    device: str, in_bfloat16: dict[str, Tensor], on_cpu: dict[str, Tensor]
) -> None:
    compare(f"bfloat16 on {device}", in_bfloat16, on_cpu, BFLOAT16)
    assert not torch.equal(in_bfloat16["velocity"], on_cpu["velocity"]), "it was computed in float32"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ratio_is_one_before_the_first_update(device: str, dtype: str, tmp_path: Path) -> None:
    """With one shape in rollout and training, as in the full-size suites."""
    places = (f"backbone.train.device={device}", f"backbone.train.dtype={dtype}")
    job = first_run(tiny("budget.updates=1", "budget.micro_batch=1", "budget.guidance=2.0", *places), tmp_path)
    evaluators = {name: make_evaluator(job.prepared, name) for name in job.suite.all_evaluators}
    trainer = Trainer.new(job, make_backbone(job.prepared), evaluators)
    before = [p.detach().clone() for p in trainer.backbone.parameters()]
    trainer.run_update(0)
    assert trainer.audit is not None
    assert trainer.audit["passed"], trainer.audit
    changed = [not torch.equal(a, b) for a, b in zip(before, trainer.backbone.parameters(), strict=True)]
    assert any(changed)


@pytest.mark.slow
def test_an_update_needs_no_more_memory_than_its_plan(device: str, tmp_path: Path) -> None:
    """On a GPU: the one-GPU suite at its size, with 4 of the 54 blocks. On a CPU: the smallest size, in miniature."""
    small = device == "cpu"
    configs = checkpoint_configs(tiny=True) if small else checkpoint_configs(tiny=False, layers=4)
    write_checkpoint(tmp_path / "checkpoint", configs)
    figures = update_in_fresh_process(tmp_path / "checkpoint", device, list(TINY) if small else [])
    assert "refused" not in figures, figures
    assert figures["plan_ratio"] >= 1, figures
    assert figures["peak_gb"] >= figures["load_peak_gb"] > 0


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_an_option_changes_what_it_says(
    folder: Path, device: str, in_bfloat16: dict[str, Tensor], name: str, value: str
) -> None:
    if (name, device) == ("execution", "cpu"):
        pytest.skip("it compiles for minutes; `make faults` does so on a smaller model, in test_speed_options.py")
    try:
        got = outputs(folder, device, dtype="bfloat16", **{name: value})
    except BenchError as error:
        if name not in str(error):
            raise
        pytest.skip(f"{name}={value} is not available here: {error}")
    compare(f"{name}={value} on {device}", got, in_bfloat16, CHANGED[name])
    if name == "base_weights":
        assert not torch.equal(got["velocity"], in_bfloat16["velocity"]), "the base was not quantized"


def test_the_options_have_bounds() -> None:
    assert CHANGED.keys() == OPTIONS.keys()
