"""Hooks of mkdocs: pages may link to any file of the repository, and formulas become MathML.

A link such as `../../methods/cps.py` leads out of docs/ and works on GitHub. For the site, each file that such a link
or the navigation names is added below `repository/`: Markdown as a page, anything else as it is. A target that does
not exist is not added, and `mkdocs build --strict` fails at its link.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

FOLDER = "repository"
"""Folder of the site that mirrors the repository's root."""
DOCS = "../docs/"
"""Start of a path that leads from outside back into docs/."""
LINK = re.compile(r"\]\(([^)\s#]+)")
FENCE = re.compile(r"^ *(```|~~~).*?^ *\1", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file outside docs/ that the navigation or a page names."""
    in_nav = {name for name in _names(config.nav) if name.startswith("../")}
    queue = sorted(in_nav)
    for file in files.documentation_pages():
        queue += _outside_links(file)
    while queue:
        name = queue.pop()
        if files.get_file_from_path(name) is None and (Path(config.docs_dir) / name).is_file():
            file = File(name, config.docs_dir, config.site_dir, config.use_directory_urls)
            file.dest_uri = f"{FOLDER}/{file.dest_uri.removeprefix('../')}"
            file.inclusion = InclusionLevel.INCLUDED if name in in_nav else InclusionLevel.NOT_IN_NAV
            files.append(file)
            queue += _outside_links(file) if file.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace each displayed formula with MathML, and lead links of outside pages into docs/ to the pages there."""

    def rewrite(match: re.Match[str]) -> str:
        path = _resolve(page.file, match[1])
        return f"](/{path.removeprefix(DOCS)}" if path.startswith(DOCS) else match[0]

    text = LINK.sub(rewrite, markdown) if page.file.src_uri.startswith("../") else markdown
    return FORMULA.sub(lambda match: f"<div>{convert(match[1], display='block')}</div>", text)


def _names(nav: Any) -> Iterator[str]:
    """Every file name of the navigation."""
    if isinstance(nav, str):
        yield nav
    elif nav is not None:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _names(entry)


def _outside_links(file: File) -> list[str]:
    """Targets of a page's relative links that lie outside docs/, relative to docs/."""
    targets = LINK.findall(FENCE.sub("", file.content_string))
    paths = [_resolve(file, target) for target in targets if ":" not in target]
    return [path for path in paths if path.startswith("../") and not path.startswith(DOCS)]


def _resolve(file: File, target: str) -> str:
    """The path of a link's target relative to docs/."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(file.src_uri), target))
