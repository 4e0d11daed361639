"""Votes of raters on pairs of videos, from the CSV files that a report's blind vote exports: united and checked.

A file is not signed: the checks find files that were damaged, mixed up or edited in part, and not a rater who makes
answers up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.core.errors import BenchError
from bench.core.hashing import digest
from bench.report.data.records import Run, SuiteRecords
from bench.report.data.vote_files import (
    ANSWER,
    COLUMNS,
    IDENTICAL,
    LEFT,
    ORIGINAL,
    PAIR,
    PLACE,
    QUESTIONS,
    REPEAT,
    RIGHT,
    SESSION,
    SHOWN,
    read_file,
)
from bench.store.videos import read_videos


@dataclass(frozen=True)
class Votes:
    """The answers of all files, each once."""

    suite: str
    digest: str
    """`votes_digest` of the records that the page was made from."""
    answers: pd.DataFrame
    """The columns of `read_file`, and `first`: for a repeat the order of the pair that it shows again, else 0. Sorted
    by alias, list, order and question, so that the order of the files does not matter."""
    copies: int
    """Lines that were left out because they stand in two files."""

    @property
    def labels(self) -> set[str]:
        """Labels of the rows that were voted on."""
        pairs = self.answers[self.answers["kind"] == PAIR]
        return {*pairs[LEFT], *pairs[RIGHT]}


def votes_digest(runs: Iterable[Run]) -> str:
    """16 hexadecimal digits that identify what a report shows: its runs, by their digests, and their kept videos.

    The page writes it into each vote, and votes with another one are about other videos.
    """
    return digest(sorted([run.record.digest, run.record.videos_digest or ""] for run in runs))


def read_votes(paths: Sequence[Path]) -> Votes:
    """The votes of all files; what is not as a page exported it is a `BenchError` with the file and the line.

    A line that stands in two files with the same content, as where a rater exported twice, counts once.
    """
    lines = pd.concat([read_file(path) for path in paths], ignore_index=True)
    for column, what in (("suite", "on suite"), ("digest", "on the report with digest")):
        for line, first in _differing(lines, [], column):
            raise BenchError(
                f"{line[PLACE]}: a vote {what} {line[column]}, and {first[PLACE]} is {what} {first[column]}: count "
                "the votes on each report by themselves."
            )
    once = lines.drop_duplicates(list(COLUMNS))
    for column in ("answer", "seconds", *COLUMNS):
        for line, first in _differing(once, ANSWER, column):
            raise BenchError(
                f"{line[PLACE]}: {line['alias']} has another {column} for pair {line['order']} of list {line['vote']} "
                f"than at {first[PLACE]}: a rater has one alias, and answers a list once."
            )
    pairs = _checked_pairs(once)
    if not (pairs["kind"] == PAIR).any():
        raise BenchError(f"{lines[PLACE].iloc[0]}: no pair of two rows: export the votes again after the first pairs.")
    firsts = [_check_session(session.sort_values("order")) for _, session in pairs.groupby(SESSION)]
    _check_lists(pairs)
    _check_clips(pairs)
    answers = once.merge(pd.concat(firsts), on=[*SESSION, "order"])
    place = {question: index for index, question in enumerate(QUESTIONS)}
    answers = answers.sort_values(
        ANSWER, key=lambda values: values.map(place) if values.name == "question" else values, ignore_index=True
    )
    return Votes(lines["suite"].iloc[0], lines["digest"].iloc[0], answers, len(lines) - len(once))


def _differing(lines: pd.DataFrame, key: list[str], column: str) -> Iterator[tuple[pd.Series, pd.Series]]:
    """The first line whose `column` differs from that of its key's first line, and the latter; else nothing."""
    first = (lines.groupby(key) if key else lines.groupby(lambda _: 0))[[column, PLACE]].transform("first")
    other = lines.index[lines[column] != first[column]]
    if len(other):
        yield lines.loc[other[0]], first.loc[other[0]]


def _checked_pairs(lines: pd.DataFrame) -> pd.DataFrame:
    """One line per shown pair; each has its three questions, and they agree in what was shown."""
    key = [*SESSION, "order"]
    for _, pair in lines.groupby(key, sort=False):
        missing = [question for question in QUESTIONS if question not in set(pair["question"])]
        if missing:
            line = pair.iloc[0]
            raise BenchError(
                f"{line[PLACE]}: pair {line['order']} has no answer about {', '.join(missing)}: {ORIGINAL}."
            )
    for column in (*SHOWN, "colour_blind"):
        for line, first in _differing(lines, key, column):
            raise BenchError(
                f"{line[PLACE]}: {column} is {line[column]}, and {first[column]} for another question of the same "
                f"pair: {ORIGINAL}."
            )
    pairs = lines.drop_duplicates(key)
    rows_equal = pairs[LEFT] == pairs[RIGHT]
    clips_equal = rows_equal & (pairs["left_sha256"] == pairs["right_sha256"])
    identical = pairs["kind"] == IDENTICAL
    for _, line in pairs[(identical != clips_equal) | (identical != rows_equal)].iterrows():
        raise BenchError(
            f"{line[PLACE]}: a pair of kind {line['kind']} shows {line[LEFT]} beside {line[RIGHT]}: {ORIGINAL}."
        )
    return pairs


def _check_session(session: pd.DataFrame) -> pd.DataFrame:
    """`first` of the pairs of one rater's list, given in order; a gap, or a repeat of no earlier pair, is refused."""
    for expected, (_, line) in enumerate(session.iterrows(), 1):
        if line["order"] != expected:
            raise BenchError(f"{line[PLACE]}: pair {expected} of {line['alias']} is missing before it: {ORIGINAL}.")
    for line, _ in _differing(session, [], "colour_blind"):
        raise BenchError(f"{line[PLACE]}: colour_blind changes within the list of {line['alias']}: {ORIGINAL}.")
    shown_before: dict[tuple[str, ...], int] = {}
    firsts = []
    for _, line in session.iterrows():
        clips = tuple(line[name] for name in ("prompt_index", "video", "seed"))
        if line["kind"] == PAIR:
            shown_before[*clips, line[LEFT], line[RIGHT]] = line["order"]
        first = shown_before.get((*clips, line[RIGHT], line[LEFT]), 0) if line["kind"] == REPEAT else 0
        if line["kind"] == REPEAT and not first:
            raise BenchError(f"{line[PLACE]}: a repeat of no earlier pair with its sides swapped: {ORIGINAL}.")
        firsts.append(first)
    return session[[*SESSION, "order"]].assign(first=firsts)


def _check_lists(pairs: pd.DataFrame) -> None:
    """The number of a list decides what each of its pairs shows, for all raters."""
    for column in SHOWN:
        for line, first in _differing(pairs, ["vote", "order"], column):
            raise BenchError(
                f"{line[PLACE]}: pair {line['order']} of list {line['vote']} has {column} {line[column]}, and "
                f"{first[column]} at {first[PLACE]}: {ORIGINAL}."
            )


def _sides(pairs: pd.DataFrame) -> pd.DataFrame:
    """One line per shown clip: row, sha256, and the columns of its pair."""
    sides = [pairs.assign(row=pairs[side], sha256=pairs[f"{side}_sha256"]) for side in (LEFT, RIGHT)]
    return pd.concat(sides, ignore_index=True)


def _check_clips(pairs: pd.DataFrame) -> None:
    """Each clip has one hash; where one file holds all clips of a run, each run has."""
    sides = _sides(pairs)
    one_file = bool((sides.groupby("sha256")[["prompt_index", "video"]].nunique() > 1).any(axis=None))
    clip = ["row", "seed"] if one_file else ["row", "seed", "prompt_index", "video"]
    for line, first in _differing(sides, clip, "sha256"):
        raise BenchError(
            f"{line[PLACE]}: the clip of {line['row']} has another hash than at {first[PLACE]}: {ORIGINAL}."
        )


def check_records(votes: Votes, suite: SuiteRecords) -> None:
    """Raise a `BenchError` unless the votes are about the runs and the kept videos of these records."""
    first, own = votes.answers.iloc[0], votes_digest(suite.runs)
    fix = "name with --suite the folder of the records whose report the raters saw"
    if votes.suite != suite.name:
        raise BenchError(
            f"{first[PLACE]}: a vote on suite {votes.suite}, and {suite.folder} holds {suite.name}: {fix}."
        )
    known = {run.record.row for run in suite.runs}
    sides = _sides(votes.answers.drop_duplicates([*SESSION, "order"]))
    for _, line in sides[~sides["row"].isin(known)].iterrows():
        raise BenchError(f"{line[PLACE]}: {suite.folder} has no finished run of a row {line['row']}: {fix}.")
    if votes.digest != own:
        raise BenchError(
            f"{first[PLACE]}: a vote on the report with digest {votes.digest}, and that of {suite.folder} has {own}, "
            f"so its runs or videos are other ones: {fix}."
        )
    hashes = dict(_clip_hashes(suite))
    base = suite.base.record.row if suite.base else None
    for _, line in sides.iterrows():
        seed = "" if line["row"] == base else line["seed"]
        if hashes.get((line["row"], seed, line["prompt_index"], line["video"])) != line["sha256"]:
            raise BenchError(
                f"{line[PLACE]}: the hash is not that of a kept video of {line['row']}, seed {line['seed']}, prompt "
                f"{line['prompt_index']}, video {line['video']}: {ORIGINAL}."
            )


def _clip_hashes(suite: SuiteRecords) -> Iterator[tuple[tuple[str, str, str, str], str]]:
    """Row, seed ("" for the base), prompt and video of each kept clip, as in a file of votes, and its hash."""
    for run in suite.runs:
        kept = read_videos(run.folder)
        if kept is not None:
            seed = "" if run.record.seed is None else str(run.record.seed)
            for clip in kept.index["clips"]:
                yield (run.record.row, seed, str(clip["prompt_index"]), str(clip["video"])), clip["sha256"]
