"""`bench doctor` on nano and a CPU: GO with hours, NO-GO with reasons, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.api import BenchError
from bench.audit import doctor
from bench.audit.doctor import UPDATES, miniature, unit_seconds
from bench.audit.machine import read_speed, ring_speed, write_speed
from bench.cli import main
from bench.plan import fit
from bench.plan.workload import phase_costs, run_counts
from bench.suite.load import load_suite
from bench.suite.packaged import suite_file
from bench.suite.prepared import prepare
from tests.helpers.nano_suite import CHECKPOINT, NANO, TINY, tiny

SCORED = "evaluation={evaluators: [gold, clipscore], steps: 2, videos_per_prompt: 1}"
CLIP = "evaluator_params={clipscore: {checkpoint: nano/clip, device: cpu}}"


def examine(results: Path, *overrides: str) -> int:
    return main(["doctor", str(NANO), *TINY, *overrides, "--results", str(results), "--json", "--quiet"])


def findings(document: dict[str, Any], check: str) -> list[tuple[str, str]]:
    return [(each["state"], each["text"]) for each in document["findings"] if each["check"] == check]


def test_a_machine_that_can_do_it_gets_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert examine(tmp_path / "results", SCORED, CLIP) == 0
    out, err = capsys.readouterr()
    document: dict[str, Any] = json.loads(out)
    assert document["verdict"] == "GO"
    assert all(each["state"] != "bad" for each in document["findings"])
    golden = findings(document, "golden scores")
    assert [(state, text.partition(" (")[0]) for state, text in golden] == [
        ("good", "gold reproduces them"),
        ("good", "clipscore reproduces them"),
    ]
    assert findings(document, "ring") == [("note", "skipped: 0 GPU(s), and NCCL connects several")]
    assert "4 samples, 2 trained steps: decode " in findings(document, "update")[0][1]
    assert {"load", "rollout", "decode", "reward", "update"} <= document["seconds"].keys()
    # the miniature of so small a suite is one update of it
    update = sum(document["seconds"][phase] for phase in ("rollout", "decode", "update"))
    suite = tiny()
    runs = len(suite.rows) * len(suite.seeds)
    assert document["hours"] * 3600 > 0.2 * runs * suite.budget.updates * update
    assert "ok     time: " in err
    assert list((tmp_path / "results").iterdir()) == []


def test_reasons_not_to_start_are_found_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "load_models", None)
    monkeypatch.setattr(fit, "available_bytes", lambda: 10**8)
    broken = tmp_path / "broken"
    shutil.copytree(CHECKPOINT, broken, ignore=shutil.ignore_patterns("manifest.json"))
    weights = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    prompts = "prompts={train: bench/prompts/nano_train.txt, heldout: bench/prompts/nano_heldout.txt}"
    assert examine(tmp_path / "results", f"backbone.checkpoint={broken}", prompts) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "NO-GO"
    assert document["hours"] is None
    ((state, text),) = findings(document, "suite")
    assert state == "bad"
    assert "diffusion_pytorch_model.safetensors has" in text
    ((state, text),) = findings(document, "memory")
    assert (state, "0.1 GB are free" in text) == ("bad", True)
    assert findings(document, "update") == [("note", "not tried, for the reasons above")]


def test_what_the_machine_lacks_is_found_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "load_models", None)
    more = ("backbone.train.dtype=bfloat16", "backbone.train.attention=flash", "backbone.train.device=cpu")
    assert examine(tmp_path / "results", *more) == 1
    states = findings(json.loads(capsys.readouterr().out), "machine")
    assert [text for state, text in states if state == "bad" and "backbone.train.attention" in text]


def test_an_evaluator_that_does_not_reproduce_its_scores_is_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(job: Any) -> Any:
        raise BenchError("evaluator clipscore does not reproduce its golden scores: reason.")

    monkeypatch.setattr(doctor, "load_models", refuse)
    arguments = ["doctor", str(NANO), *TINY, "--results", str(tmp_path / "results")]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "NO-GO: models and update: evaluator clipscore does not reproduce its golden scores: reason\n"
    assert "NO-GO  models and update: evaluator clipscore" in err


def test_unit_seconds_give_the_update_s_seconds_again() -> None:
    small = prepare(miniature(tiny()))
    for row, more in ((small.rows[0], {}), (small.row("sage_grpo-dual"), {"kl_gradient": 1.0})):
        line: dict[str, Any] = {"seconds": {"rollout": 3.0, "decode": 0.5, "update": 11.0}, **more}
        counts = run_counts(small, row)
        if more:
            counts = {**counts, "probed": counts["backward"]}
        spent = phase_costs(counts, unit_seconds(small, row, line))
        assert (spent["rollout"] + spent["anchor"]) / UPDATES == pytest.approx(3.0)
        assert (spent["train"] + spent["kl_probe"]) / UPDATES == pytest.approx(11.0)
        assert spent["decode"] / UPDATES == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["hunyuanvideo15_single_gpu", "nano"])
def test_a_miniature_has_the_suite_s_tensors(name: str) -> None:
    suite = load_suite(suite_file(name))
    small = miniature(suite)
    assert small.backbone == suite.backbone
    same = ("micro_batch", "steps", "shift", "guidance", "optimizer")
    assert all(getattr(small.budget, key) == getattr(suite.budget, key) for key in same)
    samples = small.budget.prompts * small.budget.group_size
    assert samples >= min(suite.budget.micro_batch, suite.budget.prompts * suite.budget.group_size)
    assert samples * small.budget.updates < suite.budget.prompts * suite.budget.group_size * suite.budget.updates


def test_disks_and_the_ring_are_measured(tmp_path: Path) -> None:
    assert read_speed(tmp_path) is None
    (tmp_path / "weights").write_bytes(b"x" * 1000)
    speed = read_speed(tmp_path)
    assert speed is not None
    assert speed[0] > 0
    assert speed[1] == 1000
    assert write_speed(tmp_path) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert ring_speed(2, "gloo", 4000) > 0
