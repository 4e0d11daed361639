"""The runs of a suite on the screen: the time left from measured updates, one line per run, lines of a log file."""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator

import pytest

from bench.core.progress import Step, set_quiet
from bench.launch.progress import STARTING, RunsProgress, Workload

WORK = {
    "base": Workload(0, 10, 0.5),
    "a seed 0": Workload(9, 10, 0.5),
    "b seed 0": Workload(9, 10, 0.5),
}


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    yield
    set_quiet(False)


def trained(progress: RunsProgress, label: str, *, seconds: float, updates: int, before: int = 0) -> None:
    """Report a run that loaded from 0 to 5 and has done these updates since, on top of those of an earlier call."""
    progress.record(label, Step("load", 0, 1, "videoalign"), 0)
    progress.record(label, Step("train", before, 9), 5)
    progress.record(label, Step("train", before + updates, 9, reward=0.5), 5 + seconds)


def test_the_time_left_is_unknown_until_an_update_is_done() -> None:
    progress = RunsProgress(WORK)
    assert progress.seconds_left(1e9) is None
    progress.record("base", Step("evaluate", 0, 10), 0)
    progress.record("base", Step("evaluate", 5, 10), 10)
    progress.record("a seed 0", Step("train", 0, 9), 10)
    assert progress.seconds_left(1000) is None
    assert "time left: not known yet" in progress.summary()


def test_the_time_left_follows_the_measured_updates_and_not_the_time_of_loading() -> None:
    progress = RunsProgress({"a seed 0": WORK["a seed 0"]})
    progress.record("a seed 0", Step("load", 0, 1, "videoalign"), 0)
    progress.record("a seed 0", Step("train", 0, 9), 600)  # ten minutes of loading
    progress.record("a seed 0", Step("train", 1, 9), 610)
    assert progress.seconds_left(610) == pytest.approx(
        8 * 10 + 10 * 5
    )  # videos at their share of function evaluations
    assert progress.seconds_left(614) == pytest.approx(126)


def test_videos_count_as_measured_once_one_is_done() -> None:
    progress = RunsProgress(WORK)
    progress.record("base", Step("evaluate", 0, 10), 0)
    progress.record("base", Step("evaluate", 10, 10), 20)
    progress.end("base", "finished")
    trained(progress, "a seed 0", seconds=30, updates=3)
    # one run at a time: 6 updates of 10 s and 10 videos of 2 s, then 5 s to load, 9 updates and 10 videos
    progress.at_once = 1
    assert progress.seconds_left(35) == pytest.approx(60 + 20 + 2.5 + 90 + 20)  # the base needed 0 s to load
    progress.at_once = 2
    assert progress.seconds_left(35) == pytest.approx((60 + 20 + 2.5 + 90 + 20) / 2)


def test_updates_of_an_earlier_call_do_not_count_as_speed() -> None:
    progress = RunsProgress({"a seed 0": Workload(9, 0, 0.5)})
    trained(progress, "a seed 0", seconds=10, updates=1, before=6)
    assert progress.seconds_left(15) == pytest.approx(2 * 10)


def test_a_resumed_run_is_measured_from_its_checkpoint() -> None:
    progress = RunsProgress({"a seed 0": Workload(9, 0, 0.5)})
    trained(progress, "a seed 0", seconds=10, updates=7)
    progress.record("a seed 0", Step("train", 5, 9), 100)
    assert progress.seconds_left(100) is None
    progress.record("a seed 0", Step("train", 6, 9), 120)
    assert progress.seconds_left(120) == pytest.approx(3 * 20)


def test_a_message_after_the_end_of_a_run_is_ignored() -> None:
    progress = RunsProgress(WORK)
    progress.end("a seed 0", "finished")
    progress.record("a seed 0", Step("train", 9, 9), 0)
    assert not progress.active


def test_a_run_alone_is_not_faster_than_itself() -> None:
    progress = RunsProgress({name: Workload(9, 0, 0.5) for name in ("a seed 0", "b seed 0")})
    trained(progress, "a seed 0", seconds=80, updates=8)
    trained(progress, "b seed 0", seconds=10, updates=1)
    assert progress.seconds_left(15 + 70) == pytest.approx(max((10 + 80 - 70) / 2, 80 - 70))


def test_every_run_has_a_line_that_fits_the_window() -> None:
    label = "a_long_variant: sage_grpo-dual-with-a-label seed 0"
    progress = RunsProgress({**WORK, label: WORK["a seed 0"]})
    assert progress.lines(60) == ["0/4 runs, time left: not known yet", f"  {STARTING}"]
    progress.record("base", Step("load", 0, 1, "videoalign"), 0)
    progress.record("b seed 0", Step("evaluate", 3, 36), 0)
    progress.record("a seed 0", Step("store", 1, 1), 0)
    trained(progress, label, seconds=10, updates=3)
    for width in (10, 30, 60, 100):
        lines = progress.lines(width)
        assert len(lines) == 5
        assert max(map(len, lines)) < width
    head, *runs = progress.lines(60)
    assert head.startswith("0/4 runs, ")
    assert [line.split("  ")[-1].strip() for line in runs] == [
        "loading videoalign",
        "video 3/36",
        "writing the record",
        "update 3/9, reward 0.5",
    ]
    assert "…" in runs[-1]
    assert "seed 0  update" in runs[-1]  # the end of a long label is kept
    assert label in progress.lines(100)[-1]


def test_the_reward_stays_while_videos_are_scored() -> None:
    progress = RunsProgress(WORK)
    trained(progress, "a seed 0", seconds=10, updates=9)
    progress.record("a seed 0", Step("evaluate", 2, 10), 20)
    assert progress.lines(80)[1].endswith("video 2/10, reward 0.5")


def test_a_log_file_has_the_start_and_the_end_of_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    messages: queue.SimpleQueue[object] = queue.SimpleQueue()
    messages.put(("a seed 0", Step("load", 0, 1, "videoalign")))
    messages.put(("a seed 0", list(Step("train", 2, 9, "", 0.25))))  # torchrun's processes send JSON
    with RunsProgress(WORK) as progress:
        progress.receive(messages)
        progress.end("a seed 0", "failed: a reward is NaN")
        assert progress.line() == f"1/3 runs, time left: not known yet; {STARTING}"
        progress.record("b seed 0", Step("train", 4, 9, reward=0.125), 0)
        assert progress.line().endswith("; b seed 0: update 4/9, reward 0.125")
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in lines] == [
        "a seed 0: started",
        "[1/3] a seed 0: failed: a reward is NaN",
        "b seed 0: started",
    ]
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)


def test_quiet_prints_failures_only(capsys: pytest.CaptureFixture[str]) -> None:
    set_quiet(True)
    with RunsProgress(WORK) as progress:
        progress.record("a seed 0", Step("train", 0, 9), 0)
        progress.end("a seed 0", "finished")
        progress.end("b seed 0", "error: fix it")
    assert capsys.readouterr().err.split(" ", 1)[1] == "[2/3] b seed 0: error: fix it\n"
