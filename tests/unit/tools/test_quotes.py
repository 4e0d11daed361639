"""The tables that the documentation quotes are the stored ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.core.errors import BenchError
from bench.core.provenance import ROOT
from tools import quotes
from tools.quotes import filled, pages

TABLE = """# Table

## Pairs

| Pair              |   Overall |
|:------------------|----------:|
| cps-fixed - other |      0.10 |
| rest              |      0.20 |

## Notes

| no | quote |
|:---|------:|
"""


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_quote_is_the_stored_table(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == filled(text), "run `python -m tools.quotes`"
    assert text.count("<!-- quote ") == text.count("<!-- end of quote -->") == len(quotes.QUOTE.findall(text))


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(quotes, "REFERENCE", tmp_path)
    (tmp_path / "main.md").write_text(TABLE, encoding="utf-8")
    return tmp_path


def test_a_quote_has_the_chosen_lines_of_its_section(stored: Path) -> None:
    page = 'Before\n\n<!-- quote main.md "Pairs" cps-fixed -->\nold\n<!-- end of quote -->\n\nAfter\n'
    assert filled(page) == page.replace("old", "| Pair | Overall |\n|:---|---:|\n| cps-fixed - other | 0.10 |")
    assert filled(page.replace(" cps-fixed", "")).count("\n| ") == 3, "all lines without a word"


@pytest.mark.parametrize(
    ("quote", "message"),
    [
        ('other.md "Pairs"', "does not exist"),
        ('main.md "Scores"', "has no section 'Scores'"),
        ('main.md "Pairs" sage', "has no line with sage"),
    ],
)
def test_a_quote_of_nothing_is_refused(stored: Path, quote: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        filled(f"<!-- quote {quote} -->\n<!-- end of quote -->")
