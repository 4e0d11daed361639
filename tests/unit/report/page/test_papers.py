"""The bibliography of a page: an entry for every method and model, as in the class and in CITATION.cff, no other."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from bench.core.provenance import ROOT
from bench.plugins import available, find
from bench.report.page.reproducing import reproduction
from bench.report.page.subject import Subject
from bench.report.tables.main import load_main_table
from tests.helpers.toy_records import write_suite

FIELD = r"^  {} += \{{(.*?)\}},?$"
"""A field of a BibTeX entry, by its name."""


def field(entry: str, name: str) -> str:
    found = re.search(FIELD.format(name), entry, flags=re.MULTILINE)
    return found.group(1) if found else ""


@pytest.fixture(scope="module")
def entries() -> dict[str, str]:
    """Every key and every other name of an entry to its text."""
    texts = (files("bench.report") / "papers.bib").read_text(encoding="utf-8").strip().split("\n\n")
    named = {name: text for text in texts if (name := field(text, "ids"))}
    return {re.match(r"@misc\{(\w+),", text).group(1): text for text in texts} | named  # type: ignore[union-attr]


@pytest.mark.parametrize("name", available("methods"))
def test_a_method_has_the_entry_of_its_paper(name: str, entries: dict[str, str]) -> None:
    paper = find("methods", name).paper
    assert f'arXiv:{field(entries[name], "eprint")}, "{field(entries[name], "title")}"' in paper


def test_the_citation_file_has_the_same_papers(entries: dict[str, str]) -> None:
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    cited = {
        (each["title"], each["year"], each["url"].removeprefix("https://arxiv.org/abs/"), people(each["authors"]))
        for each in references
    }
    assert cited == {
        (field(text, "title"), int(field(text, "year")), field(text, "eprint"), field(text, "author").strip("{}"))
        for text in entries.values()
    }


def people(authors: list[dict[str, str]]) -> str:
    return " and ".join(each.get("name") or f"{each['given-names']} {each['family-names']}" for each in authors)


def test_a_page_cites_its_own_methods_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    write_suite(tmp_path / "toy")
    subject = Subject("toy", tmp_path / "toy", {"": load_main_table(tmp_path / "toy")})
    keys = re.findall(r"^@\w+\{(\w+),", reproduction(subject).citation, flags=re.MULTILINE)
    assert keys[0] == "grpo_video_bench"
    assert set(keys[1:]) == {"cps", "sage_grpo", "hunyuanvideo15"}
