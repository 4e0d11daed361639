"""The policies that `bench evaluate` scores: what is at a path, whether it fits the suite, and how it is installed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import plugins, store
from bench.api import Backbone, RunsPolicyFiles
from bench.core.errors import BenchError
from bench.core.hashing import sha256_file
from bench.core.rng import stream
from bench.store.policy import load_policy
from bench.suite.job import BaseRun
from bench.suite.recorded import suite_of_record

UNKNOWN = "not trained by this suite: its training, its prompts and its cost are not checked"


@dataclass(frozen=True)
class Candidate:
    """A policy to be scored; the base, if it has no path."""

    name: str
    what: str
    path: Path | None = None
    """Folder of a run, or file or folder of a LoRA."""
    run: bool = False
    """Whether the path is the folder of a run."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the record: sha256 and what is known of it."""

    def installed(self, backbone: Backbone) -> AbstractContextManager[None]:
        """The context in which the backbone runs this policy."""
        backbone.reset(stream(0, "initial_policy"))
        if self.path is None:
            return nullcontext()
        if self.run:
            load_policy(backbone, self.path)
            return nullcontext()
        assert isinstance(backbone, RunsPolicyFiles)
        return backbone.as_policy_file(self.path)


def candidate(path: Path, base: BaseRun) -> Candidate:
    """The policy at a path, checked against the suite; nothing is loaded but its own files."""
    if (path / store.RUN).is_file() or (path / store.POLICY).is_file():
        return _run_candidate(path, base)
    spec, checkpoint = base.suite.backbone, base.prepared.checkpoints.get("backbone")
    backbone = plugins.find("backbones", spec.name)
    if not (isinstance(backbone, type) and issubclass(backbone, RunsPolicyFiles)):
        raise BenchError(
            f"policy {path} is no folder of a run, and the backbone {spec.name!r} reads no files of other programs: "
            "give its class check_policy_file and as_policy_file (bench.api.RunsPolicyFiles)."
        )
    facts = backbone.check_policy_file(path, None if checkpoint is None else checkpoint.require())
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    sums = {file.name: sha256_file(file) for file in files}
    return Candidate(_name(path), f"{facts['what']}; {UNKNOWN}", path, facts={**facts, "sha256": sums})


def _run_candidate(run: Path, base: BaseRun) -> Candidate:
    """The policy of a finished run of this project, on the suite's own base model."""
    record = store.read_record(run)
    if record.status != "finished" or not (run / store.POLICY).is_file():
        raise BenchError(f"run {run} has no policy: name the folder of a finished, trained run.")
    if not (run / store.POLICY).stat().st_size:
        raise BenchError(f"policy {run / store.POLICY} has 0 bytes: copy it again.")
    other = suite_of_record(run, record)
    weights = store.read_inputs(run).get("checkpoints", {}).get("backbone")
    own = base.inputs.get("checkpoints", {}).get("backbone")  # None: the backbone takes no checkpoint
    if other.backbone.name != base.suite.backbone.name or weights not in (None, own):
        raise BenchError(
            f"run {run} trained another model ({other.backbone.name}, {other.backbone.checkpoint}) than the suite's "
            f"({base.suite.backbone.name}, {base.suite.backbone.checkpoint}): evaluate it in a suite on its own model."
        )
    origin = f"run {record.row} seed {record.seed} of suite {record.suite}"
    facts = {"run": record.digest, "sha256": {store.POLICY: sha256_file(run / store.POLICY)}}
    parts = [record.suite, record.row, *([] if record.seed is None else [f"seed-{record.seed}"])]
    return Candidate(_plain("-".join(parts)), f"{origin}; its row is in the table of that suite", run, True, facts)


STANDARD_FILES = ("pytorch_lora_weights", "adapter_model")
"""Names that programs give every LoRA, which tell nothing."""


def _name(path: Path) -> str:
    """A name for the folder of a file's scores: the file's, or that of its folder."""
    path = path.resolve()
    return _plain(path.parent.name if path.stem in STANDARD_FILES else path.stem if path.is_file() else path.name)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-") or "policy"
