"""One Chromium per session, and reports of toy records whose videos show in every pixel which frame it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from bench.report.data.selection import Selection, rows_of
from bench.report.page.page import build_report
from bench.store import run_folder
from bench.store.videos import keep_clip, read_videos, write_index
from bench.suite.schema import Suite
from tests.helpers.toy_records import CONFIG, write_suite

FPS, FRAMES, SIDE, VIDEOS, PROMPTS = 8.0, 5, 16, 2, 36
LARGE = (96, 80)
"""Height and width of clips that are too large for one picture."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no `chromium` on this machine: the page is not tested in a browser")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path)
        yield chromium
        chromium.close()


def keep(run: Path, clips: dict[tuple[int, int], np.ndarray]) -> None:
    """Store these clips of a run: prompt and video to frames."""
    kept = [keep_clip(run, key, frames, clips=len(clips), fps=FPS, write=True) for key, frames in clips.items()]
    write_index(run, kept, FPS)


def runs_of(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("run.json"))


def report_of(folder: Path, seeds: tuple[int, ...], settings: dict[str, Any] | None = None) -> Path:
    suite = Suite.model_validate({**CONFIG, **(settings or {})})
    return build_report(folder, {"": (folder, Selection(rows_of(suite), list(seeds)))})


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a suite with three seeds, two videos of every prompt, and its report."""
    folder = tmp_path_factory.mktemp("toy") / "toy"
    ramp = np.arange(SIDE)[:, None, None] + 2 * np.arange(SIDE)[None, :, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        write_suite(folder)
        for number, run in enumerate(runs_of(folder)):
            colours = np.random.default_rng(number).integers(200, size=(PROMPTS, VIDEOS, FRAMES, 1, 1, 3))
            frames = (colours + ramp).astype(np.uint8)
            keep(run, {(p, v): frames[p, v] for p in range(PROMPTS) for v in range(VIDEOS)})
        report_of(folder, (0, 1, 2))
    return folder


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a suite whose videos are files: grey frames, brighter by 40 from one to the next."""
    folder = tmp_path_factory.mktemp("large") / "toy"
    grey = np.broadcast_to(40 * np.arange(1, FRAMES + 1, dtype=np.uint8)[:, None, None, None], (FRAMES, *LARGE, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        write_suite(folder, seeds=(0,))
        for run in runs_of(folder):
            keep(run, {(p, 0): grey for p in range(PROMPTS)})
        report_of(folder, (0,), {"seeds": [0]})
    return folder


@pytest.fixture
def rebuild() -> Callable[[Path], Path]:
    """Write the report of a changed copy of `toy` again."""
    return lambda folder: report_of(folder, (0, 1, 2))


@pytest.fixture(scope="session")
def frames_of(toy: Path) -> Callable[..., np.ndarray]:
    """Stored frames of a clip: row, seed (None for the base), prompt, video."""

    def frames(row: str, seed: int | None, prompt: int, video: int) -> np.ndarray:
        videos = read_videos(run_folder(toy, row, seed))
        assert videos is not None
        return videos.frames(prompt, video)

    return frames


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a report; nothing that its browser complains about or asks for passes."""
    contexts: list[Any] = []
    opened: set[str] = set()
    complaints: list[str] = []
    requests: list[str] = []

    def open_report(folder: Path, link: str = "", width: int = 1600, init: str = "", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 1000 if width > 600 else 844}, **options)
        contexts.append(context)
        context.set_default_timeout(120_000)  # of milliseconds: a busy machine is slow, and no fault of the page
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        if init:
            page.add_init_script(init)
        url = (folder / "report.html").as_uri()
        opened.add(url)
        page.goto(f"{url}{link}")
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert complaints == []
    asked = {url.split("#")[0] for url in requests if not url.startswith(("data:", "blob:"))}
    assert asked == opened, "the page is the only request"
