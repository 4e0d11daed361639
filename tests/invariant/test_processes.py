"""Several processes for one run: the same samples, the same log, the same ledger; sums in another order only."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest
import torch

from bench.api import BenchError, DivergedError
from bench.core.world import SINGLE_PROCESS, World, check_divisible
from tests.helpers import pair, parity

BOUND = 2e-6
"""Largest difference of a number after the updates, relative to the largest one: gradients are added in another order,
a few roundings of float32 (6e-8 each) per update, and AdamW divides them by their own size."""


def test_micro_batches_are_assigned_in_turn() -> None:
    assigned = [World(rank, 2).local_items(range(5)) for rank in range(2)]
    assert assigned == [[0, 2, 4], [1, 3]]
    assert list(World(1, 2).padded_turns(range(5))) == [(1, True), (3, True), (4, False)]
    assert SINGLE_PROCESS.local_items(range(5)) == [0, 1, 2, 3, 4]
    assert list(SINGLE_PROCESS.padded_turns(range(2))) == [(0, True), (1, True)]


def test_processes_of_one_data_parallel_rank_have_the_same_items() -> None:
    assigned = [World(rank, 4, cp_degree=2).local_items("abcd") for rank in range(4)]
    assert assigned == [["a", "c"], ["a", "c"], ["b", "d"], ["b", "d"]]
    assert [World(rank, 4, cp_degree=2).is_main for rank in range(4)] == [True, False, False, False]


def test_micro_batches_that_do_not_divide_are_refused() -> None:
    check_divisible(pair.BUDGET, 1)
    check_divisible(pair.BUDGET, 4)
    with pytest.raises(BenchError, match=r"3 processes cannot share the 4 micro-batches.*N processes that divide 4"):
        check_divisible(pair.BUDGET, 3)
    with pytest.raises(BenchError, match=r"2 processes cannot share the 1 micro-batch of an optimizer step"):
        check_divisible(dataclasses.replace(pair.BUDGET, minibatches=4), 2)


def test_one_process_does_not_import_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.distributed", None)
    values = [torch.ones(2), None]
    assert SINGLE_PROCESS.all_reduce_sum(values) == values
    assert SINGLE_PROCESS.all_gather(3) == [3]
    assert SINGLE_PROCESS.gather_in_order([1, 2]) == [1, 2]
    SINGLE_PROCESS.barrier()
    SINGLE_PROCESS.check_same_parameters([torch.ones(1)], "now")
    SINGLE_PROCESS.check_equal(1, "nothing")
    with pytest.raises(DivergedError, match="mine"), SINGLE_PROCESS.raise_together():
        raise DivergedError("mine")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of two gloo processes."""
    return pair.run_in(2, tmp_path_factory.mktemp("pair"), pair.scenario)


def test_what_is_gathered_comes_in_the_order_of_one_process(both: list[dict[str, Any]]) -> None:
    assert [results["in order"] for results in both] == [[0, 1, 2, 3, 4]] * 2
    assert [results["turns"] for results in both] == [list(World(rank, 2).padded_turns(range(5))) for rank in range(2)]


def test_gradients_are_summed_in_their_dtype_and_missing_ones_count_as_zero(both: list[dict[str, Any]]) -> None:
    for results in both:
        two, lone, missing, half, double = results["summed"]
        assert two.tolist() == [2.0, 2.0]
        assert lone.tolist() == [7.0]
        assert missing is None
        assert (half.dtype, half.tolist()) == (torch.bfloat16, [3.0])
        assert (double.dtype, double.tolist()) == (torch.float64, [2.0])


def test_one_process_that_diverges_stops_all_with_its_message(both: list[dict[str, Any]]) -> None:
    assert [results["divergence"] for results in both] == ["the policy of process 1 diverged."] * 2


def test_a_policy_that_differs_between_processes_stops_the_run_unfinished(both: list[dict[str, Any]]) -> None:
    for results in both:
        assert "processes 1 differ from that of process 0 after update 9" in results["digest"]
        assert "delete the run's folder" in results["digest"]


def test_a_checkpoint_that_one_process_cannot_read_stops_all(both: list[dict[str, Any]]) -> None:
    for results in both:
        assert (
            results["file"] == "processes 1 differ from process 0 in the checkpoint that they see: share the folder."
        )


@pytest.mark.parametrize(("name", "minibatches"), [("one", 1), ("two", 2)])
def test_two_processes_do_the_update_of_one(both: list[dict[str, Any]], name: str, minibatches: int) -> None:
    alone = pair.updates(SINGLE_PROCESS, minibatches=minibatches)
    assert all(results[name]["ledger"] == alone["ledger"] for results in both)
    assert torch.equal(both[0][name]["policy"], both[1][name]["policy"])
    for index, whole in enumerate(alone["updates"]):
        parts = [results[name]["updates"][index] for results in both]
        assert torch.cat([part["samples"] for part in parts]).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
        for part in parts:
            for key, dim in {"x": 1, "logp": 1, "x0": 0}.items():
                want = whole[key].index_select(dim, part["samples"])
                if index == 0:  # the same policy: the same bits
                    assert torch.equal(part[key], want), key
                assert part[key] == pytest.approx(want, abs=BOUND * float(want.abs().max()))
            assert_same_log(part["log"], whole["log"], exact=index == 0 and minibatches == 1)
            assert part["rewards"] == pytest.approx(whole["rewards"], abs=BOUND)
            assert part["state"]["ticks"] == whole["state"]["ticks"]
    top = float(alone["policy"].abs().max())
    kind = "processes: data parallel, weights after 3 updates over the largest"
    parity.within(kind, both[0][name]["policy"] / top, alone["policy"] / top, BOUND)


@pytest.mark.parametrize(("name", "minibatches"), [("forward", 1), ("forward, two", 2)])
def test_two_processes_do_the_update_of_a_forward_method(
    both: list[dict[str, Any]], name: str, minibatches: int
) -> None:
    """Videos, policy, old policy and counts are those of one process."""
    alone = pair.forward_updates(SINGLE_PROCESS, minibatches=minibatches)
    for part in (results[name] for results in both):
        assert part["ledger"] == alone["ledger"]
        (samples, x0), (_, whole) = part["videos"][0], alone["videos"][0]
        assert torch.equal(x0, whole[samples])
        for key in ("policy", "old"):
            top = float(alone[key].abs().max())
            parity.within("processes: forward method, weights", part[key] / top, alone[key] / top, BOUND)
    assert not torch.equal(alone["policy"], alone["old"])


def assert_same_log(actual: Any, whole: Any, *, exact: bool) -> None:
    """Equal sums where the policy has the same bits; norms within the bound: gradients are added up otherwise."""
    assert actual.count == whole.count
    assert actual.sums.keys() == whole.sums.keys()
    if exact:
        assert actual.sums == whole.sums
        assert actual.ratio_error == whole.ratio_error
        assert actual.clipped == whole.clipped
    assert actual.grad_norm == pytest.approx(whole.grad_norm, rel=BOUND)
    assert actual.grad_norm_of_step == pytest.approx(whole.grad_norm_of_step, rel=BOUND)
    assert (actual.kl_gradient is None) == (whole.kl_gradient is None)
    if whole.kl_gradient is not None:
        assert actual.kl_gradient == pytest.approx(whole.kl_gradient, rel=BOUND)
