"""`bench plan`'s memory per GPU: paper arithmetic, sharding by hand, and what is said where it does not fit."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from bench.api import ModelCost
from bench.backbones.hunyuanvideo15.cost import Transformer
from bench.cli import main
from bench.core.provenance import ROOT
from bench.plan.hardware import gpu_hardware
from bench.plan.memory import ADAM_BYTES, Anchors, Memory, activation_bytes, memory_use, workspace_bytes
from bench.plan.workload import suite_model as sizes
from bench.suite.load import load_suite
from bench.suite.prepared import PreparedSuite, prepare

PAPER = ROOT / "bench" / "configs" / "hunyuanvideo15_480p.yaml"
RELEASED = Transformer()
TOKENS = {"480x848x21": 9_540, "480x848x81": 33_390, "480x848x121": 49_290, "720x1280x121": 111_600}
"""Latent tokens of the sizes that the paper arithmetic below is about."""
MEMORY = {"480x848x21": (2.1, 1.0, 23), "480x848x81": (7.4, 3.5, 32), "480x848x121": (10.9, 5.1, 38)} | {
    "720x1280x121": (24.7, 11.6, 62)
}
"""GB of checkpoints, of one block, and in total, LoRA rank 32; that table assumes 104 kB per token and block (the
backbone here, without autocast, takes 141), one branch, and neither text encoders nor a VAE in memory."""


@pytest.mark.parametrize("video", MEMORY)
def test_memory_is_that_of_the_paper_arithmetic(video: str) -> None:
    tokens, (checkpoints, block, total) = TOKENS[video], MEMORY[video]
    each, units, layers = 104_000 / 2048, tokens * RELEASED.width, RELEASED.num_layers
    kept = activation_bytes(units, layers, branches=1, checkpoint_bytes=2, block_bytes=each)
    assert kept / 1e9 == pytest.approx(checkpoints + block, abs=0.15)
    trained = RELEASED.lora_parameters(32, "attention+ff") * ADAM_BYTES
    used = Memory(RELEASED.parameters * 2, trained, activations=kept, workspace=workspace_bytes(units))
    assert used.peak / 1e9 == pytest.approx(total, abs=1)
    stored = activation_bytes(units, layers, branches=1, checkpoint_bytes=None, block_bytes=92_000 / 2048)
    assert stored / 1e9 == pytest.approx(tokens * 4.968e-3, rel=1e-3)


@pytest.mark.parametrize(("method", "networks", "stored"), [("awm:AWM", 2, 1), ("rvm:RVM", 1, 0)])
def test_an_old_policy_is_one_more_adapter(method: str, networks: int, stored: int) -> None:
    """And not another copy of the base, whose velocity a forward method may need, too."""
    rows = "rows=[{{method: {}, kl: none, label: r}}]"
    plain, own = (
        prepare(load_suite(PAPER, ["variant=setting_b", rows.format(name)]))
        for name in ("flow_grpo", f"'methods.{method}'")
    )
    assert Anchors.from_suite(own) == Anchors(networks, stored, probed=False)
    model, hardware = sizes(own), gpu_hardware("h100")
    assert model is not None
    (with_old, host), (without, plain_host) = (memory_use(each, model, hardware) for each in (own, plain))
    adapter = model.adapter_parameters * 4
    on_gpu = with_old.trained - without.trained
    assert on_gpu + host["anchors"] - plain_host["anchors"] == pytest.approx(stored * adapter)
    assert with_old.weights == without.weights


@pytest.mark.parametrize(
    ("method", "kl", "latents"),
    [
        ("flow_grpo", "none", 1 + 5 * 2),
        ("flow_grpo", "fixed", 1 + 5 * 3),
        ("grpo_guard", "none", 1 + 5 * 3),
        ("awm", "none", 1),
    ],
)
def test_what_a_rollout_keeps_is_counted(method: str, kl: str, latents: int) -> None:
    """The latents before and after each trained step, an anchor's velocity, an old mean; a forward method's video."""
    row = f"rows=[{{method: {method}, kl: {kl}, label: r}}]"
    own = prepare(load_suite(PAPER, ["variant=setting_b", row, "budget.train_steps=5"]))
    model = sizes(own)
    assert model is not None
    _, host = memory_use(own, model, gpu_hardware("h100"))
    samples = own.suite.budget.prompts * own.suite.budget.group_size
    assert host["trajectories"] == samples * math.prod(model.latent_shape) * 4 * latents


FULL = ("backbone.train.lora_rank=0", "backbone.train.dtype=float32")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--gpu-memory", "40"),
            r"about 52 GB, and h100 x 1 has 40 GB each: set backbone.train.idle_models=cpu and set "
            r"backbone.train.base_weights=int8\.",
        ),
        (("--gpu-memory", "48"), r"set backbone.train.idle_models=cpu, or set backbone.train.base_weights=int8\."),
        (("--gpu-memory", "30"), r"lora_products=base_dtype and use \d+ GPUs with --shard full\."),
        (
            ("--gpu-memory", "48", "--gpus", "8"),
            "shard the weights with --shard full, or share each sample among 2 GPUs",
        ),
        (("backbone.train.gradient_checkpointing=false",), r"set backbone.train.gradient_checkpointing=true\."),
        (
            ("backbone.train.vae_tiling=null", "--gpu-memory", "60"),
            r"set backbone.train.vae_tiling='\[256, 256, 16, 16\]'\.",
        ),
        (("budget.micro_batch=8",), r"set budget.micro_batch=1\."),
        (("--gpu-memory", "1"), "take a smaller size or a GPU with more memory"),
        (
            ("backbone.train.size=[81, 480, 832]", "--gpu-memory", "48", "--gpus", "16"),
            r"--shard full, or share each sample among 2 GPUs \(backbone.train.parallel='\{context: 2\}'\)\.$",
        ),
        (FULL, "use 8 GPUs with --shard full"),
    ],
)
def test_what_does_not_fit_is_shown_and_then_refused(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(PAPER), "variant=setting_b", *words]) == 2
    out, err = capsys.readouterr()
    assert re.search(r"memory per GPU: about \d+ of \d+ GB \(does not fit\)", out)
    assert "all runs" in out
    assert err.startswith("bench plan: hunyuanvideo15_480p/setting_b does not fit: each GPU needs about ")
    assert err.count("\n") == 1
    assert re.search(message, err), err


@pytest.mark.parametrize(
    ("words", "gpus", "shard"),
    [
        (("--gpu-memory", "40", "--gpus", "1"), 4, "full"),
        (("backbone.train.gradient_checkpointing=true",), 1, None),
        (FULL, 8, "full"),
    ],
)
def test_what_is_proposed_is_enough(words: tuple[str, ...], gpus: int, shard: Any) -> None:
    more = ["--gpus", str(gpus)] if gpus > 1 else []
    more += ["--shard", shard] if shard else []
    assert main(["plan", str(PAPER), "variant=setting_b", *words, *more]) == 0


def suite_model(prepared: PreparedSuite) -> ModelCost:
    """The sizes that the suite's backbone states."""
    model = sizes(prepared)
    assert model is not None
    return model


# memory over several GPUs -------------------------------------------------------------------------------------
def used(*overrides: str, **words: Any) -> Memory:
    suite = load_suite(PAPER, ["variant=setting_b", *overrides])
    return memory_use(prepare(suite), suite_model(prepare(suite)), gpu_hardware(**words))[0]


def test_full_training_on_eight_gpus_by_hand() -> None:
    """8.327e9 weights: 4 bytes each for weight, gradient and two moments are 133.2 GB, an eighth of it 16.7 GB.

    Beside it: VAE 1.261e9 x 4 = 5.04 GB; a float32 checkpoint of 33,427 tokens x 2048 per block and branch, 2 x 54 of
    them, 29.6 GB, and the block at work 33,427 x 184 kB = 6.15 GB; workspace 33,427 x 60 kB + 0.6 = 2.6 GB; two of 54
    blocks whole, 0.604 GB each in float32, with their gradients, and the 0.17e9 weights outside likewise, 3.8 GB;
    a copy of the gradient before each step, two for the KL's part, 33.3 / 8 = 4.16 GB each.
    """
    found = used(*FULL, gpus=8, shard="full")
    block = RELEASED.block_parameters
    outside = 8_326_608_160 - 54 * block
    assert block * 4 / 1e9 == pytest.approx(0.604, abs=1e-3)
    assert outside / 1e9 == pytest.approx(0.17, abs=0.01)
    assert found.trained == 8_326_608_160 * 16 / 8
    assert found.trained / 1e9 == pytest.approx(133.2 / 8, abs=0.01)
    assert found.weights == pytest.approx(5.044e9)
    assert found.activations == pytest.approx(33_427 * (2 * 54 * 2048 * 4 + 184_000))
    assert found.gathered_training == pytest.approx(2 * (outside + 2 * block) * 4)
    assert found.gradients == pytest.approx(3 * 33.306e9 / 8, rel=1e-4)
    whole = 16.65 + 5.04 + 29.58 + 6.15 + 2.6 + 3.8 + 3 * 4.16
    assert found.peak / 1e9 == pytest.approx(whole, abs=0.2)


def test_nothing_is_spread_without_shard() -> None:
    alone, eight = used(*FULL), used(*FULL, gpus=8)
    assert alone.trained == eight.trained == 8_326_608_160 * 16
    assert (eight.weights, eight.gathered_training) == (alone.weights, 0.0)
    assert used(gpus=8).weights == used().weights


def test_shards_of_a_frozen_base_and_its_lora() -> None:
    """16.65 GB of bfloat16 base and the LoRA's states are dealt out, SAGE's anchor is not.

    "grads" keeps the whole base gathered from a trained step's forward to its backward pass.
    """
    whole, full, grads = used(), used(gpus=8, shard="full"), used(gpus=8, shard="grads")
    base, lora = 8_326_608_160 * 2, RELEASED.lora_parameters(64, "attention+ff")
    assert whole.weights - full.weights == pytest.approx(base * 7 / 8)
    assert whole.trained == lora * (16 + 4)
    assert full.trained == grads.trained == lora * (16 / 8 + 4)
    assert full.weights == grads.weights
    two = (8_326_608_160 - 52 * RELEASED.block_parameters) * 2 + lora * 4 * 2 / 54
    gradients = lora * 4 * 2 / 54
    assert full.gathered == grads.gathered == pytest.approx(two)
    assert full.gathered_training == pytest.approx(two + gradients)
    assert grads.gathered_training == pytest.approx(base + lora * 4 + gradients)
    assert full.peak < grads.peak < whole.peak, "the LoRA's states are an eighth with both"


def test_loading_puts_the_whole_transformer_on_each_gpu() -> None:
    small = used(*FULL, "backbone.train.size=[5, 480, 480]", gpus=64, shard="full")
    assert small.peak == small.loading == pytest.approx(8_326_608_160 * 4 + 1.261e9 * 4)


def test_copies_of_all_weights_lie_where_the_suite_says() -> None:
    """The base and SAGE's moving anchor: on the host by default, where one of them visits the GPU at a time."""
    suite = load_suite(PAPER, ["variant=setting_b", *FULL])
    waiting, host = memory_use(prepare(suite), suite_model(prepare(suite)), gpu_hardware())
    beside = used(*FULL, "backbone.train.anchors_on=model")
    copy = 8_326_608_160 * 4
    assert (host["anchors"], waiting.visiting) == (2 * copy, copy)
    assert (beside.trained - waiting.trained, beside.visiting) == (2 * copy, 0)
    lonely = load_suite(PAPER, ["variant=setting_b", *FULL, "rows=[{method: cps, kl: none}]"])
    without, host = memory_use(prepare(lonely), suite_model(prepare(lonely)), gpu_hardware())
    assert (host["anchors"], without.visiting, without.gradients) == (copy, 0, copy)


def test_context_parallelism_splits_activations() -> None:
    suite = load_suite(PAPER, ["variant=setting_b", "backbone.train.size=[81, 480, 832]"])
    found = suite_model(prepare(suite))
    alone, split = (memory_use(prepare(suite), found, gpu_hardware(gpus=n, context=n))[0].activations for n in (1, 8))
    latents, text = found.latents, found.text  # every GPU has the whole text
    assert alone / split == pytest.approx((latents + text) / (latents / 8 + text))
