"""What is refused before anything is loaded or trained."""

from __future__ import annotations

from pathlib import Path

from bench import plugins
from bench.algorithm.kl import kl_policy
from bench.api import ChecksSuite
from bench.core.errors import BenchError
from bench.suite.build import refuse_shard
from bench.suite.methods import make_method
from bench.suite.schema import Experiment, resolve


def existing_checkpoint(name: str) -> Path:
    """The checkpoint's path; a missing one is refused."""
    path = resolve(name)
    if not path.exists():
        raise BenchError(
            f"checkpoint {path} does not exist: `bench assets SUITE` lists what belongs there and how to fetch it; "
            "mend the path in the suite, or make it with `bench nano` for a nano part."
        )
    return path


def check_suite(exp: Experiment) -> None:
    """Refuse, before anything is loaded or trained, what a run of the suite would refuse."""
    check_names(exp)
    check_backbone(exp)


def check_backbone(exp: Experiment, may_lack: bool = False) -> None:
    """Refuse a checkpoint or settings that the backbone could not load.

    `may_lack`: the checkpoint may be absent; the settings are then looked at alone.
    """
    refuse_shard(exp)
    backbone, name = plugins.find("backbones", exp.backbone.name), exp.backbone.checkpoint
    if isinstance(backbone, type) and issubclass(backbone, ChecksSuite):
        checkpoint = None if may_lack and not resolve(name).exists() else existing_checkpoint(name)
        backbone.check_suite(checkpoint, exp.budget.guidance, exp.backbone.train)


def check_names(exp: Experiment) -> None:
    """Refuse a wrong name or parameter of a plug-in or of a KL policy; checkpoints may be absent."""
    for name in [*exp.judges, *exp.evaluator_params]:
        plugins.check("evaluators", name, exp.evaluator_params.get(name, {}))
    plugins.check("backbones", exp.backbone.name, exp.backbone.train)
    for row in exp.rows:
        make_method(exp, row, exp.clip_reference_size or 1)
        kl_policy(row.kl_spec.name, **row.kl_spec.params)
