"""The chapter of one suite in the report page, from its records only, with the numbers of the tables and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from bench import store
from bench.core.hashing import canonical_json
from bench.report import formatting
from bench.report.data.attempts import named_seeds
from bench.report.data.badges import GATES
from bench.report.data.differences import prompt_texts, tested_scores
from bench.report.data.metrics import LABELS
from bench.report.data.records import SuiteRecords, failed_gates, records_below
from bench.report.data.selection import BASE, scored_prompts
from bench.report.tables.main import MainTable
from bench.report.tables.notes import DECODE
from bench.report.tables.sections import Table
from bench.store.record import RunRecord
from bench.suite.difference import flatten

FILES = (store.RUN, store.SCORES, store.TRAIN)


@dataclass(frozen=True)
class GridData:
    """A table of the page; cells are escaped, then `**bold**` and `code` in them are marked up."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class RunLine:
    """One record in the list of runs."""

    name: str
    status: str
    cells: Sequence[str]
    links: Sequence[tuple[str, str]]
    """Text and address, relative to the page, of each file of the run."""


@dataclass(frozen=True)
class Chapter:
    """One suite, or one variant of a study."""

    name: str
    nano: bool
    about: Sequence[tuple[str, str]]
    headline: GridData
    grids: Sequence[GridData]
    controls: Sequence[str]
    notes: Sequence[str]
    gates: GridData
    runs: Sequence[RunLine]
    failed: Sequence[tuple[str, str]]
    """Run and error."""
    environments: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    """Label, and names and values of the software and hardware of its runs."""
    prompts: GridData
    texts: Sequence[tuple[str, str]]
    """Title and JSON of the configuration and of the fingerprints."""
    pictures: Sequence[Any] = field(default_factory=tuple)


RUN_HEAD = (
    *("Run", "status", "files", "run digest", "commit", "environment"),
    *("prompts digest", "scores digest", "minutes"),
)


def build_chapter(main: MainTable, folder: Path, page: Path) -> Chapter:
    """The chapter of a suite; `folder` has its records, and links are relative to `page`, the folder of the page."""
    suite, records = main.suite, records_below(folder)
    environments = _environments([record for _, record in records])
    sections = main.sections
    return Chapter(
        name=suite.name,
        nano=suite.nano,
        about=_about(suite, [record for _, record in records]),
        headline=_headline(suite, main.table, sections["Scores"]),
        grids=[GridData(title, *section) for title, section in sections.items()],
        controls=main.controls,
        notes=main.notes(),
        gates=_gates(records),
        runs=[_run(path, record, environments, page) for path, record in records],
        failed=[
            (_name(record), record.error or "no reason recorded") for _, record in records if record.status == "failed"
        ],
        environments=[(label, _environment_lines(json.loads(key))) for key, label in environments.items()],
        prompts=_prompts(suite),
        texts=_texts(suite),
    )


def _about(suite: SuiteRecords, records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Names and values of the most important settings of the suite."""
    config, budget = suite.config, suite.config.get("budget", {})
    backbone, evaluation = config.get("backbone", {}), config.get("evaluation", {})
    reward = " + ".join(f"{weight:g} {name}" for name, weight in suite.weights.items()) or "not recorded"
    shuffled = ", shuffled within each group (a negative control)" if config.get("shuffle_rewards") else ""
    decode = str(config.get("decode", "not recorded"))
    videos = len(suite.runs[0].cells) if suite.runs else 0
    settings = {
        "Model": f"{backbone.get('name', 'not recorded')}, checkpoint {backbone.get('checkpoint', 'not recorded')}",
        "Rows": ", ".join(runs.row.name for runs in suite.rows),
        "Seeds": f"{named_seeds(suite.seeds)} (a seed is a training run; the base has none)",
        "Budget of each run": ", ".join(f"{name} {value}" for name, value in budget.items()) or "not recorded",
        "Reward": reward + shuffled,
        "Decode rule": f"{decode} ({DECODE.get(decode, 'see the configuration')})",
        "Noise policy": ", ".join(
            str(value) if name == "kind" else f"{name} {value}"
            for name, value in (config.get("noise_policy") or {"kind": "not recorded"}).items()
            if value is not None
        ),
        "Evaluation": f"{videos} {scored_prompts(config)} prompts, {evaluation.get('videos_per_prompt', 'n/a')} "
        f"videos each, {evaluation.get('steps', 'n/a')} steps, scored by "
        f"{', '.join(evaluation.get('evaluators', [])) or 'n/a'}",
        "Prompts": f"digest {' '.join(sorted({record.prompts_digest for record in records}))}"
        + "".join(f", {which} {path}" for which, path in (config.get("prompts") or {}).items()),
        "Not in these tables": ", ".join(suite.ignored),
    }
    return [(name, value) for name, value in settings.items() if value]


def _headline(suite: SuiteRecords, table: pd.DataFrame, scores: Table) -> GridData:
    """The primary score and gold Overall, their differences to the base with intervals, and p after Holm."""
    labels = {name: suite.metrics[name].label if suite.columns else LABELS[name] for name in tested_scores(suite)}
    digits = {name: formatting.decimals(table, name) for score in labels for name in (score, f"{score}_delta")}
    rows = []
    for (_, row), line in zip(table.iterrows(), scores[1], strict=True):
        text = [*line[:2]]
        for name in labels:
            delta = f"{name}_delta"
            star = formatting.is_significant(row, delta)
            cell = formatting.marked(formatting.interval(row, delta, digits[delta]), is_starred=star)
            tested = [cell, formatting.p_value(row[f"{delta}_p_holm"])]
            text += [formatting.interval(row, name, digits[name]), *(["-"] * 2 if row["row"] == BASE else tested)]
        rows.append(text)
    heads = [head for title in labels.values() for head in (title, f"{title} - base", "p (Holm)")]
    return GridData("Result", ["Row", "seeds", *heads], rows)


def _prompts(suite: SuiteRecords) -> GridData:
    """The primary score of each scored prompt: mean over the videos, and over the seeds of a row."""
    runs, primary = suite.runs, suite.primary
    title = f"{scored_prompts(suite.config).capitalize()} prompts"
    if not runs:
        return GridData(title, [], [])
    texts = prompt_texts(suite)
    columns = {BASE: suite.base.cells[primary].tolist()} if suite.base else {}
    for one in suite.rows:
        x = one.matrix(primary)
        if x is not None:
            columns[one.row.name] = x.mean(0).tolist()
    rows = [
        [text, str(index), *(formatting.number(column[index]) for column in columns.values())]
        for index, text in enumerate(texts)
    ]
    return GridData(
        title,
        ["Prompt", "number", *(f"{suite.metrics[primary].label}: {name}" for name in columns)],
        rows,
    )


def _texts(suite: SuiteRecords) -> list[tuple[str, str]]:
    record = suite.runs[0].record if suite.runs else None
    values: dict[str, Any] = {"Configuration, defaults filled in": suite.config}
    if record is not None:
        values |= {"Fingerprint of the model": record.backbone, "Fingerprints of the evaluators": record.evaluators}
    return [
        (title, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)) for title, value in values.items()
    ]


def _name(record: RunRecord) -> str:
    return record.row if record.seed is None else f"{record.row}, seed {record.seed}"


def _gates(records: Sequence[tuple[Path, RunRecord]]) -> GridData:
    """One line per run, one column per gate: passed, failed, absent, or not trained (for the base)."""
    names = list(dict.fromkeys([*GATES, *(name for _, record in records for name in record.gates)]))
    rows = [[_name(record), *(_gate(record, name) for name in names)] for _, record in records]
    return GridData("Validity gates", ["Run", *names], rows)


def _gate(record: RunRecord, name: str) -> str:
    gate = record.gates.get(name)
    if name in failed_gates(record):
        verdict = "**failed**"
    elif gate is None and record.seed is None and GATES.get(name):
        return "not trained"
    elif gate is None or (isinstance(gate, Mapping) and gate.get("passed") is None):
        verdict = "absent"
    else:
        verdict = "passed"
    details = gate.items() if isinstance(gate, Mapping) else ()
    text = ", ".join(f"{key} {value}" for key, value in details if key != "passed" and not isinstance(value, Mapping))
    return f"{verdict} ({text})" if text else verdict


def _environments(records: Sequence[RunRecord]) -> dict[str, str]:
    """Software and hardware of the runs, as text, to a label; runs with the same environment share a label."""
    keys = dict.fromkeys(_environment(record) for record in records)
    return {key: f"E{number}" for number, key in enumerate(keys, 1)}


def _environment(record: RunRecord) -> str:
    return canonical_json({name: value for name, value in record.provenance.items() if name != "git"})


def _run(path: Path, record: RunRecord, environments: Mapping[str, str], page: Path) -> RunLine:
    git = record.provenance.get("git") or {}
    commit = f"`{str(git['commit'])[:12]}`" if git.get("commit") else formatting.MISSING
    commit += " (changed files)" if git.get("dirty") else ""
    minutes = formatting.number(sum(record.seconds.values()) / 60, 1) if record.seconds else formatting.MISSING
    shared = record.extra.get("shared_from")
    texts = [
        f"`{record.digest}`" + (f" (run of {shared})" if shared else ""),
        *(commit, environments[_environment(record)], f"`{record.prompts_digest}`"),
        *(f"`{record.scores_digest}`" if record.scores_digest else formatting.MISSING, minutes),
    ]
    links = [(name, quote((path / name).relative_to(page).as_posix())) for name in FILES if (path / name).is_file()]
    return RunLine(_name(record), record.status, texts, links)


def _environment_lines(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Dotted names and values of an environment, without packages that are not installed."""
    values = flatten(environment)
    return [(name.removeprefix("packages."), str(value)) for name, value in values.items() if value is not None]
