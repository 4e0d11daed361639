"""The checkpoints that a suite names. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.core.errors import BenchError
from bench.core.hashing import GOLDEN, MANIFEST, files_below, sha256_file, verify_manifest
from bench.suite.paths import PATH_RULE, packaged, path_parameters, resolve
from bench.suite.schema import Suite


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder or file that the suite names."""

    name: str
    """Its name or path in the suite."""

    @property
    def path(self) -> Path:
        return resolve(self.name)

    def require(self) -> Path:
        """The path; a missing checkpoint is a `BenchError`."""
        if not self.path.exists():
            raise BenchError(
                f"checkpoint {self.path} does not exist ({PATH_RULE}): `bench assets SUITE` lists its files and how "
                "to fetch them; fix the path in the suite, or build a part of nano with `bench nano`."
            )
        return self.path

    @cached_property
    def digest(self) -> dict[str, str]:
        """Path of every file in it, but the golden scores, to its sha256; "" to that of a checkpoint that is one file.

        A checkpoint with a manifest is verified against it.
        """
        path = self.require()
        if (path / MANIFEST).exists():
            return verify_manifest(path)
        if packaged(self.name):
            raise BenchError(
                f"checkpoint {path} has no {MANIFEST}: restore it with `git checkout`, or by `bench nano manifest`."
            )
        if path.is_file():
            return {"": sha256_file(path)}
        files = [file for file in files_below(path) if file.name != GOLDEN]
        return {file.relative_to(path).as_posix(): sha256_file(file) for file in files}


def checkpoint_names(suite: Suite) -> dict[str, str]:
    """Use to name of each checkpoint; a use is "backbone", or an evaluator's parameter: "videoalign.base_model"."""
    checkpoint = suite.backbone.checkpoint_name
    names = {} if checkpoint is None else {"backbone": checkpoint}
    names |= {f"backbone.{key}": path for key, path in path_parameters(suite.backbone.train).items()}
    for name in suite.all_evaluators:
        params = suite.evaluator_params.get(name, {})
        names |= {f"{name}.{key}": path for key, path in path_parameters(params).items()}
    return names
