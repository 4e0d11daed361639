"""Files of votes: what is read, and the one sentence that refuses a file that was changed or is about other videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.core.errors import BenchError
from bench.report.data.loading import load_records
from bench.report.data.records import SuiteRecords
from bench.report.data.vote_files import COLUMNS, VOTES_BYTES
from bench.report.data.votes import check_records, read_votes, votes_digest
from tests.helpers import toy_records
from tests.helpers.raters import ROWS, by_order, keep_videos, vote_list, votes, write_votes


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> SuiteRecords:
    """A suite with the rows of `ROWS` and the index of kept videos."""
    folder = toy_records.write_suite(tmp_path_factory.mktemp("records") / "toy")
    for run in load_records(folder).runs:
        keep_videos(run.folder, run.record.row, "" if run.record.seed is None else str(run.record.seed))
    return load_records(folder)


def anna(**changes: Any) -> pd.DataFrame:
    return votes("anna", by_order(), **changes)


def test_a_file_is_read(tmp_path: Path) -> None:
    found = read_votes([write_votes(tmp_path, anna())])
    assert (found.suite, found.digest, found.copies) == ("toy", "0" * 16, 0)
    assert found.labels == set(ROWS)
    assert len(found.answers) == 12 * 3
    assert found.answers["order"].tolist() == [order for order in range(1, 13) for _ in range(3)]
    assert found.answers.loc[found.answers["kind"] == "repeat", "first"].tolist() == [1, 1, 1]
    assert found.answers.loc[0, "place"].startswith(str(tmp_path / "votes-anna.csv:"))


def test_line_ends_quotes_a_byte_order_mark_and_the_order_of_files_do_not_matter(tmp_path: Path) -> None:
    paths = [write_votes(tmp_path, anna()), write_votes(tmp_path, votes("ben", by_order()))]
    other = tmp_path / "other.csv"
    quoted = anna().to_csv(index=False, quoting=1, lineterminator="\n")
    other.write_text("\ufeff" + quoted, encoding="utf-8")
    columns = [*COLUMNS, "first"]
    expected = read_votes(paths).answers[columns]
    pd.testing.assert_frame_equal(read_votes([paths[1], other]).answers[columns], expected)


def test_a_file_that_is_given_twice_and_an_earlier_export_count_once(tmp_path: Path) -> None:
    whole, part = write_votes(tmp_path, anna()), write_votes(tmp_path, anna().head(9), "earlier")
    found = read_votes([part, whole, whole])
    assert (len(found.answers), found.copies) == (36, 36 + 9)


def test_one_rater_may_answer_two_lists(tmp_path: Path) -> None:
    paths = [write_votes(tmp_path, anna(vote=number), str(number)) for number in (1, 2)]
    assert len(read_votes(paths).answers) == 72


Change = Callable[[pd.DataFrame], pd.DataFrame]


def cell(line: int, column: str, value: Any) -> Change:
    def change(lines: pd.DataFrame) -> pd.DataFrame:
        lines = lines.astype(object)
        lines.loc[line, column] = value
        return lines

    return change


def pair_cells(order: int, **values: Any) -> Change:
    def change(lines: pd.DataFrame) -> pd.DataFrame:
        lines = lines.astype(object)
        for column, value in values.items():
            lines.loc[lines["order"] == order, column] = value
        return lines

    return change


def swap_labels(lines: pd.DataFrame) -> pd.DataFrame:
    return lines.assign(
        left=lines["left"].where(lines["order"] != 3, lines["right"]),
        right=lines["right"].where(lines["order"] != 3, lines["left"]),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines.rename(columns={"answer": "choice"}), ":1: the columns differ in choice, answer"),
        (lambda lines: lines[lines.columns[::-1]], ":1: the columns have another order"),
        (lambda lines: lines.assign(more=1), ":1: the columns differ in more"),
        (lambda lines: lines.head(0), "has no answers"),
        (cell(4, "answer", "both"), ":6: answer is 'both', not left, right or tie"),
        (cell(4, "seconds", "NaN"), ":6: seconds is 'NaN', not a number of seconds"),
        (cell(4, "seconds", "-1.0"), ":6: seconds is '-1.0'"),
        (cell(4, "seconds", float("inf")), ":6: seconds is 'inf'"),
        (cell(4, "answer", None), ":6: answer is ''"),
        (cell(0, "alias", '=HYPERLINK("http://x")'), ":2: alias is '=HYPERLINK(\"http://x\")', not 1 to 32 letters"),
        (cell(0, "alias", "a" * 33), ":2: alias is 'aaa"),
        (cell(0, "left", "../base"), ":2: left is '../base', not the label of a row"),
        (cell(0, "suite", "../../etc"), ":2: suite is '../../etc', not the name of a suite"),
        (cell(0, "order", 0), ":2: order is '0', not a number from 1 on"),
        (cell(4, "kind", "repeat"), ":6: kind is repeat, and pair for another question of the same pair"),
        (cell(4, "colour_blind", "yes"), ":6: colour_blind is yes, and no for another question"),
        (pair_cells(3, colour_blind="yes"), ":8: colour_blind changes within the list of anna"),
        (cell(4, "question", "visual"), ":6: a second answer of anna about visual of pair 2, list 1"),
        (lambda lines: lines.drop(index=4), ":5: pair 2 has no answer about motion"),
        (lambda lines: lines[lines["order"] != 5], ":14: pair 5 of anna is missing before it"),
        (lambda lines: pd.concat([lines, lines.tail(3)]), ":38: a second answer of anna about visual of pair 12"),
        (pair_cells(4, kind="pair"), "a pair of kind pair shows "),
        (pair_cells(3, kind="identical"), ":8: a pair of kind identical shows "),
        (pair_cells(10, prompt_index=5), ":29: a repeat of no earlier pair with its sides swapped"),
        (swap_labels, "has another hash than at "),
        (lambda lines: lines[lines["kind"] == "identical"].assign(order=lines["order"] // 4), "no pair of two rows"),
        (cell(5, "digest", "1" * 16), ":7: a vote on the report with digest 1111111111111111, and "),
        (cell(5, "suite", "nano"), ":7: a vote on suite nano, and "),
    ],
)
def test_a_changed_file_is_refused_with_its_line(change: Change, message: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError) as caught:
        read_votes([write_votes(tmp_path, change(anna()), "changed")])
    assert message in str(caught.value)
    assert str(tmp_path / "votes-changed.csv") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ":1: the file is empty"),
        (b"\xff\xfe,", "is not UTF-8 text (line 1)"),
        (",".join(COLUMNS).encode() + b'\n"toy', ":2: not CSV"),
        (",".join(COLUMNS).encode() + b"\ntoy,1\n", ":2: 2 fields instead of 17"),
        (",".join(COLUMNS).encode() + b"\n\0", "holds a NUL character"),
        (b"x" * (VOTES_BYTES + 1), "is too large"),
    ],
)
def test_what_is_no_file_of_votes_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=r"votes\.csv") as caught:
        read_votes([path])
    assert message in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"none\.csv cannot be read"):
        read_votes([tmp_path / "none.csv"])


def test_two_reports_and_two_raters_of_one_name_are_refused(tmp_path: Path) -> None:
    first = write_votes(tmp_path, anna(), "first")
    for other, message in [
        (anna(digest="1" * 16), "count the votes on each report by themselves"),
        (
            votes("anna", by_order(ROWS[::-1])),
            r"other\.csv:\d+: anna has another answer for pair \d+ of list 1 than at",
        ),
        (anna(seconds=9.0), r"other\.csv:2: anna has another seconds for pair 1 of list 1 than at .*first\.csv:2"),
    ]:
        with pytest.raises(BenchError, match=message):
            read_votes([first, write_votes(tmp_path, other, "other")])


def test_a_list_shows_the_same_pairs_to_all_raters(tmp_path: Path) -> None:
    first = write_votes(tmp_path, anna(), "first")
    ben = votes("ben", by_order(), vote=1, shown=vote_list(2))
    with pytest.raises(BenchError, match=r"other\.csv:\d+: pair \d+ of list 1 has \w+ .*, and .* at .*first\.csv:\d+"):
        read_votes([first, write_votes(tmp_path, ben, "other")])


def test_votes_belong_to_their_records(records: SuiteRecords, tmp_path: Path) -> None:
    check_records(read_votes([write_votes(tmp_path, anna(digest=votes_digest(records.runs)))]), records)


def test_votes_on_other_records_are_refused(records: SuiteRecords, tmp_path: Path) -> None:
    own = votes_digest(records.runs)
    with_row = [
        {**pair, **{side: "sage-2" if pair[side] == ROWS[1] else pair[side] for side in ("left", "right")}}
        for pair in vote_list(1)
    ]
    swapped = anna(digest=own).replace({ROWS[1]: ROWS[2], ROWS[2]: ROWS[1]})
    cases = [
        (anna(digest="1" * 16), f"the report with digest {'1' * 16}, and that of {records.folder} has {own}"),
        (anna(digest=own, suite="nano"), f"a vote on suite nano, and {records.folder} holds toy"),
        (votes("anna", lambda *_: "tie", shown=with_row, digest=own), "has no finished run of a row sage-2"),
        (swapped, "the hash is not that of a kept video of "),
        (anna(digest=own, shown=vote_list(1, prompts=9)), "the hash is not that of a kept video of "),
    ]
    for number, (lines, message) in enumerate(cases):
        with pytest.raises(BenchError) as caught:
            check_records(read_votes([write_votes(tmp_path, lines, str(number))]), records)
        assert message in str(caught.value)
        assert f"votes-{number}.csv:" in str(caught.value)


def test_the_digest_is_that_of_the_runs_shown(records: SuiteRecords) -> None:
    again, fewer = load_records(records.folder), load_records(records.folder, seeds=[0, 1])
    assert votes_digest(again.runs) == votes_digest(records.runs)
    assert votes_digest(fewer.runs) != votes_digest(records.runs)
