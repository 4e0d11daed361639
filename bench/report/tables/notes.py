"""What a reader must know beside the numbers: the notes under a table, from the suite's own configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.report import formatting
from bench.report.data.records import RowRuns, Suite, failed_gates
from bench.report.data.reward_hacking import hack_notes
from bench.report.data.statistics import BOOTSTRAP_DRAWS
from bench.store.replay import read_replay

DECODE = {
    "predicted_x0": "the predicted clean video of the last step, which is not trained",
    "final_latent": "the last latent as it is, residual noise included",
}
#: Evaluators whose printed name is not their own.
SCORERS = {"clipscore": "CLIPScore", "pickscore": "PickScore", "hpsv2": "HPSv2"}


def warning(suite: Suite) -> str:
    """The plain sentence that stands above every table of the miniature model."""
    return nano_warning(suite.name)


def nano_warning(name: str) -> str:
    """The same, for what is called `name`."""
    return (
        f"**{name} measures a miniature model with miniature scorers. Its numbers compare with each other only: "
        "nothing here is a result about HunyuanVideo-1.5; the published full-size numbers are context, not a target.**"
    )


def footnotes(
    suite: Suite, table: pd.DataFrame, controls: Sequence[str] = (), reference: Sequence[str] = ()
) -> list[str]:
    """All notes, in reading order; `controls` and `reference` are what those two modules have to say."""
    notes = [
        "Overall = VQ + MQ + TA per video; trained = the reward, "
        + (" + ".join(f"{weight:g} {name}" for name, weight in suite.weights.items()) or "not recorded")
        + "; gold Overall = gold_VQ + gold_MQ + gold_TA.",
        *_statistics(suite, table),
        *_settings(suite.config, suite.nano),
        *_cut_prompts(suite),
        *_repeated(suite),
        *hack_notes(suite, table),
        *[note for runs in suite.rows for note in _about(runs, suite.seeds)],
    ]
    if suite.base is None:
        notes.append("The base has no record yet, so no difference to it is shown.")
    if suite.ignored:
        notes.append(f"Records of other seeds or rows, not in this table: {', '.join(suite.ignored)}.")
    return [*notes, *controls, *reference]


def _statistics(suite: Suite, table: pd.DataFrame) -> list[str]:
    prompts = len(suite.runs[0].cells) if suite.runs else 0
    notes = [
        f"n = {len(suite.seeds)} seeds ({', '.join(map(str, suite.seeds))}), independent training runs, on {prompts} "
        "held-out prompts; the base is one model and has no seeds.",
        "`x [lo, hi]` is a mean and its 95 % interval: variance components of seeds x prompts, both random, "
        "Satterthwaite degrees of freedom, Student's t. [n/a]: fewer than two seeds.",
        "Differences are paired by prompt, and by seed between rows; p is adjusted after Holm over the rows of its "
        "column. Bold only where the interval excludes 0 and the adjusted p is below 0.05.",
        f"IQM and probability of improvement: {BOOTSTRAP_DRAWS:,} bootstrap draws over seeds and prompts; with few "
        "seeds these intervals are too narrow.",
    ]
    effects = table["overall_mde"].dropna()
    if len(effects):
        notes.append(
            "MDE: the smallest true difference in Overall to the base that a two-sided 5 % test finds with a power "
            f"of 80 %: {formatting.number(effects.min())} to {formatting.number(effects.max())}. "
            "Smaller ones are not ruled out."
        )
    return notes


def _settings(config: Mapping[str, Any], nano: bool) -> list[str]:
    notes = []
    budget = config.get("budget")
    if isinstance(budget, Mapping) and budget.get("minibatches") == 1:
        notes.append("minibatches: 1, so each rollout is used for one step: the ratio is 1 and the clip never acts.")
    if "decode" in config:
        notes.append(
            f"Decode rule of the rollouts: {config['decode']} ({DECODE.get(str(config['decode']), 'see the YAML')})."
        )
    policy = config.get("noise_policy")
    if isinstance(policy, Mapping):
        values = ", ".join(f"{key} {value}" for key, value in policy.items() if key != "kind" and value is not None)
        kind = f"{policy.get('kind')}{f' ({values})' if values else ''}"
        notes.append(f"Noise policy: {kind}. Equal eta is not equal exploration.")
    size = (
        "compare with nothing measured on nano" if nano else "used other prompts, seeds and settings than these runs"
    )
    notes.append(
        f"Published: SAGE-GRPO's paper (arXiv 2603.21872), HunyuanVideo-1.5 at full size; they {size}. n/a: not found."
    )
    return notes


def _cut_prompts(suite: Suite) -> list[str]:
    """How many prompts a scorer's text model could not read to the end; silent for records that do not say it."""
    notes = {}
    for run in suite.runs:
        limits = run.record.extra.get("token_limit", {})
        for name, share in run.record.extra.get("prompts_cut", {}).items():
            if name in limits:
                label = SCORERS.get(name, name)
                notes[name] = f"{label}: {100 * share:.3g} % of the prompts are cut at {limits[name]} tokens."
    return list(notes.values())


def _repeated(suite: Suite) -> list[str]:
    """What runs that were done twice differ in (`bench replay`); silent where none was."""
    notes = []
    for run in suite.runs:
        found = read_replay(run.folder, run.record)
        if found is None:
            continue
        name = run.record.row if run.record.seed is None else f"{run.record.row} seed {run.record.seed}"
        gaps = [f"{size:.2g} ({metric})" for metric, size in found.floors.items() if size]
        scores = f"scores differ by up to {', '.join(gaps)}" if gaps else "equal bits in all scores"
        what = "equal bits" if found.equal else f"{scores}; {found.training_gaps} numbers of train.jsonl differ"
        where = found.hardware.get("gpu") or found.hardware.get("cpu") or "an unknown machine"
        changed = ", ".join(each.partition(":")[0] for each in found.other)
        notes.append(
            f"Nondeterminism floor: {name} done twice, the second time on {where}"
            f"{f' with other {changed}' if changed else ''}: {what}."
        )
    return notes


def _about(runs: RowRuns, seeds: list[int]) -> list[str]:
    label, notes = runs.row.label, []
    for record in runs.failed:
        notes.append(f"{label} seed {record.seed} failed: {record.error or 'no reason recorded'}.")
    waiting = len(seeds) - len(runs.finished) - len(runs.failed)
    if waiting > 0:
        notes.append(f"{label}: {waiting} of {len(seeds)} seeds have not run yet.")
    for run in runs.finished:
        if failed := failed_gates(run.record):
            notes.append(
                f"† {label} seed {run.record.seed} fails the validity gate {', '.join(failed)}: do not cite it."
            )
    return notes
