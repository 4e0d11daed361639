"""Prompt by prompt: words, gains, losses, colours of the heat map."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.report.page.prompts import STEPS, best, heat_maps, losses, tags, told_prompts
from bench.report.page.subject import Subject
from tests.helpers.mean_records import load, write


def test_words_of_nano_captions_are_their_attributes() -> None:
    prompts = ["a red circle moving left slowly", "a blue square moving up quickly"]
    assert tags(prompts) == [["red", "circle", "left", "slowly"], ["blue", "square", "up", "quickly"]]


def test_words_that_some_prompts_share_are_tags() -> None:
    assert tags(["a dog runs", "a dog sleeps", "a cat sleeps"]) == [["dog"], ["dog", "sleeps"], ["sleeps"]]


def test_sentences_without_shared_words_have_no_tags() -> None:
    assert tags(["storm over hills", "an old man", "two boats"]) == [[], [], []]


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    folder = write(tmp_path / "toy", {"cps-fixed": [-0.5, -0.5, -0.5], "sage_grpo-dual": [1.0, 1.0, 1.0]}, spread=0.3)
    return Subject("toy", folder, {"": load(folder)})


def test_the_heat_map_has_every_gain_and_the_best_prompt_first(subject: Subject) -> None:
    (found,) = heat_maps(subject)
    base = subject.base
    assert base is not None
    assert found.heads == ["CPS, fixed KL", "SAGE-GRPO, dual KL"]
    assert len(found.prompts) == 8
    for line in found.prompts:
        for cell, entry in zip(line.cells, subject.entries, strict=True):
            x = entry.runs.matrix("overall")
            assert x is not None
            gain = float(x.mean(0)[line.prompt] - base.cells["overall"].iloc[line.prompt])
            assert float(cell.text) == pytest.approx(gain, abs=0.005)
            assert cell.row == entry.label
            assert gain * cell.step >= 0
    means = [float(line.mean) for line in found.prompts]
    assert means == sorted(means, reverse=True)
    steps = [cell.step for line in found.prompts for cell in line.cells]
    assert max(steps) == STEPS
    assert min(steps) < 0


def test_losses_name_the_prompts_and_the_worst_comes_first(subject: Subject) -> None:
    cps, sage = losses(subject)
    assert cps.counts.startswith("Overall on ")
    assert "of 8 prompts" in cps.counts
    assert len(cps.prompts) == 2, "Overall and the reward fall"
    numbers = [float(part.partition(")")[0]) for part in cps.prompts[0].split("(")[1:]]
    assert numbers == sorted(numbers)
    assert all(number < 0 for number in numbers)
    assert len(sage.prompts) <= len(cps.prompts)


def test_the_shown_prompts_are_those_of_the_best_row(subject: Subject) -> None:
    entry = best(subject)
    assert entry is not None
    assert entry.label == "sage_grpo-dual"
    found = told_prompts(subject)
    assert len(found) == len(set(found.values())) == 3
    lines = {line.prompt: float(line.cells[1].text) for line in heat_maps(subject)[0].prompts}
    first, median, last = (lines[p] for p in found.values())
    assert first == max(lines.values())
    assert last == min(lines.values())
    assert last <= median <= first
