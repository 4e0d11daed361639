"""Charts of the results: the forest of gains, gold against the trained score, the score against its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.report import formatting
from bench.report.data.differences import tested_scores
from bench.report.data.metrics import REWARD
from bench.report.data.selection import BASE
from bench.report.looks import Look
from bench.report.page.steps import groups
from bench.report.page.subject import Entry, Subject
from bench.report.page.vega import NARROW, SOFT, WIDE, Chart, Spec, beside, number, outlines, point

Line = dict[str, Any]

#: Pixels of one row of a forest.
ROW = 38
#: Share of a panel's width at its left edge.
EDGE = 0.35


def forest(subject: Subject) -> Chart | None:
    """Gains of each row in the tested scores with their intervals, the best row first; None without a gain."""
    main = subject.tables[""]
    entries = {entry.runs.row.label: entry for entry in subject.entries}
    sign = main.suite.metrics[subject.primary].sign if main.suite.columns else 1
    table = main.table[main.table["row"] != BASE].sort_values(f"{subject.primary}_delta", ascending=sign < 0)
    table = table[table[f"{subject.primary}_delta"].notna()]
    if table.empty:
        return None
    scores = {name: f"{main.suite.metrics[name].title} - base" for name in tested_scores(main.suite)}
    lines = []
    for _, row in table.iterrows():
        for name, title in scores.items():
            entry = entries[row["row"]]
            digits = formatting.decimals(main.table, f"{name}_delta")
            star = formatting.is_significant(row, f"{name}_delta")
            lines.append(_forest_line(row, f"{name}_delta", digits, star) | {"row": entry.title, "panel": title})
    for title in scores.values():
        _mark_edge([line for line in lines if line["panel"] == title])
    looks = {entries[label].title: entries[label].look for label in table["row"]}
    wide, narrow = (
        [_forest_panel(title, looks, width) for title in scores.values()]
        for width in (WIDE // len(scores) - 190, NARROW - 165)
    )
    rows = [[line["row"], line["panel"], line["text"]] for line in lines]
    best = "; ".join(f"{line['row']}: {line['panel']} {line['text']}" for line in lines)
    return Chart(
        "forest",
        "Gain over the base",
        "Further right is better. Mean gain over the untrained model with its 95 % interval over seeds and prompts; * "
        f"significant: p after Holm below {formatting.ALPHA}.",
        f"Forest plot. {best}.",
        beside(wide, len(scores)),
        beside(narrow, 1),
        ["Row", "score", "gain [95 % interval]"],
        rows,
        {"forest": lines},
    )


def _mark_edge(lines: Sequence[Line]) -> None:
    """Mark the gains of one panel whose text would reach beyond its left edge if it stood above their middle."""
    ends = [0.0, *(line[name] for line in lines for name in ("x", "lo", "hi") if line[name] is not None)]
    for line in lines:
        known = line["lo"] is not None
        line["near_edge"] = known and line["x"] - min(ends) < EDGE * (max(ends) - min(ends))


def _forest_line(row: pd.Series[Any], name: str, digits: int, star: bool) -> Line:
    ends = {"lo": number(row[f"{name}_lo"]), "hi": number(row[f"{name}_hi"])}
    return {
        "x": number(row[name]),
        **ends,
        "text": formatting.interval(row, name, digits) + ("*" if star else ""),
        "star": star,
    }


def _forest_panel(title: str, looks: Mapping[str, Look], width: int) -> Spec:
    """The gains in one score, a line per row."""
    names: Spec = {"domain": False, "ticks": False, "labelPadding": 8, "labelLimit": 150}
    y = {"field": "row", "type": "nominal", "sort": list(looks), "title": None, "axis": names}
    x = {"field": "x", "type": "quantitative", "title": None, "axis": {"tickCount": 5}}
    encodings = outlines(looks)
    encodings |= {name: {**encodings[name], "legend": None} for name in ("color", "shape")}
    tips = [{"field": name, "type": "nominal"} for name in ("row", "panel", "text")]
    interval = {"y": y, "x": {**x, "field": "lo"}, "x2": {"field": "hi"}, "color": encodings["color"]}
    return {
        **{"title": title, "width": width, "height": {"step": ROW}, "data": {"name": "forest"}},
        "transform": [{"filter": {"field": "panel", "equal": title}}],
        "layer": [
            {"mark": {"type": "rule", "color": SOFT}, "encoding": {"x": {"datum": 0}}},
            {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": interval},
            {"mark": point(90), "encoding": {"x": x, "y": y, **encodings, "tooltip": tips}},
            *(
                {
                    "transform": [{"filter": f"{'' if near_edge else '!'}datum.near_edge"}],
                    "mark": {"type": "text", "dy": -12, "align": "left" if near_edge else "center"},
                    "encoding": {
                        "x": {**x, "field": "lo" if near_edge else "x"},
                        "y": y,
                        "text": {"field": "text", "type": "nominal"},
                    },
                }
                for near_edge in (False, True)
            ),
        ],
    }


def points(subject: Subject, x: str, y: str) -> list[Line]:
    """The gain of each run in two scores over the base, of the same prompts; one line per row and seed."""
    if subject.base is None:
        return []
    lines = []
    for entry in subject.entries:
        for run in entry.runs.finished:
            gains = {name: number(float((run.cells[name] - subject.base.cells[name]).mean())) for name in (x, y)}
            lines.append({"row": entry.title, "seed": run.record.seed, "x": gains[x], "y": gains[y]})
    return lines


def scatter(chart: Mapping[str, str], lines: Sequence[Line], entries: Sequence[Entry], zero: bool) -> Chart:
    """Points of runs, small, and the mean of each row, large; `chart` has the texts of the chart and of its axes."""
    frame = pd.DataFrame(lines)
    means: list[Line] = [
        {"row": str(row), "x": number(group["x"].mean()), "y": number(group["y"].mean())}
        for row, group in frame.groupby("row", sort=False)
    ]
    axes: Spec = {
        name: {"field": name, "type": "quantitative", "title": chart[name], "scale": {"zero": False}}
        for name in ("x", "y")
    }
    tips: list[Spec] = [
        {"field": "row", "type": "nominal"},
        *({"field": name, "type": "quantitative", "title": chart[name]} for name in ("x", "y")),
    ]
    lines_at_0 = [{"mark": {"type": "rule", "color": SOFT}, "encoding": {name: {"datum": 0}}} for name in ("x", "y")]

    def panel(title: str, looks: Mapping[str, Look], width: int, columns: int) -> Spec:
        encodings = outlines(looks)
        legend: Spec = {"legend": {"columns": columns, "symbolOpacity": 1}}
        shown = {**encodings, **{name: {**encodings[name], **legend} for name in ("color", "shape")}}
        only = [{"filter": {"field": "row", "oneOf": list(looks)}}]
        layers = [
            {"data": {"name": name}, "transform": only, "mark": mark, "encoding": axes | shown | {"tooltip": tips}}
            for name, mark in (("runs", point(24, 0.5)), ("means", point(170)))
        ]
        head: Spec = {"title": title} if title else {}
        return {**head, "width": width, "height": 300, "layer": [*(lines_at_0 if zero else []), *layers]}

    panels = groups(entries)
    wide = [panel(title, looks, WIDE // 2 - 80, 3) for title, looks, _ in panels]
    narrow = [panel(title, looks, NARROW - 60, 1) for title, looks, _ in panels]
    rows = [[str(mean["row"]), f"{mean['x']:.4g}", f"{mean['y']:.4g}"] for mean in means]
    told = "; ".join(f"{row}: {x}, {y}" for row, x, y in rows)
    return Chart(
        name=chart["name"],
        title=chart["title"],
        caption=chart["caption"],
        alt=f"Scatter chart of {chart['y']} against {chart['x']}. {told}.",
        wide=beside(wide, 2),
        narrow=beside(narrow, 1),
        heads=["Row (mean over seeds)", chart["x"], chart["y"]],
        rows=rows,
        datasets={"runs": lines, "means": means},
    )


def hacking(subject: Subject) -> Chart | None:
    """Gain in gold against gain in the trained score; None without a gold score that was not trained."""
    trained = REWARD if REWARD in subject.metrics else subject.primary
    gold = "gold_overall"
    if gold not in subject.metrics or not (lines := points(subject, trained, gold)):
        return None
    names = {name: subject.metrics[name].title for name in (trained, gold)}
    chart = {
        **{"name": "hacking", "title": "Gold against the trained score"},
        "caption": f"A row far right and low has learnt to please its scorer. Gain over the base in {names[gold]} "
        f"against the gain in {names[trained]}. Small: one seed; large: mean over seeds.",
        **{"x": f"{names[trained]} - base", "y": f"{names[gold]} - base"},
    }
    return scatter(chart, lines, subject.entries, zero=True)


def pareto(subject: Subject) -> Chart | None:
    """The primary score against minutes of training; None if no run has recorded its time."""
    name = subject.primary
    lines = [
        {
            **{"row": entry.title, "seed": run.record.seed},
            "x": number(sum(run.record.seconds.values()) / 60),
            "y": number(float(run.cells[name].mean())),
        }
        for entry in subject.entries
        for run in entry.runs.finished
        if run.record.seconds and name in run.cells
    ]
    if not lines:
        return None
    title = subject.metrics[name].title
    chart = {
        **{"name": "pareto", "title": f"{title} against time"},
        "caption": f"Further up and left is better. {title} on the scored prompts against the wall-clock "
        "minutes of the whole run on its machine. Small: one seed; large: mean over seeds.",
        **{"x": "minutes of one run", "y": title},
    }
    return scatter(chart, lines, subject.entries, zero=False)
