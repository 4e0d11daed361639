"""The LaTeX tables: they compile in one column and in two, no line is overfull, and every character is escaped."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.core.provenance import ROOT
from bench.report.data.ablation import levels_of
from bench.report.data.loading import load_records
from bench.report.tables.ablation import render_ablation
from bench.report.tables.latex import COLUMN_WIDTH, Caption, breakable, latex_table, tex
from bench.report.tables.main import load_main_table, render_table
from bench.report.tables.sections import Table
from tests.helpers.mean_records import write

REFERENCE = ROOT / "results" / "reference"
ARTICLE = r"\documentclass{article}"
ICML = "\n".join(
    [
        r"\documentclass[10pt,twocolumn]{article}",
        r"\setlength{\textwidth}{6.75in}\setlength{\columnsep}{0.25in}\setlength{\textheight}{9in}",
    ]
)
"""The widths of ICML: 6.75 in of text, 3.25 in of a column."""
NASTY = [
    *("50%_of & more #1", "a$b{c}d~e^f\\g", "modèle-fixe-naïf", "模型 with ünïcode ж", "[bracketed] `code` |bar|"),
    *("averyveryverylonglabelwithoutanyplaceforabreak", "UPPERCASEUPPERCASEUPPERCASE", "a-b_c.d/e:f,g+h=i"),
    *("flow_grpo-with-a-long-label-of-a-variant (open)", "x †"),
]
"""Labels of ten rows."""
CELLS = [
    "**-0.276 [-0.459, -0.094]** *",
    "0.00001 [-0.00004, 0.00004]",
    "<0.001",
    "0.00024",
    "the same runs",
    "n/a",
    "-",
]
HEADS = ["Row", "gold Overall - base ↑", "a$b_metric ↓", "p (Holm)", "MDE", "Overall ↑", "PickScore / 26 ↑", "n & m"]
TOY: Table = HEADS, [[label, *CELLS] for label in NASTY]


def log_of(text: str, head: str, folder: Path) -> str:
    """The log of pdflatex; an error of LaTeX fails the test."""
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    document = "\n".join([head, r"\usepackage{booktabs}", r"\begin{document}", text, r"\end{document}"])
    (folder / "t.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "t.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    log = (folder / "t.log").read_text(encoding="latin-1")
    assert done.returncode == 0, log[-3000:]
    return log


def faults(text: str, head: str, folder: Path) -> list[str]:
    """Lines of the log that say that something does not fit."""
    return re.findall(r".*(?:Overfull|too large).*", log_of(text, head, folder))


def toy(width: int | None = None) -> str:
    caption = Caption("50%_of & more: scores", "tab:toy", f"Notes with {' '.join(NASTY)}")
    return latex_table(TOY, caption, **({} if width is None else {"width": width}), joined=("p (Holm)", "MDE"))


@pytest.mark.parametrize("head", [ARTICLE, ICML], ids=["article", "two columns"])
@pytest.mark.parametrize("width", [None, COLUMN_WIDTH], ids=["wide", "narrow"])
def test_long_labels_and_special_characters_fit(head: str, width: int | None, tmp_path: Path) -> None:
    assert faults(toy(width), head, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("head", [ARTICLE, ICML], ids=["article", "two columns"])
def test_the_tables_of_the_reference_fit(head: str, tmp_path: Path) -> None:
    texts = render_table(load_main_table(REFERENCE / "nano"))
    for name in ("main.tex", "main_narrow.tex"):
        assert faults(texts[name], head, tmp_path) == []


@pytest.mark.slow
def test_an_ablation_of_nine_levels_fits(tmp_path: Path) -> None:
    levels = levels_of({"": load_records(REFERENCE / "nano_kl")})
    text = render_ablation(levels, "nano_kl")["ablation.tex"]
    for head in (ARTICLE, ICML):
        assert faults(text, head, tmp_path) == []
    assert "CPS, stepwise KL" in text
    assert "& 0.00 &" not in text, "no effect is 0.00"


def test_a_test_that_compiles_finds_an_overfull_line(tmp_path: Path) -> None:
    assert faults(r"\noindent\hbox to \textwidth{\rule{500pt}{1pt}}", ARTICLE, tmp_path)


def test_every_column_and_line_is_there_once() -> None:
    for width in (None, COLUMN_WIDTH):
        text = toy(width)
        assert text.count("0.00024") == len(NASTY)
        assert text.count(r"\textbf{$-$0.276}\rlap{$^{*}$}") == len(NASTY)
        assert text.count("gold") >= 1
    assert toy(COLUMN_WIDTH).count(r"\begin{table}") == toy(COLUMN_WIDTH).count(r"\end{table}") > 1
    assert r"\begin{table*}" not in toy(COLUMN_WIDTH)
    assert "(continued)" in toy(COLUMN_WIDTH)


def test_characters_are_escaped() -> None:
    assert tex("a_b & 1% #$ {x} ~^\\ <é>") == (
        r"a\_b \& 1\% \#\$ \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \textless{}\'{e}\textgreater{}"
    )
    assert tex("模ï") == r"U+6A21\"{\i}"
    assert breakable("a_b") == r"a\_\allowbreak{}b"


def test_rows_have_the_names_of_the_papers_and_no_run_ids(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy", {"cps-fixed": [0.5, 0.52, 0.48], "sage_grpo-dual": [1.0, 1.02, 0.98]})
    shutil.rmtree(folder / "cps-fixed" / "seed-2")
    text = render_table(load_main_table(folder, reference=tmp_path / "nowhere"))["main.tex"]
    assert "SAGE-\\allowbreak{}GRPO," in text
    assert "(2 of 3 seeds)" in text.replace(r"\allowbreak{}", "")
    assert "run ids" not in text
    assert "sage" not in text
    assert "Means over 3 seeds and 8 held-out prompts" in text.replace(r"\allowbreak{}", "")
