"""The scripts of a page, and the policy that lets a browser run these and nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from bench.report.page.vega import bundle

APP = Path(__file__).parent / "templates" / "app"
ORDER = "order.txt"


@dataclass(frozen=True)
class Script:
    """A script inside the page."""

    text: Markup
    module: bool = False
    """Whether it is a module, whose names are its own and which runs when the page is parsed."""


def own_scripts() -> list[Script]:
    """The page's own scripts in one, in the order of `order.txt`."""
    names = (APP / ORDER).read_text(encoding="utf-8").split()
    text = "\n".join((APP / name).read_text(encoding="utf-8") for name in names)
    return [Script(Markup(text))]  # noqa: S704 - files of this package


def vega_script() -> Script:
    """Vega-Lite, which draws the charts anew so that they can be hovered and switched."""
    return Script(Markup(bundle()), module=True)  # noqa: S704 - the script of an installed package


def policy(scripts: Sequence[Script]) -> str:
    """The content security policy of a page with these scripts: no request, and no other script."""
    hashes = [base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes) or "'none'"
    media = "img-src data: blob:; media-src data: blob: 'self'; style-src 'unsafe-inline'"
    return f"default-src 'none'; {media}; script-src {allowed}"
