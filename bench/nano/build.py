"""`bench nano PART`: run the recipe of one part of the nano checkpoints, measure them, or rewrite what lies beside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.core.manifest import GOLDEN, write_manifest
from bench.nano.recipe import FOLDERS

POLICY = "hunyuanvideo15"
START = "start"
"""Where `videoreward-start` leaves its model, below the folder of the checkpoints; it is not shipped."""


def build_part(name: str, out: Path, steps: int | None, seed: int, device: str) -> None:
    """Make one part below `out`, whose parts it builds on must lie there; "manifest" only rewrites the manifests.

    "golden" writes the golden scores of every scorer, to be committed with a reason: runs are held to them.
    """
    recipes: dict[str, Callable[[Path, int | None, int, str], None]] = {
        "vae": _vae,
        "policy": _policy,
        "videoreward-start": _videoreward_start,
        "videoreward": _videoreward,
        "clip": _clip,
        "pickscore": _pickscore,
    }
    if name == "measure":
        from bench.nano import measure

        measure.write(out, seed)
        return
    if name == "golden":
        _golden(out)
        return
    if name in recipes:
        recipes[name](out, steps, seed, device)
    folders = FOLDERS if name == "manifest" else (POLICY if name in ("vae", "policy") else name,)
    for folder in folders:
        if (out / folder).is_dir():
            write_manifest(out / folder)


def _require(folder: Path, what: str) -> Path:
    if not folder.is_dir():
        raise BenchError(
            f"this part is trained on {folder}, which is missing: make it first with `bench nano {what}`."
        )
    return folder


def _steps(steps: int | None) -> dict[str, Any]:
    """The recipe's own number of steps, unless another one is asked for."""
    return {} if steps is None else {"steps": steps}


def _vae(out: Path, steps: int | None, seed: int, device: str) -> None:
    from bench.nano import vae

    vae.train(out / POLICY, seed=seed, device=device, **_steps(steps))


def _policy(out: Path, steps: int | None, seed: int, device: str) -> None:
    from bench.nano import policy

    _require(out / POLICY / "vae", "vae")
    policy.train(out / POLICY, seed=seed, device=device, **_steps(steps))


def _decodes(out: Path) -> Any:
    """Clips that are decodes of disturbed latents; they need the VAE alone."""
    from diffusers import AutoencoderKLHunyuanVideo15

    from bench.backbones.hunyuanvideo15.vae_mask import allow_batches
    from bench.nano.preferences import Decodes

    vae = AutoencoderKLHunyuanVideo15.from_pretrained(_require(out / POLICY / "vae", "vae"))
    return Decodes(allow_batches(vae))


def _generated(out: Path) -> dict[str, Any]:
    """Mostly clips that the base model generates, some decodes and renders; the exam has generated ones alone."""
    from bench import plugins
    from bench.core.rng import stream
    from bench.nano.preferences import Samples, mixture, renders

    _require(out / POLICY / "transformer", "policy")
    backbone = plugins.backbone("hunyuanvideo15", checkpoint=out / POLICY, device="cpu")
    backbone.reset(stream(0, "initial_policy"))
    s, d = Samples(backbone), _decodes(out)
    return {"source": mixture(s, s, s, s, s, d, d, renders), "exam": s}


def _videoreward_start(out: Path, steps: int | None, seed: int, device: str) -> None:
    """On decodes and renders, which need no policy; `videoreward` goes on from here."""
    from bench.nano import videoreward
    from bench.nano.preferences import mixture, renders

    d = _decodes(out)
    arguments: dict[str, Any] = {"steps": 3500, **_steps(steps)}
    videoreward.train(
        out / START,
        source=mixture(d, d, d, d, renders),
        exam=d,
        seed=seed,
        pool=10_000,
        tests=768,
        device=device,
        **arguments,
    )


def _videoreward(out: Path, steps: int | None, seed: int, device: str) -> None:
    """From the start on."""
    from bench.nano import videoreward

    start = _require(out / START / "videoreward", "videoreward-start")
    more: dict[str, Any] = {"steps": 7000, **_steps(steps), **_generated(out)}
    videoreward.train(out, seed=seed, lr=1.5e-3, init=start, pool=16_000, tests=1536, device=device, **more)


def _clip(out: Path, steps: int | None, seed: int, device: str) -> None:
    from bench.nano import clip

    more: dict[str, Any] = {"steps": 3000, **_steps(steps), **_generated(out)}
    clip.train_clip(out, seed=seed, pool=12_000, tests=1536, device=device, **more)


def _pickscore(out: Path, steps: int | None, seed: int, device: str) -> None:
    """From CLIP's weights."""
    from bench.nano import clip

    start = _require(out / "clip", "clip")
    more: dict[str, Any] = {"steps": 6000, **_steps(steps), **_generated(out)}
    clip.train_pickscore(out, seed=seed, init=start, pool=16_000, tests=1536, device=device, **more)


def _golden(out: Path) -> None:
    """Golden scores of the packaged scorers below `out`, and of the closed-form ones."""
    from bench import plugins
    from bench.checks.golden import golden_path, write_golden
    from bench.suite.schema import NANO

    for name, stated in NANO["evaluator_params"].items():
        params = {**stated, "checkpoint": _require(out / stated["checkpoint"].removeprefix("nano/"), name)}
        evaluator = plugins.evaluator(name, **params)
        target = golden_path(evaluator, params)
        assert target is not None
        write_golden(evaluator, target)
    write_golden(plugins.evaluator("gold"), out / "gold" / GOLDEN)
