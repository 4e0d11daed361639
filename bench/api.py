"""The interfaces of plug-ins: methods, evaluators and backbones. A plug-in imports this module and `bench.flow` only.

Notation: `sigma` is the noise level (1 = noise, 0 = video), `x = (1 - sigma) * x0 + sigma * noise`, `v = noise - x0`.
A method is a frozen dataclass of hyper-parameters with pure functions. The harness owns the models, noise, prompts,
budget, optimizer and rewards.

Letters of shapes: b samples; c f h w channels, frames, height and width of a latent; t steps of a rollout and its
t1 = t + 1 noise levels; n trained steps; k advantages per sample; p prompts; g samples of a group.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.core.budget import RESERVED_FIELDS, AdvantageRule, Budget
from bench.core.errors import BenchError, BudgetFieldError, DivergedError
from bench.core.parallelism import Shard, context_degree
from bench.core.rewards import Rewards, rule_advantages

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "LATE",
    "AdvantageRule",
    "Backbone",
    "BenchError",
    "Budget",
    "ChecksSuite",
    "Conditioning",
    "DivergedError",
    "Evaluator",
    "Gaussian",
    "Method",
    "Metric",
    "Rewards",
    "RoundsLatents",
    "Shard",
    "ShardsWeights",
    "StepView",
    "context_degree",
    "latent_mean",
]

LATE = {"late": True}
"""Metadata of a method's field that was added after results had been stored: `field(default=..., metadata=LATE)`. A
record lists such a field only where it differs from its default, so older records of the method stay comparable."""


class Gaussian(NamedTuple):
    """One reverse step p(x_next | x, v): a diagonal Gaussian with one standard deviation per sample."""

    mean: Tensor
    """[b, ...], like x."""
    std: Tensor
    """[b], the standard deviation of the whole step; 0 for a deterministic step."""


def latent_mean(values: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
    """Mean over all dimensions but the batch, for latents of any rank."""
    return values.reshape(len(values), -1).mean(1)


def _refuse_zero_std(std: Float[Tensor, "b"], what: str) -> None:
    """Raise instead of returning the infinite or undefined density of a deterministic step."""
    if bool((std <= 0).any()):
        raise BenchError(
            f"{what} is undefined for a step with standard deviation 0 (sample {int((std <= 0).nonzero()[0])}): "
            "set eta above 0, or do not train a deterministic step."
        )


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A GRPO variant: the kernel of its noisy steps, its advantages, its loss and the weight of each step.

    Hooks receive tensors, never the model, the optimizer, a seed or the budget. A subclass that declares a field of
    the budget raises `BudgetFieldError` when the class is created.

    A field `eta` is the noise scale of the kernel, finite and at least 0. It is optional: the noise policies of a
    suite other than `native` set it.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    paper: ClassVar[str]
    """Title and identifier of the paper."""
    clip_range: float = 1e-4
    """PPO clip range, above 0, of the ratio of mean log-probabilities. FlowGRPO, DanceGRPO and SAGE-GRPO use 1e-4."""
    equalizer: Literal["off", "derived", "released"] = "off"
    """Temporal gradient equalizer (SAGE-GRPO, "Temporal Gradient Equalizer"): see `step_weights`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = {name for base in cls.__mro__ for name in inspect.get_annotations(base)}
        reserved = sorted(RESERVED_FIELDS & names)
        if reserved:
            raise BudgetFieldError(
                f"method class {cls.__module__}:{cls.__qualname__} declares the field '{reserved[0]}', which belongs "
                "to the suite's budget: remove it from the class and set it once for all rows under 'budget:' in the "
                "YAML."
            )

    def __post_init__(self) -> None:
        if not 0 < self.clip_range < math.inf:
            raise BenchError(
                f"{type(self).__name__}: clip_range is {self.clip_range}; set it to a finite value above 0."
            )
        if self.equalizer not in ("off", "derived", "released"):
            raise BenchError(
                f"{type(self).__name__}: equalizer is {self.equalizer!r}; choose one of 'off', 'derived', 'released'."
            )
        eta = getattr(self, "eta", 0.0)
        if not 0 <= eta < math.inf:
            raise BenchError(f"{type(self).__name__}: eta is {eta}; set it to a finite value of at least 0.")

    @abstractmethod
    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """The kernel of a noisy step from `sigma` to `sigma_next` < `sigma`; its mean is affine in v."""

    def log_prob(self, step: Gaussian, x_next: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
        """Log density of x_next with all constants, averaged over the elements of the latent; x_next is detached."""
        _refuse_zero_std(step.std, f"{type(self).__name__}.log_prob")
        std = step.std.reshape(-1, *[1] * (x_next.ndim - 1))
        terms = -((x_next.detach() - step.mean) ** 2) / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)
        return latent_mean(terms)

    def advantages(self, rewards: Rewards) -> Float[Tensor, "k p g"]:
        """One advantage per sample (k = 1), or one per reward; by default by the suite's rule."""
        rewards.check()
        if rewards.rule.std == "each":
            return torch.stack([rule_advantages(rewards[name], rewards.rule) for name in rewards.weights])
        return rule_advantages(rewards.total(), rewards.rule)[None]

    def select(self, adv: Float[Tensor, "k p g"]) -> Bool[Tensor, "p g"]:
        """Marks the samples that train (open division only); all by default."""
        return torch.ones(adv.shape[1:], dtype=torch.bool)

    def stochastic(self, sigmas: Float[Tensor, "t1"], update: int, rng: torch.Generator) -> Bool[Tensor, "t"]:
        """Marks the noisy steps of the rollout; all by default.

        With the decode rule `predicted_x0` the harness makes the last step deterministic.
        """
        return torch.ones(len(sigmas) - 1, dtype=torch.bool)

    def train_steps(self, sigmas: Float[Tensor, "t1"], n: int, rng: torch.Generator) -> Int[Tensor, "n"]:
        """Indices of the n steps that train, all of them noisy.

        Where a method does not override this, the harness draws n of the noisy steps, the same for all such methods.
        """
        return torch.randperm(len(sigmas) - 2, generator=rng)[:n].sort().values

    def step_weights(self, sigmas: Float[Tensor, "t1"]) -> Float[Tensor, "t"]:
        """Weight of each step's policy loss: ones, or the temporal gradient equalizer lower_median(N) / N_i.

        `derived`: N = |J| * |d log_prob / d mean| at x_next = mean + std, with J = d mean / d v from `transition`
        (affine in v, so J is its value at x = 0, v = 1); valid for every convention of the log-probability.
        `released`: N = |J| / std with std at least 1e-12, SAGE-GRPO's released code
        (hyvideo/schedulers/scheduling_flow_match_discrete.py, compute_log_prob_grad_norms).
        N counts as 1 where it is zero or not finite, and with `derived` at deterministic steps.
        """
        steps = len(sigmas) - 1
        if self.equalizer == "off":
            return torch.ones(steps, device=sigmas.device)
        sigma, sigma_next = sigmas[:-1].double(), sigmas[1:].double()
        zero = torch.zeros(steps, 1, dtype=torch.float64, device=sigmas.device)
        step = self.transition(zero, torch.ones_like(zero), sigma, sigma_next)
        slope = step.mean[:, 0].abs()
        if self.equalizer == "released":
            norm = slope / step.std.clamp_min(1e-12)
        else:
            std = torch.where(step.std > 0, step.std, torch.ones_like(step.std))
            with torch.enable_grad():
                mean = zero.clone().requires_grad_(True)
                logp = self.log_prob(Gaussian(mean, std), std[:, None])
                (grad,) = torch.autograd.grad(logp.sum(), mean)
            norm = torch.where(step.std > 0, slope * grad[:, 0].abs(), torch.ones_like(std))
        norm = torch.where(torch.isfinite(norm) & (norm > 0), norm, torch.ones_like(norm))
        return (norm.median() / norm).float()

    def surrogate(
        self, logp_new: Float[Tensor, "b"], logp_old: Float[Tensor, "b"], adv: Float[Tensor, "b"]
    ) -> Float[Tensor, "b"]:
        """PPO's clipped loss per sample, before the step weight."""
        ratio = torch.exp(logp_new - logp_old)
        return torch.maximum(-adv * ratio, -adv * ratio.clamp(1 - self.clip_range, 1 + self.clip_range))

    def divergence(
        self, step: Gaussian, ref: Gaussian, sigma: Float[Tensor, "b"], sigma_next: Float[Tensor, "b"]
    ) -> Float[Tensor, "b"]:
        """Distance between the steps of the policy and of a reference, for the KL terms.

        By default KL(step || ref) of Gaussians with the same std, per latent element.
        """
        _refuse_zero_std(step.std, f"{type(self).__name__}.divergence")
        return latent_mean((step.mean - ref.mean) ** 2) / (2 * step.std**2)


@dataclass(frozen=True)
class Metric:
    """One number per video of an evaluator."""

    higher_is_better: bool
    """Direction: whether a larger value means a better video."""
    unit: str
    """Unit or scale, for tables."""
    description: str = ""
    """What the number measures, for tables."""


class Evaluator(ABC):
    """A model that scores videos. A score must not depend on the other videos of the batch.

    A video that cannot be scored raises; a failure is never turned into a number.
    """

    metrics: Mapping[str, Metric]
    """The metrics by name."""
    prompt_free: frozenset[str] = frozenset()
    """Metrics that do not depend on the prompt."""
    only_size: tuple[int, int, int] | None = None
    """Frames, height and width of the videos, where only one size is accepted; None: any size."""
    idle_weights: frozenset[str] = frozenset()
    """Weights that scores do not depend on after loading, for example a factor that is read once."""
    float32_spread: tuple[float, str] | None = None
    """Largest difference of float32 scores between machines, relative to max(1, |score|), and its cause, where it is
    larger than the rounding of sums."""
    golden_folder: Path | None = None
    """Folder of the golden scores; None: the folder of the parameter `checkpoint`."""

    @abstractmethod
    def score(
        self, videos: Float[Tensor, "b 3 f h w"], prompts: Sequence[str], fps: float
    ) -> Mapping[str, Float[Tensor, "b"]]:
        """Scores by metric of videos [b, 3, frames, height, width] with pixels in [0, 1], `fps` frames per second."""

    def details(self) -> pd.DataFrame:
        """Details of the last call, such as values per frame and whether a prompt was truncated; empty by default."""
        import pandas as pd

        return pd.DataFrame()

    @abstractmethod
    def fingerprint(self) -> Mapping[str, str]:
        """sha256 of the weights, and the preprocessing constants: stored in every record."""


@runtime_checkable
class SamplesFrames(Protocol):
    """An evaluator that looks at some frames of a video only, so that the others need not be kept in memory."""

    def frame_indices(self, total: int, fps: float) -> Sequence[int]:
        """Indices of the frames that are scored, of a video of `total` frames at `fps` frames per second."""
        ...

    def score_frames(
        self, frames: Float[Tensor, "b 3 n h w"], prompts: Sequence[str], total: int, fps: float
    ) -> Mapping[str, Float[Tensor, "b"]]:
        """What `Evaluator.score` returns for videos of `total` frames; `frames` are those at `frame_indices`."""
        ...


class Conditioning(NamedTuple):
    """Text conditioning of a batch of prompts: one entry per prompt, without padding tokens."""

    text: list[Tensor]
    """Per prompt [length, dim]: states of the multimodal text encoder."""
    glyph: list[Tensor]
    """Per prompt [length, dim]: states of the glyph encoder, length 0 when the prompt quotes no text."""

    def take(self, rows: Iterable[int]) -> Conditioning:
        """The prompts at these positions, in this order; a position may occur several times."""
        indices = list(rows)
        return Conditioning([self.text[i] for i in indices], [self.glyph[i] for i in indices])


class Backbone(Protocol):
    """A video generator with a trained policy and, as references for KL terms, anchors.

    Anchors have names: "fixed" (the base model) and "moving" (a copy of the policy, the base until its first refresh).
    """

    latent_shape: tuple[int, int, int, int]
    """Channels, frames, height and width of a latent."""
    fps: float
    """Frames per second of the decoded videos."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Text conditioning of the prompts."""
        ...

    def velocity(
        self,
        x: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, "b"],
        cond: Conditioning,
        guidance: float,
        uncond_grad: bool = True,
    ) -> Float[Tensor, "b c f h w"]:
        """The velocity, with classifier-free guidance where `guidance` is above 1.

        `uncond_grad`: whether gradients flow through the unconditional branch too.
        """
        ...

    def decode(self, x0: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 3 F H W"]:
        """Videos with pixels in [0, 1]."""
        ...

    def reset(self, rng: torch.Generator) -> None:
        """Start a new policy, which equals the base model; the generator draws its initial weights."""
        ...

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """The trained parameters of the policy, always in the same order."""
        ...

    def as_anchor(self, name: str) -> AbstractContextManager[None]:
        """A context in which `velocity` is that of the anchor, without gradients."""
        ...

    def refresh_anchor(self, name: str) -> None:
        """Make the anchor a copy of the current policy."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The policy and the anchors, for a checkpoint; keys of the policy start with "policy:"."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        ...

    def fingerprint(self) -> Mapping[str, str]:
        """sha256 of the weights, and the settings that results depend on: stored in every record."""
        ...


class StepView(NamedTuple):
    """The trained steps of a rollout."""

    steps: Tensor
    """[n], indices into the schedule."""
    weight: Tensor
    """[n], `Method.step_weights` at these indices."""


@runtime_checkable
class RoundsLatents(Protocol):
    """A backbone that samples with latents in a coarser format than float32."""

    def round_latents(self, x: Float[Tensor, "b ..."], first: bool) -> Float[Tensor, "b ..."]:
        """The latents that sampling continues with. `first`: x is the initial noise, else the result of a step."""
        ...


@runtime_checkable
class ChecksSuite(Protocol):
    """A backbone class that can reject a suite before the weights are loaded, from the headers of its files."""

    @classmethod
    def check_suite(cls, checkpoint: Path | None, guidance: float, params: Mapping[str, Any]) -> None:
        """Raise a `BenchError` where the suite does not fit. Without a checkpoint, only the settings are checked."""
        ...


@runtime_checkable
class ShardsWeights(Protocol):
    """A backbone that can shard its weights over the processes of a run: its constructor has a parameter `shard`."""

    def stored(self, tensor: Tensor) -> Tensor:
        """The full tensor of a sharded one, on the CPU, for a checkpoint. Collective call."""
        ...

    def part_of(self, whole: Tensor, like: Tensor) -> Tensor:
        """The full tensor sharded like the parameter `like`."""
        ...
