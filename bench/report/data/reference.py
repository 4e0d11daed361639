"""A suite's numbers beside those of the stored reference runs: does each lie in the band of a reproduction?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from bench.report import formatting
from bench.report.data.comparable import incomparable_setting
from bench.report.data.differences import tested_differences
from bench.report.data.metrics import REWARD
from bench.report.data.records import RowRuns, Run, SuiteRecords
from bench.report.data.selection import BASE, settings_key
from bench.report.data.statistics import CONFIDENCE, LEAST_SEEDS
from bench.report.data.summary import summarise

#: Scores that the verdict counts, if the suite has them. Differences to the base are left out: they are the score,
#: shifted by the base.
COUNTED = ("overall", REWARD, "gold_overall")
#: Scores this close to the band count as inside: sums in another order differ in their last bits.
ROUNDING = 1e-9
#: Verdict on a row of which all seeds have exactly the reference's scores.
EQUAL = "equal bits"
#: Head of the column with half the width of the band over the stored gain.
BAND_SHARE = "band ± of the gain"


def compared_scores(suite: SuiteRecords) -> dict[str, str]:
    """Columns of the table that are compared with the reference, and their labels; the last is a difference."""
    labels = {name: metric.title for name, metric in suite.metrics.items()}
    names = list(dict.fromkeys([suite.primary, *(name for name in COUNTED if name in labels)]))
    return {name: labels.get(name, name) for name in names} | {
        f"{suite.primary}_delta": f"{labels.get(suite.primary, suite.primary)} - base"
    }


def prediction_band(stored: npt.ArrayLike, n: int) -> tuple[float, float]:
    """Band in which the mean over n new seeds lies with 95 % probability if the runs reproduce the m stored ones.

    `stored[seed]` are means over the prompts, in score units. Prompts, evaluation noise and base are the same on both
    sides, so only the training seeds vary: `y[s] = mu + a[s]`, `a ~ N(0, sigma^2)`, with the same mu and sigma on both
    sides. Then mean(new) - mean(stored) has the variance `sigma^2 (1/n + 1/m)`. With sigma^2 replaced by `s^2`, the
    variance (ddof 1) over the stored seeds, the ratio follows Student's t with m - 1 degrees of freedom:

        mean(stored) +- t[m - 1, .975] s sqrt(1/n + 1/m)

    This is not a confidence interval of mu: it contains the noise of both sides. For seeds that are equal on both
    sides it is too wide. Returns the lower and the upper limit; NaN with fewer than three stored seeds or n = 0.
    """
    y = np.asarray(stored, dtype=np.float64)
    m = len(y)
    if m < LEAST_SEEDS or n < 1:
        return math.nan, math.nan
    half = float(stdtrit(m - 1, (1 + CONFIDENCE) / 2)) * float(y.std(ddof=1)) * math.sqrt(1 / n + 1 / m)
    return float(y.mean()) - half, float(y.mean()) + half


def add_reference(table: pd.DataFrame, suite: SuiteRecords, stored: SuiteRecords | None) -> pd.DataFrame:
    """Append the numbers of the stored runs, matched on the row; empty where there is nothing to compare.

    `reference_n_seeds`, `reference_<primary>(_lo, _hi)`, the means of the other `compared_scores`, and for each score
    `reference_<score>_band_lo`, `_band_hi` (see `prediction_band`) and `_inside` (True or False).
    """
    scores = list(compared_scores(suite))
    names = ["n_seeds", scores[0], f"{scores[0]}_lo", f"{scores[0]}_hi", *scores[1:]]
    known = (summarise(stored, tested_differences(stored)) if stored else table.iloc[:0]).reindex(
        columns=["row", *names]
    )
    table = table.join(known.set_index("row")[names].add_prefix("reference_"), on="row")
    comparable = comparable_rows(suite, stored)
    for name in scores:
        bands = [_band(comparable.get(row["row"]), stored, name, row["n_seeds"]) for _, row in table.iterrows()]
        table[f"reference_{name}_band_lo"] = [lo for lo, _ in bands]
        table[f"reference_{name}_band_hi"] = [hi for _, hi in bands]
        verdicts = [inside_band(value, *band) for value, band in zip(table[name], bands, strict=True)]
        table[f"reference_{name}_inside"] = pd.array(verdicts, dtype="boolean")
    return table


def comparable_rows(suite: SuiteRecords, stored: SuiteRecords | None) -> dict[str, RowRuns]:
    """Label to stored runs of each row whose settings are the same on both sides; empty if the suites differ."""
    if stored is None or incomparable_setting(suite, stored) is not None:
        return {}
    differing = set(_differing_rows(suite, stored))
    return {runs.row.label: runs for runs in stored.rows if runs.finished and runs.row.label not in differing}


def _differing_rows(suite: SuiteRecords, stored: SuiteRecords) -> list[str]:
    """Labels of the rows whose method, KL policy or parameters differ between the two sides."""
    settings, stored_settings = (
        {runs.row.label: settings_key(runs.finished[0].record) for runs in one.rows if runs.finished}
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
    comparable, equal = incomparable_setting(suite, stored) is None, equal_rows(suite, stored)
    labels = compared_scores(suite)
    names = [name for name in labels if table[name].notna().any() or table[f"reference_{name}"].notna().any()]
    digits = {name: max(formatting.decimals(table, of) for of in (name, f"reference_{name}_band")) for name in names}
    lines = []
    for _, row in table.iterrows():
        base = row["method"] == BASE
        for name in names[:-1] if base and names[-1].endswith("_delta") else names:
            line = [formatting.row_name(row), labels[name], *(["-", "-"] if base else _seeds(row))]
            line += [
                formatting.number(row[name], digits[name]),
                formatting.number(row[f"reference_{name}"], digits[name]),
            ]
            if comparable:
                line += ["-", "-"] if base else [_band_text(row, name, digits[name]), _share_text(row, name, stored)]
                line.append(_base_verdict(suite, stored, name) if base else _verdict(row, name, equal))
            lines.append(line)
    head = ["Row", "score", "seeds here", "seeds stored", "here", "reference"]
    return [*head, *(["band for the seeds here", BAND_SHARE, "verdict"] if comparable else [])], lines


def _seeds(row: pd.Series[Any]) -> list[str]:
    return [formatting.count(row["n_seeds"]), formatting.count(row["reference_n_seeds"])]


def _band_text(row: pd.Series[Any], name: str, digits: int) -> str:
    lo, hi = row[f"reference_{name}_band_lo"], row[f"reference_{name}_band_hi"]
    return formatting.MISSING if pd.isna(lo) else f"[{formatting.number(lo, digits)}, {formatting.number(hi, digits)}]"


def band_share(row: pd.Series[Any], name: str, stored: SuiteRecords) -> float:
    """Half the width of a row's band over its stored gain, the stored score less that of the base; NaN if unknown.

    From 1 on, a row that learns nothing is inside as well.
    """
    score = name.removesuffix("_delta")
    if stored.base is None or score not in stored.base.cells:
        return math.nan
    gain = float(row[f"reference_{name}"]) - (0.0 if name != score else float(stored.base.cells[score].mean()))
    half = float(row[f"reference_{name}_band_hi"] - row[f"reference_{name}_band_lo"]) / 2
    return half / abs(gain) if gain else math.nan


def _share_text(row: pd.Series[Any], name: str, stored: SuiteRecords) -> str:
    share = band_share(row, name, stored)
    return formatting.MISSING if math.isnan(share) else f"{100 * share:.0f} %"


def _verdict(row: pd.Series[Any], name: str, equal: set[str]) -> str:
    if row["row"] in equal:
        return EQUAL
    inside = row[f"reference_{name}_inside"]
    return formatting.MISSING if pd.isna(inside) else ("inside" if inside else "outside")


def pairs_of_equal_seeds(suite: SuiteRecords, stored: SuiteRecords) -> list[tuple[Run, Run]]:
    """Our run and the stored one for each row and seed that both have with the same settings, then the two bases."""
    reference = {
        (label, run.record.seed): run
        for label, runs in comparable_rows(suite, stored).items()
        for run in runs.finished
    }
    trained = [
        (run, reference[key])
        for runs in suite.rows
        for run in runs.finished
        if (key := (runs.row.label, run.record.seed)) in reference
    ]
    return trained + ([(suite.base, stored.base)] if trained and suite.base and stored.base else [])


def is_equal(pair: tuple[Run, Run]) -> bool:
    """Whether two runs have the same scores, bit for bit."""
    return pair[0].record.scores_digest == pair[1].record.scores_digest


def equal_rows(suite: SuiteRecords, stored: SuiteRecords) -> set[str]:
    """Labels of the rows of which every finished run is in the reference with equal scores."""
    equal = {
        (pair[0].record.row, pair[0].record.seed) for pair in pairs_of_equal_seeds(suite, stored) if is_equal(pair)
    }
    return {
        runs.row.label
        for runs in suite.rows
        if runs.finished and all((run.record.row, run.record.seed) in equal for run in runs.finished)
    }


def _base_verdict(suite: SuiteRecords, stored: SuiteRecords, name: str) -> str:
    """Verdict on the base, which has no seeds: equal scores for every prompt, or the difference of the means."""
    if suite.base is None or stored.base is None or name not in suite.base.cells:
        return formatting.MISSING
    own, reference = (one.base.cells[name].to_numpy() for one in (suite, stored) if one.base)
    return EQUAL if np.array_equal(own, reference) else f"differs by {own.mean() - reference.mean():.1e}"


def reference_notes(suite: SuiteRecords, table: pd.DataFrame, stored: SuiteRecords) -> list[str]:
    """Notes on the reference, its bands, the runs with equal seeds, and the number of scores inside their band."""
    seeds, setting = ", ".join(map(str, stored.seeds)), incomparable_setting(suite, stored)
    if setting is not None:
        return [f"Stored reference: our own runs, seeds {seeds}, made with ANOTHER {setting}: do not compare."]
    notes = [
        f"Stored reference: our own runs with the same budget and prompts, seeds {seeds}.",
        "Band: the mean over as many new seeds lies in it with 95 % probability if the runs reproduce the reference: "
        "mean +- t(m - 1) s sqrt(1/n + 1/m), n seeds here, m stored, s their standard deviation. Prompts and "
        "evaluation noise are the same in both; for seeds that are equal in both the band is too wide. Its half width "
        f"stands as a share of the row's stored gain over the base. n/a: fewer than {LEAST_SEEDS} stored seeds, or no "
        "such row. The base has no seeds: its scores are equal, or the platforms compute differently.",
    ]
    if labels := sorted(_differing_rows(suite, stored)):
        notes.append(
            f"Not compared, because their parameters differ from those of the reference: {', '.join(labels)}."
        )
    blind = _blind_bands(table, stored, suite.primary)
    return [*_equal_seeds(suite, stored), *_conclusion(suite, stored, table), *blind, *notes]


def _equal_seeds(suite: SuiteRecords, stored: SuiteRecords) -> list[str]:
    """How many runs of the same row and seed have exactly equal scores, and the largest gap of the others."""
    pairs, name = pairs_of_equal_seeds(suite, stored), suite.primary
    if not pairs:
        return []
    differ = [(a, b) for a, b in pairs if not is_equal((a, b))]
    gaps = [abs(a.cells[name].mean() - b.cells[name].mean()) for a, b in differ if name in a.cells]
    apart = f"; {suite.metrics[name].title} of the others differs by up to {max(gaps):.2g}" if gaps else ""
    return [
        f"{len(pairs) - len(differ)} of {len(pairs)} runs that are also in the reference (row and seed, or the base) "
        f"have equal bits{apart}. Equal seeds must give equal bits on the same platform; the band is for new seeds."
    ]


def _blind_bands(table: pd.DataFrame, stored: SuiteRecords, name: str) -> list[str]:
    """Rows whose band holds the base, so that being inside says nothing about learning."""
    shares = {str(row["row"]): band_share(row, name, stored) for _, row in table.iloc[1:].iterrows()}
    return [
        f"{label}: band ± {100 * share:.0f} % of the gain: it cannot tell learning from none."
        for label, share in shares.items()
        if share >= 1
    ]


def _conclusion(suite: SuiteRecords, stored: SuiteRecords, table: pd.DataFrame) -> list[str]:
    """How many scores lie in their band, without the rows of which all runs have equal bits."""
    scores = list(compared_scores(suite).items())[:-1]
    fresh = table[~table["row"].isin(equal_rows(suite, stored))]
    inside = pd.concat([fresh[f"reference_{name}_inside"] for name, _ in scores]).dropna()
    if inside.empty:
        return [] if len(fresh) < len(table) else ["No comparison with the reference has a band."]
    return [
        f"{int(inside.sum())} of {len(inside)} comparisons ({', '.join(label for _, label in scores)} of each row) "
        "are inside their band. In a true reproduction about 5 % lie outside by chance; the scores of one row are "
        "correlated."
    ]
