"""Several processes that do one run together: who takes which micro-batches, and what they tell each other.

Every process holds the policy and works on its own micro-batches, whose shape the suite fixes. What is gathered comes
back in the order of one process, and is the same everywhere; only gradients are summed in another order.
Nothing of `torch.distributed` is touched by a process that is alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench.core.budget import Budget
from bench.core.errors import BenchError, DivergedError
from bench.core.parallelism import Shard

T = TypeVar("T")


RESUME_HINT = "call again and the run goes on from its last checkpoint."


class PeerLostError(BenchError):
    """The other processes of the run are gone, or hang."""


COMPARE_EVERY = 10
"""Updates between two comparisons of the policy across processes."""
COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others: longer than a round of the suites, or the writing of a checkpoint, takes. A
process that ends is noticed at once; this bounds the wait for one that hangs."""
CONNECTION_ERRORS = (
    "gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset",
    "Timed out waiting",
    "Broken pipe",
)
"""Words of the network's own errors, which are plain RuntimeErrors where gloo raises them."""


def is_peer_loss(error: RuntimeError) -> bool:
    """Whether an error says that other processes are gone: a consequence of what ended them."""
    import torch.distributed as dist

    known = getattr(dist, "DistError", ())
    return isinstance(error, known) or any(word in str(error) for word in CONNECTION_ERRORS)


@dataclass(frozen=True)
class World:
    """The processes of one run. Those of one share (`copies`, context parallelism) work on the same samples."""

    rank: int = 0
    size: int = 1
    copies: int = 1
    shard: Shard | None = None
    """How the model's weights are spread over the processes; None: each holds them all."""

    @property
    def shares(self) -> int:
        """Number of parts that the samples are dealt into."""
        return self.size // self.copies

    @property
    def share(self) -> int:
        """Which part this process works on."""
        return self.rank // self.copies

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's files: one does."""
        return self.rank == 0

    # dealing out ------------------------------------------------------------------------------------------------
    def mine(self, items: Sequence[T]) -> list[T]:
        """This share's items: share, share + shares, ..."""
        return list(items[self.share :: self.shares])

    def turns(self, items: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """This share's items, as many for every share; False marks one that only keeps step with the others."""
        own = self.mine(items)
        for turn in range(-(-len(items) // self.shares)):
            yield (own[turn], True) if turn < len(own) else (items[-1], False)

    # telling ----------------------------------------------------------------------------------------------------
    def _all(self, value: T) -> list[T]:
        """The value of every process, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with self._heard():
            dist.all_gather_object(found, value)
        return found

    def everyone(self, value: T) -> list[T]:
        """The value of every share."""
        return self._all(value)[:: self.copies]

    def in_order(self, own: Iterable[T]) -> list[T]:
        """One value for each of this share's items in, the values of all items in their order out."""
        held = self.everyone(list(own))
        return [held[i % self.shares][i // self.shares] for i in range(sum(map(len, held)))]

    def barrier(self) -> None:
        """Wait until every process is here."""
        self._all(None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A divergence that one process meets is one of all, with the same words: none waits for the others.

        The body may not exchange anything.
        """
        error = None
        try:
            yield
        except DivergedError as cause:
            error = cause
        said = [text for text in self._all(None if error is None else str(error)) if text is not None]
        if said:
            raise DivergedError(said[0]) from error

    def summed(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Each tensor summed over all processes in float32 or better, None where no process has one.

        One flat all-reduce per dtype. Gradients of spread weights (`shard`) are sums already.
        """
        if self.size == 1 or self.shard is not None:
            return list(tensors)
        flat: dict[torch.dtype, list[int]] = {}
        kinds = self._kinds(tensors)
        out = list(tensors)
        for i, (dtype, _) in kinds.items():
            flat.setdefault(dtype, []).append(i)
        for dtype, places in flat.items():
            self._sum_flat(tensors, places, dtype, kinds, out)
        return out

    def _kinds(self, tensors: Sequence[Tensor | None]) -> dict[int, tuple[torch.dtype, torch.Size]]:
        """Dtype and shape of every tensor that some process has."""
        found: dict[int, tuple[torch.dtype, torch.Size]] = {}
        for one in self._all({i: (t.dtype, t.shape) for i, t in enumerate(tensors) if t is not None}):
            found |= one
        return dict(sorted(found.items()))

    def _sum_flat(
        self,
        tensors: Sequence[Tensor | None],
        places: Sequence[int],
        dtype: torch.dtype,
        kinds: dict[int, tuple[torch.dtype, torch.Size]],
        out: list[Tensor | None],
    ) -> None:
        import torch.distributed as dist

        device = next((t.device for t in tensors if t is not None), torch.device("cpu"))
        parts = []
        for i in places:
            here = tensors[i]
            filled = torch.zeros(kinds[i][1], device=device) if here is None else here.detach()
            parts.append(filled.to(torch.promote_types(dtype, torch.float32)).flatten())
        total = torch.cat(parts)
        with self._heard():
            dist.all_reduce(total)
        start = 0
        for i, part in zip(places, parts, strict=True):
            out[i] = total[start : start + len(part)].reshape(kinds[i][1]).to(dtype)
            start += len(part)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give every parameter the gradient of the whole: the sum over all processes."""
        if self.size == 1:
            return
        trained = list(parameters)
        for parameter, grad in zip(trained, self.summed([p.grad for p in trained]), strict=True):
            parameter.grad = grad

    def need_same(self, parameters: Iterable[Tensor], when: str) -> None:
        """Stop all processes when they hold other bits of the policy; spread weights exist only once."""
        if self.size == 1 or self.shard is not None:
            return
        found = self._all(_parameter_digest(parameters))
        odd = [rank for rank, bits in enumerate(found) if bits != found[0]]
        if odd:
            raise BenchError(
                f"the policies of processes {', '.join(map(str, odd))} differ from that of process 0 {when}: check "
                "their hardware and software for differences, delete the run's folder, and start it again."
            )

    def need_equal(self, value: Any, what: str) -> None:
        """Stop all processes when they hold other values; `what` says which, and how to mend it."""
        found = self._all(value)
        odd = [rank for rank, other in enumerate(found) if other != found[0]]
        if odd:
            raise BenchError(f"processes {', '.join(map(str, odd))} differ from process 0 in {what}.")

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Say in one sentence that the others are gone, in place of the network's words."""
        try:
            yield
        except RuntimeError as cause:  # torch.distributed's errors all derive from it
            minutes = COLLECTIVE_TIMEOUT.total_seconds() / 60
            raise PeerLostError(
                f"process {self.rank} of {self.size} lost the others (one ended, or hung for {minutes:.0f} minutes): "
                + RESUME_HINT
            ) from cause


SINGLE_PROCESS = World()


def _parameter_digest(parameters: Iterable[Tensor]) -> str:
    """sha256 over the bytes of all parameters."""
    total = hashlib.sha256()
    for parameter in parameters:
        flat = parameter.detach().cpu().contiguous().flatten()
        total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def check_divisible(budget: Budget, shares: int) -> None:
    """Refuse a number of processes that cannot share the micro-batches of an optimizer step evenly."""
    samples = budget.prompts * budget.group_size // budget.minibatches
    parts = -(-samples // budget.micro_batch)
    if parts % shares:
        raise BenchError(
            f"{shares} processes cannot share the {parts} micro-batch{'es' * (parts > 1)} of an optimizer step evenly "
            f"({samples} samples, budget.micro_batch {budget.micro_batch}): "
            f"use N processes that divide {parts}, or set a smaller budget.micro_batch."
        )


@contextmanager
def process_group(copies: int = 1, shard: Shard | None = None) -> Iterator[World]:
    """The world that `torch.distributed.run` has started this process in: gloo on CPUs, NCCL for tensors on GPUs."""
    import os

    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):  # each process has a GPU of its own
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    yield World(dist.get_rank(), dist.get_world_size(), copies, shard)
    dist.destroy_process_group()  # not after an error: it would wait for the others
