"""How to repeat and cite the runs of a page: commands, runs, software, and their entry in a bibliography."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from bench.core.hashing import canonical_json
from bench.report import formatting
from bench.report.data.attempts import named_seeds
from bench.report.data.differences import comparator_of
from bench.report.data.loading import records_below
from bench.report.data.records import SuiteRecords
from bench.report.data.selection import scored_prompts
from bench.report.page.checking import run_name
from bench.report.page.grids import Grid
from bench.report.page.subject import Subject
from bench.report.tables.notes import DECODE
from bench.store.record import RunRecord
from bench.suite.difference import flatten
from bench.suite.packaged import packaged_files

CITATION = """@software{grpo_video_bench,
  title  = {grpo-video-bench: a reference benchmark for reinforcement learning on video generators},
  author = {{The grpo-video-bench authors}},
  year   = {2026},
  note   = {suite NAME, runs DIGEST}
}"""


@dataclass(frozen=True)
class Reproduction:
    """How to repeat the runs, and what they were made with."""

    commands: Sequence[tuple[str, str]]
    """What a command trains, and the command."""
    runs: Grid
    failed: Sequence[tuple[str, str]]
    """Run and error."""
    environments: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    """Label, and names and values of the software and hardware of its runs."""
    texts: Sequence[tuple[str, str]]
    """Title and JSON of the configuration and of the fingerprints."""
    citation: str
    """BibTeX of the benchmark, and of the papers of the methods and models."""


def reproduction(subject: Subject) -> Reproduction:
    """The part of the page on repeating and citing its runs; every run and every setting of a study stands once."""
    records = _records(subject)
    environments = _environments([record for _, record in records])
    return Reproduction(
        commands=_commands(subject),
        runs=_runs(records, environments),
        failed=[(name, record.error or "no reason recorded") for name, record in records if record.status == "failed"],
        environments=[(label, _environment_lines(json.loads(key))) for key, label in environments.items()],
        texts=_texts(subject),
        citation="\n\n".join(
            [CITATION.replace("NAME", subject.name).replace("DIGEST", subject.digest), *_papers(subject)]
        ),
    )


def about(suite: SuiteRecords) -> list[tuple[str, str]]:
    """Names and values of the most important settings of a suite."""
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
        "Prompts": f"digest {' '.join(sorted({run.record.prompts_digest for run in suite.runs})) or 'not recorded'}"
        + "".join(f", {which} {path}" for which, path in (config.get("prompts") or {}).items()),
        "Not in these tables": ", ".join(suite.ignored),
    }
    return [(name, value) for name, value in settings.items() if value]


def settings_of_study(subject: Subject) -> tuple[list[tuple[str, str]], list[tuple[str, list[tuple[str, str]]]]]:
    """The settings that all suites of the page share, and those of each variant that differ."""
    found = [dict(about(suite)) for suite in subject.suites]
    shared = {name: value for name, value in found[0].items() if all(each.get(name) == value for each in found)}
    own = [
        (variant, [(name, value) for name, value in each.items() if name not in shared])
        for variant, each in zip(subject.tables, found, strict=True)
    ]
    return list(shared.items()), own if subject.is_study else []


def _records(subject: Subject) -> list[tuple[str, RunRecord]]:
    """Name and record of every run below the folders of the suites; the runs of a variant are named with it."""
    return [
        (f"{variant}: {run_name(record)}" if variant else run_name(record), record)
        for variant, main in subject.tables.items()
        for _, record in records_below(main.suite.folder)
    ]


def _papers(subject: Subject) -> list[str]:
    """The BibTeX entries of the methods and models of the page; a plug-in has none."""
    names = {runs.row.method for suite in subject.suites for runs in suite.rows}
    names |= {str(suite.config.get("backbone", {}).get("name")) for suite in subject.suites}
    entries = (files("bench.report") / "papers.bib").read_text(encoding="utf-8").strip().split("\n\n")
    return [entry for entry in entries if names & set(re.findall(r"(?:^@misc\{|ids += \{)(\w+)", entry))]


def _commands(subject: Subject) -> list[tuple[str, str]]:
    name = subject.name if subject.name in packaged_files() else f"results/{subject.name}"
    seeds = f"seeds='[{', '.join(map(str, subject.seeds))}]'"
    commands = [("all rows", f"bench run {name} {seeds}")]
    if subject.is_study:
        return commands
    alone = "" if comparator_of(subject.suite) is None else " compare_with=null"
    for entry in subject.suite.config.get("rows", []):
        row = json.dumps({key: value for key, value in entry.items() if value not in (None, {})})
        label = str(entry.get("label") or f"{entry.get('method')}-{entry.get('kl') or 'none'}")
        commands.append((label, f"bench run {name} {seeds} {shlex.quote(f'rows=[{row}]')}{alone}"))
    return commands


def _runs(records: Sequence[tuple[str, RunRecord]], environments: Mapping[str, str]) -> Grid:
    heads = [("Run", "text"), ("status", "text"), ("minutes", "number"), ("run digest", "text"), ("commit", "text")]
    heads += [("environment", "text"), ("scores digest", "text")]
    return Grid("runs", "Runs", heads, [_run(name, record, environments) for name, record in records])


def _run(name: str, record: RunRecord, environments: Mapping[str, str]) -> list[str]:
    git = record.provenance.get("git") or {}
    commit = f"`{str(git['commit'])[:12]}`" if git.get("commit") else formatting.MISSING
    commit += " (changed files)" if git.get("dirty") else ""
    shared = record.extra.get("shared_from")
    return [
        *(name, record.status),
        formatting.number(sum(record.seconds.values()) / 60, 1) if record.seconds else formatting.MISSING,
        f"`{record.digest}`" + (f" (run of {shared})" if shared else ""),
        *(commit, environments[_environment(record)]),
        f"`{record.scores_digest}`" if record.scores_digest else formatting.MISSING,
    ]


def _environments(records: Sequence[RunRecord]) -> dict[str, str]:
    """Software and hardware of the runs, as text, to a label; runs with the same environment share a label."""
    keys = dict.fromkeys(_environment(record) for record in records)
    return {key: f"E{number}" for number, key in enumerate(keys, 1)}


def _environment(record: RunRecord) -> str:
    return canonical_json({name: value for name, value in record.provenance.items() if name != "git"})


def _environment_lines(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Dotted names and values of an environment, without packages that are not installed."""
    values = flatten(environment)
    return [(name.removeprefix("packages."), str(value)) for name, value in values.items() if value is not None]


def _texts(subject: Subject) -> list[tuple[str, str]]:
    record = subject.runs[0].record if subject.runs else None
    variants = {f" of {variant}" if variant else "": main.suite.config for variant, main in subject.tables.items()}
    values: dict[str, Any] = {
        f"Configuration{which}, defaults filled in": config for which, config in variants.items()
    }
    if record is not None:
        values |= {"Fingerprint of the model": record.backbone, "Fingerprints of the evaluators": record.evaluators}
    return [
        (title, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)) for title, value in values.items()
    ]
