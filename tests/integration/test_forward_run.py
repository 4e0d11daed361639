"""A run of a forward method on the nano checkpoint: record, resumption bit for bit, and verification of its log."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench import store
from bench.algorithm.forward import FORWARD
from bench.audit.findings import StoredRun
from bench.audit.verify_log import check_log
from bench.audit.verify_method import (
    _division,
    _noise_levels,
    _parameters,
    _schedule,
    _step_weights,
    _trained_steps,
)
from bench.audit.verify_origin import _gates
from bench.checks import evaluators, golden
from bench.store.files import read_lines
from bench.store.record import read_run
from bench.suite.schema import Suite
from bench.train import trainer
from bench.train.trainer import Trainer
from methods.diffusion_nft import DiffusionNFT
from methods.flash_grpo import FlashGRPO
from tests.helpers.nano_suite import run, tiny

ROW = "rows=[{method: 'methods.diffusion_nft:DiffusionNFT', kl: none, label: nft, params: {decay: early}}]"
UPDATES = "budget.updates=3"


class KilledError(Exception):
    """Stands for a kill: nothing in the harness catches it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionNFT, "old_decay", lambda self, update: 0.6)  # an old policy that is far behind
        assert run(tiny(ROW, UPDATES), folder).status == "finished"
    return folder


def stored(folder: Path, suite: Suite) -> StoredRun:
    record, scores = read_run(folder)
    return StoredRun(folder, record, suite, scores, read_lines(folder / store.TRAIN))


def test_the_record_spends_the_budget_and_says_what_it_is(whole: Path) -> None:
    record, _ = read_run(whole)
    samples = 3 * 2 * 2
    assert record.ledger["nfe_rollout"] == samples * 4
    assert record.ledger["nfe_train"] == 3 * samples * 2
    assert record.ledger["nfe_anchor"] == 2 * samples * 2  # the old policy's and the base's velocity at each point
    assert record.extra["family"] == FORWARD
    assert record.extra["schedule"]["std"] == [0.0] * 4
    assert "ratio_audit" not in record.gates
    assert record.open_reasons == []
    assert not any(key.startswith("old:") for key in load_file(whole / "policy.safetensors"))
    for line in read_lines(whole / store.TRAIN):
        assert line["grad_norm"][0] > 0
        assert len(line["noise_levels"]) == 2
        assert not {"ratio_error", "clipped_share", "trained_steps", "log_prob"} & line.keys()


def test_the_log_passes_the_verification_and_forged_levels_do_not(whole: Path) -> None:
    suite, method = tiny(ROW, UPDATES), DiffusionNFT()
    done = stored(whole, suite)
    assert {evaluators.GATE, golden.GATE} <= done.record.gates.keys()
    findings = [*check_log(done), *_gates(done), *_parameters(done, method), *_schedule(done, method)]
    findings += [*_division(done, method, suite.rows[0]), *_noise_levels(done, method)]
    assert findings == []
    done.lines[1]["noise_levels"][0] += 0.01
    (found,) = _noise_levels(done, method)
    assert "update 1 of train.jsonl has the mean noise levels" in str(found)


def test_a_killed_run_goes_on_with_the_same_old_policy(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiffusionNFT, "old_decay", lambda self, update: 0.6)
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 1)
    run_update = Trainer.run_update

    def dying(self: Trainer, index: int) -> float:
        if index == 2:
            raise KilledError
        return run_update(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_update", dying)
        with pytest.raises(KilledError):
            run(tiny(ROW, UPDATES), tmp_path / "run")
    assert run(tiny(ROW, UPDATES), tmp_path / "run").ledger["restarts"] == 1
    mine, expected = load_file(tmp_path / "run" / "policy.safetensors"), load_file(whole / "policy.safetensors")
    assert all(torch.equal(mine[key], expected[key]) for key in expected)
    assert read_run(tmp_path / "run")[0].scores_digest == read_run(whole)[0].scores_digest
    logs = [read_lines(folder / store.TRAIN) for folder in (tmp_path / "run", whole)]
    assert [line["weights_after"] for line in logs[0]] == [line["weights_after"] for line in logs[1]]


def test_a_run_with_steps_per_prompt_passes_its_verification(tmp_path: Path) -> None:
    row = "rows=[{method: 'methods.flash_grpo:FlashGRPO', kl: fixed, label: flash}]"
    suite, method = tiny(row, "budget.train_steps=1", "budget.steps=6"), FlashGRPO()
    assert run(suite, tmp_path / "run").status == "finished"
    done = stored(tmp_path / "run", suite)
    assert done.record.gates["ratio_audit"]["largest"] == 0.0
    assert [[len(steps) for steps in line["trained_steps"]] for line in done.lines] == [[1, 1], [1, 1]]
    findings = [*check_log(done), *_gates(done), *_schedule(done, method), *_division(done, method, suite.rows[0])]
    assert [*findings, *_step_weights(done, method), *_trained_steps(done, method)] == []
    done.lines[1]["trained_steps"][0] = [5]
    (found,) = _trained_steps(done, method)
    assert "update 1 of train.jsonl trained the steps" in str(found)
