"""What the digest of a run is made from, and what differs between a run in a folder and the one to be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench.core.hashing import digest
from bench.core.plugin_sources import plugin_files
from bench.core.provenance import package_versions
from bench.suite.difference import differences, shortened, without_paths
from bench.suite.job import Job
from bench.suite.prepared import PreparedRow, PreparedSuite
from bench.suite.schema import EXTRA_FILES, Suite
from bench.suite.sources import run_sources

MOST_CHANGES = 4
"""Changes that a message names; the others are counted."""


def run_settings(suite: Suite) -> dict[str, Any]:
    """The settings that all rows share, without paths and without the noise policy, which is in a row's parameters.

    Keys that older suites do not have count only where they are set, so that the digests of these suites stay.
    """
    settings = {key: value for key, value in without_paths(suite.shared()).items() if key != "noise_policy"}
    evaluation = settings["evaluation"]
    unset = {name for name, default in EXTRA_FILES.items() if evaluation[name] == default}
    return {**settings, "evaluation": {key: value for key, value in evaluation.items() if key not in unset}}


def run_inputs(prepared: PreparedSuite, row: PreparedRow | None, seed: int | None, harness: str) -> dict[str, Any]:
    """Everything that decides the numbers of a run, fit for a digest; row and seed are None for the base.

    It has the settings, and the digests of what the paths lead to. `harness` is the source digest of the harness.
    """
    suite = prepared.suite
    return {
        "settings": run_settings(suite),
        "row": None if row is None else row.identity(),
        "seed": seed,
        "prompts": {
            "train": digest(prepared.prompts.train),
            suite.evaluation.prompts: digest(prepared.scored_prompts),
        },
        "checkpoints": {use: checkpoint.digest for use, checkpoint in prepared.checkpoints.items()},
        "sources": run_sources(suite, None if row is None else row.spec, harness),
        "packages": package_versions(),
    }


def input_changes(stored: Mapping[str, Any], job: Job) -> list[str]:
    """What the run with the inputs `stored` has otherwise than the job, one phrase each; [] if nothing is known."""
    return [phrase for part, phrases in _PHRASES.items() if part in stored for phrase in phrases(stored[part], job)]


def change_text(changes: list[str]) -> str:
    """The first changes as one text."""
    more = len(changes) - MOST_CHANGES
    return "; ".join([*changes[:MOST_CHANGES], *([f"{more} more"] if more > 0 else [])])


def _settings(stored: Any, job: Job) -> Iterator[str]:
    yield from _values(differences(stored, job.inputs["settings"], nested=True))


def _row(stored: Any, job: Job) -> Iterator[str]:
    pairs = differences(stored or {}, job.inputs["row"] or {}, nested=True)
    yield from _values({f"row {job.identity['row']}: {key}": pair for key, pair in pairs.items()})


def _values(pairs: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
    for key, (there, here) in pairs.items():
        yield f"{key} is {shortened(there)} there and {shortened(here)} here"


def _seed(stored: Any, job: Job) -> Iterator[str]:
    if stored != job.inputs["seed"]:
        yield f"its seed is {stored}"


def _prompts(stored: Any, job: Job) -> Iterator[str]:
    for which in differences(stored, job.inputs["prompts"]):
        yield f"prompt list {getattr(job.suite.prompts, which)} changed"


def _checkpoints(stored: Any, job: Job) -> Iterator[str]:
    for use, (there, here) in differences(stored, job.inputs["checkpoints"]).items():
        names = list(differences(there or {}, here or {}))
        file = f", file {names[0]}" if names[0] else ""
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        checkpoint = job.prepared.checkpoints.get(use)
        yield f"checkpoint {checkpoint.name if checkpoint else use}{file}{more} changed"


def _sources(stored: Any, job: Job) -> Iterator[str]:
    here = job.inputs["sources"]
    for plugin, (old, new) in differences(stored["plugins"], here["plugins"]).items():
        group, _, name = plugin.partition(" ")
        files = plugin_files(group, name)
        for key, (before, _) in differences(old or {}, new or {}).items():
            change = "is new" if before is None else "changed" if key in files else "is no longer used"
            yield f"{group} file {files.get(key, key)} {change}"
    if stored["harness"] != here["harness"]:
        yield "the harness's sources changed"


def _packages(stored: Any, job: Job) -> Iterator[str]:
    for name, (there, here) in differences(stored, job.inputs["packages"]).items():
        yield f"{name} {there or 'not installed'} there, {here or 'not installed'} here"


_PHRASES: dict[str, Callable[[Any, Job], Iterator[str]]] = {
    "settings": _settings,
    "row": _row,
    "seed": _seed,
    "prompts": _prompts,
    "checkpoints": _checkpoints,
    "sources": _sources,
    "packages": _packages,
}
"""Part of the inputs to the function that describes its changes, in the order of a message."""
