"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum whose singular values are made equal.

On the small convolutions of a VAE it needs about half of AdamW's steps; PyTorch's own Muon refuses convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MOMENTUM = 0.95
DECAY = 0.01
"""Weight decay, in units of the learning rate."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial of degree 5 that brings all singular values near 1 in `ITERATIONS` steps."""
ITERATIONS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of the matrix [m, n] = U S V^T: singular values between 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x: Tensor = wide / (wide.norm() + 1e-12)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon:
    """The optimizer of weights with two dimensions or more, each as a matrix [outputs, everything else]."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.weights = list(weights)
        self.momentum = [torch.zeros_like(weight) for weight in self.weights]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One step at the rate `lr`, from the gradients of the weights."""
        for weight, momentum in zip(self.weights, self.momentum, strict=True):
            assert weight.grad is not None
            momentum.lerp_(weight.grad, 1 - MOMENTUM)
            update = orthogonal(weight.grad.lerp(momentum, MOMENTUM).flatten(1))
            rows, columns = update.shape
            weight.mul_(1 - lr * DECAY)
            weight.add_(update.reshape(weight.shape), alpha=-lr * max(1.0, rows / columns) ** 0.5)
