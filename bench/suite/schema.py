"""A suite as one YAML file: unknown keys refused, dotted overrides part of the digest, one budget for all rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bench.core.budget import PROBE_EVERY, AdvantageRule, Budget
from bench.core.errors import BenchError
from bench.core.hashing import digest
from bench.core.provenance import ROOT


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BackboneSpec(StrictModel):
    name: str
    """Entry point of group bench.backbones, or "module:Class"."""
    checkpoint: str
    """A folder, or "nano/<part>" for a checkpoint that comes with the project ("nano" is nano/hunyuanvideo15)."""
    train: dict[str, Any] = {}
    """What is trained: `lora_rank`, `lora_alpha`, `lora_targets`."""


class Native(StrictModel):
    kind: Literal["native"] = "native"


class CommonEta(StrictModel):
    kind: Literal["common_eta"]
    eta: float = Field(ge=0)


class MatchedRSS(StrictModel):
    kind: Literal["matched_rss"]
    rss: float = Field(gt=0)
    """Root of the summed variance that a rollout injects; eta is solved for each method."""


class Evaluation(StrictModel):
    evaluators: list[str]
    steps: int = Field(ge=1)
    videos_per_prompt: int = Field(ge=1)
    seed: int = 0
    """Key of the evaluation noise, independent of the training seed, so that all rows and seeds are paired."""


class Prompts(StrictModel):
    train: str
    heldout: str


class KLSpec(StrictModel):
    name: str
    params: dict[str, Any] = {}


class RowSpec(StrictModel):
    method: str
    kl: str | KLSpec = "none"
    params: dict[str, Any] = {}
    """Method parameters that differ from the paper's defaults; the row then needs a label."""
    label: str | None = None

    @property
    def kl_spec(self) -> KLSpec:
        return self.kl if isinstance(self.kl, KLSpec) else KLSpec(name=self.kl)

    @property
    def name(self) -> str:
        """Label of the row, and the name of its folder."""
        method = self.method.replace(":", ".")
        return self.label or f"{method}-{self.kl_spec.name}"


PATHS = ("checkpoint", "base_model", "processor", "prompt_template")
"""Evaluator parameters that name a file or folder of the suite."""

NANO: dict[str, Any] = {
    "prompts": {"train": "bench/prompts/nano_train.txt", "heldout": "bench/prompts/nano_heldout.txt"},
    "evaluator_params": {
        "videoalign": {"checkpoint": "nano/videoreward", "device": "cpu"},
        "clipscore": {"checkpoint": "nano/clip", "device": "cpu"},
        "pickscore": {"checkpoint": "nano/pickscore", "device": "cpu"},
    },
    "clip_reference_size": 32 * 21 * 30 * 53,
}
"""What a suite on the packaged nano checkpoint need not say: its prompts, its scorers, and the latent size of 480p
HunyuanVideo-1.5 with 81 frames, for which the methods' clip ranges are stated."""


class Experiment(StrictModel):
    """One suite: everything that decides its numbers."""

    suite: str = Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)?$")
    """Name of the suite and of its folder of records; "study/variant" for one variant of a study."""
    backbone: BackboneSpec
    budget: Budget
    decode: Literal["predicted_x0", "final_latent"] = "predicted_x0"
    """What is decoded and rewarded: the last step's predicted x0 (then not trained), or the noisy final latent."""
    last_step: Literal["trained", "untrained"] | None = None
    """Whether the last step may train where the final latent is decoded; None: it may, like every noisy step."""
    uncond_branch: Literal["trained", "detached"] | None = None
    """Whether guidance's branch of the empty prompt gets gradients (FlowGRPO, DanceGRPO: detached); None: it does."""
    kl_probe_every: int | None = Field(default=None, ge=0)
    """Updates between two measurements of the KL term's share of the gradient, each a backward pass of its own.

    None: `PROBE_EVERY`; 0: never. It trains nothing."""
    group_noise: Literal["distinct", "shared"] = "distinct"
    """Initial noise of a group: one per sample, or one per prompt."""
    noise_policy: Annotated[Native | CommonEta | MatchedRSS, Field(discriminator="kind")] = Native()
    advantage: AdvantageRule = AdvantageRule()
    clip_reference_size: int | None = Field(default=None, gt=0)
    """Latent elements at which the methods' clip ranges hold.

    Mean log-ratios scale as 1 / sqrt(elements), so the harness multiplies each clip range by
    sqrt(reference / elements). None: as they are.
    """
    reward: dict[str, dict[str, float]]
    """Evaluator to metric to weight: the training reward is the weighted sum."""
    shuffle_rewards: bool = False
    """Negative control: each group's rewards are dealt out to its samples at random, so nothing can be learnt."""
    monitor: list[str] = []
    """Evaluators that also score each round's videos, for the curves; they train nothing and cost no reward calls.

    One that gives a reward is not asked twice."""
    evaluation: Evaluation
    evaluator_params: dict[str, dict[str, Any]] = {}
    """Constructor arguments of each evaluator; `checkpoint`, `base_model` and `processor` may be "nano/<part>"."""
    prompts: Prompts
    seeds: list[int] = Field(min_length=1)
    rows: list[RowSpec] = Field(min_length=1)

    def model_post_init(self, context: Any) -> None:
        for mistake in (*self._wrong_rows(), *self._wrong_scores()):
            raise BenchError(f"suite {self.suite}: {mistake}")

    def _wrong_rows(self) -> Iterator[str]:
        names = [row.name for row in self.rows]
        for name in names:
            if names.count(name) > 1:
                yield f"two rows are called {name!r}; give each a 'label:' of its own."
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name == "base":
                yield f"{name!r} names a folder; use letters, digits, '-', '_' or '.'."
        for row in self.rows:
            if row.params and row.label is None:
                yield f"row {row.name!r} sets params, so give it a 'label:' that says so."
        if len(set(self.seeds)) < len(self.seeds):
            yield f"seeds {self.seeds} hold one twice; a seed is one training run."

    @property
    def trains_uncond(self) -> bool:
        """Whether gradients flow through guidance's branch of the empty prompt."""
        return self.uncond_branch != "detached"

    @property
    def probe_every(self) -> int:
        """Updates between two measurements of the KL term's share of the gradient; 0: never."""
        return PROBE_EVERY if self.kl_probe_every is None else self.kl_probe_every

    @property
    def variant(self) -> str:
        """The variant's name; "" for a suite that is none."""
        return self.suite.partition("/")[2]

    @property
    def study(self) -> str:
        """Name of the study that the variant belongs to, or of the suite itself."""
        return self.suite.partition("/")[0]

    @property
    def judges(self) -> list[str]:
        """Every evaluator that the suite uses, each once."""
        return list(dict.fromkeys([*self.evaluation.evaluators, *self.reward, *self.monitor]))

    def _wrong_scores(self) -> Iterator[str]:
        metrics = [metric for named in self.reward.values() for metric in named]
        judges = self.evaluation.evaluators
        for metric in metrics:
            if metrics.count(metric) > 1:
                yield f"reward metric {metric!r} is given by two evaluators; name each once."
        if not judges or len(set(judges)) < len(judges):
            yield f"evaluation.evaluators is {judges}; name each evaluator once."
        for name in self.reward:
            if name not in judges:
                yield f"reward evaluator {name!r} is not in evaluation.evaluators; add it there."
        if len(set(self.monitor)) < len(self.monitor):
            yield f"monitor is {self.monitor}; name each evaluator once."
        if self.advantage.ddof >= self.budget.group_size:
            yield f"advantage.ddof {self.advantage.ddof} leaves nothing of a group of {self.budget.group_size}."
        if not any(weight for named in self.reward.values() for weight in named.values()):
            yield "every reward weight is 0; give at least one metric a weight."

    @model_validator(mode="before")
    @classmethod
    def _fill_nano(cls, data: Any) -> Any:
        backbone = data.get("backbone") if isinstance(data, dict) else None
        if not isinstance(backbone, dict) or not packaged(str(backbone.get("checkpoint"))):
            return data
        filled = {**NANO, **data}
        for key in ("prompts", "evaluator_params"):
            if isinstance(filled[key], dict):
                filled[key] = _merge_nano(NANO[key], filled[key])
        return filled

    @property
    def scale(self) -> Literal["nano", "full"]:
        """Records of a nano suite say so and never enter a table of the full-size suite."""
        return "nano" if packaged(self.backbone.checkpoint) else "full"

    @property
    def weights(self) -> dict[str, float]:
        """Metric to weight, over all reward evaluators."""
        return {metric: weight for metrics in self.reward.values() for metric, weight in metrics.items()}

    def prompt_list(self, which: Literal["train", "heldout"]) -> list[str]:
        """Prompts of the file, one a line; empty lines and lines that start with '#' are skipped."""
        path = resolve(getattr(self.prompts, which))
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as cause:
            raise BenchError(
                f"prompt file {path} cannot be read ({cause.strerror}): check 'prompts.{which}' in the YAML."
            ) from cause
        prompts = [line for line in lines if line.strip() and not line.startswith("#")]
        if len(set(prompts)) < len(prompts) or not prompts:
            raise BenchError(f"prompt file {path} is empty or holds a prompt twice: give each prompt once.")
        return prompts

    def shared(self) -> dict[str, Any]:
        """What all runs share and what decides their numbers: everything but the name, the seeds and the rows."""
        return self.model_dump(mode="json", exclude={"suite", "seeds", "rows"})

    def check_prompts(self) -> str:
        """Digest of both prompt lists; a prompt in both is refused."""
        train, heldout = self.prompt_list("train"), self.prompt_list("heldout")
        leaked = sorted(set(train) & set(heldout))
        if leaked:
            raise BenchError(
                f"prompt {leaked[0]!r} is in the training and in the held-out list: remove it from one of them."
            )
        if self.budget.prompts > len(train):
            raise BenchError(
                f"budget.prompts is {self.budget.prompts}, but the training list holds {len(train)}: lower it."
            )
        return digest([train, heldout])


def _merge_nano(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` over `defaults`, key by key, mappings one level deep."""
    both = {
        key: {**defaults[key], **given[key]}
        for key in defaults.keys() & given.keys()
        if isinstance(given[key], dict) and isinstance(defaults[key], dict)
    }
    return {**defaults, **given, **both}


def packaged(name: str) -> bool:
    """Whether the name is that of a checkpoint that comes with the project."""
    return name == "nano" or name.startswith("nano/")


def resolve(name: str) -> Path:
    """A path of the suite.

    Relative names count from the project's root, "nano" and "nano/<part>" are the packaged checkpoints.
    """
    if name == "nano":
        name = "nano/hunyuanvideo15"
    if name.startswith("nano/"):
        return ROOT / "bench" / "nano" / "checkpoints" / name.removeprefix("nano/")
    return ROOT / name
