"""One run over several processes of one machine or of several, started and watched by `torch.distributed.run`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import store
from bench.core.errors import BenchError
from bench.core.parallelism import ProcessLayout, Shard
from bench.core.world import RESUME_HINT, PeerLostError
from bench.store.record import JOB
from bench.suite.job import Job
from bench.suite.schema import Experiment

KILLED = "a process was killed (out of memory?); call again and the rest goes on"
STDERR_TAIL = 4000
"""Characters that are shown of what the processes wrote to stderr."""
TERMINATE_GRACE_S = 15.0
"""Seconds that the processes get to end after a stop."""


RENDEZVOUS_TIMEOUT_S = 180
"""Seconds within which the nodes of a run must have met; one that refuses at its start is missed after these."""


class KilledError(BenchError):
    """A process of the run was killed from outside."""


@dataclass(frozen=True)
class Node:
    """One of the machines that do a run together; processes are numbered node by node."""

    rank: int = 0
    host: str = "localhost"
    """Of the first node, where all meet."""
    port: int = 0
    """Any free one where there is one node."""


def write_job(job: Job, shard: Shard | None = None, node: int = 0) -> Path:
    """Everything about a run that its processes need, as JSON in its folder; each node has a file of its own."""
    text = {
        "shard": shard,
        "exp": job.exp.model_dump(mode="json"),
        "row": None if job.row is None else job.exp.rows.index(job.row),
        "seed": job.seed,
        "folder": str(job.folder.resolve()),
        "digest": job.digest,
    }
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / (JOB if node == 0 else f"{node}-{JOB}")
    store.write_text(path, json.dumps(text))
    return path


def read_job(path: Path) -> tuple[Job, Shard | None]:
    """The run that `write_job` has written, and how its weights are spread."""
    given = json.loads(path.read_text(encoding="utf-8"))
    exp = Experiment.model_validate(given["exp"])
    row = None if given["row"] is None else exp.rows[given["row"]]
    return Job(exp, row, given["seed"], Path(given["folder"]), given["digest"]), given["shard"]


def command(spread: ProcessLayout, node: Node, run_file: Path) -> list[str]:
    """The agent of a node starts its processes, and ends the others within seconds when one of them ends."""
    agent = [f"--nnodes={spread.nodes}", f"--nproc-per-node={spread.nproc}", "--max-restarts=0"]
    meeting = ["--local-addr=localhost", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    if spread.nodes > 1:
        meeting = [f"--node-rank={node.rank}", f"--master-addr={node.host}", f"--master-port={node.port}"]
        meeting.append(f"--rdzv-conf=timeout={RENDEZVOUS_TIMEOUT_S}")
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *agent,
        *meeting,
        "-m",
        "bench.launch.worker",
        str(run_file),
    ]


@dataclass
class ProcessReport:
    """What the processes of a run said of their end."""

    error: str | None = None
    """A mistake to mend."""
    bug: str | None = None
    """A traceback."""
    lost: str | None = None
    """A process lost the others: the consequence of another one's end."""


@dataclass
class TorchrunLauncher:
    """Does runs one after the other, each over several processes."""

    spread: ProcessLayout
    messages: Any
    """Queue that takes (label, phase, done, total)."""
    node: Node = Node()
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def do(self, job: Job) -> tuple[str, str | None]:
        """Status of one run; the second entry says what was wrong. The first node alone looks at the record."""
        path = write_job(job, self.spread.shard, self.node.rank)
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as noise:
            with self._started(command(self.spread, self.node, path), noise) as process:
                said = self._listen(process, job)
                code = process.wait()
            path.unlink(missing_ok=True)
            if code:
                noise.seek(0)
                raise exit_error(said, code, noise.read())
        if self.node.rank:
            return "done", None
        record = store.read_record(job.folder)
        return record.status, record.error

    @contextmanager
    def _started(self, words: list[str], noise: Any) -> Iterator[subprocess.Popen[str]]:
        """In a session of their own: an interrupt reaches the parent, which ends them."""
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.running.append(process)
        try:
            with process:
                yield process
        finally:
            self.running.remove(process)

    def _listen(self, process: subprocess.Popen[str], job: Job) -> ProcessReport:
        said = ProcessReport()
        assert process.stdout is not None
        for line in process.stdout:
            kind, _, text = line.partition(" ")
            try:
                value = json.loads(text)
            except ValueError:  # a library's own line
                continue
            if kind == "progress":
                self.messages.put((job.label, *value))
            elif kind in ("error", "bug", "lost") and getattr(said, kind) is None:
                setattr(said, kind, value)
        return said

    def stop(self) -> None:
        """End the processes of the run that is going on."""
        for process in list(self.running):
            process.terminate()
            try:
                process.wait(TERMINATE_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def exit_error(said: ProcessReport, code: int, noise: str) -> Exception:
    """Why a run stopped: a mistake before a bug, a bug before what follows from either."""
    if said.error is not None:
        return BenchError(said.error)
    if said.bug is not None:
        return RuntimeError(f"one of the processes stopped:\n{said.bug}")
    if code == -signal.SIGKILL or "Signal 9" in noise or "exitcode: -9" in noise:
        return KilledError(KILLED)
    if said.lost is not None:
        return PeerLostError(said.lost)
    if "Signal 6" in noise or "exitcode: -6" in noise:  # NCCL's watchdog ends a process that waits for lost ones
        return PeerLostError(f"a process was aborted while it waited for the others: {RESUME_HINT}")
    return RuntimeError(f"the processes ended with exit code {code} and did not say why:\n{noise[-STDERR_TAIL:]}")
