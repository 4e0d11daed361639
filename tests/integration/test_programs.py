"""Tests that need a browser or LaTeX skip where these are missing; in CI that may not pass unnoticed."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="only CI must have a browser and LaTeX")
def test_ci_has_a_browser_and_latex() -> None:
    missing = [program for program in ("chromium", "pdflatex") if shutil.which(program) is None]
    missing += [module for module in ("playwright",) if importlib.util.find_spec(module) is None]
    assert not missing, f"tests are skipped without {', '.join(missing)}: see install_programs in .ci/run"
