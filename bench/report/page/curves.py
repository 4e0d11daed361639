"""The held-out learning curves of a page: as data for its script, and as a chart."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.report.data.held_out import summarise_curves, videos_of_curve
from bench.report.page.islands import rounded
from bench.report.page.prompts import shown_scores
from bench.report.page.steps import groups
from bench.report.page.subject import Subject
from bench.report.page.vega import NARROW, WIDE, Chart, Spec, beside, by_row, number

LINES = ("gain", "gain_lo", "gain_hi", "level", "level_lo", "level_hi")
AXES = ("update", "nfe_rollout", "reward_calls")


def curves_island(subject: Subject, frame: pd.DataFrame) -> dict[str, Any]:
    """Columnar: the axes, then one series per row, seed and score; `frame` is that of `held_out_curves`."""
    if frame.empty:
        return {"x": {name: [] for name in AXES}, "series": []}
    points = frame.drop_duplicates("update").sort_values("update")
    series = [
        {
            **{"row": row, "seed": int(str(seed)), "score": score},
            **{name: [rounded(value) for value in lines[name]] for name in ("gain", "level", "minutes")},
        }
        for (row, seed, score), lines in frame.sort_values("update").groupby(["row", "seed", "score"], sort=False)
    ]
    return {
        "x": {name: [None if pd.isna(value) else int(value) for value in points[name]] for name in AXES},
        "series": series,
    }


def curves_chart(subject: Subject, frame: pd.DataFrame) -> Chart | None:
    """Held-out gain over updates, a panel per score of `shown_scores`; None without curves.

    The script shows any score over any axis from the same data.
    """
    if frame.empty:
        return None
    titles = {entry.label: entry.title for entry in subject.entries}
    means = summarise_curves(frame)
    lines = [
        {
            **{"row": titles[line["row"]], "score": line["score"], "update": int(line["update"])},
            **{name: number(line[name], 6) for name in ("nfe_rollout", "reward_calls", "minutes")},
            **{name: number(line[name]) for name in LINES},
        }
        for line in means.to_dict("records")
    ]
    panels = [
        (title, looks, score)
        for title, looks, _ in groups(subject.entries)
        for score in shown_scores(subject)
        if score in set(frame["score"])
    ]
    metrics = subject.metrics
    wide, narrow = (
        [
            _panel(f"{title}: {metrics[score].title}" if title else metrics[score].title, looks, score, width, columns)
            for title, looks, score in panels
        ]
        for width, columns in ((WIDE // 3 - 80, 2), (NARROW - 70, 1))
    )
    last = [line for line in lines if line["update"] == frame["update"].max() and line["score"] == subject.primary]
    rows = [
        [line["row"], metrics[line["score"]].title, str(line["update"]), f"{line['gain']:.3g}", _limits(line)]
        for line in lines
        if line["score"] in shown_scores(subject)
    ]
    told = "; ".join(f"{line['row']} {line['gain']:.3g}" for line in sorted(last, key=lambda line: -line["gain"]))
    return Chart(
        "curves",
        "Held-out learning curves",
        "Who learns faster, on prompts that no row trains on: gain over the base on the same videos, sampled without "
        "noise. Mean over seeds; band: Student-t 95 % interval, none with fewer than 3 "
        f"seeds.{videos_of_curve(subject.suite.config)}",
        f"Line charts of the held-out gain over updates. Last update, {metrics[subject.primary].title}: {told}.",
        beside(wide, 3),
        beside(narrow, 1),
        ["Row", "score", "update", "gain", "95 % interval"],
        rows,
        {"summary": lines},
    )


def _limits(line: dict[str, Any]) -> str:
    return "n/a" if line["gain_lo"] is None else f"{line['gain_lo']:.3g} to {line['gain_hi']:.3g}"


def _panel(title: str, looks: Any, score: str, width: int, columns: int) -> Spec:
    encodings = by_row(looks, dash=True, columns=columns)
    x: Spec = {"field": "update", "type": "quantitative", "title": "update", "axis": {"tickCount": 6}}
    y: Spec = {"field": "gain", "type": "quantitative", "title": "gain over the base"}
    band = {"y": {**y, "field": "gain_lo"}, "y2": {"field": "gain_hi"}, "color": encodings["color"]}
    tips = [{"field": name, "type": "nominal"} for name in ("row", "update", "gain", "gain_lo", "gain_hi")]
    return {
        **{"title": title, "width": width, "height": 240, "data": {"name": "summary"}},
        "transform": [
            {"filter": {"field": "score", "equal": score}},
            {"filter": {"field": "row", "oneOf": list(looks)}},
        ],
        "encoding": {"x": x},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.15},
                "transform": [{"filter": "isValid(datum.gain_lo)"}],
                "encoding": band,
            },
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"y": y, **encodings}},
            {
                "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
                "encoding": {"y": y, "color": encodings["color"], "tooltip": tips},
            },
        ],
    }
