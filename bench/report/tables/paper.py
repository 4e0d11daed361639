"""The paper's table: both settings and all KL policies, published numbers and ours in blocks that do not mix."""

from __future__ import annotations

import pandas as pd

from bench.report import formatting
from bench.report.data.paper import PUBLISHED
from bench.report.data.published import SCORES
from bench.report.data.selection import BASE, method_title
from bench.report.tables.latex import Caption, latex_table

NAME = "paper"
HEADS = {
    **{"overall": "Overall", "vq": "VQ", "mq": "MQ", "ta": "TA"},
    **{"clipscore": "CLIPScore", "pickscore": "PickScore"},
}
WARNING = (
    "Blocks do not compare with each other: the published numbers are those of HunyuanVideo-1.5 with 8.3 billion "
    "parameters and of full-size scorers; those of nano are of a miniature model and scorers, in other units."
)
NOTES = (
    "Setting A rewards VQ + MQ + TA, Setting B 0.5 VQ + 0.5 MQ + TA. n/a: no number is known or recorded. Published: "
    "SAGE-GRPO, arXiv:2603.21872. Ours: means over seeds and held-out prompts, from the suite in the last column; "
    "rows with other numbers of updates do not compare. paper.csv has the intervals."
)


def render_paper_table(frame: pd.DataFrame) -> dict[str, bytes]:
    """{file name: content} of paper.md, paper.csv and paper.tex; `frame` is that of `data.paper.paper_table`."""
    table = formatting.csv(frame)
    blocks = {
        (str(setting), str(block)): own for (setting, block), own in frame.groupby(["setting", "block"], sort=False)
    }
    parts = ["# The paper's table", f"**{WARNING}**", NOTES]
    tex = ["% Written by `bench figures --paper` from the run records; needs the package booktabs.\n"]
    for (setting, block), own in blocks.items():
        heads, lines = _cells(own, block == PUBLISHED)
        parts += [f"## Setting {setting}: {block}", formatting.markdown(heads, lines)]
        label = f"tab:paper-{setting.lower()}-{'published' if block == PUBLISHED else 'measured'}"
        scores = len(HEADS) + 2  # the suites' names are too wide for a page
        narrow = [line[:scores] for line in lines]
        tex.append(latex_table((heads[:scores], narrow), Caption(f"Setting {setting}: {block}", label, WARNING)))
    contents = {f"{NAME}.md": "\n\n".join(parts) + "\n", f"{NAME}.csv": table, f"{NAME}.tex": "\n".join(tex)}
    return {name: text.encode() for name, text in contents.items()}


def _cells(own: pd.DataFrame, published: bool) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of one block."""
    lines = []
    for _, row in own.iterrows():
        name = method_title(str(row["method"]))
        cells = [name, "-" if row["method"] == BASE else str(row["kl"])]
        cells += [formatting.number(row[score], 4 if published else 2) for score in SCORES]
        if not published:
            counts = [formatting.count(row[name]) if row["method"] != BASE else "-" for name in ("n_seeds", "updates")]
            cells += [*counts, str(row["suite"]) or "-"]
        lines.append(cells)
    return ["Method", "KL", *HEADS.values(), *([] if published else ["seeds", "updates", "suite"])], lines
