"""The clock of a suite: work in function evaluations, resumed work does not count as speed."""

from __future__ import annotations

import pytest

from bench.core.progress import Progress

COSTS = {"base": (0, 10), "a": (90, 10), "b": (90, 10)}


def test_the_time_left_is_unknown_before_the_first_updates() -> None:
    assert Progress(COSTS).minutes_left(1e9) is None


def test_time_left_follows_the_work_and_not_the_number_of_runs() -> None:
    progress = Progress(COSTS)
    progress.end("base", "finished")
    progress.record("a", "train", 0, 90)
    progress.record("a", "train", 60, 90)
    assert progress.minutes_left(progress.start + 70) == pytest.approx(140 / 60)  # 70 of 210 in 70 seconds


def test_resumed_work_does_not_count_as_speed() -> None:
    progress = Progress(COSTS)
    progress.record("a", "train", 60, 90)  # a resumed run starts here
    progress.record("a", "train", 70, 90)
    assert progress.minutes_left(progress.start + 10) == pytest.approx(140 / 60)  # 10 in 10 seconds, 70 of 210 done


def test_lines_are_plain_when_stderr_is_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(COSTS)
    progress.end("base", "finished")
    progress.close()
    assert capsys.readouterr().err == "[1/3] base: finished\n"
