"""What is made of the docs: generated parts are up to date, and the site builds without a complaint."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sae_faithful import load_plugins

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
KINDS = ("source", "evaluator", "baseline", "architecture")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "gen" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_of_pages_are_up_to_date(reference: ModuleType) -> None:
    pages: dict[Path, str] = reference.pages(load_plugins())
    stale = [path.name for path, text in pages.items() if not path.exists() or path.read_text() != text]
    assert stale == [], "run `make docs`"


def test_every_bundled_plugin_has_all_its_options_on_its_page() -> None:
    import dataclasses

    for kind in KINDS:
        bundled = {
            name: one
            for name, one in load_plugins().registrations(kind).items()
            if one.distribution == "sae-faithful"
        }
        assert bundled
        for name, one in bundled.items():
            page = DOCS / (f"evaluators/{name}.md" if kind == "evaluator" else f"{kind}s.md")
            text = page.read_text(encoding="utf-8")
            part = text if kind == "evaluator" else re.split(rf"^#+ {name}$", text, flags=re.M)[1]
            part = re.split(
                r"^## |<!-- end -->", part.partition("made by `make docs`: options")[2], flags=re.M
            )[0]
            cls = one.offered()[1] if kind == "architecture" else one.offered
            options = [field.name for field in dataclasses.fields(cls) if field.init]
            assert [name for name in options if f"`{name}`" not in part] in ([], ["metadata"]), name


def test_every_evaluator_says_what_it_costs_and_how_to_read_it() -> None:
    for page in sorted((DOCS / "evaluators").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for heading in ("How to read it", "Cost", "Options"):
            assert f"\n## {heading}\n" in text, page.name
        # An evaluator that shows and does not measure has no metric, and no paper to name for one.
        if page.stem != "top_contexts":
            assert "\n## Metrics\n" in text, page.name
            assert re.search(r"arXiv \d{4}\.\d{5}", text), page.name


def test_messages_of_troubleshooting_are_those_of_the_package() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    assert len(quoted) > 30
    said = messages()
    assert [message for message in quoted if not any(fits(message, one) for one in said)] == []


def messages() -> set[str]:
    """Every string of the package, `…` where a value goes in."""
    import ast

    found: set[str] = set()
    for folder in (ROOT / "sae_faithful", ROOT / "plugins"):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = [one.value if isinstance(one, ast.Constant) else "…" for one in node.values]
                    found.add("".join(map(str, parts)))
    return found


def fits(quoted: str, message: str) -> bool:
    """Whether what a page quotes, `…` for any number of characters, is part of a message."""
    return re.search(".*".join(re.escape(part) for part in quoted.split("…")), message, re.S) is not None


SITE_TIMEOUT = 120


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a warning is an error."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    made = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=SITE_TIMEOUT, check=False
    )
    assert made.returncode == 0, made.stderr
    return folder


def test_the_site_has_every_page_in_its_navigation(site: Path) -> None:
    from html import unescape

    home = (site / "index.html").read_text(encoding="utf-8")
    navigation = home.partition('<nav class="md-nav md-nav--primary"')[2].partition(
        '<div class="md-content"'
    )[0]
    linked = {unescape(href) for href in re.findall(r'href="([^"#?]+)"', navigation)} | {"index.html"}
    pages = [page.relative_to(DOCS).with_suffix(".html").as_posix() for page in DOCS.rglob("*.md")]
    assert len(pages) > 20
    assert [page for page in [*pages, "readme.html", "changelog.html"] if page not in linked] == []


REQUESTS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


def test_the_site_asks_no_other_host_for_anything(site: Path) -> None:
    from html.parser import HTMLParser

    asked: list[str] = []

    class Requests(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
            target = dict(attrs).get(REQUESTS.get(tag, ""))
            if target and re.match(r"(?:https?:)?//", target):
                asked.append(target)

    for page in site.rglob("*.html"):
        Requests().feed(page.read_text(encoding="utf-8"))
    for sheet in site.rglob("*.css"):
        asked += re.findall(r"url\([\"']?((?:https?:)?//[^)]+)\)", sheet.read_text(encoding="utf-8"))
    assert asked == []
