"""The output of `bench compare`: the comparison of two folders as Markdown, and its numbers as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report import formatting
from bench.report.data.comparison import (
    BOTH,
    NOTHING,
    PROMPTS,
    Comparison,
    compared_metrics,
    equal_pair,
    equal_runs,
    unequal_texts,
)
from bench.report.data.differences import tested_scores
from bench.report.data.reference import COUNTED
from bench.report.data.selection import BASE
from bench.report.data.summary import COUNTS, spent
from bench.report.legend import legend
from bench.report.tables.main import LEGEND
from bench.report.tables.notes import INTERVAL_NOTE, effect_note, family_note, nano_warning
from bench.report.tables.screen import narrow, wrapped
from bench.report.tables.sections import COST_HEADS, Table, minutes_and_memory
from bench.store.files import write_text

COLUMNS = (
    *("row", "score", "seeds_a", "seeds_b", "paired", "a", "a_lo", "a_hi", "b", "b_lo", "b_hi"),
    *("diff", "diff_lo", "diff_hi", "diff_p", "diff_p_holm", "diff_mde", "band_lo", "band_hi", "inside"),
)


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write the numbers of the comparison, atomically."""
    write_text(path, formatting.csv(comparison.table[list(COLUMNS)]))


def markdown(comparison: Comparison, a: Path, b: Path) -> str:
    """Title, differing settings, differences, the ledgers (in the open division only) and the notes."""
    nano = [nano_warning(comparison.a.name, comparison.a.config)] if comparison.a.nano else []
    parts = [f"# {comparison.a.name}: {a} (A) against {b} (B)", wrapped([*_equality(comparison), *nano])]
    if comparison.unequal:
        parts.append(_open_division(comparison))
    heads, rows = _differences(comparison)
    if rows:
        parts += ["## Differences", narrow((heads, rows), keys=2)]
    if comparison.unequal:
        parts += ["## What one run spent", narrow(_ledgers(comparison))]
    notes = _notes(comparison, bool(rows))
    parts += ["## Notes", wrapped(notes)]
    words = legend("\n".join([*parts]), (), compared_metrics(comparison.a, comparison.b, comparison.unequal).values())
    parts += [f"## {LEGEND}", wrapped(words)]
    return "\n\n".join(parts) + "\n"


def _equality(comparison: Comparison) -> list[str]:
    """How many runs of the same row and seed have equal bits; the sentence that matters for a reproduction."""
    title = comparison.a.metrics[comparison.a.primary].title
    same_seed, equal, gap = equal_runs(comparison.pairs, comparison.a.primary)
    if not same_seed:
        return ["No run of one side has the row and the seed of a run of the other side."]
    apart = f"; {title} of the others differs by up to {gap:.2g}" if gap == gap else ""
    return [f"{equal} of {same_seed} runs with the same row and seed in both have equal bits{apart}."]


def _all_equal(comparison: Comparison) -> set[str]:
    """Names of the rows, and the base, whose scores are equal in both folders for every seed that is compared."""
    names = {pair.name for pair in comparison.pairs if equal_pair(pair)}
    bases = [suite.base for suite in (comparison.a, comparison.b) if suite.base]
    same = len(bases) == 2 and bases[0].record.scores_digest == bases[1].record.scores_digest
    return names | ({BASE} if same else set())


def _open_division(comparison: Comparison) -> str:
    settings = wrapped(unequal_texts(comparison.unequal))
    return (
        "**Open division: A and B differ in settings too, so the differences are not due to the methods alone.**\n\n"
        f"{settings}"
    )


def _differences(comparison: Comparison) -> Table:
    """One line per row and score, without rows that are equal bit for bit."""
    table = comparison.table[~comparison.table["row"].isin(_all_equal(comparison))]
    metrics = compared_metrics(comparison.a, comparison.b, comparison.unequal)
    digits = {score: _decimals(group) for score, group in table.groupby("score", sort=False)}
    names = _row_names(comparison)
    rows = []
    for _, row in table.iterrows():
        decimals = digits[row["score"]]
        lead = [names.get(row["row"], row["row"]), metrics[row["score"]].label]
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
                *(formatting.number(row["b"], decimals), _difference(row, decimals)),
                *_test(row),
                f"[{formatting.number(band.iloc[0], decimals)}, {formatting.number(band.iloc[1], decimals)}]"
                if known
                else "-",
                "-" if pd.isna(row["inside"]) else ("inside" if row["inside"] else "outside"),
            ]
        )
    return ["Row", "score", "seeds A", "seeds B", "A", "B", "A - B", "p (Holm)", "MDE", "band for A", "verdict"], rows


def _row_names(comparison: Comparison) -> dict[str, str]:
    """Name of each pair to what the tables call it: of named rows, each of A once, the label in A alone.

    The notes then have both labels.
    """
    labels = {pair.name: pair.a.row.label for pair in comparison.pairs}
    short = not comparison.by_settings and len(set(labels.values())) == len(labels)
    return labels if short else {name: name for name in labels}


def _difference(row: pd.Series[Any], decimals: int) -> str:
    text = formatting.interval(row, "diff", decimals)
    return formatting.marked(text, is_starred=formatting.is_significant(row, "diff"))


def _test(row: pd.Series[Any]) -> list[str]:
    """p and MDE, or dashes for a score that is not tested."""
    if pd.isna(row["diff_p"]):
        return ["-", "-"]
    return [formatting.p_value(row["diff_p_holm"]), formatting.effect(row["diff_mde"])]


def _decimals(group: pd.DataFrame) -> int:
    """Decimals of one score, from its differences and the intervals of its means."""
    return max(formatting.decimals(group, name) for name in ("diff", "a", "b"))


def _ledgers(comparison: Comparison) -> Table:
    rows, names = [], _row_names(comparison)
    for pair in comparison.pairs:
        for side, runs in zip("AB", pair, strict=True):
            counts = spent(runs)
            rows.append(
                [
                    f"{names[pair.name]}: {side}",
                    *(formatting.count(counts[name]) for name in COUNTS),
                    *minutes_and_memory(runs),
                ]
            )
    return ["Row", *COST_HEADS], rows


def _notes(comparison: Comparison, differing: bool) -> list[str]:
    """The notes; those on differences and bands only if a difference is shown."""
    table, equal = comparison.table, _all_equal(comparison)
    matched = (
        f"Rows are matched by method, KL policy and the parameters of both: {len(comparison.pairs)} rows in common."
    )
    named = f"Rows are paired as the command names them: {', '.join(pair.name for pair in comparison.pairs)}."
    notes = [*comparison.unmatched, matched] if comparison.by_settings else [named]
    if equal:
        order = [BASE, *(pair.name for pair in comparison.pairs)]
        names = ", ".join(name for name in order if name in equal)
        notes.append(f"Equal for every seed, prompt and metric, and not in a table: {names}.")
    if not differing:
        return notes
    shown = table[~table["row"].isin(equal)]
    tests = int(table["diff_p"].notna().sum())
    titles = {name: comparison.a.metrics[name].title for name in tested_scores(comparison.a)}
    known = {name: title for name, title in titles.items() if name in set(table["score"])}
    primary = known.pop(comparison.a.primary, None)
    return [
        *notes,
        *_pairing(shown["paired"].tolist()),
        *family_note(primary, list(known.values()), tests, "of the rows"),
        INTERVAL_NOTE,
        *effect_note(table["diff_mde"], "difference A - B", tests),
        "The base has no seeds: its scores are equal, or the platforms compute differently.",
        *_band(comparison, shown),
    ]


def _pairing(used: Sequence[str]) -> list[str]:
    texts = {
        BOTH: "Where both sides have the same seeds, differences are paired by seed and prompt over the common seeds.",
        PROMPTS: "Where the seeds are not the same, they count as independent training runs, and only the prompts are "
        "paired: two-way variance components of both sides, Satterthwaite degrees of freedom, Student's t.",
        NOTHING: "The scored videos are not the same, so neither seeds nor prompts are paired.",
    }
    return [text for kind, text in texts.items() if kind in used]


def _band(comparison: Comparison, table: pd.DataFrame) -> list[str]:
    scores = [name for name in dict.fromkeys([comparison.a.primary, *COUNTED]) if name in comparison.a.columns]
    verdicts = table[table["inside"].notna() & table["score"].isin(scores)]["inside"]
    if verdicts.empty:
        return ["No verdict inside or outside: it needs new seeds of the same settings, and A has none."]
    labels = ", ".join(comparison.a.metrics[name].title for name in scores)
    return [
        "Band: the mean over A's seeds lies in it with 95 % probability if they reproduce B's runs: mean of B +- "
        "t(m - 1) s sqrt(1/n + 1/m), n seeds in A, m in B, s their standard deviation; only for rows without common "
        f"seeds. {int(verdicts.sum())} of {len(verdicts)} comparisons ({labels} of each row) are inside; in a true "
        "reproduction about 5 % lie outside by chance."
    ]
