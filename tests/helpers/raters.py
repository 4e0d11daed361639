"""Raters made by formula: answers with known strengths, and the files of votes that a report's page would export."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.report.data.vote_files import COLUMNS, IDENTICAL, LEFT, PAIR, QUESTIONS, REPEAT, RIGHT, TIE

ROWS = ("base", "sage_grpo-dual", "cps-fixed")
SWAPPED = {LEFT: RIGHT, RIGHT: LEFT, TIE: TIE}


def clip_hash(row: str, seed: str = "0") -> str:
    """Hash of the file with all clips of a run; the base has one run for all seeds."""
    return hashlib.sha256(f"{row} {'' if row == 'base' else seed}".encode()).hexdigest()


def vote_list(vote: int, rows: Sequence[str] = ROWS, length: int = 12, prompts: int = 6) -> list[dict[str, Any]]:
    """What the pairs of a list show, by its number: pairs 4 and 8 are identical, each tenth repeats an earlier one."""
    rng = np.random.default_rng(vote)
    both = list(itertools.permutations(rows, 2))
    shown: list[dict[str, Any]] = []
    for order in range(1, length + 1):
        left, right = both[rng.integers(len(both))]
        pair = {"kind": PAIR, "prompt_index": int(rng.integers(prompts)), "video": 0, "seed": "0"}
        if order in (4, 8):
            pair, right = {**pair, "kind": IDENTICAL}, left
        elif order % 10 == 0:
            earlier = shown[order - 10]
            pair = {**earlier, "kind": REPEAT}
            left, right = earlier[RIGHT], earlier[LEFT]
        hashes = {"left_sha256": clip_hash(left), "right_sha256": clip_hash(right)}
        shown.append({**pair, "order": order, LEFT: left, RIGHT: right, **hashes})
    return shown


Answer = Callable[[dict[str, Any], str], str]
"""Shown pair and question to left, right or tie."""


def by_order(rows: Sequence[str] = ROWS) -> Answer:
    """A rater who prefers the row that comes first, and sees that identical clips are."""
    place = {row: index for index, row in enumerate(rows)}

    def answer(pair: dict[str, Any], _: str) -> str:
        difference = place[pair[LEFT]] - place[pair[RIGHT]]
        return TIE if difference == 0 else LEFT if difference < 0 else RIGHT

    return answer


def votes(
    alias: str, answer: Answer, vote: int = 1, shown: list[dict[str, Any]] | None = None, **changes: Any
) -> pd.DataFrame:
    """The lines of a rater's file; `changes` are other values of columns."""
    shared = {"suite": "toy", "digest": "0" * 16, "vote": vote, "alias": alias, "seconds": 4.2, "colour_blind": "no"}
    lines = [
        {**shared, **pair, "question": question, "answer": answer(pair, question), **changes}
        for pair in (vote_list(vote) if shown is None else shown)
        for question in QUESTIONS
    ]
    return pd.DataFrame(lines)[list(COLUMNS)]


def write_votes(folder: Path, lines: pd.DataFrame, name: str = "") -> Path:
    """The file of the lines, with the line ends of RFC 4180."""
    path = folder / f"votes-{name or lines['alias'].iloc[0]}.csv"
    path.write_text(lines.to_csv(index=False, lineterminator="\r\n"), encoding="utf-8", newline="")
    return path


def keep_videos(run: Path, row: str, seed: str, prompts: int = 6) -> None:
    """The index of a run's kept videos, whose clips are in one file with `clip_hash`."""
    clips = [
        {"prompt_index": p, "video": 0, "file": "clips.webp", "line": p, "sha256": clip_hash(row, seed)}
        for p in range(prompts)
    ]
    index = {"fps": 8.0, "frames": 13, "height": 32, "width": 32, "format": "webp", "clips": clips}
    (run / "videos").mkdir()
    (run / "videos" / "index.json").write_text(json.dumps(index))


@dataclass(frozen=True)
class Raters:
    """A study. A rater calls a pair a tie with the chance `ties`, else prefers by a logistic law.

    The log odds of the left side are the difference of the strengths, plus those of the rater's and of the prompt's
    own effects on each row (normal), plus `side`.
    """

    strengths: Sequence[float]
    """Log odds, one per row."""
    raters: int = 12
    prompts: int = 12
    pairs: int = 30
    """Pairs of each rater."""
    rater_effect: float = 0.0
    prompt_effect: float = 0.0
    """Standard deviations, log odds."""
    ties: float = 0.0
    side: float = 0.0
    questions: Sequence[str] = tuple(QUESTIONS)

    @property
    def rows(self) -> list[str]:
        """The labels."""
        return [f"row{index}" for index in range(len(self.strengths))]

    def answers(self, rng: np.random.Generator) -> pd.DataFrame:
        """Answers on pairs of kind pair, with the columns that `preferences` reads."""
        n, shown = len(self.strengths), list(itertools.permutations(range(len(self.strengths)), 2))
        of_rater = rng.normal(0, self.rater_effect, (self.raters, n))
        of_prompt = rng.normal(0, self.prompt_effect, (self.prompts, n))
        total = self.raters * self.pairs
        sides = np.concatenate([rng.permutation(np.resize(shown, (self.pairs, 2))) for _ in range(self.raters)])
        rater, prompt = np.repeat(np.arange(self.raters), self.pairs), rng.integers(self.prompts, size=total)
        worth = np.asarray(self.strengths) + of_rater[rater] + of_prompt[prompt]
        left, right = (worth[np.arange(total), sides[:, side]] for side in (0, 1))
        chance = 1 / (1 + np.exp(right - left - self.side))
        labels = np.array(self.rows)
        shared = {
            **{"suite": "toy", "digest": "0" * 16, "vote": [str(one) for one in rater]},
            **{"alias": [f"rater{one}" for one in rater], "order": np.tile(np.arange(1, self.pairs + 1), self.raters)},
            **{"kind": PAIR, "prompt_index": prompt.astype(str), "video": "0", "seed": "0"},
            **{"left": labels[sides[:, 0]], "right": labels[sides[:, 1]], "seconds": 5.0, "colour_blind": "no"},
        }
        frames = []
        for question in self.questions:
            decided = np.where(rng.random(total) < chance, LEFT, RIGHT)
            answer = np.where(rng.random(total) < self.ties, TIE, decided)
            frames.append(pd.DataFrame({**shared, "question": question, "answer": answer, "first": 0}))
        return pd.concat(frames, ignore_index=True)
