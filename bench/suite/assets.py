"""`bench assets`: files that a suite needs, whether they are present, and commands that fetch them.

Nothing is downloaded. The facts on evaluators are in `assets.yaml` beside this module, those on the checkpoints of a
backbone in `assets.yaml` beside its module, which is not imported. A fact that is not known is not printed.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bench.core.errors import BenchError
from bench.core.hashing import MANIFEST, sha256_file, verify_manifest
from bench.core.limits import YAML_BYTES
from bench.core.plugin_sources import entry_points, module_file
from bench.core.progress import track
from bench.core.strict_yaml import parse_yaml
from bench.core.text import read_text
from bench.suite.paths import packaged, path_parameters, resolve
from bench.suite.schema import Suite

DATA = Path(__file__).with_name("assets.yaml")

FOLDER = "checkpoints"
"""Folder, relative to the current one, for assets whose path the suite does not set."""


class File(BaseModel):
    """A file of an asset, or a folder (its path ends with "/")."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    other: str | None = Field(default=None, alias="or")
    """An alternative file."""
    bytes: int | None = None
    sha256: str | None = None
    about_gb: float | None = None
    """Approximate size in 10^9 bytes, from the number of parameters in `dtype`; not compared with the files."""
    dtype: str | None = None

    def facts(self) -> str:
        """Size and hash in words; empty if they are not known."""
        about = None if self.about_gb is None else f"about {self.about_gb:g} GB in {self.dtype}"
        size = None if self.bytes is None else f"{self.bytes:,} bytes"
        facts = [size or about, None if self.sha256 is None else f"sha256 {self.sha256}"]
        return ", ".join(fact for fact in facts if fact)


class Asset(BaseModel):
    """One repository of the Hub, or a file from elsewhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str
    hub: str | None = None
    formerly: str | None = None
    """Earlier name of the same repository."""
    revision: str | None = None
    origin: str | None = None
    """Source of an asset that is not on the Hub."""
    by_hand: str | None = None
    """Instruction for an asset that no command fetches."""
    place: str | None = None
    """Path of the fetched asset; None: `checkpoints/<name>`."""
    licence: str | None = None
    uses: list[str] = Field(alias="for")
    files: list[File]

    def title(self) -> str:
        source = self.hub or self.origin
        revision = f" @ {self.revision}" if self.revision else ""
        formerly = f" (formerly {self.formerly})" if self.formerly else ""
        licence = self.licence or "see the model card"
        return f"{source}{formerly}{revision}; licence: {licence}\n    {self.what}"

    def command(self, folder: Path | str, files: list[File]) -> str:
        """The command that fetches these files into `folder`."""
        if self.hub is None:
            return f"by hand: {self.by_hand} as {folder}"
        words = ["hf", "download", self.hub]
        if not any(file.path.endswith("/") for file in files):  # a folder: fetch the whole repository
            words += [file.path for file in files]
        words += ["--revision", self.revision] if self.revision else []
        return shlex.join([*words, "--local-dir", str(folder)])


def _backbone_data(name: str) -> Path | None:
    """`assets.yaml` beside the module of a backbone; None if there is none."""
    module = module_file(entry_points("backbones").get(name, name).partition(":")[0])
    path = None if module is None else module.with_name(DATA.name)
    return path if path is not None and path.is_file() else None


def known(backbones: Iterable[str]) -> dict[str, Asset]:
    """Assets of the evaluators and of these backbones, by name."""
    files = [DATA, *filter(None, map(_backbone_data, backbones))]
    facts = {name: asset for file in files for name, asset in _read_facts(file).items()}
    return {name: Asset.model_validate(asset) for name, asset in facts.items()}


def _read_facts(file: Path) -> dict[str, Any]:
    """The mapping of an `assets.yaml`, which may be a backbone's of the user's."""
    facts = parse_yaml(read_text(file, "list of assets", "correct it", YAML_BYTES), f"list of assets {file}")
    if not isinstance(facts, dict):
        raise BenchError(f"list of assets {file} is not a mapping of names to assets: see {DATA}.")
    return facts


def all_assets() -> dict[str, Asset]:
    """Assets of the evaluators and of all installed backbones, by name."""
    return known(entry_points("backbones"))


def catalogue() -> str:
    """All assets, with commands that fetch them into `checkpoints/`."""
    lines = []
    for name, asset in all_assets().items():
        lines += [f"{name}: {asset.title()}", f"    for {', '.join(asset.uses)}"]
        for file in asset.files:
            other = f" (or {file.other})" if file.other else ""
            lines.append(f"    {file.path}{other}  {file.facts()}".rstrip())
        lines.append(f"    {asset.command(asset.place or f'{FOLDER}/{name}', asset.files)}")
    return "\n".join(lines)


DEFAULT_PATHS = {
    "videoalign": {"base_model": "base", "prompt_template": "prompt_template.txt"},
    "pickscore": {"processor": ""},
}
"""Paths, relative to an evaluator's checkpoint, of files whose path the suite does not set."""


@dataclass(frozen=True)
class Need:
    """A file or folder that a suite reads."""

    use: str
    """E.g. "videoalign.checkpoint" or "backbone.checkpoint"."""
    named: str
    """Path as the suite sets it, or by default."""
    in_suite: bool = True
    """Whether the suite sets the path, or its default lies in a checkpoint."""
    backbone: str | None = None
    """The backbone whose checkpoint it is; None for a file of an evaluator."""

    @property
    def path(self) -> Path:
        return resolve(self.named)


def needs(suite: Suite) -> list[Need]:
    """The backbone's checkpoint, then every file or folder of the evaluators."""
    checkpoint, assets = suite.backbone.checkpoint_name, known([])
    result = [] if checkpoint is None else [Need("backbone.checkpoint", checkpoint, backbone=suite.backbone.name)]
    for evaluator in suite.all_evaluators:
        params = suite.evaluator_params.get(evaluator, {})
        paths = path_parameters(params)
        result += [Need(f"{evaluator}.{key}", path) for key, path in paths.items()]
        main = next((name for name, asset in assets.items() if f"{evaluator}.checkpoint" in asset.uses), None)
        if main is None:
            continue
        checkpoint = paths.get("checkpoint", f"{FOLDER}/{main}")
        if "checkpoint" not in paths:
            result.append(Need(f"{evaluator}.checkpoint", checkpoint, in_suite=False))
        if not packaged(checkpoint):
            defaults = {key: name for key, name in DEFAULT_PATHS.get(evaluator, {}).items() if key not in paths}
            result += [
                Need(f"{evaluator}.{key}", f"{checkpoint}/{name}".rstrip("/")) for key, name in defaults.items()
            ]
    return result


def states(suites: Sequence[Suite], verify: bool) -> list[tuple[Need, list[str], bool]]:
    """Each need of a suite, or of all variants of a study, lines on its state, and whether it is good."""
    every = dict.fromkeys(need for suite in suites for need in needs(suite))
    return [(need, *_state_lines(need, verify)) for need in track(every, "checking checkpoints")]


def report(suite: str, states: Sequence[tuple[Need, list[str], bool]]) -> tuple[str, int]:
    """The states of the needs of this suite as text, and the number of missing or wrong ones."""
    lines = [f"suite {suite}", *(line for _, state, _ in states for line in state)]
    wrong = sum(not good for _, _, good in states)
    lines.append(f"{wrong} of these are missing or wrong" if wrong else "everything is present")
    return "\n".join(lines), wrong


def _state_lines(need: Need, verify: bool) -> tuple[list[str], bool]:
    """Lines on the state of one need, and whether it is present and correct."""
    if packaged(need.named) or (need.path / MANIFEST).is_file():
        return _manifest_lines(need)
    asset = _asset(need)
    if asset is None:
        good = need.path.exists()
        return [f"{need.use}: {need.path}", f"    {'present' if good else 'MISSING'}; nothing is known about it"], good
    lines = [f"{need.use}: {need.path}", f"    {asset.title()}"]
    if not need.in_suite:
        lines.append(f"    the suite does not set its path: add evaluator_params.{need.use}={need.named}")
    faulty, good = [], need.in_suite
    for file in asset.files:
        state = _state(file, need, verify)
        lines.append(f"    {state:8s} {file.path}  {file.facts()}".rstrip())
        if not state.startswith(("present", "verified")):
            faulty.append(file)
    if faulty:
        lines.append(f"    {asset.command(need.path, faulty)}")
    return lines, good and not faulty


def _manifest_lines(need: Need) -> tuple[list[str], bool]:
    """The same for a folder with a manifest, which is always compared file by file."""
    kind = "packaged with the project" if packaged(need.named) else "a folder with a manifest"
    try:
        files = verify_manifest(need.path)
    except BenchError as error:
        return [f"{need.use}: {need.named}, {kind}", f"    WRONG: {error}"], False
    size = sum((need.path / name).stat().st_size for name in files)
    state = f"    verified against its {MANIFEST}: {len(files)} files, {size:,} bytes, all sha256 as listed"
    return [f"{need.use}: {need.named}, {kind}", state], True


def _asset(need: Need) -> Asset | None:
    """The asset of this need: among several, the one named like the folder, or the first; None if there is none."""
    backbones = [] if need.backbone is None else [need.backbone]
    assets = {name: asset for name, asset in known(backbones).items() if need.use in asset.uses}
    return assets.get(need.path.name, next(iter(assets.values()), None))


def _state(file: File, need: Need, verify: bool) -> str:
    """ "present", "verified", "MISSING", or the fault."""
    names = [file.path, *([file.other] if file.other else [])]
    root = need.path
    is_file = need.use.endswith(".prompt_template") or root.name in names  # the path is the file, not its folder
    paths = [root] if is_file else [root / name for name in names]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return "MISSING"
    if path.is_dir():
        return "present" if any(inside.is_file() for inside in path.rglob("*")) else "MISSING"
    size = path.stat().st_size
    if size == 0 or file.bytes not in (None, size):
        return f"WRONG SIZE ({size:,} bytes)"
    if not verify or file.sha256 is None:
        return "present"
    sha256 = sha256_file(path)
    return "verified" if sha256 == file.sha256 else f"WRONG SHA256 ({sha256})"
