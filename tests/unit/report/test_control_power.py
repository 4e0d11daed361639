"""A negative control passes only if it could have failed: its upper limits lie below half of the positive effect."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import store
from bench.report.data.controls import SEEDS, control_results
from bench.report.data.loading import load_records
from bench.report.data.power import detectable_difference
from tests.helpers.records import make_record, make_scores, write_run

PROMPTS = [f"prompt {p}" for p in range(8)]
GOLD: dict[str, Any] = {
    "suite": "mine_control_gold",
    "budget": {"updates": 2},
    "reward": {"gold": {"gold_VQ": 1.0}},
    "rows": [{"method": "cps", "kl": "fixed"}, {"method": "sage_grpo", "kl": "dual"}],
}
SHUFFLED = GOLD | {"suite": "mine_control_shuffled", "shuffle_rewards": True}
LEDGER = {"nfe_rollout": 1, "nfe_train": 1, "reward_calls": {"gold": 1}}
#: Gain of each seed, as stored for two rows with three seeds: one run of each collapses.
COLLAPSED = {"cps-fixed": (-0.06, -0.07, -0.54), "sage_grpo-dual": (0.0, -0.07, -0.47)}
EFFECT = {"cps-fixed": (0.52, 0.51, 0.53), "sage_grpo-dual": (0.60, 0.62, 0.61)}


def value_of(lift: np.ndarray) -> Callable[[int, int, str], float]:
    """For `make_scores`: the number of the prompt plus lift[prompt, video]."""
    return lambda p, k, metric: p + float(lift[p, k])


def write(parent: Path, config: dict[str, Any], gains: Mapping[str, Sequence[float]], **changes: Any) -> Path:
    """Records of a suite whose rows have these gains over the base, one seed each; a small part varies by prompt."""
    seeds = list(range(max(map(len, gains.values()))))
    config = config | {
        "seeds": seeds,
        "rows": [one for one in GOLD["rows"] if f"{one['method']}-{one['kl']}" in gains],
    }
    folder = parent / str(config["suite"])
    runs = [("base", None, 0.0), *((row, seed, gain) for row in gains for seed, gain in enumerate(gains[row]))]
    for row, seed, gain in runs:
        rng = np.random.default_rng([sum(row.encode()), 0 if seed is None else seed + 1])
        noise = 0.02 * rng.normal(size=(len(PROMPTS), 2))
        scores = make_scores(PROMPTS, 2, value_of(gain + noise - noise.mean()), {"gold": ["gold_VQ"]})
        record = make_record(config, row, seed, ledger={} if seed is None else LEDGER, **changes)
        write_run(folder, record, scores)
    return folder


def note(folder: Path) -> str:
    """What the control's own table says about it."""
    (result,) = control_results(load_records(folder), folder.parent, folder.parent)
    return result.line


def test_a_negative_control_whose_interval_is_wide_is_undecided(tmp_path: Path) -> None:
    """The stored one of three seeds: -0.22 [-0.76, 0.31] and -0.18 [-0.96, 0.60] against effects of 0.51 and 0.61."""
    write(tmp_path, GOLD, EFFECT)
    line = note(write(tmp_path, SHUFFLED, COLLAPSED))
    assert "Undecided for want of power: an upper limit must lie below half of the positive control's effect" in line
    assert re.search(r"\(cps-fixed 0\.\d+ against 0\.26, sage_grpo-dual 0\.\d+ against 0\.3[01]\)", line)
    assert f"A control takes {SEEDS} seeds; this one has 3." in line
    assert "passes" not in line


def test_its_smallest_detectable_effect_is_printed(tmp_path: Path) -> None:
    write(tmp_path, GOLD, EFFECT)
    folder = write(tmp_path, SHUFFLED, COLLAPSED)
    suite = load_records(folder)
    x = suite.rows[0].matrix("trained")
    assert x is not None
    assert suite.base is not None
    effect = detectable_difference(x - suite.base.cells["trained"].to_numpy())
    assert f"(MDE of one test {effect:.2f})" in note(folder)
    assert "MDE" not in note(tmp_path / GOLD["suite"])


def test_one_that_rules_out_half_of_the_effect_passes(tmp_path: Path) -> None:
    write(tmp_path, GOLD, {row: (*gains, *gains) for row, gains in EFFECT.items()})
    still = {"cps-fixed": (0.01, -0.02, 0.03, 0.0, -0.01, 0.02), "sage_grpo-dual": (-0.01, 0.02, 0.0, 0.03, 0.01, 0.0)}
    line = note(write(tmp_path, SHUFFLED, still))
    assert "It passes: each upper limit lies below half of the positive control's effect in the same row" in line
    assert "against 0.26" in line
    assert "A control takes" not in line


def test_the_limit_is_that_of_the_same_row(tmp_path: Path) -> None:
    """CPS would pass with the limit of the other row."""
    write(tmp_path, GOLD, {"cps-fixed": (0.09, 0.10, 0.11), "sage_grpo-dual": (0.9, 1.0, 1.1)})
    line = note(write(tmp_path, SHUFFLED, {"cps-fixed": (0.1, -0.1, 0.0), "sage_grpo-dual": (0.1, -0.1, 0.0)}))
    assert "Undecided for want of power" in line
    assert re.search(r"cps-fixed 0\.2\d against 0\.05, sage_grpo-dual 0\.2\d against 0\.50", line)


@pytest.mark.parametrize(
    ("gains", "changes", "why"),
    [
        (None, {}, "Undecided for cps-fixed, sage_grpo-dual: the positive control is missing."),
        (
            {"cps-fixed": (0.5, 0.5, 0.51)},
            {},
            "Undecided for sage_grpo-dual: the positive control shows no effect in that row, or ",
        ),
        (
            {"cps-fixed": (0.5,) * 3, "sage_grpo-dual": (0.0, 1.0, -1.0)},
            {},
            "Undecided for sage_grpo-dual: the positi",
        ),
        (EFFECT, {"budget_digest": "other"}, "sage_grpo-dual: the positive control was made with another budget dig"),
    ],
)
def test_without_a_positive_effect_nothing_is_decided(
    tmp_path: Path, gains: Mapping[str, Sequence[float]] | None, changes: dict[str, Any], why: str
) -> None:
    if gains is not None:
        write(tmp_path, GOLD, gains, **changes)
    line = note(write(tmp_path, SHUFFLED, {row: (0.01, 0.0, -0.01) for row in EFFECT}))
    assert why in line
    assert not line.startswith("**")


def test_a_positive_control_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (write(tmp_path, GOLD, EFFECT) / "base" / store.SCORES).unlink()
    line = note(write(tmp_path, SHUFFLED, COLLAPSED))
    assert "Undecided for cps-fixed, sage_grpo-dual: the records of the positive control cannot be read." in line


def test_a_row_that_rises_on_shuffled_rewards_fails(tmp_path: Path) -> None:
    write(tmp_path, GOLD, EFFECT)
    line = note(write(tmp_path, SHUFFLED, {"cps-fixed": (0.3, 0.31, 0.32), "sage_grpo-dual": (0.0, 0.01, 0.02)}))
    assert line.startswith("**")
    assert "It FAILS: cps-fixed rises although its rewards are shuffled." in line


def test_a_positive_control_with_few_seeds_says_so(tmp_path: Path) -> None:
    line = note(write(tmp_path, GOLD, EFFECT))
    assert line.endswith("It passes: an interval lies above 0. A control takes 6 seeds; this one has 3.")
