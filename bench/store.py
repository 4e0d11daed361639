"""The record of a run: its schema, an atomic write, and a read that validates.

A run lives in `results/<suite>/<row>/seed-<n>/` (the base, which has no seed, in `results/<suite>/base/`):

- `train.jsonl`: one line per update, appended;
- `scores.parquet`: one row per video and metric, written before
- `run.json`: this module's `RunRecord`, written last and atomically. Its presence means that the run is complete.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.base import BenchError
from bench.provenance import canonical_json, digest, plain

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA: Final = 1
RUN, SCORES, TRAIN = "run.json", "scores.parquet", "train.jsonl"

#: Further files of a run's folder: the digest it was started with, the trained weights, a sample that was not finite,
#: and the lock that a process holds while it works on the run.
STARTED, POLICY, OFFENDING, LOCK = "digest", "policy.safetensors", "offending_sample.safetensors", ".lock"
#: Those that go when a run ends: where it goes on after a stop, and what the processes of one run are told.
CHECKPOINT, JOB = "checkpoint.pt", "job.json"

#: Columns that name one score; `value` is the score itself.
SCORE_KEY = ["prompt_index", "video", "evaluator", "metric"]
SCORE_COLUMNS = ["prompt_index", "prompt", "video", "evaluator", "metric", "value"]


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


# scores -------------------------------------------------------------------------------------------------------
def sorted_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores in their one order and their one set of types; wrong columns, doubles, gaps and NaN are refused."""
    import numpy as np

    if sorted(scores.columns) != sorted(SCORE_COLUMNS):
        raise BenchError(f"scores need the columns {SCORE_COLUMNS}, got {list(scores.columns)}: fix what made them.")
    frame = scores[SCORE_COLUMNS].astype({"prompt_index": "int64", "video": "int64", "value": "float64"})
    frame = frame.sort_values(SCORE_KEY, kind="stable", ignore_index=True)
    bad = frame[~np.isfinite(frame["value"])]
    if len(bad):
        raise BenchError(f"score is not finite: {bad.iloc[0].to_dict()}; look at the evaluator and at this video.")
    double = frame[frame.duplicated(SCORE_KEY)][SCORE_KEY]
    if len(double):
        raise BenchError(f"score is given twice: {double.iloc[0].to_dict()}; each video is scored once per metric.")
    videos = len(frame[["prompt_index", "video"]].drop_duplicates())
    counts = frame.groupby(["evaluator", "metric"]).size()
    short = counts[counts != videos]
    if len(short):
        raise BenchError(
            f"metric {short.index[0]} scores {short.iloc[0]} of {videos} videos: every video needs every metric."
        )
    if (frame.groupby("prompt_index")["prompt"].nunique() > 1).any():
        raise BenchError("scores give one prompt_index to two prompts: the index must follow the prompt list.")
    return frame


def scores_digest(scores: pd.DataFrame) -> str:
    """Digest of the content: equal for two clones that computed the same scores, whatever wrote the file."""
    return _content_digest(sorted_scores(scores))


def _content_digest(frame: pd.DataFrame) -> str:
    return digest({name: frame[name].tolist() for name in SCORE_COLUMNS})


def _write_parquet(scores: pd.DataFrame, path: Path) -> None:
    import pyarrow as pa

    numbers = {"prompt_index": pa.int64(), "video": pa.int64(), "value": pa.float64()}
    columns = {name: pa.array(scores[name].tolist(), numbers.get(name, pa.string())) for name in SCORE_COLUMNS}
    table = pa.table(columns)  # not from pandas, whose metadata would change with its version
    write_table(table, path)


def write_table(table: pa.Table, path: Path) -> None:
    """A pyarrow table as parquet, on the disk when this returns."""
    import pyarrow.parquet as pq

    with path.open("wb") as file:  # our own handle, so that fsync can follow
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())


# writing ------------------------------------------------------------------------------------------------------
@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """A full disk or a folder that may not be written is the user's to mend: one sentence instead of a traceback."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BenchError(
                f"no space left on the disk while writing {path}: earlier files are intact; free some space and "
                "start again, the run goes on from its last checkpoint."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise BenchError(
                f"{path} cannot be written ({error.strerror}): mend its permissions or give another --results."
            ) from error
        raise


def replace_atomically(path: Path | str, write: Callable[[Path], None]) -> None:
    """`write` a temporary file beside `path`, then rename it: a reader sees old or new, never a half.

    `write` must flush and fsync what it wrote; the rename itself is made durable here.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # a pid may be another node's too
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if hasattr(os, "O_DIRECTORY"):
            handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def write_bytes(path: Path | str, data: bytes) -> None:
    """A file, atomically and durably."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    replace_atomically(path, write)


def write_text(path: Path | str, text: str) -> None:
    """A UTF-8 text file, atomically and durably."""
    write_bytes(path, text.encode())


def write_run(folder: Path | str, record: RunRecord, scores: pd.DataFrame | None = None) -> RunRecord:
    """Write `scores.parquet`, then `run.json`; returns the record as written (with its scores' digest).

    A finished run needs scores; a failed one may have none. A folder that holds another run is refused.
    """
    folder = Path(folder)
    is_complete(folder, record.digest)
    if scores is None and record.status == "finished":
        raise BenchError(f"run {record.row} seed {record.seed} is finished but has no scores.")
    frame = None if scores is None else sorted_scores(scores)
    record = record.model_copy(update={"scores_digest": None if frame is None else _content_digest(frame)})
    try:
        text = record.to_json()
    except (ValueError, TypeError) as error:
        raise BenchError(f"record of {record.row} seed {record.seed} cannot be written: {error}.") from error
    if frame is not None:
        replace_atomically(folder / SCORES, lambda path: _write_parquet(frame, path))
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
    found = _content_digest(frame)
    if found != record.scores_digest:
        raise BenchError(
            f"scores {path} do not belong to their record: run.json expects content digest "
            f"{record.scores_digest}, found {found}. Delete {folder} and run it again, or restore both files together."
        )
    return record, frame


# lines --------------------------------------------------------------------------------------------------------
def append_line(path: Path | str, line: Mapping[str, Any]) -> None:
    """Append one JSON line (curves, ledger) durably; half a line left by a kill is cut off first.

    If the disk is full, the file is put back to its old length and a `BenchError` is raised.
    """
    path = Path(path)
    try:
        text = canonical_json(line)
    except (ValueError, TypeError) as error:
        raise BenchError(f"line for {path} cannot be written: {error}; line: {dict(line)}.") from error
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            start = _whole_lines(file.seek(0, os.SEEK_END), path)
            file.truncate(start)
            try:
                data = (text + "\n").encode()
                while data:  # an unbuffered write may take less than all
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(start)
                raise


def _whole_lines(size: int, path: Path) -> int:
    """Length in bytes of the file up to and with its last newline."""
    with path.open("rb") as file:
        if size == 0:
            return 0
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return size
        file.seek(0)
        return file.read().rfind(b"\n") + 1


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    """All whole lines of a file of JSON lines, [] if there is none; a last line without its newline is left out."""
    path = Path(path)
    if not path.is_file():
        return []
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise BenchError(
            f"{path} has a line that is not JSON ({error}): delete the run's folder and start again."
        ) from error
