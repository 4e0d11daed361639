"""A method that keeps a state gives another result for the same inputs, and is named."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.flow import sigma_schedule
from bench.train.hooks import check_hooks, hook_digests
from methods.flow_grpo import FlowGRPO

SIGMAS = sigma_schedule(6, 3.0)
CALLS = []


@dataclass(frozen=True, kw_only=True)
class Remembers(FlowGRPO):
    """Its loss grows with the number of calls."""

    def surrogate(self, logp_new: Tensor, logp_old: Tensor, adv: Tensor) -> Tensor:
        CALLS.append(1)
        return len(CALLS) * super().surrogate(logp_new, logp_old, adv)


def test_a_pure_method_gives_the_same_digests() -> None:
    before = hook_digests(FlowGRPO(), SIGMAS)
    assert {"transition", "advantages", "select", "log_prob", "surrogate", "step_weights"} <= before.keys()
    torch.randn(3)  # the global generator does not matter
    check_hooks(before, hook_digests(FlowGRPO(), SIGMAS), "row 'x'", 1)


def test_a_hook_with_a_memory_is_named() -> None:
    method = Remembers()
    before = hook_digests(method, SIGMAS)
    with pytest.raises(BenchError, match="row 'x': surrogate gives another result after update 4 than at the start"):
        check_hooks(before, hook_digests(method, SIGMAS), "row 'x'", 4)
