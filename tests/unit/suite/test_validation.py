"""Validation prompts, by which settings are chosen, and held-out ones, on which they are reported, never mix."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.core.errors import BenchError
from bench.suite.load import load_suite
from bench.suite.prepared import prepare
from bench.suite.schema import VALIDATION_SEED

PILOT = ("evaluation.prompts=validation", f"evaluation.seed={VALIDATION_SEED}")


def files(folder: Path, **lists: str) -> list[str]:
    """Overrides for prompt files with these lines, separated by "|"."""
    for name, prompts in lists.items():
        (folder / f"{name}.txt").write_text(prompts.replace("|", "\n") + "\n", encoding="utf-8")
    return [f"prompts.{name}={folder / name}.txt" for name in lists]


OWN = {"train": "A cat.|A dog.|A cow.|A hen.", "heldout": "A fox.|A bee.", "validation": "An owl.|An ant."}


def test_the_evaluation_takes_the_prompts_that_it_names(tmp_path: Path) -> None:
    own = files(tmp_path, **OWN)
    assert prepare(load_suite("nano", own)).scored_prompts == ["A fox.", "A bee."]
    assert prepare(load_suite("nano", [*own, *PILOT])).scored_prompts == ["An owl.", "An ant."]


def test_a_validation_list_is_part_of_the_digest_and_its_absence_changes_nothing(tmp_path: Path) -> None:
    with_list = load_suite("nano", files(tmp_path, **OWN)).prompt_lists()
    without = load_suite("nano", files(tmp_path, train=OWN["train"], heldout=OWN["heldout"])).prompt_lists()
    assert without.validation is None
    assert with_list.digest != without.digest


def test_nano_splits_its_captions_in_three() -> None:
    lists = load_suite("nano").prompt_lists()
    assert lists.validation is not None
    assert (len(lists.train), len(lists.validation), len(lists.held_out)) == (96, 12, 36)


def test_validation_without_validation_prompts_is_refused(tmp_path: Path) -> None:
    own = files(tmp_path, train=OWN["train"], heldout=OWN["heldout"])
    with pytest.raises(BenchError, match=r"^suite nano: evaluation\.prompts is validation, .* prompts\.validation\.$"):
        load_suite("nano", [*own, *PILOT])


@pytest.mark.parametrize(
    ("which", "seed", "words"),
    [
        ("validation", 0, "evaluation.seed is 0"),
        ("validation", VALIDATION_SEED - 1, "evaluation.seed is 999"),
        ("heldout", VALIDATION_SEED, "evaluation.seed is 1000"),
        ("heldout", 5000, "evaluation.seed is 5000"),
    ],
)
def test_noise_of_the_other_split_is_refused(which: str, seed: int, words: str) -> None:
    with pytest.raises(BenchError) as caught:
        load_suite("nano", [f"evaluation.prompts={which}", f"evaluation.seed={seed}"])
    message = str(caught.value)
    assert words in message
    assert message.startswith("suite nano: ")
    assert message.count(". ") == 0, "one sentence"


@pytest.mark.parametrize("seed", [0, VALIDATION_SEED - 1])
def test_noise_of_the_held_out_split_is_taken(seed: int) -> None:
    assert load_suite("nano", [f"evaluation.seed={seed}"]).evaluation.seed == seed


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(BenchError, match=r"evaluation\.prompts"):
        load_suite("nano", ["evaluation.prompts=train"])


@pytest.mark.parametrize(
    ("lists", "names"),
    [
        ({"validation": "An owl.|A dog."}, "the training and in the validation"),
        ({"validation": "An owl.|a  DOG!"}, "the training and in the validation"),
        ({"validation": "An owl.|A fox"}, "the held-out and in the validation"),
        ({"heldout": "A fox.|a cow"}, "the training and in the held-out"),
    ],
)
def test_a_prompt_of_two_lists_is_refused_however_it_is_written(
    lists: dict[str, str], names: str, tmp_path: Path
) -> None:
    suite = load_suite("nano", files(tmp_path, **OWN | lists))
    with pytest.raises(BenchError, match=rf"^prompt '.*' is in {names} list: remove it from one of them\.$"):
        suite.prompt_lists()
