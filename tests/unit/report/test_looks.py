"""One colour and shape per method, by its name."""

from __future__ import annotations

from bench.report.data.selection import Row, row_title
from bench.report.looks import FURTHER_COLOURS, METHOD_COLOURS, looks


def contrast_on_white(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def test_a_methods_look_does_not_depend_on_its_place_in_the_suite() -> None:
    rows = [Row("cps-fixed", "cps", "fixed"), Row("sage_grpo-dual", "sage_grpo", "dual"), Row("mine", "mine", "none")]
    assert looks(rows) == looks(rows[::-1])


def test_rows_of_one_method_share_colour_and_marker_and_differ_in_their_lines() -> None:
    first, second = looks([Row("cps-fixed", "cps", "fixed"), Row("cps-none", "cps", "none")]).values()
    assert (first.colour, first.marker) == (second.colour, second.marker)
    assert (first.dash, first.filled) == ("solid", True)
    assert (second.dash, second.filled) == ("dashed", False)


def test_methods_of_one_suite_have_different_colours() -> None:
    rows = [Row(f"m{i}", f"method_{i}", "none") for i in range(len(FURTHER_COLOURS))]
    assert len({look.colour for look in looks(rows).values()}) == len(rows)
    assert not {look.colour for look in looks(rows).values()} & {*METHOD_COLOURS.values()}


def test_every_colour_stands_out_on_white() -> None:
    assert min(map(contrast_on_white, [*METHOD_COLOURS.values(), *FURTHER_COLOURS])) >= 3


def test_names_are_those_of_the_papers_unless_the_suite_gives_one() -> None:
    assert row_title(Row("sage_grpo-dual", "sage_grpo", "dual")) == "SAGE-GRPO, dual KL"
    assert row_title(Row("cps-none", "cps", "none", open=True)) == "CPS, no KL (open)"
    assert row_title(Row("flow_grpo-equalized", "flow_grpo", "fixed", variant=True)) == "flow_grpo-equalized"
    assert row_title(Row("mine", "my_module:Mine", "fixed")) == "mine"
