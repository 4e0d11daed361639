"""`bench nano PART`: run the recipe of one part of the nano checkpoints, and rewrite the manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.base import BenchError
from bench.provenance import write_manifest

FOLDERS = ("hunyuanvideo15", "videoreward", "clip", "pickscore")


def part(name: str, out: Path, steps: int | None, seed: int) -> None:
    """Train one part below `out`; "manifest" only rewrites the manifests of what is there."""
    arguments: dict[str, Any] = {"seed": seed, **({} if steps is None else {"steps": steps})}
    if name == "vae":
        from bench.nano import vae

        vae.train(out / "hunyuanvideo15", **arguments)
    elif name == "policy":
        from bench.nano import policy

        if not (out / "hunyuanvideo15" / "vae").is_dir():
            raise BenchError(
                f"the policy is trained on the latents of {out / 'hunyuanvideo15' / 'vae'}: "
                "make it first with `bench nano vae`."
            )
        policy.train(out / "hunyuanvideo15", **arguments)
    elif name == "videoreward":
        from bench.nano import videoreward

        videoreward.train(out / "videoreward", **arguments)
    elif name == "clip":
        from bench.nano import clip

        clip.train_clip(out / "clip", **arguments)
    elif name == "pickscore":
        from bench.nano import clip

        clip.train_pickscore(out / "pickscore", **arguments)
    elif name == "measure":
        from bench.nano import measure

        measure.write(out, seed)
        return
    for folder in FOLDERS:
        if (out / folder).is_dir():
            write_manifest(out / folder)
