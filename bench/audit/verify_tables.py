"""Stored tables are those that `bench table` writes from the records beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path

from bench import store
from bench.audit.findings import Finding
from bench.core.errors import BenchError
from bench.core.provenance import ROOT
from bench.report.data.ablation import levels_of
from bench.report.data.loading import load_records, records_below
from bench.report.data.selection import Selection, rows_of
from bench.report.tables.ablation import NAME as ABLATION
from bench.report.tables.ablation import render_ablation
from bench.report.tables.main import NAME, load_main_table, render_table
from bench.report.tables.tuning import NAME as TUNING
from bench.report.tables.tuning import load_tuning_table, render_tuning
from bench.store.record import REPLAY, RunRecord
from bench.suite.difference import settings_difference
from bench.suite.load import load_variants
from bench.suite.recorded import SUITE_FILE
from bench.suite.schema import Suite

CONFIGS = ROOT / "bench" / "configs"
#: Selections that are tried before a stored table counts as not the table of its records.
MOST_SELECTIONS = 12
#: Starts of the lines of a table that are about replays: the note, and the word of its legend that only this note has.
ABOUT_REPLAYS = ("- Nondeterminism floor: ", "- **equal bits**: ")
_REWRITE = "write the tables again with `bench table`, or restore the records that they were made from"


def stored_tables(folder: Path) -> dict[str, bytes]:
    """File name to content of the stored tables of one folder."""
    names = [f"{name}.{end}" for name in (NAME, ABLATION, TUNING) for end in ("md", "csv", "tex")]
    names.append(f"{NAME}_narrow.tex")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def check_tables(folder: Path) -> Iterator[Finding]:
    """Stored tables are, byte for byte, those that `bench table` writes from the records with a possible selection."""
    stored = stored_tables(folder)
    if not stored:
        return
    best: tuple[list[str], dict[str, str]] | None = None
    try:
        for texts in islice(_renderings(folder.parent, stored), MOST_SELECTIONS):
            wrong = [name for name, content in stored.items() if texts.get(name) != content.decode(errors="replace")]
            if not wrong:
                return
            if best is None or len(wrong) < len(best[0]):
                best = wrong, texts
    except BenchError as error:
        yield Finding(folder, f"the tables cannot be checked ({str(error).rstrip('.')}): {_REWRITE}")
        return
    if best is None:
        yield Finding(folder, f"tables without records: {_REWRITE}")
        return
    repeated = bool(store.find(folder.parent, f"**/{REPLAY}"))
    for name in best[0]:
        content, text = stored[name].decode(errors="replace"), best[1].get(name, "")
        if repeated and _without_replays(content) == _without_replays(text):
            note = "quotes other replays of these runs than are stored: write it again with `bench table`"
            yield Finding(folder / name, note, wrong=False)
            continue
        line = _first_differing_line(content, text)
        yield Finding(
            folder / name, f"is not what `bench table` writes from these records, from line {line} on: {_REWRITE}"
        )


def _without_replays(text: str) -> list[str]:
    """The lines of a table without what it says of replays."""
    lines = [line for line in text.split("\n") if not line.startswith(ABOUT_REPLAYS)]
    return [_without_replay_badge(line) if line.startswith("Checks: ") else line for line in lines]


def _without_replay_badge(line: str) -> str:
    """The line of checks without `replay (why)`, its comma or semicolon, and a list that then is empty."""
    line = re.sub(r"(?:[;,] )?\breplay\b(?: \([^)]*\))?", "", line)
    line = re.sub(r": [;,] ", ": ", line)
    return re.sub(r"(?:\*\*\w+\*\*|passed): \. ?", "", line).strip()


def _first_differing_line(text: str, other: str) -> int:
    """Number of the first line in which two texts differ."""
    a, b = text.split("\n"), other.split("\n")
    return next((number for number, (x, y) in enumerate(zip(a, b, strict=False), 1) if x != y), min(len(a), len(b)))


def _renderings(folder: Path, stored: dict[str, bytes]) -> Iterator[dict[str, str]]:
    """Texts that `bench table` writes, one mapping per possible selection; only tables that are stored."""
    variants = _variants(folder, stored)
    if not variants:
        return
    candidates = {name: list(candidate_selections(path)) for name, path in variants.items()}
    for index in range(max(map(len, candidates.values()))):
        chosen = {name: own[min(index, len(own) - 1)] for name, own in candidates.items()}
        yield {
            **_main(folder, chosen, stored),
            **_tuning(folder, chosen, stored),
            **_ablation(folder, variants, chosen, stored),
        }


def _variants(folder: Path, stored: dict[str, bytes]) -> dict[str, Path]:
    """Variant to folder, the baseline first, or "" to the folder of a suite that is not a study; {} without records.

    Records do not contain the order of the variants: it is that of the project's own YAML, else of the stored table.
    """
    if records_below(folder):
        return {"": folder}
    below = {path.name for path in folder.iterdir() if records_below(path)}
    listed = [suite.variant for suite in suites_of_tables().values() if suite.variant and suite.study == folder.name]
    listed = listed if set(listed) == below else _order_in(stored)
    return {name: folder / name for name in (listed if set(listed) == below else sorted(below))}


def _order_in(stored: dict[str, bytes]) -> list[str]:
    """Variants in the order of the stored ablation.csv."""
    lines = stored.get(f"{ABLATION}.csv", b"").decode(errors="replace").splitlines()[1:]
    return list(dict.fromkeys(line.split(",")[1] for line in lines if line.count(",") > 1))


def candidate_selections(folder: Path) -> Iterator[Selection]:
    """Rows and seeds that `bench table` may have used for the records below `results/<suite>`, the likeliest first.

    Rows: those of the suite that the folder stores, then those of the project's own YAML of this name, if its settings
    are those of the records, then those of each configuration in the records. Seeds: those of the stored suite, then
    all that the configurations name, then those of each of them.
    """
    records = _records(folder)
    configs = [Suite.model_validate(record.config) for record in records]
    own = suites_of_tables().get(configs[0].suite)
    fits = own is not None and all(settings_difference(config, own) is None for config in configs)
    stored = _stored_suites(folder)
    suites = [*stored, *([own] if own is not None and fits else []), *configs]
    named = sorted({seed for suite in configs for seed in suite.seeds})
    seeds = [*(suite.seeds for suite in stored), named, *(suite.seeds for suite in suites)]
    seen = []
    for rows in (rows_of(suite) for suite in suites):
        for wanted in seeds:
            selection = Selection(rows, sorted(wanted))
            if selection not in seen:
                seen.append(selection)
                yield selection


def _stored_suites(folder: Path) -> list[Suite]:
    """The suite that the folder, or that of its study, stores; [] if there is none."""
    place = next((path for path in (folder, folder.parent) if (path / SUITE_FILE).is_file()), None)
    variant = "" if place == folder else folder.name
    return [] if place is None else [suite for suite in load_variants(place) if suite.variant == variant]


def _records(folder: Path) -> list[RunRecord]:
    """All records of one suite, sorted by folder."""
    return [record for _, record in records_below(folder)]


@cache
def suites_of_tables() -> dict[str, Suite]:
    """Name to suite of all suites and variants in the project's own YAML files; the first file wins."""
    suites: dict[str, Suite] = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        for suite in load_variants(path):
            suites.setdefault(suite.name, suite)
    return suites


def _main(folder: Path, chosen: Mapping[str, Selection], stored: Mapping[str, bytes]) -> dict[str, str]:
    if "" not in chosen or not any(name.startswith(f"{NAME}.") for name in stored):
        return {}
    return render_table(load_main_table(folder, *chosen[""]))


def _tuning(folder: Path, chosen: Mapping[str, Selection], stored: Mapping[str, bytes]) -> dict[str, str]:
    if "" not in chosen or not any(name.startswith(f"{TUNING}.") for name in stored):
        return {}
    if not all(record.config.get("search") for record in _records(folder)):
        return {}  # the table of no search
    return render_tuning(load_tuning_table(folder, *chosen[""]))


def _ablation(
    folder: Path, variants: dict[str, Path], chosen: dict[str, Selection], stored: dict[str, bytes]
) -> dict[str, str]:
    if not any(name.startswith(f"{ABLATION}.") for name in stored):
        return {}
    levels = levels_of({name: load_records(path, *chosen[name]) for name, path in variants.items()})
    return render_ablation(levels, folder.name) if levels else {}
