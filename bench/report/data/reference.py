"""A suite's numbers beside those of the stored reference runs: does each lie in the band of a reproduction?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from bench.core.hashing import canonical_json
from bench.report import formatting
from bench.report.data.records import (
    STORED,
    SUITE_SPECIFIC,
    RowRuns,
    SuiteRecords,
    incomparable_setting,
    is_nano,
    load_records,
    recorded_settings,
    records_below,
    stored_folder,
)
from bench.report.data.selection import BASE, row_settings
from bench.report.data.statistics import CONFIDENCE
from bench.report.data.summary import summarise
from bench.store.record import RUN, RunRecord
from bench.suite.difference import differences, differing_parts, shortened

#: Columns of the table that are compared, and their names in the table of the page.
SCORES = {
    "overall": "Overall",
    "trained": "trained",
    "gold_overall": "gold Overall",
    "overall_delta": "Overall - base",
}
#: Scores that the verdict counts. Overall - base is left out: it is Overall, shifted by the base.
COUNTED = ("overall", "trained", "gold_overall")
#: Scores this close to the band count as inside: sums in another order differ in their last bits.
ROUNDING = 1e-9


def prediction_band(stored: npt.ArrayLike, n: int) -> tuple[float, float]:
    """Band in which the mean over n new seeds lies with 95 % probability if the runs reproduce the m stored ones.

    `stored[seed]` are means over the prompts, in score units. Prompts, evaluation noise and base are the same on both
    sides, so only the training seeds vary: `y[s] = mu + a[s]`, `a ~ N(0, sigma^2)`, with the same mu and sigma on both
    sides. Then mean(new) - mean(stored) has the variance `sigma^2 (1/n + 1/m)`. With sigma^2 replaced by `s^2`, the
    variance (ddof 1) over the stored seeds, the ratio follows Student's t with m - 1 degrees of freedom:

        mean(stored) +- t[m - 1, .975] s sqrt(1/n + 1/m)

    This is not a confidence interval of mu: it contains the noise of both sides. For seeds that are equal on both
    sides it is too wide. Returns the lower and the upper limit; NaN with fewer than two stored seeds or n = 0.
    """
    y = np.asarray(stored, dtype=np.float64)
    m = len(y)
    if m < 2 or n < 1:
        return math.nan, math.nan
    half = float(stdtrit(m - 1, (1 + CONFIDENCE) / 2)) * float(y.std(ddof=1)) * math.sqrt(1 / n + 1 / m)
    return float(y.mean()) - half, float(y.mean()) + half


class Reference(NamedTuple):
    """The stored runs beside which a suite is shown."""

    folder: Path
    """Folder of the stored suite's records; it may not exist."""
    runs: SuiteRecords | None = None
    """The stored runs, with the suite's own labels; None if there are none."""
    note: str | None = None
    """Why there are none, if stored runs with nearly the same settings exist."""


def find_reference(suite: SuiteRecords, folder: Path, reference: Path | None = None) -> Reference:
    """The stored runs with the settings of the suite whose records are in `folder`.

    `reference` names the folder of the stored runs. Without it, the project's stored suites are searched: that of the
    same name comes first, then of those with the suite's settings the one with the most equal rows. A stored suite
    itself has no reference.
    """
    named = stored_folder(suite.name, reference, folder)
    if folder.resolve().is_relative_to(STORED.resolve()) or named.resolve() == folder.resolve():
        return Reference(named)
    own = next((run.record for run in suite.runs), None)
    if reference is not None or own is None:
        return Reference(named, _stored_runs(suite, named))
    stored = {path: _differing(own, records[0][1]) for path, records in _stored_suites(suite.nano)}
    fitting = [path for path, differing in stored.items() if not differing]
    if named in fitting or (named in stored and not fitting):
        return Reference(named, _stored_runs(suite, named))
    if fitting:
        best = max(fitting, key=lambda path: len(_equal_rows(suite, path)))
        return Reference(best, _stored_runs(suite, best))
    if not stored:
        return Reference(named)
    nearest = min(stored, key=lambda path: len(stored[path]))
    setting, values = next(iter(stored[nearest].items()))
    here, there = map(shortened, differing_parts(*values))
    name = nearest.relative_to(STORED).as_posix()
    note = f"No stored reference has these settings: the nearest, {name}, differs in {setting}: {there}, here {here}."
    return Reference(named, note=note)


def _stored_suites(nano: bool) -> Iterator[tuple[Path, list[tuple[Path, RunRecord]]]]:
    """Folder and records of each of the project's stored suites, of the miniature model or of others."""
    folders = sorted([*STORED.glob(f"*/*/{RUN}"), *STORED.glob(f"*/*/*/{RUN}")])
    for folder in dict.fromkeys(path.parent.parent for path in folders if not path.parent.name.startswith("seed-")):
        records = records_below(folder)
        if is_nano(records[0][1].suite, records[0][1].config) == nano:
            yield folder, records


def _differing(own: RunRecord, stored: RunRecord) -> dict[str, tuple[Any, Any]]:
    """Name to the two values of each setting in which the records of two suites differ, such as their budgets."""
    pairs = differences(recorded_settings(own), recorded_settings(stored))
    return {name: pair for name, pair in pairs.items() if name not in SUITE_SPECIFIC}


def _equal_rows(suite: SuiteRecords, folder: Path) -> dict[str, str]:
    """Label of each row of the suite to that of the stored row with the same method, KL policy and parameters."""
    stored = {
        canonical_json(row_settings(record)): record.row
        for _, record in records_below(folder)
        if record.seed is not None and record.status == "finished"
    }
    own = {
        runs.row.label: canonical_json(row_settings(runs.finished[0].record)) for runs in suite.rows if runs.finished
    }
    return {label: stored[settings] for label, settings in own.items() if settings in stored}


def _stored_runs(suite: SuiteRecords, folder: Path) -> SuiteRecords | None:
    """The stored runs of the suite's rows under its own labels; a row without an equal one gets that of its label."""
    if not any(folder.rglob(RUN)):
        return None
    equal = _equal_rows(suite, folder)
    labels = {runs.row: equal.get(runs.row.label, runs.row.label) for runs in suite.rows}
    stored = load_records(folder, [row._replace(label=label) for row, label in labels.items()])
    by_label = {runs.row.label: runs for runs in stored.rows}
    rows = [replace(by_label[label], row=row) for row, label in labels.items()]
    return replace(stored, rows=rows)


def add_reference(table: pd.DataFrame, suite: SuiteRecords, stored: SuiteRecords | None) -> pd.DataFrame:
    """Append the numbers of the stored runs, matched on the row; empty where there is nothing to compare.

    `reference_n_seeds`, `reference_overall(_lo, _hi)`, the means `reference_<score>` of the other `SCORES`, and for
    each score `reference_<score>_band_lo`, `_band_hi` (see `prediction_band`) and `_inside` (True or False).
    """
    names = ["n_seeds", "overall", "overall_lo", "overall_hi", *list(SCORES)[1:]]
    known = summarise(stored) if stored else table.iloc[:0]
    table = table.join(known.set_index("row")[names].add_prefix("reference_"), on="row")
    comparable = _comparable_rows(suite, stored)
    for name in SCORES:
        bands = [_band(comparable.get(row["row"]), stored, name, row["n_seeds"]) for _, row in table.iterrows()]
        table[f"reference_{name}_band_lo"] = [lo for lo, _ in bands]
        table[f"reference_{name}_band_hi"] = [hi for _, hi in bands]
        verdicts = [inside_band(value, *band) for value, band in zip(table[name], bands, strict=True)]
        table[f"reference_{name}_inside"] = pd.array(verdicts, dtype="boolean")
    return table


def _comparable_rows(suite: SuiteRecords, stored: SuiteRecords | None) -> dict[str, RowRuns]:
    """Label to stored runs of each row whose settings are the same on both sides; empty if the suites differ."""
    if stored is None or incomparable_setting(suite, stored) is not None:
        return {}
    differing = set(_differing_rows(suite, stored))
    return {runs.row.label: runs for runs in stored.rows if runs.finished and runs.row.label not in differing}


def _differing_rows(suite: SuiteRecords, stored: SuiteRecords) -> list[str]:
    """Labels of the rows whose method, KL policy or parameters differ between the two sides."""
    settings, stored_settings = (
        {runs.row.label: canonical_json(row_settings(runs.finished[0].record)) for runs in one.rows if runs.finished}
        for one in (suite, stored)
    )
    return [label for label in settings.keys() & stored_settings.keys() if settings[label] != stored_settings[label]]


def _band(runs: RowRuns | None, stored: SuiteRecords | None, name: str, n: int) -> tuple[float, float]:
    """The band of one score for a mean over n seeds; NaN if there is none."""
    column = name.removesuffix("_delta")
    x = runs.matrix(column) if runs else None
    base = stored.base if stored else None
    if x is None or (name != column and base is None):
        return math.nan, math.nan
    shift = 0.0 if base is None or name == column else float(base.cells[column].mean())
    return prediction_band(x.mean(1) - shift, int(n))


def inside_band(value: float, lo: float, hi: float) -> bool | None:
    """Whether the value is in the band; None if one of them is unknown."""
    return None if math.isnan(value) or math.isnan(lo) else lo - ROUNDING <= value <= hi + ROUNDING


def reference_section(
    suite: SuiteRecords, table: pd.DataFrame, stored: SuiteRecords
) -> tuple[list[str], list[list[str]]]:
    """Head and lines, one line per row and score; without band and verdict if the two suites do not compare."""
    comparable = incomparable_setting(suite, stored) is None
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
            if comparable:
                line.append("-" if base else _band_text(row, name, digits[name]))
                line.append(_base_verdict(suite, stored, name) if base else _verdict(row, name))
            lines.append(line)
    head = ["Row", "score", "seeds here", "seeds stored", "here", "reference"]
    return [*head, *(["band for the seeds here", "verdict"] if comparable else [])], lines


def _seeds(row: pd.Series[Any]) -> list[str]:
    return [formatting.count(row["n_seeds"]), formatting.count(row["reference_n_seeds"])]


def _band_text(row: pd.Series[Any], name: str, digits: int) -> str:
    lo, hi = row[f"reference_{name}_band_lo"], row[f"reference_{name}_band_hi"]
    return formatting.MISSING if pd.isna(lo) else f"[{formatting.number(lo, digits)}, {formatting.number(hi, digits)}]"


def _verdict(row: pd.Series[Any], name: str) -> str:
    inside = row[f"reference_{name}_inside"]
    return formatting.MISSING if pd.isna(inside) else ("inside" if inside else "outside")


def _base_verdict(suite: SuiteRecords, stored: SuiteRecords, name: str) -> str:
    """Verdict on the base, which has no seeds: equal scores for every prompt, or the difference of the means."""
    if suite.base is None or stored.base is None or name not in suite.base.cells:
        return formatting.MISSING
    own, reference = (one.base.cells[name].to_numpy() for one in (suite, stored) if one.base)
    return "equal" if np.array_equal(own, reference) else f"differs by {own.mean() - reference.mean():.1e}"


def reference_notes(suite: SuiteRecords, table: pd.DataFrame, stored: SuiteRecords) -> list[str]:
    """Notes on the reference, its bands, the runs with equal seeds, and the number of scores inside their band."""
    seeds, setting = ", ".join(map(str, stored.seeds)), incomparable_setting(suite, stored)
    if setting is not None:
        return [f"Stored reference: our own runs, seeds {seeds}, made with ANOTHER {setting}: do not compare."]
    notes = [
        f"Stored reference: our own runs with the same budget and prompts, seeds {seeds}.",
        "Band: the mean over as many new seeds lies in it with 95 % probability if the runs reproduce the reference: "
        "mean +- t(m - 1) s sqrt(1/n + 1/m), n seeds here, m stored, s their standard deviation. Prompts and "
        "evaluation noise are the same in both; for seeds that are equal in both the band is too wide. n/a: fewer "
        "than two stored seeds, or no such row. The base has no seeds: its scores are equal, or the platforms "
        "compute differently.",
    ]
    if labels := sorted(_differing_rows(suite, stored)):
        notes.append(
            f"Not compared, because their parameters differ from those of the reference: {', '.join(labels)}."
        )
    return [*notes, *_same_runs(suite, stored), _conclusion(table)]


def _same_runs(suite: SuiteRecords, stored: SuiteRecords) -> list[str]:
    """How many runs of the same row and seed have exactly equal scores, and the largest gap of the others."""
    reference = {
        (label, run.record.seed): run
        for label, runs in _comparable_rows(suite, stored).items()
        for run in runs.finished
    }
    pairs = [
        (run, reference[key])
        for runs in suite.rows
        for run in runs.finished
        if (key := (runs.row.label, run.record.seed)) in reference
    ]
    if not pairs:
        return []
    differ = [(a, b) for a, b in pairs if a.record.scores_digest != b.record.scores_digest]
    gaps = [abs(a.cells["overall"].mean() - b.cells["overall"].mean()) for a, b in differ if "overall" in a.cells]
    apart = f"; Overall of the others differs by up to {max(gaps):.2g}" if gaps else ""
    return [
        f"Of the {len(pairs)} runs whose row and seed are also in the reference, {len(pairs) - len(differ)} have "
        f"exactly equal scores{apart}. Equal seeds on the same platform give equal numbers; the band is for new seeds."
    ]


def _conclusion(table: pd.DataFrame) -> str:
    inside = pd.concat([table[f"reference_{name}_inside"] for name in COUNTED]).dropna()
    if inside.empty:
        return "No comparison with the reference has a band."
    return (
        f"{int(inside.sum())} of {len(inside)} comparisons (Overall, trained, gold Overall of each row) are inside "
        "their band. In a true reproduction about 5 % lie outside by chance; the scores of one row are correlated."
    )
