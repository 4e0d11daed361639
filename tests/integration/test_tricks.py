"""What happens to plug-ins that try to win by something else than their method: marked open, refused, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.checks.methods import check_method
from bench.core.errors import BenchError
from bench.store.record import RunRecord, read_run
from bench.suite.division import open_reasons
from bench.suite.load import load_suite
from bench.suite.prepared import prepare
from bench.suite.schema import Suite
from bench.train.run import execute
from tests.helpers import tricks
from tests.helpers.nano_suite import NANO
from tests.helpers.toy_suite import toy_overrides, training_job


def tricky(folder: Path, method: str, **params: Any) -> Suite:
    """The toy's suite with two updates of one row, a packaged method or one of `tests.helpers.tricks`."""
    name = method if method.islower() else f"tests.helpers.tricks:{method}"
    row = f"{{method: '{name}', kl: none, label: trick, params: {params}}}"
    return load_suite(NANO, [*toy_overrides(folder), "budget.updates=2", f"rows=[{row}]"])


def reasons(folder: Path, method: str, **params: Any) -> list[str]:
    """Why the row is open; a run does not refuse its method."""
    (row,) = prepare(tricky(folder, method, **params)).rows
    check_method(row.method)
    return open_reasons(row.method, row.spec)


def test_advantages_and_a_choice_of_samples_of_its_own_are_open(tmp_path: Path) -> None:
    assert reasons(tmp_path, "Ranked") == [
        "Ranked has advantages of its own",
        "Ranked chooses the samples that train",
    ]


@pytest.mark.parametrize(
    ("method", "params", "option"),
    [
        ("cps", {"drop_zero_advantages": True}, "option drop_zero_advantages is True"),
        ("flow_grpo", {"drop_zero_advantages": True}, "option drop_zero_advantages is True"),
        ("dance_grpo", {"extremes": 2}, "option extremes is 2"),
    ],
)
def test_options_of_the_open_division_are_open(
    method: str, params: dict[str, Any], option: str, tmp_path: Path
) -> None:
    assert reasons(tmp_path, method, **params)[1:] == [option]
    assert reasons(tmp_path, method) == []


@pytest.mark.parametrize(("factor", "size"), [(100.0, "400"), (1e6, "4000000")])
def test_a_loss_of_another_scale_is_open(factor: float, size: str, tmp_path: Path) -> None:
    found = f"the gradient of the loss is {size} at ratio 1 with the advantage -4"
    assert reasons(tmp_path, "Loud", factor=factor) == [found]
    assert reasons(tmp_path, "Loud", factor=1.0) == []


def test_a_penalty_inside_the_log_probability_stays_closed(tmp_path: Path) -> None:
    """The log-probability is the method's own, so only a review of its source finds this."""
    assert reasons(tmp_path, "Hidden") == []


def train(folder: Path, method: str, **params: Any) -> tuple[RunRecord, list[float]]:
    """Two updates; the record and the held-out scores."""
    folder.mkdir()
    job = training_job(tricky(folder, method, **params), folder / "results")
    record = execute(job)
    return record, read_run(job.folder)[1]["value"].tolist()


def test_the_record_has_the_reasons(tmp_path: Path) -> None:
    found = reasons(tmp_path, "Ranked")
    assert train(tmp_path / "open", "Ranked")[0].open_reasons == found
    assert train(tmp_path / "closed", "cps")[0].open_reasons == []


def test_step_weights_of_another_scale_change_nothing(tmp_path: Path) -> None:
    one, scores = train(tmp_path / "one", "Heavy", factor=1.0)
    hundred, others = train(tmp_path / "hundred", "Heavy", factor=100.0)
    assert scores == others
    assert one.extra["schedule"]["step_weight"] == hundred.extra["schedule"]["step_weight"]
    assert one.open_reasons == hundred.open_reasons == []


@pytest.mark.parametrize(
    ("method", "params", "where"),
    [
        ("Thief", {}, "changed the optimizer's lr from 0.0003 to 0.0009 in the rollout of update 0"),
        ("Freezer", {}, "an evaluator .*changed the optimizer's lr from 0.0003 to 0.0 in the loss of update 0"),
        ("Pusher", {"hook": "stochastic"}, "changed the trained weights in the rollout of update 1"),
        ("Pusher", {"hook": "surrogate"}, "changed the trained weights in the loss of update 0 .*the loss or"),
        ("Memory", {}, "step_weights gives another result after update . than at the start of the run"),
    ],
)
def test_a_method_that_reaches_what_is_not_its_own_ends_the_run(
    method: str, params: dict[str, Any], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tricks.LATEST, "calls", 0)
    with pytest.raises(BenchError, match=f"row 'trick': method 'tests.helpers.tricks:{method}'.*{where}"):
        train(tmp_path / "run", method, **params)


def test_a_penalty_inside_the_log_probability_runs_unnoticed(tmp_path: Path) -> None:
    record, scores = train(tmp_path / "hidden", "Hidden")
    assert (record.status, record.open_reasons) == ("finished", [])
    assert scores != train(tmp_path / "cps", "cps")[1]
