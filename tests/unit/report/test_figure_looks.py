"""What all figures share: one colour per method, few lines per panel, everything inside the canvas, short captions."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.audit.sde.figures import method_looks
from bench.report.data.loading import load_records
from bench.report.data.records import SuiteRecords
from bench.report.data.selection import Row
from bench.report.figures import plots, suite
from bench.report.figures.ablation import forest, merge_equal
from bench.report.figures.curves import draw_curves
from bench.report.figures.facets import MOST_LINES, Line, merged_sentence, split
from bench.report.figures.facets import merge_equal as merge_rows
from bench.report.figures.mechanism import draw_gradients, draw_noise
from bench.report.looks import METHOD_COLOURS, Look
from tests.helpers import toy_records

METHODS = ("flow_grpo", "cps", "sage_grpo")
STEPS = (1.0, 0.8, 0.5)


def rows_of(count: int) -> list[Row]:
    return [Row(f"row-{i}", METHODS[i % 3], "fixed") for i in range(count)]


def course(rows: list[Row]) -> pd.DataFrame:
    """Two panels over six updates with three seeds; every row has a slope of its own."""
    lines = [
        {"panel": panel, "source": "here", "row": row.label, "seed": seed, "update": update}
        | {"value": (place + 1) * update + seed, "mean": (place + 1) * update + 1.0, "lo": 0.0, "hi": 9.0}
        for panel in ("trained", "gold_overall")
        for place, row in enumerate(rows)
        for seed in range(3)
        for update in range(6)
    ]
    return pd.DataFrame(lines)


def mechanism(rows: list[Row]) -> pd.DataFrame:
    """Noise and gradients over three steps; every row has an equalizer and values of its own."""
    lines = []
    for place, row in enumerate(rows):
        for step, sigma in enumerate(STEPS):
            line: dict[str, Any] = {"row": row.label, "step": step, "sigma": sigma, "std": 0.1 * (place + 1) * step}
            line |= {"rss": 1.0, "step_weight": 2.0, "measured_after": 1.0 + step, "n_zero": 0}
            line |= {"measured_before": (place + 1.0) * (step + 1)}
            line |= {f"measured_{when}_{end}": np.nan for when in ("before", "after") for end in ("lo", "hi")}
            line |= {
                f"{kind}_{when}_spread": 3.0 for kind in ("measured", "predicted") for when in ("before", "after")
            }
            lines.append(line)
    return pd.DataFrame(lines)


def drawings(count: int) -> dict[str, Figure]:
    rows = rows_of(count)
    titles = {"trained": "trained reward", "gold_overall": "gold reward"}
    return {
        "curves": draw_curves("toy", rows, course(rows), titles, dict.fromkeys(titles, "gain")),
        "noise": draw_noise("toy", rows, mechanism(rows)),
        "gradients": draw_gradients("toy", rows, mechanism(rows)),
    }


def assert_inside(figure: Figure) -> None:
    """All texts, legends and marks are inside the canvas."""
    figure.draw_without_rendering()
    box = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    canvas = figure.bbox
    assert box.x0 >= canvas.x0 - 1
    assert box.y0 >= canvas.y0 - 1
    assert box.x1 <= canvas.x1 + 1
    assert box.y1 <= canvas.y1 + 1


@pytest.mark.parametrize("count", [1, 4, 9, 18])
def test_nothing_leaves_the_canvas_and_no_panel_has_more_lines_than_one_can_follow(count: int) -> None:
    with plots.styled():
        for name, figure in drawings(count).items():
            assert_inside(figure)
            for axis in figure.axes if name == "curves" else []:
                assert sum(line.get_marker() != "None" for line in axis.lines) <= MOST_LINES


@pytest.mark.parametrize("count", [1, 4, 9, 18])
def test_a_legend_is_inside_the_canvas(count: int) -> None:
    with plots.styled():
        figure, _ = plots.canvas("toy", 1, 1, (4.8, 3.2))
        plots.legend(figure, [Line2D([], [], label=f"a row with a long name {i}") for i in range(count)])
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert len(figure.legends) == 1
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.axes[0].get_window_extent().y0


def colours_by_name(figure: Figure) -> dict[str, str]:
    return {text.get_text(): to_hex(text.get_color()) for axis in figure.axes for text in axis.texts}


def test_a_methods_colour_is_equal_in_all_figures() -> None:
    expected = {method: METHOD_COLOURS[method].lower() for method in METHODS}
    with plots.styled():
        for figure in drawings(3).values():
            found = colours_by_name(figure)
            for row in rows_of(3):
                name = next(name for name in found if name.startswith(row.label))
                assert found[name] == expected[row.method]
    for order in (METHODS, METHODS[::-1]):
        assert {name: look.colour.lower() for name, look in method_looks(order).items()} == expected


def test_names_at_line_ends_are_apart_and_as_near_as_they_can_be() -> None:
    assert plots.apart([0.2, 0.9], 0.1) == pytest.approx([0.2, 0.9])
    assert plots.apart([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert plots.apart([0.0, 0.0], 0.1) == pytest.approx([0.0, 0.1])
    assert plots.apart([1.0, 1.0], 0.1) == pytest.approx([0.9, 1.0])
    assert plots.apart([], 0.1) == []


def test_equal_rows_of_one_method_are_one_line() -> None:
    rows = [
        Row("cps-none", "cps", "none"),
        Row("cps-fixed", "cps", "fixed"),
        Row("sage_grpo-dual", "sage_grpo", "dual"),
    ]
    values = pd.DataFrame(
        {"cps-none": [0.0, 1.0], "cps-fixed": [0.0, 1.0005], "sage_grpo-dual": [0.0, 1.0]},
        index=pd.MultiIndex.from_product([["trained"], [0, 1]]),
    )
    merged = merge_rows(rows, values)
    assert [line.name for line in merged] == ["CPS, no KL and 1 more", "SAGE-GRPO, dual KL"]
    assert merged_sentence(merged) == " Equal lines are drawn once (CPS, no KL and 1 more: fixed KL)."
    apart = merge_rows(rows, values.assign(**{"cps-fixed": [0.0, 1.01]}))
    assert [line.others for line in apart] == [(), (), ()]


def test_more_lines_than_a_panel_holds_are_split_by_method() -> None:
    assert [facet.title for facet in split([Line(row) for row in rows_of(6)])] == [""]
    facets = split([Line(row) for row in [*rows_of(18), *[Row(f"x{i}", "cps", "none") for i in range(3)]]])
    assert [facet.title for facet in facets] == ["FlowGRPO", "CPS, part 1", "CPS, part 2", "SAGE-GRPO"]
    assert [len(facet.lines) for facet in facets] == [6, 6, 3, 6]


# the ablation -------------------------------------------------------------------------------------------------
def level(name: str, gain: float, change: float, p: float, **more: Any) -> dict[str, Any]:
    line: dict[str, Any] = {"group": "cps", "group_title": "CPS", "level": name, "level_title": f"CPS, {name}"}
    line |= {"n_seeds": 3, "n_failed": 0, "n_planned": 3, "same_runs": False}
    for end, shift in (("", 0.0), ("_lo", -0.1), ("_hi", 0.1)):
        line |= {f"overall_delta{end}": gain + shift, f"overall_change{end}": change + shift}
    return line | {"overall_change_p": p, "overall_change_p_holm": p} | more


LEVELS = pd.DataFrame(
    [
        level("none", 1.0, np.nan, np.nan),
        level("fixed", 1.00001, 0.00001, 0.9),
        level("dual", 2.0, 1.0, 0.001),
        level("moving", 1.5, 0.05, 0.3, n_seeds=2),
        level("copy", 1.0, np.nan, np.nan, same_runs=True),
    ]
)


def test_an_ablation_shows_the_change_with_its_p_in_the_methods_colour() -> None:
    with plots.styled():
        figure = forest(
            "toy", merge_equal(LEVELS), {"overall": "Overall"}, {"cps": Look("#009E73", "D", "solid", True)}
        )
        assert_inside(figure)
    gains, changes = figure.axes
    names = [label.get_text() for label in gains.get_yticklabels()]
    assert names == ["CPS, none and 1 more", "CPS, dual", "CPS, moving (2/3 seeds)", "CPS, copy (same runs)"]
    assert [text.get_text() for text in changes.texts] == ["first level", "p = 0.001", "p = 0.300", "same runs"]
    marks = [line for line in changes.lines if line.get_marker() == "D"]
    assert {to_hex(mark.get_color()) for mark in marks} == {"#009e73"}
    assert [to_hex(mark.get_markerfacecolor()) for mark in marks] == ["#009e73", "#ffffff"], "solid: significant"


def test_a_significant_level_is_not_merged_however_small_its_change() -> None:
    lines = LEVELS.assign(overall_change_p_holm=0.01)
    assert merge_equal(lines)["level"].tolist() == list(LEVELS["level"])


# a whole suite ------------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(plots, "figure_files", lambda name, figure, frame: {f"{name}.csv": frame.to_csv().encode()})
    return toy_records.write_suite(tmp_path / "toy")


def points(records: SuiteRecords) -> pd.DataFrame:
    """A held-out curve of three points per row and seed, to the contract of `held_out_curves`."""
    lines = [
        {"row": runs.row.label, "seed": run.record.seed, "update": update, "nfe_rollout": 10 * update}
        | {"reward_calls": update, "minutes": 0.5 * update, "score": score, "gain": place * update / 10, "level": 1.0}
        for place, runs in enumerate(records.rows)
        for run in runs.finished
        for update in (0, 1, 2)
        for score in ("overall", "gold_overall", "vq")
    ]
    return pd.DataFrame(lines).astype(dict.fromkeys(("seed", "update", "nfe_rollout", "reward_calls"), "Int64"))


def test_held_out_curves_come_first_and_are_gains_over_the_base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "held_out_curves", points)
    contents, captions = suite.render_figures(folder)
    assert list(captions)[:3] == ["forest", "curves", "rollouts"]
    assert "No held-out curves" not in captions["rollouts"]
    frame = pd.read_csv(BytesIO(contents["curves.csv"]))
    assert set(frame["panel"]) == {"overall", "gold_overall"}
    last = frame[frame["update"] == 2].groupby("row")["mean"].first()
    assert sorted(last) == pytest.approx([0.0, 0.2])
    assert captions["curves"].startswith("At the last update ")


def test_a_suite_without_curves_says_so_and_draws_the_rollouts(folder: Path) -> None:
    contents, captions = suite.render_figures(folder)
    assert "curves" not in captions
    assert "curves.csv" not in contents
    assert captions["rollouts"].count("No held-out curves were recorded") == 1


def test_captions_are_short_and_say_what_to_see_first(folder: Path) -> None:
    _, captions = suite.render_figures(folder)
    for name, caption in captions.items():
        assert len(caption.split()) <= 60, name
    assert captions["forest"].startswith("SAGE-GRPO, dual KL has the largest gain in Overall, +")


def test_the_forest_has_the_best_row_first_and_the_numbers_of_the_table(folder: Path) -> None:
    contents, _ = suite.render_figures(folder)
    frame = pd.read_csv(BytesIO(contents["forest.csv"]))
    own = frame[frame["score"] == "overall"]
    assert own["gain"].is_monotonic_decreasing
    records = load_records(folder)
    assert records.base is not None
    for _, line in own.iterrows():
        runs = next(runs for runs in records.rows if runs.row.label == line["row"])
        x = runs.matrix("overall")
        assert x is not None
        assert line["gain"] == pytest.approx((x - records.base.cells["overall"].to_numpy()).mean())
