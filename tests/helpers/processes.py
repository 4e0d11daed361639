"""What processes of the local launcher do in tests, in place of a run; nothing heavy is imported."""

from __future__ import annotations

import os
import signal
from typing import Any


def finish(pickled_job: bytes, messages: Any) -> None:
    """Report progress, and the number of the process as the error of a finished run."""
    messages.send(("progress", ("train", 1, 2)))
    messages.send(("end", ("finished", str(os.getpid()))))


def blocked_signals(pickled_job: bytes, messages: Any) -> None:
    """Give the blocked signals as the error of a finished run."""
    messages.send(("end", ("finished", str(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))))))


def visible_gpus(pickled_job: bytes, messages: Any) -> None:
    """Give the GPUs that it sees as the error of a finished run."""
    messages.send(("end", ("finished", os.environ.get("CUDA_VISIBLE_DEVICES"))))


def refuse(pickled_job: bytes, messages: Any) -> None:
    messages.send(("error", "fix it."))


def crash(pickled_job: bytes, messages: Any) -> None:
    messages.send(("bug", ("ValueError: no", "Traceback: line 1")))


def die(pickled_job: bytes, messages: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(pickled_job: bytes, messages: Any) -> None:
    """End before anything is sent, as a script does that starts runs while it is imported."""
    os._exit(3)
