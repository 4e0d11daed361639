"""Worker processes: a rank that torchrun started, and a process of the local launcher.

Both give the process its fixed global state before a plug-in is imported.

A rank is started by `python -m torch.distributed.run ... -m bench.launch.worker JOB_FILE`. It sends lines to the
launcher on stdout: "progress [...]" with the fields of a `Step`, "warning" with a text, or the reason of its end:
"error", "locked", "lost" or "bug" with a text. Its exit code is 0 if the run has its record.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import sys
import threading
import time
import traceback
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError, RunLockedError
from bench.core.process_state import fix_process_state
from bench.core.progress import ProgressCallback, Step, silent
from bench.core.world import RESUME_HINT, PeerLostError, is_peer_loss, process_group
from bench.launch.torchrun import STDERR_TAIL, read_job
from bench.launch.trackers import tracked
from bench.plan.fit import on_gpu
from bench.train.run import execute

REPORT_EVERY = 0.5
"""Seconds between two progress messages of a run."""


def throttle(send: ProgressCallback) -> ProgressCallback:
    """A callback that sends progress at most every `REPORT_EVERY` seconds, and every change of what is done."""
    last_report, last_stage = 0.0, ("", "")

    def report(step: Step) -> None:
        nonlocal last_report, last_stage
        now, stage = time.monotonic(), (step.phase, step.loading)
        if now - last_report > REPORT_EVERY or step.done == step.total or stage != last_stage:
            last_report, last_stage = now, stage
            send(step)

    return report


def run_in_process(pickled_job: bytes, messages: Connection) -> None:
    """Do one run in a process of the local launcher.

    Sends ("progress", step), and at the end ("end", (status, error of a diverged run)), ("error", text of a
    `BenchError`), ("locked", text) or ("bug", (message, traceback)). The job and its trackers are pickled, since
    loading a job imports its plug-ins.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    fix_process_state()
    try:
        job, trackers = pickle.loads(pickled_job)  # noqa: S301  (from the parent process)
        with tracked(job, trackers, throttle(lambda step: messages.send(("progress", step)))) as report:
            record = execute(job, report)
        messages.send(("end", (record.status, record.error)))
    except RunLockedError as error:
        messages.send(("locked", str(error)))
    except BenchError as error:
        messages.send(("error", str(error)))
    except Exception as error:  # a bug
        messages.send(("bug", (f"{type(error).__name__}: {error}", traceback.format_exc())))


def _end_with_parent() -> None:
    """End this process when `bench run` is killed, which would otherwise train on without anyone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def send(kind: str, value: Any) -> None:
    """Send one line to the torchrun launcher."""
    sys.stdout.write(f"{kind} {json.dumps(value)}\n")  # one write: lines of several processes do not mix
    sys.stdout.flush()


def main(path: Path) -> int:
    """Do this rank's part of the run that the job file describes."""
    fix_process_state()
    job, shard, trackers = read_job(path)
    with process_group(job.prepared.cp_degree, shard) as world:
        if on_gpu(job.suite):
            world.connect_gpus()
        if not world.is_main:
            execute(job, silent, world)
            return 0
        warn = partial(send, "warning")
        with tracked(job, trackers, throttle(lambda step: send("progress", step)), warn) as report:
            execute(job, report, world)
    return 0


def _exit(kind: str, text: str, code: int) -> None:
    """End at once: an orderly exit of the process group would wait for the other ranks, which wait for this one."""
    with contextlib.suppress(OSError):  # the launcher has ended
        send(kind, text)
    os._exit(code)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        sys.exit(main(Path(sys.argv[1])))
    except PeerLostError as error:
        _exit("lost", str(error), 2)
    except RunLockedError as error:
        _exit("locked", str(error), 2)
    except BenchError as error:
        _exit("error", str(error), 2)
    except Exception as error:
        if isinstance(error, RuntimeError) and is_peer_loss(error):
            _exit("lost", f"a process lost the others ({' '.join(str(error).split())[:200]}): {RESUME_HINT}", 2)
        _exit("bug", traceback.format_exc()[-STDERR_TAIL:], 1)
