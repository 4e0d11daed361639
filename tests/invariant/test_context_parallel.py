"""Context parallelism: two processes with half the latent tokens each compute what one process computes."""

from __future__ import annotations

from typing import Any

import pytest

from bench.api import BenchError
from bench.launch.config import LaunchConfig
from bench.launch.run import run_suites
from bench.suite.prepared import prepare
from tests.helpers import context, pair, parity
from tests.helpers.nano_suite import tiny

BOUND = 1e-6
"""Largest difference, relative to the largest element: attention with other shapes and sums in another order, a few
roundings of float32 (6e-8 each) per layer; wrong heads or a missing part of a gradient change the first digit."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return pair.run_in(2, tmp_path_factory.mktemp("context"), context.in_a_pair)


def test_velocity_and_summed_gradients_are_those_of_one_process(both: list[dict[str, Any]]) -> None:
    v, grads = context.forward_and_backward(context.tiny())
    assert both[0]["v"].equal(both[1]["v"])
    parity.within(
        "processes: context, velocity over the largest", both[0]["v"] / v.abs().max(), v / v.abs().max(), BOUND
    )
    top = max(float(grad.abs().max()) for grad in grads.values())
    for result in both:
        assert result["grads"].keys() == grads.keys()
        for name, grad in grads.items():
            kind = "processes: context, gradients over the largest"
            parity.within(kind, result["grads"][name] / top, grad / top, BOUND)
    partial = both[0]["partial"]
    assert max(float((partial[name] - grad).abs().max()) for name, grad in grads.items()) > 0.1 * top


def test_shapes_that_do_not_divide_are_refused(both: list[dict[str, Any]]) -> None:
    tokens, heads = both[0]["refused"]
    assert "context is 2, which does not divide the 9 latent tokens" in tokens
    assert "context is 4, which does not divide the 2 attention heads" in heads


@pytest.mark.parametrize(
    ("parallel", "launch", "message"),
    [
        ("{context: 2}", LaunchConfig(), "a multiple of 2"),
        ("{context: 2}", LaunchConfig("torchrun", nproc=3), "a run has 3 process.*a multiple of 2"),
        ("{contexts: 2}", LaunchConfig(), "parallel has no key 'contexts'"),
        ("{context: 0}", LaunchConfig("torchrun", nproc=2), "write it as .context: 2."),
        ("two", LaunchConfig("torchrun", nproc=2), "parameter 'parallel' is 'two': it should be an object"),
    ],
)
def test_a_run_without_the_processes_for_it_is_refused(
    tmp_path: Any, parallel: str, launch: LaunchConfig, message: str
) -> None:
    suite = tiny(f"backbone.train.parallel={parallel}")
    with pytest.raises(BenchError, match=message):
        run_suites([prepare(suite)], tmp_path, launch)


def test_a_backbone_that_is_alone_refuses_a_shared_context() -> None:
    with pytest.raises(BenchError, match=r"context is 2, but the run has 1 process: use --launcher torchrun"):
        context.share_context(context.tiny(), {"context": 2}, context.SHAPE)
