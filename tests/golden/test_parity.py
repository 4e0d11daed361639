"""The list of largest parity errors: what is noted, what fails, what is printed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.helpers import parity


@pytest.fixture
def noted(parity_errors: None) -> list[tuple[str, object]]:
    """Takes the place of the running test's properties, so that these made-up errors are not listed."""
    properties: list[tuple[str, object]] = []
    parity.start(properties)
    return properties


def test_an_error_is_noted_whether_it_fails_or_not(noted: list[tuple[str, object]]) -> None:
    parity.within("a", torch.tensor([1.0, 2.5]), [1.0, 2.0], 0.5)
    with pytest.raises(AssertionError, match=r"a: error 1\.00e\+00 above 5e-01"):
        parity.within("a", 3.0, 2.0, 0.5)
    parity.within("b", 101.0, 100.0, 0.02, relative=True)
    assert noted == [("parity", ["a", 0.5, 0.5]), ("parity", ["a", 1.0, 0.5]), ("parity", ["b", 0.01, 0.02])]


@pytest.mark.usefixtures("noted")
@pytest.mark.parametrize(("got", "want"), [(float("nan"), 1.0), (1.0, float("nan")), ([1.0, 2.0], [1.0]), ([], [])])
def test_what_is_no_number_or_has_another_shape_fails(got: object, want: object) -> None:
    with pytest.raises(AssertionError):
        parity.within("a", got, want, 1.0)


def test_the_list_has_the_error_nearest_to_its_tolerance() -> None:
    def report(*values: list[object]) -> SimpleNamespace:
        return SimpleNamespace(user_properties=[("other", 1), *[("parity", value) for value in values]])

    reports = [report(["b", 0.5, 1.0], ["a", 0.0, 0.0]), report(["b", 0.2, 0.3]), report(["b", 0.6, 10.0])]
    assert parity.worst([*reports, object()]) == [("a", 0.0, 0.0), ("b", 0.2, 0.3)]
    assert parity.worst([report(["a", float("nan"), 1.0], ["a", 0.9, 1.0])])[0][1] != 0.9
