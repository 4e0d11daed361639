"""Named streams: pure functions of their name, and nothing of the global generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bench.core.rng import normal, stream


def draw(seed: int, *name: str | int) -> list[float]:
    return torch.rand(4, generator=stream(seed, *name)).tolist()


def test_equal_names_give_equal_streams() -> None:
    assert draw(3, "noise", 1, 2) == draw(3, "noise", 1, 2)


@pytest.mark.parametrize(
    "other", [(4, "noise", 1, 2), (3, "noise", 2, 1), (3, "noise", 12), (3, "noise1", 2), (3, "noise", "1", 2), (3,)]
)
def test_other_names_give_other_streams(other: tuple[int, str | int]) -> None:
    assert draw(3, "noise", 1, 2) != draw(*other)


@pytest.mark.parametrize("part", [np.int64(1), np.str_("a"), True, 1.0, None, torch.tensor(1)])
def test_a_name_is_made_of_plain_words_and_whole_numbers(part: Any) -> None:
    """np.int64(1) and True are equal to 1, but would name other streams."""
    with pytest.raises(TypeError, match=f"has the part .*, a {type(part).__name__}: use str or int"):
        stream(0, "noise", part)
    with pytest.raises(TypeError, match="use str or int"):
        stream(part, "noise")
    with pytest.raises(TypeError, match="use str or int"):
        normal(0, [("noise", part)], (2,))


def test_a_stream_is_the_same_on_every_machine() -> None:
    """The key is part of the records' meaning: changing it changes every stored result."""
    assert stream(0, "initial", 0, 1, 2).initial_seed() == 62828162


def test_a_draw_does_not_depend_on_its_batch() -> None:
    names = [("a", i) for i in range(5)]
    whole = normal(1, names, (2, 3))
    assert torch.equal(whole[3:4], normal(1, names[3:4], (2, 3)))
    assert torch.equal(whole.flip(0), normal(1, names[::-1], (2, 3)))


def test_draws_are_standard_normal() -> None:
    """10,000 draws: the mean is within 4 standard errors (0.04) of 0, the standard deviation within 0.03 of 1."""
    draws = normal(0, [("n", i) for i in range(10)], (1000,))
    assert abs(float(draws.mean())) < 0.04
    assert abs(float(draws.std()) - 1) < 0.03


@pytest.mark.usefixtures("global_random_state_is_left_alone")
def test_the_global_generator_is_left_alone() -> None:
    normal(0, [("x", 1)], (3,))
