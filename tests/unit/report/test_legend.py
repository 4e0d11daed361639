"""The words of a table: the page of the glossary has the same sentences, and only words that occur are explained."""

from __future__ import annotations

import re

import pytest

from bench.core.provenance import ROOT
from bench.report.data.metrics import MetricColumn
from bench.report.legend import KL_POLICIES, TERMS, legend

GLOSSARY = dict(
    re.findall(
        r"^\| \*\*(.+?)\*\* \| (.+) \|$", (ROOT / "docs/reference/glossary.md").read_text(encoding="utf-8"), re.M
    )
)


@pytest.mark.parametrize("term", [*TERMS, *KL_POLICIES])
def test_the_glossary_has_the_same_sentence(term: str) -> None:
    assert GLOSSARY[term] == {**TERMS, **KL_POLICIES}[term]


def words(text: str, kl: tuple[str, ...] = ()) -> list[str]:
    return [line.partition("**: ")[0].removeprefix("**") for line in legend(text, kl)]


def test_only_words_that_occur_are_explained() -> None:
    assert words("nothing to explain") == []
    assert words("| Row | VQ | p (Holm) |") == ["VQ", "p (Holm)"]
    assert words("1.36 [1.06, 1.65]") == ["interval"]
    assert words("n = 3 seeds; none of them is fixed") == ["seed", "n"], "no KL policy is in the suite"
    assert words("", ("dual", "none")) == ["none", "dual"]
    assert words("cps † fails") == ["gate"]


def test_a_metric_of_the_users_own_has_its_unit_and_direction() -> None:
    jerk = MetricColumn("jerk", "jerk", "smooth:Smooth", higher_is_better=False, unit="px / s^3")
    vq = MetricColumn("vq", "VQ", "videoalign")
    assert legend("| jerk |", (), [jerk, vq]) == ["**jerk**: Metric of smooth:Smooth, unit px / s^3; lower is better."]
