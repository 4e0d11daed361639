"""`bench report`: one page that is whole, safe and the same twice, and says what the records say."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from bench import store
from bench.cli import main
from bench.report.data.selection import Selection, rows_of
from bench.report.page.page import build_report, render_page, rich
from bench.report.tables.main import load_main_table, render_table
from bench.suite.schema import Suite
from tests.helpers.toy_records import CONFIG, write, write_suite

EVIL = "<script>alert('x')</script>"
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags, ids, links and text of a page; tags that do not close are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids), "an id is given once"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.open += [] if tag in VOID else [tag]
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if tag == "a" else []
        self.images += [found] if tag == "img" else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
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
    assert main(["report", str(suite_yaml), "--results", str(written)]) == 0
    return (written / "toy" / "report.html").read_text(encoding="utf-8")


def plan() -> Selection:
    suite = Suite.model_validate(CONFIG)
    return Selection(rows_of(suite.rows), suite.seeds)


def rendered(folder: Path) -> str:
    return render_page(folder, {"": (folder, plan())})


@pytest.fixture
def suite(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may spoil; figures, which cost most of the time, are left out."""
    monkeypatch.setattr("bench.report.page.page.render_figures", lambda *args: ({}, {}))
    return shutil.copytree(written / "toy", tmp_path / "toy", ignore=shutil.ignore_patterns("report.html"))


# the whole page -----------------------------------------------------------------------------------------------
def test_the_page_is_balanced_and_needs_nothing_from_elsewhere(page: str) -> None:
    found = Page(page)
    assert page.startswith("<!DOCTYPE html>")
    assert "script" not in found.tags
    assert "link" not in found.tags
    assert not re.search(r"(src|href)=\"(https?:)?//", page)
    assert "url(" not in page
    assert all((image["src"] or "").startswith("data:image/") for image in found.images)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert 'name="viewport"' in page


def test_every_picture_has_a_text_of_its_own(page: str) -> None:
    alts = [image["alt"] or "" for image in Page(page).images]
    assert len(alts) == len(set(alts)) == 3
    assert all(len(alt) > 40 for alt in alts)
    assert page.count("<figcaption>") == 3
    assert [image["width"] for image in Page(page).images] == ["921", "614", "883"]  # inches of figures.py, by 96
    assert "Learning curves" in page


def test_anchors_and_links_lead_somewhere(page: str, written: Path) -> None:
    found = Page(page)
    inside = [link[1:] for link in found.links if link.startswith("#")]
    files = [unquote(link) for link in found.links if not link.startswith("#")]
    assert len(inside) > 5
    assert set(inside) <= set(found.ids)
    assert len(files) == 2 + 6 * 3
    assert all((written / "toy" / name).is_file() for name in files)


def test_the_page_says_what_the_table_says(page: str, written: Path) -> None:
    text = Page(page).text
    table = render_table(load_main_table(written / "toy", *plan()))["main.md"]
    cells = {cell.strip().strip("*") for cell in re.findall(r"(?<=\|)[^|\n]+(?=\|)", table)}
    numbers = {cell for cell in cells if re.fullmatch(r"-?\d.*", cell)}
    assert len(numbers) > 40
    assert all(cell in text for cell in numbers)
    record = store.read_record(written / "toy" / "cps-fixed" / "seed-1")
    for told in (record.digest, record.prompts_digest, record.scores_digest, "c0ffee000000", "python", "3.12.1"):
        assert str(told) in text
    assert "nothing here is a result about HunyuanVideo-1.5 at full size" in text
    assert "No recorded run failed." in text
    assert "No controls of this suite were found." in text
    assert "a red circle" in text


def test_a_prompt_has_the_mean_of_each_row(page: str, written: Path) -> None:
    frame = store.read_run(written / "toy" / "base")[1]
    own = frame[(frame["prompt_index"] == 5) & frame["metric"].isin(["VQ", "MQ", "TA"])]
    mean = own["value"].sum() / 2  # Overall of a video is the sum of three scores, and the prompt has two videos
    line = f'<tr><th scope="row" class="wide">{own["prompt"].iloc[0]}</th><td>5</td><td>{mean:.2f}</td>'
    assert page.count(line) == 1


def test_the_same_records_give_the_same_bytes(page: str, written: Path, suite_yaml: Path) -> None:
    assert build_report(written / "toy", {"": (written / "toy", plan())}).read_text(encoding="utf-8") == page


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
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 6
    assert "script" not in Page(text).tags


def test_a_row_label_is_escaped(suite: Path) -> None:
    label = "<script>alert(1)<"  # a folder's name holds no slash
    for seed in range(3):
        source = suite / "cps-fixed" / f"seed-{seed}"
        record, frame = store.read_run(source)
        store.write_run(suite / label / f"seed-{seed}", record.model_copy(update={"row": label}), frame)
    loaded = Selection([row._replace(label=label) if row.method == "cps" else row for row in plan().rows], [0, 1, 2])
    text = render_page(suite, {"": (suite, loaded)})
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;" in text
    assert "%3Cscript%3Ealert%281%29%3C/seed-0/run.json" in text
    assert "script" not in Page(text).tags


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
    lines = dict(re.findall(r'<tr><th scope="row">([^<]+)</th>(<td.*?passed|<td.*?failed|<td.*?not trained)', text))
    assert "absent" in lines["base"]
    assert re.search(r'<td>absent</td><td class="failed"><strong>failed</strong> \(largest 0.5\)', text)
    assert "<td>absent</td><td>not trained</td>" in text
    assert "<td>absent</td><td>passed (largest 0.0, tolerance 1e-05)</td>" in text


def test_a_suite_without_a_finished_run_says_why_it_has_no_figures(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    write(folder, "base", None)
    write(folder, "cps-fixed", 0, status="failed", error="diverged", ledger={})
    text = rendered(folder)
    assert "<strong>No figures: " in text
    assert "holds no finished run" in text
    assert "1 of 2 runs failed." in text
    Page(text)


def test_a_stored_gallery_is_embedded(suite: Path) -> None:
    (suite / "figures").mkdir()
    (suite / "figures" / "gallery.webp").write_bytes(b"RIFF gallery")
    (image,) = Page(rendered(suite)).images
    assert image["src"] == "data:image/webp;base64,UklGRiBnYWxsZXJ5"
    assert "Animated grid of videos" in (image["alt"] or "")


def test_records_that_do_not_compare_are_refused(suite: Path) -> None:
    write(suite, "cps-fixed", 0, backbone={"weights": "9"})
    from bench.core.errors import BenchError

    with pytest.raises(BenchError, match="do not compare: backbone fingerprint"):
        build_report(suite, {"": (suite, plan())})
    assert not (suite / "report.html").exists()


def test_a_study_is_one_page_with_its_ablation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.report.page.page.render_figures", lambda *args: ({}, {}))
    shared = {**CONFIG, "suite": "toys", "rows": CONFIG["rows"][1:], "seeds": [0, 1]}
    variants = {"x0": {"decode": "predicted_x0"}, "latent": {"decode": "final_latent"}}
    (tmp_path / "toys.yaml").write_text(json.dumps({**shared, "variants": variants}), encoding="utf-8")
    for name, change in variants.items():
        settings = {**shared, **change, "suite": f"toys/{name}"}
        write(tmp_path / "toys" / name, "base", None, settings)
        for seed in (0, 1):
            write(tmp_path / "toys" / name, "cps-fixed", seed, settings, lift=0.1 * len(name))
    assert main(["report", str(tmp_path / "toys.yaml"), "--results", str(tmp_path)]) == 0
    found = Page((tmp_path / "toys" / "report.html").read_text(encoding="utf-8"))
    assert [image["alt"] for image in found.images] == [
        "Forest plot: difference to the base with its interval, one line per level, one panel per group and score "
        "(cps-fixed)."
    ]
    assert {"ablation", "c1", "c2", "c1-runs", "c2-runs"} <= set(found.ids)
    assert "x0/cps-fixed/seed-0/run.json" in found.links
    assert all((tmp_path / "toys" / link).is_file() for link in found.links if not link.startswith("#"))
    assert "decode predicted_x0 (x0), final_latent (latent)" in found.text.replace("`", "")
    assert str(tmp_path / "toys" / "report.html") in capsys.readouterr().err
