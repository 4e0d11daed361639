"""The processes of one run: which micro-batches each of them takes, and what they exchange.

Data parallel: every process holds the policy and works on its own micro-batches, whose shape the suite sets. Gathered
values have the order of a single process and are equal on all processes; only gradients are summed in another order.
A process that is alone does not import `torch.distributed`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench.core.budget import Budget
from bench.core.errors import BenchError, DivergedError
from bench.core.parallelism import COLLECTIVE_TIMEOUT, Shard

T = TypeVar("T")


RESUME_HINT = "run the same command again to resume from the last checkpoint."
"""How to fix a run that lost a process."""
COMPARE_EVERY = 10
"""Updates between two comparisons of the policy across processes."""
CONNECTION_ERRORS = (
    "gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset",
    "Timed out waiting",
    "Broken pipe",
)
"""Parts of the messages of network errors; gloo raises them as plain `RuntimeError`."""


class PeerLostError(BenchError):
    """Another process of the run ended or hangs."""


def is_peer_loss(error: RuntimeError) -> bool:
    """Whether this is an error of the network, because another process ended."""
    import torch.distributed as dist

    distributed_errors = getattr(dist, "DistError", ())
    return isinstance(error, distributed_errors) or any(text in str(error) for text in CONNECTION_ERRORS)


@dataclass(frozen=True)
class World:
    """The processes of one run, as one of them sees them.

    Samples are distributed over `dp_size` data-parallel ranks. With context parallelism, each of these ranks is a
    group of `cp_degree` processes that share the tokens of the same samples.

    A method whose docstring starts with "Collective call" must be called by all processes, in the same order.
    """

    rank: int = 0
    """Number of this process, from 0 to size - 1."""
    size: int = 1
    """World size: the number of processes."""
    cp_degree: int = 1
    """Context parallel: how many processes share the tokens of one sample."""
    shard: Shard | None = None
    """How the weights are sharded over the processes; None: each process holds all of them."""

    @property
    def dp_size(self) -> int:
        """Data parallel: the number of ranks over which the samples are distributed."""
        return self.size // self.cp_degree

    @property
    def dp_rank(self) -> int:
        """Data-parallel rank of this process, from 0 to dp_size - 1."""
        return self.rank // self.cp_degree

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files of the run: rank 0 does."""
        return self.rank == 0

    def local_items(self, items: Sequence[T]) -> list[T]:
        """The items of this data-parallel rank: number dp_rank, dp_rank + dp_size, dp_rank + 2 dp_size, ..."""
        return list(items[self.dp_rank :: self.dp_size])

    def padded_turns(self, items: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """The items of this data-parallel rank, padded so that every rank has the same number of turns.

        False marks a padding item: it is computed so that collective calls match, and then discarded.
        """
        local = self.local_items(items)
        for turn in range(-(-len(items) // self.dp_size)):
            yield (local[turn], True) if turn < len(local) else (items[-1], False)

    def _gather_by_rank(self, value: T) -> list[T]:
        """Collective call: the value of every process, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with self._network_errors():
            dist.all_gather_object(values, value)
        return values

    def all_gather(self, value: T) -> list[T]:
        """Collective call: the value of every data-parallel rank."""
        return self._gather_by_rank(value)[:: self.cp_degree]

    def gather_in_order(self, local: Iterable[T]) -> list[T]:
        """Collective call: the values of all items in their order, from one value per item of `local_items`."""
        parts = self.all_gather(list(local))
        return [parts[i % self.dp_size][i // self.dp_size] for i in range(sum(map(len, parts)))]

    def barrier(self) -> None:
        """Collective call: wait for all processes."""
        self._gather_by_rank(None)

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """Collective call: a `DivergedError` of one process is raised by all, with the same message.

        The body must not contain a collective call.
        """
        error = None
        try:
            yield
        except DivergedError as cause:
            error = cause
        gathered = self._gather_by_rank(None if error is None else str(error))
        messages = [text for text in gathered if text is not None]
        if messages:
            raise DivergedError(messages[0]) from error

    def all_reduce_sum(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Collective call: each tensor summed over all processes in float32 or better; None where no process has one.

        One flat all-reduce per dtype. Gradients of sharded weights are sums already and are returned unchanged.
        """
        if self.size == 1 or self.shard is not None:
            return list(tensors)
        by_dtype: dict[torch.dtype, dict[int, torch.Size]] = {}
        for i, (dtype, shape) in self._tensor_specs(tensors).items():
            by_dtype.setdefault(dtype, {})[i] = shape
        sums = list(tensors)
        for dtype, shapes in by_dtype.items():
            for i, total in self._sum_flat(tensors, shapes, dtype).items():
                sums[i] = total
        return sums

    def _tensor_specs(self, tensors: Sequence[Tensor | None]) -> dict[int, tuple[torch.dtype, torch.Size]]:
        """Collective call: index to dtype and shape of every tensor that at least one process has."""
        specs: dict[int, tuple[torch.dtype, torch.Size]] = {}
        for part in self._gather_by_rank({i: (t.dtype, t.shape) for i, t in enumerate(tensors) if t is not None}):
            specs |= part
        return dict(sorted(specs.items()))

    def _sum_flat(
        self, tensors: Sequence[Tensor | None], shapes: dict[int, torch.Size], dtype: torch.dtype
    ) -> dict[int, Tensor]:
        """Collective call: the sums of the tensors with these indices and shapes, all of one dtype."""
        import torch.distributed as dist

        device = next((t.device for t in tensors if t is not None), torch.device("cpu"))
        parts = []
        for i, shape in shapes.items():
            tensor = tensors[i]
            values = torch.zeros(shape, device=device) if tensor is None else tensor.detach()
            parts.append(values.to(torch.promote_types(dtype, torch.float32)).flatten())
        total = torch.cat(parts)
        with self._network_errors():
            dist.all_reduce(total)
        sums = total.split([len(part) for part in parts])
        return {i: flat.reshape(shape).to(dtype) for (i, shape), flat in zip(shapes.items(), sums, strict=True)}

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Collective call: replace the gradient of every parameter by its sum over all processes."""
        if self.size == 1:
            return
        trained = list(parameters)
        for parameter, grad in zip(trained, self.all_reduce_sum([p.grad for p in trained]), strict=True):
            parameter.grad = grad

    def check_same_parameters(self, parameters: Iterable[Tensor], when: str) -> None:
        """Collective call: raise unless all processes hold the same bits of the policy.

        Sharded weights are not compared, since each exists once.
        """
        if self.size == 1 or self.shard is not None:
            return
        digests = self._gather_by_rank(tensors_digest(parameters))
        different = [rank for rank, value in enumerate(digests) if value != digests[0]]
        if different:
            raise BenchError(
                f"the policies of processes {', '.join(map(str, different))} differ from that of process 0 {when}: "
                "check their hardware and software for differences, delete the run's folder, and start it again."
            )

    def check_equal(self, value: Any, what: str) -> None:
        """Collective call: raise unless all processes have the same value. `what`: name of the value, and the fix."""
        values = self._gather_by_rank(value)
        different = [rank for rank, other in enumerate(values) if other != values[0]]
        if different:
            raise BenchError(f"processes {', '.join(map(str, different))} differ from process 0 in {what}.")

    @contextmanager
    def _network_errors(self) -> Iterator[None]:
        """Raise `PeerLostError` in place of the errors of `torch.distributed`."""
        try:
            yield
        except RuntimeError as cause:  # torch.distributed's errors all derive from it
            minutes = COLLECTIVE_TIMEOUT.total_seconds() / 60
            raise PeerLostError(
                f"process {self.rank} of {self.size} lost the others (one ended, or hung for {minutes:.0f} minutes): "
                f"{RESUME_HINT} torch.distributed says: {' '.join(str(cause).split())[-300:]}"
            ) from cause

    def connect_gpus(self) -> None:
        """Collective call, the first one of NCCL: a network that does not work shows here, not after a rollout."""
        import torch.distributed as dist

        try:
            dist.all_reduce(torch.zeros(1, device="cuda"))
            torch.cuda.synchronize()  # the call itself does not wait for the other GPUs
        except RuntimeError as cause:
            raise BenchError(
                f"the GPUs of the {self.size} processes do not reach each other: set NCCL_DEBUG=INFO and read what it "
                f"prints, or choose the network by NCCL_SOCKET_IFNAME ({' '.join(str(cause).split())[-300:]})."
            ) from cause


SINGLE_PROCESS = World()
"""The world of a run that is one process."""


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """sha256 over type, shape and bytes of all tensors, in whichever order they come."""
    digests = []
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().flatten()
        own = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
        own.update(flat.view(torch.uint8).numpy().data)
        digests.append(own.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def check_divisible(budget: Budget, dp_size: int) -> None:
    """Raise unless the micro-batches of an optimizer step can be distributed evenly over the data-parallel ranks."""
    samples = budget.prompts * budget.group_size // budget.minibatches
    count = -(-samples // budget.micro_batch)
    if count % dp_size:
        raise BenchError(
            f"{dp_size} processes cannot share the {count} micro-batch{'es' * (count > 1)} of an optimizer step "
            f"evenly ({samples} samples, budget.micro_batch {budget.micro_batch}): "
            f"use N processes that divide {count}, or set a smaller budget.micro_batch."
        )


@contextmanager
def process_group(cp_degree: int = 1, shard: Shard | None = None) -> Iterator[World]:
    """The world of a process that `torch.distributed.run` has started: gloo on CPUs, NCCL for tensors on GPUs."""
    import os

    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):  # each process has a GPU of its own
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    yield World(rank=dist.get_rank(), size=dist.get_world_size(), cp_degree=cp_degree, shard=shard)
    dist.destroy_process_group()  # not after an error: it would wait for the others
