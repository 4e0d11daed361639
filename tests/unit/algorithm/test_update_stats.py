"""Statistics of micro-batches: what the host reads is what the device holds."""

from __future__ import annotations

import pytest
import torch

from bench.algorithm.update_stats import Measured, MicroBatchStats, read


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value)


def test_numbers_come_back_under_their_names() -> None:
    third = float(scalar(1 / 3))
    sums = {"policy_loss": scalar(0.5), "log_prob": scalar(-2.0)}
    full = Measured(4, scalar(1 / 3), sums, {"fixed": scalar(0.25)}, torch.tensor(3), scalar(1e-7), 1)
    other = Measured(2, scalar(7.0), sums, {"fixed": scalar(-0.25)}, torch.tensor(0), scalar(0.0))
    first, second = read([full, other])
    numbers = {"policy_loss": 0.5, "log_prob": -2.0}
    assert first == MicroBatchStats(4, third, numbers, {"fixed": 0.25}, 3, float(scalar(1e-7)), 1)
    assert second == MicroBatchStats(2, 7.0, numbers, {"fixed": -0.25}, 0, 0.0, 0)
    assert isinstance(first.clipped, int)


def test_a_loss_without_a_ratio_has_none() -> None:
    (stats,) = read([Measured(3, scalar(2.0), {"policy_loss": scalar(2.0)}, {}, references=2)])
    assert stats == MicroBatchStats(3, 2.0, {"policy_loss": 2.0}, {}, 0, None, 2)


def test_a_process_without_micro_batches_has_no_statistics() -> None:
    assert read([]) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value: float) -> None:
    (stats,) = read([Measured(1, scalar(value), {}, {})])
    assert not torch.isfinite(torch.tensor(stats.loss))
