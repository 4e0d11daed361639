"""Tables of the page: sorted as pandas sorts them, and copied as they are shown."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

Visit = Callable[..., Any]
VALUES = """cells => cells.map(cell => cell.dataset.value === undefined ? NaN : Number(cell.dataset.value))"""


@pytest.fixture
def page(visit: Visit, toy: Path) -> Any:
    return visit(toy)


def first_table(page: Any) -> tuple[Any, int]:
    """A table with several rows, and the place of its first column of numbers."""
    for table in page.locator("table.grid").all():
        numbers = table.locator("thead th").evaluate_all("heads => heads.map(head => head.dataset.sort)")
        if table.locator("tbody tr").count() > 2 and "number" in numbers:
            return table, numbers.index("number")
    raise AssertionError("no table has three rows and numbers")


def column(table: Any, place: int) -> pd.Series[float]:
    cells = table.locator(f"tbody tr > :nth-child({place + 1})")
    return pd.Series(cells.evaluate_all(VALUES), dtype=float)


def test_a_head_sorts_as_pandas_does_and_the_link_keeps_it(page: Any, visit: Visit, toy: Path) -> None:
    table, place = first_table(page)
    head = table.locator("thead th").nth(place)
    listed = column(table, place)
    for direction in ("descending", "ascending"):
        head.locator("button").click()
        expected = listed.sort_values(ascending=direction == "ascending", kind="stable", na_position="last")
        assert column(table, place).tolist() == pytest.approx(expected.tolist(), nan_ok=True)
        assert head.get_attribute("aria-sort") == direction
    again, _ = first_table(visit(toy, page.evaluate("location.hash")))
    assert column(again, place).tolist() == pytest.approx(column(table, place).tolist(), nan_ok=True)
    head.locator("button").click()
    assert column(table, place).tolist() == pytest.approx(listed.tolist(), nan_ok=True), "the third time as at first"
    names = table.locator("tbody tr > :first-child").all_inner_texts()
    first = table.locator("thead th").first
    if first.get_attribute("data-sort") == "text":
        first.locator("button").click()
        assert table.locator("tbody tr > :first-child").all_inner_texts() == sorted(names)


def copied(page: Any, table: Any, name: str) -> str:
    page.locator(f".tools[data-table={table.get_attribute('id')}] button", has_text=name).click()
    page.locator(".tools >> text=copied").first.wait_for()
    return page.evaluate("navigator.clipboard.readText()")


def test_a_table_is_copied_as_it_is_shown(visit: Visit, toy: Path) -> None:
    page = visit(toy, permissions=["clipboard-read", "clipboard-write"])
    table, place = first_table(page)
    tools = page.locator(f".tools[data-table={table.get_attribute('id')}]")
    tools.locator("summary").click()
    tools.locator("input[type=checkbox]").nth(place - 1).uncheck()
    lines = table.locator("tr").evaluate_all("""rows => rows.map(row => [...row.cells].filter(cell => !cell.hidden)
        .map(cell => cell.textContent.replace(/\\s+/g, " ").trim()))""")
    assert len(lines[0]) == table.locator("thead th").count() - 1
    found = pd.read_csv(StringIO(copied(page, table, "CSV")), header=None, dtype=str, keep_default_na=False)
    assert found.to_numpy().tolist() == lines
    markdown = copied(page, table, "Markdown").splitlines()
    assert len(markdown) == len(lines) + 1
    assert set(markdown[1]) == set("|:- ")
    latex = copied(page, table, "LaTeX")
    body = [line for line in latex.splitlines() if line.endswith("\\\\")]
    assert [line.count(" & ") for line in body] == [len(line) - 1 for line in lines]
    assert "\u2212" not in latex
    assert latex.startswith("% needs booktabs\n\\begin{tabular}{l")


def test_what_latex_would_read_is_escaped(visit: Visit, toy: Path) -> None:
    page = visit(toy, permissions=["clipboard-read", "clipboard-write"])
    table, place = first_table(page)
    cell = table.locator("tbody tr").first.locator(f":nth-child({place + 1})")
    cell.evaluate("cell => cell.replaceChildren('-1.5 \u00b1 50% of a_b & {c} ~ \\\\d 3-4|')")
    assert "$-$1.5 $\\pm$ 50\\% of a\\_b \\& \\{c\\} \\textasciitilde{} \\textbackslash{}d 3-4|" in copied(
        page, table, "LaTeX"
    )
    assert "50% of a\\_b & {c} ~ \\\\d 3-4\\|" in copied(page, table, "Markdown")


def test_where_the_clipboard_is_closed_the_text_is_shown(visit: Visit, toy: Path) -> None:
    page = visit(toy, init="navigator.clipboard.writeText = () => Promise.reject(new Error('closed'));")
    table, _ = first_table(page)
    page.locator(f".tools[data-table={table.get_attribute('id')}] button", has_text="CSV").click()
    assert page.locator("dialog textarea").input_value().count("\n") == table.locator("tr").count()
    page.click("dialog >> text=Close")
    assert page.locator("dialog").count() == 0


def test_rows_are_filtered_by_words(page: Any) -> None:
    table, _ = first_table(page)
    words = page.locator(f".tools[data-table={table.get_attribute('id')}] input[type=search]")
    words.evaluate("each => { each.hidden = false; }")  # a table of fewer than six rows does without
    rows = table.locator("tbody tr")
    texts = [text.lower() for text in rows.all_text_contents()]
    words.fill("CPS fixed")
    found = [row.is_visible() for row in rows.all()]
    assert found == ["cps" in text and "fixed" in text for text in texts]
    assert 0 < sum(found) < len(found)


def test_a_cell_of_the_heat_map_opens_its_videos(page: Any) -> None:
    cell = page.locator("#prompts td[data-row=cps-fixed] button").first
    prompt = int(cell.locator("xpath=..").get_attribute("data-prompt"))
    texts = page.evaluate(
        "JSON.parse(document.getElementById('data-suite').textContent).prompts.map(each => each.text)"
    )
    cell.click()
    assert page.locator("dialog.pair h3").inner_text() == texts[prompt]
    assert page.locator("dialog.pair figcaption").nth(1).inner_text() == "CPS, fixed KL"
