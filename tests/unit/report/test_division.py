"""Rows of the open division in tables: marked, below a rule, with their reasons, and no rivals of closed rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.report import formatting
from bench.report.data import differences
from bench.report.data.ablation import levels_of_suite
from bench.report.data.division import division, open_reasons
from bench.report.data.loading import load_records
from bench.report.data.selection import Selection, rows_of
from bench.report.page.page import render_page
from bench.report.tables.main import MainTable, load_main_table, render_table
from bench.report.tables.screen import main_screen
from bench.suite.schema import Suite
from tests.helpers.records import make_record
from tests.helpers.toy_records import CONFIG, write

REASONS = ["option extremes is 2", "a learning rate of its own, 0.001"]
OPEN, CLOSED = "cps-fixed", "sage_grpo-dual"
SETTINGS: dict[str, Any] = {"rows": [{"method": "cps", "kl": "fixed"}, {"method": "sage_grpo", "kl": "dual"}]}


def write_rows(folder: Path, **reasons: list[str] | None) -> Path:
    """The base and both rows, the better one first in the suite; `reasons` of each row, by its method."""
    write(folder, "base", None, SETTINGS)
    for row, lift in ((OPEN, 1.0), (CLOSED, 0.5)):
        for seed in range(3):
            write(folder, row, seed, SETTINGS, lift, open_reasons=reasons.get(row.partition("-")[0]))
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite whose first row, the best one, is open."""
    return write_rows(tmp_path_factory.mktemp("mixed") / "toy", cps=REASONS, sage_grpo=[])


def test_a_row_is_open_if_one_run_is_and_closed_if_all_are() -> None:
    def runs(*reasons: list[str] | None) -> Any:
        return [make_record({"suite": "toy"}, "cps-fixed", seed, open_reasons=own) for seed, own in enumerate(reasons)]

    assert division(runs([], [])) == "closed"
    assert division(runs([], ["a"], None)) == "open"
    assert division(runs([], None)) == division(runs(None)) == division([]) == ""
    assert open_reasons(runs(["a", "b"], ["b", "c"])) == ["a", "b", "c"]


def test_open_rows_stand_last_and_the_csv_names_the_division(mixed: Path) -> None:
    table = pd.read_csv(io.StringIO(render_table(load_main_table(mixed))["main.csv"]), keep_default_na=False)
    assert table["row"].tolist() == ["base", CLOSED, OPEN]
    assert table["division"].tolist() == ["", "closed", "open"]


def test_an_open_row_is_never_the_best_of_a_column(mixed: Path, tmp_path: Path) -> None:
    def best(main: MainTable) -> set[str]:
        return differences.best_rows(main.suite, main.table, main.tests, "overall")

    assert OPEN not in best(load_main_table(mixed))
    assert OPEN in best(load_main_table(write_rows(tmp_path / "toy", cps=[], sage_grpo=[]))), "closed, it is"


def test_texts_mark_the_row_and_say_why(mixed: Path) -> None:
    main = load_main_table(mixed)
    text = render_table(main)["main.md"]
    for title in ("Scores", "Differences", "What one run spent"):
        lines = formatting.markdown(*main.sections[title]).splitlines()
        closed, rule, below = lines[-3:]
        assert (closed.split()[1], below.split("|")[1].strip()) == (CLOSED, f"{OPEN} (open)")
        assert set(rule) == {"|", "-"}
        assert len(rule) == len(closed)
    pairs = differences.between_rows(differences.tested_differences(main.suite), "overall")
    assert pairs[["row", "other"]].values.tolist() == [[CLOSED, f"{OPEN} (open)"]]
    assert f"- {OPEN} (open): option extremes is 2; a learning rate of its own, 0.001.\n" in text
    assert f"Overall: {CLOSED} and {OPEN} (open) are better than the base." in text
    assert f"Overall: {OPEN} (open) is better than {CLOSED} (" in text
    assert "- **open**: Of the open division" in text
    assert "not recorded, since" not in text
    assert f"{OPEN} (open)" in main_screen(main, lambda seeds: "", "main.md")


def test_latex_has_a_rule_above_the_open_rows(mixed: Path) -> None:
    text = render_table(load_main_table(mixed))["main.tex"]
    rule, row = text.split("(open)")[0].splitlines()[-2:]
    assert rule == r"\midrule"
    assert row.endswith("CPS, fixed KL ")


def test_a_level_of_an_ablation_is_marked(tmp_path: Path) -> None:
    rows = [{"method": "cps", "kl": "none"}, {"method": "cps", "kl": "fixed"}]
    for row, reasons in (("cps-none", []), ("cps-fixed", REASONS)):
        write(tmp_path, row, 0, {"rows": rows}, open_reasons=reasons)
    assert [level.name for level in levels_of_suite(load_records(tmp_path))] == ["cps-none", "cps-fixed (open)"]


def test_the_page_marks_open_rows(mixed: Path) -> None:
    suite = Suite.model_validate({**CONFIG, **SETTINGS})
    text = render_page(mixed, {"": (mixed, Selection(rows_of(suite), suite.seeds))})
    assert text.count(f'<tr class="open"><th scope="row">{OPEN} (open)</th>') >= 4
    assert f'class="open"><th scope="row">{CLOSED}</th>' not in text
    assert f"<dd>{CLOSED}, {OPEN} (open)</dd>" in text


def test_older_records_are_said_to_be_older(tmp_path: Path) -> None:
    main = load_main_table(write_rows(tmp_path / "toy"))
    assert main.table["division"].tolist() == ["", "", ""]
    assert f"The division is not recorded, since the records are older: {OPEN}, {CLOSED}." in main.notes()
    assert "(open)" not in render_table(main)["main.md"]
