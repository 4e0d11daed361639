"""The blind vote: a fair list that a link repeats, no names while it is open, and a file with all answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench import store
from bench.core.hashing import sha256_file
from bench.report.data.loading import load_records
from bench.report.data.votes import check_records, read_votes

COLUMNS = [
    *("suite", "digest", "vote", "alias", "order", "kind", "prompt_index", "video", "seed", "left", "right"),
    *("left_sha256", "right_sha256", "question", "answer", "seconds", "colour_blind"),
]
NAMES = ["base", "sage_grpo-dual", "cps-fixed", "SAGE-GRPO, dual KL", "CPS, fixed KL", "SAGE", "CPS"]
SEEN = """() => [document.body.innerText, ...[...document.querySelectorAll("#vote *")].flatMap(
    element => [...element.attributes].map(attribute => attribute.value))].join("\\n")"""
STATUS = "#vote-app [data-part=live]"
Visit = Callable[..., Any]


def start(page: Any, pairs: int = 12, alias: str = "ann-1") -> None:
    page.fill("[name=alias]", alias)
    page.select_option("[name=sight]", "no")
    page.select_option("[name=pairs]", str(pairs))
    page.click("text=Start the vote")


def answer(page: Any, keys: str) -> None:
    """Press one key per question, each when its pair can be answered."""
    for key in keys:
        page.wait_for_selector(f"#vote-app [data-key='{key}']:not([disabled])")
        page.keyboard.press(key)


def export(page: Any) -> pd.DataFrame:
    return pd.read_csv(export_file(page), dtype=str)


def export_file(page: Any) -> Path:
    with page.expect_download() as download:
        page.click("text=Export as CSV")
    assert download.value.suggested_filename == "votes-toy-ann-1.csv"
    return Path(download.value.path())


def test_twelve_pairs_give_a_file_with_all_answers(visit: Visit, toy: Path) -> None:
    page = visit(toy, "#votes=7", reduced_motion="reduce")
    keys = "102" * 4 + "201" * 4 + "000" * 4
    start(page)
    assert page.locator("#vote-app .play").inner_text() == "Play", "who wants less motion starts the videos"
    for place, key in enumerate(keys):
        seen = page.evaluate(SEEN)
        assert [name for name in NAMES if name.lower() in seen.lower()] == []
        assert page.locator(STATUS).inner_text() == f"Pair {place // 3 + 1} of 12, question {place % 3 + 1} of 3"
        answer(page, key)
    assert "SAGE-GRPO, dual KL" in page.locator("#vote").inner_text(), "the result names the rows"

    file = export_file(page)
    check_records(read_votes([file]), load_records(toy))
    votes = pd.read_csv(file, dtype=str)
    assert list(votes.columns) == COLUMNS
    assert len(votes) == 36
    assert list(votes["answer"]) == [{"1": "left", "0": "tie", "2": "right"}[key] for key in keys]
    assert list(votes["question"]) == ["visual", "motion", "text"] * 12
    assert list(votes["order"].astype(int)) == [place // 3 + 1 for place in range(36)]
    assert votes["seconds"].str.fullmatch(r"\d+\.\d").all()
    page_digest = page.evaluate("JSON.parse(document.getElementById('data-suite').textContent).digest")
    for name, value in {
        "suite": "toy",
        "vote": "7",
        "alias": "ann-1",
        "colour_blind": "no",
        "digest": page_digest,
    }.items():
        assert set(votes[name]) == {value}, name
    for side in ("left", "right"):
        hashes = {
            (row, seed): sha256_file(
                store.run_folder(toy, row, None if row == "base" else int(seed)) / "videos/clips.webp"
            )
            for row, seed in zip(votes[side], votes["seed"], strict=True)
        }
        assert list(votes[f"{side}_sha256"]) == [hashes[key] for key in zip(votes[side], votes["seed"], strict=True)]

    pairs = votes[votes["question"] == "visual"].set_index("order")
    assert dict(pairs["kind"].value_counts()) == {"pair": 9, "identical": 2, "repeat": 1}
    assert (pairs["left"] == pairs["right"]).tolist() == (pairs["kind"] == "identical").tolist()
    repeat = pairs.loc["10"]
    assert repeat["kind"] == "repeat"
    swapped = [
        ("left", "right"),
        ("right", "left"),
        ("prompt_index", "prompt_index"),
        ("seed", "seed"),
        ("video", "video"),
    ]
    earlier = pairs[(pairs["kind"] == "pair") & (pairs.index.astype(int) <= 7)]
    assert any(all(pair[a] == repeat[b] for a, b in swapped) for _, pair in earlier.iterrows())

    page.click("text=Show the report")
    assert page.locator("#player button.clip").first.is_visible()
    assert "votes" not in page.url


def test_the_same_link_gives_the_same_list_and_it_is_balanced(visit: Visit, toy: Path) -> None:
    lists = {}
    for name, link in {"one": "#votes=7", "again": "#votes=7", "other": "#votes=8"}.items():
        page = visit(toy, link)
        start(page, 96 if name == "one" else 12)
        count = 288 if name == "one" else 36
        page.evaluate(
            """async count => {
            for (let i = 0; i < count; i++) {
                let button;
                while (!(button = document.querySelector("#vote-app [name=tie]")) || button.disabled) {
                    await new Promise(done => setTimeout(done, 1));
                }
                button.click();
            }
        }""",
            count,
        )
        lists[name] = export(page).drop(columns="seconds")
    pd.testing.assert_frame_equal(lists["again"], lists["one"][:36])
    assert not lists["other"].equals(lists["again"])
    pairs = lists["one"][(lists["one"]["question"] == "visual") & (lists["one"]["kind"] == "pair")]
    sides = pairs[["left", "right"]].apply(lambda pair: " ".join(sorted(pair)), axis=1)
    assert len(pairs) == 96 - 9 - 2
    for counts in (
        sides.value_counts(),
        pairs["prompt_index"].value_counts().reindex(map(str, range(36)), fill_value=0),
    ):
        assert counts.max() - counts.min() <= 1
    clips = pd.concat([sides, pairs[["prompt_index", "seed", "video"]]], axis=1)
    assert not clips.duplicated().any()
    assert 0.3 < (pairs["left"] > pairs["right"]).mean() < 0.7, "sides are random"
    assert (lists["one"]["kind"] == "repeat").sum() == 3 * 9


def test_answers_are_taken_back_and_outlive_the_page(visit: Visit, toy: Path) -> None:
    page = visit(toy, "#votes=3")
    start(page)
    answer(page, "1122")
    assert page.locator(STATUS).inner_text() == "Pair 2 of 12, question 2 of 3"
    page.keyboard.press("u")
    page.keyboard.press("u")
    page.wait_for_function(f"() => document.querySelector('{STATUS}').innerText === 'Pair 1 of 12, question 3 of 3'")
    answer(page, "0")
    page.reload()
    page.click("text=Continue as ann-1 after 3 answers")
    answer(page, "2" * 33)
    votes = export(page)
    assert list(votes["answer"]) == ["left", "left", "tie", *["right"] * 33]


def test_a_browser_without_storage_can_vote(visit: Visit, toy: Path) -> None:
    blocked = (
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } });"
    )
    page = visit(toy, "#votes=3", init=blocked)
    assert page.locator("text=This browser stores nothing for this page").is_visible()
    start(page)
    answer(page, "1" * 36)
    assert len(export(page)) == 36


@pytest.mark.parametrize("link", ["#votes=x", "#votes=-1", "#votes=1.5"])
def test_a_link_with_another_number_says_so(visit: Visit, toy: Path, link: str) -> None:
    page = visit(toy, link)
    assert page.locator(STATUS).inner_text() == "A vote has a whole number, as in #votes=7."
    assert page.locator("#player button.clip").first.is_visible()


def test_a_report_without_videos_or_with_one_row_says_so(
    visit: Visit, toy: Path, tmp_path: Path, rebuild: Callable[[Path], Path]
) -> None:
    bare = tmp_path / "bare" / "toy"
    shutil.copytree(toy, bare, ignore=shutil.ignore_patterns("videos"))
    rebuild(bare)
    assert visit(bare).locator(STATUS).inner_text() == "There are no videos to vote on."
    single = tmp_path / "single" / "toy"
    shutil.copytree(bare, single)
    run = store.run_folder(single, "cps-fixed", 0)
    shutil.copytree(store.run_folder(toy, "cps-fixed", 0) / "videos", run / "videos")
    rebuild(single)
    assert visit(single).locator(STATUS).inner_text() == "A vote needs videos of two rows with the same seed."
