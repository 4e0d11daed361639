"""The record of a replay: `replay.json` beside `run.json`. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench import store
from bench.core.errors import BenchError

if TYPE_CHECKING:
    pass


REPLAY = "replay.json"


# the record of a replay ---------------------------------------------------------------------------------------
class ReplayRecord(BaseModel):
    """What a whole replay found, as `replay.json` beside the run's record."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    digest: str
    """Digest of the run that was repeated."""
    scores_digest: str | None
    """Digest of that run's scores; None for a run that failed before it was scored."""
    date: str
    hardware: dict[str, Any]
    """Of the replay: CPU, machine, cores, memory, and the GPU where there is one."""
    equal: bool
    """Whether all numbers of training and all scores are the same bits."""
    training_gaps: int
    """Numbers of `train.jsonl` that differ."""
    first_gap: str | None
    """The first of them."""
    floors: dict[str, float]
    """Largest absolute difference of each metric over the held-out videos."""
    other: list[str]
    """What differs in sources, versions, hardware, weights and prompts."""


def write_replay(folder: Path, record: ReplayRecord) -> Path:
    """`replay.json`, atomically."""
    store.write_text(folder / REPLAY, record.model_dump_json(by_alias=True, indent=1) + "\n")
    return folder / REPLAY


def read_replay(folder: Path, run: store.RunRecord) -> ReplayRecord | None:
    """The replay of this run, if there is one; that of another run is refused."""
    path = folder / REPLAY
    if not path.is_file():
        return None
    mend = "delete it, or make it again with `bench replay`"
    try:
        found = ReplayRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise BenchError(f"replay {path} is not valid ({' '.join(str(error).split())[:160]}): {mend}.") from error
    if (found.digest, found.scores_digest) != (run.digest, run.scores_digest):
        raise BenchError(f"replay {path} is that of another run than the record beside it: {mend}.")
    return found
