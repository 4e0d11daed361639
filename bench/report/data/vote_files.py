"""The CSV file of a rater's votes, as a report's page exports it: its columns, and its lines, each checked alone."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from bench.core.errors import BenchError
from bench.core.hashing import DIGEST_LENGTH
from bench.core.text import read_text, shown

VOTES_BYTES = 16_000_000
"""Size of a file of votes, in bytes: about 50,000 answers."""
QUESTIONS = {"visual": "Visual quality", "motion": "Motion quality", "text": "Text alignment"}
"""The three questions, by the names in a file of votes."""
PAIR, REPEAT, IDENTICAL = "pair", "repeat", "identical"
"""Kinds of a shown pair: one that counts, an earlier one with its sides swapped, and twice the same clip."""
LEFT, RIGHT, TIE = "left", "right", "tie"
ORIGINAL = "take the file as the report exported it"
"""The fix of a file that was changed."""


class Field(NamedTuple):
    """What a column holds."""

    pattern: str
    text: str
    """In words, for messages."""


_NUMBER = "0|[1-9][0-9]{0,18}"
_HASH = Field("[0-9a-f]{64}", "the sha256 of a clip's file")
_ROW = Field(r"[\w.-]{1,100}", "the label of a row")
COLUMNS = {
    "suite": Field("[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)?", "the name of a suite"),
    "digest": Field(f"[0-9a-f]{{{DIGEST_LENGTH}}}", f"{DIGEST_LENGTH} hexadecimal digits"),
    "vote": Field(_NUMBER, "the number of a vote list"),
    "alias": Field("[A-Za-z0-9_-]{1,32}", "1 to 32 letters, digits, - and _"),
    "order": Field("[1-9][0-9]{0,5}", "a number from 1 on"),
    "kind": Field(f"{PAIR}|{REPEAT}|{IDENTICAL}", f"{PAIR}, {REPEAT} or {IDENTICAL}"),
    "prompt_index": Field(_NUMBER, "the number of a prompt"),
    "video": Field(_NUMBER, "the number of a video"),
    "seed": Field(f"(-?({_NUMBER}))?", "a training seed"),
    **{"left": _ROW, "right": _ROW, "left_sha256": _HASH, "right_sha256": _HASH},
    "question": Field("|".join(QUESTIONS), "visual, motion or text"),
    "answer": Field(f"{LEFT}|{RIGHT}|{TIE}", f"{LEFT}, {RIGHT} or {TIE}"),
    "seconds": Field(r"[0-9]{1,7}(\.[0-9]{1,3})?", "a number of seconds such as 4.2"),
    "colour_blind": Field("yes|no|unsaid", "yes, no or unsaid"),
}
"""Column to content, in the order of a file."""
SESSION = ["alias", "vote"]
"""Columns that name one rater's answers to one vote list."""
ANSWER = [*SESSION, "order", "question"]
"""Columns that name one answer."""
SHOWN = ["kind", "prompt_index", "video", "seed", "left", "right", "left_sha256", "right_sha256"]
"""Columns that say what a pair shows."""
PLACE = "place"
"""Column of a read line: its file and number."""


def read_file(path: Path) -> pd.DataFrame:
    """The lines of one file: the columns of the file, as text except order (int) and seconds (float), and `PLACE`.

    A file of other columns or values, and one that answers a question of a pair twice, is a `BenchError`.
    """
    text = read_text(path, "votes", "name the CSV files that the report exported", VOTES_BYTES)
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        _check_header(next(reader, []), path)
        rows = [_checked(fields, f"{shown(path)}:{number}") for number, fields in enumerate(reader, 2)]
    except csv.Error as cause:
        raise BenchError(f"{shown(path)}:{reader.line_num}: not CSV ({cause}): {ORIGINAL}.") from cause
    if not rows:
        raise BenchError(f"votes {shown(path)} has no answers: export it again after the first pair.")
    lines = pd.DataFrame(rows, columns=[*COLUMNS, PLACE]).astype({"order": int, "seconds": float})
    for _, line in lines[lines.duplicated(ANSWER)].iterrows():
        what = f"a second answer of {line['alias']} about {line['question']} of pair {line['order']}"
        raise BenchError(f"{line[PLACE]}: {what}, list {line['vote']}: {ORIGINAL}.")
    return lines


def _check_header(header: Sequence[str], path: Path) -> None:
    if list(header) == list(COLUMNS):
        return
    other = [name for name in header if name not in COLUMNS] + [name for name in COLUMNS if name not in header]
    what = f"the columns differ in {', '.join(map(shown, other[:5]))}" if other else "the columns have another order"
    raise BenchError(f"{shown(path)}:1: {what if header else 'the file is empty'}: {ORIGINAL}.")


def _checked(fields: Sequence[str], place: str) -> list[str]:
    """The fields of one line and its place."""
    if len(fields) != len(COLUMNS):
        raise BenchError(f"{place}: {len(fields)} fields instead of {len(COLUMNS)}: {ORIGINAL}.")
    for (name, field), value in zip(COLUMNS.items(), fields, strict=True):
        if not re.fullmatch(field.pattern, value):
            raise BenchError(f"{place}: {name} is '{shown(value)}', not {field.text}: {ORIGINAL}.")
    return [*fields, place]
