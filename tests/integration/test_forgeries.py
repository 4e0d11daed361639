"""Stored runs of the toy, forged in every way that was thought of, and what finds each forgery.

The table of docs/how-to/replay-and-audit.md is that of `FORGERIES`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from bench import store
from bench.algorithm.weights import weights_hash
from bench.audit.differences import Difference, TrainingDiff
from bench.audit.findings import Finding
from bench.audit.verify import Report, verify
from bench.audit.verify_log import largest_step
from bench.audit.verify_replay import PartialReplay, draw, replay_run, within_tolerance
from bench.audit.verify_run import check_run
from bench.cli import main
from bench.core.hashing import digest, sha256_file
from bench.core.provenance import ROOT
from bench.launch.jobs import suite_jobs
from bench.store.attempts import ATTEMPTS, record_attempt
from bench.suite.load import load_suite
from bench.suite.prepared import prepare
from bench.train.run import execute
from tests.helpers.nano_suite import NANO, TINY

PAGE = ROOT / "docs" / "how-to" / "replay-and-audit.md"
JUDGE = "tests.helpers.toy_judge:ToyJudge"
CPS, SAGE, SEEDS = "cps-dual", "sage_grpo-fixed", (0, 1, 2)
FIRST = f"{CPS}/seed-0"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base and six runs of 3 updates, made by the harness."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "weights").mkdir()
    overrides = [
        "suite=toy",
        f"backbone={{name: 'tests.helpers.toy:LoadedToy', checkpoint: {folder / 'weights'}}}",
        "prompts={train: bench/prompts/nano_train.txt, heldout: bench/prompts/nano_heldout.txt}",
        "monitor=[]",
        "budget.updates=3",
        "budget.group_size=4",
        "budget.micro_batch=8",
        f"reward={{'{JUDGE}': {{VQ: 0.5, MQ: 0.5, TA: 1.0}}}}",
        f"evaluation={{evaluators: ['{JUDGE}'], steps: 2, videos_per_prompt: 1}}",
        f"seeds={list(SEEDS)}",
        "rows=[{method: cps, kl: {name: dual, params: {every: 1, weight: 0.01, min_weight: 0.001}}}, "
        "{method: sage_grpo, kl: fixed}]",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        for job in suite_jobs(prepare(load_suite(NANO, [*TINY, *overrides])), folder / "results"):
            assert execute(job).status == "finished"
    return folder / "results"


@pytest.fixture
def suite(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to forge."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return shutil.copytree(written, tmp_path / "elsewhere") / "toy"


# tools of a forger --------------------------------------------------------------------------------------------
def edit_record(run: Path, **changes: Any) -> None:
    content = json.loads((run / store.RUN).read_text())
    (run / store.RUN).write_text(json.dumps(content | changes))


def edit_lines(run: Path, *updates: int, sign: bool = True, **changes: Any) -> None:
    """Fields of these lines of the log, given or computed from the line; `sign`: with the digest made anew."""
    lines = store.read_lines(run / store.TRAIN)
    for update in updates:
        line = lines[update]
        lines[update] = line | {key: new(line) if callable(new) else new for key, new in changes.items()}
    (run / store.TRAIN).write_text("".join(json.dumps(line) + "\n" for line in lines))
    if sign:
        edit_record(run, train_digest=sha256_file(run / store.TRAIN))


def rescore(run: Path, change: Callable[[pd.DataFrame], pd.Series[float]]) -> None:
    """Other scores, with their digest made anew."""
    record, scores = store.read_run(run)
    store.write_run(run, record, scores.assign(value=change(scores)))


def raised(*metrics: str) -> Callable[[Path], None]:
    def forge(suite: Path) -> None:
        for seed in SEEDS:
            run = suite / CPS / f"seed-{seed}"
            rescore(run, lambda scores: scores["value"] + 0.4 * scores["metric"].isin(metrics))

    return forge


def raised_with_raw(suite: Path) -> None:
    def change(scores: pd.DataFrame) -> pd.Series[float]:
        value = scores["value"] + 0.5 * (scores["metric"] == "VQ") + 1.0 * (scores["metric"] == "VQ_raw")
        return pd.Series(value)

    rescore(suite / FIRST, change)


def delete_seed(*rows: str) -> Callable[[Path], None]:
    def forge(suite: Path) -> None:
        for row in rows:
            shutil.rmtree(suite / row / "seed-1")
        if len(rows) > 1:
            for path in suite.rglob(store.RUN):
                config = json.loads(path.read_text())["config"]
                edit_record(path.parent, config={**config, "seeds": [0, 2]})

    return forge


def copy_run(suite: Path) -> None:
    """One run as all seeds of its row, with digests, inputs and starts of the seeds that it replaces."""
    for seed in SEEDS[1:]:
        run = suite / CPS / f"seed-{seed}"
        kept = json.loads((run / store.RUN).read_text())
        for name in (store.RUN, store.SCORES, store.TRAIN, store.POLICY):
            shutil.copy(suite / FIRST / name, run / name)
        edit_record(run, **{key: kept[key] for key in ("seed", "digest", "attempt")})


def swap_labels(suite: Path) -> None:
    """The runs of one row under the name of the other; the schedule in the record stays that of the method."""
    names = ("row", "method", "kl", "method_params", "digest", "attempt", "open_reasons")
    for seed in SEEDS:
        runs = [suite / row / f"seed-{seed}" for row in (CPS, SAGE)]
        records = [json.loads((run / store.RUN).read_text()) for run in runs]
        for run, record, other in zip(runs, records, records[::-1], strict=True):
            (run / store.RUN).write_text(json.dumps({**other, **{key: record[key] for key in names}}))
        for name in (store.SCORES, store.TRAIN, store.POLICY):
            contents = [(run / name).read_bytes() for run in runs]
            for run, content in zip(runs, contents[::-1], strict=True):
                (run / name).write_bytes(content)


def swap_scores(suite: Path) -> None:
    for seed in SEEDS:
        runs = [suite / row / f"seed-{seed}" for row in (CPS, SAGE)]
        scores = [store.read_run(run)[1] for run in runs]
        for run, other in zip(runs, scores[::-1], strict=True):
            rescore(run, lambda own, other=other: other["value"])


def no_origin(suite: Path) -> None:
    record = json.loads((suite / FIRST / store.RUN).read_text())
    provenance = {**record["provenance"], "git": {"commit": None, "dirty": None}, "source_digest": None}
    gates = {name: gate for name, gate in record["gates"].items() if name != "ratio_audit"}
    edit_record(suite / FIRST, provenance=provenance, gates=gates)


def flat_schedule(suite: Path) -> None:
    extra = json.loads((suite / f"{SAGE}/seed-0" / store.RUN).read_text())["extra"]
    schedule = {**extra["schedule"], "step_weight": [1.0] * len(extra["schedule"]["step_weight"])}
    edit_record(suite / f"{SAGE}/seed-0", extra={**extra, "schedule": schedule})


def log(update: int, sign: bool = True, **changes: Any) -> Callable[[Path], None]:
    return lambda suite: edit_lines(suite / FIRST, update, sign=sign, **changes)


def other_lr(logged: bool) -> Callable[[Path], None]:
    """All records say that they were trained with another learning rate than they were.

    `logged`: so do the logs, the inputs and, with digests made anew, the log of starts.
    """

    def forge(suite: Path) -> None:
        if logged:
            (suite / ATTEMPTS).unlink()
        for path in suite.rglob(store.RUN):
            record = json.loads(path.read_text())
            budget = {**record["budget"], "lr": 1e-4}
            config = {**record["config"], "budget": budget}
            edit_record(path.parent, budget=budget, budget_digest=digest(budget), config=config)
            if logged:
                inputs = store.read_inputs(path.parent)
                inputs["settings"]["budget"]["lr"] = 1e-4
                own = digest(inputs)
                store.start_run(path.parent, own, inputs)
                attempt = record_attempt(suite, "start", record["row"], record["seed"], own)
                edit_record(path.parent, digest=own, attempt=attempt)
                if record["seed"] is not None:
                    edit_lines(path.parent, 0, 1, 2, lr=[1e-4])

    return forge


def other_setting(suite: Path) -> None:
    for path in suite.rglob(store.RUN):
        config = json.loads(path.read_text())["config"]
        edit_record(path.parent, config={**config, "group_noise": "shared"})


def other_kl(suite: Path) -> None:
    for path in suite.rglob(store.RUN):
        config = json.loads(path.read_text())["config"]
        config["rows"][0]["kl"]["params"]["weight"] = 0.02
        edit_record(path.parent, config=config)


def no_constants(suite: Path) -> None:
    """VQ raised in a row, and no constants of its normalisation in any record."""
    raised("VQ")(suite)
    for path in suite.rglob(store.RUN):
        evaluators = json.loads(path.read_text())["evaluators"]
        edit_record(path.parent, evaluators={JUDGE: {**evaluators[JUDGE], "normalised": "False"}})


def other_cpu(run: Path) -> None:
    provenance = json.loads((run / store.RUN).read_text())["provenance"]
    edit_record(run, provenance={**provenance, "hardware": {**provenance["hardware"], "cpu": "another"}})


def raised_on_another_cpu(suite: Path) -> None:
    raised_with_raw(suite)
    for path in suite.rglob(store.RUN):
        other_cpu(path.parent)


def gate(value: Any) -> Callable[[Path], None]:
    def forge(suite: Path) -> None:
        gates = json.loads((suite / FIRST / store.RUN).read_text())["gates"]
        edit_record(suite / FIRST, gates={**gates, "ratio_audit": value})

    return forge


def other_rules(suite: Path) -> None:
    for path in suite.rglob(store.RUN):
        edit_record(path.parent, rules=3)


def edit_starts(suite: Path) -> None:
    lines = (suite / ATTEMPTS).read_text().splitlines(keepends=True)
    (suite / ATTEMPTS).write_text("".join(lines[:2] + lines[3:]))


def edit_policy(hashed: bool) -> Callable[[Path], None]:
    def forge(suite: Path) -> None:
        path = suite / FIRST / store.POLICY
        weights = {name: tensor + 0.25 for name, tensor in load_file(path).items()}
        save_file(weights, path)
        if hashed:
            edit_lines(suite / FIRST, 2, weights_after=weights_hash(weights.values()))

    return forge


def without_policies(suite: Path) -> None:
    raised_with_raw(suite)
    for path in suite.rglob(store.POLICY):
        path.unlink()


def rewards_shifted(line: dict[str, Any]) -> dict[str, float]:
    return {name: value + 1.0 for name, value in line["rewards"].items()}


# the table ----------------------------------------------------------------------------------------------------
VERIFY, NOTE, REPLAY = "`bench verify`", "`bench verify`, as a note", "`bench verify --replay` only"


class Forgery(NamedTuple):
    what: str
    """In words, for the documentation."""
    forge: Callable[[Path], None]
    found_by: str
    sign: str
    """A part of the finding."""


FORGERIES: dict[str, Forgery] = {
    "F1": Forgery("VQ raised in all videos of a row", raised("VQ"), VERIFY, "VQ of 36 of 36 videos is not (VQ_raw"),
    "F1b": Forgery("VQ and VQ_raw raised together", raised_with_raw, REPLAY, "scores by up to"),
    "F1c": Forgery(
        "the same, and another CPU in all records",
        raised_on_another_cpu,
        REPLAY,
        "above the tolerance of 0.028 (VQ by 0.5",
    ),
    "F1d": Forgery(
        "VQ raised, and no constants of its normalisation in any record",
        no_constants,
        VERIFY,
        "VQ of 36 of 36 videos is not (VQ_raw - 0.0) / 1.0",
    ),
    "F2": Forgery("the bad seed of a row deleted", delete_seed(CPS), NOTE, f"without a record: {CPS}/seed-1"),
    "F2b": Forgery(
        "a seed deleted in all rows and in the settings",
        delete_seed(CPS, SAGE),
        NOTE,
        "7 runs were started and 5 are shown",
    ),
    "F3": Forgery("one run copied as all seeds of its row", copy_run, VERIFY, "have the same scores"),
    "F5": Forgery("the runs of two rows under each other's label", swap_labels, VERIFY, "its schedule has std"),
    "F5b": Forgery("the scores of two rows swapped", swap_scores, REPLAY, "scores by up to"),
    "F6": Forgery(
        "no commit, no sources and no ratio audit in the record", no_origin, VERIFY, "it has no ratio_audit"
    ),
    "F6b": Forgery("a ratio audit without its numbers", gate(True), VERIFY, "its ratio audit is True, but"),
    "F6c": Forgery(
        "a ratio audit with a tolerance of its own",
        gate({"passed": True, "largest": 0.5, "tolerance": 1.0}),
        VERIFY,
        "but the ratio error of update 0 makes it",
    ),
    "F6d": Forgery("rules of another version in all records", other_rules, VERIFY, "made under rules 3, which"),
    "F7": Forgery("other step weights in the schedule", flat_schedule, VERIFY, "its schedule has step_weight"),
    "F8 reward": Forgery(
        "a reward in the training log", log(1, reward=lambda line: line["reward"] + 1), VERIFY, "add up to"
    ),
    "F8 rewards": Forgery(
        "a reward in the training log, with those of its metrics",
        log(1, reward=lambda line: line["reward"] + 2.0, rewards=rewards_shifted),
        REPLAY,
        "update 1, reward: ",
    ),
    "F8 gradient": Forgery(
        "a gradient norm in the training log", log(1, grad_norm=[9.0]), VERIFY, "has the gradient norm 9, above"
    ),
    "F8 steps": Forgery(
        "a trained step in the training log",
        log(1, trained_steps=[0, 0]),
        VERIFY,
        "trained the steps [0, 0], but its seed draws",
    ),
    "F8 prompts": Forgery(
        "the prompts in the training log", log(1, prompts=[0, 1]), VERIFY, "has the prompts [0, 1], but its seed"
    ),
    "F8 ratio": Forgery(
        "a ratio error in the training log", log(0, ratio_error=0.5), VERIFY, "the ratio error of update 0 makes it"
    ),
    "F8 KL": Forgery(
        "a KL weight in the training log",
        log(1, kl_weight={"anchor": 1.0, "stepwise": 0.1}),
        VERIFY,
        "but its controller gives",
    ),
    "F8 weights": Forgery(
        "a hash of weights in the training log", log(1, weights_after="0" * 16), VERIFY, "begins with the weights"
    ),
    "F8 unsigned": Forgery(
        "any number of the training log, its digest left as it was",
        log(1, sign=False, log_prob=0.0),
        VERIFY,
        "the log was changed",
    ),
    "F9": Forgery(
        "another learning rate in all records than was used", other_lr(False), VERIFY, "but its row has 0.0001"
    ),
    "F9b": Forgery(
        "the same, also in the training logs, with all digests and the log of starts made anew",
        other_lr(True),
        REPLAY,
        "update 0, ",
    ),
    "F9c": Forgery(
        "another setting in all records than was used",
        other_setting,
        VERIFY,
        "other settings than inputs.json: settings.group_noise is shared there and distinct here",
    ),
    "F9e": Forgery(
        "another parameter of a KL policy in all records",
        other_kl,
        VERIFY,
        "row.kl_params.weight is 0.02 there and 0.01",
    ),
    "F9d": Forgery(
        "inputs.json deleted", lambda suite: (suite / FIRST / store.INPUTS).unlink(), VERIFY, "inputs.json missing"
    ),
    "F10": Forgery(
        "a step that is larger than AdamW's, as with a learning rate changed from within",
        log(0, step_rms=[3.0]),
        VERIFY,
        "changed the weights by 3 learning rates",
    ),
    "F11": Forgery("a line of attempts.jsonl deleted", edit_starts, VERIFY, "breaks the chain of starts"),
    "F12": Forgery(
        "attempts.jsonl deleted", lambda suite: (suite / ATTEMPTS).unlink(), VERIFY, "but there is no such file"
    ),
    "F13": Forgery("another stored policy", edit_policy(False), VERIFY, "but training ended with"),
    "F13b": Forgery(
        "another stored policy, with its hash in the training log", edit_policy(True), REPLAY, "scores by up to"
    ),
    "F13c": Forgery(
        "the stored policies deleted, and VQ raised together with VQ_raw", without_policies, NOTE, "rest on trust"
    ),
}


def wrong(report: Report) -> list[str]:
    return [finding.line for finding in report.findings if finding.wrong]


def test_the_runs_of_the_harness_are_all_well_wherever_they_lie(suite: Path) -> None:
    report = verify([suite.parent])
    assert wrong(report) == []
    assert not [finding for finding in report.findings if "older records" in finding.text], "no check is passed over"


@pytest.mark.parametrize("name", [name for name, each in FORGERIES.items() if each.found_by != REPLAY])
def test_verify_finds_a_forgery(suite: Path, name: str) -> None:
    forgery = FORGERIES[name]
    forgery.forge(suite)
    report = verify([suite])
    found = [finding.line for finding in report.findings if finding.wrong == (forgery.found_by == VERIFY)]
    assert any(forgery.sign in line for line in found), report.text


@pytest.mark.parametrize("name", [name for name, each in FORGERIES.items() if each.found_by == REPLAY])
def test_only_a_replay_finds_a_forgery(suite: Path, name: str) -> None:
    forgery = FORGERIES[name]
    forgery.forge(suite)
    assert wrong(verify([suite])) == []
    result = replay_run(suite / FIRST)
    assert result.wrong, result.text
    assert forgery.sign in result.text


def test_the_command_draws_runs_and_does_them_again(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [path.parent for path in sorted(suite.rglob(store.RUN))]
    drawn = draw(runs, 2, 7)
    assert drawn == draw(runs[::-1], 2, 7), "the order of the folders does not matter"
    assert {tuple(draw(runs, 2, number)) for number in range(20)} > {tuple(drawn)}, "the number decides"
    assert set(draw(runs, "all", 7)) == set(runs)
    assert main(["verify", str(suite), "--replay", "2", "--draw", "7", "--allow-code"]) == 0
    out = capsys.readouterr().out
    assert out.count("done again: equal bits.") == 2
    assert out.startswith("drawn by the number 7; --draw 7 draws the same runs again")
    assert [f"again {run}: " in out for run in drawn] == [True, True]
    shutil.rmtree(suite / SAGE)
    raised_with_raw(suite)
    assert main(["verify", str(suite), "--replay", "all", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    replays = {Path(each["run"]).relative_to(suite).as_posix(): each for each in document["replays"]}
    assert len(replays) == 4
    assert [name for name, each in replays.items() if each["wrong"]] == [FIRST]
    assert replays[FIRST]["score_differences"]["VQ"] == pytest.approx(0.5)
    assert document["wrong"] == 1


def test_what_cannot_be_done_again_is_said(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (suite / SAGE / "seed-0" / store.POLICY).unlink()
    text = replay_run(suite / SAGE / "seed-0").text
    assert text == "2 update(s) and no evaluation (it has no stored policy) done again: equal bits"
    assert not replay_run(suite / SAGE / "seed-0").complete
    run = suite / SAGE / "seed-1"
    other_cpu(run)
    edit_lines(run, 0, reward_group_std=lambda line: line["reward_group_std"] + 0.01, weights_after="0" * 16)
    result = replay_run(run)
    assert not result.wrong, result.text
    assert "differs on another platform (CPU: another stored, " in result.text
    assert "within the tolerance of 0.028: update 0, " in result.text
    assert main(["verify", str(suite), "--draw", "7"]) == 2
    assert "--draw draws the runs of --replay: add --replay K." in capsys.readouterr().err
    assert main(["verify", str(suite), "--replay", "0"]) == 2
    assert "--replay is 0: give a number of runs of at least 1, or all." in capsys.readouterr().err


def test_a_run_of_two_processes_differs_in_the_last_digits(suite: Path) -> None:
    run = suite / FIRST
    edit_record(run, provenance={**json.loads((run / store.RUN).read_text())["provenance"], "processes": 2})
    edit_lines(run, 1, reward=lambda line: line["reward"] * (1 + 1e-7), weights_after="0" * 16)
    result = replay_run(run)
    assert (result.same_platform, result.wrong) == (False, False), result.text


@pytest.mark.parametrize(
    ("field", "stored", "again", "within"),
    [
        ("log_prob", -100.0, -102.0, True),
        ("log_prob", -100.0, -103.0, False),
        ("rewards.VQ", 0.5, 0.52, True),
        ("lr.0", 3e-4, 1e-4, False),
        ("trained_steps.0", 1, 2, False),
        ("grad_clipped", 0, 1, True),
        ("weights_after", "a", "b", True),
        ("error", None, "diverged", False),
    ],
)
def test_what_another_platform_may_change(field: str, stored: Any, again: Any, within: bool) -> None:
    assert within_tolerance(Difference(1, field, stored, again)) == within


def test_a_gpu_need_not_give_the_same_bits() -> None:
    diff = TrainingDiff(1, gaps=[Difference(0, "reward", 0.5, 0.5001)])
    assert PartialReplay(Path("run"), diff).wrong
    assert not PartialReplay(Path("run"), diff, gpu=True).wrong


def test_runs_that_cannot_be_done_again_do_not_pass(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in suite.rglob(store.RUN):
        config = json.loads(path.read_text())["config"]
        edit_record(path.parent, config={**config, "backbone": {**config["backbone"], "checkpoint": "/gone/x"}})
    assert main(["verify", str(suite), "--replay", "all", "--allow-code"]) == 1
    out = capsys.readouterr().out
    assert "cannot be done again (" in out
    assert "0 of 7 drawn runs done again: not all done again, " in out.splitlines()[-1]


def test_only_runs_that_can_be_read_and_have_these_rules_are_drawn(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in suite.rglob(store.RUN):
        edit_record(path.parent, rules=1)
    edit_record(suite / FIRST, config={"rows": 5})
    assert main(["verify", str(suite), "--replay", "all", "--allow-code"]) == 1
    out = capsys.readouterr().out
    assert "the configuration is not one of this version" in out
    assert "no run to do again: none has finished under rules 2" in out
    assert "0 of 0 drawn runs done again: 7 wrong" in out.splitlines()[-1]


def test_a_ratio_error_of_a_later_update_is_a_note(suite: Path) -> None:
    edit_lines(suite / FIRST, 1, ratio_error=0.5)
    report = verify([suite])
    assert wrong(report) == []
    assert "has the ratio error 0.5, above 1e-05, which the harness asks of update 0 only" in report.text


ODD: tuple[Any, ...] = (None, [None], {"x": None})


def test_values_of_another_kind_are_findings(suite: Path) -> None:
    """Every field of the record and of a line of the log that no schema describes, with values of another kind."""
    run = suite / FIRST
    record, content = json.loads((run / store.RUN).read_text()), (run / store.TRAIN).read_text()
    for key in ("gates", "provenance", "extra", "evaluators"):
        for name in record[key]:
            for value in ODD if key != "evaluators" else [{}, {"normalised": "x"}, {"normalised": "{'VQ': 1}"}]:
                edit_record(run, **{key: {**record[key], name: value}})
                assert all("\n" not in each.line for each in check_run(run) if isinstance(each, Finding))
    (run / store.RUN).write_text(json.dumps(record))
    for name in store.read_lines(run / store.TRAIN)[0]:
        for value in ODD:
            (run / store.TRAIN).write_text(content)
            edit_lines(run, 1, **{name: value})
            assert all("\n" not in each.line for each in check_run(run) if isinstance(each, Finding))


def test_the_bound_of_a_step() -> None:
    sizes = [largest_step(t) for t in range(1, 200)]
    assert sizes[0] == pytest.approx(1.0)
    assert sizes[59] == pytest.approx(1.759, abs=1e-3)
    assert sizes == sorted(sizes)


def test_the_page_has_the_table_of_forgeries() -> None:
    lines = [f"| {each.what} | {each.found_by} |" for each in FORGERIES.values()]
    assert "\n".join(lines) in PAGE.read_text(encoding="utf-8")
