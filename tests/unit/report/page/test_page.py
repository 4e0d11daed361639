"""`bench report`: one page that is whole, safe and the same twice, and says what the records say."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from bench import store
from bench.cli import main
from bench.report.data.headline import headline
from bench.report.data.selection import Selection, rows_of
from bench.report.page.grids import rich
from bench.report.page.page import build_report, render_page
from bench.report.page.vega import bundle
from bench.report.tables.main import load_main_table
from bench.suite.schema import Suite
from tests.helpers.toy_records import CONFIG, write, write_suite

EVIL = "<script>alert('x')</script>"
VOID = {"meta", "img", "link", "br", "hr", "input"}
BUNDLE = "window.vegaEmbed = null;"
"""In place of the 900 kB of Vega-Lite."""


class Page(HTMLParser):
    """Tags, ids, links and text of a page; tags that do not close are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids), "an id is given once"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.handlers += [name for name in found if name.startswith("on")]
        self.open += [] if tag in VOID else [tag]
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if tag == "a" else []
        self.images += [found] if tag == "img" else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        write_suite(folder / "toy")
    return folder


@pytest.fixture(scope="module")
def suite_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("yaml") / "toy.yaml"
    path.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(written: Path, suite_yaml: Path) -> str:
    """The page as the command writes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.report.page.scripts.bundle", lambda: BUNDLE)
        assert main(["report", str(suite_yaml), "--results", str(written)]) == 0
    return (written / "toy" / "report.html").read_text(encoding="utf-8")


def plan() -> Selection:
    suite = Suite.model_validate(CONFIG)
    return Selection(rows_of(suite), suite.seeds)


def rendered(folder: Path) -> str:
    return str(render_page(folder, {"": (folder, plan())}))


@pytest.fixture
def suite(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may spoil; charts, which cost most of the time, are left out."""
    monkeypatch.setattr("bench.report.page.content.is_installed", lambda: False)
    monkeypatch.setattr("bench.report.page.pictures.render_figures", lambda *args: ({}, {}))
    return shutil.copytree(written / "toy", tmp_path / "toy", ignore=shutil.ignore_patterns("report.html"))


# the whole page -----------------------------------------------------------------------------------------------
def test_the_page_is_balanced_and_needs_nothing_from_elsewhere(page: str) -> None:
    found = Page(page)
    assert page.startswith("<!DOCTYPE html>")
    assert "link" not in found.tags
    assert found.handlers == []
    assert not re.search(r"(src|href)=\"(https?:)?//", page)
    assert "url(http" not in page
    assert all(link.startswith("#") for link in found.links), "a forwarded page has no dead links"
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert 'name="viewport"' in page


def test_the_sections_come_in_the_order_of_a_reader(page: str) -> None:
    sections = re.findall(r'<section id="([a-z]+)"', page)
    assert sections == [
        *("verdict", "videos", "vote", "curves", "checks", "prompts", "mechanism", "cost", "tables", "reproduce"),
        "words",
    ]
    assert set(sections) <= {link[1:] for link in Page(page).links}


def test_headings_go_down_one_level_at_a_time_and_landmarks_have_names_of_their_own(page: str) -> None:
    shown = re.sub(r"<template.*?</template>", "", page, flags=re.DOTALL)
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", shown)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    names = re.findall(r'role="region" aria-label="([^"]+)"', page)
    assert len(names) == len(set(names)) > 10


def test_scripts_are_those_that_the_policy_allows(page: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    scripts = re.findall(r"<script(?: type=\"module\")?>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = re.findall(r"'sha256-([^']+)'", html.unescape(policy))
    assert len(scripts) == 2
    assert hashes == allowed
    assert "default-src 'none'" in html.unescape(policy)
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_every_chart_has_its_numbers_in_words_and_in_a_table(page: str) -> None:
    charts = re.findall(r'<figure class="chart" data-chart="([a-z]+)">(.*?)</figure>', page, re.DOTALL)
    assert [name for name, _ in charts] == ["forest", "rollouts", "course", "hacking", "noise", "gradients", "pareto"]
    for _, figure in charts:
        texts = re.findall(r'<svg role="img" aria-label="([^"]+)"', figure)
        assert len(texts) == 2
        assert len(set(texts)) == 1
        assert re.search(r"\d\.\d", texts[0])
        assert "<table>" in figure
        assert len(re.findall(r"<figcaption>(.+?)</figcaption>", figure)) == 1


def test_the_page_says_what_the_table_says(page: str, written: Path) -> None:
    text = Page(page).text
    loaded = load_main_table(written / "toy", *plan())
    cells = {
        part
        for title, (_, rows) in loaded.sections.items()
        if title != "Runs"
        for row in rows
        for part in re.findall(r"-?\d+\.\d+|\[.*?\]", " ".join(row))
    }
    assert len(cells) > 60
    assert [cell for cell in cells if cell not in text] == []
    record = store.read_record(written / "toy" / "cps-fixed" / "seed-1")
    for told in (record.digest, record.prompts_digest, record.scores_digest, "c0ffee000000", "python", "3.12.1"):
        assert str(told) in text
    assert headline(loaded) in text
    assert "nothing here is a result about HunyuanVideo-1.5" in text
    assert "No recorded run failed." in text
    assert "These runs kept no videos" in text
    assert "These runs scored no held-out videos during training" in text
    assert "a red circle" in text
    assert "bench run nano" not in text
    assert "bench run results/toy seeds='[0, 1, 2]'" in text


def test_numbers_of_cells_are_those_of_the_csv(page: str, written: Path) -> None:
    """A sorted column goes by the numbers of main.csv, not by their text."""
    table = load_main_table(written / "toy", *plan()).table
    (grid,) = re.findall(r'<table class="grid" id="t-scores".*?</table>', page, re.DOTALL)
    assert re.findall(r'data-sort="(\w+)"', grid)[:3] == ["text", "text", "number"]
    rows = re.findall(r"<tr>(<th scope=\"row\">.*?)</tr>", grid)
    values = [[float(value) for value in re.findall(r'data-value="([^"]+)"', row)] for row in rows]
    names = ["overall", "vq", "mq", "ta", "gold_overall"]
    assert [row[: len(names)] for row in values] == [
        [float(f"{x:.8g}") for x in line] for line in table[names].to_numpy()
    ]


def test_the_words_of_the_page_are_explained(page: str) -> None:
    words = re.findall(r"<dt><dfn>([^<]+)</dfn></dt>", page)
    assert {"Overall", "gold", "MDE", "p (Holm)", "NFE", "seed", "fixed", "dual"} <= set(words)


def test_the_same_records_give_the_same_bytes(page: str, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.page.scripts.bundle", lambda: BUNDLE)
    assert build_report(written / "toy", {"": (written / "toy", plan())}).read_text(encoding="utf-8") == page


def test_another_score_gives_another_verdict(suite: Path) -> None:
    before = Page(rendered(suite)).text
    for seed in range(3):
        path = store.run_folder(suite, "cps-fixed", seed)
        record, frame = store.read_run(path)
        store.write_run(path, record, frame.assign(value=frame["value"] + 2))
    after = Page(rendered(suite)).text
    assert "SAGE-GRPO gains most in Overall" in before
    assert "CPS gains most in Overall" in after


@pytest.mark.slow
def test_vega_lite_fits_into_a_script_element() -> None:
    text = bundle()
    assert "</script" not in text.lower()
    assert "<!--" not in text
    assert "window.vegaEmbed=" in text


# what must not get through --------------------------------------------------------------------------------------
def test_a_prompt_an_error_and_a_setting_are_escaped(suite: Path) -> None:
    for row, seed in [("base", None), *((row, seed) for row in ("cps-fixed", "sage_grpo-dual") for seed in range(3))]:
        path = store.run_folder(suite, row, seed)
        record, frame = store.read_run(path)
        prompt = frame["prompt"].where(frame["prompt_index"] != 0, f"**{EVIL}** `{EVIL}`")
        config = {**record.config, "noise_policy": {"kind": EVIL}}
        store.write_run(path, record.model_copy(update={"config": config}), frame.assign(prompt=prompt))
    record = store.read_record(suite / "cps-fixed" / "seed-1")
    shutil.rmtree(suite / "cps-fixed" / "seed-1")
    provenance = {"hardware": {"cpu": EVIL}}
    changes = {"status": "failed", "error": EVIL, "provenance": provenance, "gates": {EVIL: {"passed": EVIL}}}
    store.write_run(suite / "cps-fixed" / "seed-1", record.model_copy(update=changes))
    text = rendered(suite)
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;") >= 6
    assert "\\u003cscript" in text
    assert Page(text).handlers == []


def test_a_row_label_is_escaped(suite: Path) -> None:
    label = "<script>alert(1)<"  # a folder's name holds no slash
    for seed in range(3):
        source = suite / "cps-fixed" / f"seed-{seed}"
        record, frame = store.read_run(source)
        store.write_run(suite / label / f"seed-{seed}", record.model_copy(update={"row": label}), frame)
    loaded = Selection([row._replace(label=label) if row.method == "cps" else row for row in plan().rows], [0, 1, 2])
    text = render_page(suite, {"": (suite, loaded)})
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;" in text
    assert Page(text).handlers == []


def test_marked_up_text_is_escaped_first() -> None:
    assert rich("**a<b** `c&d` <i>") == "<strong>a&lt;b</strong> <code>c&amp;d</code> &lt;i&gt;"
    assert rich("**") == "**"


# what a suite may lack ------------------------------------------------------------------------------------------
def test_failed_runs_gates_and_missing_seeds_are_told(suite: Path) -> None:
    write(suite, "cps-fixed", 1, status="failed", error="reward is not finite", scores_digest=None)
    (suite / "cps-fixed" / "seed-1" / store.SCORES).unlink()
    shutil.rmtree(suite / "cps-fixed" / "seed-2")
    record, frame = store.read_run(suite / "sage_grpo-dual" / "seed-0")
    gates = {"ratio_audit": {"passed": False, "largest": 0.5}, "golden_scores": {"passed": None}}
    store.write_run(suite / "sage_grpo-dual" / "seed-0", record.model_copy(update={"gates": gates}), frame)
    text = rendered(suite)
    assert "1 of 6 runs failed." in text
    assert "cps-fixed, seed 1: reward is not finite" in text
    assert "1/3 (1 failed)" in text
    assert "cps-fixed: 1 of 3 seeds have not run yet." in text
    found = Page(text).text
    assert "failed ratio_audit : passed in 3 of 4 runs sage_grpo-dual, seed 0: failed (largest 0.5)" in found
    assert "missing golden_scores : passed in 0 of 5 runs" in found


def test_a_suite_without_a_finished_run_says_why_it_has_no_figures(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    write(folder, "base", None)
    write(folder, "cps-fixed", 0, status="failed", error="diverged", ledger={})
    text = rendered(folder)
    assert "No charts of training: " in text
    assert "holds no finished run" in text
    assert "1 of 2 runs failed." in text
    Page(text)


def test_without_the_charts_library_the_figures_are_pictures(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.page.content.is_installed", lambda: False)
    text = rendered(written / "toy")
    found = Page(text)
    assert len(found.images) == 5
    assert all((image["src"] or "").startswith("data:image/png") for image in found.images)
    assert len({image["alt"] for image in found.images}) == 5
    assert "<svg" not in text
    assert 'type="module"' not in text


def test_records_that_do_not_compare_are_refused(suite: Path) -> None:
    write(suite, "cps-fixed", 0, backbone={"weights": "9"})
    from bench.core.errors import BenchError

    with pytest.raises(BenchError, match="do not compare: backbone fingerprint"):
        build_report(suite, {"": (suite, plan())})
    assert not (suite / "report.html").exists()


def test_a_study_is_one_page_with_each_part_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.report.page.scripts.bundle", lambda: BUNDLE)
    shared = {**CONFIG, "suite": "toys", "rows": CONFIG["rows"][1:], "seeds": [0, 1, 2]}
    variants = {"x0": {"decode": "predicted_x0"}, "latent": {"decode": "final_latent"}}
    (tmp_path / "toys.yaml").write_text(json.dumps({**shared, "variants": variants}), encoding="utf-8")
    for name, change in variants.items():
        settings = {**shared, **change, "suite": f"toys/{name}"}
        write(tmp_path / "toys" / name, "base", None, settings)
        for seed in (0, 1, 2):
            write(tmp_path / "toys" / name, "cps-fixed", seed, settings, lift=0.1 * len(name))
    assert main(["report", str(tmp_path / "toys.yaml"), "--results", str(tmp_path)]) == 0
    text = (tmp_path / "toys" / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    sections = re.findall(r'<section id="([a-z]+)"', text)
    assert len(sections) == len(set(sections)) == 10
    assert "#vote" not in found.links, "a study has no vote: bench votes checks one suite"
    assert text.count('<details name="variant"') == 2
    assert text.count('id="t-runs"') == 1
    charts = re.findall(r'data-chart="([a-z]+)"', text)
    assert len(charts) == len(set(charts))
    assert (
        "CPS, fixed KL compared with x0: Overall: latent is better (1.2000 [1.2000, 1.2000], p <0.001)" in found.text
    )
    assert "decode predicted_x0 (x0), final_latent (latent)" in found.text.replace("`", "")
    assert re.search(r"Settings of latent Decode rule final_latent", found.text)
    island = json.loads(re.findall(r'id="data-suite">(.*?)</script>', text)[0])
    assert [row["label"] for row in island["rows"]] == ["base", "x0/cps-fixed", "latent/cps-fixed"]
    assert str(tmp_path / "toys" / "report.html") in capsys.readouterr().err
