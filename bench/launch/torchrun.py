"""The torchrun launcher: one run over several processes of one or several machines, by `torch.distributed.run`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import store
from bench.core.errors import BenchError, RunLockedError
from bench.core.parallelism import ProcessLayout, Shard
from bench.core.progress import say
from bench.core.world import RESUME_HINT, PeerLostError
from bench.store.record import JOB
from bench.suite.job import BaseRun, Job, TrainingRun
from bench.suite.prepared import prepare
from bench.suite.schema import Suite

KILLED_MESSAGE = "a process was killed (out of memory?): run the same command again to resume"
STDERR_TAIL = 4000
"""Characters of the processes' stderr that an error shows."""
TERMINATE_GRACE_S = 15.0
"""Seconds between the request to end and the kill of the processes."""
RENDEZVOUS_TIMEOUT_S = 180
"""Seconds within which all nodes of a run must have joined; a node that fails at its start is noticed after them."""

Status = tuple[str, str | None]
"""Status of one run, and its error."""


class KilledError(BenchError):
    """A process of the run was killed from outside."""


@dataclass(frozen=True)
class Node:
    """One of the machines of a run; ranks are numbered node by node."""

    rank: int = 0
    """Number of the node, from 0."""
    host: str = "localhost"
    """Name of the first node, the rendezvous host."""
    port: int = 0
    """Port of the rendezvous; 0: any free one, for a run on one node."""


def write_job(job: Job, shard: Shard | None = None, node: int = 0, trackers: Sequence[str] = ()) -> Path:
    """Write the JSON file that describes a job to its processes into its folder; one file per node."""
    content = {
        "shard": shard,
        "trackers": list(trackers),
        "suite": job.suite.model_dump(mode="json"),
        "row": job.identity["row"] if isinstance(job, TrainingRun) else None,
        "seed": job.identity["seed"],
        "folder": str(job.folder.resolve()),
        "digest": job.digest,
        "inputs": job.inputs,
        "overwrite": job.overwrite,
    }
    store.make_folder(job.folder)
    path = job.folder / (JOB if node == 0 else f"{node}-{JOB}")
    store.write_text(path, json.dumps(content))
    return path


def read_job(path: Path) -> tuple[Job, Shard | None, list[str]]:
    """The job that `write_job` has written, how its weights are sharded, and its trackers."""
    content = json.loads(path.read_text(encoding="utf-8"))
    run = prepare(Suite.model_validate(content["suite"])), Path(content["folder"]), content["digest"]
    options = {"inputs": content["inputs"], "overwrite": content["overwrite"]}
    job = (
        BaseRun(*run, **options)
        if content["row"] is None
        else TrainingRun(*run, content["row"], content["seed"], **options)
    )
    return job, content["shard"], content["trackers"]


def command(layout: ProcessLayout, node: Node, job_file: Path) -> list[str]:
    """The command of a node's torchrun agent, which starts the node's processes and ends all of them if one ends."""
    agent = [f"--nnodes={layout.nodes}", f"--nproc-per-node={layout.nproc}", "--max-restarts=0"]
    rendezvous = ["--local-addr=localhost", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    if layout.nodes > 1:
        rendezvous = [f"--node-rank={node.rank}", f"--master-addr={node.host}", f"--master-port={node.port}"]
        rendezvous.append(f"--rdzv-conf=timeout={RENDEZVOUS_TIMEOUT_S}")
    module = ["-m", "bench.launch.worker", str(job_file)]
    return [sys.executable, "-m", "torch.distributed.run", *agent, *rendezvous, *module]


@dataclass
class ProcessReport:
    """Messages of the processes of a run about their end; the first message of each kind counts."""

    error: str | None = None
    """Text of a `BenchError`."""
    locked: str | None = None
    """Another `bench run` works on the run."""
    bug: str | None = None
    """Traceback of any other exception."""
    lost: str | None = None
    """A process lost the connection to the others, because another one ended."""


@dataclass
class TorchrunLauncher:
    """Launch each run with torchrun, one run at a time."""

    layout: ProcessLayout
    messages: Any
    """Queue that takes (label, step)."""
    node: Node = Node()
    trackers: Sequence[str] = ()
    agents: list[subprocess.Popen[str]] = field(default_factory=list)
    """The torchrun process of the current run, if there is one."""

    def run(self, job: Job) -> Status:
        """Do one run. Only the first node reads the record; other nodes return the status "done"."""
        path = write_job(job, self.layout.shard, self.node.rank, self.trackers)
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
            with self._start(command(self.layout, self.node, path), stderr) as agent:
                report = self._read_messages(agent, job)
                code = agent.wait()
            path.unlink(missing_ok=True)
            if code:
                stderr.seek(0)
                raise exit_error(report, code, stderr.read())
        if self.node.rank:
            return "done", None
        record = store.read_record(job.folder)
        return record.status, record.error

    @contextmanager
    def _start(self, arguments: list[str], stderr: Any) -> Iterator[subprocess.Popen[str]]:
        """Start the agent in a new session, so that Ctrl-C reaches only the parent, which then ends the agent."""
        agent = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.agents.append(agent)
        try:
            with agent:
                yield agent
        finally:
            self.agents.remove(agent)

    def _read_messages(self, agent: subprocess.Popen[str], job: Job) -> ProcessReport:
        """Forward progress to the queue until stdout ends; returns the other messages."""
        report = ProcessReport()
        assert agent.stdout is not None
        for line in agent.stdout:
            kind, _, text = line.partition(" ")
            try:
                value = json.loads(text)
            except ValueError:  # a line printed by a library
                continue
            if kind == "progress":
                self.messages.put((job.label, value))
            elif kind == "warning":
                say(value)
            elif kind in ("error", "locked", "bug", "lost") and getattr(report, kind) is None:
                setattr(report, kind, value)
        return report

    def stop(self) -> None:
        """End the processes of the current run."""
        for agent in list(self.agents):
            agent.terminate()
            try:
                agent.wait(TERMINATE_GRACE_S)
            except subprocess.TimeoutExpired:
                agent.kill()


def exit_error(report: ProcessReport, code: int, stderr: str) -> Exception:
    """The cause of a run's end: an error before a bug, a bug before a kill, and all before a lost connection."""
    if report.error is not None:
        return BenchError(report.error)
    if report.locked is not None:
        return RunLockedError(report.locked)
    if report.bug is not None:
        return RuntimeError(f"one of the processes stopped:\n{report.bug}")
    if code == -signal.SIGKILL or "Signal 9" in stderr or "exitcode: -9" in stderr:
        return KilledError(KILLED_MESSAGE)
    if report.lost is not None:
        return PeerLostError(report.lost)
    if "Signal 6" in stderr or "exitcode: -6" in stderr:  # NCCL's watchdog aborts a process that waits for lost ones
        return PeerLostError(f"a process was aborted while it waited for the others: {RESUME_HINT}")
    return RuntimeError(f"the processes ended with exit code {code} and no message:\n{stderr[-STDERR_TAIL:]}")
