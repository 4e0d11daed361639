"""The differences that the stored records hold, and their p-values by the older test and by that of today."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from bench.core.provenance import ROOT
from bench.report.data.ablation import by_group, level_metrics, level_scores, levels_of, shows_same_runs
from bench.report.data.differences import common_seeds, pair_matrix, tested_scores
from bench.report.data.loading import load_records
from bench.report.data.power import Spread, estimate_spread
from bench.report.data.statistics import Array, holm, two_way
from bench.report.data.variance import mean_squares
from bench.suite.load import load_variants
from tools.levels.simulation import t_p

REFERENCE = ROOT / "results" / "reference"
STUDIES = ("nano_kl", "nano_equalizer", "nano_noise", "nano_setting", "nano_decode")


def pair_differences() -> dict[str, dict[str, Array]]:
    """Score to pair to the difference x[seed, prompt] of two rows of the stored nano suite."""
    suite = load_records(REFERENCE / "nano")
    found: dict[str, dict[str, Array]] = {score: {} for score in tested_scores(suite)}
    for score, pairs in found.items():
        for one, other in combinations(suite.rows, 2):
            x = pair_matrix(one, other, score, common_seeds(one, other))
            if x is not None:
                pairs[f"{one.row.label} - {other.row.label}"] = x
    return found


def level_differences(study: str) -> dict[str, dict[str, Array]]:
    """Score to comparison to the difference x[seed, prompt] of a level of a stored ablation to its baseline."""
    variants = load_variants(ROOT / "bench" / "configs" / f"{study}.yaml")
    folders = {suite.variant: REFERENCE / study / suite.variant for suite in variants}
    levels = levels_of({variant: load_records(folder) for variant, folder in folders.items()})
    found: dict[str, dict[str, Array]] = {score: {} for score in level_scores(level_metrics(levels))}
    for score, comparisons in found.items():
        for first, *others in by_group(levels).values():
            for level in others:
                x = pair_matrix(level.runs, first.runs, score, common_seeds(level.runs, first.runs))
                if not shows_same_runs(level, first) and x is not None:
                    comparisons[f"{level.group}, {level.name} - {first.name}"] = x
    return found


def extreme_spreads(pairs: Mapping[str, Array]) -> dict[str, Spread]:
    """The spreads of the two pairs in which the seeds' share of the variance of the mean is least and most."""

    def share(x: Array) -> float:
        (seeds, prompts), spread = x.shape, estimate_spread(x)
        of_seeds = spread.seeds / seeds
        return float(of_seeds / (of_seeds + spread.prompts / prompts + spread.rest / (seeds * prompts)))

    ordered = sorted(pairs.values(), key=share)
    return {f"stored pair, seeds {100 * share(x):.0f} %": estimate_spread(x) for x in (ordered[0], ordered[-1])}


def compared(differences: Mapping[str, Array]) -> list[tuple[str, Array, list[float]]]:
    """Each difference with four p-values: before, Holm's, now, Holm's.

    Left out: fewer than 3 seeds, where there is no test, and equal scores, which are one run and not a test.
    """
    known = {name: x for name, x in differences.items() if x.any() and not np.isnan(two_way(x).p)}
    older = [float(t_p(np.asarray(x.mean()), mean_squares(x), *x.shape)) for x in known.values()]
    newer = [two_way(x).p for x in known.values()]
    columns = zip(older, holm(older), newer, holm(newer), strict=True)
    return [(name, x, list(values)) for (name, x), values in zip(known.items(), columns, strict=True)]
