"""The page in a browser: whole, quick, readable at both widths, in both schemes, on paper and without its script."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

Visit = Callable[..., Any]
WIDTHS = (1600, 390)
FIRST_PAINT, READY = 20.0, 40.0
"""Bounds in seconds for a machine that does much else; an idle one needs a fiftieth."""
WORK = 4.0
"""Bound for the processor time of the page's thread until all is drawn, in seconds; it does not depend on the load."""


def violations(page: Any) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {node['html'][:120]}" for each in found for node in each["nodes"]]


def overflow(page: Any) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_barrier_is_found_and_nothing_overflows(visit: Visit, toy: Path, width: int, scheme: str) -> None:
    page = visit(toy, width=width, color_scheme=scheme)
    page.locator("button.clip").first.wait_for()
    assert overflow(page) == 0
    assert violations(page) == []
    page.locator("button.clip").first.click()
    page.locator("dialog.pair").wait_for()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.evaluate("window.report.set('votes', '4')")
    assert violations(page) == []
    page.fill("[name=alias]", "ann")
    page.click("text=Start the vote")
    page.wait_for_selector("#vote-app [name=tie]:not([disabled])")
    assert violations(page) == []
    assert overflow(page) == 0


def test_targets_are_large_enough(visit: Visit, toy: Path) -> None:
    page = visit(toy, width=390)
    page.locator("button.clip").first.wait_for()
    sizes = """() => [...document.querySelectorAll(":is(#player, .tools) :is(button, select, input[type=search])")]
        .filter(each => each.offsetParent).map(each => [each.outerHTML.slice(0, 80), each.getBoundingClientRect()])
        .filter(([, box]) => box.width < 24 || box.height < 24).map(([html]) => html)"""
    assert page.evaluate(sizes) == []


def test_the_page_is_painted_and_ready_soon(visit: Visit, toy: Path) -> None:
    page = visit(toy)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.reload()
    page.locator("button.clip").first.wait_for()
    page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
    ready = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd") / 1000
    measured = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    assert 0 < paint < FIRST_PAINT
    assert 0 < ready < READY
    assert 0 < measured["TaskDuration"] < WORK


def test_without_script_the_static_parts_are_there_and_nothing_else_shows(visit: Visit, toy: Path) -> None:
    page = visit(toy, java_script_enabled=False)
    static = page.locator("#videos > .static, #vote > .static")
    assert static.count() >= 2
    assert all(each.is_visible() for each in static.all())
    scripted = page.locator(".needs-script")
    assert scripted.count() >= 2
    assert not any(each.is_visible() for each in scripted.all())
    assert all(table.is_visible() for table in page.locator("#verdict, #tables").all())


def test_with_script_the_player_takes_the_place_of_the_static_part(visit: Visit, toy: Path) -> None:
    page = visit(toy)
    assert page.locator("#player .play").is_visible()
    assert not any(each.is_visible() for each in page.locator("#videos > .static, #vote > .static").all())


def test_the_page_prints(visit: Visit, toy: Path) -> None:
    page = visit(toy)
    page.locator(".is-live").first.wait_for()
    page.emulate_media(media="print")
    assert not page.locator("#player").is_visible()
    for figure in page.locator("[data-chart]").all():
        shown = [each.is_visible() for each in figure.locator(".live, .wide").all()]
        assert sum(shown) == 1, "each chart once"
    assert all(each.is_visible() for each in page.locator("#videos > .static").all())
    document = page.pdf(format="A4", landscape=True)
    assert document.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", document)) > 1


def test_a_link_to_a_section_keeps_the_state(visit: Visit, toy: Path) -> None:
    page = visit(toy, "#player=filter%3Dgreen")
    page.locator("nav a[href='#tables']").click()
    assert page.evaluate("location.hash") == "#tables"
    assert page.locator("[name=filter]").input_value() == "green"
    page.select_option("[name=order]", "gain")
    assert page.evaluate("location.hash") == "#player=filter%3Dgreen%26order%3Dgain"
