"""Suites at their real size on one GPU: seconds and memory of an update beside `bench plan`, by option and budget.

The models are those of a random checkpoint (`tools.random_checkpoint`), loaded and trained by the code of a run. Only
numbers of samples and steps are small, and the text encoders, which are gone when the transformer comes. A setting
runs under the smallest budget that its plan fits in, and under larger ones while memory runs out.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.algorithm.optimizers import make_optimizer
from bench.algorithm.rollout import Rollout, Sampler
from bench.algorithm.update import StepUpdater, UpdateConfig
from bench.api import Backbone, BenchError, Rewards
from bench.core.ledger import Ledger
from bench.core.progress import inform
from bench.core.rng import normal, stream
from bench.flow import sigma_schedule
from bench.plan.fit import host_bytes
from bench.plan.hardware import Hardware
from bench.plan.memory import FIXED, memory_use
from bench.plan.probe import wall_seconds
from bench.plan.workload import suite_model
from bench.suite.load import load_suite
from bench.suite.packaged import suite_file
from bench.suite.prepared import PreparedSuite, make_backbone, prepare
from tools.random_checkpoint import Configs, mini, released
from tools.speed.clock import GB, peak_gb, reset_peak
from tools.speed.random_model import perturb_policy

OPTIONS: dict[str, tuple[str, ...]] = {
    "base_weights": ("int8",),
    "idle_models": ("cpu",),
    "attention": ("cudnn", "flash", "flash3", "sage"),
    "lora_products": ("base_dtype",),
    "guidance_branches": ("joint",),
    "execution": ("compiled",),
}
"""Options of `backbone.train` for speed and memory, with their values beside the default."""
SMALLEST = {"base_weights": "int8", "idle_models": "cpu"}
"""Options for the smallest card."""
BUDGETS = (24.0, 48.0, 80.0)
"""Memory that cards have, in GB of 10^9 bytes."""
SINGLE, WHOLE = "hunyuanvideo15_single_gpu", "hunyuanvideo15_480p"
SHORT = (
    *("budget.prompts=1", "budget.group_size=2", "budget.steps=2", "budget.train_steps=1"),
    "rows=[{method: sage_grpo, kl: dual}]",
    "variants=null",
    "seeds=[0]",
    "prompts={train: bench/prompts/nano_train.txt, heldout: bench/prompts/nano_heldout.txt}",
    "kl_probe_every=0",
    "reward={detectors: {colour_entropy: 1.0}}",
    "evaluation={evaluators: [detectors], steps: 2, videos_per_prompt: 1, every: null, keep_videos: 0}",
    "evaluator_params={}",
)
"""Two samples, which a group needs, with one trained step; evaluators without weights, which do not run; prompts with
few tokens under the random checkpoint's tokenizer, which is nano's."""
TINY = ("backbone.train.size=[5, 16, 16]", "backbone.train.vae_tiling=null")
"""The smallest videos with which the released models and their miniature run and the evaluators work."""


@dataclass(frozen=True)
class Setting:
    """A packaged suite with changes, and how often its update is repeated; the last repeat counts."""

    name: str
    suite: str
    overrides: tuple[str, ...] = ()
    repeats: int = 2


def settings() -> list[Setting]:
    """The settings in the order of their worth: both suites, the smallest one, then each option alone."""
    small = tuple(f"backbone.train.{name}={value}" for name, value in SMALLEST.items())
    found = [
        Setting("single-GPU suite", SINGLE),
        Setting(" and ".join(each.removeprefix("backbone.train.") for each in small), SINGLE, small),
        Setting("480p suite, 81 frames", WHOLE, repeats=1),
    ]
    for name, values in OPTIONS.items():
        found += [Setting(f"{name}={value}", SINGLE, (f"backbone.train.{name}={value}",)) for value in values]
    return list({(*setting.overrides, setting.suite): setting for setting in found}.values())


def checkpoint_configs(tiny: bool, layers: int | None = None) -> Configs:
    """The released transformer and VAE with small text encoders of the same width, or all in miniature.

    `layers`: blocks of the transformer, where fewer than the released ones are wanted.
    """
    if tiny:
        return mini()
    full = released(layers)
    small = {"num_hidden_layers": 3, "intermediate_size": 64, "vocab_size": 512}
    text = {**full.text_encoder, **small, "bos_token_id": None, "eos_token_id": None}
    return replace(full, text_encoder=text, text_encoder_2={**full.text_encoder_2, "num_layers": 1})


@contextmanager
def memory_limit(device: torch.device, gb: float) -> Iterator[None]:
    """Let torch allocate at most `gb` GB less the GPU's context within the context; no limit on a CPU."""
    if device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (gb * GB - FIXED) / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def planned_gb(prepared: PreparedSuite, device: torch.device) -> float:
    """Peak by the plan in GB: of the GPU's memory, or of one process on the host."""
    if device.type != "cuda":
        return (host_bytes(prepared) or 0.0) / GB
    model = suite_model(prepared)
    assert model is not None, "HunyuanVideo-1.5 states its sizes"
    card = torch.cuda.get_device_properties(device)
    return memory_use(prepared, model, Hardware(card.name, 1, card.total_memory / GB))[0].peak / GB


class SuiteUpdate:
    """One rollout and update of a suite's first row, with a fixed reward, and one decoded video."""

    def __init__(self, prepared: PreparedSuite, device: torch.device):
        self.prepared, self.device, self.budget = prepared, device, prepared.suite.budget
        texts = prepared.prompts.train[: self.budget.prompts]
        made: list[Backbone] = []
        self.load_seconds = wall_seconds(device, lambda: made.append(make_backbone(prepared, prompts=texts)))
        self.backbone: Any = made[0]
        self.backbone.reset(stream(0, "initial_policy"))
        self.row, self.ledger = prepared.rows[0], Ledger()
        self.method: Any = prepared.method(self.row, math.prod(self.backbone.latent_shape))
        self.optimizer = make_optimizer(self.budget, self.backbone.parameters())
        self.cond = self.backbone.encode(texts)

    @torch.no_grad()
    def velocity(self) -> Tensor:
        """The velocity of a policy away from the base at a fixed point, on the CPU; the policy is reset after it."""
        perturb_policy(self.backbone)
        x = normal(0, [("speed", "x")], self.backbone.latent_shape)
        sigma = sigma_schedule(self.budget.steps, self.budget.shift)[1:2]
        v: Tensor = self.backbone.velocity(x, sigma, self.cond.take([0]), self.budget.guidance).cpu()
        self.backbone.reset(stream(0, "initial_policy"))
        return v

    def once(self) -> dict[str, float]:
        """Seconds of the rollout with its anchors, of the update, and of decoding one video."""
        anchors = [name for name, rule in self.row.kl_policy.anchors().items() if rule.network]
        for name in anchors:
            self.backbone.refresh_anchor(name)
        rewards = Rewards({"reward": torch.tensor([[0.0, 1.0]])}, {"reward": 1.0})
        sampler = Sampler(self.backbone, self.method, self.prepared.rollout_config(0), self.ledger)
        rollouts: list[Rollout] = []
        seconds = {"rollout": self._wall(lambda: rollouts.append(sampler.sample(self.cond, 0, anchors)))}
        policy, config = self.row.kl_policy, UpdateConfig(self.budget, seed=0)
        updater = StepUpdater(self.backbone, self.method, policy, self.optimizer, config, self.ledger)
        seconds["update"] = self._wall(lambda: updater(rollouts[0], rewards, policy.init_state(), 0))
        seconds["decode"] = self._wall(lambda: self.backbone.decode(rollouts[0].x0[:1]))
        return seconds

    def _wall(self, work: Callable[[], Any]) -> float:
        return wall_seconds(self.device, work)


class SettingsBenchmark:
    """Measures settings on one device, with the models of a folder. `more`: overrides of all settings."""

    def __init__(self, folder: Path, device: torch.device, more: Sequence[str] = ()):
        self.folder, self.device, self.more = folder, device, more
        self.reference: dict[str, Tensor] = {}
        """Velocity of the first setting of each suite."""

    def prepared(self, setting: Setting) -> PreparedSuite:
        """The suite with the setting's changes."""
        where = (f"backbone.checkpoint={self.folder}", f"backbone.train.device={self.device.type}")
        return prepare(load_suite(suite_file(setting.suite), [*SHORT, *self.more, *where, *setting.overrides]))

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Figures of a setting, or under "refused" the sentence with which the backbone refuses it."""
        figures: dict[str, Any] = {"setting": setting.name, "suite": setting.suite}
        try:
            prepared = self.prepared(setting)
            planned = planned_gb(prepared, self.device)
            for budget in self._budgets(planned):
                measured = self._within(prepared, setting, budget)
                if measured is not None:
                    measured["plan_ratio"] = planned / measured["peak_gb"]
                    return {**figures, "planned_gb": planned, "budget_gb": budget, **measured}
                inform(f"speed: {setting.name} needs more than {budget:g} GB")
        except BenchError as error:
            return {**figures, "refused": str(error)}
        return {**figures, "planned_gb": planned, "refused": "it needs more memory than this card has."}

    def _budgets(self, planned: float) -> list[float]:
        """The budgets to try, in GB; those that the plan exceeds are left out, unless that leaves none."""
        if self.device.type != "cuda":
            return [BUDGETS[0]]
        total = torch.cuda.get_device_properties(self.device).total_memory / GB
        possible = sorted({*(budget for budget in BUDGETS if budget < total), total})
        return [budget for budget in possible if budget >= planned] or possible[-1:]

    def _within(self, prepared: PreparedSuite, setting: Setting, budget: float) -> dict[str, Any] | None:
        """The figures under a limit of memory; None where it runs out."""
        reset_peak(self.device)
        try:
            with memory_limit(self.device, budget):
                return self._figures(prepared, setting)
        except torch.OutOfMemoryError:
            return None
        finally:
            gc.collect()  # modules are in reference cycles

    def _figures(self, prepared: PreparedSuite, setting: Setting) -> dict[str, Any]:
        work = SuiteUpdate(prepared, self.device)
        loaded = peak_gb(self.device)
        v = work.velocity()
        base = self.reference.setdefault(setting.suite, v)
        seconds = [work.once() for _ in range(setting.repeats)][-1]
        return {
            "load_seconds": work.load_seconds,
            "load_peak_gb": loaded,
            "seconds": seconds,
            "peak_gb": peak_gb(self.device),
            "difference": float((v - base).norm() / base.norm()),
        }


def measure_settings(
    folder: Path, device: torch.device, *, tiny: bool, until: float, chosen: Sequence[Setting] | None = None
) -> list[Mapping[str, Any]]:
    """Figures of all settings. `until`: `time.monotonic()` at which the last one should be done.

    A setting for which less than the mean time of those before it is left is named under "refused".
    """
    benchmark = SettingsBenchmark(folder, device, TINY if tiny else ())
    figures: list[Mapping[str, Any]] = []
    seconds: list[float] = []
    for setting in settings() if chosen is None else chosen:
        start = time.monotonic()
        if start + sum(seconds) / max(1, len(seconds)) > until:
            figures.append({"setting": setting.name, "suite": setting.suite, "refused": "no time was left for it."})
            continue
        figures.append(benchmark.measure(setting))
        seconds.append(time.monotonic() - start)
    return figures
