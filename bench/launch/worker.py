"""One of the processes that do a run together: `python -m torch.distributed.run ... -m bench.launch.worker JOB_FILE`.

It speaks to the launcher in lines on stdout: "progress [phase, done, total]", or why it ends: "error", "lost" or
"bug" with a text. Its exit code is 0 when the run has its record.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.core.world import RESUME_HINT, PeerLostError, is_peer_loss, process_group
from bench.launch.torchrun import STDERR_TAIL, read_job
from bench.suite.devices import cp_degree
from bench.train.run import execute

REPORT_EVERY = 0.5
"""Seconds between two lines of progress."""


def say(kind: str, value: Any) -> None:
    sys.stdout.write(f"{kind} {json.dumps(value)}\n")  # one write: lines of several processes do not mix
    sys.stdout.flush()


def main(path: Path) -> int:
    """Do this process's part of the run."""
    import torch

    torch.set_num_threads(1)
    (job, shard), last = read_job(path), [0.0]
    with process_group(cp_degree(job.exp), shard) as world:

        def report(phase: str, done: int, total: int) -> None:
            now = time.monotonic()
            if world.writes and (now - last[0] > REPORT_EVERY or done == total):
                last[0] = now
                say("progress", [phase, done, total])

        execute(job, report, world)
    return 0


def _leave(kind: str, text: str, code: int) -> None:
    """End at once: leaving the process group in good order would wait for the others, who wait for this one."""
    with contextlib.suppress(OSError):  # the launcher is gone
        say(kind, text)
    os._exit(code)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        sys.exit(main(Path(sys.argv[1])))
    except PeerLostError as error:
        _leave("lost", str(error), 2)
    except BenchError as error:
        _leave("error", str(error), 2)
    except Exception as error:
        if isinstance(error, RuntimeError) and is_peer_loss(error):
            _leave("lost", f"a process lost the others ({' '.join(str(error).split())[:200]}): {RESUME_HINT}", 2)
        _leave("bug", traceback.format_exc()[-STDERR_TAIL:], 1)
