"""Tables of the documentation that quote stored ones: `python -m tools.quotes` fills them in anew.

A quote stands between two comments, and has the lines of one section of a stored table that name one of the words:

    <!-- quote nano/tables/main.md "Pairs of rows" cps-fixed -->
    <!-- end of quote -->

The file is named from results/reference; without words all lines are quoted. A test compares all quotes with the
stored tables, which `bench verify` compares with the records.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bench.core.errors import BenchError
from bench.core.provenance import ROOT

REFERENCE = ROOT / "results" / "reference"
QUOTE = re.compile(r'(<!-- quote (\S+) "([^"]+)"((?: \S+)*) -->\n).*?(<!-- end of quote -->)', re.DOTALL)


def pages() -> list[Path]:
    """The files that may quote."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), REFERENCE / "findings.md"]


def filled(text: str) -> str:
    """The text with its quotes as the stored tables have them now."""
    return QUOTE.sub(lambda found: found[1] + quoted(found[2], found[3], found[4].split()) + found[5], text)


def quoted(file: str, title: str, words: list[str]) -> str:
    """The table of a section: its head, and the lines that name one of the words; nothing found is a `BenchError`."""
    path = REFERENCE / file
    if not path.is_file():
        raise BenchError(f"{path} is quoted and does not exist: name a stored table, from results/reference.")
    lines = path.read_text(encoding="utf-8").splitlines()
    if f"## {title}" not in lines:
        raise BenchError(f"{path} has no section {title!r}, which is quoted.")
    section = lines[lines.index(f"## {title}") + 1 :]
    section = section[: next((i for i, line in enumerate(section) if line.startswith("## ")), None)]
    head, rule, *rows = [line for line in section if line.startswith("|")]
    chosen = [row for row in rows if not words or any(word in row for word in words)]
    if not chosen:
        raise BenchError(f"section {title!r} of {path} has no line with {', '.join(words)}, which is quoted.")
    return "".join(f"{line}\n" for line in _narrow([head, rule, *chosen]))


def _narrow(lines: list[str]) -> list[str]:
    """The lines of a table without the spaces that align its columns."""
    return [re.sub(r" {2,}", " ", re.sub(r"-{3,}", "---", line)) for line in lines]


def main() -> None:
    for path in pages():
        text = path.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            path.write_text(new, encoding="utf-8")
            sys.stdout.write(f"written: {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
