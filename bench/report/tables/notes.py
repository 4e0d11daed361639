"""The notes under a table: statistics, settings, replays, failed and missing runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.report import formatting
from bench.report.data.attempts import history_notes, seed_kind
from bench.report.data.differences import all_open, number_of_tests, tested_scores
from bench.report.data.division import NOT_RECORDED, division, open_reasons
from bench.report.data.dynamics import gradient_clipping
from bench.report.data.metrics import REWARD
from bench.report.data.published import published_notes
from bench.report.data.records import RowRuns, SuiteRecords, failed_gates, full_model
from bench.report.data.reward_hacking import hack_notes
from bench.report.data.selection import scored_prompts
from bench.report.data.statistics import BOOTSTRAP_DRAWS, LEAST_SEEDS
from bench.report.data.wording import counted, span
from bench.store.replay import read_replay

DECODE = {
    "predicted_x0": "the predicted clean video of the last step, which is not trained",
    "final_latent": "the last latent as it is, residual noise included",
}
#: Names of evaluators in the notes, if they differ from their own.
EVALUATOR_NAMES = {"clipscore": "CLIPScore", "pickscore": "PickScore", "hpsv2": "HPSv2"}
INTERVAL_NOTE = f"[n/a]: fewer than {LEAST_SEEDS} seeds, no interval."
TESTED_LEAD = "*: the 95 % interval excludes 0, and p after Holm over the whole table is below 0.05."
MARGIN_NOTE = (
    "At most ±m apart: two one-sided 5 % t tests, not adjusted, rule out a true difference beyond ±m. A difference "
    "without significance says no more than that."
)


def nano_warning(name: str, config: Mapping[str, Any]) -> str:
    """The warning of every table of a miniature model; `name` is that of the suite or the study with this `config`."""
    return (
        f"**{name} measures a miniature model with miniature evaluators. Its numbers compare with each other only: "
        f"nothing here is a result about {full_model(config)}.**"
    )


def nano_note(config: Mapping[str, Any]) -> str:
    """The start of the note below a LaTeX table of a miniature model."""
    return f"A miniature model: no result about {full_model(config)}. "


def footnotes(suite: SuiteRecords, table: pd.DataFrame, tests: pd.DataFrame, context: Sequence[str] = ()) -> list[str]:
    """The notes of a main table: what is wrong with these runs, `context` (controls, reference), then definitions.

    `table` is that of `summarise`, `tests` that of `tested_differences`.
    """
    notes = [
        *hack_notes(suite, table),
        *[note for runs in suite.rows for note in run_notes(runs.row.name, runs, len(suite.seeds))],
        *clipped_notes(suite.rows),
        *_divisions(suite),
    ]
    if suite.base is None:
        notes.append("The base has no record yet, so differences to it are not shown.")
    if suite.ignored:
        notes.append(f"Records of other seeds or rows, not in this table: {', '.join(suite.ignored)}.")
    notes += history_notes(suite)
    return [
        *notes,
        *context,
        *_repeated(suite),
        *_directions(suite),
        *_statistics(suite, tests),
        *_settings(suite.config),
        *_cut_prompts(suite),
        *published_notes(suite),
    ]


def _divisions(suite: SuiteRecords) -> list[str]:
    """Why rows stand in the open division, and which rows do not record theirs."""
    notes = [f"{runs.row.name}: {'; '.join(open_reasons(runs.records))}." for runs in suite.rows if runs.row.open]
    if notes:
        notes.append(
            "(open): a row of the open division, below the rule. Its difference to a closed row may come from what "
            "the closed division holds equal."
        )
    older = [runs.row.label for runs in suite.rows if runs.records and division(runs.records) == NOT_RECORDED]
    if older:
        notes.append(f"The division is not recorded, since the records are older: {', '.join(older)}.")
    return notes


def sums(suite: SuiteRecords) -> list[str]:
    """How the columns that add up metrics are made, as a sentence; none without such columns."""
    texts = {
        "overall": "Overall = VQ + MQ + TA per video",
        REWARD: "Reward = " + " + ".join(f"{weight:g} {name}" for name, weight in suite.weights.items()),
        "gold_overall": "gold Overall = gold VQ + gold MQ + gold TA",
    }
    known = [text for name, text in texts.items() if name in suite.columns]
    return [f"{'; '.join(known)}."] if known else []


def _directions(suite: SuiteRecords) -> list[str]:
    """Units of the user's own metrics, the arrow, and directions that older records do not have."""
    metrics = [metric for metric in suite.metrics.values() if metric.evaluator is not None]
    units = [f"{metric.title} in {metric.unit}" for metric in metrics if metric.is_own and metric.unit]
    notes = [f"Units: {'; '.join(units)}."] if units else []
    if any(not metric.higher_is_better for metric in metrics):
        notes.append("↑: more is better. ↓: less is better, so a negative difference is an improvement.")
    if any(not metric.declared for metric in metrics):
        less = ", ".join(metric.title for metric in metrics if not metric.higher_is_better)
        notes.append(
            "These records do not declare the direction of their metrics: higher counts as better"
            f"{f', but for {less}' if less else ''}."
        )
    return notes


def _statistics(suite: SuiteRecords, tests: pd.DataFrame) -> list[str]:
    prompts = len(suite.runs[0].cells) if suite.runs else 0
    notes = [
        f"n = {len(suite.seeds)} {seed_kind(suite.seeds)}seeds ({', '.join(map(str, suite.seeds))}), independent "
        f"training runs, on {prompts} {scored_prompts(suite.config)} prompts. The base is one model and has no seeds.",
        "`x [lo, hi]` is a mean and its 95 % interval: variance components of seeds x prompts, both random, "
        f"Satterthwaite degrees of freedom, Student's t. {INTERVAL_NOTE}",
        "Differences are paired by prompt, which makes the intervals much shorter, and by seed between rows.",
    ]
    if suite.columns:
        number = number_of_tests(tests)
        primary, *checks = [suite.metrics[name].title for name in tested_scores(suite)]
        notes += family_note(primary, checks, number, "to the base and between rows")
        notes += [STUDY_NOTE] if "/" in suite.name and number else []
        notes += effect_note(tests["diff_mde"], "difference of two rows", number) if len(tests) else []
        notes.append(MARGIN_NOTE)
    return [*notes, _evaluation_seed(suite.config)]


def scores_lead(suite: SuiteRecords) -> str:
    """What is bold in the columns of scores."""
    which = "all rows, which are open, and the base" if all_open(suite) else "closed rows and the base"
    return (
        f"Bold: the best mean of a column, {which}; in tested columns also each row that the tests do not show to be "
        "worse than it."
    )


def family_note(primary: str | None, checks: Sequence[str], tests: int, which: str) -> list[str]:
    """The note on the family of p-values of the primary score and its check; none if both are missing or untested."""
    titles = [*([primary] if primary else []), *checks]
    if not (titles and tests):
        return []
    roles = [*([f"{primary} is the primary score"] if primary else []), *(f"{title} its check" for title in checks)]
    lead = f"{' and '.join(roles)}. " if primary else ""
    return [
        f"{lead}Differences {which} in {' and '.join(titles)} are one family of {counted(tests)}: p is adjusted after "
        "Holm over all of them. A star only where the interval excludes 0 and the adjusted p is below 0.05. Near 0.05 "
        "the test is stricter than the interval. All other scores have intervals only."
    ]


STUDY_NOTE = (
    "This is one variant of a study, whose other variants and ablation have tables and families of their own. For a "
    "claim over the study multiply p by the number of its tables; what is above 0.05 then is exploratory."
)


def effect_note(effects: pd.Series[Any], difference: str, tests: int) -> list[str]:
    """The note on the smallest detectable effects of a column; none if all are unknown."""
    known = effects.dropna()
    if known.empty:
        return []
    return [
        f"MDE: the smallest true {difference} that is found with a power of 80 % at Holm's first step (a two-sided "
        f"test at 5 % over {tests}), here {span(known, 'difference')}. Smaller ones are not ruled out. They may still "
        "be found, in fewer than 80 % of repetitions."
    ]


AGGREGATES_NOTE = (
    f"IQM and probability of improvement: {BOOTSTRAP_DRAWS:,} bootstrap draws over seeds and prompts; with few seeds "
    "these intervals are too narrow. IQM has none where all draws agree; the probability has Wilson's over the "
    "prompts where a limit reaches 0 or 1."
)


def views_note(views: pd.DataFrame) -> str:
    """What each interval of the pairs' sensitivity assumes; `views` is the table of `sensitivity`."""
    colour = (
        " Colours random: the colours are a sample, each with its captions, because captions of one colour rise and "
        "fall together."
        if "colour" in views
        else ""
    )
    return (
        "Sensitivity of the pairs: one difference, one interval per view of the prompts. Prompts random: they are an "
        "independent sample of such prompts (the view of all other intervals). Prompts fixed: the claim is about "
        f"these very prompts, and only seeds vary (Student's t over the seeds).{colour}"
    )


def _evaluation_seed(config: Mapping[str, Any]) -> str:
    evaluation = config.get("evaluation")
    seed = evaluation.get("seed") if isinstance(evaluation, Mapping) else None
    return (
        f"Scores and gains compare only within one evaluation seed{'' if seed is None else f', here {seed}'}: another "
        "one moves all rows and the base."
    )


def clipped_notes(rows: Sequence[RowRuns]) -> list[str]:
    """A footnote of each row whose gradients were clipped, and one of the others; none of rows whose logs lack it."""
    notes, free = [], []
    for runs in rows:
        clipped, steps, median = gradient_clipping(runs)
        ratio = formatting.effect(median)
        if clipped:
            notes.append(
                f"{runs.row.name}: its gradients were clipped in {clipped} of {steps} optimizer steps "
                f"({100 * clipped / steps:.0f} %; median norm over the limit: {ratio}): there the scale of its loss "
                "acted as a learning rate."
            )
        elif steps:
            free.append(f"{runs.row.name} ({ratio})")
    if free:
        notes.append(
            f"No gradient of these rows was clipped; in brackets the median norm over the limit: {', '.join(free)}."
        )
    return notes


def _settings(config: Mapping[str, Any]) -> list[str]:
    notes = []
    budget = config.get("budget")
    if isinstance(budget, Mapping) and budget.get("minibatches") == 1:
        notes.append(
            "minibatches: 1, so each rollout is used for one step: the ratio is 1, and the clip has no effect."
        )
    if "decode" in config:
        notes.append(
            f"Decode rule of the rollouts: {config['decode']} ({DECODE.get(str(config['decode']), 'see the YAML')})."
        )
    policy = config.get("noise_policy")
    if isinstance(policy, Mapping):
        values = ", ".join(f"{key} {value}" for key, value in policy.items() if key != "kind" and value is not None)
        kind = f"{policy.get('kind')}{f' ({values})' if values else ''}"
        notes.append(f"Noise policy: {kind}. Equal eta is not equal exploration.")
    return notes


def _cut_prompts(suite: SuiteRecords) -> list[str]:
    """Share of the prompts that an evaluator's text model truncates; none for records without this entry."""
    notes = {}
    for run in suite.runs:
        limits = run.record.extra.get("token_limit", {})
        for name, share in run.record.extra.get("prompts_cut", {}).items():
            if name in limits:
                label = EVALUATOR_NAMES.get(name, name)
                notes[name] = f"{label}: {100 * share:.3g} % of the prompts are cut at {limits[name]} tokens."
    return list(notes.values())


def _repeated(suite: SuiteRecords) -> list[str]:
    """Results of `bench replay` for the runs that were repeated."""
    notes = []
    for run in suite.runs:
        replay = read_replay(run.folder, run.record)
        if replay is None:
            continue
        name = run.record.row if run.record.seed is None else f"{run.record.row} seed {run.record.seed}"
        gaps = [f"{size:.2g} ({metric})" for metric, size in replay.floors.items() if size]
        scores = f"scores differ by up to {', '.join(gaps)}" if gaps else "equal bits in all scores"
        result = "equal bits" if replay.equal else f"{scores}; {replay.training_gaps} numbers of train.jsonl differ"
        hardware = replay.hardware.get("gpu") or replay.hardware.get("cpu") or "an unknown machine"
        changed = ", ".join(change.partition(":")[0] for change in replay.other)
        notes.append(
            f"Nondeterminism floor: {name} repeated on {hardware}{f' with other {changed}' if changed else ''}: "
            f"{result}."
        )
    return notes


def run_notes(label: str, runs: RowRuns, planned: int) -> list[str]:
    """Notes on the runs of one row or level that failed, have not run yet, or fail a validity gate."""
    notes = [f"{label}, seed {record.seed} failed: {record.error or 'no reason recorded'}." for record in runs.failed]
    waiting = planned - len(runs.finished) - len(runs.failed)
    if waiting > 0:
        notes.append(f"{label}: {waiting} of {planned} seeds have not run yet.")
    for run in runs.finished:
        if failed := failed_gates(run.record):
            gates = ", ".join(failed)
            notes.append(f"† {label}, seed {run.record.seed} fails the validity gate {gates}: do not cite it.")
    return notes
