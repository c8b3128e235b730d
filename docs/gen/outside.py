"""mkdocs hook: README, CHANGELOG and LICENSE, which lie outside `docs/`, in the site.

On a git forge the pages' links are right as they stand. In the site `../README.md` is `readme.md`, and
`docs/metrics.md`, as the README writes it, is `metrics.md`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = {"README.md": "readme.md", "CHANGELOG.md": "changelog.md", "LICENSE": "license.txt"}
"""Files by their place in the repository, with their place in the site."""
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.M | re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    here = {site: repository for repository, site in OUTSIDE.items()}.get(
        page.file.src_uri, f"docs/{page.file.src_uri}"
    )
    parts = CODE.split(markdown)
    for i in range(0, len(parts), 2):  # the odd ones are code
        parts[i] = LINK.sub(
            lambda link: f"]({in_site(link[1], here, page.file.src_uri)}{link[2] or ''})", parts[i]
        )
    return "".join(parts)


def in_site(target: str, here: str, page: str) -> str:
    """A link of the file `here` of the repository, as `page` of the site writes it."""
    if "://" in target:
        return target
    place = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
    place = OUTSIDE.get(place) or place.removeprefix("docs/")
    return posixpath.relpath(place, posixpath.dirname(page) or ".")
