"""Prompt files of a suite: one prompt per line; empty lines and lines that start with '#' are skipped."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

from bench.core.errors import BenchError
from bench.core.hashing import digest
from bench.core.limits import PROMPT_CHARACTERS, PROMPTS
from bench.core.text import read_list, shown
from bench.suite.leakage import leaked
from bench.suite.paths import resolve


@dataclass(frozen=True)
class PromptLists:
    """The prompts of a suite."""

    train: list[str]
    """Prompts of the rollouts."""
    held_out: list[str]
    """Prompts of reported tables; no run is trained on them, and no setting is chosen by them."""
    validation: list[str] | None = None
    """Prompts by which settings are chosen; None for a suite without them."""

    def scored(self, which: Literal["heldout", "validation"]) -> list[str]:
        """The prompts of an evaluation; [] for validation prompts of a suite without them."""
        return self.held_out if which == "heldout" else self.validation or []

    def digest(self, which: Literal["heldout", "validation"]) -> str:
        """Digest of the training prompts and of those that are scored: all that the numbers of a run depend on."""
        return digest([self.train, self.scored(which)])

    def check(self, prompts_per_update: int) -> None:
        """Refuse a prompt that is in two lists, and fewer training prompts than an update needs.

        Other case, punctuation or spaces make no other prompt (`bench.suite.leakage`).
        """
        lists = {"training": self.train, "held-out": self.held_out, "validation": self.validation or []}
        for prompt, one, other in leaked(lists)[:1]:
            raise BenchError(
                f"prompt {shown(repr(prompt))} is in the {one} and in the {other} list: remove it from one of them."
            )
        if prompts_per_update > len(self.train):
            raise BenchError(
                f"budget.prompts is {prompts_per_update}, but the training list has {len(self.train)}: lower it."
            )


NO_TEXT = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".yaml", ".yml", ".parquet", ".xlsx")
"""Suffixes of files that are no plain text with a prompt per line."""


def normal_form(prompt: str) -> str:
    """The text by which prompts are compared: without spaces at its ends, in Unicode's normal form C."""
    return unicodedata.normalize("NFC", prompt.strip())


def read_prompts(name: str, key: str) -> list[str]:
    """Prompts of the file that the suite's key `key` names, as they stand there.

    An empty list, a repeated prompt and one that is too long are refused. Prompts are compared by `normal_form`.
    """
    path = resolve(name)
    prompts = [line for line in _lines(name, key) if line.strip() and not line.startswith("#")]
    if len(prompts) > PROMPTS:
        raise BenchError(f"prompt file {path} has {len(prompts):,} prompts: give at most {PROMPTS:,}.")
    if len(set(map(normal_form, prompts))) < len(prompts) or not prompts:
        raise BenchError(f"prompt file {path} is empty or contains a prompt twice: give each prompt once.")
    longest = max(prompts, key=len)
    if len(longest) > PROMPT_CHARACTERS:
        raise BenchError(
            f"prompt file {path} has a prompt of {len(longest):,} characters ({shown(longest, 40)}): the limit is "
            f"{PROMPT_CHARACTERS:,}, so shorten it."
        )
    return prompts


def count_comments(name: str, key: str) -> int:
    """Lines of a prompt file that start with '#'."""
    return sum(line.startswith("#") for line in _lines(name, key))


def _lines(name: str, key: str) -> list[str]:
    path = resolve(name)
    if path.suffix.lower() in NO_TEXT:
        raise BenchError(f"prompt file {path} is a {path.suffix}: give a text file with a prompt per line in '{key}'.")
    return read_list(path, "prompt file", f"check '{key}' in the YAML").split("\n")
