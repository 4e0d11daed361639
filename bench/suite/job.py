"""Runs to be done: the untrained base, or one row with one seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.core.hashing import digest
from bench.suite.prepared import PreparedRow, PreparedSuite
from bench.suite.schema import RowSpec, Suite
from bench.suite.sources import run_sources


@dataclass(frozen=True)
class BaseRun:
    """The evaluation of the untrained base model."""

    prepared: PreparedSuite
    folder: Path
    digest: str
    inputs: dict[str, Any] = field(default_factory=dict, kw_only=True, compare=False)
    """What the digest was made from (`bench.suite.inputs`)."""
    overwrite: bool = field(default=False, kw_only=True, compare=False)
    """Whether another run in the folder is removed when this one begins."""

    @property
    def suite(self) -> Suite:
        return self.prepared.suite

    @property
    def label(self) -> str:
        """Name of the run in progress and messages."""
        return self._in_study("base")

    @property
    def source_digest(self) -> str:
        """Digest of the sources of the harness and of the run's plug-ins."""
        return digest(self.inputs.get("sources") or run_sources(self.suite, self.spec))

    @property
    def spec(self) -> RowSpec | None:
        """The row of the suite; None for the base."""
        return None

    @property
    def identity(self) -> dict[str, Any]:
        """The fields of a record that name the run."""
        return {"suite": self.suite.name, "row": "base", "method": None, "kl": None, "seed": None}

    @property
    def suite_folder(self) -> Path:
        """The folder of the records of the suite, or of the variant of a study."""
        return self.folder.parent

    def _in_study(self, name: str) -> str:
        return f"{self.suite.variant}: {name}" if self.suite.variant else name


@dataclass(frozen=True)
class TrainingRun(BaseRun):
    """The training of one row with one seed, and its evaluation."""

    row_name: str
    seed: int

    @property
    def suite_folder(self) -> Path:
        return self.folder.parent.parent

    @property
    def row(self) -> PreparedRow:
        return self.prepared.row(self.row_name)

    @property
    def spec(self) -> RowSpec:
        return self.row.spec

    @property
    def label(self) -> str:
        return self._in_study(f"{self.row_name} seed {self.seed}")

    @property
    def identity(self) -> dict[str, Any]:
        spec = self.spec
        names = {"row": spec.name, "method": spec.method, "kl": spec.kl_spec.name, "seed": self.seed}
        return {"suite": self.suite.name, **names}


Job = BaseRun | TrainingRun
