"""Weights sharded over two processes by FSDP2: updates, gradients, anchors, checkpoints as in one process."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.api import BenchError
from bench.core.world import SINGLE_PROCESS, World, is_peer_loss, tensors_digest
from bench.suite.prepared import make_backbone, prepare
from tests.helpers import pair, parity, sharded
from tests.helpers.full_size import released
from tests.helpers.nano_suite import tiny

BOUND = 5e-7
"""Relative difference of latents, norms and gradients that are added in another order: a few roundings of float32
(6e-8 each). Attention over parts of a sample (context) changes the shapes of its products too."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("released") / "480p_t2v")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    """Results of one process."""
    return {name: sharded.updates(folder, case, SINGLE_PROCESS) for name, case in sharded.CASES.items()}


@pytest.fixture(scope="module")
def both(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of each of two gloo processes."""
    torch.save(sharded.muon(folder, SINGLE_PROCESS), folder / "muon.pt")
    scenario = functools.partial(sharded.scenario, folder=folder)
    return pair.run_in(2, tmp_path_factory.mktemp("sharded"), scenario)


@pytest.mark.parametrize("name", sharded.CASES)
def test_two_processes_that_share_the_weights_do_the_updates_of_one(
    alone: dict[str, Any], both: list[dict[str, Any]], name: str
) -> None:
    want = alone[name]
    for result in (process[name] for process in both):
        assert result["ledger"] == want["ledger"]
        assert_close("velocity of the base", result["base"], want["base"], BOUND)
        for index, (mine, whole) in enumerate(zip(result["rounds"], want["rounds"], strict=True)):
            for key, dim in {"x": 1, "logp": 1}.items():
                expected = whole[key].index_select(dim, mine["own"])
                assert_close(
                    f"{key}, {'second' if index else 'first'} rollout",
                    mine[key],
                    expected,
                    10 * BOUND if index else BOUND,
                )
            assert mine["log"].count == whole["log"].count
            assert_norms(mine["log"], whole["log"])
            assert mine["log"].step_rms == pytest.approx(whole["log"].step_rms, rel=1e-3)
    state = both[0][name]["policy"]
    assert state.keys() == want["policy"].keys()
    weights = [key for key in state if key.startswith("policy:")]
    hashes = [[each["log"] for each in process[name]["rounds"]] for process in both]
    assert {logs[0].weights_before for logs in hashes} == {want["rounds"][0]["log"].weights_before}
    stored = tensors_digest(state[key] for key in weights)[:16]
    assert {logs[-1].weights_after for logs in hashes} == {stored}, "the hash is that of the full weights"
    lr, kind = sharded.BUDGET.lr, " and context" * (sharded.CASES[name].context > 1)
    for key in state:
        what = f"processes: FSDP2{kind}, weights after 2 updates over the learning rate"
        parity.within(what, state[key] / lr, want["policy"][key] / lr, sharded.CASES[name].bound)
    without_data = [key for key in weights if both[1][name]["policy"][key].is_meta]
    assert without_data == weights, "process 1 holds full weights"


def assert_norms(log: Any, whole: Any) -> None:
    for name in ("grad_norm", "grad_norm_of_step", "kl_gradient"):
        mine, theirs = getattr(log, name), getattr(whole, name)
        if isinstance(mine, dict):
            assert mine.keys() == theirs.keys()
            mine, theirs = list(mine.values()), list(theirs.values())
        parity.within("processes: FSDP2, norms of gradients", mine, theirs, BOUND, relative=True)


def assert_close(what: str, value: Tensor, want: Tensor, bound: float) -> None:
    top = float(want.abs().max())
    parity.within(f"processes: FSDP2, {what} over the largest", value / top, want / top, bound)


@pytest.mark.parametrize("start", ["muon", "muon resumed"])
def test_muon_and_its_checkpoint_are_those_of_one_process(
    folder: Path, both: list[dict[str, Any]], start: str
) -> None:
    saved = torch.load(folder / "muon.pt", weights_only=True)
    want = saved if start == "muon" else sharded.muon(folder, SINGLE_PROCESS, saved)
    mine = both[0][start]
    assert mine["policy"].keys() == want["policy"].keys()
    assert all(mine["policy"][key].equal(value) for key, value in want["policy"].items())
    for part in ("muon", "adamw"):
        states = want["optimizer"][part]["state"]
        assert states
        for index, values in states.items():
            assert all(mine["optimizer"][part]["state"][index][key].equal(value) for key, value in values.items())


@pytest.mark.parametrize("shard", ["full", "grads"])
@pytest.mark.parametrize("kind", sharded.ANCHORED)
def test_an_anchor_between_forward_and_backward_leaves_the_gradient(
    folder: Path, both: list[dict[str, Any]], kind: str, shard: str
) -> None:
    plain, between = both[0][f"anchored {kind} {shard}"]
    assert plain.any()
    assert torch.equal(plain, between)
    assert_close(
        "gradient", plain, 2 * sharded.gradients(folder, SINGLE_PROCESS, sharded.ANCHORED[kind], between=False), BOUND
    )


@pytest.fixture(scope="module")
def followers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Policies and old policies of each of two gloo processes."""
    return pair.run_in(2, tmp_path_factory.mktemp("followers"), functools.partial(sharded.followers, folder=folder))


@pytest.mark.parametrize("kind", sharded.ANCHORED)
def test_an_old_policy_that_follows_is_that_of_one_process(
    folder: Path, followers: list[dict[str, Any]], kind: str
) -> None:
    """Shake by shake: old = .25 a + .75 b, then old = .5 old + .5 c, in the checkpoint too."""
    mine, want = followers[0][kind], sharded.blended(folder, SINGLE_PROCESS, sharded.ANCHORED[kind])
    assert mine.keys() == want.keys()
    assert all(torch.equal(mine[key], want[key]) for key in want)
    old = [key for key in want if key.startswith("old:")]
    assert len(old) == len(want) / 2, "a policy and its old one, and no copy of the base"
    start = sharded.make(folder, SINGLE_PROCESS, sharded.ANCHORED[kind]).state_dict()
    for key in old:
        name = key.replace("old:", "policy:")
        shake = (want[name] - start[name]) / 2  # two equal ones
        first = start[name] + 0.75 * shake
        torch.testing.assert_close(want[key], 0.5 * first + 0.5 * want[name], rtol=1e-5, atol=1e-5)


def test_texts_of_different_lengths_need_padding_passes(folder: Path, both: list[dict[str, Any]]) -> None:
    assert_close("gradient", both[0]["lengths"], sharded.lengths(folder, SINGLE_PROCESS), BOUND)
    assert both[0]["lengths"].equal(both[1]["lengths"])


def test_a_process_that_is_gone_is_known_by_the_error_of_the_others(both: list[dict[str, Any]]) -> None:
    lost, words = both[0]["lost"]
    assert lost, words
    assert not is_peer_loss(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_suite_does_not_choose_how_weights_are_sharded() -> None:
    with pytest.raises(BenchError, match=r"backbone.train.shard belongs to the launch"):
        prepare(tiny("backbone.train.shard=full"))


def test_a_backbone_that_cannot_shard_is_not_loaded(tmp_path: Path) -> None:
    spec = {"name": "tests.helpers.toy:LoadedToy", "checkpoint": str(tmp_path)}
    suite = tiny().model_copy(update={"backbone": tiny().backbone.model_copy(update={**spec, "train": {}})})
    with pytest.raises(
        BenchError, match=r"backbone tests.helpers.toy:LoadedToy cannot shard its weights.*without --shard"
    ):
        make_backbone(prepare(suite), World(0, 2, shard="full"))
