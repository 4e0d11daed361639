"""Vega-Lite: looks of rows as scales, panels beside or below each other, and a chart as a picture without script."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from markupsafe import Markup

from bench.report.looks import Look

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
#: Pixels of the page's text column at 1600 px, and of a phone of 390 px.
WIDE, NARROW = 1380, 350
#: Names of Vega, or paths in a square from -1 to 1, of the markers of `looks`.
SHAPES = {
    **{"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross"},
    **{"<": "triangle-left", "X": "triangle-right", "d": "M0,-1L0.5,0L0,1L-0.5,0Z"},
    "*": "M0,-1L0.22,-0.31L0.95,-0.31L0.36,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.36,0.12L-0.95,-0.31L-0.22,-0.31Z",
    "p": "M0,-1L0.95,-0.31L0.59,0.81L-0.59,0.81L-0.95,-0.31Z",
    "h": "M0,-1L0.87,-0.5L0.87,0.5L0,1L-0.87,0.5L-0.87,-0.5Z",
}
#: Characters of a row's title with which two columns of a legend are wider than a panel.
LONG = 24
DASHES = {"solid": [1, 0], "dashed": [6, 3], "dotted": [2, 2], "dashdot": [7, 2, 2, 2]}
TEXT, SOFT, LINE = "var(--text)", "var(--soft)", "var(--line)"
_TITLES = {
    "titleColor": TEXT,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
    "labelColor": TEXT,
    "labelFontSize": 12,
}
CONFIG: Spec = {
    "background": "transparent",
    "aria": False,
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        **_TITLES,
        "gridColor": LINE,
        "domainColor": SOFT,
        "tickColor": SOFT,
        "labelLimit": 220,
        "labelOverlap": True,
    },
    "legend": {**_TITLES, "title": None, "orient": "top", "labelLimit": 260, "symbolSize": 90},
    "title": {"color": TEXT, "fontSize": 13, "fontWeight": "bold", "anchor": "start", "offset": 8},
    "text": {"color": TEXT, "fontSize": 12},
    "concat": {"spacing": 28},
}


@dataclass(frozen=True)
class Chart:
    """A chart in two widths, with its numbers as text and as a table."""

    name: str
    """Unique in the page."""
    title: str
    caption: str
    """What to see first, then what is drawn."""
    alt: str
    """The main numbers in words."""
    wide: Spec
    narrow: Spec
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    """The drawn numbers as a table."""
    datasets: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def island(self) -> Spec:
        """The chart for the script: both specifications and the data that they share."""
        return {"datasets": self.datasets, "wide": self.wide, "narrow": self.narrow}

    def svg(self, narrow: bool) -> Markup:
        """The chart as it is without script."""
        return draw_svg(self.spec(narrow), f"{self.name}-{'n' if narrow else 'w'}", self.alt)

    def spec(self, narrow: bool) -> Spec:
        """The whole specification in one width."""
        return {**(self.narrow if narrow else self.wide), "datasets": {k: list(v) for k, v in self.datasets.items()}}


def is_installed() -> bool:
    """Whether vl-convert-python, which draws the charts, is installed."""
    return importlib.util.find_spec("vl_convert") is not None


def top(content: Spec) -> Spec:
    """A whole specification."""
    return {"$schema": SCHEMA, "config": CONFIG, **content}


def beside(panels: Sequence[Spec], columns: int) -> Spec:
    """Panels in so many columns; those of one group of rows have one legend, else each has its own."""
    heads = [str(panel.get("title", "")) for panel in panels]
    shared = "independent" if any(":" in head or (len(panels) > 1 and "part" in head) for head in heads) else "shared"
    return top(
        {
            "concat": list(panels),
            "columns": columns,
            "resolve": {"scale": {"color": shared, "shape": shared, "strokeDash": shared}},
        }
    )


def draw_svg(spec: Spec, prefix: str, alt: str) -> Markup:
    """The picture as an image with a text; its ids start with `prefix`, so that a page can hold several."""
    import vl_convert

    text = str(vl_convert.vegalite_to_svg(spec, show_warnings=False))
    text = re.sub(r"\bclip(\d+)", rf"{prefix}-clip\1", text)
    text = re.sub(r"\bgradient_(\d+)", rf"{prefix}-gradient_\1", text)
    text = re.sub(r' (role|aria-\w+)="[^"]*"', "", text)  # the whole picture is one image
    body = Markup(text.removeprefix("<svg "))  # noqa: S704 - Vega escapes texts
    return Markup('<svg role="img" aria-label="{}" ').format(alt) + body


@lru_cache(maxsize=1)
def bundle() -> str:
    """The script of Vega-Lite, for a module of the page."""
    import vl_convert

    return str(vl_convert.javascript_bundle())  # type: ignore[call-arg] # the stub lacks the default


def number(value: float, digits: int = 4) -> float | None:
    """A number of a data set, short; None if it is not known."""
    return None if value != value else float(f"{value:.{digits}g}")


def scales(looks: Mapping[str, Look]) -> dict[str, Spec]:
    """The scales of colour, shape and dash of rows by their titles."""
    titles = list(looks)
    return {
        "color": {"domain": titles, "range": [colour(look.colour) for look in looks.values()]},
        "shape": {"domain": titles, "range": [SHAPES[look.marker] for look in looks.values()]},
        "strokeDash": {"domain": titles, "range": [DASHES[look.dash] for look in looks.values()]},
    }


def point(size: int, opacity: float = 1) -> Spec:
    """The mark of points: that of a method's further rows is an outline, which `outlines` encodes."""
    return {"type": "point", "size": size, "opacity": opacity, "strokeWidth": 2}


def outlines(looks: Mapping[str, Look]) -> dict[str, Spec]:
    """The encodings of points by row: colour of outline and filling, shape, and whether they are filled."""
    found, filled = scales(looks), [title for title, look in looks.items() if look.filled]
    row = {"field": "row", "type": "nominal", "sort": None}
    return {
        "color": {**row, "scale": found["color"]},
        "shape": {**row, "scale": found["shape"]},
        "fill": {**row, "scale": found["color"], "legend": None},
        "fillOpacity": {"condition": {"test": {"field": "row", "oneOf": filled}, "value": 1}, "value": 0},
    }


def colour(value: str) -> str:
    """A colour that can be seen in either scheme: black is the colour of text."""
    return TEXT if value == "#000000" else value


def by_row(looks: Mapping[str, Look], dash: bool = False, columns: int = 0) -> dict[str, Spec]:
    """The encodings of rows by colour and shape, or by colour and dash for lines, with a legend of so many columns."""
    found = scales(looks)
    columns = 1 if columns and max(map(len, looks), default=0) > LONG else columns
    lines: Spec = {"symbolType": "stroke", "symbolStrokeWidth": 2, "symbolOpacity": 1} if dash else {}
    legend, second = ({"columns": columns, **lines} if columns else {}), "strokeDash" if dash else "shape"
    return {
        name: {"field": "row", "type": "nominal", "sort": None, "scale": found[name], "legend": legend}
        for name in ("color", second)
    }
