"""Under a table: whether its seeds are chosen, and runs started / shown with every difference between the two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.report.data.attempts import named_seeds, seed_kind
from bench.report.tables.main import load_main_table, render_table
from bench.store.attempts import ATTEMPTS, record_attempt
from tests.helpers.records import make_record, make_scores, noisy_value, write_run

PROMPTS = [f"prompt {p}" for p in range(4)]
CONFIG: dict[str, Any] = {
    "suite": "mine",
    "budget": {"updates": 2},
    "reward": {"gold": {"gold_VQ": 1.0}},
    "seeds": [0, 1, 2],
    "rows": [{"method": "cps", "kl": "fixed"}, {"method": "sage_grpo", "kl": "dual"}],
}
ROWS = ("cps-fixed", "sage_grpo-dual")
LEDGER = {"nfe_rollout": 1, "nfe_train": 1, "reward_calls": {"gold": 1}}


def write(folder: Path, row: str, seed: int | None, seeds: list[int], **changes: Any) -> None:
    scores = make_scores(PROMPTS, 1, noisy_value(row, seed, 0.1, len(PROMPTS)), {"gold": ["gold_VQ"]})
    values = {"config": CONFIG | {"seeds": seeds}, "ledger": {} if seed is None else LEDGER, **changes}
    write_run(folder, make_record(CONFIG, row, seed, **values), scores)


def suite(parent: Path, seeds: list[int], **changes: Any) -> Path:
    """Records of two rows with these seeds."""
    folder = parent / "mine"
    write(folder, "base", None, seeds, **changes)
    for row in ROWS:
        for seed in seeds:
            write(folder, row, seed, seeds, **changes)
    return folder


def started(folder: Path, *runs: tuple[str, int | None, str]) -> Path:
    """Lines of starts in this order: row, seed and digest."""
    for row, seed, digest in runs:
        record_attempt(folder, "start", row, seed, digest)
    return folder


def page(folder: Path, **selection: Any) -> str:
    return render_table(load_main_table(folder, **selection))["main.md"]


def note(folder: Path, **selection: Any) -> str:
    """The one note on attempts."""
    (line,) = [line for line in page(folder, **selection).splitlines() if "Runs started / shown" in line]
    return line


# seeds --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seeds", "named"),
    [
        ([0], "seed 0"),
        ([0, 1, 2], "seeds 0, 1, 2"),
        ([100, 101, 102], "pilot seeds 100, 101, 102"),
        ([100], "pilot seed 100"),
        ([3, 5, 7], "chosen seeds 3, 5, 7"),
        ([0, 1, 2, 4], "chosen seeds 0, 1, 2, 4"),
        ([1], "chosen seed 1"),
        ([-1, 0, 1], "chosen seeds -1, 0, 1"),
        ([0, 1, 100], "chosen seeds 0, 1, 100"),
    ],
)
def test_seeds_that_are_not_the_first_n_are_chosen(seeds: list[int], named: str) -> None:
    assert named_seeds(seeds) == named


def test_an_order_is_no_choice() -> None:
    assert seed_kind([2, 0, 1]) == seed_kind(()) == ""


def test_a_table_of_chosen_seeds_says_so_in_verdict_notes_and_csv(tmp_path: Path) -> None:
    """One seed deleted in all rows and in the configurations leaves no other trace."""
    folder = suite(tmp_path, [0, 1, 2, 4])
    text = page(folder)
    assert "- Chosen seeds 0, 1, 2, 4. Better and worse:" in text
    assert "- **Chosen seeds 0, 1, 2, 4: a table of the closed division takes the seeds 0 to n - 1." in text
    assert "n = 4 chosen seeds (0, 1, 2, 4)" in text
    lines = render_table(load_main_table(folder))["main.csv"].splitlines()
    place = lines[0].split(",").index("seeds")
    assert lines[2].split(",")[place] == "0 1 2 4"


def test_pilot_seeds_are_named_and_the_first_seeds_need_no_word(tmp_path: Path) -> None:
    pilot = page(suite(tmp_path / "pilot", [100, 101]))
    assert "- Pilot seeds 100, 101.\n" in pilot, "two seeds have no test"
    assert "n = 2 pilot seeds (100, 101)" in pilot
    folder = suite(tmp_path, [0, 1, 2])
    assert "hosen" not in pilot + page(folder)
    assert "- Chosen seeds 0, 2.\n" in page(folder, seeds=[0, 2])


def test_a_pilot_names_the_prompts_on_which_it_was_scored(tmp_path: Path) -> None:
    assert "on 4 held-out prompts." in page(suite(tmp_path, [0, 1]))
    pilot = {**CONFIG, "seeds": [100, 101], "evaluation": {"prompts": "validation"}}
    assert "on 4 validation prompts." in page(suite(tmp_path / "pilot", [100, 101], config=pilot))


# attempts -----------------------------------------------------------------------------------------------------
def test_each_run_that_was_started_once_and_is_shown(tmp_path: Path) -> None:
    folder = suite(tmp_path, [0, 1])
    started(folder, ("base", None, "b"), *((row, seed, "d") for row in ROWS for seed in (0, 1)))
    assert note(folder) == "- Runs started / shown: 4 / 4."


def test_every_difference_is_explained(tmp_path: Path) -> None:
    folder = suite(tmp_path, [0, 1, 2])
    started(
        folder,
        *(("cps-fixed", seed, "d") for seed in (0, 1, 1, 3, 4)),  # 1 continued, 3 and 4 deleted
        *(("sage_grpo-dual", seed, digest) for seed, digest in ((0, "x"), (0, "y"))),  # 0 with other settings
        ("gone-fixed", 0, "d"),
    )
    record_attempt(folder, "copy", "sage_grpo-dual", 1, "z")
    assert note(folder) == (
        "- Runs started / shown: 8 / 6; started again with the same settings (continued or repeated): cps-fixed seed "
        "1; started again with other settings or sources: sage_grpo-dual seed 0; started and not shown: cps-fixed "
        "seeds 3, 4, gone-fixed seed 0; copied from another suite, where they were started: sage_grpo-dual seed 1; "
        "shown without a start on file: cps-fixed seed 2, sage_grpo-dual seed 2."
    )


def test_a_table_of_fewer_seeds_names_the_others(tmp_path: Path) -> None:
    folder = suite(tmp_path, [0, 1, 2])
    started(folder, *((row, seed, "d") for row in ROWS for seed in range(3)))
    assert note(folder, seeds=[0, 1]) == (
        "- Runs started / shown: 6 / 4; started and not shown: cps-fixed seed 2, sage_grpo-dual seed 2."
    )


def test_a_failed_run_is_shown(tmp_path: Path) -> None:
    folder = suite(tmp_path, [0, 1])
    write_run(
        folder,
        make_record(CONFIG, "cps-fixed", 2, status="failed", error="NaN", ledger=LEDGER),
        make_scores([], 0, lambda *_: 0.0),
    )
    started(folder, *((row, seed, "d") for row in ROWS for seed in (0, 1)), ("cps-fixed", 2, "d"))
    assert note(folder) == "- Runs started / shown: 5 / 5."


def test_long_lists_end(tmp_path: Path) -> None:
    folder = suite(tmp_path, [0, 1])
    started(folder, *((f"cps.t{trial:02}", 0, "d") for trial in range(15)))
    line = note(folder)
    assert "cps.t11 seed 0, and 3 more rows" in line
    assert "cps.t12" not in line


def test_without_a_file_the_records_are_older_or_it_was_deleted(tmp_path: Path) -> None:
    why = "- Runs started / shown: unknown. There is no attempts.jsonl: {}."
    older = note(suite(tmp_path / "a", [0, 1]))
    assert older == why.format("these are older records, or it was deleted")
    newer = note(suite(tmp_path / "b", [0, 1], attempt="0" * 64))
    assert newer == why.format("it was deleted, since these records name its lines")


def test_a_broken_chain_is_a_finding_and_no_crash(tmp_path: Path) -> None:
    folder = started(suite(tmp_path, [0, 1]), *(("cps-fixed", seed, "d") for seed in range(4)))
    lines = (folder / ATTEMPTS).read_text(encoding="utf-8").splitlines()
    (folder / ATTEMPTS).write_text("\n".join(lines[:1] + lines[2:]) + "\n", encoding="utf-8")
    line = note(folder)
    assert line.startswith("- **Runs started / shown: unknown. ")
    assert ATTEMPTS in line
    assert "line 2" in line
