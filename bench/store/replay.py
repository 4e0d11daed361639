"""The record of a replay: `replay.json` beside `run.json`. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.core.errors import BenchError
from bench.core.strict_json import read_json
from bench.store.files import write_text
from bench.store.record import REPLAY, RunRecord


class ReplayRecord(BaseModel):
    """The result of a replay of a whole run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    digest: str
    """Digest of the run that was repeated."""
    scores_digest: str | None
    """Digest of that run's scores; None for a run that failed before it was scored."""
    date: str
    """Day of the replay."""
    hardware: dict[str, Any]
    """Hardware of the replay: CPU, machine, cores, memory, and the GPU if there is one."""
    equal: bool
    """Whether all numbers of training and all scores have the same bits."""
    training_gaps: int
    """Number of values of `train.jsonl` that differ."""
    first_gap: str | None
    """The first of these differences."""
    floors: dict[str, float]
    """Largest absolute difference of each metric over the held-out videos."""
    other: list[str]
    """Differences in sources, versions, hardware, weights and prompts."""


def write_replay(folder: Path, record: ReplayRecord) -> Path:
    """Write `replay.json` atomically; returns its path."""
    write_text(folder / REPLAY, record.model_dump_json(by_alias=True, indent=1) + "\n")
    return folder / REPLAY


def read_replay(folder: Path, run: RunRecord) -> ReplayRecord | None:
    """The replay of this run; None if there is none. A replay of another run is a `BenchError`."""
    path = folder / REPLAY
    if not path.is_file():
        return None
    fix = "delete it, or make it again with `bench replay`"
    content = read_json(path, "replay", fix)
    try:
        record = ReplayRecord.model_validate(content)
    except ValidationError as error:
        raise BenchError(f"replay {path} is not valid ({' '.join(str(error).split())[:160]}): {fix}.") from error
    if (record.digest, record.scores_digest) != (run.digest, run.scores_digest):
        raise BenchError(f"replay {path} is that of another run than the record beside it: {fix}.")
    return record
