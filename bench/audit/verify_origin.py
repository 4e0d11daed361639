"""Where a stored run comes from: gates, commit, sources, the digest of its log, and its policy."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from bench import plugins, store
from bench.algorithm.weights import weights_hash
from bench.audit.findings import Note, Result, StoredRun, missing
from bench.audit.verify_method import is_forward
from bench.checks import evaluators, golden
from bench.core.errors import BenchError
from bench.core.hashing import canonical_json, digest, sha256_file
from bench.store.policy import read_policy
from bench.suite.difference import differences, first_difference, shortened
from bench.suite.inputs import run_settings

RATIO_AUDIT = "ratio_audit"
EVALUATOR_GATES = (evaluators.GATE, golden.GATE)


def check_origin(run: StoredRun) -> Iterator[Result]:
    """Problems of the origin of a finished run."""
    for check in (_gates, _provenance, _inputs, _log_digest, _policy):
        yield from check(run)


def _gates(run: StoredRun) -> Iterator[Result]:
    """The record has all gates of its rules; whether they are passed is a check of its own."""
    record = run.record
    if record.seed is not None and RATIO_AUDIT not in record.gates and not is_forward(run):
        yield f"it has no {RATIO_AUDIT}, which every run on noisy steps makes"
    if absent := [name for name in EVALUATOR_GATES if name not in record.gates]:
        yield missing(record, f"the gates {' and '.join(absent)}")


def _provenance(run: StoredRun) -> Iterator[Result]:
    provenance = run.record.provenance
    git = provenance.get("git")
    if not (isinstance(git, dict) and git.get("commit")):
        yield Note("made from a tree without a commit: nobody can look up its sources")
    elif git.get("dirty"):
        yield Note("made from a tree with changed files: its commit does not have all of its sources")
    if not provenance.get("source_digest"):
        yield "its provenance has no source_digest, which every run records"


def _inputs(run: StoredRun) -> Iterator[Result]:
    """What the digest was made from has the seed, the sources, the settings and the row of the record."""
    try:
        inputs = store.read_inputs(run.folder)
    except BenchError:
        return  # a finding of its own
    if not inputs:
        yield missing(run.record, store.INPUTS)
        return
    made_from = {"seed": inputs.get("seed"), "sources": digest(inputs.get("sources"))}
    recorded = {"seed": run.record.seed, "sources": run.record.provenance.get("source_digest")}
    for name, (there, here) in differences(made_from, recorded).items():
        yield f"{store.INPUTS} has the {name} {shortened(there)}, but the record {shortened(here)}"
    for name, own in {"settings": run_settings(run.suite), "row": _row(run)}.items():
        stored = inputs.get(name)
        if isinstance(stored, Mapping) and own is not None:
            stored = {key: value for key, value in stored.items() if key in own}
        # settings that were added after the run are neither in its inputs nor in its record
        if change := first_difference(json.loads(canonical_json(own)), _without_clip(stored), name):
            yield f"its record has other settings than {store.INPUTS}: {change}"


def _row(run: StoredRun) -> dict[str, Any] | None:
    """The row as in the inputs; without the KL policy's parameters where its class is not packaged."""
    row = run.row
    if row is None:
        return None
    own = {"method": row.method, "kl": row.kl_spec.name, "lr": row.lr, "params": run.record.method_params}
    if ":" not in row.kl_spec.name:
        with contextlib.suppress(BenchError):  # a note of its own
            own["kl_params"] = dataclasses.asdict(plugins.kl_policy(row.kl_spec.name, **row.kl_spec.params))
    return own


def _without_clip(row: Any) -> Any:
    """A row without its clip range, which the record has scaled by the size of the latent."""
    if not isinstance(row, Mapping) or not isinstance(row.get("params"), Mapping):
        return row
    return {**row, "params": {key: value for key, value in row["params"].items() if key != "clip_range"}}


def _log_digest(run: StoredRun) -> Iterator[Result]:
    if run.record.seed is None:
        return
    stored = run.record.train_digest
    if stored is None:
        yield missing(run.record, "train_digest")
    elif stored != (own := sha256_file(run.folder / store.TRAIN)):
        yield f"{store.TRAIN} has the digest {own[:16]}, but the record has {stored[:16]}: the log was changed"


def _policy(run: StoredRun) -> Iterator[Result]:
    """The stored policy has the weights with which training ended; without one the scores cannot be made again."""
    if not (run.folder / store.POLICY).is_file():
        if run.record.seed is not None and run.record.rules > 1:
            yield Note(f"no {store.POLICY}, so --replay cannot evaluate it again, and its scores rest on trust")
        return
    if not run.lines:
        return
    logged = run.lines[-1].get("weights_after")
    if logged is None:
        yield missing(run.record, f"weights_after of {store.TRAIN}")
        return
    try:
        own = weights_hash(read_policy(run.folder).values())
    except BenchError as error:
        yield str(error).partition(": give the folder")[0]
        return
    if own != logged:
        yield f"{store.POLICY} has weights with the hash {own}, but training ended with {logged}"
