"""The log of all starts of runs: its chain, and what breaks it."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest

from bench.core.errors import BenchError
from bench.core.hashing import canonical_json
from bench.store.attempts import ATTEMPTS, START, read_attempts, record_attempt


def record(folder: Path, count: int) -> list[str]:
    return [record_attempt(folder, "start", "cps-fixed", seed, f"digest{seed}") for seed in range(count)]


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / ATTEMPTS).read_text().splitlines()]


def write(folder: Path, changed: list[dict[str, object]]) -> None:
    (folder / ATTEMPTS).write_text("".join(json.dumps(line) + "\n" for line in changed))


def test_every_line_has_the_hash_of_the_line_before(tmp_path: Path) -> None:
    hashes = record(tmp_path, 3)
    attempts = read_attempts(tmp_path)
    assert attempts is not None
    assert [attempt.hash for attempt in attempts] == hashes
    assert [attempt.before for attempt in attempts] == [START, *hashes[:2]]
    assert [attempt.seed for attempt in attempts] == [0, 1, 2]
    assert attempts[0].time.endswith("Z")


def test_a_folder_without_a_log_has_none(tmp_path: Path) -> None:
    assert read_attempts(tmp_path) is None


def test_the_base_has_no_seed_and_a_copy_is_no_start(tmp_path: Path) -> None:
    record_attempt(tmp_path, "copy", "base", None, "d")
    assert [(a.event, a.row, a.seed) for a in read_attempts(tmp_path) or []] == [("copy", "base", None)]


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (lambda all_lines: all_lines[1].update(seed=7), 2),
        (lambda all_lines: all_lines[1].update(time="2026-01-01T00:00:00Z"), 2),
        (lambda all_lines: all_lines.pop(1), 2),
        (lambda all_lines: all_lines.pop(0), 1),
        (lambda all_lines: all_lines.reverse(), 1),
        (lambda all_lines: all_lines[2].update(note="x"), 3),
    ],
    ids=["changed", "another time", "removed", "first removed", "another order", "another key"],
)
def test_a_change_breaks_the_chain_and_no_run_extends_it(change, number: int, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    record(tmp_path, 3)
    changed = lines(tmp_path)
    change(changed)
    write(tmp_path, changed)
    before = (tmp_path / ATTEMPTS).read_bytes()
    for act in (lambda: read_attempts(tmp_path), lambda: record(tmp_path, 1)):
        with pytest.raises(BenchError, match=f"{ATTEMPTS}, line {number}, breaks the chain"):
            act()
    assert (tmp_path / ATTEMPTS).read_bytes() == before


def test_half_a_line_of_a_killed_process_is_removed_by_the_next_start(tmp_path: Path) -> None:
    hashes = record(tmp_path, 2)
    with (tmp_path / ATTEMPTS).open("a") as file:
        file.write('{"before": "12')
    assert [attempt.hash for attempt in read_attempts(tmp_path) or []] == hashes
    hashes += record(tmp_path, 1)
    assert [attempt.hash for attempt in read_attempts(tmp_path) or []] == hashes


@pytest.mark.parametrize(
    "changes", [{"row": 5}, {"seed": "0"}, {"seed": True}, {"event": "end"}, {"time": None}, {"digest": []}]
)
def test_an_entry_of_another_kind_is_refused_although_its_hash_is_right(
    changes: dict[str, object], tmp_path: Path
) -> None:
    record(tmp_path, 1)
    (line,) = lines(tmp_path)
    entries = {key: value for key, value in line.items() if key != "hash"} | changes
    write(tmp_path, [{**entries, "hash": hashlib.sha256(canonical_json(entries).encode()).hexdigest()}])
    with pytest.raises(BenchError, match=f"{ATTEMPTS}, line 1, has an entry of another kind than a start"):
        read_attempts(tmp_path)


def test_the_last_lines_can_be_cut_off_and_a_record_tells(tmp_path: Path) -> None:
    """The chain alone does not show it: the record of a run has the hash of its line, which is then missing."""
    hashes = record(tmp_path, 3)
    write(tmp_path, lines(tmp_path)[:2])
    assert hashes[2] not in {attempt.hash for attempt in read_attempts(tmp_path) or []}


def test_starts_at_the_same_time_are_all_in_one_chain(tmp_path: Path) -> None:
    threads = [threading.Thread(target=record, args=(tmp_path, 5)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_attempts(tmp_path) or []) == 20
