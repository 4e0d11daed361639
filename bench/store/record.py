"""The record of a run: its schema and the names of the files beside it, an atomic write, a validated read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.core.errors import BenchError
from bench.core.hashing import plain
from bench.core.strict_json import read_json
from bench.core.text import read_text, shown
from bench.store.files import replace_atomically, write_text
from bench.store.scores import SCORE_COLUMNS, content_digest, sorted_scores, write_parquet
from bench.store.videos import remove_videos

if TYPE_CHECKING:
    import pandas as pd

SCHEMA: Final = 1
"""Version of the layout of `run.json`."""
RUN, SCORES, TRAIN, CURVE = "run.json", "scores.parquet", "train.jsonl", "curve.parquet"
"""The record, the scores of the held-out videos, the log of training and the held-out learning curve."""
STARTED, POLICY, OFFENDING, LOCK = "digest", "policy.safetensors", "offending_sample.safetensors", ".lock"
"""The digest with which the run was started, the trained weights, the video of a sample that was not finite, and the
lock that a process holds while it works on the run."""
INPUTS = "inputs.json"
"""What the digest of the run was made from, so that a later run can say what differs."""
CHECKPOINT, JOB = "checkpoint.pt", "job.json"
"""Files that are removed when a run ends: the checkpoint, and the input of the processes of one run."""
REPLAY = "replay.json"
"""The comparison of the run with its repetition."""


class MetricEntry(BaseModel):
    """What an evaluator declares about one of its metrics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    evaluator: str
    """Name of the evaluator."""
    higher_is_better: bool
    """Whether a larger value means a better video."""
    unit: str
    """Unit or scale."""


class RunRecord(BaseModel):
    """Everything about one run except its curves (`train.jsonl`) and its scores (`scores.parquet`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    """Version of this layout; a record of another version is a `BenchError`."""
    suite: str
    """Name of the suite."""
    row: str
    """Label of the row, unique in the suite; "base" for the untrained model."""
    method: str | None
    """Name of the method; None for the base."""
    method_params: dict[str, Any] = {}
    kl: str | None
    """Name of the KL policy; None for the base."""
    seed: int | None
    """Training seed; None for the base."""
    rules: int = 1
    """Version of the rules that decide numbers beside the settings (`bench.core.rules`); 1 in older records."""
    open_reasons: list[str] | None = None
    """Why the row is in the open division, one phrase each; [] in the closed one. None: the base, older records."""
    status: Literal["finished", "failed"]
    error: str | None = None
    """What stopped a failed run, in one sentence."""
    digest: str
    """Digest of everything that the numbers of the run depend on; a folder is reused only for the same digest."""
    budget: dict[str, Any]
    """The budget of the suite."""
    budget_digest: str
    """Digest of the budget."""
    prompts_digest: str
    """Digest of the training prompts and of those that were scored."""
    config: dict[str, Any]
    """All settings of the suite, with defaults."""
    evaluators: dict[str, dict[str, Any]] = {}
    """Fingerprints of the evaluators by name."""
    metrics: dict[str, MetricEntry] = {}
    """Metrics by name, as their evaluators declare them; empty in older records."""
    backbone: dict[str, Any] = {}
    """Fingerprint of the video generator."""
    ledger: dict[str, Any] = {}
    """Totals: nfe_rollout, nfe_anchor, nfe_train, decodes, videos, updates (counts), reward_calls (by evaluator).

    nfe_curve and curve_videos are those of the held-out curve, which no other total includes."""
    seconds: dict[str, float] = {}
    """Wall-clock seconds per phase."""
    peak_memory_mb: float | None = None
    """Peak memory of the process (CPU) or of the device (GPU), in MB of 10^6 bytes."""
    provenance: dict[str, Any] = {}
    """Commit, sources, package versions, hardware, processes (`bench.core.provenance`) and global settings."""
    updates_done: int = 0
    """Number of completed updates."""
    gates: dict[str, Any] = {}
    """Validity gates by name: true or false, or a dict with the key "passed" (None: not available)."""
    scores_digest: str | None = None
    """Digest of the content of `scores.parquet`; `write_run` sets it, `read_run` checks it."""
    train_digest: str | None = None
    """sha256 of `train.jsonl`; None for the base, and in older records."""
    curve_digest: str | None = None
    """Digest of the content of `curve.parquet`; None: no curve."""
    videos_digest: str | None = None
    """sha256 of `videos/index.json`, which has the hashes of the kept videos; None: no videos are kept."""
    attempt: str | None = None
    """Hash of the line of `attempts.jsonl` that the latest start of the run wrote; None in older records."""
    extra: dict[str, Any] = {}
    """Further entries: scale, schedule, optimizer, lengths of prompts, GPU memory."""

    def to_json(self) -> str:
        """The text of `run.json`; NaN and infinity raise `ValueError`."""
        content = plain(self.model_dump(by_alias=True))
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def run_folder(suite_folder: Path | str, row: str, seed: int | None) -> Path:
    """`<suite>/<row>/seed-<n>`, or `<suite>/<row>` for a record without a seed (the base)."""
    folder = Path(suite_folder) / row
    return folder if seed is None else folder / f"seed-{seed}"


def write_run(folder: Path | str, record: RunRecord, scores: pd.DataFrame | None = None) -> RunRecord:
    """Write `scores.parquet`, then `run.json`; returns the record with the digest of its scores.

    A finished run must have scores, a failed run may have none. A folder of another run is a `BenchError`.
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


def start_run(folder: Path | str, digest: str, inputs: Mapping[str, Any]) -> None:
    """Mark the folder as that of the run with this digest; `inputs` is what the digest was made from."""
    write_text(Path(folder) / STARTED, digest + "\n")
    write_text(Path(folder) / INPUTS, json.dumps(plain(inputs), indent=1, sort_keys=True) + "\n")


def read_inputs(folder: Path | str) -> dict[str, Any]:
    """What the digest of the folder's run was made from; {} for a run of an older version."""
    path = Path(folder) / INPUTS
    if not path.is_file():
        return {}
    return read_json(path, "inputs", "delete it, no number depends on it")


def other_digest(folder: Path | str, digest: str) -> str | None:
    """The digest of the run in the folder, finished or not, if it is another one than `digest`; else None."""
    folder = Path(folder)
    started = folder / STARTED
    stored = [read_digest(folder)] if started.is_file() else []
    stored += [read_record(folder).digest] if (folder / RUN).is_file() else []
    return next((each for each in stored if each != digest), None)


def remove_run(folder: Path | str) -> None:
    """Remove the files of the run in the folder, and no other file; the record first, which marks it as complete."""
    for name in (RUN, SCORES, TRAIN, CURVE, CHECKPOINT, POLICY, OFFENDING, REPLAY, INPUTS):
        (Path(folder) / name).unlink(missing_ok=True)
    remove_videos(Path(folder))
    (Path(folder) / STARTED).unlink(missing_ok=True)


def check_digest(folder: Path | str, actual: str, expected: str) -> None:
    """Raise a `BenchError` if a folder (of a finished run or a checkpoint) belongs to another run."""
    if actual != expected:
        raise BenchError(
            f"{folder} holds another run: its digest is {actual}, this run's is {expected} (the suite's settings, the "
            "weights or the sources changed). Start anew with --overwrite, or write elsewhere with --results."
        )


def check_started(folder: Path | str, digest: str) -> None:
    """Raise a `BenchError` unless the folder of a run that goes on still has the digest that it was started with."""
    path = Path(folder) / STARTED
    if not path.is_file():
        raise BenchError(
            f"the folder {folder} was removed or emptied while its run went on: run the same command again, which "
            "starts this run anew."
        )
    started = read_digest(folder)
    if started != digest:
        raise BenchError(
            f"the folder {folder} was taken by another run (digest {started}) while this one ({digest}) went on: "
            "give each suite a folder of its own."
        )


def is_finished(folder: Path | str, digest: str) -> bool:
    """Whether the folder has the record (finished or failed) of the run with this digest, and of no other run."""
    return other_digest(folder, digest) is None and is_complete(folder)


def is_complete(folder: Path | str, digest: str | None = None) -> bool:
    """Whether the folder has a record (finished or failed). One of a run with another `digest` is a `BenchError`."""
    folder = Path(folder)
    if not (folder / RUN).is_file():
        return False
    if digest is not None:
        check_digest(folder, read_record(folder).digest, digest)
    return True


def read_record(folder: Path | str) -> RunRecord:
    """The validated record."""
    path = Path(folder) / RUN
    fix = "delete the folder and run `bench run` again, or restore it from where it was copied"
    if not path.exists():
        raise BenchError(f"record {path} does not exist: run `bench run` first.")
    content = read_json(path, "record", fix)
    try:
        return RunRecord.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = shown(".".join(str(part) for part in first["loc"]))
        raise BenchError(f"record {path} is not valid at {key} ({first['msg']}): {fix}.") from error


def read_digest(folder: Path | str) -> str:
    """The digest with which the run in this folder was started (the file `STARTED`)."""
    fix = "delete the folder of the run and start it again"
    path = Path(folder) / STARTED
    text = read_text(path, "digest", fix, 1000).strip()
    if not text.isprintable():
        raise BenchError(f"digest {path} is not one line of text: {fix}.")
    return text


def read_run(folder: Path | str) -> tuple[RunRecord, pd.DataFrame]:
    """The validated record and its scores (`SCORE_COLUMNS`; no rows for a run that failed before it was scored)."""
    import pandas as pd

    folder = Path(folder)
    record = read_record(folder)
    if record.scores_digest is None:
        if record.status == "finished":
            raise BenchError(f"record {folder / RUN} has no scores: delete the folder and run it again.")
        return record, pd.DataFrame({name: [] for name in SCORE_COLUMNS})
    path = folder / SCORES
    try:
        frame = sorted_scores(pd.read_parquet(path))
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise BenchError(f"scores {path} cannot be read ({error}): delete {folder} and run it again.") from error
    actual = content_digest(frame)
    if actual != record.scores_digest:
        raise BenchError(
            f"scores {path} do not belong to their record: run.json expects content digest "
            f"{record.scores_digest}, found {actual}. Delete {folder} and run it again, or restore both files "
            "together."
        )
    return record, frame
