"""The comparison of levels in a page: one line per group, the paired forest, and the checks of all variants as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.report import formatting
from bench.report.data.ablation import AblationLevel, level_scores, to_first_columns
from bench.report.data.badges import Badge, State
from bench.report.data.selection import row_title
from bench.report.data.wording import difference_text, sign_of
from bench.report.looks import Look
from bench.report.page.subject import Subject
from bench.report.page.vega import NARROW, SOFT, WIDE, Chart, Spec, beside, colour, number, top
from bench.report.tables.ablation import AblationTable

#: Pixels of one level of the forest.
STEP = 30
ORDER: tuple[State, ...] = ("failed", "missing", "passed")


def group_titles(levels: Sequence[AblationLevel], is_study: bool) -> dict[str, str]:
    """Group to its name for readers: that of its row in a study, else that of its method."""
    return {
        level.group: row_title(level.runs.row) if is_study else row_title(level.runs.row).partition(",")[0]
        for level in reversed(levels)
    }


def headlines(ablation: AblationTable, is_study: bool) -> list[tuple[str, str]]:
    """One line per group: the levels that differ significantly from its first one, and how many do not."""
    titles = group_titles(ablation.levels, is_study)
    lines = []
    for group, own in ablation.table.groupby("group", sort=False):
        first = own["level"].iloc[0]
        parts = [_found(ablation, own, score) for score in level_scores(ablation.metrics)]
        lines.append((titles[str(group)], f"compared with {first}: {'; '.join(parts)}."))
    return lines


def _found(ablation: AblationTable, own: pd.DataFrame, score: str) -> str:
    """What one score shows in one group."""
    metric, name = ablation.metrics[score], to_first_columns(ablation.metrics)[score]
    tested = own[own[f"{name}_lo"].notna()]
    digits = formatting.decimals(ablation.table, name)
    if tested.empty:
        return f"{metric.title}: nothing was tested"
    words = {1: "better", -1: "worse"}
    clear = [
        f"{row['level']} is {words[sign * metric.sign]} ({difference_text(row, name, 1, digits)})"
        for _, row in tested.iterrows()
        if (sign := sign_of(row, name))
    ]
    rest = len(tested) - len(clear)
    parts = [*clear, *([f"{rest} of {len(tested)} levels cannot be told apart from it"] if rest else [])]
    return f"{metric.title}: {', '.join(parts)}"


def paired_forest(subject: Subject, ablation: AblationTable) -> Chart | None:
    """Per group: gain of each level over the base, and its paired change to the first level."""
    score = next(iter(ablation.metrics))
    metric, change, gain = ablation.metrics[score], to_first_columns(ablation.metrics)[score], f"{score}_delta"
    titles = group_titles(ablation.levels, subject.is_study)
    methods = {level.group: level.runs.row.label for level in ablation.levels}
    looks = {entry.runs.row.label: entry.look for entry in reversed(subject.entries)}
    lines: list[dict[str, Any]] = []
    rows = []
    for _, row in ablation.table.iterrows():
        for kind, name in (("gain", gain), ("change", change)):
            if pd.isna(row[name]):
                continue
            star = kind == "change" and bool(sign_of(row, name))
            text = formatting.interval(row, name, formatting.decimals(ablation.table, name))
            text = f"{text}, p {formatting.p_value(row[f'{name}_p_holm'])}" if kind == "change" else text
            ends = {"lo": number(row[f"{name}_lo"]), "hi": number(row[f"{name}_hi"])}
            lines.append(
                {
                    "group": row["group"],
                    "level": row["level"],
                    "kind": kind,
                    "x": number(row[name]),
                    **ends,
                    "text": text,
                    "clear": star,
                }
            )
            rows.append([f"{titles[row['group']]}, {row['level']}", kind, text])
    if not lines:
        return None
    heads = {"gain": f"{metric.title} - base", "change": f"{metric.title} - first level, paired"}
    names = {str(group): list(own["level"]) for group, own in ablation.table.groupby("group", sort=False)}
    wide, narrow = (
        [
            _panel(f"{titles[group]}: {heads[kind]}", group, kind, levels, looks[methods[group]], width)
            for group, levels in names.items()
            for kind in heads
            if any(line["group"] == group and line["kind"] == kind for line in lines)
        ]
        for width in (WIDE // 2 - 190, NARROW - 140)
    )
    told = "; ".join(f"{name}: {kind} {text}" for name, kind, text in rows)
    return Chart(
        "forest",
        "Levels",
        "Left: gain over the base. Right, the test: change to the first level of the group on the same seeds and "
        "prompts; filled: significant after Holm. 95 % intervals over seeds and prompts.",
        f"Forest plot. {told}.",
        beside(wide, 2) if len(wide) > 1 else top(wide[0]),
        beside(narrow, 1) if len(narrow) > 1 else top(narrow[0]),
        ["Level", "kind", "difference [95 % interval]"],
        rows,
        {"forest": lines},
    )


def _panel(title: str, group: str, kind: str, levels: Sequence[str], look: Look, width: int) -> Spec:
    axis: Spec = {"domain": False, "ticks": False, "labelPadding": 8, "labelLimit": 130}
    y = {"field": "level", "type": "nominal", "sort": list(levels), "title": None, "axis": axis}
    x: Spec = {"field": "x", "type": "quantitative", "title": None, "axis": {"tickCount": 5, "format": "~g"}}
    tips = [{"field": name, "type": "nominal"} for name in ("group", "level", "text")]
    shade = colour(look.colour)
    fill = {"condition": {"test": "datum.clear", "value": 1}, "value": 1 if kind == "gain" else 0}
    return {
        **{"title": title, "width": width, "height": {"step": STEP}, "data": {"name": "forest"}},
        "transform": [{"filter": {"field": "group", "equal": group}}, {"filter": {"field": "kind", "equal": kind}}],
        "layer": [
            {"mark": {"type": "rule", "color": SOFT}, "encoding": {"x": {"datum": 0}}},
            {
                "mark": {"type": "rule", "strokeWidth": 2, "color": shade},
                "encoding": {"y": y, "x": {**x, "field": "lo"}, "x2": {"field": "hi"}},
            },
            {
                "mark": {"type": "point", "size": 70, "stroke": shade, "fill": shade, "opacity": 1, "strokeWidth": 2},
                "encoding": {"x": x, "y": y, "fillOpacity": fill, "tooltip": tips},
            },
        ],
    }


def together(found: Sequence[tuple[str, Sequence[Badge]]]) -> list[Badge]:
    """The checks of several variants as one: the worst state of each, and the variants that have it."""
    names = dict.fromkeys(badge.name for _, badges in found for badge in badges)
    result = []
    for name in names:
        own = {variant: badge for variant, badges in found for badge in badges if badge.name == name}
        state = min((badge.state for badge in own.values()), key=ORDER.index)
        where = [variant for variant, badge in own.items() if badge.state == state]
        texts = dict.fromkeys(badge.text for badge in own.values() if badge.state == state)
        if len(where) == len(own):
            text = next(iter(texts)) if len(texts) == 1 else f"in all {len(own)} variants"
        else:
            passed = sum(badge.state == "passed" for badge in own.values())
            text = f"{state} in {', '.join(where)}; passed in {passed} of {len(own)} variants"
        result.append(Badge(name, state, text))
    return result
