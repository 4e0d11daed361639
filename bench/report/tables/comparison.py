"""The output of `bench compare`: the comparison of two folders as Markdown, and its numbers as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.report import formatting
from bench.report.data.comparison import BOTH, NOTHING, PROMPTS, Comparison, equal_runs, unequal_texts
from bench.report.data.reference import COUNTED
from bench.report.data.selection import BASE
from bench.report.data.summary import COUNTS, spent
from bench.report.tables.main import COST_HEADS, HEADS, Table, minutes_and_memory
from bench.report.tables.notes import nano_warning
from bench.store.files import write_text

NAMES = {**HEADS, "trained": "trained"}
COLUMNS = (
    *("row", "score", "seeds_a", "seeds_b", "paired", "a", "a_lo", "a_hi", "b", "b_lo", "b_hi"),
    *("diff", "diff_lo", "diff_hi", "diff_p", "diff_p_holm", "diff_mde", "band_lo", "band_hi", "inside"),
)


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write the numbers of the comparison, atomically."""
    write_text(path, comparison.table[list(COLUMNS)].to_csv(index=False, float_format="%.8g", lineterminator="\n"))


def markdown(comparison: Comparison, a: Path, b: Path) -> str:
    """Title, differing settings, differences, the ledgers (in the open division only) and the notes."""
    nano = [nano_warning(comparison.a.name)] if comparison.a.nano else []
    parts = [f"# {comparison.a.name}: {a} (A) against {b} (B)", *nano]
    if comparison.unequal:
        parts.append(_open_division(comparison))
    parts += ["## Differences", formatting.markdown(*_differences(comparison.table))]
    if comparison.unequal:
        parts += ["## What one run spent", formatting.markdown(*_ledgers(comparison))]
    parts += ["## Notes", "\n".join(f"- {note}" for note in _notes(comparison))]
    return "\n\n".join(parts) + "\n"


def _open_division(comparison: Comparison) -> str:
    settings = "\n".join(f"- {text}" for text in unequal_texts(comparison.unequal))
    return (
        "**Open division: A and B differ in settings too, so the differences are not due to the methods alone.**\n\n"
        f"{settings}"
    )


def _differences(table: pd.DataFrame) -> Table:
    digits = {score: _decimals(group) for score, group in table.groupby("score", sort=False)}
    rows = []
    for _, row in table.iterrows():
        decimals = digits[row["score"]]
        lead = [row["row"], NAMES[row["score"]]]
        if row["row"] == BASE:
            verdict = "equal" if row["paired"] == "equal" else f"differs by {row['diff']:.1e}"
            values = [formatting.number(row[name], decimals) for name in ("a", "b", "diff")]
            rows.append([*lead, "-", "-", *values, "-", "-", "-", verdict])
            continue
        band = row[["band_lo", "band_hi"]]
        known = not band.isna().any()
        rows.append(
            [
                *(*lead, row["seeds_a"], row["seeds_b"], formatting.number(row["a"], decimals)),
                *(formatting.number(row["b"], decimals), formatting.difference_cell(row, "diff", decimals)),
                *(formatting.p_value(row["diff_p_holm"]), formatting.number(row["diff_mde"], decimals)),
                f"[{formatting.number(band.iloc[0], decimals)}, {formatting.number(band.iloc[1], decimals)}]"
                if known
                else "-",
                "-" if pd.isna(row["inside"]) else ("inside" if row["inside"] else "outside"),
            ]
        )
    return ["Row", "score", "seeds A", "seeds B", "A", "B", "A - B", "p (Holm)", "MDE", "band for A", "verdict"], rows


def _decimals(group: pd.DataFrame) -> int:
    """Decimals of one score, from its differences and the intervals of its means."""
    return max(formatting.decimals(group, name) for name in ("diff", "a", "b"))


def _ledgers(comparison: Comparison) -> Table:
    rows = []
    for pair in comparison.pairs:
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


def _notes(comparison: Comparison) -> list[str]:
    table = comparison.table
    same_seed, equal, gap = equal_runs(comparison.pairs)
    apart = f"; Overall of the others differs by up to {gap:.2g}" if gap == gap else ""
    notes = [
        f"Rows are matched by method, KL policy and the parameters of both: {len(comparison.pairs)} rows in common.",
        f"{same_seed} runs have the same row and seed in both; {equal} of them have bitwise equal scores{apart}.",
        *comparison.unmatched,
        *_pairing(table["paired"].tolist()),
        "p is adjusted after Holm over the rows of one score. Bold only where the interval excludes 0 and the "
        "adjusted p is below 0.05. MDE: the smallest true difference that a two-sided 5 % test, not adjusted, detects "
        "with a power of 80 %; smaller ones are not ruled out. n/a: fewer than two seeds on a side.",
        "The base has no seeds: its scores are equal, or the platforms compute differently.",
    ]
    return [*notes, *_band(table)]


def _pairing(used: Sequence[str]) -> list[str]:
    texts = {
        BOTH: "Where both sides have the same seeds, differences are paired by seed and prompt over the common seeds.",
        PROMPTS: "Where the seeds are not the same, they count as independent training runs, and only the prompts are "
        "paired: two-way variance components of both sides, Satterthwaite degrees of freedom, Student's t.",
        NOTHING: "The scored videos are not the same, so neither seeds nor prompts are paired.",
    }
    return [text for kind, text in texts.items() if kind in used]


def _band(table: pd.DataFrame) -> list[str]:
    verdicts = table[table["inside"].notna() & table["score"].isin(COUNTED)]["inside"]
    if verdicts.empty:
        return ["No verdict inside or outside: it needs new seeds of the same settings, and A has none."]
    return [
        "Band: the mean over A's seeds lies in it with 95 % probability if they reproduce B's runs: mean of B +- "
        "t(m - 1) s sqrt(1/n + 1/m), n seeds in A, m in B, s their standard deviation; only for rows without common "
        f"seeds. {int(verdicts.sum())} of {len(verdicts)} comparisons (Overall, trained, gold Overall of each row) "
        "are inside; in a true reproduction about 5 % lie outside by chance."
    ]
