"""The folder of a run: written atomically, validated on reading. Nothing that is imported here imports torch.

A run lives in `results/<suite>/<row>/seed-<n>/` (the base, which has no seed, in `results/<suite>/base/`):

- `train.jsonl`: one line per update, appended;
- `scores.parquet`: one row per video and metric;
- `curve.parquet`: the same at some updates of the training, if the suite asks for it;
- `videos/`: the held-out videos that the suite keeps, with their hashes;
- `policy.safetensors`: the trained weights;
- `run.json`: a `RunRecord`, written last. Its presence means that the run is complete.

`bench.store.policy` reads and writes the weights with torch, `bench.store.replay` the record of a replay.
"""

from bench.store.curve import CURVE_COLUMNS, read_curve
from bench.store.files import (
    append_line,
    check_writable,
    find,
    make_folder,
    read_lines,
    replace_atomically,
    try_lock,
    write_bytes,
    write_table,
    write_text,
)
from bench.store.record import (
    CHECKPOINT,
    CURVE,
    INPUTS,
    JOB,
    LOCK,
    OFFENDING,
    POLICY,
    REPLAY,
    RUN,
    SCHEMA,
    SCORES,
    STARTED,
    TRAIN,
    MetricEntry,
    RunRecord,
    check_digest,
    check_started,
    is_complete,
    is_finished,
    other_digest,
    read_digest,
    read_inputs,
    read_record,
    read_run,
    remove_run,
    run_folder,
    start_run,
    write_run,
)
from bench.store.scores import SCORE_COLUMNS, SCORE_KEY, content_digest, scores_digest, sorted_scores, write_parquet

__all__ = [
    "CHECKPOINT",
    "CURVE",
    "CURVE_COLUMNS",
    "INPUTS",
    "JOB",
    "LOCK",
    "OFFENDING",
    "POLICY",
    "REPLAY",
    "RUN",
    "SCHEMA",
    "SCORES",
    "SCORE_COLUMNS",
    "SCORE_KEY",
    "STARTED",
    "TRAIN",
    "MetricEntry",
    "RunRecord",
    "append_line",
    "check_digest",
    "check_started",
    "check_writable",
    "content_digest",
    "find",
    "is_complete",
    "is_finished",
    "make_folder",
    "other_digest",
    "read_curve",
    "read_digest",
    "read_inputs",
    "read_lines",
    "read_record",
    "read_run",
    "remove_run",
    "replace_atomically",
    "run_folder",
    "scores_digest",
    "sorted_scores",
    "start_run",
    "try_lock",
    "write_bytes",
    "write_parquet",
    "write_run",
    "write_table",
    "write_text",
]
