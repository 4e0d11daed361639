"""A stored table of a search is checked against its records as the other tables are."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.audit.verify_tables import check_tables
from bench.report.tables.tuning import write_tuning_files
from tests.unit.report.test_tuning import table_of, write_search


@pytest.fixture(autouse=True)
def _same_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.core.provenance.source_digest", lambda: "same")
    monkeypatch.setattr("bench.suite.sources.plugin_digests", lambda group, name: {"file.py": "same"})


@pytest.mark.parametrize("name", ["tuning.md", "tuning.csv"])
def test_an_edited_table_of_a_search_is_found(tmp_path: Path, name: str) -> None:
    folder = write_search(tmp_path / "results" / "toy_search")
    paths = write_tuning_files(table_of(folder))
    assert list(check_tables(folder / "tables")) == []
    text = paths[name].read_text(encoding="utf-8")
    paths[name].write_text(text.replace("6", "7", 1), encoding="utf-8")
    (finding,) = check_tables(folder / "tables")
    assert finding.path == paths[name]
    assert "is not what `bench table` writes from these records" in finding.text
