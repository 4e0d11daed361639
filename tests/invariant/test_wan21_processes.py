"""Wan2.1 over two processes, with a shared context or with sharded weights, computes what one process computes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers import pair, parity, wan_pair
from tests.helpers.wan import make

BOUND = {"context": 5e-6, "LoRA on bfloat16": 1e-6, "all weights": 2e-6}
"""Largest difference over the largest element: sums in another order. Measured: 1.7e-6, 0 and 4.3e-7."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return pair.run_in(2, tmp_path_factory.mktemp("wan"), wan_pair.in_a_pair)


@pytest.mark.parametrize("name", BOUND)
def test_velocity_and_gradients_are_those_of_one_process(both: list[dict[str, Any]], name: str) -> None:
    params, _ = wan_pair.SHARDED.get(name, (wan_pair.LORA, None))
    v, grads = wan_pair.velocity_and_gradients(**params)
    top = max(float(grad.abs().max()) for grad in grads)
    copies = 1 if name == "context" else 2  # both processes have the same samples, and gradients are sums
    for result in both:
        ours, summed = result[name]
        parity.within(f"Wan2.1, two processes, {name}: velocity", ours / v.abs().max(), v / v.abs().max(), BOUND[name])
        for got, want in zip(summed, grads, strict=True):
            kind = f"Wan2.1, two processes, {name}: gradients"
            parity.within(kind, got / top / copies, want / top, BOUND[name])


@pytest.mark.parametrize(
    ("degree", "size", "sentence"),
    [
        (4, (9, 32, 96), "context is 4, which does not divide the 2 attention heads: choose another degree"),
        (2, (9, 48, 48), "context is 2, which does not divide the 27 latent tokens"),
    ],
)
def test_a_degree_that_does_not_divide_is_refused(degree: int, size: tuple[int, int, int], sentence: str) -> None:
    from bench.api import BenchError

    with pytest.raises(BenchError, match=sentence):
        make(size=size, parallel={"context": degree})
