"""The player of the page: all videos on one frame, in the order and with the numbers of the records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench import store

ROWS = ["base", "sage_grpo-dual", "cps-fixed"]
TRAINED = ROWS[1:]
GRAB = """canvases => canvases.map(c => Array.from(c.getContext("2d").getImageData(0, 0, c.width, c.height).data))"""
LINES = "#player .lines li"
Visit = Callable[..., Any]


def pixels(page: Any, line: int) -> np.ndarray:
    """Colours of the canvases of one line of the player, one per row."""
    canvases = page.locator(LINES).nth(line).locator("canvas")
    data = np.array(canvases.evaluate_all(GRAB), dtype=np.uint8)
    side = int((data.shape[1] / 4) ** 0.5)
    return data.reshape(len(data), side, side, 4)[..., :3]


def prompts(page: Any) -> list[str]:
    return page.locator(f"{LINES} > p").all_inner_texts()


def wait_drawn(page: Any) -> None:
    page.locator("#player").scroll_into_view_if_needed()
    drawn = """() => [...document.querySelectorAll("#player li:first-child canvas")].every(
        c => c.getContext("2d").getImageData(0, 0, 1, 1).data[3] > 0)"""
    page.wait_for_function(drawn)


def means(folder: Path, name: str) -> dict[str, pd.Series[Any]]:
    """Mean over the videos of each prompt of seed 0, as the page rounds it."""
    parts = {"overall": {"VQ": 1, "MQ": 1, "TA": 1}, "trained": {"VQ": 0.5, "MQ": 0.5, "TA": 1}}
    parts["gold_overall"] = {f"gold_{metric}": 1 for metric in ("VQ", "MQ", "TA")}
    weights = parts[name]
    found = {}
    for row in ROWS:
        scores = pd.read_parquet(store.run_folder(folder, row, None if row == "base" else 0) / store.SCORES)
        wide = scores.pivot_table(index=["prompt_index", "video"], columns="metric", values="value")
        total = sum(wide[metric] * weight for metric, weight in weights.items())
        found[row] = total.groupby("prompt_index").mean().map(lambda x: float(f"{x:.4g}"))
    return found


def gains(folder: Path, name: str) -> pd.DataFrame:
    found = means(folder, name)
    return pd.DataFrame({row: found[row] - found["base"] for row in TRAINED})


def test_a_step_moves_all_canvases_to_the_same_frame(visit: Visit, toy: Path, frames_of: Callable[..., Any]) -> None:
    page = visit(toy)
    wait_drawn(page)
    for step in (0, 1, 2):
        for line in (0, 1):
            stored = [frames_of(row, None if row == "base" else 0, line, 0)[step] for row in ROWS]
            np.testing.assert_array_equal(pixels(page, line), stored)
        page.click("text=+1")
    page.locator("#player [data-part=back]").click(click_count=4)
    np.testing.assert_array_equal(
        pixels(page, 0)[0], frames_of("base", None, 0, 0)[-1], "one before the first: the last"
    )


def test_after_play_and_pause_all_canvases_show_one_frame(
    visit: Visit, toy: Path, frames_of: Callable[..., Any]
) -> None:
    page = visit(toy)
    wait_drawn(page)
    assert page.locator("#player .place").inner_text() == "1 / 5", "it stands at first"
    page.locator("#player .play").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#player .place").inner_text() == "2 / 5", "one step for one key"
    page.keyboard.press("Space")
    page.wait_for_function("""() => document.querySelector("#player .place").textContent === "3 / 5" """, polling=10)
    page.click("#player .play")
    assert page.locator("#player .play").inner_text() == "Play"
    frame = int(page.locator("#player .place").inner_text()[0]) - 1
    for line in (0, 1):
        stored = [frames_of(row, None if row == "base" else 0, line, 0)[frame] for row in ROWS]
        np.testing.assert_array_equal(pixels(page, line), stored)


def test_only_what_is_on_the_screen_is_drawn(visit: Visit, toy: Path, frames_of: Callable[..., Any]) -> None:
    page = visit(toy)
    wait_drawn(page)
    assert not pixels(page, 5).any()
    page.click("text=+1")
    page.locator(LINES).nth(5).scroll_into_view_if_needed()
    page.wait_for_function("""() => document.querySelectorAll("#player li")[5].querySelector("canvas")
        .getContext("2d").getImageData(0, 0, 1, 1).data[3] > 0""")
    np.testing.assert_array_equal(pixels(page, 5)[0], frames_of("base", None, 5, 0)[1])


def test_order_filter_and_scores_are_those_of_the_records(visit: Visit, toy: Path) -> None:
    page = visit(toy, "#player=count%3D36")
    listed = prompts(page)
    assert len(listed) == 36
    primary = gains(toy, "overall")
    best = primary.mean().idxmax()
    units = [frame / frame.std(ddof=0) for frame in (gains(toy, "trained"), gains(toy, "gold_overall"))]
    keys = {
        "gain": primary.mean(axis=1),
        "loss": -primary[best],
        "spread": primary.max(axis=1) - primary.min(axis=1),
        "disagreement": (units[0] - units[1]).mean(axis=1),
    }
    for order, key in keys.items():
        page.select_option("[name=order]", order)
        expected = key.sort_values(ascending=False, kind="stable").index
        assert prompts(page) == [listed[p] for p in expected], order

    page.select_option("[name=order]", "list")
    page.fill("[name=filter]", "Square  red")
    assert prompts(page) == [text for text in listed if "red" in text and "square" in text] != []

    scores = pd.read_parquet(store.run_folder(toy, "cps-fixed", 1) / store.SCORES)
    base = pd.read_parquet(store.run_folder(toy, "base", None) / store.SCORES)
    page.select_option("[name=seed]", "1")
    page.select_option("[name=video]", "1")
    page.select_option("[name=metric]", "mq")
    prompt = listed.index(prompts(page)[0])
    at = [
        frame[(frame["prompt_index"] == prompt) & (frame["video"] == 1) & (frame["metric"] == "MQ")]["value"].item()
        for frame in (scores, base)
    ]
    text = page.locator(f"{LINES}:first-child .scores").nth(2).inner_text().replace("\u2212", "-")
    value, change = (float(part) for part in text.split())
    assert (value, change) == (pytest.approx(at[0], abs=6e-3), pytest.approx(at[0] - at[1], abs=6e-3))
    kind = page.locator(f"{LINES}:first-child .scores").nth(2).locator("span").get_attribute("class")
    assert kind == ("good" if change > 0 else "bad")


def test_the_link_brings_back_what_was_shown(visit: Visit, toy: Path) -> None:
    page = visit(toy)
    page.select_option("[name=order]", "loss")
    page.select_option("[name=metric]", "ta")
    page.select_option("[name=seed]", "2")
    page.click("text=Show more prompts")
    page.fill("[name=filter]", "green")
    shown = prompts(page), page.locator("#player .scores").all_inner_texts()
    again = visit(toy, page.evaluate("location.hash"))
    assert (prompts(again), again.locator("#player .scores").all_inner_texts()) == shown
    assert again.locator("[name=filter]").input_value() == "green"
    again.goto(again.url.split("#")[0] + "#player=seed%3D7")
    assert again.locator("[name=seed]").input_value() == "0", "a seed that is not there"


def test_a_clip_opens_beside_the_base(visit: Visit, toy: Path, frames_of: Callable[..., Any]) -> None:
    page = visit(toy)
    wait_drawn(page)
    page.locator("button.clip").nth(2).focus()
    page.keyboard.press("j")
    assert (
        page.evaluate("document.activeElement.parentElement.parentElement.querySelector('p').innerText")
        == prompts(page)[1]
    )
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    dialog = page.locator("dialog.pair")
    assert dialog.locator("h3").inner_text() == prompts(page)[1]
    assert dialog.locator("figcaption").all_inner_texts()[:2] == ["Base", "CPS, fixed KL"]
    assert dialog.locator("tbody tr").count() >= 9
    dialog.locator("summary").click()
    sides = [frames_of("base", None, 1, 0), frames_of("cps-fixed", 0, 1, 0)]
    left, right, difference = np.array(dialog.locator("canvas").evaluate_all(GRAB)).reshape(3, 16, 16, 4)[..., :3]
    np.testing.assert_array_equal([left, right], [side[1] for side in sides], "the player's frame")
    np.testing.assert_array_equal(difference, np.abs(left - right))
    page.keyboard.press("j")
    assert page.locator("dialog.pair h3").inner_text() == prompts(page)[2]
    page.keyboard.press("Escape")
    assert page.locator("dialog").count() == 0


def greys(page: Any, canvases: str) -> list[float]:
    """Mean brightness of canvases, in steps of the frames."""
    return [np.reshape(data, (-1, 4))[:, :3].mean() / 40 - 1 for data in page.locator(canvases).evaluate_all(GRAB)]


def test_video_files_step_play_and_stop_together(visit: Visit, large: Path) -> None:
    page = visit(large)
    page.locator("#player").scroll_into_view_if_needed()
    first = "#player li:first-child canvas"
    page.wait_for_function(f"""() => [...document.querySelectorAll("{first}")].every(
        c => c.getContext("2d").getImageData(0, 0, 1, 1).data[3] > 0)""")
    bright = """value => [...document.querySelectorAll("#player li:first-child canvas")].every(
        c => Math.abs(c.getContext("2d").getImageData(9, 9, 1, 1).data[0] - value) < 10)"""
    for frame in (1, 2, 3):
        page.click("text=+1")
        page.wait_for_function(bright, arg=40 * (frame + 1))
    page.click("#player .play")
    page.wait_for_timeout(500)
    page.click("#player .play")
    frame = int(page.locator("#player .place").inner_text()[0]) - 1
    page.wait_for_function(bright, arg=40 * (frame + 1))
    page.locator("button.clip").nth(1).click()
    page.wait_for_function("""() => document.querySelectorAll("dialog canvas")[1].getContext("2d")
        .getImageData(9, 9, 1, 1).data[3] > 0""")
    for _ in range(4):
        page.locator("dialog [data-part=on]").click()
        frame = int(page.locator("dialog .place").inner_text()[0]) - 1
        assert greys(page, "dialog figure:not(.difference) canvas") == pytest.approx([frame, frame], abs=0.2)
