"""`bench nano PART`: run the recipe of one part of the nano checkpoints, measure them, or rewrite derived files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.core.hashing import GOLDEN, write_manifest
from bench.nano.parts import Part
from bench.nano.recipe import FOLDERS, RecipeConfig

POLICY, WAN = "hunyuanvideo15", "wan21"
START = "start"
"""Folder, below that of the checkpoints, of the model that `videoreward-start` trains; it is not shipped."""


@dataclass(frozen=True)
class Overrides:
    """What the command line sets of a recipe."""

    steps: int | None
    """Optimizer steps; None: those of the recipe."""
    seed: int
    device: str

    def options(self, steps: int) -> dict[str, Any]:
        """Options of a recipe that has `steps` optimizer steps of its own."""
        return {"steps": steps if self.steps is None else self.steps, "seed": self.seed, "device": self.device}


def build_part(name: Part, out: Path, steps: int | None, seed: int, device: str) -> None:
    """Make one part below `out`, which must hold the parts that it builds on; "manifest" only rewrites the manifests.

    "golden" writes the golden scores of every evaluator. Commit them with a reason: runs are checked against them.
    """
    recipes: dict[Part, Callable[[Path, Overrides], None]] = {
        "vae": _vae,
        "policy": _policy,
        "videoreward-start": _videoreward_start,
        "videoreward": _videoreward,
        "clip": _clip,
        "pickscore": _pickscore,
        "wan-vae": _wan_vae,
        "wan-policy": _wan_policy,
    }
    if name in ("measure", "wan-measure"):
        from bench.nano import measure

        measure.write(out, POLICY if name == "measure" else WAN, seed)
        return
    if name == "golden":
        _golden(out)
        return
    if name in recipes:
        recipes[name](out, Overrides(steps, seed, device))
    changed = {"vae": POLICY, "policy": POLICY, "wan-vae": WAN, "wan-policy": WAN}.get(name, name)
    folders = FOLDERS if name == "manifest" else (changed,)
    for folder in folders:
        if (out / folder).is_dir():
            write_manifest(out / folder)


def _require(folder: Path, part: str) -> Path:
    if not folder.is_dir():
        raise BenchError(f"folder {folder}, on which this part is trained, is missing: run `bench nano {part}` first.")
    return folder


def _vae(out: Path, overrides: Overrides) -> None:
    from bench.nano import vae

    vae.train(out / POLICY, RecipeConfig(batch=128, lr=2e-3, **overrides.options(steps=6000)))


def _policy(out: Path, overrides: Overrides) -> None:
    from bench.nano import policy
    from bench.nano.flow_matching import PolicyRecipe

    _require(out / POLICY / "vae", "vae")
    policy.train(out / POLICY, PolicyRecipe(batch=64, lr=2e-3, **overrides.options(steps=6000)))


def _wan_vae(out: Path, overrides: Overrides) -> None:
    from bench.nano import wan_vae

    teacher = _require(out / POLICY / "vae", "vae")
    wan_vae.train(out / WAN, wan_vae.WanVAERecipe(batch=16, lr=2e-3, **overrides.options(steps=6000)), teacher)


def _wan_policy(out: Path, overrides: Overrides) -> None:
    from bench.nano import wan_policy
    from bench.nano.flow_matching import PolicyRecipe

    teacher = _require(out / POLICY / "vae", "vae")
    wan_policy.train(out / WAN, PolicyRecipe(batch=64, lr=2e-3, **overrides.options(steps=6000)), teacher)


def _decodes(out: Path) -> Any:
    """Source of decodes of disturbed latents; it needs the VAE alone."""
    from bench.nano import vae
    from bench.nano.sources import Decodes

    return Decodes(vae.load(_require(out / POLICY / "vae", "vae")))


def _generated(out: Path) -> dict[str, Any]:
    """Mostly clips that the base model generates, some decodes and renders; evaluation is on generated ones alone."""
    from bench import plugins
    from bench.core.rng import stream
    from bench.nano.sources import Samples, mixture, renders

    _require(out / POLICY / "transformer", "policy")
    backbone = plugins.backbone("hunyuanvideo15", checkpoint=out / POLICY, device="cpu")
    backbone.reset(stream(0, "initial_policy"))
    s, d = Samples(backbone), _decodes(out)
    return {"source": mixture(s, s, s, s, s, d, d, renders), "eval_source": s}


def _videoreward_start(out: Path, overrides: Overrides) -> None:
    """On decodes and renders, which need no policy; `videoreward` continues from the result."""
    from bench.nano import videoreward
    from bench.nano.reward_training import RewardRecipe
    from bench.nano.sources import mixture, renders

    d = _decodes(out)
    sources: dict[str, Any] = {"source": mixture(d, d, d, d, renders), "eval_source": d}
    options = overrides.options(steps=3500)
    videoreward.train(out / START, RewardRecipe(batch=32, lr=2e-3, pool=10_000, tests=768, **sources, **options))


def _videoreward(out: Path, overrides: Overrides) -> None:
    """Continues from the model of `videoreward-start`."""
    from bench.nano import videoreward
    from bench.nano.reward_training import RewardRecipe

    init = _require(out / START / "videoreward", "videoreward-start")
    options = {**overrides.options(steps=7000), **_generated(out)}
    videoreward.train(out, RewardRecipe(batch=32, lr=1.5e-3, pool=16_000, tests=1536, init=init, **options))


def _clip(out: Path, overrides: Overrides) -> None:
    from bench.nano import clip
    from bench.nano.reward_training import RewardRecipe

    options = {**overrides.options(steps=3000), **_generated(out)}
    clip.train_clip(out, RewardRecipe(batch=128, lr=1e-3, pool=12_000, tests=1536, **options))


def _pickscore(out: Path, overrides: Overrides) -> None:
    """Continues from CLIP's weights."""
    from bench.nano import clip
    from bench.nano.reward_training import RewardRecipe

    init = _require(out / "clip", "clip")
    options = {**overrides.options(steps=6000), **_generated(out)}
    clip.train_pickscore(out, RewardRecipe(batch=64, lr=1e-3, pool=16_000, tests=1536, init=init, **options))


def _golden(out: Path) -> None:
    """Golden scores of the packaged evaluators below `out`, and of the closed-form ones."""
    from bench import plugins
    from bench.checks.golden import golden_path, write_golden
    from bench.suite.schema import NANO

    for name, defaults in NANO["evaluator_params"].items():
        params = {**defaults, "checkpoint": _require(out / defaults["checkpoint"].removeprefix("nano/"), name)}
        evaluator = plugins.evaluator(name, **params)
        target = golden_path(evaluator, params)
        assert target is not None
        write_golden(evaluator, target)
    write_golden(plugins.evaluator("gold"), out / "gold" / GOLDEN)
