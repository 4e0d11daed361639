"""How a row looks in figures and pages: by its method's name, not by its place in a list."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from bench.report.data.selection import BASE, Row

#: Colours of the packaged methods, those of the paper by Okabe and Ito: told apart by colour-blind readers, at least
#: 3:1 on white.
METHOD_COLOURS = {
    BASE: "#666666",
    "flow_grpo": "#0072B2",
    "dance_grpo": "#D55E00",
    "cps": "#009E73",
    "sage_grpo": "#B0548A",
    "precise": "#5B4FA8",
    "longcat_grpo": "#8C6A00",
    "mix_grpo": "#00788C",
    "flow_grpo_fast": "#4C8AC9",
    "flash_grpo": "#B8432F",
    "grpo_guard": "#1F3A5F",
    "flow_dppo": "#7A4B2A",
    "diffusion_nft": "#C2186B",
    "awm": "#5F7A00",
    "rvm": "#000000",
}
METHOD_MARKERS = {BASE: "o", "flow_grpo": "o", "dance_grpo": "s", "cps": "D", "sage_grpo": "^"} | {
    **{"precise": "v", "longcat_grpo": "P", "mix_grpo": "X", "flow_grpo_fast": "<", "flash_grpo": ">"},
    **{"grpo_guard": "p", "flow_dppo": "h", "diffusion_nft": "*", "awm": "d", "rvm": "8"},
}
#: Colours and markers of all other methods; the name decides where the search for a free one starts.
FURTHER_COLOURS = ("#6A51A3", "#A06A00", "#8C564B", "#2B7BBA", "#4B8F3A", "#37474F", "#AD1457", "#00838F")
FURTHER_MARKERS = "vPX*phd<"
DASHES = ("solid", "dashed", "dotted", "dashdot")


class Look(NamedTuple):
    """Colour, marker and line of a row."""

    colour: str
    """#RRGGBB."""
    marker: str
    """As matplotlib names it."""
    dash: str
    """One of `DASHES`: the first row of a method is solid, its further rows are not."""
    filled: bool
    """Whether the marker is filled: only that of a method's first row."""


def looks(rows: Iterable[Row]) -> dict[str, Look]:
    """Look of each row by its label; rows of one method share colour and marker and differ in their lines."""
    rows = list(rows)
    places = _further(sorted({row.method for row in rows} - METHOD_COLOURS.keys()))
    seen: dict[str, int] = {}
    found = {}
    for row in rows:
        number = seen.get(row.method, 0)
        seen[row.method] = number + 1
        if row.method in METHOD_COLOURS:
            colour, marker = METHOD_COLOURS[row.method], METHOD_MARKERS[row.method]
        else:
            colour, marker = FURTHER_COLOURS[places[row.method]], FURTHER_MARKERS[places[row.method]]
        found[row.label] = Look(colour, marker, DASHES[number % len(DASHES)], number == 0)
    return found


def _further(methods: list[str]) -> dict[str, int]:
    """Place of each method in `FURTHER_COLOURS`: that of its name's hash, or the next free one."""
    count, places = len(FURTHER_COLOURS), dict[str, int]()
    for method in methods:
        start = int.from_bytes(hashlib.sha256(method.encode()).digest()[:4], "big")
        free = [(start + step) % count for step in range(count) if (start + step) % count not in places.values()]
        places[method] = free[0] if free else start % count
    return places
