"""One run on the nano checkpoint: its record, its resumption bit for bit, what a damaged or diverged one leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from bench import store
from bench.algorithm.steps import injected_variance
from bench.api import BenchError
from bench.core.rng import stream
from bench.flow import sigma_schedule
from bench.store.files import read_lines
from bench.store.record import CHECKPOINT, RunRecord, read_run
from bench.suite.job import BaseRun
from bench.suite.prepared import make_backbone, make_evaluator, prepare
from bench.suite.prompts import PromptLists
from bench.suite.schema import Suite
from bench.train import trainer
from bench.train.evaluate import evaluate
from bench.train.rewards import update_prompts
from bench.train.run import execute
from bench.train.trainer import Trainer
from tests.helpers.nano_suite import run, tiny

ROW = "rows=[{method: sage_grpo, kl: {name: dual, params: {every: 1, weight: 0.01, min_weight: 0.001}}}]"
"""A row with everything that a checkpoint must hold: a moving anchor from update 1 on and a controller that ticks."""
UPDATES = "budget.updates=3"


class KilledError(Exception):
    """Stands for a kill: nothing in the harness catches it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(tiny(ROW, UPDATES), folder).status == "finished"
    return folder


def run_and_kill(suite: Suite, folder: Path, update: int, *, after_the_line: bool) -> None:
    """Die in this update, before it begins or between its line in `train.jsonl` and its checkpoint."""
    run_update = Trainer.run_update

    def dying(self: Trainer, index: int) -> None:
        if index == update and not after_the_line:
            raise KilledError
        run_update(self, index)
        if index == update:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run_update", dying)
        with pytest.raises(KilledError):
            run(suite, folder)


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    """A line of `train.jsonl` without what a restart may change."""
    fields = {key: value for key, value in line.items() if key != "seconds"}
    return {**fields, "ledger": {key: value for key, value in line["ledger"].items() if key != "restarts"}}


def assert_same_run(folder: Path, whole: Path) -> RunRecord:
    """Equal scores, weights and curves, bit for bit; one line per update."""
    (record, scores), (expected, expected_scores) = read_run(folder), read_run(whole)
    assert record.scores_digest == expected.scores_digest
    assert scores["value"].tolist() == expected_scores["value"].tolist()
    mine, others = load_file(folder / "policy.safetensors"), load_file(whole / "policy.safetensors")
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[key], others[key]) for key in mine)
    lines, expected_lines = (read_lines(path / store.TRAIN) for path in (folder, whole))
    assert [line["update"] for line in lines] == [0, 1, 2]
    assert list(map(timeless, lines)) == list(map(timeless, expected_lines))
    return record


def with_clipscore(*overrides: str) -> Suite:
    return tiny(
        "evaluation={evaluators: [clipscore, gold], steps: 2, videos_per_prompt: 2}",
        "evaluator_params={clipscore: {checkpoint: nano/clip, device: cpu}}",
        *overrides,
    )


def test_a_record_counts_truncated_prompts(tmp_path: Path) -> None:
    record = execute(BaseRun(prepare(with_clipscore()), tmp_path / "run", "d"))
    assert record.extra["prompts_cut"] == {"clipscore": 0.0}  # the gold evaluator reads no tokens and reports nothing
    assert record.extra["token_limit"] == {"clipscore": 77}
    read, _ = read_run(tmp_path / "run")
    assert read.extra == record.extra


def test_the_share_of_cut_prompts_counts_prompts_not_videos() -> None:
    prepared = prepare(with_clipscore("budget.micro_batch=2"))
    evaluators = {name: make_evaluator(prepared, name) for name in prepared.suite.evaluation.evaluators}
    prompts = ["a small red circle moves left", "a small red circle moves left " * 20, "a big blue square", "a square"]
    prepared = replace(prepared, prompts=PromptLists(prepared.prompts.train, prompts))
    backbone = make_backbone(prepared)
    backbone.reset(stream(0, "initial_policy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluators["gold"], "score", lambda videos, prompts, fps: {"g": torch.zeros(len(prompts))})
        held_out = evaluate(backbone, evaluators, prepared)
    assert held_out.prompts_cut == {"clipscore": 0.25}
    assert len(held_out.scores) == 8 * 3  # two metrics of CLIPScore and the stand-in


@pytest.mark.usefixtures("global_random_state_is_left_alone")
def test_a_run_ends_in_a_complete_record(tmp_path: Path) -> None:
    suite = tiny()
    record = run(suite, tmp_path / "run")
    assert (record.status, record.error, record.row, record.seed) == ("finished", None, "flow_grpo-fixed", 0)
    assert record.updates_done == 2
    samples = 2 * 2 * 2
    assert record.ledger == {
        "nfe_rollout": samples * 4,
        "nfe_train": 3 * samples * 2,
        "nfe_anchor": samples * 2,
        "decodes": samples,
        "videos": samples,
        "prompts": 4,
        "updates": 2,
        "optimizer_steps": 2,
        "reward_calls": {"gold": samples},
        "restarts": 0,
    }
    assert record.gates["ratio_audit"] == {"passed": True, "largest": 0.0, "tolerance": 1e-5}
    assert record.evaluators.keys() == {"gold"}
    schedule = record.extra["schedule"]
    assert record.extra.keys() == {"scale", "schedule"}
    assert record.extra["scale"] == "nano"
    prepared = prepare(suite)
    method, sigmas = prepared.method(prepared.rows[0], 512), sigma_schedule(4, 5.0)
    assert schedule["sigma"] == sigmas.tolist()
    assert schedule["std"][:-1] == injected_variance(method, sigmas).sqrt()[:-1].tolist()
    assert schedule["std"][-1] == 0.0  # the predicted x0 of the last step is decoded: it is not noisy
    assert schedule["step_weight"] == [1.0] * 4
    assert min(schedule["predicted_grad_norm"]) > 0
    assert record.config == suite.model_dump(mode="json")
    assert {"rollout", "decode", "reward", "update", "load", "evaluate"} <= record.seconds.keys()
    read, scores = read_run(tmp_path / "run")
    assert read == record
    assert set(scores["metric"]) == {"gold_VQ", "gold_MQ", "gold_TA"}
    assert scores[["prompt_index", "video"]].drop_duplicates().shape[0] == 36
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.name != ".lock") == [
        "digest",
        "inputs.json",
        "policy.safetensors",
        "run.json",
        "scores.parquet",
        "train.jsonl",
    ]


def test_lines_of_the_log_describe_the_updates(whole: Path) -> None:
    for index, line in enumerate(read_lines(whole / store.TRAIN)):
        rewards = line["rewards"]
        expected = 0.5 * rewards["gold_VQ"] + 0.5 * rewards["gold_MQ"] + rewards["gold_TA"]
        assert line["reward"] == pytest.approx(expected, rel=1e-5)  # a mean of float32 sums against a sum of means
        assert line["ratio_error"] == line["clipped_share"] == line["kl_stepwise"] == 0.0  # one optimizer step each
        assert len(line["grad_norm"]) == 1
        assert line["grad_norm"][0] > 0
        assert sorted(map(int, line["grad_norm_of_step"])) == line["trained_steps"]
        assert all(norm > 0 for norm in line["grad_norm_of_step"].values())
        assert line["monitor"] == {}  # gold gives the reward here, so it is not scored again
        assert line["ledger"]["updates"] == index + 1
        # two ticks per update; the ramp rises by (0.01 - 0.001) / 100 each
        assert line["kl_weight"]["anchor"] == pytest.approx(0.001 + 0.009 * 2 * (index + 1) / 100)
        # the anchor is a fresh copy of the policy in every update (and equal to the base in the first one)
        assert line["kl_anchor"] == 0.0


def test_the_base_has_no_seed_and_training_moves_the_scores(tmp_path: Path, whole: Path) -> None:
    base = execute(BaseRun(prepare(tiny()), tmp_path / "base", "d"))
    assert (base.row, base.method, base.seed, base.ledger, base.updates_done) == ("base", None, None, {}, 0)
    assert not (tmp_path / "base" / "policy.safetensors").exists()
    moved = (read_run(tmp_path / "base")[1]["value"] - read_run(whole)[1]["value"]).abs()
    assert moved.max() > 0


def test_two_executions_give_the_same_bits(tmp_path: Path, whole: Path) -> None:
    run(tiny(ROW, UPDATES), tmp_path / "again", digest="another name")
    assert assert_same_run(tmp_path / "again", whole).ledger["restarts"] == 0


def test_another_seed_gives_another_run(tmp_path: Path, whole: Path) -> None:
    other = run(tiny(ROW, UPDATES, "seeds=[1]"), tmp_path / "other")
    assert other.scores_digest != read_run(whole)[0].scores_digest


@pytest.mark.parametrize("after_the_line", [False, True], ids=["between updates", "before the checkpoint is written"])
def test_a_killed_run_resumes_to_the_same_bits(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, after_the_line: bool
) -> None:
    folder, suite = tmp_path / "run", tiny(ROW, UPDATES)
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 1)
    run_and_kill(suite, folder, 2, after_the_line=after_the_line)
    assert not store.is_complete(folder)
    assert (folder / CHECKPOINT).exists()
    assert len(read_lines(folder / store.TRAIN)) == (3 if after_the_line else 2)
    run(suite, folder)
    record = assert_same_run(folder, whole)
    expected = read_run(whole)[0]
    assert record.ledger == {**expected.ledger, "restarts": 1}
    assert record.gates == expected.gates  # the audit of update 0 survives the restart
    assert not (folder / CHECKPOINT).exists()


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path, whole: Path) -> None:
    folder, suite = tmp_path / "run", tiny(ROW, UPDATES)
    run_and_kill(suite, folder, 1, after_the_line=True)
    assert not (folder / CHECKPOINT).exists()
    run(suite, folder)
    assert assert_same_run(folder, whole).ledger["restarts"] == 0


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A good checkpoint's bytes."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "CHECKPOINT_EVERY", 1)
        run_and_kill(tiny(ROW, UPDATES), folder, 1, after_the_line=False)
    return (folder / CHECKPOINT).read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"not a checkpoint\n" * 10,
        lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    ],
    ids=["cut", "empty", "other bytes", "one bit flipped"],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, killed: bytes, damage: Any) -> None:
    (tmp_path / CHECKPOINT).write_bytes(damage(killed))
    with pytest.raises(BenchError, match=r"checkpoint\.pt is damaged.*delete it"):
        run(tiny(ROW, UPDATES), tmp_path)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, killed: bytes) -> None:
    (tmp_path / CHECKPOINT).write_bytes(killed)
    with pytest.raises(BenchError, match="holds another run"):
        run(tiny(ROW, UPDATES), tmp_path, digest="e")


@pytest.mark.hazard(8)
def test_a_reward_that_is_not_a_number_fails_the_run_and_keeps_the_sample(tmp_path: Path) -> None:
    evaluators = "evaluation.evaluators=[gold, 'tests.helpers.toy:NotANumberLater']"
    suite = tiny("reward={'tests.helpers.toy:NotANumberLater': {brightness: 1.0}}", evaluators)
    record = run(suite, tmp_path)
    assert record.status == "failed"
    assert record.error is not None
    assert "reward brightness of prompt" in record.error
    assert "is not finite" in record.error
    assert record.updates_done == 1
    assert record.scores_digest is None
    assert store.is_complete(tmp_path, "d")  # failed is counted, not repeated
    with safe_open(tmp_path / "offending_sample.safetensors", "pt") as file:
        video, prompt = file.get_tensor("video"), file.metadata()["prompt"]
    assert video.shape == (3, 13, 16, 16)
    assert prompt == update_prompts(suite.prompt_list("train"), 2, 0, 1)[-1]
    assert repr(prompt) in record.error
    assert not (tmp_path / CHECKPOINT).exists()
    assert json.loads((tmp_path / store.TRAIN).read_text())["update"] == 0
    read, scores = read_run(tmp_path)
    assert read == record
    assert scores.empty


def test_a_reward_metric_that_no_evaluator_gives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"reward gold\.VQ: the evaluator gives gold_VQ, gold_MQ, gold_TA"):
        run(tiny("reward={gold: {VQ: 1.0}}"), tmp_path)


def test_prompts_come_in_seeded_epochs_that_no_row_can_change() -> None:
    prompts = [f"prompt {i}" for i in range(7)]
    seen = [p for u in range(14) for p in update_prompts(prompts, 3, 5, u)]
    epochs = [seen[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == prompts for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert seen != [p for u in range(14) for p in update_prompts(prompts, 3, 6, u)]


def test_monitors_are_logged_and_change_nothing(tmp_path: Path, whole: Path) -> None:
    plain, watched = tiny("monitor=[]"), tiny("monitor=[clipscore]")
    first, second = run(plain, tmp_path / "plain"), run(watched, tmp_path / "watched")
    assert first.scores_digest == second.scores_digest
    assert first.ledger == second.ledger
    lines = read_lines(tmp_path / "watched" / store.TRAIN)
    assert all(line["monitor"].keys() == {"clipscore", "clip_cosine"} for line in lines)
    assert all(line["monitor"] == {} for line in read_lines(tmp_path / "plain" / store.TRAIN))


def test_a_monitor_that_is_not_finite_fails_the_run_with_its_name(tmp_path: Path) -> None:
    record = run(tiny("monitor=['tests.helpers.toy:NotANumberLater']"), tmp_path)
    assert record.status == "failed"
    assert "monitor tests.helpers.toy:NotANumberLater, brightness, of prompt" in str(record.error)
    assert (tmp_path / store.OFFENDING).is_file()


def test_shuffled_rewards_train_another_policy_on_the_same_rewards(tmp_path: Path) -> None:
    one = ("budget.updates=1", "budget.group_size=4", "budget.micro_batch=8")
    run(tiny(*one), tmp_path / "true")
    run(tiny(*one, "shuffle_rewards=true"), tmp_path / "shuffled")
    (true,), (shuffled,) = (read_lines(tmp_path / name / store.TRAIN) for name in ("true", "shuffled"))
    assert shuffled["reward"] == pytest.approx(true["reward"], rel=1e-5)
    assert shuffled["reward_group_std"] == pytest.approx(true["reward_group_std"], rel=1e-5)
    first, second = (load_file(tmp_path / name / "policy.safetensors") for name in ("true", "shuffled"))
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_a_detached_unconditional_branch_gives_another_gradient(tmp_path: Path) -> None:
    def first_norm(name: str, *more: str) -> float:
        run(tiny("budget.updates=1", "budget.guidance=2.0", *more), tmp_path / name)
        return float(store.read_lines(tmp_path / name / store.TRAIN)[0]["grad_norm"][0])

    trained, detached = first_norm("a"), first_norm("b", "uncond_branch=detached")
    assert trained > 0
    assert detached > 0
    assert abs(trained - detached) > 1e-3 * trained
