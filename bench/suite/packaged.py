"""The suites that come with the project, by name: `nano`, `nano_kl`, `as_published/cps`."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from bench.core.errors import BenchError
from bench.core.provenance import ROOT
from bench.core.text import shown

CONFIGS = ROOT / "bench" / "configs"
ENDINGS = (".yaml", ".yml")


def packaged_files() -> dict[str, Path]:
    """Name to file of every packaged suite, sorted by name."""
    return {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in sorted(CONFIGS.rglob("*.yaml"))}


def suite_file(name: str, folder: Path = Path()) -> Path:
    """The YAML file of a suite: a packaged suite by its name, "bench/...", or a path that counts from `folder`.

    A path is a name with an ending of YAML or with a separator, and any other name of a file that exists and is not
    the name of a packaged suite. Nothing of this name is a `BenchError`.
    """
    known, path = packaged_files(), folder / os.path.expanduser(name)
    if name.startswith("bench/"):
        path = ROOT / name
    is_path = name.endswith(ENDINGS) or "/" in name or os.sep in name
    if name in known and not (is_path and os.path.exists(path)):
        return known[name]
    if os.path.exists(path):
        return path
    near = difflib.get_close_matches(name.removesuffix(".yaml"), known, 1)
    hint = f"; did you mean the packaged suite {near[0]!r}?" if near else "."
    counts = "the current folder" if folder == Path() else str(folder)
    raise BenchError(
        f"suite {shown(name)} cannot be read (No such file or directory): name a YAML file, whose path counts from "
        f"{counts}, or a packaged suite (`bench suites` lists them){hint}"
    )
