"""What `bench compare` prints: the comparison of two folders as Markdown, and its numbers as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.report import formatting
from bench.report.data.comparison import BOTH, NOTHING, PROMPTS, Comparison, compare, equal_runs, leaves
from bench.report.data.records import BASE
from bench.report.data.reference import COUNTED
from bench.report.data.summary import COUNTS, spent
from bench.report.tables.main import COST_HEADS, HEADS, Table, minutes_and_memory
from bench.report.tables.notes import warning
from bench.store.files import write_text

NAMES = {**HEADS, "trained": "trained"}
COLUMNS = (
    *("row", "score", "seeds_a", "seeds_b", "paired", "a", "a_lo", "a_hi", "b", "b_lo", "b_hi"),
    *("diff", "diff_lo", "diff_hi", "diff_p", "diff_p_holm", "diff_mde", "band_lo", "band_hi", "inside"),
)


def compare_folders(a: Path, b: Path, open_division: bool = False, csv: Path | None = None) -> str:
    """The Markdown text of the comparison; `csv` is written atomically."""
    found = compare(a, b, open_division)
    if csv is not None:
        write_text(csv, found.table[list(COLUMNS)].to_csv(index=False, float_format="%.8g", lineterminator="\n"))
    return markdown(found, a, b)


def markdown(found: Comparison, a: Path, b: Path) -> str:
    """Title, what is compared, the differences, in the open division both ledgers, and the notes."""
    parts = [f"# {found.a.name}: {a} (A) against {b} (B)", *([warning(found.a)] if found.a.nano else [])]
    if found.unequal:
        parts.append(_about_open(found))
    parts += ["## Differences", formatting.markdown(*_differences(found.table))]
    if found.unequal:
        parts += ["## What one run spent", formatting.markdown(*_ledgers(found))]
    parts += ["## Notes", "\n".join(f"- {note}" for note in _notes(found))]
    return "\n\n".join(parts) + "\n"


def _about_open(found: Comparison) -> str:
    told = "\n".join(f"- {text}" for text in leaves(found.unequal))
    return (
        f"**Open division: A and B differ in more than their rows, so no difference is the methods' alone.**\n\n{told}"
    )


# tables -------------------------------------------------------------------------------------------------------
def _differences(table: pd.DataFrame) -> Table:
    digits = {score: _decimals(group) for score, group in table.groupby("score", sort=False)}
    rows = []
    for _, row in table.iterrows():
        places = digits[row["score"]]
        lead = [row["row"], NAMES[row["score"]]]
        if row["row"] == BASE:
            verdict = "equal" if row["paired"] == "equal" else f"differs by {row['diff']:.1e}"
            values = [formatting.number(row[name], places) for name in ("a", "b", "diff")]
            rows.append([*lead, "-", "-", *values, "-", "-", "-", verdict])
            continue
        band = row[["band_lo", "band_hi"]]
        known = not band.isna().any()
        rows.append(
            [
                *(*lead, row["seeds_a"], row["seeds_b"], formatting.number(row["a"], places)),
                *(formatting.number(row["b"], places), formatting.difference_cell(row, "diff", places)),
                *(formatting.p_value(row["diff_p_holm"]), formatting.number(row["diff_mde"], places)),
                f"[{formatting.number(band.iloc[0], places)}, {formatting.number(band.iloc[1], places)}]"
                if known
                else "-",
                "-" if pd.isna(row["inside"]) else ("inside" if row["inside"] else "outside"),
            ]
        )
    return ["Row", "score", "seeds A", "seeds B", "A", "B", "A - B", "p (Holm)", "MDE", "band for A", "verdict"], rows


def _decimals(group: pd.DataFrame) -> int:
    """Decimals of one score, from its differences and the intervals of its means."""
    return max(formatting.decimals(group, name) for name in ("diff", "a", "b"))


def _ledgers(found: Comparison) -> Table:
    rows = []
    for pair in found.pairs:
        for side, runs in zip("AB", pair, strict=True):
            counts = spent(runs)
            rows.append(
                [
                    f"{pair.name}: {side}",
                    *(formatting.count(counts[name]) for name in COUNTS),
                    *minutes_and_memory(runs),
                ]
            )
    return ["Row", *COST_HEADS], rows


# notes --------------------------------------------------------------------------------------------------------
def _notes(found: Comparison) -> list[str]:
    table = found.table
    twins, equal, gap = equal_runs(found.pairs)
    apart = f"; the others' Overall is up to {gap:.2g} apart" if gap == gap else ""
    notes = [
        f"Rows are matched by method, KL policy and the parameters of both: {len(found.pairs)} rows in common.",
        f"{twins} runs have the same row and seed in both; {equal} of them have equal scores bit for bit{apart}.",
        *found.alone,
        *_pairing(table["paired"].tolist()),
        "p is adjusted after Holm over the rows of one score. Bold only where the interval excludes 0 and the "
        "adjusted p is below 0.05. MDE: the smallest true difference that a two-sided 5 % test, not adjusted, finds "
        "with a power of 80 %; smaller ones are not ruled out. n/a: fewer than two seeds on a side.",
        "The base has no seeds: it is equal, or the platforms compute differently.",
    ]
    return [*notes, *_band(table)]


def _pairing(used: Sequence[str]) -> list[str]:
    told = {
        BOTH: "Where both sides have the seeds, differences are paired by seed and prompt over the common seeds.",
        PROMPTS: "Where the seeds are not the same, they count as independent training runs and the prompts are "
        "paired: two-way variance components of both sides, Satterthwaite degrees of freedom, Student's t.",
        NOTHING: "The scored videos are not the same, so that neither seeds nor prompts are paired.",
    }
    return [text for kind, text in told.items() if kind in used]


def _band(table: pd.DataFrame) -> list[str]:
    judged = table[table["inside"].notna() & table["score"].isin(COUNTED)]
    if judged.empty:
        return ["No verdict inside or outside: it is for fresh seeds of the same settings, and A has none."]
    return [
        "Band: where the mean over A's seeds falls with 95 % probability if they reproduce B's runs, mean of B +- "
        "t(m - 1) s sqrt(1/n + 1/m), n seeds in A, m in B, s their standard deviation; shown only where A's seeds are "
        f"fresh. {int(judged['inside'].sum())} of {len(judged)} comparisons (Overall, trained, gold Overall of each "
        "row) are inside; of a true reproduction about 5 % fall outside by chance."
    ]
