"""The keys of a suite's YAML file, with their meaning, range and default; unknown keys are refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from bench.core.budget import PROBE_EVERY, AdvantageSettings, Budget
from bench.core.errors import BenchError
from bench.core.limits import NAME_CHARACTERS, SEED_BITS, STEPS
from bench.core.text import shown
from bench.suite.paths import change_paths, names_package, packaged
from bench.suite.prompts import PromptLists, read_prompts
from bench.suite.search import Absent, SearchSpec


class StrictModel(BaseModel):
    """Base of all parts of a suite: frozen, finite numbers only, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BackboneSpec(StrictModel):
    """The video generator."""

    name: str
    """Entry point of the group bench.backbones, or "module:Class"."""
    checkpoint: str | None = None
    """A folder, or "nano/PART" for a checkpoint that comes with the project; "nano" is that of the backbone, such as
    "nano/hunyuanvideo15". null for a backbone without a checkpoint.

    A relative path in a YAML file counts from the folder of that file, here and for all paths of a suite.
    """
    train: dict[str, Any] = {}
    """Constructor arguments of the backbone, and what is trained.

    They are those of the backbone's class. For the packaged ones: size of the video, precision, device, parallelism,
    and the LoRA (`lora_rank`, `lora_alpha`, `lora_targets`; rank 0 trains all weights).
    """

    @property
    def checkpoint_name(self) -> str | None:
        """The checkpoint, with "nano" alone as the packaged one of this backbone."""
        own = self.checkpoint == "nano" and ":" not in self.name
        return f"nano/{self.name}" if own else self.checkpoint


class PluginSpec(BaseModel):
    """A plug-in of one's own: its name, and beside it the parameters of its class."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    kind: str
    """Entry point of the plug-in's group, or "module:Class"."""

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the class."""
        return dict(self.model_extra or {})


class Native(StrictModel):
    """Each method keeps its own eta: the paper's default, or the one of the row's `params`."""

    kind: Literal["native"] = "native"


class CommonEta(StrictModel):
    """One eta for all methods. Equal eta is not equal noise: each method has its own formula of the std."""

    kind: Literal["common_eta"]
    eta: float = Field(ge=0)
    """Noise scale of every method, at least 0; with 0 no step is noisy, so that none can be trained."""


class MatchedRSS(StrictModel):
    """Eta is solved for each method, between 0 and 1, so that all inject the same noise in a rollout."""

    kind: Literal["matched_rss"]
    rss: float = Field(gt=0)
    """Root of the summed variance that the noisy steps of a rollout add to a latent element, above 0."""


def _noise_tag(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if kind in ("native", "common_eta", "matched_rss") else "plugin"


def _advantage_tag(value: Any) -> str:
    return "plugin" if isinstance(value, PluginSpec) or (isinstance(value, dict) and "kind" in value) else "rule"


NoiseSpec = Annotated[
    Annotated[Native, Tag("native")]
    | Annotated[CommonEta, Tag("common_eta")]
    | Annotated[MatchedRSS, Tag("matched_rss")]
    | Annotated[PluginSpec, Tag("plugin")],
    Discriminator(_noise_tag),
]
AdvantageSpec = Annotated[
    Annotated[AdvantageSettings, Tag("rule")] | Annotated[PluginSpec, Tag("plugin")], Discriminator(_advantage_tag)
]


class Evaluation(StrictModel):
    """Scoring of the held-out videos with the policy at the end of the budget and, for a curve, during training."""

    evaluators: list[str]
    """Entry points of the group bench.evaluators, or "module:Class"; each once, those of `reward` among them."""
    steps: int = Field(ge=1, le=STEPS)
    """Sampling steps of a held-out video (deterministic sampler, the budget's shift and guidance), at least 1."""
    videos_per_prompt: int = Field(ge=1)
    """Videos of each scored prompt, at least 1; they differ in their initial noise."""
    prompts: Literal["heldout", "validation"] = "heldout"
    """Which prompts are scored: those of reported tables, or those by which settings are chosen (pilot runs)."""
    seed: int = 0
    """Key of the evaluation noise, independent of the training seed, so that all rows and seeds are paired.

    From 1000 on for validation prompts, below for held-out ones, so that no choice has seen the noise of a table."""
    every: int | None = Field(default=None, ge=1)
    """Updates between two points of the held-out curve, at least 1; null: no curve. A shorter run has no point.

    A point scores the policy of that update with the sampler, the noise and the evaluators of the evaluation. It
    changes nothing of the training.
    """
    curve_videos: int = Field(default=1, ge=1)
    """Videos of each prompt that a point of the curve scores, 1 to `videos_per_prompt`: the first ones."""
    keep_videos: int = Field(default=0, ge=0)
    """Videos of each prompt that the evaluation stores beside its scores, 0 to `videos_per_prompt`: the first ones."""


EXTRA_FILES: dict[str, Any] = {
    name: Evaluation.model_fields[name].default for name in ("every", "curve_videos", "keep_videos")
}
"""Keys of `evaluation`, with their defaults, that decide which files a run has beside its scores, and no score.

Older records do not have them."""


class Prompts(StrictModel):
    """The prompt files: one prompt per line; empty lines and lines that start with '#' are skipped.

    A prompt that is in two of the files is refused."""

    train: str
    """Prompts of the rollouts; at least as many as `budget.prompts`."""
    heldout: str
    """Prompts of reported tables: nothing is trained on them and nothing is chosen by them."""
    validation: str | None = None
    """Prompts by which settings are chosen. None: there are none, and `evaluation.prompts` has to be heldout."""


class KLSpec(StrictModel):
    """A KL policy with parameters of its own."""

    name: str
    """none, fixed, stepwise, moving or dual (see `bench.algorithm.kl`), another entry point of the group
    bench.kl_policies, or "module:Class"."""
    params: dict[str, Any] = {}
    """Fields of the KL policy's class that differ from its defaults."""


class RowSpec(StrictModel):
    """One line of the table: a method with its KL policy."""

    method: str
    """Entry point of the group bench.methods, or "module:Class"."""
    kl: str | KLSpec = "none"
    """Name of a KL policy, or `{name: ..., params: {...}}`. "none": no KL term."""
    params: dict[str, Any] = {}
    """Fields of the method's class that differ from the paper's defaults; the row then needs a label."""
    label: str | None = None
    """Name of the row and of its folder: letters, digits, '-', '_' and '.'. None: "METHOD-KL", such as "cps-fixed"."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of the row, above 0; None: the suite's. It makes the row open."""
    eta_factor: float | None = Field(default=None, gt=0)
    """Factor on the row's eta, above 0; the product is at most 1, or that eta where it is larger. None: 1. Only with a
    noise policy that keeps it."""
    lacks: list[Absent] = []
    """Settings of the suite's search that the row's method does not have, so that its trials leave them out."""

    @property
    def kl_spec(self) -> KLSpec:
        return self.kl if isinstance(self.kl, KLSpec) else KLSpec(name=self.kl)

    @property
    def name(self) -> str:
        """Label of the row, and the name of its folder."""
        return self.label or f"{self.method}-{self.kl_spec.name}".replace(":", ".")


VALIDATION_SEED = 1000
"""Evaluation seeds from this one on belong to validation prompts, those below to held-out ones."""
PILOT_SEED = 100
"""Seeds from this one on are pilot seeds, which tune settings before the reported seeds are run."""
UNSHARED = ("seeds", "search", "rows", "compare_with")
"""Which runs a suite has and what its table compares: no setting of a run. The variants of a study share them."""
NANO: dict[str, Any] = {
    "prompts": {
        "train": "bench/prompts/nano_train.txt",
        "heldout": "bench/prompts/nano_heldout.txt",
        "validation": "bench/prompts/nano_validation.txt",
    },
    "evaluator_params": {
        "videoalign": {"checkpoint": "nano/videoreward", "device": "cpu"},
        "clipscore": {"checkpoint": "nano/clip", "device": "cpu"},
        "pickscore": {"checkpoint": "nano/pickscore", "device": "cpu"},
    },
    "clip_reference_size": 32 * 21 * 30 * 53,
}
"""Defaults of a suite on the packaged nano checkpoint: its prompts, its evaluators, and the latent size of 480p
HunyuanVideo-1.5 with 81 frames, for which the methods' clip ranges are taken to hold."""


class Suite(StrictModel):
    """One suite: all settings that decide its numbers."""

    suite: str = Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)?$")
    """Name of the suite and of its folder of records; "study/variant" for one variant of a study."""
    backbone: BackboneSpec
    """The video generator, its checkpoint, and what of it is trained."""
    budget: Budget
    """What every row spends: updates, samples, steps, optimizer. A row has no budget of its own."""
    decode: Literal["predicted_x0", "final_latent"] = "predicted_x0"
    """What is decoded and rewarded: the last step's predicted x0 (then not trained), or the noisy final latent.

    The default rewards no method for a video with residual noise."""
    last_step: Literal["trained", "untrained"] | None = None
    """Whether the last step may train if `decode` is final_latent. None: trained, like every other noisy step."""
    uncond_branch: Literal["trained", "detached"] | None = None
    """Whether gradients flow through the unconditional branch of guidance (FlowGRPO, DanceGRPO: detached).

    None: trained."""
    kl_probe_every: int | None = Field(default=None, ge=0)
    """Updates between two measurements of the KL term's share of the gradient; 0: never.

    A measurement is a backward pass of its own and trains nothing. None: 3, which is coprime to the usual refreshes of
    an anchor (10), so that all of its ages are sampled."""
    group_noise: Literal["distinct", "shared"] = "distinct"
    """Initial noise of a group: one per sample, or one for all samples of a prompt."""
    noise_policy: NoiseSpec = Native()
    """How much noise the methods explore with: native, common_eta, matched_rss, or "module:Class" with its parameters.
    """
    advantage: AdvantageSpec = AdvantageSettings()
    """How rewards become advantages, the same for all rows; a rule of one's own is `{kind: "module:Class", ...}`."""
    clip_reference_size: int | None = Field(default=None, gt=0)
    """Latent elements (channels x frames x height x width) for which the methods' clip ranges are stated, above 0.

    Mean log-ratios scale as 1 / sqrt(elements), so each clip range is multiplied by sqrt(reference / elements). None:
    clip ranges are taken as they are.
    """
    reward: dict[str, dict[str, float]]
    """Evaluator to metric to weight: the training reward is the weighted sum.

    Each metric occurs once, and at least one weight is not 0. A negative weight lowers its metric."""
    shuffle_rewards: bool = False
    """Negative control: the rewards of each group are permuted at random, so that nothing can be learnt."""
    monitor: list[str] = []
    """Evaluators that also score the training videos, for the curves; they train nothing and cost no reward calls.

    An evaluator that gives a reward already is called once."""
    evaluation: Evaluation
    """Scoring of the held-out videos."""
    evaluator_params: dict[str, dict[str, Any]] = {}
    """Constructor arguments of each evaluator; `checkpoint`, `base_model` and `processor` may be "nano/PART"."""
    prompts: Prompts
    """The files of the training and of the held-out prompts."""
    seeds: list[int] = Field(min_length=1)
    """Training seeds, all different: one run per row and seed. Seeds from 100 on are pilot seeds.

    Noise and prompt order are functions of the seed."""
    search: SearchSpec | None = None
    """A search over settings: each row becomes one row per trial. None: the rows are as they stand."""
    rows: list[RowSpec] = Field(min_length=1)
    """The lines of the table, at least one; their names differ."""
    compare_with: str | None = None
    """Name of a row: a table tests each other row against it. null: every pair is tested, of at most six closed rows.

    Choose it before the runs, for the question that the suite asks."""

    @field_validator("rows")
    @classmethod
    def _expand_search(cls, rows: list[RowSpec], info: ValidationInfo) -> list[RowSpec]:
        search = info.data.get("search")
        return rows if search is None else search.expand(rows)

    def model_post_init(self, context: Any) -> None:
        for message in (
            *self._row_errors(),
            *self._table_errors(),
            *self._search_errors(),
            *self._score_errors(),
            *self._evaluation_errors(),
            *self._video_errors(),
        ):
            raise BenchError(f"suite {self.suite}: {message}")

    def _row_errors(self) -> Iterator[str]:
        if len(self.suite) > NAME_CHARACTERS:
            yield f"the name has {len(self.suite)} characters and names a folder; use at most {NAME_CHARACTERS}."
        names = [row.name for row in self.rows]
        for name in names:
            if names.count(name) > 1:
                yield f"two rows are called {name!r}; give each a different 'label:'."
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name == "base":
                yield f"{shown(repr(name))} names a folder; use letters, digits, '-', '_' or '.'."
            if len(name) > NAME_CHARACTERS:
                yield f"row {shown(name, 60)!r} names a folder; use at most {NAME_CHARACTERS} characters."
        for row in self.rows:
            changed = [key for key in ("params", "lr", "eta_factor") if getattr(row, key)]
            if changed and row.label is None:
                yield f"row {row.name!r} sets {changed[0]}, so give it a 'label:' that names the change."

    def _table_errors(self) -> Iterator[str]:
        """Errors of the seeds and of the row that the others are compared with."""
        names = [row.name for row in self.rows]
        if self.compare_with is not None and self.compare_with not in names:
            yield (
                f"compare_with is {shown(repr(self.compare_with))}, which names no row; choose one of "
                f"{shown(', '.join(names))}, or null."
            )
        if len(set(self.seeds)) < len(self.seeds):
            yield f"seeds {shown(self.seeds)} contain one twice; a seed is one training run."
        if max(map(abs, self.seeds)) >= 2**SEED_BITS:
            yield f"seeds {shown(self.seeds)} contain one of more than {SEED_BITS} bits; use smaller ones."

    def _search_errors(self) -> Iterator[str]:
        if self.search is None:
            for row in self.rows:
                if row.lacks:
                    yield f"row {row.name!r} has lacks, which is for a search: leave it out, or add a search."
            return
        yield from self.search.errors(self.rows)
        if self.variant:
            yield "a study has no search: leave out search, or give each variant a suite of its own."
        if self.evaluation.prompts != "validation" or min(self.seeds) < PILOT_SEED:
            yield (
                "a search chooses settings, so it needs evaluation.prompts: validation and pilot seeds, those from "
                f"{PILOT_SEED} on."
            )

    @property
    def name(self) -> str:
        return self.suite

    @property
    def trains_uncond(self) -> bool:
        """Whether gradients flow through the unconditional branch of guidance."""
        return self.uncond_branch != "detached"

    @property
    def probe_every(self) -> int:
        """Updates between two measurements of the KL term's share of the gradient; 0: never."""
        return PROBE_EVERY if self.kl_probe_every is None else self.kl_probe_every

    @property
    def variant(self) -> str:
        """The variant's name; "" for a suite that is not a variant."""
        return self.suite.partition("/")[2]

    @property
    def study(self) -> str:
        """Name of the study that the variant belongs to, or of the suite itself."""
        return self.suite.partition("/")[0]

    @property
    def all_evaluators(self) -> list[str]:
        """Every evaluator that the suite uses, each once."""
        return list(dict.fromkeys([*self.evaluation.evaluators, *self.reward, *self.monitor]))

    def run_plugins(self, row: RowSpec | None) -> list[tuple[str, str]]:
        """Group and name of every plug-in of a run; `row` is None for the base."""
        names = [("backbones", self.backbone.name), *(("evaluators", name) for name in self.all_evaluators)]
        if row is not None:
            names += [("methods", row.method), ("kl_policies", row.kl_spec.name)]
        if isinstance(self.noise_policy, PluginSpec):
            names.append(("noise_policies", self.noise_policy.kind))
        if isinstance(self.advantage, PluginSpec):
            names.append(("advantage_rules", self.advantage.kind))
        return names

    def plugin_names(self) -> list[tuple[str, str]]:
        """Group and name of every plug-in that the suite names, each once."""
        names = [name for row in self.rows for name in self.run_plugins(row)]
        return list(dict.fromkeys([*names, *(("evaluators", name) for name in self.evaluator_params)]))

    def _score_errors(self) -> Iterator[str]:
        metrics = [metric for named in self.reward.values() for metric in named]
        evaluators = self.evaluation.evaluators
        for metric in metrics:
            if metrics.count(metric) > 1:
                yield f"reward metric {metric!r} is given by two evaluators; name each once."
        if not evaluators or len(set(evaluators)) < len(evaluators):
            yield f"evaluation.evaluators is {evaluators}; name each evaluator once."
        for name in self.reward:
            if name not in evaluators:
                yield f"reward evaluator {name!r} is not in evaluation.evaluators; add it there."
        if len(set(self.monitor)) < len(self.monitor):
            yield f"monitor is {self.monitor}; name each evaluator once."
        if not any(weight for named in self.reward.values() for weight in named.values()):
            yield "every reward weight is 0; give at least one metric a weight."

    def _evaluation_errors(self) -> Iterator[str]:
        scored, seed = self.evaluation.prompts, self.evaluation.seed
        if scored == "validation" and self.prompts.validation is None:
            yield "evaluation.prompts is validation, but there are none: name a file as prompts.validation."
        if scored == "validation" and seed < VALIDATION_SEED:
            yield (
                f"evaluation.seed is {seed}, which belongs to held-out prompts: set it to {VALIDATION_SEED} or more "
                "for validation prompts."
            )
        if scored == "heldout" and seed >= VALIDATION_SEED:
            yield (
                f"evaluation.seed is {seed}; seeds from {VALIDATION_SEED} on belong to validation prompts: set a "
                "smaller one, or evaluation.prompts: validation."
            )

    def _video_errors(self) -> Iterator[str]:
        """Errors of the curve and of the kept videos."""
        spec = self.evaluation
        for name in ("curve_videos", "keep_videos"):
            if (count := getattr(spec, name)) > spec.videos_per_prompt:
                yield (
                    f"evaluation.{name} is {count}, but a prompt has {spec.videos_per_prompt} video(s): set at most "
                    "evaluation.videos_per_prompt."
                )

    @model_validator(mode="before")
    @classmethod
    def _fill_nano(cls, data: Any) -> Any:
        backbone = data.get("backbone") if isinstance(data, dict) else None
        if not isinstance(backbone, dict) or not packaged(str(backbone.get("checkpoint"))):
            return data
        filled = {**NANO, **data}
        for key in ("prompts", "evaluator_params"):
            if isinstance(filled[key], dict):
                filled[key] = merge_mappings(NANO[key], filled[key])
        own = data.get("prompts")
        if isinstance(own, dict) and {"train", "heldout"} & own.keys():  # nano's would overlap with the user's own
            filled["prompts"]["validation"] = own.get("validation")
        return filled

    @property
    def scale(self) -> Literal["nano", "full"]:
        """Scale of the model, stored in records; a table never mixes the two."""
        return "nano" if packaged(self.backbone.checkpoint or "") else "full"

    @property
    def weights(self) -> dict[str, float]:
        """Metric to weight, over all reward evaluators."""
        return {metric: weight for metrics in self.reward.values() for metric, weight in metrics.items()}

    def prompt_list(self, which: Literal["train", "heldout", "validation"]) -> list[str]:
        """Prompts of one of the files."""
        return read_prompts(getattr(self.prompts, which), f"prompts.{which}")

    def read_prompts(self) -> PromptLists:
        """The lists of the prompt files, each of which is valid by itself."""
        validation = None if self.prompts.validation is None else self.prompt_list("validation")
        return PromptLists(self.prompt_list("train"), self.prompt_list("heldout"), validation)

    def prompt_lists(self) -> PromptLists:
        """The prompt lists, checked against each other and against the budget."""
        lists = self.read_prompts()
        lists.check(self.budget.prompts)
        return lists

    def shared(self) -> dict[str, Any]:
        """Settings that all runs share: everything but the name, `UNSHARED` and the user's own paths.

        Two paths are the same setting if the contents are: the digests of prompts and checkpoints stand for them.
        """
        settings = self.model_dump(mode="json", exclude={"suite", *UNSHARED})
        return change_paths(settings, lambda path: path if names_package(path) else None)


def merge_mappings(
    base: dict[str, Any], changes: dict[str, Any], keys: Collection[str] | None = None
) -> dict[str, Any]:
    """`changes` over `base`. Values that are mappings in both are merged, one level deep; if `keys`, only those.

    A change with the key `kind`, a plug-in with its parameters, replaces the whole value.
    """
    merged = {
        key: {**base[key], **changes[key]}
        for key in (base.keys() if keys is None else keys)
        if isinstance(base.get(key), dict) and isinstance(changes.get(key), dict) and "kind" not in changes[key]
    }
    return {**base, **changes, **merged}
