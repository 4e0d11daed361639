"""Charts of the mechanism: noise and gradient norms of the rollout steps, and the course of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.report.data.metrics import LABELS
from bench.report.data.rollouts import WINDOW
from bench.report.figures.mechanism import has_equalizer
from bench.report.looks import Look
from bench.report.page.subject import Entry, Subject
from bench.report.page.vega import NARROW, WIDE, Chart, Spec, beside, by_row, number

#: Lines of one panel at most.
MOST_LINES = 6
COURSE = {
    "reward_group_std": "spread of the reward in a group",
    "kl_anchor": "KL to the anchor",
    "grad_norm": "gradient norm",
    "ratio_error": "|ratio - 1| before the first step",
    "clipped_share": "share of ratios beyond the clip range",
}


def groups(entries: Sequence[Entry]) -> list[tuple[str, dict[str, Look], list[Entry]]]:
    """Panels of at most `MOST_LINES` rows: one for few rows, else by method. Title, looks by titles, and rows."""
    shown = [entry for entry in entries if entry.runs.finished]
    if len(shown) <= MOST_LINES and not any(entry.variant for entry in shown):
        return [("", {entry.title: entry.look for entry in shown}, shown)]
    rows: dict[str, list[Entry]] = {}
    for entry in shown:
        rows.setdefault(entry.runs.row.label if entry.variant else entry.runs.row.method, []).append(entry)
    panels = []
    for group in rows.values():
        for start in range(0, len(group), MOST_LINES):
            part = group[start : start + MOST_LINES]
            more = f", part {start // MOST_LINES + 1}" if len(group) > MOST_LINES else ""
            title = part[0].title.partition(":")[0] if part[0].variant else part[0].runs.row.method
            panels.append((title + more, {e.title: shade(e.look, k) for k, e in enumerate(part)}, part))
    return panels


def shade(look: Look, index: int) -> Look:
    """The look of one of several rows of a method: its colour, mixed with white and black in turn."""
    target, amount = (255, 0)[index % 2], 0.22 * ((index + 1) // 2)
    channels = [int(look.colour[k : k + 2], 16) for k in (1, 3, 5)]
    mixed = [round(channel + (target - channel) * amount) for channel in channels]
    return look._replace(colour="#" + "".join(f"{channel:02X}" for channel in mixed))


def line_panel(title: str, data: str, looks: Mapping[str, Look], x: Spec, y: Spec, only: Sequence[Any]) -> Any:
    """A function from width and number of legend columns to a panel of lines; `only` are the filters of its data."""

    def panel(width: int, columns: int) -> Spec:
        encodings = by_row(looks, dash=True, columns=columns)
        tips = [{"field": "row", "type": "nominal"}, {**x, "type": "quantitative"}, {**y, "type": "quantitative"}]
        tips = [{"field": tip["field"], "type": tip["type"], "title": tip.get("title")} for tip in tips]
        return {
            **({"title": title} if title else {}),
            "width": width,
            "height": 190,
            "data": {"name": data},
            "transform": [*({"filter": each} for each in only), {"filter": {"field": "row", "oneOf": list(looks)}}],
            "mark": {
                "point": {"size": 22} if data in ("noise", "gradients") else False,
                "type": "line",
                "strokeWidth": 2,
            },
            "encoding": {
                "x": {"type": "quantitative", "axis": {"tickCount": 6}, **x},
                "y": {"type": "quantitative", **y},
                **encodings,
                "tooltip": tips,
            },
        }

    return panel


def course(subject: Subject, frame: pd.DataFrame) -> Chart | None:
    """Small multiples of the course of training; None if no run logged one. `frame` is that of `rollouts.dynamics`."""
    drawn = frame[frame.groupby("panel")["recorded"].transform(lambda x: x.abs().max()) > 0] if len(frame) else frame
    names = [name for name in COURSE if name in set(drawn["panel"])]
    if not names:
        return None
    titles = {entry.label: entry.title for entry in subject.entries}
    means = drawn.drop_duplicates(["panel", "row", "update"])
    lines = [
        {"row": titles[row], "update": int(update), "panel": panel, "value": number(mean)}
        for panel, row, update, mean in means[["panel", "row", "update", "mean"]].itertuples(index=False)
        if np.isfinite(mean)
    ]
    panels = []
    for title, looks, _ in groups(subject.entries):
        for name in names:
            head = f"{title}: {COURSE[name]}" if title else COURSE[name]
            y: Spec = {"field": "value", "title": None, "axis": {"format": "~g", "tickCount": 4}}
            if name.startswith("kl_"):  # spans many orders of magnitude, and is 0 before the first update
                y["scale"] = {"type": "symlog", "constant": 1e-5}
            only = [{"field": "panel", "equal": name}]
            panels.append(line_panel(head, "course", looks, {"field": "update", "title": "update"}, y, only))
    ends = (
        drawn.groupby(["row", "panel", "update"], sort=False)["recorded"].mean().groupby(["row", "panel"], sort=False)
    )
    rows = [
        [titles[row], COURSE[panel], f"{first:.3g}", f"{last:.3g}"]
        for (row, panel), first, last in zip(ends.first().index, ends.first(), ends.last(), strict=True)
    ]
    told = "; ".join(f"{row}: {what} from {first} to {last}" for row, what, first, last in rows)
    columns = min(3, len(names))
    return Chart(
        "course",
        "What training did",
        "How fast exploration shrinks and how far a policy leaves its anchor. Mean over seeds; all but the KL and "
        f"the ratio error are centred moving means of {WINDOW} updates, only whole windows: every update has other "
        "prompts.",
        f"Line charts over updates. First and last update: {told}.",
        beside([panel(WIDE // columns - 80, 3 if columns < 3 else 2) for panel in panels], columns),
        beside([panel(NARROW - 70, 1) for panel in panels], 1),
        ["Row", "quantity", "first update", "last update"],
        rows,
        {"course": lines},
    )


def rollouts_chart(subject: Subject, frame: pd.DataFrame) -> Chart:
    """Gains of the rollouts' own videos since update 0; `frame` is that of `rollouts.rollouts`."""
    titles = {entry.label: entry.title for entry in subject.entries}
    shown = frame.drop_duplicates(["panel", "row", "update"])
    heads = {name: LABELS.get(name, name) for name in shown["panel"].unique()}
    lines = [
        {"row": titles[row], "update": int(update), "panel": heads[panel], "value": number(mean)}
        for panel, row, update, mean in shown[["panel", "row", "update", "mean"]].itertuples(index=False)
        if np.isfinite(mean)
    ]
    panels = []
    y = {"field": "value", "title": "gain since update 0"}
    for title, looks, _ in groups(subject.entries):
        for name in heads.values():
            head = f"{title}: {name}" if title else name
            only = [{"field": "panel", "equal": name}]
            panels.append(line_panel(head, "rollouts", looks, {"field": "update", "title": "update"}, y, only))
    last = {(line["row"], line["panel"]): line["value"] for line in lines}
    rows = [[str(row), str(panel), f"{value:.3g}"] for (row, panel), value in last.items()]
    told = "; ".join(f"{row}: {panel} {value}" for row, panel, value in rows)
    columns = min(2, len(heads))
    return Chart(
        "rollouts",
        "Rewards of the rollouts",
        "How the videos that train a row improve. Levels do not compare between methods, because each method's own "
        "noise is in its videos: the gain since update 0 is drawn, adjusted for prompts where all rows have the same "
        f"seeds. Mean over seeds of a centred moving mean of {WINDOW} updates.",
        f"Line charts of gains over updates. Last whole window: {told}.",
        beside([panel(WIDE // 2 - 80, 3) for panel in panels], columns),
        beside([panel(NARROW - 70, 1) for panel in panels], 1),
        ["Row", "score", "gain in the last whole window"],
        rows,
        {"rollouts": lines},
    )


def noise_chart(subject: Subject, frame: pd.DataFrame) -> Chart:
    """Noise of each step by its noise level; `frame` is that of `mechanism.noise`."""
    titles = {entry.label: entry.title for entry in subject.entries}
    lines = [
        {"row": titles[row], "sigma": number(sigma), "std": number(std)}
        for row, sigma, std in zip(frame["row"], frame["sigma"], frame["std"], strict=True)
    ]
    panels = []
    x = {"field": "sigma", "title": "noise level before the step (1 = noise)", "sort": "descending"}
    y = {"field": "std", "title": "injected standard deviation"}
    for title, looks, _ in groups(subject.entries):
        panels.append(line_panel(title, "noise", looks, x, y, ["datum.std > 0"]))
    rows = [[str(line["row"]), f"{line['sigma']}", f"{line['std']}"] for line in lines]
    totals = [f"{titles[row]} {rss:.3g}" for row, rss in zip(frame["row"], frame["rss"], strict=True)]
    told = "; ".join(dict.fromkeys(totals))
    still = sum(line["std"] == 0 for line in lines)
    return Chart(
        "noise",
        "Injected noise",
        "Where each method explores: the standard deviation per latent element that a rollout step adds, by the noise "
        f"level before it. {still} steps add none and are not drawn. Root of the summed squares: {told}.",
        f"Line chart of injected noise by noise level. Root of the summed squares: {told}.",
        beside([panel(620 if len(panels) == 1 else WIDE // 2 - 90, 3) for panel in panels], 2),
        beside([panel(NARROW - 70, 1) for panel in panels], 1),
        ["Row", "noise level", "standard deviation"],
        rows,
        {"noise": lines},
    )


def gradients_chart(subject: Subject, frame: pd.DataFrame) -> Chart:
    """Gradient norms of the steps by noise level, before and after the equalizer; `frame`: `mechanism.gradients`."""
    titles = {entry.label: entry.title for entry in subject.entries}
    stages = {"before": "before the equalizer", "after": "after the equalizer"}
    equalized = has_equalizer(frame)
    stages = stages if equalized else {"before": "gradient norm of a step"}
    lines = [
        {
            "row": titles[line["row"]],
            "sigma": number(line["sigma"]),
            "stage": title,
            "norm": number(line[f"measured_{stage}"]),
        }
        for stage, title in stages.items()
        for _, line in frame.iterrows()
        if line[f"measured_{stage}"] > 0
    ]
    x = {"field": "sigma", "title": "noise level before the step (1 = noise)", "sort": "descending"}
    y: Spec = {"field": "norm", "title": "relative gradient norm", "scale": {"type": "log"}, "axis": {"format": "~g"}}
    panels = []
    for title, looks, _ in groups(subject.entries):
        for stage in stages.values():
            head = f"{title}: {stage}" if title else stage
            panels.append(line_panel(head, "gradients", looks, x, y, [{"field": "stage", "equal": stage}]))
    spread = [
        [
            titles[str(row)],
            f"{group['measured_before_spread'].iloc[0]:.3g}",
            f"{group['measured_after_spread'].iloc[0]:.3g}",
        ]
        for row, group in frame.groupby("row", sort=False)
    ]
    told = "; ".join(f"{row}: {before} before, {after} after" for row, before, after in spread)
    return Chart(
        "gradients",
        "Gradient norms",
        "How unequal the steps are: the norm of each step's part of the gradient, geometric mean over updates and "
        "seeds, as a multiple of the prediction. One factor per row, so compare shapes, not heights.",
        f"Line charts of gradient norms by noise level. Largest over smallest step: {told}.",
        beside([panel(WIDE // 2 - 90, 3) for panel in panels], 2),
        beside([panel(NARROW - 70, 1) for panel in panels], 1),
        ["Row", "largest over smallest, before the equalizer", "after"],
        spread,
        {"gradients": lines},
    )
