"""results/plans.md is what `make plans` writes, and the probe's error in it is that of the stored seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.core.errors import BenchError
from bench.plan.probe import median_seconds, time
from bench.plan.workload import UnitCost
from bench.suite.load import load_variants
from bench.suite.paths import resolve
from bench.suite.prepared import prepare
from tests.helpers.nano_suite import NANO, tiny
from tools import plans_page
from tools.plans_page import PAGE, output
from tools.probe_error import predicted_seconds


def test_the_stored_plans_are_those_of_the_suites() -> None:
    folder = load_variants(NANO.with_name("hunyuanvideo15_480p.yaml"))[0].backbone.checkpoint
    if resolve(folder).exists():
        pytest.skip(f"{folder} is here: its sizes stand in for the released ones")
    assert PAGE.read_text(encoding="utf-8") == plans_page.page(), "run `make plans`"


def test_the_stored_plans_are_the_issues() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for words in (
        "`bench plan bench/configs/hunyuanvideo15_480p.yaml --gpus 64`",
        "`bench plan bench/configs/hunyuanvideo15_480p.yaml`",
        "`bench plan bench/configs/hunyuanvideo15_single_gpu.yaml`",
        "`bench plan bench/configs/hunyuanvideo15_zoo_single_gpu.yaml`",
        "`bench plan bench/configs/nano.yaml`",
        "64 data-parallel groups; each takes 1 of an update's samples",
    ):
        assert words in page


def test_a_plan_that_is_refused_is_not_stored(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BenchError, match=r"--gpus 48` ended with exit code 2: fix the suite"):
        output(f"{NANO.with_name('hunyuanvideo15_480p.yaml')} --gpus 48")
    assert "48 processes cannot share the 64 micro-batches" in capsys.readouterr().err


def test_the_probes_error_is_worked_out_turn_by_turn(tmp_path: Path) -> None:
    rows = ["turn,phase,predicted,measured", "0,rollout,2.0,1.0", "0,decode,1.0,1.0", "0,update,1.0,2.0"]
    rows += ["1,rollout,1.0,1.0", "1,decode,1.0,1.0", "1,update,3.0,2.0"]
    (tmp_path / "probe.csv").write_text("\n".join(rows) + "\n")
    table = plans_page.probe_error(tmp_path / "probe.csv")
    assert "| rollout | 1.50 s | 1.00 s | +100%, +0% |" in table
    assert "| all | 4.50 s | 4.00 s | +0%, +25% |" in table


def test_what_is_predicted_is_every_second_of_an_update() -> None:
    """2 prompts x 2 samples, 4 steps of which 2 train, guidance 1, an anchor: 16 + 8 evaluations to roll out."""
    suite = tiny("rows=[{method: cps, kl: fixed}]", "kl_probe_every=0")
    seconds = predicted_seconds(prepare(suite), UnitCost(forward=1.0, backward=10.0, decode=100.0))
    assert seconds == {"rollout": 16 + 8, "decode": 400, "update": 8 + 80}


def test_a_short_step_is_timed_several_times_and_a_long_one_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five times 0.1 s with one that was disturbed; once 3 s."""
    for lengths, number, median in (([0.1, 0.1, 0.9, 0.1, 0.1], 5, 0.1), ([3.0], 1, 3.0), ([0.5, 1.5], 2, 1.0)):
        now, left = [0.0], list(lengths)
        monkeypatch.setattr(time, "perf_counter", lambda now=now: now[0])

        def work(now: list[float] = now, left: list[float] = left) -> None:
            now[0] += left.pop(0)

        assert median_seconds(torch.device("cpu"), work) == pytest.approx(median)
        assert len(lengths) - len(left) == number
