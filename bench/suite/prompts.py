"""Prompt files of a suite: one prompt per line; empty lines and lines that start with '#' are skipped."""

from __future__ import annotations

from dataclasses import dataclass

from bench.core.errors import BenchError
from bench.core.hashing import digest
from bench.suite.paths import resolve


@dataclass(frozen=True)
class PromptLists:
    """The prompts of a suite."""

    train: list[str]
    """Prompts of the rollouts."""
    held_out: list[str]
    """Prompts of the evaluation; no run is trained on them."""

    @property
    def digest(self) -> str:
        return digest([self.train, self.held_out])

    def check(self, prompts_per_update: int) -> None:
        """Refuse a prompt that is in both lists, and fewer training prompts than an update needs."""
        leaked = sorted(set(self.train) & set(self.held_out))
        if leaked:
            raise BenchError(
                f"prompt {leaked[0]!r} is in the training and in the held-out list: remove it from one of them."
            )
        if prompts_per_update > len(self.train):
            raise BenchError(
                f"budget.prompts is {prompts_per_update}, but the training list has {len(self.train)}: lower it."
            )


def read_prompts(name: str, key: str) -> list[str]:
    """Prompts of the file that the suite's key `key` names; an empty list and a repeated prompt are refused."""
    path = resolve(name)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as cause:
        raise BenchError(
            f"prompt file {path} cannot be read ({cause.strerror}): check '{key}' in the YAML."
        ) from cause
    prompts = [line for line in lines if line.strip() and not line.startswith("#")]
    if len(set(prompts)) < len(prompts) or not prompts:
        raise BenchError(f"prompt file {path} is empty or contains a prompt twice: give each prompt once.")
    return prompts
