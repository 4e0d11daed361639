"""Tables as LaTeX with booktabs: a mean above its interval, and as many columns beside each other as the width holds.

They need the package booktabs only. Widths are estimated from those of Computer Modern, from above, so that no line is
overfull; `tests/unit/report/test_latex.py` compiles them.
"""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.report import formatting
from bench.report.data.ablation import AblationLevel
from bench.report.data.selection import row_title
from bench.report.tables.sections import JOINED, Table, without

TEXT_WIDTH = 345
"""Points: the text of `article` at 10 pt. A `table*` of two columns, such as ICML's 487 pt, is wider."""
COLUMN_WIDTH = 234
"""Points: one column of two, such as ICML's 3.25 in."""
HEIGHT = 480
"""Points: the largest height of the tables in one float, so that it fits on a page with its caption and note."""
#: Heights of a line of text and of what a block has besides its lines, points.
LINE, BLOCK = 10.5, 50
#: Share of the width that the names of rows may take.
NAMES = 0.3
#: Points between two columns.
GAP = 5
#: Sizes of the fonts of a mean and of its interval, points.
MEAN, INTERVAL = 8, 7
#: Letters of a line of a head, and letters after which a word without a place for a break gets one.
HEAD, LONG = 12, 10
PACKAGES = "% Written by `bench table` from the run records; needs the package booktabs."

_CELL = re.compile(r"(?P<bold>\*\*)?(?P<mean>[^\[*]+) \[(?P<limits>[^\]]+)\](?:\*\*)?(?P<star> \*)?")
_ESCAPES = {
    **{"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"},
    **{"↓": r"$\downarrow$", "↑": r"$\uparrow$", "†": r"$\dagger$", "±": r"$\pm$", "\u2212": "$-$"},
    **{"|": r"\textbar{}", '"': "''", "`": "", "[": "{[}", "]": "{]}"},  # `: Markdown's code; [..]: an option after \\
}
#: Accents of the encoding OT1, as names of combining characters, to the commands.
_ACCENTS = {
    **{"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u0304": "=", "\u0307": "."},
    **{"\u030a": "r", "\u030c": "v", "\u0306": "u", "\u0327": "c"},
}


class Caption(NamedTuple):
    """What stands above and below a table."""

    text: str
    label: str
    note: str
    """One paragraph below the table."""


def tex(text: str) -> str:
    """Plain text, escaped; a character that plain LaTeX does not have becomes its number, such as U+6A21."""
    return "".join(map(_escaped, unicodedata.normalize("NFC", text)))


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if " " <= char <= "~":
        return char
    letter, *marks = list(unicodedata.normalize("NFD", char))
    if len(marks) == 1 and marks[0] in _ACCENTS and letter.isascii():
        dotless = rf"\{letter}" if letter in "ij" and marks[0] not in "\u0327" else letter
        return rf"\{_ACCENTS[marks[0]]}{{{dotless}}}"
    return f"U+{ord(char):04X}"


def breakable(text: str) -> str:
    """Escaped text whose words may be broken after punctuation, and anywhere if they are long and have none."""
    return " ".join(r"\allowbreak{}".join(map(tex, _pieces(word))) for word in text.split(" "))


def _pieces(word: str) -> list[str]:
    parts = re.split(r"(?<=[-_./:,+=])(?=\S)", word)
    return [
        part[start : start + LONG] if len(part) > 2 * LONG else part
        for part in parts
        for start in range(0, len(part) if len(part) > 2 * LONG else 1, LONG)
    ]


def latex_table(section: Table, caption: Caption, width: int = TEXT_WIDTH, joined: Sequence[str] = ()) -> str:
    """Floats that together have all columns and lines of a section.

    Columns named in `joined` stay with the one before. A `table` for `COLUMN_WIDTH`, else a `table*`. A float is
    stretched to the width of the text around it.
    """
    heads, rows = section
    names = min(NAMES * width, max(_width(name, MEAN) for name in [heads[0], *(row[0] for row in rows)]))
    blocks = [
        _block(heads, part, columns, names, width)
        for columns in _columns(heads, rows, width - names, joined)
        for part in _parts(rows, names)
    ]
    floats: list[list[str]] = [[]]
    used = 0.0
    for block, height in blocks:
        if used and used + height > HEIGHT:
            floats.append([])
            used = 0.0
        floats[-1].append(block)
        used += height
    return "\n".join(_float(content, caption, number, width) for number, content in enumerate(floats))


def latex_ablation(sections: Mapping[str, Table], levels: Sequence[AblationLevel], title: str, note: str) -> str:
    """The sections of an ablation as floats; `title` is the name of the suite or the study."""
    floats = []
    for name, section in sections.items():
        key = f"tab:{title}-ablation-{name.lower()}"
        caption = Caption(f"{title}: ablation, {name.lower()}", key, note)
        floats.append(latex_table(_one_name(without(section, "seeds"), levels), caption, joined=JOINED))
    return "\n".join([PACKAGES, *floats])


def _one_name(section: Table, levels: Sequence[AblationLevel]) -> Table:
    """The section with one column of names instead of group and level."""
    heads, rows = section
    lines = []
    for level, row in zip(levels, rows, strict=True):
        title, done = row_title(level.runs.row), len(level.runs.finished)
        name = title if level.name == level.runs.row.name else f"{title}: {level.name}"
        seeds = "" if done == len(level.seeds) else f" ({done} of {len(level.seeds)} seeds)"
        lines.append([f"{name}{row[1].removeprefix(level.name)}{seeds}", *row[2:]])
    return ["Level", *heads[2:]], lines


def _parts(rows: Sequence[Sequence[str]], names: float) -> list[Sequence[Sequence[str]]]:
    """The lines in parts that fit on a page each."""
    parts: list[list[Sequence[str]]] = [[]]
    for row in rows:
        if parts[-1] and _height([*parts[-1], row], names) > HEIGHT:
            parts.append([])
        parts[-1].append(row)
    return list(parts)


def _height(rows: Sequence[Sequence[str]], names: float) -> float:
    """Estimated height of a block, points: a cell has two lines, a name may have more."""
    return BLOCK + LINE * sum(max(2, math.ceil(1.3 * _width(row[0], MEAN) / names)) for row in rows)


def _columns(
    heads: Sequence[str], rows: Sequence[Sequence[str]], width: float, joined: Sequence[str]
) -> list[list[int]]:
    """Indices of the columns of each block, without the first column."""
    blocks: list[list[int]] = [[]]
    left = width
    group: list[int] = []
    for index in range(1, len(heads)):
        group.append(index)
        if index + 1 < len(heads) and heads[index + 1] in joined:
            continue
        needed = sum(GAP + max(_cell_width(row[i]) for row in [heads, *rows]) for i in group)
        if blocks[-1] and needed > left:
            blocks.append([])
            left = width
        blocks[-1] += group
        left, group = left - needed, []
    return blocks


def _block(
    heads: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int], names: float, width: int
) -> tuple[str, float]:
    """A `tabular*` of these columns, and its height in points."""
    length = _length(width)

    def line(cells: Sequence[str]) -> str:
        name = rf"\parbox[c]{{{names:.0f}pt}}{{\raggedright\strut {breakable(cells[0])}\strut}}"
        return " & ".join([name, *(_cell(cells[index]) for index in columns)]) + r" \\"

    above = formatting.first_open(rows)
    body = [line(row) for row in rows]
    body[above:above] = [r"\midrule"] if above else []
    head = " & ".join([tex(heads[0]), *(_cell(heads[index]) for index in columns)]) + r" \\"
    text = "\n".join(
        [
            rf"\begin{{tabular*}}{{{length}}}{{@{{}}l@{{\extracolsep{{\fill}}}}{'c' * len(columns)}@{{}}}}",
            *(r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular*}"),
        ]
    )
    return text, _height(rows, names)


def _float(blocks: Sequence[str], caption: Caption, number: int, width: int) -> str:
    kind = "table" if width <= COLUMN_WIDTH else "table*"
    text, label = breakable(caption.text), caption.label
    if number:
        text, label = f"{text} (continued)", f"{label}-{number + 1}"
    return "\n".join(
        [
            rf"\begin{{{kind}}}",
            r"\centering\footnotesize\setlength{\tabcolsep}{0pt}\emergencystretch=3em",
            rf"\caption{{{text}}}",
            rf"\label{{{label}}}",
            "\n\\par\\medskip\n".join(blocks),
            rf"\par\smallskip\parbox{{{_length(width)}}}{{\scriptsize\raggedright {breakable(caption.note)}}}",
            rf"\end{{{kind}}}",
            "",
        ]
    )


def _length(width: int) -> str:
    return r"\columnwidth" if width <= COLUMN_WIDTH else r"\textwidth"


def _cell(text: str) -> str:
    """A mean above its interval; anything else on as many lines as it needs."""
    match = _CELL.fullmatch(text)
    if match is None:
        return _stacked(list(map(_signed, _wrapped(text))))
    mean = _signed(match["mean"])
    mean = rf"\textbf{{{mean}}}" if match["bold"] else mean
    star = r"\rlap{$^{*}$}" if match["star"] else ""
    return _stacked([f"{mean}{star}", rf"\scriptsize [{_signed(match['limits'])}]"])


def _signed(text: str) -> str:
    """Escaped text, with the minus signs of formulas; a cell of only a hyphen is empty and gets a dash."""
    return "--" if text == "-" else re.sub(r"(?<!\w)-(?=\d| |$)", "$-$", tex(text))


def _stacked(lines: Sequence[str]) -> str:
    """Lines above each other, centred."""
    if len(lines) == 1:
        return lines[0]
    return r"\begin{tabular}[c]{@{}c@{}}" + r" \\ ".join(lines) + r"\end{tabular}"


def _wrapped(head: str) -> list[str]:
    return textwrap.wrap(head, HEAD, break_long_words=False) or [""]


def _cell_width(text: str) -> float:
    """Estimated width of a head or of a cell, points."""
    match = _CELL.fullmatch(text)
    if match is None:
        return max(_width(line, MEAN) for line in _wrapped(text))
    return max(_width(match["mean"], MEAN), _width(f"[{match['limits']}]", INTERVAL))


def _width(text: str, size: int) -> float:
    """Estimated width of a line, points: letters and digits of Computer Modern at 7 and 8 points."""
    widths = {**dict.fromkeys(" ,.[]|:;'()", 0.36), **dict.fromkeys("-±MWmw↑↓%", 0.95)}
    return size * sum(widths.get(char, 0.8 if char.isupper() else 0.58) for char in text)
