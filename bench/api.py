"""The interfaces that a plug-in implements: nothing else of `bench` is needed to write one.

Notation everywhere: `sigma` is the noise level (1 = noise, 0 = video), `x = (1 - sigma) * x0 + sigma * noise`,
`v = noise - x0`. A method is a frozen dataclass of hyper-parameters plus pure functions; models, noise, prompts,
budget, optimizer and rewards belong to the harness.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.core.budget import RESERVED_FIELDS, AdvantageRule, Budget
from bench.core.errors import BenchError, BudgetFieldError, DivergedError
from bench.core.rewards import Rewards, rule_advantages

if TYPE_CHECKING:
    import pandas as pd


from typing import runtime_checkable

__all__ = [
    "LATE",
    "AdvantageRule",
    "Backbone",
    "BenchError",
    "Budget",
    "Conditioning",
    "DivergedError",
    "Evaluator",
    "Gaussian",
    "Method",
    "Metric",
    "Rewards",
    "StepView",
    "latent_mean",
]


#: Metadata of a method's field that was added after results had been stored: records name it only where it is not at
#: its default, so that older records of the same method still compare. `field(default=..., metadata=LATE)`.
LATE = {"late": True}


class Gaussian(NamedTuple):
    """One reverse step p(x_next | x, v): a diagonal Gaussian with one standard deviation per sample."""

    mean: Tensor
    """[b, ...], like x."""
    std: Tensor
    """[b], the real standard deviation of the step; 0 marks a deterministic step."""


def latent_mean(values: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
    """Mean over everything but the batch, for latents of any rank."""
    return values.reshape(len(values), -1).mean(1)


def _refuse_zero_std(std: Float[Tensor, "b"], what: str) -> None:
    """A Gaussian quantity of a deterministic step is infinite or not a number: say so instead of returning it."""
    if bool((std <= 0).any()):
        raise BenchError(
            f"{what} is undefined for a step with standard deviation 0 (sample {int((std <= 0).nonzero()[0])}): "
            "set eta above 0, or do not train a deterministic step."
        )


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A GRPO variant: how it explores, how it assigns credit, how much each step counts.

    Hooks receive tensors, never the model, the optimizer, a seed or the budget. A subclass that declares a field
    named like a budget field raises `BenchError` at class creation.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    paper: ClassVar[str]
    clip_range: float = 1e-4
    """PPO clip of the ratio of mean log-probabilities (FlowGRPO, DanceGRPO and SAGE-GRPO all release 1e-4)."""
    equalizer: Literal["off", "derived", "released"] = "off"
    """Temporal gradient equalizer (SAGE-GRPO, "Temporal Gradient Equalizer"): see `step_weights`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declared = {name for part in cls.__mro__ for name in inspect.get_annotations(part)}
        taken = sorted(RESERVED_FIELDS & declared)
        if taken:
            raise BudgetFieldError(
                f"method class {cls.__module__}:{cls.__qualname__} declares the field '{taken[0]}', "
                "which belongs to the "
                "suite's budget: remove it from the class and set it once for all rows under 'budget:' in the YAML."
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
        eta = getattr(self, "eta", 0.0)  # the noise policies of a suite set the noise scale under this name
        if not 0 <= eta < math.inf:
            raise BenchError(f"{type(self).__name__}: eta is {eta}; set it to a finite value of at least 0.")

    # exploration ----------------------------------------------------------------------------------------------
    @abstractmethod
    def transition(
        self,
        x: Float[Tensor, "b ..."],
        v: Float[Tensor, "b ..."],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Gaussian:
        """One noisy step from `sigma` to `sigma_next` < `sigma`; affine in v."""

    def log_prob(self, step: Gaussian, x_next: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
        """Log density of x_next, all constants kept, averaged over the latent; x_next carries no gradient."""
        _refuse_zero_std(step.std, f"{type(self).__name__}.log_prob")
        std = step.std.reshape(-1, *[1] * (x_next.ndim - 1))
        terms = -((x_next.detach() - step.mean) ** 2) / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)
        return latent_mean(terms)

    # credit ---------------------------------------------------------------------------------------------------
    def advantages(self, rewards: Rewards) -> Float[Tensor, "k p g"]:
        """One or more advantages per sample; by default the suite's rule on the weighted sum or on each reward."""
        rewards.check()
        if rewards.rule.std == "each":
            return torch.stack([rule_advantages(rewards[name], rewards.rule) for name in rewards.weights])
        return rule_advantages(rewards.total(), rewards.rule)[None]

    def select(self, adv: Float[Tensor, "k p g"]) -> Bool[Tensor, "p g"]:
        """Samples that train (open division only); all by default."""
        return torch.ones(adv.shape[1:], dtype=torch.bool)

    # which steps are noisy, which of them train, and how much each counts ---------------------------------------
    def stochastic(self, sigmas: Float[Tensor, "t1"], update: int, rng: torch.Generator) -> Bool[Tensor, "t"]:
        """Noisy steps of the rollout; all by default.

        The harness makes the last one deterministic where its decode rule says so.
        """
        return torch.ones(len(sigmas) - 1, dtype=torch.bool)

    def train_steps(self, sigmas: Float[Tensor, "t1"], n: int, rng: torch.Generator) -> Int[Tensor, "n"]:
        """Indices of the n steps that train.

        Not overridden: the harness draws n of the noisy steps, the same for all methods.
        """
        return torch.randperm(len(sigmas) - 2, generator=rng)[:n].sort().values

    def step_weights(self, sigmas: Float[Tensor, "t1"]) -> Float[Tensor, "t"]:
        """Weight of each step's policy loss: ones, or the temporal gradient equalizer lower_median(N) / N_i.

        `derived`: N = |J| * |d log_prob / d mean| at x_next = mean + std, with J = d mean / d v from `transition`
        (affine in v, so J is its value at x = 0, v = 1); right for every log-prob convention.
        `released`: N = |J| / std with std at least 1e-12, SAGE-GRPO's released code
        (hyvideo/schedulers/scheduling_flow_match_discrete.py, compute_log_prob_grad_norms).
        A zero or non-finite N, and with `derived` any deterministic step, counts as 1.
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
        """PPO's clipped loss per sample, before any step weight."""
        ratio = torch.exp(logp_new - logp_old)
        return torch.maximum(-adv * ratio, -adv * ratio.clamp(1 - self.clip_range, 1 + self.clip_range))

    # trust region ---------------------------------------------------------------------------------------------
    def divergence(
        self, step: Gaussian, ref: Gaussian, sigma: Float[Tensor, "b"], sigma_next: Float[Tensor, "b"]
    ) -> Float[Tensor, "b"]:
        """This method's distance between the policy's and a reference's step.

        By default the Gaussian KL per latent element (equal stds).
        """
        _refuse_zero_std(step.std, f"{type(self).__name__}.divergence")
        return latent_mean((step.mean - ref.mean) ** 2) / (2 * step.std**2)


@dataclass(frozen=True)
class Metric:
    """One number that an evaluator gives per video."""

    higher_is_better: bool
    unit: str
    description: str = ""


class Evaluator(ABC):
    """Scores videos one by one: a score may not depend on the other videos of the batch.

    A failure raises; nobody turns it into a number. Metrics are named in `metrics`.
    """

    metrics: Mapping[str, Metric]
    prompt_free: frozenset[str] = frozenset()
    """Metrics that do not depend on the prompt."""
    only_size: tuple[int, int, int] | None = None
    """Frames, height and width of the only videos it takes; None: any."""
    idle_weights: frozenset[str] = frozenset()
    """Weights that no score depends on once the evaluator is made, such as a factor that is read when loading."""
    float32_spread: tuple[float, str] | None = None
    """Difference of float32 scores between machines, relative to max(1, |score|), and its cause, if it is more than
    the rounding of sums."""
    golden_folder: Path | None = None
    """Folder of its golden scores; None: the one of its parameter `checkpoint`."""

    @abstractmethod
    def score(
        self, videos: Float[Tensor, "b 3 f h w"], prompts: Sequence[str], fps: float
    ) -> Mapping[str, Float[Tensor, "b"]]:
        """Scores of videos with pixels in [0, 1], channels first and frames third, `fps` frames per second."""

    def details(self) -> pd.DataFrame:
        """Per-frame values, frame indices and whether the prompt was cut, of the last call; empty if none."""
        import pandas as pd

        return pd.DataFrame()

    @abstractmethod
    def fingerprint(self) -> Mapping[str, str]:
        """sha256 of the weights and the preprocessing constants: stored with every score."""


class Conditioning(NamedTuple):
    """Text conditioning of a batch of prompts: one entry per prompt, valid tokens only."""

    text: list[Tensor]
    """Per prompt [length, dim]: states of the multimodal text encoder."""
    glyph: list[Tensor]
    """Per prompt [length, dim]: states of the glyph encoder, length 0 when the prompt quotes no text."""

    def take(self, rows: Iterable[int]) -> Conditioning:
        """The prompts at these places, in this order; one may be taken several times."""
        chosen = list(rows)
        return Conditioning([self.text[i] for i in chosen], [self.glyph[i] for i in chosen])


class Backbone(Protocol):
    """Video generator: encodes prompts, predicts velocities, decodes latents, switches between policy and anchors."""

    latent_shape: tuple[int, int, int, int]
    """c f h w."""
    fps: float

    def encode(self, prompts: Sequence[str]) -> Conditioning: ...
    def velocity(
        self,
        x: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, "b"],
        cond: Conditioning,
        guidance: float,
        uncond_grad: bool = True,
    ) -> Float[Tensor, "b c f h w"]: ...
    def decode(self, x0: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 3 F H W"]: ...
    def reset(self, rng: torch.Generator) -> None: ...
    def parameters(self) -> Iterable[torch.nn.Parameter]: ...
    def as_anchor(self, name: str) -> AbstractContextManager[None]: ...
    def refresh_anchor(self, name: str) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...
    def fingerprint(self) -> Mapping[str, str]: ...


class StepView(NamedTuple):
    """The trained steps of a rollout, as the update sees them."""

    steps: Tensor
    """[n], indices into the schedule."""
    weight: Tensor
    """[n], `Method.step_weights` at these indices."""


@runtime_checkable
class RoundsLatents(Protocol):
    """A backbone whose sampling convention keeps latents coarser than float32."""

    def round_latents(self, x: Float[Tensor, "b ..."], first: bool) -> Float[Tensor, "b ..."]: ...


@runtime_checkable
class ChecksSuite(Protocol):
    """A backbone class that refuses an unfit suite from its files' headers, before anything is loaded.

    Without a checkpoint it looks at the settings alone.
    """

    @classmethod
    def check_suite(cls, checkpoint: Path | None, guidance: float, params: Mapping[str, Any]) -> None: ...


@runtime_checkable
class ShardsWeights(Protocol):
    """A backbone that can spread its weights over the processes of a run: its constructor takes `shard`."""

    def stored(self, tensor: Tensor) -> Tensor: ...
    def part_of(self, whole: Tensor, like: Tensor) -> Tensor: ...
