"""`bench report`: one HTML page with all results of a suite or a study, from its records: `report.html`.

The page needs no network. Without script it answers, shows and lets check; its script adds what moves. Its bytes
depend on the records and on the libraries that draw the charts only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from bench.report.data.held_out import held_out_curves
from bench.report.data.selection import Selection
from bench.report.formatting import Cell
from bench.report.page.clips import load_clips
from bench.report.page.content import content, words
from bench.report.page.curves import curves_island
from bench.report.page.grids import cell, rich, value
from bench.report.page.islands import as_json, cells_island, runs_island, suite_island
from bench.report.page.scripts import own_scripts, policy, vega_script
from bench.report.page.subject import Subject, page_label
from bench.report.tables.main import load_main_table
from bench.store.files import write_text

PAGE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
#: The section that a study has not: its votes could not be checked against the records of one suite.
VOTE = "vote"
CONTENTS = {
    **{"verdict": "Verdict", "videos": "Videos", VOTE: "Blind vote", "curves": "Learning curves"},
    **{"checks": "Is it real?", "prompts": "Prompts", "mechanism": "Mechanism", "cost": "Cost"},
    **{"tables": "Tables", "reproduce": "Reproduce", "words": "Words"},
}


def build_report(folder: Path, suites: Mapping[str, tuple[Path, Selection]]) -> Path:
    """Write `report.html` into `folder`, that of the suite or the study, atomically.

    `suites` has for each variant the folder of its records and the rows and seeds to show; the key is "" for a suite
    that is not a study. Records that do not compare are a `BenchError`, and nothing is written.
    """
    path = folder / PAGE
    write_text(path, str(render_page(folder, suites)))
    return path


def render_page(folder: Path, suites: Mapping[str, tuple[Path, Selection]]) -> str:
    """The text of the page; the arguments are those of `build_report`."""
    tables = {variant: load_main_table(records, *selection) for variant, (records, selection) in suites.items()}
    subject = Subject(folder.name, folder, tables)
    clips, curves = load_clips(subject), held_out(subject)
    found = content(subject, clips, curves)
    islands: dict[str, Any] = {
        "suite": suite_island(subject),
        "cells": cells_island(subject, clips.videos),
        "clips": clips.island,
        "curves": curves_island(subject, curves),
        "runs": runs_island(subject),
        "charts": {name: chart.island for name, chart in found["charts"].items()},
    }
    scripts = [*own_scripts(), *([vega_script()] if found["charts"] else [])]
    body = _template("body.html", **found)
    return _template(
        PAGE,
        title=subject.name,
        policy=policy(scripts),
        scripts=scripts,
        contents=[(id_, text) for id_, text in CONTENTS.items() if not (subject.is_study and id_ == VOTE)],
        islands={name: as_json(each) for name, each in islands.items()},
        body=body,
        words=words(subject, body.striptags()),
    )


def held_out(subject: Subject) -> pd.DataFrame:
    """The held-out curves of all rows under their labels of the page; empty if the runs have none."""
    frames = [
        frame.assign(row=[page_label(variant, row) for row in frame["row"]])
        for variant, main in subject.tables.items()
        if not (frame := held_out_curves(main.suite)).empty
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _template(name: str, **context: Any) -> Markup:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"rich": rich, "cell": cell, "value": value}
    environment.tests["number"] = lambda text: isinstance(text, Cell)
    return Markup(environment.get_template(name).render(**context))  # noqa: S704 - the template escapes
