"""Consent to run the code that a suite names.

A plug-in "module:Class" is code, which runs with the user's rights. Who types its name on the command line agrees to
that. A file from elsewhere that names one needs `--allow-code` once: its folder is then trusted, and remembered.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.errors import BenchError
from bench.core.progress import say
from bench.core.provenance import ROOT

if TYPE_CHECKING:
    from bench.suite.schema import Suite

VARIABLE = "BENCH_ALLOW_CODE"
"""Environment variable that stands for `--allow-code` if it is 1, for CI and job scripts."""


def add_code_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--allow-code`."""
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="run plug-ins 'module:Class' that the file names; remembered for its folder (see the page on security)",
    )


def trusted_folders_file() -> Path:
    """The file with the trusted folders, one per line, in the user's folder of program states."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state, "grpo-video-bench", "trusted_folders")


def trust(folder: Path) -> None:
    """Remember that files in the folder and below may name code; a note if that is not possible."""
    if is_trusted(folder):
        return
    from bench import store

    path = trusted_folders_file()
    known = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    try:
        store.write_text(path, f"{known}{folder.resolve()}\n")
    except BenchError as error:
        say(f"note: {folder.resolve()} is trusted for this command only ({error})")


def is_trusted(folder: Path) -> bool:
    """Whether the folder, or one above it, is trusted; the packaged suites are."""
    path = trusted_folders_file()
    known = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    place = folder.resolve()
    return any(str(each) in known for each in (place, *place.parents)) or place.is_relative_to(ROOT / "bench")


def code_names(suites: Iterable[Suite]) -> list[str]:
    """Every "module:Class" that the suites name."""
    return sorted({name for suite in suites for _, name in suite.plugin_names() if ":" in name})


def check_consent(file: Path, suites: Iterable[Suite], allow_code: bool, typed: Sequence[str] = ()) -> None:
    """Refuse a suite file, or a folder of records, that names code, unless it is trusted or `allow_code` trusts it.

    `typed`: the user's own words; a name in them needs no consent.
    """
    own = {name for text in typed for name in re.findall(r"[\w.]+:\w+", text)}
    names = [name for name in code_names(suites) if name not in own]
    folder = file if file.is_dir() else file.parent
    if not names or is_trusted(folder) or os.environ.get(VARIABLE) == "1":
        return
    if not allow_code:
        raise BenchError(
            f"{file} names code of its own ({', '.join(names)}), which will run with your rights: read it, then add "
            f"--allow-code, which is remembered for the folder {folder.resolve()}."
        )
    trust(folder)
