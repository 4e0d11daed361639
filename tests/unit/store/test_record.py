"""Records: whole or absent, validated on the way in and out, and never another run's."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from bench import store
from bench.api import BenchError
from bench.core.errors import RunLockedError
from bench.store.lock import is_locked, run_lock
from bench.store.policy import save_policy
from bench.store.record import RunRecord
from tests.helpers.records import make_record, make_scores


def record(**changes: Any) -> RunRecord:
    config = {"suite": "toy", "seeds": [0], "budget": {"updates": 2}}
    return make_record(config, "a-fixed", 0, **{"row": "a", "digest": "d" * 16, **changes})


def scores(shift: float = 0.0) -> pd.DataFrame:
    prompts = [f"prompt {p}" for p in range(3)]
    return make_scores(prompts, 2, lambda p, k, metric: p + k / 7 + shift, {"videoalign": ["VQ", "MQ"]})


def test_round_trip(tmp_path: Path) -> None:
    folder = store.run_folder(tmp_path, "a", 0)
    assert folder == tmp_path / "a" / "seed-0"
    assert store.run_folder(tmp_path, "base", None) == tmp_path / "base"
    written = store.write_run(folder, record(extra={"x": 1.5}), scores())
    read, frame = store.read_run(folder)
    assert read == written
    assert read.extra == {"x": 1.5}
    pd.testing.assert_frame_equal(frame, store.sorted_scores(scores()), check_dtype=False)
    assert json.loads((folder / "run.json").read_text())["schema"] == 1
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "scores.parquet"]


def test_order_of_rows_changes_neither_content_nor_bytes(tmp_path: Path) -> None:
    first = store.write_run(tmp_path / "1", record(), scores())
    second = store.write_run(tmp_path / "2", record(), scores().sample(frac=1, random_state=0))
    assert first.scores_digest == second.scores_digest
    one, two = ((tmp_path / name / "scores.parquet").read_bytes() for name in "12")
    assert one == two
    assert store.write_run(tmp_path / "3", record(), scores(1e-9)).scores_digest != first.scores_digest


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.drop(columns="prompt"), "need the columns"),
        (lambda s: s.assign(value=float("nan")), "not finite"),
        (lambda s: pd.concat([s, s.iloc[:1]]), "given twice"),
        (lambda s: s.iloc[1:], "every video needs every metric"),
        (lambda s: s.assign(prompt_index=0, video=range(len(s))).drop(index=range(1, len(s), 2)), "two prompts"),
    ],
)
def test_bad_scores_are_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        store.write_run(tmp_path, record(), spoil(scores()))
    assert not store.is_complete(tmp_path)


def test_finished_needs_scores_and_failed_does_not(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no scores"):
        store.write_run(tmp_path, record())
    store.write_run(tmp_path, record(status="failed", error="reward is not finite"))
    read, frame = store.read_run(tmp_path)
    assert read.error == "reward is not finite"
    assert list(frame.columns) == store.SCORE_COLUMNS
    assert frame.empty


def test_unknown_fields_and_versions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="notes"):
        record(notes="x")
    store.write_run(tmp_path, record(), scores())
    content = json.loads((tmp_path / "run.json").read_text())
    for change in ({"notes": "x"}, {"schema": 2}, {"status": "half"}):
        (tmp_path / "run.json").write_text(json.dumps(content | change))
        with pytest.raises(BenchError, match=rf"run\.json is not valid at {next(iter(change))}"):
            store.read_run(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"suite": "toy"}', "\udcff"])
def test_half_a_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BenchError, match=r"run\.json"):
        store.read_run(tmp_path)


def test_no_record_says_what_to_run(tmp_path: Path) -> None:
    assert not store.is_complete(tmp_path, "d")
    with pytest.raises(BenchError, match="bench run"):
        store.read_run(tmp_path)


def test_nan_never_enters_a_record(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot be written"):
        store.write_run(tmp_path, record(extra={"x": float("nan")}), scores())
    assert not any(tmp_path.iterdir())


def test_another_runs_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    store.write_run(tmp_path, record(), scores())
    before = (tmp_path / "run.json").read_bytes()
    assert store.is_complete(tmp_path)
    assert store.is_complete(tmp_path, "d" * 16)
    for call in (
        lambda: store.is_complete(tmp_path, "e" * 16),
        lambda: store.write_run(tmp_path, record(digest="e" * 16), scores(1.0)),
    ):
        with pytest.raises(BenchError, match=rf"{tmp_path}.*{'d' * 16}.*{'e' * 16}.*--overwrite.*--results"):
            call()
    assert (tmp_path / "run.json").read_bytes() == before
    store.read_run(tmp_path)


def test_scores_of_another_run_are_refused(tmp_path: Path) -> None:
    store.write_run(tmp_path / "1", record(), scores())
    store.write_run(tmp_path / "2", record(), scores(1.0))
    os.replace(tmp_path / "1" / "scores.parquet", tmp_path / "2" / "scores.parquet")
    with pytest.raises(BenchError, match="do not belong"):
        store.read_run(tmp_path / "2")
    with pytest.raises(BenchError, match="cannot be read"):
        store.read_run(tmp_path / "1")
    (tmp_path / "2" / "scores.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(BenchError, match="cannot be read"):
        store.read_run(tmp_path / "2")


@pytest.mark.parametrize("when", [0, 1])
def test_full_disk_leaves_the_earlier_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """Call 0 of fsync belongs to scores.parquet, call 2 to run.json (call 1 is the folder's)."""
    store.write_run(tmp_path, record(), scores())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def fsync(_: int) -> None:
        calls.append(1)
        if len(calls) > 2 * when:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(BenchError, match="no space left"):
        store.write_run(tmp_path, record(), scores())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_full_disk_at_the_record_leaves_the_run_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(BenchError, match="no space left"):
        store.write_run(tmp_path, record(), scores())
    assert not store.is_complete(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.EROFS, "fix its permissions"),
        (errno.ENOTDIR, "a file is where a folder must be"),
        (errno.ENOENT, "its folder cannot be made, or was removed"),
        (errno.ENAMETOOLONG, "the path is not valid"),
        (errno.EIO, "the disk reports an error"),
    ],
)
def test_errors_of_the_disk_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fix: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(BenchError, match=rf"cannot be written \({os.strerror(number)}\): {fix}"):
        store.write_text(tmp_path / "a", "x")
    assert not any(tmp_path.iterdir())


def test_another_error_of_a_write_is_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Bad file descriptor"):
        store.write_text(tmp_path / "a", "x")


def test_a_write_removes_what_a_killed_process_left_of_the_same_file(tmp_path: Path) -> None:
    left, other = tmp_path / ".a.0123456789ab.tmp", tmp_path / ".b.0123456789ab.tmp"
    mine = tmp_path / ".a.notes.tmp"
    held = tmp_path / ".a.ba9876543210.tmp"
    for path in (left, other, mine, held):
        path.write_text("half")
    with held.open("rb") as file:  # another process writes the same file now
        assert store.try_lock(file)
        store.write_text(tmp_path / "a", "x")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([held.name, other.name, mine.name, "a"])


def test_a_disk_without_locks_is_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    left = tmp_path / ".a.0123456789ab.tmp"
    left.write_text("half")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    store.write_text(tmp_path / "a", "x")
    assert left.exists()  # it may belong to a process that writes now
    with run_lock(tmp_path):
        assert not is_locked(tmp_path)


def test_a_lock_excludes_a_second_process_until_it_is_released(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with run_lock(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(RunLockedError, match="another process"), run_lock(tmp_path):
            pass
    assert not is_locked(tmp_path)
    with run_lock(tmp_path):
        pass


def test_a_folder_in_which_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    store.check_writable(tmp_path / "new" / "results")
    assert list((tmp_path / "new" / "results").iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(BenchError, match="a file is where a folder must be"):
        store.check_writable(tmp_path / "file")
    with pytest.raises(BenchError, match="a file is where a folder must be"):
        store.check_writable(tmp_path / "file" / "below")


def test_a_run_whose_folder_went_away_stops(tmp_path: Path) -> None:
    store.write_text(tmp_path / "run" / store.STARTED, "abc\n")
    store.check_started(tmp_path / "run", "abc")
    with pytest.raises(BenchError, match="taken by another run"):
        store.check_started(tmp_path / "run", "another")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(BenchError, match="was removed or emptied while its run went on"):
        store.check_started(tmp_path / "run", "abc")


def test_lines_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "run" / "train.jsonl"
    assert store.read_lines(path) == []
    store.append_line(path, {"update": 0, "loss": 0.1})
    store.append_line(path, {"update": 1, "loss": 0.2})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"update": 2, "lo')
    assert [line["update"] for line in store.read_lines(path)] == [0, 1]
    store.append_line(path, {"update": 2, "loss": 0.3})
    assert [line["update"] for line in store.read_lines(path)] == [0, 1, 2]
    assert path.read_bytes().startswith(whole)
    path.write_bytes(b'{"update": 0')
    store.append_line(path, {"update": 0})
    assert store.read_lines(path) == [{"update": 0}]


def test_bad_lines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with pytest.raises(BenchError, match="cannot be written"):
        store.append_line(path, {"loss": float("inf")})
    assert not path.exists()
    path.write_text('{"a": 1}\nnot json\n')
    with pytest.raises(BenchError, match="not JSON"):
        store.read_lines(path)


def test_full_disk_keeps_earlier_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.jsonl"
    store.append_line(path, {"update": 0})

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(BenchError, match="no space left"):
        store.append_line(path, {"update": 1})
    assert path.read_text() == '{"update":0}\n'


def test_a_state_without_a_policy_is_refused_and_not_stored_as_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"no key that starts with 'policy:' \(its keys: lora:a\)"):
        save_policy(tmp_path, {"lora:a": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []
