"""The list of the packaged suites, each with what it is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.suite.load import load_variants
from bench.suite.packaged import packaged_files


@dataclass(frozen=True)
class PackagedSuite:
    """A suite that comes with the project."""

    name: str
    """What commands take in place of a file."""
    description: str
    """First sentence of the comment at the top of its file."""
    rows: int
    seeds: int
    variants: int
    """Variants of a study; 0 if it is none."""
    scale: str
    """Scale of the model: "nano" or "full"."""
    path: Path

    def facts(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    @property
    def size(self) -> str:
        """Rows, seeds and variants in words, such as "4 x 3" or "4 x 3 x 2 variants"."""
        return f"{self.rows} x {self.seeds}" + (f" x {self.variants} variants" if self.variants else "")


def packaged_suites() -> list[PackagedSuite]:
    """Every packaged suite with what it is, sorted by name."""
    suites = []
    for name, path in packaged_files().items():
        variants = load_variants(path)
        first = variants[0]
        count = len(variants) if first.variant else 0
        description = first_sentence(path.read_text(encoding="utf-8"))
        suites.append(
            PackagedSuite(name, description, len(first.rows), len(first.seeds), count, first.scale, path),
        )
    return suites


def first_sentence(text: str) -> str:
    """The first sentence of the comment at the top of a file, on one line."""
    lines = text.splitlines()
    comment = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    words = " ".join(line.lstrip("#").strip() for line in comment).strip()
    return words.partition(". ")[0].rstrip(".")
