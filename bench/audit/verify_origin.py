"""Where a stored run comes from: gates, commit, sources, the digest of its log, and its policy."""

from __future__ import annotations

from collections.abc import Iterator

from bench import store
from bench.algorithm.weights import weights_hash
from bench.audit.findings import Note, Result, StoredRun, missing
from bench.checks import evaluators, golden
from bench.core.errors import BenchError
from bench.core.hashing import digest, sha256_file
from bench.core.world import SINGLE_PROCESS
from bench.store.policy import read_policy
from bench.suite.difference import differences, shortened

RATIO_AUDIT = "ratio_audit"
EVALUATOR_GATES = (evaluators.GATE, golden.GATE)


def check_origin(run: StoredRun) -> Iterator[Result]:
    """Problems of the origin of a finished run."""
    for check in (_gates, _provenance, _inputs, _log_digest, _policy):
        yield from check(run)


def _gates(run: StoredRun) -> Iterator[Result]:
    """The record has all gates of its rules; whether they are passed is a check of its own."""
    record = run.record
    if record.seed is not None and RATIO_AUDIT not in record.gates:
        yield f"it has no {RATIO_AUDIT}, which every trained run makes"
    if absent := [name for name in EVALUATOR_GATES if name not in record.gates]:
        yield missing(record, f"the gates {' and '.join(absent)}")


def _provenance(run: StoredRun) -> Iterator[Result]:
    provenance = run.record.provenance
    git = provenance.get("git")
    if not (isinstance(git, dict) and git.get("commit")):
        yield Note("made from a tree without a commit: nobody can look up its sources")
    if not provenance.get("source_digest"):
        yield "its provenance has no source_digest, which every run records"


def _inputs(run: StoredRun) -> Iterator[str]:
    """What the digest was made from has the seed, the sources and the budget of the record."""
    try:
        inputs = store.read_inputs(run.folder)
    except BenchError:
        return  # a finding of its own
    if not inputs:
        return
    settings, record = inputs.get("settings"), run.record
    made_from = {
        "seed": inputs.get("seed"),
        "sources": digest(inputs.get("sources")),
        "budget": settings.get("budget") if isinstance(settings, dict) else None,
    }
    recorded = {"seed": record.seed, "sources": record.provenance.get("source_digest"), "budget": record.budget}
    for name, (there, here) in differences(made_from, recorded, nested=True).items():
        yield f"{store.INPUTS} has the {name} {shortened(there)}, but the record {shortened(here)}"


def _log_digest(run: StoredRun) -> Iterator[Result]:
    if run.record.seed is None:
        return
    stored = run.record.train_digest
    if stored is None:
        yield missing(run.record, "train_digest")
    elif stored != (own := sha256_file(run.folder / store.TRAIN)):
        yield f"{store.TRAIN} has the digest {own[:16]}, but the record has {stored[:16]}: the log was changed"


def _policy(run: StoredRun) -> Iterator[Result]:
    """The stored policy has the weights with which training ended."""
    sharded = run.record.provenance.get("shard") is not None  # hashes of shards, which are gone
    if not (run.folder / store.POLICY).is_file() or not run.lines or sharded:
        return
    logged = run.lines[-1].get("weights_after")
    if logged is None:
        yield missing(run.record, f"weights_after of {store.TRAIN}")
        return
    try:
        own = weights_hash(read_policy(run.folder).values(), SINGLE_PROCESS)
    except BenchError as error:
        yield str(error).partition(": give the folder")[0]
        return
    if own != logged:
        yield f"{store.POLICY} has weights with the hash {own}, but training ended with {logged}"
