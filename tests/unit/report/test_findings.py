"""The page of findings quotes intervals; each of them stands in a stored table or in a figure's caption."""

from __future__ import annotations

import re
from pathlib import Path

from bench.core.provenance import ROOT

REFERENCE = ROOT / "results" / "reference"
INTERVAL = re.compile(r"-?\d+\.\d+ \[-?\d+\.\d+, -?\d+\.\d+\]")


def tables() -> str:
    return "\n".join(
        path.read_text(encoding="utf-8")
        for path in sorted(
            path for kind in ("**/tables/*.md", "*/prompts.md", "*/against_*.md") for path in REFERENCE.glob(kind)
        )
    )


def test_every_interval_on_the_page_stands_in_a_stored_table() -> None:
    known = set(INTERVAL.findall(tables()))
    quoted = INTERVAL.findall((REFERENCE / "findings.md").read_text(encoding="utf-8"))
    assert len(quoted) > 40
    assert [interval for interval in quoted if interval not in known] == []


def test_every_link_of_the_page_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (REFERENCE / "findings.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (REFERENCE / Path(link)).exists()] == []
