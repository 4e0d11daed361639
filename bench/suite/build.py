"""From a suite's names to objects: a job, its backbone, its evaluators, and its row's method."""

from __future__ import annotations

from typing import Any

from bench import plugins
from bench.api import Backbone, BenchError, Evaluator, ShardsWeights
from bench.core.world import SINGLE_PROCESS, World
from bench.suite.schema import PATHS, Experiment, resolve


def refuse_shard(exp: Experiment) -> None:
    """A suite does not say how weights are spread over processes."""
    if "shard" in exp.backbone.train:
        raise BenchError(
            "backbone.train.shard belongs to the launch, as no result depends on it: "
            "take it out of the YAML and use --shard."
        )


def make_backbone(exp: Experiment, world: World = SINGLE_PROCESS) -> Backbone:
    """The suite's backbone; its weights are spread over the processes where the launch says so."""
    name, params = exp.backbone.name, exp.backbone.train
    refuse_shard(exp)
    spread: dict[str, Any] = {}
    if world.shard is not None:
        spread["shard"] = world.shard
        if not issubclass(plugins.find("backbones", name), ShardsWeights):
            raise BenchError(f"backbone {name} cannot spread its weights over processes: run it without --shard.")
    return plugins.backbone(name, checkpoint=resolve(exp.backbone.checkpoint), **spread, **params)


def make_evaluator(exp: Experiment, name: str) -> Evaluator:
    params = dict(exp.evaluator_params.get(name, {}))
    for key in PATHS:
        if isinstance(params.get(key), str):
            params[key] = resolve(params[key])
    if str(params.get("model", "")).endswith(".json"):  # else the name of a model
        params["model"] = resolve(params["model"])
    return plugins.evaluator(name, **params)
