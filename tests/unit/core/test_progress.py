"""Progress on a terminal and in a log file: what is shown, how wide, and what `--quiet` leaves out."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from bench.core import progress
from bench.core.progress import Screen, duration, inform, say, set_quiet, track, working
from tests.helpers.paths import PROJECT

SCRIPT = """
import sys, time
from bench.core import progress

progress.DRAW_EVERY = 0.02
widths = []

def lines(width):
    widths.append(width)
    return [letter * (width - 1) for letter in "ab"]

def wait_for(width):
    while widths[-1] != width:
        time.sleep(0.02)

screen = progress.Screen(lines, lambda: "")
progress.say("a message " * 20)
wait_for(100)
print("drawn", flush=True)
sys.stdin.readline()
wait_for(60)
screen.close()
"""


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    yield
    set_quiet(False)


def terminal(width: int) -> tuple[int, int]:
    """Both ends of a pseudo-terminal of this width."""
    ours, theirs = pty.openpty()
    resize(theirs, width)
    return ours, theirs


def resize(end: int, width: int) -> None:
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))


def read_all(end: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(end, 65536)
        except OSError:  # the other end is closed
            break
        parts.append(part)
    return b"".join(parts).decode()


def drawn_lines(text: str) -> list[str]:
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))


def test_a_window_that_becomes_narrower_has_no_longer_line_and_the_wrapped_rows_are_erased() -> None:
    ours, theirs = terminal(100)
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=PROJECT,
        env={**environment, "TERM": "xterm", "PYTHONPATH": str(PROJECT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "drawn\n"
        resize(theirs, 60)
        child.stdin.write("\n")
        child.stdin.close()
        assert child.wait(20) == 0
    os.close(theirs)
    text = read_all(ours)
    assert max(map(len, drawn_lines(text))) <= 100
    wide, narrow = text.rsplit("a" * 99, 1)
    assert max(map(len, drawn_lines(narrow)[2:])) == 59  # after the rest of the last wide drawing
    # rich goes up by one row for its two lines; each of them has been wrapped into two
    redraw = narrow.partition("a" * 59)[0]
    assert redraw.count("\x1b[1A") == 3
    assert "a message" in wide


def test_a_log_file_gets_a_line_with_the_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.01)
    with working("checking runs", 4) as work:
        work.step()
        while not (err := capsys.readouterr().err):
            pass
    assert re.fullmatch(r"(\d\d:\d\d:\d\d checking runs 1/4, \d+ s left\n)+", err)


def test_short_work_leaves_no_line_in_a_log_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("abc", "checking runs")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_quiet_shows_results_and_no_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    set_quiet(True)
    screen = Screen(lambda width: ["line"], lambda: "line")
    inform("3 of 3 runs are finished")
    say("note: a warning")
    screen.close()
    assert capsys.readouterr().err == "note: a warning\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (200000, "2.3 days")],
)
def test_a_time_span_is_written_for_a_reader(seconds: float, text: str) -> None:
    assert duration(seconds) == text
