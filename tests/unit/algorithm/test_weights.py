"""What the harness watches: hashes of the weights, sizes of their changes, settings of the optimizer."""

from __future__ import annotations

import math

import pytest
import torch

from bench.algorithm import weights
from bench.algorithm.optimizers import make_optimizer
from bench.core.budget import Budget
from bench.core.errors import BenchError
from bench.core.world import tensors_digest

BUDGET = Budget(updates=1, prompts=1, group_size=2, steps=2, train_steps=1, shift=1.0, guidance=1.0, lr=3e-4)


def parameters() -> list[torch.nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=rng)) for shape in ((3, 2), (5,))]


def test_a_hash_changes_with_every_bit_and_not_with_the_order() -> None:
    own = parameters()
    before = weights.weights_hash(own)
    assert len(before) == 16
    assert weights.weights_hash(reversed(own)) == before
    with torch.no_grad():
        own[0][0, 0] = torch.nextafter(own[0][0, 0], torch.tensor(9.0))
    assert weights.weights_hash(own) != before


def test_a_hash_tells_shapes_and_types_apart() -> None:
    zeros = [
        torch.zeros(4),
        torch.zeros(2, 2),
        torch.zeros(8, dtype=torch.float16),
        torch.zeros(4, dtype=torch.bfloat16),
    ]
    assert len({tensors_digest([tensor]) for tensor in zeros}) == 4


@pytest.mark.parametrize("factor", [1.0, 1e3, 1e-4])
def test_the_first_step_of_adamw_changes_every_weight_by_the_learning_rate(factor: float) -> None:
    """With eps 1e-15 whatever the scale of the gradient is; torch's own eps would shorten the step of the smallest."""
    own = parameters()
    optimizer = make_optimizer(BUDGET, own)
    for p in own:
        p.grad = torch.full_like(p, factor * 1e-7)
    assert weights.measured_step(optimizer, own, BUDGET.lr) == pytest.approx(1.0, rel=1e-3)


def test_the_size_of_a_change_is_measured_on_samples_of_large_tensors() -> None:
    large = torch.nn.Parameter(torch.zeros(3 * weights.SAMPLED + 1))
    before = weights.sampled_elements([large])
    assert [len(part) for part in before] == [math.ceil(large.numel() / 4)]
    with torch.no_grad():
        large += 0.5
    assert weights.rms_change(before, weights.sampled_elements([large])) == 0.5


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(("key", "value"), [("lr", 9e-4), ("weight_decay", 0.0), ("betas", (0.0, 0.9)), ("eps", 1e-8)])
def test_changed_settings_are_refused_with_the_one_who_may_have_done_it(name: str, key: str, value: object) -> None:
    budget = Budget(**{**vars(BUDGET), "optimizer": name})
    optimizer = make_optimizer(budget, parameters())
    settings = weights.optimizer_settings(optimizer)
    weights.check_settings(optimizer, settings, "row 'x'", "before")
    parts = getattr(optimizer, "parts", {"adamw": optimizer})
    parts["adamw"].param_groups[0][key] = value
    with pytest.raises(
        BenchError, match=f"row 'x' changed the optimizer's {key} from .* in update 3: a plug-in may not"
    ):
        weights.check_settings(optimizer, settings, "row 'x'", "in update 3")


def test_the_momentum_of_muon_is_watched_too() -> None:
    optimizer = make_optimizer(Budget(**{**vars(BUDGET), "optimizer": "muon"}), parameters())
    settings = weights.optimizer_settings(optimizer)
    optimizer.parts["muon"].param_groups[0]["momentum"] = 0.5  # type: ignore[attr-defined]
    with pytest.raises(BenchError, match=r"changed the optimizer's momentum from 0.95 to 0.5"):
        weights.check_settings(optimizer, settings, "row 'x'", "in update 3")


def test_the_size_of_a_change_is_summed_in_the_order_of_the_tensors() -> None:
    """Tensor by tensor, as one number after the other would be: gathering them first moves no bit."""
    before = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in range(1, 40)]
    after = [p + torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p) + 99)) for p in before]
    squares = 0.0
    for old, new in zip(before, after, strict=True):
        squares += float((new.double() - old.double()).square().sum())
    assert weights.rms_change(before, after) == math.sqrt(squares / sum(map(len, before)))
