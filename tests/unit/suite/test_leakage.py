"""A prompt that is in two lists is found, however it is written; two prompts with the same words are not one."""

from __future__ import annotations

import pytest

from bench.core.provenance import ROOT
from bench.suite.leakage import leaked

PROMPTS = ROOT / "bench" / "prompts"


@pytest.mark.parametrize(
    "written",
    [
        "A red ball rolls left.",
        " a RED ball  rolls left",
        "A red ball rolls left!",
        "A red-ball, rolls left…",
        "A red ball rolls left.\u200b",  # a space of no width
        "\uff21 red ball rolls left\uff0e",  # the wide letters of East Asian fonts
    ],
)
def test_the_same_words_are_the_same_prompt(written: str) -> None:
    lists = {"training": ["A cat.", "A red ball rolls left."], "validation": ["A dog."], "held-out": [written]}
    assert leaked(lists) == [("A red ball rolls left.", "training", "held-out")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A dog bites a man.", "A man bites a dog."),
        ("A red ball rolls left.", "A red ball rolls right."),
        ("🐶", "🐱"),
        ("?", "!"),
        ("की", "का"),  # vowel signs are marks, not letters
        ("3 + 4", "3 \u2212 4"),
    ],
)
def test_other_words_are_another_prompt(one: str, other: str) -> None:
    assert leaked({"training": [one], "held-out": [other]}) == []


def test_every_pair_of_lists_is_compared_in_order() -> None:
    lists = {"training": ["a", "b", "c"], "held-out": ["C", "x"], "validation": ["X", "B", "y"]}
    assert leaked(lists) == [
        ("c", "training", "held-out"),
        ("b", "training", "validation"),
        ("x", "held-out", "validation"),
    ]
    assert leaked({"training": [], "held-out": ["a"]}) == []


@pytest.mark.parametrize(("model", "number"), [("hv15", 388), ("nano", 144)])
def test_the_packaged_lists_have_no_prompt_in_common(model: str, number: int) -> None:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in PROMPTS.glob(f"{model}_*.txt")}
    lists = {name: [line for line in text.splitlines() if not line.startswith("#")] for name, text in texts.items()}
    assert sum(map(len, lists.values())) == number
    assert leaked(lists) == []
