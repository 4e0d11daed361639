"""Whether a method keeps a state: its hooks must give the same results for the same inputs in the whole run."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bench.api import AnyMethod, ForwardMethod, Method
from bench.checks.batch import SyntheticBatch, hook_calls, tensors
from bench.checks.forward import forward_calls
from bench.core.errors import BenchError
from bench.core.world import tensors_digest


def hook_digests(method: AnyMethod, sigmas: Float[Tensor, "t1"]) -> dict[str, str]:
    """Digest of the result of each hook on synthetic inputs, which are the same on every call."""
    if isinstance(method, ForwardMethod):
        calls = forward_calls(method)
    else:
        assert isinstance(method, Method)
        calls = hook_calls(method, SyntheticBatch.make(method, sigmas))
    return {call.hook: tensors_digest(tensors(call.function(*call.copied_inputs()))) for call in calls}


def check_hooks(before: dict[str, str], now: dict[str, str], culprit: str, update: int) -> None:
    """Raise `BenchError` if a hook gives another result than at the start of the run."""
    for hook, expected in before.items():
        if now[hook] != expected:
            raise BenchError(
                f"{culprit}: {hook} gives another result after update {update} than at the start of the run, for the "
                "same inputs: a method keeps no state; compute the result from the arguments alone."
            )
