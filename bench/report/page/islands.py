"""The data of a page as JSON, for its script: rows, scores of each prompt, curves, records."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
from markupsafe import Markup

from bench.report.data.metrics import MetricColumn
from bench.report.data.records import Run
from bench.report.data.selection import BASE, method_title
from bench.report.legend import TERMS, described
from bench.report.looks import Look
from bench.report.page.prompts import tags
from bench.report.page.subject import Subject

#: Significant digits of the scores and curves in the page; tables have all digits.
DIGITS = 4


def as_json(content: Any) -> Markup:
    """JSON that an HTML script element can hold: no character in it ends the element or a line of script."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704 - every character with a meaning in HTML is escaped above


def rounded(value: Any) -> float | None:
    """A number with `DIGITS` significant digits; None if it is not known."""
    return None if pd.isna(value) else float(f"{value:.{DIGITS}g}")


def suite_island(subject: Subject) -> dict[str, Any]:
    """Names, rows, metrics and prompts."""
    base = _row(BASE, "Base", BASE, "none", subject.base_look) | {"base": True}
    rows = [
        _row(entry.label, entry.title, entry.runs.row.method, entry.runs.row.kl, entry.look)
        | {"open": entry.runs.row.open, "base": False}
        for entry in subject.entries
    ]
    return {
        **{"name": subject.name, "title": subject.name, "digest": subject.digest, "nano": subject.nano},
        **{"primary": subject.primary, "seeds": subject.seeds},
        "rows": [*([{**base, "open": False}] if subject.base else []), *rows],
        "metrics": [_metric(metric) for metric in subject.metrics.values()],
        "prompts": [
            {"text": text, "tags": words} for text, words in zip(subject.prompts, tags(subject.prompts), strict=True)
        ],
    }


def _row(label: str, title: str, method: str, kl: str, look: Look) -> dict[str, Any]:
    return {"label": label, "title": title, "method": method_title(method), "kl": kl, **look._asdict()}


def _metric(metric: MetricColumn) -> dict[str, Any]:
    meaning = TERMS.get(metric.title) or (described(metric) if metric.evaluator else "")
    return {
        **{"name": metric.name, "label": metric.title, "unit": metric.unit, "sign": metric.sign},
        "meaning": meaning,
    }


def sets_of(subject: Subject) -> list[tuple[str, str, Run]]:
    """Label, key of the seed ("" for the base) and run of every finished run."""
    base = [(BASE, "", subject.base)] if subject.base else []
    trained = [(entry.label, str(run.record.seed), run) for entry in subject.entries for run in entry.runs.finished]
    return [*base, *trained]


def cells_island(subject: Subject, kept: int) -> dict[str, Any]:
    """Mean scores of each prompt of every run, and the scores of the first `kept` videos of each prompt."""
    names = list(subject.metrics)
    rows: dict[str, Any] = {}
    clips: dict[str, Any] = {}
    for label, seed, run in sets_of(subject):
        rows.setdefault(label, {})[seed] = {name: [rounded(value) for value in run.cells[name]] for name in names}
        if kept:
            videos = run.clips[run.clips.index.get_level_values("video") < kept].groupby(level="prompt_index")
            clips.setdefault(label, {})[seed] = {
                name: [[rounded(value) for value in values] for _, values in videos[name]] for name in names
            }
    return {"metrics": names, "rows": rows, "clips": clips}


def runs_island(subject: Subject) -> list[dict[str, Any]]:
    """The content of every run.json, failed runs included."""
    records = [subject.base.record] if subject.base else []
    records += [record for entry in subject.entries for record in entry.runs.records]
    return [record.model_dump(by_alias=True, mode="json") for record in records]
