"""The record of a run: its schema, an atomic write, and a read that validates.

A run lives in `results/<suite>/<row>/seed-<n>/` (the base, which has no seed, in `results/<suite>/base/`):

- `train.jsonl`: one line per update, appended;
- `scores.parquet`: one row per video and metric, written before
- `run.json`: this module's `RunRecord`, written last and atomically. Its presence means that the run is complete.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.core.errors import BenchError
from bench.core.hashing import plain

if TYPE_CHECKING:
    import pandas as pd

from bench.store.files import replace_atomically, write_text
from bench.store.scores import SCORE_COLUMNS, content_digest, sorted_scores, write_parquet

SCHEMA: Final = 1
RUN, SCORES, TRAIN = "run.json", "scores.parquet", "train.jsonl"

#: Further files of a run's folder: the digest it was started with, the trained weights, a sample that was not finite,
#: and the lock that a process holds while it works on the run.
STARTED, POLICY, OFFENDING, LOCK = "digest", "policy.safetensors", "offending_sample.safetensors", ".lock"
#: Those that go when a run ends: where it goes on after a stop, and what the processes of one run are told.
CHECKPOINT, JOB = "checkpoint.pt", "job.json"


class RunRecord(BaseModel):
    """Everything about one run except its curves (`train.jsonl`) and its scores (`scores.parquet`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    """Version of this layout; a record of another version is refused, not guessed at."""
    suite: str
    row: str
    """Label of the row, unique in the suite; "base" for the untrained model."""
    method: str | None
    """Name of the method; None for the base."""
    method_params: dict[str, Any] = {}
    kl: str | None
    """Name of the KL policy; None for the base."""
    seed: int | None
    """Training seed; None for the base."""
    status: Literal["finished", "failed"]
    error: str | None = None
    """What stopped a failed run, in one sentence."""
    digest: str
    """Digest of all that decides the run's numbers; a folder is reused only for the same digest."""
    budget: dict[str, Any]
    budget_digest: str
    prompts_digest: str
    """Digest of the training and evaluation prompts."""
    config: dict[str, Any]
    """The whole suite, defaults filled in."""
    evaluators: dict[str, dict[str, Any]] = {}
    """Evaluator name to fingerprint."""
    backbone: dict[str, Any] = {}
    """Fingerprint of the video generator."""
    ledger: dict[str, Any] = {}
    """Totals: nfe_rollout, nfe_anchor, nfe_train, decodes, videos, updates (counts), reward_calls (per scorer)."""
    seconds: dict[str, float] = {}
    """Wall-clock seconds per phase."""
    peak_memory_mb: float | None = None
    """Peak memory of the process (CPU) or of the device (GPU), in MB of 10^6 bytes."""
    provenance: dict[str, Any] = {}
    updates_done: int = 0
    gates: dict[str, Any] = {}
    """Validity gates by name: true or false, or a dict with the key "passed" (None: not available)."""
    scores_digest: str | None = None
    """Digest of the content of `scores.parquet`; `write_run` fills it in, `read_run` checks it."""
    extra: dict[str, Any] = {}

    def to_json(self) -> str:
        """The text of `run.json`; NaN and infinity are refused."""
        content = plain(self.model_dump(by_alias=True))
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def run_folder(suite_folder: Path | str, row: str, seed: int | None) -> Path:
    """`<suite>/<row>/seed-<n>`, or `<suite>/<row>` for a record without a seed (the base)."""
    folder = Path(suite_folder) / row
    return folder if seed is None else folder / f"seed-{seed}"


def write_run(folder: Path | str, record: RunRecord, scores: pd.DataFrame | None = None) -> RunRecord:
    """Write `scores.parquet`, then `run.json`; returns the record as written (with its scores' digest).

    A finished run needs scores; a failed one may have none. A folder that holds another run is refused.
    """
    folder = Path(folder)
    is_complete(folder, record.digest)
    if scores is None and record.status == "finished":
        raise BenchError(f"run {record.row} seed {record.seed} is finished but has no scores.")
    frame = None if scores is None else sorted_scores(scores)
    record = record.model_copy(update={"scores_digest": None if frame is None else content_digest(frame)})
    try:
        text = record.to_json()
    except (ValueError, TypeError) as error:
        raise BenchError(f"record of {record.row} seed {record.seed} cannot be written: {error}.") from error
    if frame is not None:
        replace_atomically(folder / SCORES, lambda path: write_parquet(frame, path))
    write_text(folder / RUN, text)
    return record


# reading ------------------------------------------------------------------------------------------------------
def check_digest(folder: Path | str, found: str, expected: str) -> None:
    """Refuse a folder (a finished run or a checkpoint) that belongs to another run."""
    if found != expected:
        raise BenchError(
            f"{folder} holds another run: its digest is {found}, this run's is {expected} (the suite's settings, the "
            "weights or the sources changed). Move or delete that folder, or write elsewhere with --results."
        )


def is_complete(folder: Path | str, digest: str | None = None) -> bool:
    """Whether the folder holds a complete record (finished or failed); with `digest`, another run's is refused."""
    folder = Path(folder)
    if not (folder / RUN).is_file():
        return False
    if digest is not None:
        check_digest(folder, read_record(folder).digest, digest)
    return True


def read_record(folder: Path | str) -> RunRecord:
    """`run.json` alone, validated."""
    path = Path(folder) / RUN
    mend = "Delete the folder and run `bench run` again, or restore it from where it was copied."
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"record {path} cannot be read ({error.strerror}): run `bench run` first.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise BenchError(f"record {path} is not valid at {where}: {first['msg']}. {mend}") from error
    except ValueError as error:
        raise BenchError(f"record {path} is not readable text ({error}). {mend}") from error


def read_run(folder: Path | str) -> tuple[RunRecord, pd.DataFrame]:
    """The validated record and its scores (no rows for a run that failed before it was scored)."""
    import pandas as pd

    folder = Path(folder)
    record = read_record(folder)
    if record.scores_digest is None:
        if record.status == "finished":
            raise BenchError(f"record {folder / RUN} names no scores: delete the folder and run it again.")
        return record, pd.DataFrame({name: [] for name in SCORE_COLUMNS})
    path = folder / SCORES
    try:
        frame = sorted_scores(pd.read_parquet(path))
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise BenchError(f"scores {path} cannot be read ({error}): delete {folder} and run it again.") from error
    found = content_digest(frame)
    if found != record.scores_digest:
        raise BenchError(
            f"scores {path} do not belong to their record: run.json expects content digest "
            f"{record.scores_digest}, found {found}. Delete {folder} and run it again, or restore both files together."
        )
    return record, frame
