"""One sentence on a suite, from its tested numbers only: for the top of its table and its page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from bench.report import formatting
from bench.report.data.differences import between_rows
from bench.report.data.main_numbers import MainNumbers
from bench.report.data.metrics import MetricColumn
from bench.report.data.records import RowRuns
from bench.report.data.reward_hacking import suspected_rows
from bench.report.data.selection import BASE, Row, row_title
from bench.report.data.statistics import LEAST_SEEDS
from bench.report.data.wording import interval_text, listed, sign_of

#: Rows that one list of the sentence names; more are counted.
MOST_NAMED = 3


def headline(main: MainNumbers) -> str:
    """The row with the largest gain over the base, and what the tests say about it and about the others.

    Its lead over other rows, rows that do not beat the base, whether gold rises with it, and where the score is
    suspected to be exploited. A difference is significant where its interval excludes 0 and p after Holm is below
    0.05. Rows of the open division are left out, unless all are open. With fewer than 3 seeds nothing is tested, and
    it says so.
    """
    suite = main.suite
    finished = [runs for runs in suite.rows if runs.finished]
    closed = [runs for runs in finished if not runs.row.open]
    rows = closed or finished
    if not rows:
        return "No run has finished, so there is nothing to compare."
    metric, tests = suite.metrics[suite.primary], main.tests
    gains = tests[(tests["score"] == metric.name) & (tests["other"] == BASE) & tests["diff_lo"].notna()]
    gains = gains[gains["row"].isin([runs.row.name for runs in rows])].set_index("row", drop=False)
    if gains.empty:
        return _untested(main, rows)
    best = str((metric.sign * gains["diff"]).idxmax())
    line = next(row for label, row in gains.iterrows() if label == best)
    names = _names([runs.row for runs in rows])
    signs = {str(row["row"]): metric.sign * sign_of(row, "diff") for _, row in gains.iterrows()}
    gain = interval_text(line, "diff", 1, formatting.decimals(gains, "diff"))
    most = "gains most" if metric.sign * line["diff"] > 0 else "loses least"
    clear = "" if signs[best] > 0 else " (not significant)"
    parts = [
        f"{names[best]} {most} in {metric.title} over the base, {gain}{clear}",
        *_lead(between_rows(tests, metric.name), best, names, metric),
        *_gold(main, best),
        *_beating(signs, names),
        *_exploited(main, names),
    ]
    return f"{'' if closed else 'Open division: '}{'; '.join(parts)}."


def _names(rows: Sequence[Row]) -> dict[str, str]:
    """Name of each row in the sentence: its title, without the KL policy if it is the only row of its method."""
    count = Counter(row.method for row in rows)
    names = {}
    for row in rows:
        method, _, policy = row_title(row).partition(", ")
        names[row.name] = f"{method} ({policy})" if policy and count[row.method] > 1 else method
    return names


def _untested(main: MainNumbers, rows: Sequence[RowRuns]) -> str:
    """Why nothing is tested."""
    if main.suite.base is None:
        return "Nothing can be tested against the base: it has no finished run."
    fewest = min(len(runs.seeds) for runs in rows)
    seeds = f"{fewest} seed{'s' if fewest > 1 else ''}"
    why = f"nothing can be tested with {seeds} per row, since a test needs {LEAST_SEEDS}"
    return f"A demonstration, not a comparison: {why}."


def _beating(signs: dict[str, int], names: dict[str, str]) -> list[str]:
    """Which rows beat the base, or which do not if they are fewer."""
    shown, others = ([names[row] for row in signs if (signs[row] > 0) is wins] for wins in (True, False))
    if not shown:
        return ["no row is shown to beat the base"]
    if len(shown) < len(others):
        return [f"only {_named(shown)} {_is(shown)} shown to beat the base"]
    return [f"{_named(others)} {_is(others)} not shown to beat the base"] if others else []


def _lead(pairs: pd.DataFrame, best: str, names: dict[str, str], metric: MetricColumn) -> list[str]:
    """Over which rows the lead of the best row is significant, and over which it is not."""
    ahead: list[str] = []
    level: list[str] = []
    for _, row in pairs.iterrows():
        sides = str(row["row"]), str(row["other"])
        if best not in sides or not set(sides) <= names.keys() or pd.isna(row["diff_lo"]):
            continue
        sign = metric.sign * sign_of(row, "diff") * (1 if sides[0] == best else -1)
        (ahead if sign > 0 else level).append(names[sides[sides[0] == best]])
    if not ahead and not level:
        return ["its lead over other rows is not tested"] if len(names) > 1 else []
    if not ahead:
        return [f"it cannot be told apart from {'any other row' if len(level) > 1 else level[0]}"]
    lead = f"its lead over {_named(ahead)} is significant"
    return [lead, *([f"it cannot be told apart from {_named(level)}"] if level else [])]


def _gold(main: MainNumbers, best: str) -> list[str]:
    """Whether gold Overall of the best row rises too, where it is tested."""
    tests, name = main.tests, "gold_overall"
    found = tests[(tests["score"] == name) & (tests["other"] == BASE) & (tests["row"] == best)]
    if found.empty or name == main.suite.primary or pd.isna(found["diff_lo"].iloc[0]):
        return []
    sign, title = sign_of(found.iloc[0], "diff"), main.suite.metrics[name].title
    return [f"its {title} {({1: 'rises too', 0: 'is not shown to rise', -1: 'FALLS'})[sign]}"]


def _exploited(main: MainNumbers, names: dict[str, str]) -> list[str]:
    """Rows whose score rises beyond the held-out judges, or while others fall."""
    rows = [row for row in suspected_rows(main.suite, main.table, main.beyond) if row.name in names]
    return [f"exploitation is suspected in {_named([names[row.name] for row in rows])}"] if rows else []


def _named(names: Sequence[str]) -> str:
    return listed(names) if len(names) <= MOST_NAMED else f"{len(names)} rows"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
