"""The content of a page: what its templates show, from the records of a suite or of a study."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from bench.core.errors import BenchError
from bench.report.data.ablation import levels_of
from bench.report.data.badges import badges
from bench.report.data.headline import headline
from bench.report.data.mechanism import gradients, noise
from bench.report.data.records import SuiteRecords
from bench.report.data.rollouts import dynamics, rollouts
from bench.report.data.training import Training, load_training
from bench.report.legend import legend
from bench.report.page import checking, prompts, reproducing, results, steps, study
from bench.report.page.clips import Clips
from bench.report.page.curves import curves_chart
from bench.report.page.grids import grid
from bench.report.page.pictures import pictures
from bench.report.page.strips import prompt_strips
from bench.report.page.subject import Subject, page_label
from bench.report.page.vega import Chart, is_installed
from bench.report.tables.ablation import AblationTable
from bench.report.tables.main import MainTable
from bench.report.tables.notes import nano_warning
from bench.report.tables.sections import RUNS

#: Sections of the main table that the page shows elsewhere or apart.
PUBLISHED, SPENT = "Beside the published numbers", "What one run spent"


def content(subject: Subject, clips: Clips, curves: pd.DataFrame) -> dict[str, Any]:
    """Names of the templates to what they show."""
    mains = list(subject.tables.values())
    levels = levels_of({variant: main.suite for variant, main in subject.tables.items()})
    ablation = AblationTable(levels, subject.name) if levels else None
    found = charts(subject, curves, ablation) if is_installed() else static_figures(subject)
    variants = [_variant(variant, main) for variant, main in subject.tables.items()]
    return {
        "title": subject.name,
        **(_study(subject, ablation) if ablation and subject.is_study else _suite(subject, mains[0])),
        "ablation": [grid(title, table, "levels") for title, table in ablation.sections.items()] if ablation else [],
        "ablation_notes": ablation.notes if ablation else [],
        "warning": nano_warning(subject.name, subject.suite.config) if subject.nano else None,
        "strips": prompt_strips(subject, clips),
        "has_videos": bool(clips.kept),
        "pairs": [] if subject.is_study else checking.pairs(subject, mains[0]),
        "controls": list(dict.fromkeys(line for main in mains for line in main.controls)),
        "gates": checking.gates([run.record for run in subject.runs]),
        "heat_maps": prompts.heat_maps(subject),
        "losses": prompts.losses(subject),
        "variants": variants,
        "reproduction": reproducing.reproduction(subject),
        "about": reproducing.settings_of_study(subject),
        "is_study": subject.is_study,
        **found,
    }


def _suite(subject: Subject, main: MainTable) -> dict[str, Any]:
    sentences = [line for line in main.verdict.sentences if line != nano_warning(subject.name, subject.suite.config)]
    return {"headlines": [("", headline(main))], "badges": badges(main), "sentences": sentences}


def _study(subject: Subject, ablation: AblationTable) -> dict[str, Any]:
    found = [(variant, badges(main)) for variant, main in subject.tables.items()]
    sentences = [line for line in ablation.verdict if line != nano_warning(subject.name, subject.suite.config)]
    lines = study.headlines(ablation, subject.is_study)
    return {"headlines": lines, "badges": study.together(found), "sentences": sentences}


def _variant(variant: str, main: MainTable) -> dict[str, Any]:
    """The tables and notes of one suite."""
    grids = {title: grid(title, table, variant) for title, table in main.sections.items() if title != RUNS}
    return {
        "name": variant,
        "cost": [each for title, each in grids.items() if title == SPENT],
        "grids": [each for title, each in grids.items() if title not in (PUBLISHED, SPENT)],
        "published": [each for title, each in grids.items() if title == PUBLISHED],
        "notes": main.notes(),
    }


def static_figures(subject: Subject) -> dict[str, Any]:
    """The figures of `bench figures` in place of the charts."""
    found, problems = pictures(subject)
    return {"charts": {}, "pictures": found, "problems": problems}


def charts(subject: Subject, curves: pd.DataFrame, ablation: AblationTable | None) -> dict[str, Any]:
    """The charts by name, and why some are missing."""
    levels = study.paired_forest(subject, ablation) if ablation else None
    found: dict[str, Chart | None] = {
        "forest": levels if subject.is_study else results.forest(subject),
        "curves": curves_chart(subject, curves),
        "hacking": results.hacking(subject),
        "pareto": results.pareto(subject),
    }
    problems: list[str] = []
    try:
        trainings = [each for variant, main in subject.tables.items() for each in _trainings(variant, main.suite)]
    except BenchError as error:  # a suite whose runs all failed still has a page
        problems.append(f"No charts of training: {error}")
    else:
        found["course"] = steps.course(subject, dynamics(trainings))
        found["rollouts"] = steps.rollouts_chart(subject, rollouts(trainings))
        found["noise"] = steps.noise_chart(subject, noise(trainings))
        norms = gradients(trainings)
        found["gradients"] = None if norms.empty else steps.gradients_chart(subject, norms)
    shown = {name: chart for name, chart in found.items() if chart}
    return {"charts": shown, "pictures": [], "problems": problems}


def _trainings(variant: str, suite: SuiteRecords) -> list[Training]:
    """What the runs of a suite logged, under the labels of the page."""
    found = load_training(suite.folder, suite)
    return [replace(each, row=each.row._replace(label=page_label(variant, each.row.label))) for each in found]


def words(subject: Subject, text: str) -> list[tuple[str, str]]:
    """Term and meaning of the words of the tables that occur in the text of the page."""
    kls = [entry.runs.row.kl for entry in subject.entries]
    lines = legend(text, kls, subject.metrics.values())
    pairs = [line.removeprefix("**").partition("**: ") for line in lines]
    return [(term, meaning) for term, _, meaning in pairs]
