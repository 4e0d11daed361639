"""A user's numbers beside the stored reference runs: does each fall where a reproduction of them should?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from bench.core.hashing import canonical_json
from bench.report import formatting
from bench.report.data.records import BASE, RowRuns, Suite, _incomparable, row_settings
from bench.report.data.statistics import CONFIDENCE
from bench.report.data.summary import summarise

#: Columns of the table that are compared, and their names in the text.
SCORES = {
    "overall": "Overall",
    "trained": "trained",
    "gold_overall": "gold Overall",
    "overall_delta": "Overall - base",
}
#: Those that the verdict counts: a difference to the base is its score once more, shifted by the base.
COUNTED = ("overall", "trained", "gold_overall")
#: Scores whose distance to the band is below this are inside: sums in another order differ in their last bits.
ROUNDING = 1e-9


def prediction_band(stored: npt.ArrayLike, n: int) -> tuple[float, float]:
    """Where the mean over n fresh seeds falls with 95 % probability if it reproduces the m stored ones.

    `stored[seed]` are means over the prompts, unit of the score. Prompts, evaluation noise and base are the same here
    and there, so only the training seeds vary: `y[s] = mu + a[s]`, `a ~ N(0, sigma^2)`, the same mu and sigma on both
    sides. Then mean(here) - mean(stored) has variance `sigma^2 (1/n + 1/m)`, and with `s^2`, the variance (ddof 1)
    over the stored seeds, in the place of sigma^2 it follows Student's t with m - 1 degrees of freedom:

        mean(stored) +- t[m - 1, .975] s sqrt(1/n + 1/m)

    This is no interval of mu: it covers the noise of both sides. Equal seeds in both would need less. nan with fewer
    than two stored seeds or no seed here.
    """
    y = np.asarray(stored, dtype=np.float64)
    m = len(y)
    if m < 2 or n < 1:
        return math.nan, math.nan
    half = float(stdtrit(m - 1, (1 + CONFIDENCE) / 2)) * float(y.std(ddof=1)) * math.sqrt(1 / n + 1 / m)
    return float(y.mean()) - half, float(y.mean()) + half


def add_reference(table: pd.DataFrame, suite: Suite, stored: Suite | None) -> pd.DataFrame:
    """Append the stored runs' numbers, matched on the row; empty where there is nothing to compare.

    `reference_n_seeds`, `reference_overall(_lo, _hi)`, the means `reference_<score>` of the other `SCORES`, and for
    each score `reference_<score>_band_lo`, `_band_hi` (see `prediction_band`) and `_inside` (True or False).
    """
    names = ["n_seeds", "overall", "overall_lo", "overall_hi", *list(SCORES)[1:]]
    known = summarise(stored) if stored else table.iloc[:0]
    table = table.join(known.set_index("row")[names].add_prefix("reference_"), on="row")
    comparable = _comparable(suite, stored)
    for name in SCORES:
        bands = [_band(comparable.get(row["row"]), stored, name, row["n_seeds"]) for _, row in table.iterrows()]
        table[f"reference_{name}_band_lo"] = [lo for lo, _ in bands]
        table[f"reference_{name}_band_hi"] = [hi for _, hi in bands]
        verdicts = [inside_band(value, *band) for value, band in zip(table[name], bands, strict=True)]
        table[f"reference_{name}_inside"] = pd.array(verdicts, dtype="boolean")
    return table


def _comparable(suite: Suite, stored: Suite | None) -> dict[str, RowRuns]:
    """Label to the stored runs of each row that both sides have, with the same settings."""
    if stored is None or _incomparable(suite, stored) is not None:
        return {}
    other = set(_other_settings(suite, stored))
    return {runs.row.label: runs for runs in stored.rows if runs.finished and runs.row.label not in other}


def _other_settings(suite: Suite, stored: Suite) -> list[str]:
    """Labels of the rows that have other parameters of the method or of its KL policy there than here."""
    there = {runs.row.label: runs.finished[0].record for runs in stored.rows if runs.finished}
    here = {runs.row.label: runs.finished[0].record for runs in suite.rows if runs.finished}
    return [
        label
        for label in here.keys() & there.keys()
        if canonical_json(row_settings(here[label])) != canonical_json(row_settings(there[label]))
    ]


def _band(runs: RowRuns | None, stored: Suite | None, name: str, n: int) -> tuple[float, float]:
    """The band of one score for a mean over n seeds; nan where there is none."""
    column = name.removesuffix("_delta")
    x = runs.matrix(column) if runs else None
    base = stored.base if stored else None
    if x is None or (name != column and base is None):
        return math.nan, math.nan
    against = 0.0 if base is None or name == column else float(base.cells[column].mean())
    return prediction_band(x.mean(1) - against, int(n))


def inside_band(value: float, lo: float, hi: float) -> bool | None:
    """Whether the value is in the band; None where either is unknown."""
    return None if math.isnan(value) or math.isnan(lo) else lo - ROUNDING <= value <= hi + ROUNDING


# the section --------------------------------------------------------------------------------------------------
def reference_section(suite: Suite, table: pd.DataFrame, stored: Suite) -> tuple[list[str], list[list[str]]]:
    """Head and lines: one line per row and score; no band and no verdict where the two do not compare at all."""
    judged = _incomparable(suite, stored) is None
    names = [name for name in SCORES if table[name].notna().any() or table[f"reference_{name}"].notna().any()]
    digits = {name: max(formatting.decimals(table, of) for of in (name, f"reference_{name}_band")) for name in names}
    lines = []
    for _, row in table.iterrows():
        base = row["method"] == BASE
        for name in names[:-1] if base and names[-1] == "overall_delta" else names:
            line = [str(row["row"]), SCORES[name], *(["-", "-"] if base else _seeds(row))]
            line += [
                formatting.number(row[name], digits[name]),
                formatting.number(row[f"reference_{name}"], digits[name]),
            ]
            if judged:
                line.append("-" if base else _band_text(row, name, digits[name]))
                line.append(_base_verdict(suite, stored, name) if base else _verdict(row, name))
            lines.append(line)
    head = ["Row", "score", "seeds here", "seeds stored", "here", "reference"]
    return [*head, *(["band for the seeds here", "verdict"] if judged else [])], lines


def _seeds(row: pd.Series[Any]) -> list[str]:
    return [formatting.count(row["n_seeds"]), formatting.count(row["reference_n_seeds"])]


def _band_text(row: pd.Series[Any], name: str, digits: int) -> str:
    lo, hi = row[f"reference_{name}_band_lo"], row[f"reference_{name}_band_hi"]
    return formatting.MISSING if pd.isna(lo) else f"[{formatting.number(lo, digits)}, {formatting.number(hi, digits)}]"


def _verdict(row: pd.Series[Any], name: str) -> str:
    inside = row[f"reference_{name}_inside"]
    return formatting.MISSING if pd.isna(inside) else ("inside" if inside else "outside")


def _base_verdict(suite: Suite, stored: Suite, name: str) -> str:
    """The base has no randomness: each prompt's score is equal, or the arithmetic of the platforms differs."""
    if suite.base is None or stored.base is None or name not in suite.base.cells:
        return formatting.MISSING
    here, there = (one.base.cells[name].to_numpy() for one in (suite, stored) if one.base)
    return "equal" if np.array_equal(here, there) else f"differs by {here.mean() - there.mean():.1e}"


# the notes ----------------------------------------------------------------------------------------------------
def reference_notes(suite: Suite, table: pd.DataFrame, stored: Suite) -> list[str]:
    """What the reference is, what its bands mean, how many runs are the same ones, and the verdict."""
    seeds, other = ", ".join(map(str, stored.seeds)), _incomparable(suite, stored)
    if other is not None:
        return [f"Stored reference: our own runs, seeds {seeds}, made with ANOTHER {other}: do not compare."]
    notes = [
        f"Stored reference: our own runs with the same budget and prompts, seeds {seeds}.",
        "Band: where the mean over that many fresh seeds falls with 95 % probability if it reproduces the reference, "
        "wide where seeds are equal in both: "
        "mean +- t(m - 1) s sqrt(1/n + 1/m), n seeds here, m stored, s their standard deviation; prompts and "
        "evaluation noise are the same in both. n/a: fewer than two stored seeds, or no such row. The base has no "
        "seeds: it is equal, or the platforms compute differently.",
    ]
    if labels := sorted(_other_settings(suite, stored)):
        notes.append(f"Not compared, since their parameters here are not those of the reference: {', '.join(labels)}.")
    return [*notes, *_same_runs(suite, stored), _conclusion(table)]


def _same_runs(suite: Suite, stored: Suite) -> list[str]:
    """How many runs of the same row and seed have exactly the same scores; how far the others are apart."""
    there = {
        (label, run.record.seed): run for label, runs in _comparable(suite, stored).items() for run in runs.finished
    }
    pairs = [
        (run, there[key])
        for runs in suite.rows
        for run in runs.finished
        if (key := (runs.row.label, run.record.seed)) in there
    ]
    if not pairs:
        return []
    differ = [(a, b) for a, b in pairs if a.record.scores_digest != b.record.scores_digest]
    gaps = [abs(a.cells["overall"].mean() - b.cells["overall"].mean()) for a, b in differ if "overall" in a.cells]
    apart = f", the others' Overall is up to {max(gaps):.2g} apart" if gaps else ""
    return [
        f"Of the {len(pairs)} runs whose row and seed the reference has too, {len(pairs) - len(differ)} have exactly "
        f"equal scores{apart}. Equal seeds on the same platform give equal numbers; the band is meant for fresh ones."
    ]


def _conclusion(table: pd.DataFrame) -> str:
    inside = pd.concat([table[f"reference_{name}_inside"] for name in COUNTED]).dropna()
    if inside.empty:
        return "No comparison with the reference has a band."
    return (
        f"{int(inside.sum())} of {len(inside)} comparisons (Overall, trained, gold Overall of each row) are inside "
        "their band. Of a true reproduction about 5 % fall outside by chance; the scores of one row rise and fall "
        "together."
    )
