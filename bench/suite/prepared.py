"""The prepared suite: methods, KL policies, prompts, checkpoints and parallelism, made once from the YAML."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bench import plugins
from bench.algorithm.forward import keeps_old
from bench.algorithm.kl import has_kl_terms
from bench.algorithm.sampling import RolloutConfig
from bench.api import (
    AdvantageRule,
    AnyMethod,
    Backbone,
    BlendsAnchors,
    ChecksMachine,
    EncodesFirst,
    Evaluator,
    ForwardMethod,
    KLPolicy,
    Method,
    ShardsWeights,
)
from bench.core.errors import BenchError
from bench.core.world import SINGLE_PROCESS, World
from bench.flow import sigma_schedule
from bench.suite.checkpoints import Checkpoint, checkpoint_names
from bench.suite.devices import cp_degree
from bench.suite.methods import make_method, recorded_params, rollout_config
from bench.suite.paths import PATH_ENDINGS, is_path_key, resolve_parameters
from bench.suite.prompts import PromptLists
from bench.suite.schema import PluginSpec, RowSpec, Suite


@dataclass(frozen=True)
class PreparedRow:
    """One row of the table, with its method and its KL policy."""

    spec: RowSpec
    method: AnyMethod
    """With the eta of the suite's noise policy; its clip range is not scaled yet (`PreparedSuite.method`)."""
    kl_policy: KLPolicy

    @property
    def name(self) -> str:
        return self.spec.name

    def identity(self) -> dict[str, Any]:
        """Method and KL policy with all parameters, without the label; equal rows of two suites share their runs."""
        return {
            "method": self.spec.method,
            "params": recorded_params(self.method),
            "kl": self.spec.kl_spec.name,
            "kl_params": dataclasses.asdict(self.kl_policy),
            "lr": self.spec.lr,
        }


@dataclass(frozen=True)
class PreparedSuite:
    """A suite with the objects that its YAML names. Made by `prepare`; pickled and compared by its settings."""

    suite: Suite
    rows: tuple[PreparedRow, ...] = field(compare=False)
    advantage_rule: AdvantageRule = field(compare=False)
    prompts: PromptLists = field(compare=False)
    checkpoints: dict[str, Checkpoint] = field(compare=False)
    """By use: "backbone", if it takes one, or an evaluator and its parameter, such as "videoalign.base_model"."""
    cp_degree: int = field(compare=False)
    """Processes that work on the same samples: the degree of the backbone's context parallelism."""

    def __reduce__(self) -> tuple[Any, ...]:
        return prepare, (self.suite,)  # a class "module:Class" can be unpickled only after `plugins` has imported it

    def row(self, name: str) -> PreparedRow:
        """The row with this name (its label)."""
        return next(row for row in self.rows if row.name == name)

    def method(self, row: PreparedRow, latent_elements: int) -> AnyMethod:
        """The row's method, its clip range times sqrt(`clip_reference_size` / latent elements), if that is set.

        That of a forward method is not scaled: its ratio is not one of log-probabilities of noise.
        """
        reference = self.suite.clip_reference_size
        if reference is None or not isinstance(row.method, Method):
            return row.method
        scale = math.sqrt(reference / latent_elements)
        return dataclasses.replace(row.method, clip_range=row.method.clip_range * scale)

    @property
    def scored_prompts(self) -> list[str]:
        """The prompts of the evaluation: the held-out or the validation list."""
        return self.prompts.scored(self.suite.evaluation.prompts)

    @property
    def all_prompts(self) -> list[str]:
        """The training prompts, then those of the evaluation."""
        return [*self.prompts.train, *self.scored_prompts]

    @property
    def sigmas(self) -> Float[Tensor, "t1"]:
        """The schedule of the rollouts."""
        return sigma_schedule(self.suite.budget.steps, self.suite.budget.shift)

    def rollout_config(self, seed: int, world: World = SINGLE_PROCESS) -> RolloutConfig:
        """The settings of the suite's rollouts."""
        return rollout_config(self.suite, seed, world)


def prepare(suite: Suite, checkpoints_by_name: dict[str, Checkpoint] | None = None) -> PreparedSuite:
    """Check every name and parameter of the suite and make its objects; checkpoints may be absent.

    `checkpoints_by_name`: a cache, read and extended, so that the variants of a study hash each checkpoint once.
    Raises `BenchError` for a wrong name or parameter of a plug-in or a KL policy, and for wrong prompt lists.
    """
    for name in [*suite.all_evaluators, *suite.evaluator_params]:
        plugins.check("evaluators", name, suite.evaluator_params.get(name, {}))
        _check_path_names("evaluators", name)
    plugins.check("backbones", suite.backbone.name, suite.backbone.train)
    _check_path_names("backbones", suite.backbone.name)
    if "checkpoint" in suite.backbone.train:
        raise BenchError("backbone.train.checkpoint is not a setting: write the folder as backbone.checkpoint.")
    if "shard" in suite.backbone.train:
        raise BenchError(
            "backbone.train.shard belongs to the launch, as no result depends on it: "
            "take it out of the YAML and use --shard."
        )
    rows = tuple(_prepare_row(suite, row) for row in suite.rows)
    _check_backbone_checkpoint(suite)
    names = checkpoint_names(suite)
    cache = {} if checkpoints_by_name is None else checkpoints_by_name
    checkpoints = {use: cache.setdefault(name, Checkpoint(name)) for use, name in sorted(names.items())}
    return PreparedSuite(suite, rows, _advantage_rule(suite), suite.prompt_lists(), checkpoints, cp_degree(suite))


def _prepare_row(suite: Suite, row: RowSpec) -> PreparedRow:
    """The row with its objects; a forward method with a KL policy, or on a backbone that lacks it, is refused."""
    method = make_method(suite, row)
    kl_policy = plugins.kl_policy(row.kl_spec.name, **row.kl_spec.params)
    if isinstance(method, ForwardMethod):
        if kl_policy.anchors() or has_kl_terms(kl_policy):
            raise BenchError(
                f"row {row.name!r}: {row.method} is a forward method, whose loss has no log-probabilities for the KL "
                f"policy {row.kl_spec.name!r}: set kl to none."
            )
        backbone = plugins.find("backbones", suite.backbone.name)
        if keeps_old(method) and not (isinstance(backbone, type) and issubclass(backbone, BlendsAnchors)):
            raise BenchError(
                f"row {row.name!r}: {row.method} has an old policy, which backbone {suite.backbone.name!r} cannot let "
                "follow the policy: give it a method blend_anchor (bench.api.BlendsAnchors)."
            )
    return PreparedRow(row, method, kl_policy)


def _check_backbone_checkpoint(suite: Suite) -> None:
    """Refuse a suite that names no checkpoint for a backbone which needs one, or one which takes none."""
    spec = suite.backbone
    parameter = inspect.signature(plugins.find("backbones", spec.name)).parameters.get("checkpoint")
    if spec.checkpoint is not None and parameter is None:
        raise BenchError(f"backbone {spec.name!r} takes no checkpoint: leave out backbone.checkpoint.")
    if spec.checkpoint is None and parameter is not None and parameter.default is parameter.empty:
        raise BenchError(f"backbone {spec.name!r} needs a checkpoint: name its folder under backbone.checkpoint.")


def _advantage_rule(suite: Suite) -> AdvantageRule:
    spec = suite.advantage
    if isinstance(spec, PluginSpec):
        return plugins.advantage_rule(spec.kind, **spec.params)
    return plugins.advantage_rule("standardized", **dataclasses.asdict(spec))


def _check_path_names(group: str, name: str) -> None:
    """Refuse a plug-in with a parameter that is a `Path` by its type and not by its name.

    A suite is read, and its paths are resolved, without the plug-in's class, so the names have to tell.
    """
    for key, parameter in inspect.signature(plugins.find(group, name)).parameters.items():
        annotation = parameter.annotation
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        types = {each.strip().rpartition(".")[2] for each in text.split("|")}
        if "Path" in types <= {"Path", "None"} and not is_path_key(key):
            raise BenchError(
                f"{plugins.KINDS[group]} {name!r}: its parameter {key!r} is a Path, but its name does not say so; "
                f"let the name end in {', '.join(PATH_ENDINGS)}, so that a suite resolves and hashes it."
            )


def prepare_all(suites: Sequence[Suite]) -> list[PreparedSuite]:
    """A suite, or all variants of a study, which share their checkpoints."""
    checkpoints_by_name: dict[str, Checkpoint] = {}
    return [prepare(suite, checkpoints_by_name) for suite in suites]


def check_machine(prepared: PreparedSuite) -> None:
    """Raise a `BenchError` where this machine lacks something for the settings of the backbone."""
    backbone = plugins.find("backbones", prepared.suite.backbone.name)
    if isinstance(backbone, type) and issubclass(backbone, ChecksMachine):
        backbone.check_machine(prepared.suite.backbone.train)


def encode_first(prepared: PreparedSuite, prompts: Sequence[str]) -> Any:
    """The text states of the prompts, from text encoders that are in memory alone; None where they stay there."""
    spec, checkpoint = prepared.suite.backbone, prepared.checkpoints.get("backbone")
    backbone = plugins.find("backbones", spec.name)
    if not (isinstance(backbone, type) and issubclass(backbone, EncodesFirst)):
        return None
    return backbone.encode_first(
        prompts, None if checkpoint is None else checkpoint.path, resolve_parameters(spec.train)
    )


def make_backbone(prepared: PreparedSuite, world: World = SINGLE_PROCESS, prompts: Sequence[str] = ()) -> Backbone:
    """The suite's backbone; its weights are sharded over the processes if `world.shard` is set.

    `prompts`: those whose text states are made before the other models are loaded, where the backbone can do that.
    Raises `BenchError` for a machine that lacks something, before it encodes, and for a backbone that cannot shard.
    """
    check_machine(prepared)
    name, params = prepared.suite.backbone.name, resolve_parameters(prepared.suite.backbone.train)
    given: dict[str, Any] = {}
    if "backbone" in prepared.checkpoints:
        given["checkpoint"] = prepared.checkpoints["backbone"].path
    if world.shard is not None:
        given["shard"] = world.shard
        if not issubclass(plugins.find("backbones", name), ShardsWeights):
            raise BenchError(f"backbone {name} cannot shard its weights over processes: run it without --shard.")
    states = encode_first(prepared, prompts) if prompts else None
    backbone = plugins.backbone(name, **given, **params)
    if states is not None:
        assert isinstance(backbone, EncodesFirst)
        backbone.take_states(states)
    return backbone


def make_evaluator(prepared: PreparedSuite, name: str) -> Evaluator:
    """One of the suite's evaluators."""
    return plugins.evaluator(name, **resolve_parameters(prepared.suite.evaluator_params.get(name, {})))
