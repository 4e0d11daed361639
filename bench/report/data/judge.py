"""The trained score beyond the held-out judges: the part of a gain that judges which gave no reward do not explain.

A policy can raise the score that it is trained on in two ways: its videos become better, or they become such that this
one judge overrates them. On videos that nobody optimised for the trained score, that score follows from those of the
held-out judges, up to noise. On videos that exploit it, it is higher.

1. *Calibration*: the trained score of a video is predicted from the held-out judges' scores of the same video by
   local-linear regression with a Gaussian kernel (Fan and Gijbels, Local Polynomial Modelling and Its Applications,
   1996). The prediction uses the base's videos and those of the controls, and never those of the same prompt: no video
   is compared with itself.
2. *Excess*: score - prediction, a mean per seed and prompt, minus that of the base on the same prompt. Seeds and
   prompts are random, as in all other differences; the calibration is taken as it is.

Each row of the controls is shown too, left out of its own calibration. Nobody optimised it for the trained score, so
its excess is no exploitation: it shows how far the prediction can be off.

The held-out judges are taken as exact. What they do not see of an honest gain, or see with noise, counts as excess. So
an excess is a reason to look at the videos, and no proof; judges that explain too little give no mark
(`LEAST_EXPLAINED`).

3. *Less the control*: where a control has trained the same row on the held-out judges, the excess of both over their
   common seeds, paired, by one calibration that leaves the control's row out. What the trained score likes in the
   row's videos without having asked for it drops out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
from bench.report.data.calibration import Calibration, Videos, calibrate, joined, videos_of
from bench.report.data.comparable import recorded_settings
from bench.report.data.controls import CONTROLS, is_control
from bench.report.data.differences import common_seeds, interval_columns
from bench.report.data.loading import load_records
from bench.report.data.metrics import FURTHER, SUMS
from bench.report.data.records import RowRuns, SuiteRecords
from bench.report.data.selection import Row, settings_key
from bench.report.data.statistics import paired_difference
from bench.store.files import find
from bench.store.record import RUN, read_record

MOST_OUTSIDE = 0.1
"""With a larger share of its videos outside, a row is not calibrated."""
LEAST_EXPLAINED = 0.8
"""Judges that explain a smaller share of the trained score's variance mark no row: they would mark honest gains."""
LESS = "_less"
"""End of the columns of an excess less that of the control."""
ENDS = ("", "_lo", "_hi")
"""Ends of the columns of a number and of its interval."""
SCORING = ("backbone fingerprint", "evaluator fingerprints", "evaluation")
"""Settings that a control must share for its videos to be comparable."""


def held_out_judges(suite: SuiteRecords) -> list[str]:
    """Columns of the judges that give no reward: the gold axes where gold was scored, else every such score.

    Detectors and scores in other units are none.
    """
    rewards = set(suite.config.get("reward") or {})
    sources = suite.runs[0].sources if suite.runs else {}
    free = [name for name in suite.columns if name in sources and sources[name][0] not in rewards]
    gold = [part.lower() for part in SUMS["gold_overall"]]
    return gold if set(gold) <= set(free) else [name for name in free if name not in FURTHER]


def calibration_suites(suite: SuiteRecords, *parents: Path) -> tuple[list[SuiteRecords], list[str]]:
    """The controls below `parents` that calibrate the judges of the suite, and a note on each that cannot be loaded.

    Their videos were made from the same prompts and scored by the same evaluators, and their rewards were shuffled or
    are of other evaluators than the suite's. Controls of other suites count too; of two with one name, the first.
    """
    controls: dict[str, SuiteRecords] = {}
    broken: dict[str, str] = {}
    folders = [path for parent in parents for kind in CONTROLS for path in sorted(parent.glob(f"*{kind.suffix}"))]
    for path in folders if suite.runs and not is_control(suite) else []:
        if path.name in controls or path.name in broken:
            continue
        try:
            control = load_records(path) if _calibrates(path, suite) else None
            if control and control.runs[0].videos == suite.runs[0].videos:
                controls[path.name] = control
        except BenchError as error:
            broken[path.name] = f"**{path.name} does not calibrate the held-out judges: {error}**"
    return list(controls.values()), list(broken.values())


def _calibrates(control: Path, suite: SuiteRecords) -> bool:
    """Whether the first trained run of a control was scored like those of the suite, and trained otherwise."""
    runs = find(control, f"*/seed-*/{RUN}")
    if not runs:
        return False
    own, other = recorded_settings(suite.runs[0].record), recorded_settings(read_record(runs[0].parent))
    common = set(own["reward"] or {}) & set(other["reward"] or {})
    return bool(other["shuffle_rewards"] or not common) and all(other[name] == own[name] for name in SCORING)


def beyond_judges(suite: SuiteRecords, controls: Sequence[SuiteRecords]) -> pd.DataFrame:
    """One line per trained row, then one per row of a control, which is left out of its own calibration.

    - `row`: its label; `name`: the same as shown, marked if it is open; `control`: name of the control's suite, "" for
      a row of `suite`.
    - `beyond`, `beyond_lo`, `beyond_hi`: excess of the trained score over the base's with its 95 % interval, score
      units. NaN where the row is not calibrated: with `outside` above `MOST_OUTSIDE`, or with fewer than
      `LEAST_VIDEOS` calibration videos per coefficient. The limits are NaN with too few seeds, too.
    - `share`: excess over the gain in the trained score, NaN unless the interval of the gain lies above 0.
    - `outside`: share of the row's videos outside of the calibration videos, 0 to 1.
    - `explained`: share of the variance of the trained score over the calibration videos that the judges explain.
    - `overall`, `overall_lo`, `overall_hi`: as `beyond`, for Overall, if evaluators of the reward give its metrics.
    - `beyond_less`, `overall_less`, with `_lo`, `_hi`: the excess less that of the same row of a control with the
      same budget, whose rewards were not shuffled; NaN where there is none.

    Empty for a control, and for a suite without a reward, a base or held-out judges. `controls` are those of
    `calibration_suites`; without them, the calibration is on the base's videos alone.
    """
    judges, scores = held_out_judges(suite), _scores(suite)
    columns = [
        "row",
        "name",
        "control",
        *(f"{name}{less}{end}" for less in ("", LESS) for name in scores for end in ENDS),
        "share",
        "outside",
        "explained",
    ]
    if not (judges and scores["beyond"] and suite.base) or is_control(suite):
        return pd.DataFrame(columns=columns)

    base = videos_of([suite.base], judges, scores)
    free = [(control, runs) for control in controls for runs in control.rows if runs.finished]
    groups = [videos_of(runs.finished, judges, scores) for _, runs in free]
    calibration = calibrate([base, *groups])
    own = [runs for runs in suite.rows if runs.finished]
    lines = [
        _line(("", runs.row), videos_of(runs.finished, judges, scores), base, calibration, list(scores))
        for runs in own
    ]
    for index, (control, theirs) in enumerate(free):
        without = replace(calibration, videos=joined([base, *groups[:index], *groups[index + 1 :]]))
        lines.append(_line((control.name, theirs.row), groups[index], base, without, list(scores)))
        if control.config.get("shuffle_rewards") or "beyond" not in lines[-1]:
            continue
        for line, runs in zip(lines, own, strict=False):
            if runs.row.label == theirs.row.label and "beyond" in line:
                line |= _less(runs, theirs, without, judges, scores)
    return pd.DataFrame(lines, columns=columns)


def _less(
    runs: RowRuns,
    control: RowRuns,
    calibration: Calibration,
    judges: Sequence[str],
    scores: Mapping[str, Mapping[str, float]],
) -> dict[str, float]:
    """The columns of the excess less that of the control's runs.

    None unless method, parameters and budget are equal, without a common seed, and where too many videos are outside.
    """
    mine, theirs = (one.finished[0].record for one in (runs, control))
    seeds = common_seeds(runs, control)
    if not seeds or (settings_key(mine), mine.budget) != (settings_key(theirs), theirs.budget):
        return {}
    sides = [[run for run in one.finished if run.record.seed in seeds] for one in (runs, control)]
    excess, outside = zip(*(calibration.excess(videos_of(side, judges, scores)) for side in sides), strict=True)
    if max(outside) > MOST_OUTSIDE:
        return {}
    columns: dict[str, float] = {}
    for name, x, y in zip(scores, *excess, strict=True):
        columns |= interval_columns(f"{name}{LESS}", paired_difference(x, y))
    return columns


def add_beyond(table: pd.DataFrame, beyond: pd.DataFrame) -> pd.DataFrame:
    """The table of `summarise` with the columns `beyond_judges`, `_lo`, `_hi` of its rows; NaN where there is none."""
    own = beyond[beyond["control"] == ""].set_index("row")
    columns = {f"beyond_judges{end}": table["row"].map(own[f"beyond{end}"]).astype(float) for end in ENDS}
    return table.assign(**columns)


def _scores(suite: SuiteRecords) -> dict[str, dict[str, float]]:
    """Name of each score to explain, to the weights of its columns."""
    rewards, sources = set(suite.config.get("reward") or {}), suite.runs[0].sources if suite.runs else {}
    trained = {column: suite.weights[metric] for column, (_, metric) in sources.items() if metric in suite.weights}
    overall = {part.lower(): 1.0 for part in SUMS["overall"]}
    scores = {"beyond": trained}
    if trained and all(part in sources and sources[part][0] in rewards for part in overall):
        scores["overall"] = overall
    return scores


def _line(
    key: tuple[str, Row], videos: Videos, base: Videos, calibration: Calibration, names: Sequence[str]
) -> dict[str, Any]:
    """One line of `beyond_judges`; `names` are those of the scores."""
    control, row = key
    line: dict[str, Any] = {"row": row.label, "name": row.name, "control": control}
    if not calibration.suffices:
        return line
    excess, outside = calibration.excess(videos)
    line |= {"outside": outside, "explained": calibration.explained}
    if outside > MOST_OUTSIDE:
        return line
    before, _ = calibration.excess(base)
    for name, x, y in zip(names, excess, before, strict=True):
        line |= interval_columns(name, paired_difference(x, y[0]))
    gain = paired_difference(videos.cells(videos.scores)[0], base.cells(base.scores)[0, 0])
    return line | {"share": line[names[0]] / gain.mean if gain.lo > 0 else np.nan}
