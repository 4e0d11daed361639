"""`bench nano PART`: run the recipe of one part of the nano checkpoints, measure them, or rewrite their manifests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.base import BenchError
from bench.provenance import write_manifest

FOLDERS = ("hunyuanvideo15", "videoreward", "clip", "pickscore")
POLICY = "hunyuanvideo15"


def part(name: str, out: Path, steps: int | None, seed: int) -> None:
    """Make one part below `out`, whose parts it builds on must lie there; "manifest" only rewrites the manifests."""
    recipes: dict[str, Callable[[Path, int | None, int], None]] = {
        "vae": _vae,
        "policy": _policy,
        "videoreward": _videoreward,
        "clip": _clip,
        "pickscore": _pickscore,
    }
    if name == "measure":
        from bench.nano import measure

        measure.write(out, seed)
        return
    if name in recipes:
        recipes[name](out, steps, seed)
    folders = FOLDERS if name == "manifest" else (POLICY if name in ("vae", "policy") else name,)
    for folder in folders:
        if (out / folder).is_dir():
            write_manifest(out / folder)


def _need(folder: Path, what: str) -> Path:
    if not folder.is_dir():
        raise BenchError(
            f"this part is trained on {folder}, which is missing: make it first with `bench nano {what}`."
        )
    return folder


def _steps(steps: int | None) -> dict[str, Any]:
    """The recipe's own number of steps, unless another one is asked for."""
    return {} if steps is None else {"steps": steps}


def _vae(out: Path, steps: int | None, seed: int) -> None:
    from bench.nano import vae

    vae.train(out / POLICY, seed=seed, **_steps(steps))


def _policy(out: Path, steps: int | None, seed: int) -> None:
    from bench.nano import policy

    _need(out / POLICY / "vae", "vae")
    policy.train(out / POLICY, seed=seed, **_steps(steps))


def _sources(out: Path) -> tuple[Any, Any]:
    """Where reward models get their clips: decodes of disturbed latents, and samples of the base model."""
    from diffusers import AutoencoderKLHunyuanVideo15

    from bench import plugins
    from bench.backbones.causal_mask import allow_batches
    from bench.nano.preferences import Decodes, Samples
    from bench.rng import stream

    _need(out / POLICY / "transformer", "policy")
    backbone = plugins.backbone("hunyuanvideo15", checkpoint=out / POLICY)
    backbone.reset(stream(0, "initial_policy"))
    vae = allow_batches(AutoencoderKLHunyuanVideo15.from_pretrained(out / POLICY / "vae"))
    return Decodes(vae), Samples(backbone)


def _videoreward(out: Path, steps: int | None, seed: int) -> None:
    """First on decodes and renders, then mostly on what the base model generates."""
    from bench.nano import videoreward
    from bench.nano.preferences import mixture, renders

    d, s = _sources(out)
    with tempfile.TemporaryDirectory() as first:
        early: dict[str, Any] = {"steps": 3500, **_steps(steps)}
        late: dict[str, Any] = {"steps": 3200, **_steps(steps)}
        videoreward.train(
            Path(first), source=mixture(d, d, d, d, renders), exam=d, seed=seed, pool=10_000, tests=768, **early
        )
        videoreward.train(
            out,
            source=mixture(s, s, s, s, s, d, d, renders),
            exam=s,
            seed=seed,
            lr=1.5e-3,
            init=Path(first) / "videoreward",
            pool=9_000,
            tests=768,
            **late,
        )


def _clip(out: Path, steps: int | None, seed: int) -> None:
    from bench.nano import clip
    from bench.nano.preferences import mixture, renders

    d, _ = _sources(out)
    clip.train_clip(
        out, source=mixture(d, d, d, d, renders), exam=d, seed=seed, pool=10_000, tests=768, **_steps(steps)
    )


def _pickscore(out: Path, steps: int | None, seed: int) -> None:
    """From CLIP's weights, mostly on what the base model generates."""
    from bench.nano import clip
    from bench.nano.preferences import mixture, renders

    start = _need(out / "clip", "clip")
    arguments: dict[str, Any] = {"steps": 1800, **_steps(steps)}
    d, s = _sources(out)
    clip.train_pickscore(
        out,
        source=mixture(s, s, s, s, s, d, d, renders),
        exam=s,
        seed=seed,
        init=start,
        pool=9_000,
        tests=768,
        **arguments,
    )
