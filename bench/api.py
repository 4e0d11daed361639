"""The interfaces of plug-ins. A plug-in imports this module and `bench.flow` only.

There are methods, KL policies, noise policies, advantage rules, evaluators and backbones.

Notation: `sigma` is the noise level (1 = noise, 0 = video), `x = (1 - sigma) * x0 + sigma * noise`, `v = noise - x0`.
A method is a frozen dataclass of hyper-parameters with pure functions, of one of two kinds: `Method` trains on the
noisy steps of a rollout, `ForwardMethod` on its videos, noised again. The harness owns the models, noise, prompts,
budget, optimizer and rewards.

Letters of shapes: b samples; c f h w channels, frames, height and width of a latent; t steps of a rollout and its
t1 = t + 1 noise levels; n trained steps; k advantages per sample; p prompts; g samples of a group.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.core.budget import RESERVED_FIELDS, Budget
from bench.core.errors import BenchError, BudgetFieldError, DivergedError
from bench.core.parallelism import COLLECTIVE_TIMEOUT, Shard, context_degree
from bench.core.rewards import AdvantageRule, Rewards, StandardizedAdvantages
from bench.core.strict_json import parse_json, read_json

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COLLECTIVE_TIMEOUT",
    "LATE",
    "OPEN",
    "POLICY_PREFIX",
    "AdvantageRule",
    "AnyMethod",
    "Backbone",
    "BenchError",
    "BlendsAnchors",
    "Budget",
    "ChecksMachine",
    "ChecksSuite",
    "Conditioning",
    "DivergedError",
    "EncodesFirst",
    "EstimatesCost",
    "Evaluator",
    "ExportsPolicy",
    "ForwardMethod",
    "ForwardPoint",
    "Gaussian",
    "KLPolicy",
    "KLStep",
    "Method",
    "Metric",
    "ModelCost",
    "NamesUncondPrompt",
    "NoisePolicy",
    "RefreshRule",
    "Rewards",
    "RoundsLatents",
    "RunsPolicyFiles",
    "ScoredStep",
    "Shard",
    "ShardsWeights",
    "StandardizedAdvantages",
    "context_degree",
    "latent_mean",
    "parse_json",
    "read_json",
]

LATE = {"late": True}
"""Metadata of a method's field that was added after results had been stored: `field(default=..., metadata=LATE)`. A
record lists such a field only where it differs from its default, so older records of the method stay comparable."""

OPEN = {"open": True}
"""Metadata of a method's field that leaves the closed division: `field(default=..., metadata=OPEN)`, or `LATE | OPEN`.
A row that sets such an option stands in the open division. An `advantages` or `select` of the class that declares it
leaves the row in the closed one while the option has its default and the hook gives the result of `Method`."""


class Gaussian(NamedTuple):
    """One reverse step p(x_next | x, v): a diagonal Gaussian with one standard deviation per sample."""

    mean: Tensor
    """[b, ...], like x."""
    std: Tensor
    """[b], the standard deviation of the whole step; 0 for a deterministic step."""


class ScoredStep(NamedTuple):
    """A step under one policy, with the log-probability of the stored latent after it."""

    mean: Tensor
    """[b, ...], mean of the step's Gaussian."""
    std: Tensor
    """[b], its standard deviation, above 0."""
    logp: Tensor
    """[b], `Method.log_prob` of the latent after the step."""


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


def _hooks(kind: type) -> dict[str, Callable[..., Any]]:
    """Name to function of each hook of a kind of method, without those that all methods share."""
    return {name: value for name, value in vars(kind).items() if inspect.isfunction(value) and name[0] != "_"}


def _parameters(function: Callable[..., Any]) -> int:
    """How many parameters the function has, `self` included."""
    return len(inspect.signature(function).parameters)


@dataclass(frozen=True, kw_only=True)
class AnyMethod(ABC):
    """What both kinds of method share: the paper, and how rewards become credit.

    A method derives from `Method` or from `ForwardMethod`. Hooks receive tensors, never the model, the optimizer, a
    seed or the budget. A subclass that declares a field of the budget raises `BudgetFieldError` when the class is
    created, and one that derives from both kinds, from neither, or that has a hook of the other kind a `BenchError`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    paper: ClassVar[str]
    """Title and identifier of the paper."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        label = f"method class {cls.__module__}:{cls.__qualname__}"
        names = {name for base in cls.__mro__ for name in inspect.get_annotations(base)}
        reserved = sorted(RESERVED_FIELDS & names)
        if reserved:
            raise BudgetFieldError(
                f"{label} declares the field '{reserved[0]}', which belongs "
                "to the suite's budget: remove it from the class and set it once for all rows under 'budget:' in the "
                "YAML."
            )
        if cls.__module__ != __name__:
            cls._check_kind(label)

    @classmethod
    def _check_kind(cls, label: str) -> None:
        """Refuse a class of no kind or of both, and one with a hook of the other kind, which nothing would call.

        A function of another number of parameters is a helper that happens to have the name.
        """
        kinds = [kind for kind in (Method, ForwardMethod) if issubclass(cls, kind)]
        if len(kinds) != 1:
            names = " and ".join(kind.__name__ for kind in kinds) or "neither Method nor ForwardMethod"
            raise BenchError(f"{label} derives from {names}: a method is of one kind, so derive from one.")
        bases = [base for base in cls.__mro__ if base.__module__ != __name__]
        fields = {name for base in bases for name in inspect.get_annotations(base)}
        for name in _hooks(kinds[0]):
            if name in fields or not callable(getattr(cls, name)):
                raise BenchError(f"{label} sets {name}, which is a hook: define it as a function, def {name}(...).")
        other = ForwardMethod if kinds == [Method] else Method
        for name, hook in _hooks(other).items():
            own = next((vars(base)[name] for base in bases if name in vars(base)), None)
            if inspect.isfunction(own) and _parameters(own) == _parameters(hook):
                raise BenchError(
                    f"{label} derives from {kinds[0].__name__} and defines {name}, a hook of {other.__name__} that "
                    "would never be called: rename it, or derive from the other kind."
                )

    def advantages(self, rewards: Rewards) -> Float[Tensor, "k p g"]:
        """One advantage per sample (k = 1), or one per reward; by default by the suite's rule."""
        rewards.check()
        return rewards.rule.advantages(rewards)

    def select(self, adv: Float[Tensor, "k p g"]) -> Bool[Tensor, "p g"]:
        """Marks the samples that train (open division only); all by default."""
        return torch.ones(adv.shape[1:], dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class Method(AnyMethod):
    """A policy gradient over noisy steps: their kernel, the loss of a step and its weight.

    A field `eta` is the noise scale of the kernel, finite and at least 0. It is optional: the noise policies of a
    suite other than `native` set it.
    """

    per_prompt: ClassVar[bool] = False
    """Whether each prompt of an update has its own steps. The harness then calls `stochastic` and `train_steps` once
    per prompt, each time with a generator of that prompt's own, so that the masks of an update are [p, t]."""
    clip_range: float = 1e-4
    """PPO clip range, above 0, of the ratio of mean log-probabilities. FlowGRPO, DanceGRPO and SAGE-GRPO use 1e-4."""
    equalizer: Literal["off", "derived", "released"] = "off"
    """Temporal gradient equalizer (SAGE-GRPO, "Temporal Gradient Equalizer"): see `step_weights`."""
    weighting: Literal["off", "equal", "guard", "std", "longcat"] = field(default="off", metadata=LATE)
    """Weights of the steps by name, with sigma s, length d and J = d mean / d v. What a paper divides them by
    (nothing, the lower median or the mean over steps) drops out, since the harness scales them to mean 1 over the
    steps that may train.

    - `equal`: std / |J|, after which a step's gradient does not depend on its noise. Precise (arXiv:2605.23522) and
      Flash-GRPO (arXiv:2605.15980, over the mean) use it; SAGE-GRPO's equalizer (arXiv:2603.21872, over the lower
      median) has the same weights for Gaussian log-probabilities.
    - `guard`: std / d, GRPO-Guard (arXiv:2510.22319), proportional to `equal` for Flow-GRPO's kernel below s = 1.
    - `std`: TempFlow-GRPO (arXiv:2508.04324, over the mean): favours noisy steps.
    - `longcat`: sqrt(s / (1 - s)) / sqrt(d), LongCat-Video (arXiv:2510.22200); at s = 1, where it has no value, 1 - s
      is that of the step's end.
    """

    def __post_init__(self) -> None:
        if not 0 < self.clip_range < math.inf:
            raise BenchError(
                f"{type(self).__name__}: clip_range is {self.clip_range}; set it to a finite value above 0."
            )
        for name, known in (("equalizer", EQUALIZERS), ("weighting", WEIGHTINGS)):
            if getattr(self, name) not in known:
                choices = ", ".join(map(repr, known))
                raise BenchError(f"{type(self).__name__}: {name} is {getattr(self, name)!r}; choose one of {choices}.")
        if self.equalizer != "off" and self.weighting != "off":
            raise BenchError(
                f"{type(self).__name__}: weighting is {self.weighting!r}: set equalizer to 'off' with it."
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

    def stochastic(self, sigmas: Float[Tensor, "t1"], update: int, rng: torch.Generator) -> Bool[Tensor, "t"]:
        """Marks the noisy steps of the rollout; all by default.

        A pure function of its arguments: the masks of all updates are asked for before a run is launched. With the
        decode rule `predicted_x0` the harness makes the last step deterministic.
        """
        return torch.ones(len(sigmas) - 1, dtype=torch.bool)

    def train_steps(self, sigmas: Float[Tensor, "t1"], n: int, rng: torch.Generator) -> Int[Tensor, "n"]:
        """Indices of the n steps that train, all of them noisy.

        Where a method does not override this, the harness draws n of the noisy steps, the same for all such methods.
        """
        return torch.randperm(len(sigmas) - 2, generator=rng)[:n].sort().values

    def step_weights(self, sigmas: Float[Tensor, "t1"]) -> Float[Tensor, "t"]:
        """Weight of each step's policy loss: ones, those of `weighting`, or the equalizer lower_median(N) / N_i.

        `derived`: N = |J| * |d log_prob / d mean| at x_next = mean + std, with J = d mean / d v from `transition`
        (affine in v, so J is its value at x = 0, v = 1); valid for every convention of the log-probability.
        `released`: N = |J| / std with std at least 1e-12, SAGE-GRPO's released code
        (hyvideo/schedulers/scheduling_flow_match_discrete.py, compute_log_prob_grad_norms).
        N counts as 1 where it is zero or not finite, and with `derived` at deterministic steps.
        """
        steps = len(sigmas) - 1
        if self.equalizer == self.weighting == "off":
            return torch.ones(steps, device=sigmas.device)
        sigma, sigma_next = sigmas[:-1].double(), sigmas[1:].double()
        zero = torch.zeros(steps, 1, dtype=torch.float64, device=sigmas.device)
        step = self.transition(zero, torch.ones_like(zero), sigma, sigma_next)
        slope = step.mean[:, 0].abs()
        if self.weighting != "off":
            return _named_weights(self.weighting, step.std, slope, sigma, sigma_next)
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

    def policy_loss(
        self,
        new: ScoredStep,
        old: ScoredStep,
        x_next: Float[Tensor, "b ..."],
        adv: Float[Tensor, "b"],
        sigma: Float[Tensor, "b"],
        sigma_next: Float[Tensor, "b"],
    ) -> Float[Tensor, "b"]:
        """Loss per sample of a stored step to `x_next`, before the step weight; by default `surrogate`.

        `new`: the step under the current policy, with its gradient. `old`: under the policy of the rollout, without
        one; the harness keeps its mean only for a class that overrides this hook. The result is finite.
        """
        return self.surrogate(new.logp, old.logp, adv)

    def divergence(
        self, step: Gaussian, ref: Gaussian, sigma: Float[Tensor, "b"], sigma_next: Float[Tensor, "b"]
    ) -> Float[Tensor, "b"]:
        """Distance between the steps of the policy and of a reference, for the KL terms.

        By default KL(step || ref) of Gaussians with the same std, per latent element.
        """
        _refuse_zero_std(step.std, f"{type(self).__name__}.divergence")
        return latent_mean((step.mean - ref.mean) ** 2) / (2 * step.std**2)


EQUALIZERS = ("off", "derived", "released")
WEIGHTINGS = ("off", "equal", "guard", "std", "longcat")


def _named_weights(
    weighting: str,
    std: Float[Tensor, "t"],
    slope: Float[Tensor, "t"],
    sigma: Float[Tensor, "t"],
    sigma_next: Float[Tensor, "t"],
) -> Float[Tensor, "t"]:
    """The weights of `Method.weighting`, `slope` being |J|; 0 for a deterministic step."""
    length = sigma - sigma_next
    signal = 1 - torch.where(sigma == 1, sigma_next, sigma)
    weights = {
        "equal": std / slope.clamp_min(1e-12),
        "guard": std / length,
        "std": std,
        "longcat": (sigma / signal).sqrt() / length.sqrt(),
    }[weighting]
    return torch.where(std > 0, weights, torch.zeros_like(weights)).float()


class ForwardPoint(NamedTuple):
    """Clean videos of a rollout, noised again to one level each, with the velocities there."""

    v: Tensor
    """[b, ...], velocity of the policy, with its gradient."""
    v_old: Tensor | None
    """Velocity of the old policy, without a gradient; None unless `ForwardMethod.references` has "old"."""
    v_ref: Tensor | None
    """Velocity of the base model, without a gradient; None unless `ForwardMethod.references` has "base"."""
    x0: Tensor
    """[b, ...], latents of the videos of the rollout."""
    noise: Tensor
    """[b, ...], the noise that is added; `noise - x0` is the velocity that flow matching would train."""
    x: Tensor
    """[b, ...], (1 - sigma) x0 + sigma noise, as the backbone rounds it."""
    sigma: Tensor
    """[b], the noise levels."""


@dataclass(frozen=True, kw_only=True)
class ForwardMethod(AnyMethod):
    """A loss on the forward process: videos of the deterministic sampler are noised again, and the velocity trains.

    It has no noisy steps and no log-probabilities. Each video of a rollout trains at `budget.train_steps` noise
    levels, so training costs what it costs with `Method`. The noise depends on seed, update, prompt, number in the
    group and point alone, so it is the same for every method of this kind. Rows have the KL policy `none`: where the
    method keeps the policy near another one, that is part of its loss.
    """

    references: ClassVar[frozenset[str]] = frozenset()
    """Velocities that the loss needs beside the policy's: "old", "base". Each costs a function evaluation per point,
    counted as those of anchors."""
    rollout_policy: ClassVar[Literal["policy", "old"]] = "policy"
    """Which policy samples the videos."""

    def noise_levels(self, shape: tuple[int, int], rng: torch.Generator) -> Float[Tensor, "b n"]:
        """Noise levels in (0, 1] at which each of the b videos of an update trains; by default uniform."""
        return 1 - torch.rand(shape, generator=rng)

    @abstractmethod
    def loss(self, point: ForwardPoint, adv: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Loss per sample, finite and differentiable in `point.v`.

        With an advantage of 0 and all velocities equal its gradient is 0: what does not depend on the reward may only
        keep the policy near its references.
        """

    def old_decay(self, update: int) -> float:
        """Share of the old policy's weights, in [0, 1], that it keeps when it follows the policy after an update.

        The first update is 0. The old policy starts as the new policy. By default 0: it is the policy before the
        update. A pure function of `update`.
        """
        return 0.0


@dataclass(frozen=True)
class RefreshRule:
    """When an anchor becomes a copy of the current policy, and whether it costs function evaluations."""

    every: int | None = None
    """Updates between refreshes, at least 1; None: the anchor is never refreshed."""
    network: bool = True
    """Whether the anchor needs its own forward pass; False for the rollout policy, whose log-probs are stored."""

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise BenchError(f"KL policy: every is {self.every}; the anchor is refreshed every 1 or more updates.")

    def due(self, update: int) -> bool:
        """Whether to refresh before the rollout of this update (the first update is 0)."""
        return self.every is not None and update > 0 and update % self.every == 0


class KLStep(NamedTuple):
    """Samples of one trained step, from which a KL policy computes its terms."""

    logp_new: Tensor
    """[b], log-probability of the stored transition under the policy, with its gradient."""
    logp_old: Tensor
    """[b], the same under the policy of the rollout; no gradient."""
    step: Gaussian
    """The policy's step, with its gradient."""
    references: Mapping[str, Gaussian]
    """The step of each anchor with a forward pass of its own, by name; no gradient."""
    divergences: Mapping[str, Tensor]
    """[b], `Method.divergence` between the policy's step and that of each of these anchors, with its gradient."""
    sigma: Tensor
    """[b], noise level before the step."""
    sigma_next: Tensor
    """[b], noise level after it."""


@dataclass(frozen=True, kw_only=True)
class KLPolicy(ABC):
    """The KL terms of a row: their references, their values, and the factors with which they enter the loss.

    A subclass is a frozen dataclass of hyper-parameters with pure functions. What it remembers between updates is its
    state: a dictionary of JSON types that the harness stores in checkpoints. Once per update, the harness refreshes
    every anchor whose rule is due. Once per trained step, which is a tick, it reads `weights(state)`, adds
    weight * mean(term) to the loss and calls `next_state(state, {term: mean over all samples})`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    @abstractmethod
    def anchors(self) -> Mapping[str, RefreshRule]:
        """References by name. "fixed" is never refreshed: it is the base model.

        Any other name is a copy of the policy, and the base model before its first refresh. "previous" without a
        forward pass is the policy of the rollout.
        """

    @abstractmethod
    def weights(self, state: Mapping[str, Any]) -> Mapping[str, float]:
        """Factor of each term in the loss at this tick, finite and at least 0; the names are the same at every tick.

        {} is no KL term.
        """

    @abstractmethod
    def terms(self, step: KLStep) -> Mapping[str, Float[Tensor, "b"]]:
        """Value of each term per sample, finite and differentiable, with the names of `weights`.

        The harness averages over samples and trained steps. A train log has the mean of a term as `kl_<name>`.
        """

    def init_state(self) -> dict[str, Any]:
        """The state before the first update; empty by default."""
        return {}

    def next_state(self, state: Mapping[str, Any], logs: Mapping[str, float]) -> dict[str, Any]:
        """The state after a tick whose terms had these means over all samples; `state` is not changed."""
        return dict(state)


@dataclass(frozen=True, kw_only=True)
class NoisePolicy(ABC):
    """How much noise the methods of a suite explore with: the eta of each method. A frozen dataclass of parameters."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    @abstractmethod
    def choose_eta(self, own: float | None, variance: Callable[[float], Float[Tensor, "n"]]) -> float | None:
        """The eta of one method, finite and at least 0; None leaves the method as it is.

        `own`: the eta of the row, or the method's default; None for a method without a field `eta`, for which
        anything but None is refused. `variance(eta)`: the variance that each noisy step would add to a latent element
        with this eta, float64; of a step that is noisy in some rollouts of the budget only, the mean over all of them.
        Raise `BenchError` where no eta fits.
        """


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
    """The metrics by name. Those of the class are compared with a suite's `reward:` before anything is loaded; where
    they depend on parameters, the constructor sets them instead."""
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


@dataclass(frozen=True)
class Conditioning:
    """Conditioning of a batch of prompts: streams of tensors with one entry per prompt, without padding."""

    text: list[Tensor]
    """Per prompt [length, dim]: states of the text encoder."""
    more: Mapping[str, list[Tensor]] = field(default_factory=dict)
    """Further streams by name, such as glyphs or an image: one tensor of any shape per prompt. The harness reads none
    of the tensors; it selects prompts with `take`."""

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.text)

    def take(self, rows: Iterable[int]) -> Conditioning:
        """The prompts at these positions, in this order; a position may occur several times."""
        indices = list(rows)
        more = {name: [states[i] for i in indices] for name, states in self.more.items()}
        return Conditioning([self.text[i] for i in indices], more)


POLICY_PREFIX = "policy:"
"""Start of the keys of trained weights in a backbone's state."""


class Backbone(Protocol):
    """A video generator with a trained policy and, as references for KL terms, anchors.

    A class with these members is a backbone; it derives from nothing. Its constructor gets the keys of the suite's
    `backbone.train` by name. Four parameters have a meaning for the harness, and a class has those that it can use:

    - `checkpoint`: the path that the suite names as `backbone.checkpoint`. A suite must name one if the parameter has
      no default, and may not if there is no such parameter.
    - `device`: where the models are. A class with this parameter runs on the GPU if there is one and `device` is None.
    - `parallel`: None, or {context: n} for a class that shares each sample over n processes.
    - `shard`: for a class with `ShardsWeights` only. The launch sets it, never a suite.

    Latents come on the CPU in float32, and velocities and videos are returned on the device of the latents. The class
    moves them to its own device and back, and may compute in another type there.

    Anchors have names. "fixed" is the base model: the model of the checkpoint, without training. Any other anchor is
    a copy of the policy, stored by `refresh_anchor`; before its first refresh it is the base model, too.

    Optional abilities are `RoundsLatents`, `NamesUncondPrompt`, `BlendsAnchors`, `ChecksSuite`, `ChecksMachine`,
    `ShardsWeights`, `EncodesFirst`, `ExportsPolicy`, `RunsPolicyFiles` and `EstimatesCost`. A file `assets.yaml`
    beside the module of the class lists its checkpoints for `bench assets`, in the format of bench/suite/assets.yaml.
    """

    latent_shape: tuple[int, int, int, int]
    """Channels, frames, height and width of a latent."""
    fps: float
    """Frames per second of the decoded videos, above 0."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of the prompts, one entry each, which does not depend on the other prompts of the call.

        The harness encodes all prompts of a run in the first call.
        """
        ...

    def velocity(
        self,
        x: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, "b"],
        cond: Conditioning,
        guidance: float,
        uncond_grad: bool = True,
    ) -> Float[Tensor, "b c f h w"]:
        """The velocity v = noise - x0 in float32 at noise levels `sigma` between 0 and 1, one per sample.

        Above `guidance` 1: uncond + guidance * (cond - uncond), with the unconditional prompt of the backbone's
        choice. `uncond_grad`: whether gradients flow through the unconditional branch too. A sample's velocity does
        not depend on the other samples of the batch.
        """
        ...

    def decode(self, x0: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 3 F H W"]:
        """Videos with pixels in [0, 1], float32, without gradients."""
        ...

    def reset(self, rng: torch.Generator) -> None:
        """Start a new policy, which equals the base model; the generator draws its initial weights."""
        ...

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """The trained parameters of the policy, each once and always in the same order."""
        ...

    def as_anchor(self, name: str) -> AbstractContextManager[None]:
        """A context in which `velocity` is that of the anchor, without gradients.

        It changes neither a graph that was recorded before nor the backward pass after it.
        """
        ...

    def refresh_anchor(self, name: str) -> None:
        """Make the anchor a copy of the current policy. The harness never refreshes "fixed"."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The policy and its stored anchors, for a checkpoint, as copies.

        Keys are "policy:<weight>" for the policy, and "<anchor>:<weight>" for each anchor. The weights of the policy
        are stored beside the record of a run.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, or the policy alone where `state` has no anchors; bit by bit.

        Anchors that are not in `state` are the base model afterwards. Raise `BenchError` for other weights.
        """
        ...

    def fingerprint(self) -> Mapping[str, str]:
        """sha256 of the weights, and the settings that results depend on: stored in every record."""
        ...


@runtime_checkable
class RoundsLatents(Protocol):
    """A backbone that samples with latents in a coarser format than float32."""

    def round_latents(self, x: Float[Tensor, "b ..."], first: bool) -> Float[Tensor, "b ..."]:
        """The latents that sampling continues with. `first`: x is the initial noise, else the result of a step."""
        ...


@runtime_checkable
class NamesUncondPrompt(Protocol):
    """A backbone that says which prompt its unconditional branch has; for any other it is the empty one."""

    uncond_prompt: str
    """The prompt, as `Backbone.encode` takes it."""


@runtime_checkable
class BlendsAnchors(Protocol):
    """A backbone whose anchors can follow the policy slowly, as the old policies of forward methods do."""

    def blend_anchor(self, name: str, decay: float) -> None:
        """Make each weight of the anchor decay * anchor + (1 - decay) * policy; it was refreshed before.

        `decay` is in [0, 1]. Gradients do not flow.
        """
        ...


@runtime_checkable
class ChecksSuite(Protocol):
    """A backbone class that can reject a suite before the weights are loaded, from the headers of its files."""

    @classmethod
    def check_suite(cls, checkpoint: Path | None, guidance: float, params: Mapping[str, Any]) -> None:
        """Raise a `BenchError` where the suite does not fit. Without a checkpoint, only the settings are checked."""
        ...


@runtime_checkable
class ChecksMachine(Protocol):
    """A backbone class that can reject settings for which a machine lacks something: a GPU, a package."""

    @classmethod
    def check_machine(cls, params: Mapping[str, Any]) -> None:
        """Raise a `BenchError` where this machine cannot run the settings. `params`: the suite's `backbone.train`."""
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


@runtime_checkable
class EncodesFirst(Protocol):
    """A backbone whose text encoders run before its other models are in memory, and leave."""

    @classmethod
    def encode_first(cls, prompts: Sequence[str], checkpoint: Path | None, params: Mapping[str, Any]) -> Any:
        """The text states of the prompts, for `take_states`; None where the settings keep the encoders in memory.

        `params`: the constructor's, without the checkpoint and `shard`.
        """
        ...

    def take_states(self, states: Any) -> None:
        """Use these states, so that `encode` of their prompts loads nothing."""
        ...


@runtime_checkable
class ExportsPolicy(Protocol):
    """A backbone class that writes a trained policy as files for other programs, for `bench export`."""

    @classmethod
    def export_policy(
        cls, policy: Mapping[str, Tensor], fingerprint: Mapping[str, str], checkpoint: Path | None
    ) -> Mapping[str, bytes]:
        """File name to content.

        `policy`: the weights of `state_dict` by name, without "policy:". `fingerprint`: that of the run's backbone.
        `checkpoint`: the suite's, which may be missing here. Raise `BenchError` where a file cannot be made.
        """
        ...


@runtime_checkable
class RunsPolicyFiles(Protocol):
    """A backbone that runs policies which other programs have trained, for `bench evaluate`."""

    @classmethod
    def check_policy_file(cls, path: Path, checkpoint: Path | None) -> Mapping[str, Any]:
        """What the file or folder has, for a record, with `what` in words; reads it, and no model.

        `checkpoint`: the suite's. Raise `BenchError` for a file that is not whole, or that is one of another model.
        """
        ...

    def as_policy_file(self, path: Path) -> AbstractContextManager[None]:
        """Run with the policy of this file or folder in place of the backbone's own, which is as after `reset`."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Sizes of a video generator under the settings of a suite, from which `bench plan` computes cost and memory.

    The transformer is a stack of equal blocks. FLOPs count a multiplication with its addition as 2.
    """

    source: str
    """Origin of the sizes, in words."""
    size: tuple[int, int, int]
    """Frames, height and width of a video in pixels."""
    latent_shape: tuple[int, int, int, int]
    """Channels, frames, height and width of a latent."""
    latents: int
    """Latent tokens of a sample."""
    text: int
    """Text tokens in the sequence of a sample; 0 where text enters by cross-attention only."""
    layers: int
    """Blocks of the transformer."""
    width: int
    """Width of the transformer."""
    heads: int
    """Attention heads."""
    parameters: int
    """Parameters of the transformer."""
    block_parameters: int
    """Parameters of one block."""
    adapter_parameters: int
    """Trained parameters beside a frozen base, as of a LoRA; 0 if all weights train."""
    vae_parameters: float
    """Parameters of the VAE, which is in float32."""
    text_parameters: float
    """Parameters of the text encoders."""
    trains: str
    """What trains, in words."""
    dtype: Literal["float32", "bfloat16"]
    """Type of the transformer and of the text encoders."""
    gradient_checkpointing: bool
    """Whether activations are computed again in the backward pass."""
    resident_text: bool
    """Whether the text encoders stay in memory."""
    copies_on_gpu: bool
    """Whether anchors are stored on the GPU."""
    tile: tuple[int, int] | None
    """Height and width of the VAE's tiles in pixels; None if it decodes whole latents."""
    decode_batch: int
    """Videos that are decoded at once."""
    forward: float
    """FLOPs of one function evaluation of a sample."""
    backward: float
    """FLOPs of its backward pass."""
    decode: float | None
    """FLOPs of decoding one video; None if they are not known."""
    block_bytes: float
    """Activations of one block that a backward pass needs, in bytes per token and unit of width."""
    decode_bytes: float
    """Bytes that decoding one video needs beside the weights: the decoder's feature maps."""
    savings: Mapping[str, Any]
    """Keys of `backbone.train`, and the values with which a run takes less memory, the cheap ones first."""
    idle_vae: bool = False
    """Whether the VAE is in the host's memory except for decoding."""
    joint_branches: bool = False
    """Whether both branches of guidance are computed in one forward pass."""
    quantized_block: float | None = None
    """Bytes of a block's frozen weights where they are quantized; None: `block_parameters` in `dtype`."""

    @property
    def full(self) -> bool:
        """Whether all weights train."""
        return self.adapter_parameters == 0


@runtime_checkable
class EstimatesCost(Protocol):
    """A backbone class that states its sizes, for `bench plan` and for the check of memory before a run."""

    @classmethod
    def model_cost(cls, checkpoint: Path | None, params: Mapping[str, Any], words: float) -> ModelCost:
        """The sizes, from headers and configs only. The checkpoint may be missing.

        `params`: the suite's `backbone.train`. `words`: mean number of words of the training prompts. Raise
        `BenchError` for settings that no run accepts.
        """
        ...
