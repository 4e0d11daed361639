"""Charts of the page: valid specifications, the numbers of the table, one look per method, the same picture twice."""

from __future__ import annotations

import os
import re

import altair
import pytest

from bench.report.looks import METHOD_COLOURS
from bench.report.page import steps
from bench.report.page.content import charts
from bench.report.page.page import held_out
from bench.report.page.results import _mark_edge
from bench.report.page.subject import Subject
from bench.report.page.vega import Chart, by_row
from bench.report.tables.main import load_main_table
from tests.helpers.toy_records import write_suite


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("charts") / "toy"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        write_suite(folder)
    return Subject("toy", folder, {"": load_main_table(folder)})


@pytest.fixture(scope="module")
def drawn(subject: Subject) -> dict[str, Chart]:
    found: dict[str, Chart] = charts(subject, held_out(subject), None)["charts"]
    return found


def test_specifications_are_valid(drawn: dict[str, Chart]) -> None:
    assert set(drawn) == {"forest", "rollouts", "course", "hacking", "pareto", "noise", "gradients"}
    for chart in drawn.values():
        for narrow in (False, True):
            altair.Chart.from_dict(chart.spec(narrow), validate=True)


def test_the_forest_has_the_gains_of_the_table(subject: Subject, drawn: dict[str, Chart]) -> None:
    table = subject.tables[""].table.set_index("row")
    titles = {entry.title: entry.label for entry in subject.entries}
    lines = drawn["forest"].datasets["forest"]
    assert len(lines) == 4
    for line in lines:
        score = "gold_overall" if "gold" in line["panel"] else "overall"
        row = table.loc[titles[line["row"]]]
        expected = [row[f"{score}_delta{end}"] for end in ("", "_lo", "_hi")]
        assert [line["x"], line["lo"], line["hi"]] == pytest.approx(expected, rel=1e-3)
        assert str(line["text"]).endswith("*") == line["star"]
    assert [line["row"] for line in lines][::2] == ["SAGE-GRPO, dual KL", "CPS, fixed KL"], "the best row first"


def test_a_text_at_the_left_edge_starts_at_its_interval() -> None:
    """Above its middle it would cover the row's name on a phone."""
    lines: list[dict[str, object]] = [
        {"x": 0.6, "lo": 0.4, "hi": 0.8},
        {"x": 1.5, "lo": 1.2, "hi": 1.8},
        {"x": 0.6, "lo": None, "hi": None},
    ]
    _mark_edge(lines)
    assert [line["near_edge"] for line in lines] == [True, False, False]


def test_lines_of_a_legend_are_opaque(subject: Subject) -> None:
    """The bands of the held-out curves are not, and share the legend."""
    looks = {entry.title: entry.look for entry in subject.entries}
    assert by_row(looks, dash=True, columns=2)["color"]["legend"]["symbolOpacity"] == 1


def test_a_method_has_its_colour_in_every_chart(drawn: dict[str, Chart]) -> None:
    for chart in drawn.values():
        spec = str(chart.spec(narrow=False))
        assert METHOD_COLOURS["cps"] in spec
        assert METHOD_COLOURS["sage_grpo"] in spec


def test_a_picture_is_one_image_with_ids_of_its_own(drawn: dict[str, Chart]) -> None:
    wide, narrow = (str(drawn["noise"].svg(which)) for which in (False, True))
    assert wide == str(drawn["noise"].svg(narrow=False)), "the same picture twice"
    for text in (wide, narrow):
        assert text.count("role=") == text.count("aria-label=") == 1
        assert "var(--text)" in text
        sizes = {float(size) for size in re.findall(r'font-size="([\d.]+)px"', text)}
        assert sizes
        assert min(sizes) >= 11
    ids = [set(re.findall(r'id="([^"]+)"', text)) for text in (wide, narrow)]
    assert not ids[0] & ids[1]
    assert float(re.findall(r'width="([\d.]+)"', narrow)[0]) <= 366, "the text column of a phone of 390 px"


def test_no_panel_has_more_than_six_rows(subject: Subject) -> None:
    many = [subject.entries[0]] * 15
    assert [len(rows) for _, _, rows in steps.groups(many)] == [6, 6, 3]


def test_shades_of_a_method_differ(subject: Subject) -> None:
    look = subject.entries[0].look
    shades = [steps.shade(look, index).colour for index in range(steps.MOST_LINES)]
    assert len(set(shades)) == steps.MOST_LINES
    assert shades[0] == look.colour
