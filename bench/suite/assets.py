"""`bench assets`: what a suite needs, whether it is there, and the command that fetches it; nothing is downloaded.

The facts are in `assets.yaml`; a fact that is not known is not printed.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from bench.core.errors import BenchError
from bench.core.hashing import sha256_file
from bench.core.manifest import MANIFEST, verify_manifest
from bench.suite.schema import PATHS, Experiment, packaged, resolve

DATA = Path(__file__).with_name("assets.yaml")

FOLDER = "checkpoints"
"""Where a command puts an asset that the suite gives no place: a folder of the project's root."""


class File(BaseModel):
    """A file of an asset, or a folder (its path ends with "/")."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    other: str | None = Field(default=None, alias="or")
    """A file that serves as well."""
    bytes: int | None = None
    sha256: str | None = None
    about_gb: float | None = None
    """10^9 bytes, by the number of parameters in `dtype`: an orientation that is compared with nothing."""
    dtype: str | None = None

    def facts(self) -> str:
        """Size and hash, as far as known."""
        about = None if self.about_gb is None else f"about {self.about_gb:g} GB in {self.dtype}"
        size = None if self.bytes is None else f"{self.bytes:,} bytes"
        found = [size or about, None if self.sha256 is None else f"sha256 {self.sha256}"]
        return ", ".join(word for word in found if word)


class Asset(BaseModel):
    """One repository of the Hub, or a file from elsewhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str
    hub: str | None = None
    formerly: str | None = None
    """An older name of the same repository."""
    revision: str | None = None
    origin: str | None = None
    """Where an asset that is not on the Hub comes from."""
    by_hand: str | None = None
    """What to do where no command does it."""
    place: str | None = None
    """Where a command puts it, if not into `checkpoints/<name>`."""
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
        """What fetches these files into `folder`."""
        if self.hub is None:
            return f"by hand: {self.by_hand} as {folder}"
        words = ["hf", "download", self.hub]
        if not any(file.path.endswith("/") for file in files):  # with folders: the whole repository
            words += [file.path for file in files]
        words += ["--revision", self.revision] if self.revision else []
        return shlex.join([*words, "--local-dir", str(folder)])


def known() -> dict[str, Asset]:
    """Every asset of the data file, by name."""
    return {name: Asset.model_validate(facts) for name, facts in yaml.safe_load(DATA.read_text("utf-8")).items()}


def catalogue() -> str:
    """All that is known, with commands that fetch it into `checkpoints/`."""
    lines = []
    for name, asset in known().items():
        lines += [f"{name}: {asset.title()}", f"    for {', '.join(asset.uses)}"]
        for file in asset.files:
            other = f" (or {file.other})" if file.other else ""
            lines.append(f"    {file.path}{other}  {file.facts()}".rstrip())
        lines.append(f"    {asset.command(asset.place or f'{FOLDER}/{name}', asset.files)}")
    return "\n".join(lines)


# a suite ------------------------------------------------------------------------------------------------------
BESIDE = {
    "videoalign": {"base_model": "base", "prompt_template": "prompt_template.txt"},
    "pickscore": {"processor": ""},
}
"""Where below its checkpoint an evaluator looks for what the suite gives no place of its own."""


@dataclass(frozen=True)
class Need:
    """One place that a suite reads."""

    use: str
    """E.g. "videoalign.checkpoint" or "backbone.checkpoint"."""
    named: str
    """As the suite names it, or as its commands name it where the suite does not."""
    in_suite: bool = True

    @property
    def path(self) -> Path:
        return resolve(self.named)


def needs(exp: Experiment) -> list[Need]:
    """The backbone, then every place that an evaluator reads."""
    found = [Need("backbone.checkpoint", exp.backbone.checkpoint)]
    for judge in exp.judges:
        params = {key: value for key, value in exp.evaluator_params.get(judge, {}).items() if isinstance(value, str)}
        found += [Need(f"{judge}.{key}", params[key]) for key in PATHS if key in params]
        main = next((name for name, asset in known().items() if f"{judge}.checkpoint" in asset.uses), None)
        if main is None:
            continue
        checkpoint = params.get("checkpoint", f"{FOLDER}/{main}")
        if "checkpoint" not in params:
            found.append(Need(f"{judge}.checkpoint", checkpoint, in_suite=False))
        if not packaged(checkpoint):
            beside = {key: name for key, name in BESIDE.get(judge, {}).items() if key not in params}
            found += [Need(f"{judge}.{key}", f"{checkpoint}/{name}".rstrip("/")) for key, name in beside.items()]
    return found


def report(suites: Sequence[Experiment], verify: bool) -> tuple[str, int]:
    """What a suite, or all variants of a study, need and how it is there, and how many places are missing or wrong."""
    lines, wrong = [f"suite {suites[0].study}"], 0
    for need in dict.fromkeys(need for exp in suites for need in needs(exp)):
        found, good = _look(need, verify)
        lines += found
        wrong += not good
    lines.append(f"{wrong} of these are missing or wrong" if wrong else "everything is present")
    return "\n".join(lines), wrong


def _look(need: Need, verify: bool) -> tuple[list[str], bool]:
    """Lines on one place, and whether all is well there."""
    if packaged(need.named) or (need.path / MANIFEST).is_file():
        return _verified(need)
    asset = _asset(need)
    if asset is None:
        good = need.path.exists()
        return [f"{need.use}: {need.path}", f"    {'present' if good else 'MISSING'}; nothing is known about it"], good
    lines = [f"{need.use}: {need.path}", f"    {asset.title()}"]
    if not need.in_suite:
        lines.append(f"    the suite names no place for it: add evaluator_params.{need.use}={need.named}")
    lost, good = [], need.in_suite
    for file in asset.files:
        state = _state(file, need, verify)
        lines.append(f"    {state:8s} {file.path}  {file.facts()}".rstrip())
        if not state.startswith(("present", "verified")):
            lost.append(file)
    if lost:
        lines.append(f"    {asset.command(need.path, lost)}")
    return lines, good and not lost


def _verified(need: Need) -> tuple[list[str], bool]:
    """A folder with a manifest, which is always compared file by file."""
    kind = "packaged with the project" if packaged(need.named) else "a folder with a manifest"
    try:
        files = verify_manifest(need.path)
    except BenchError as error:
        return [f"{need.use}: {need.named}, {kind}", f"    WRONG: {error}"], False
    size = sum((need.path / name).stat().st_size for name in files)
    state = f"    verified against its {MANIFEST}: {len(files)} files, {size:,} bytes, all sha256 as listed"
    return [f"{need.use}: {need.named}, {kind}", state], True


def _asset(need: Need) -> Asset | None:
    """What is known of this place: among several assets, the one named like the folder, or the first."""
    found = {name: asset for name, asset in known().items() if need.use in asset.uses}
    return found.get(need.path.name, next(iter(found.values()), None))


def _state(file: File, need: Need, verify: bool) -> str:
    """ "present", "verified", "MISSING", or what is wrong."""
    names = [file.path, *([file.other] if file.other else [])]
    root = need.path
    itself = need.use.endswith(".prompt_template") or root.name in names  # the suite names the file, not its folder
    places = [root] if itself else [root / name for name in names]
    path = next((place for place in places if place.exists()), None)
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
