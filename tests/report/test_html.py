"""The page as text: self-contained, in order, and nothing from a run in it is markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from sae_faithful import UsageError
from sae_faithful.cli import main
from sae_faithful.report import write_comparison, write_report
from sae_faithful.report.html import render_page
from sae_faithful.report.run_data import read_runs
from sae_faithful.run_folder import RunFolder

HOSTILE = "</script><script>alert(1)</script>&amp;\"'<b>\u202e\x00\u2028👩\u200d💻"
SHOWN = "</script><script>alert(1)</script>&amp;\"'<b>\\u202e\\x00\\u2028👩\u200d💻"


class Page(HTMLParser):
    """What a browser would make of a page: elements with their text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.text[tag] = self.text.get(tag, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def ids(self) -> list[str]:
        return [name for _, attributes in self.elements if (name := attributes.get("id"))]


def page_of(*folders: RunFolder) -> Page:
    return Page(render_page(read_runs(folders)))


@pytest.fixture
def run(number: Any, write_run: Any) -> RunFolder:
    """A run with verdicts, texts, a config and a text of an evaluator."""
    rows = [
        number("typicality", "typicality_gap", 0.01, None, dataset="faithful", n=900, ci_low=0.0, ci_high=0.02),
        number("typicality", "typicality_z", 0.5, None, dataset="faithful", n=900, reason="its own scale"),
        *(
            number("fake_features", "ffr_contrast", value, source, seed=seed, subset="alive", condition="rate>0.1")
            for source, values in (("faithful", (0.10, 0.11, 0.13)), ("news", (0.2, 0.22, 0.23)))
            for seed, value in enumerate(values)
        ),
        *(
            number("fake_features", "ffr_contrast", value, source, subset="alive", condition="rate>0.1",
                   headline=True, ci_low=0.0, ci_high=1.0)
            for source, value in (("faithful", 0.34 / 3), ("news", 0.65 / 3))
        ),
    ]  # fmt: skip
    return write_run(
        rows,
        own_text=["faithful"],
        evaluators=["fake_features"],
        files={
            "config.json": {"seed": 3, "sources": {"faithful": {"plugin": "self_generated", "n_tokens": 1000}}},
            "data/faithful/card.json": {
                "plugin": "self_generated", "rows": {"train": 90, "held_out": 10}, "context_size": 16,
            },
            "results/fake_features/artifacts/reading.txt": "More **fake** than chance.\n",
        },
    )  # fmt: skip


def test_the_page_opens_with_the_answer_and_is_in_order(run: RunFolder) -> None:
    text = render_page(read_runs([run]))
    page = Page(text)
    sections = [name for name in page.ids() if f"{name}-title" in page.ids()]
    assert sections == ["answer", "run", "headlines", "fakeness", "text", "texts", "method"]
    main_text = page.text["main"]
    # -.1, -.11, -.1: mean -.103333, SD .0057735, half width 4.302653 · .0057735 / √3 = .0143422.
    assert "-0.1033 [-0.1177, -0.0890]" in " ".join(main_text.split())
    assert (
        "Contrast FFR of alive latents (rate > 0.1) is lower for SAEs on faithful than on news" in main_text
    )
    badges = [
        attributes["class"]
        for tag, attributes in page.elements
        if tag == "span" and "badge" in str(attributes)
    ]
    # The card's, and that of the number in the table of definitions.
    assert badges == ["badge supported"] * 2
    assert "about 1 in 20 would come out supported or contradicted by chance" in main_text
    assert "Not measured: SFR of alive latents" in main_text
    # The same difference marks the better source in the table.
    assert main_text.count("▲ better than") == 1
    assert "1,440" in main_text, "training tokens: 90 rows of 16"


def test_the_config_can_be_copied_whole(run: RunFolder) -> None:
    page = page_of(run)
    (pre,) = (attributes for attributes in page.all("pre") if attributes.get("id") == "config-1")
    assert pre["tabindex"] == "0"
    (button,) = (one for one in page.all("button") if one.get("class") == "copy")
    assert button["data-copies"] == "config-1"
    assert yaml.safe_load(page.text["pre"]) == json.loads(run.config_file.read_text())


def test_every_link_inside_the_page_leads_somewhere(run: RunFolder) -> None:
    page = page_of(run)
    targets = {str(link["href"]) for link in page.all("a")}
    assert {"#answer", "#run", "#headlines", "#main"} <= targets
    assert targets <= {f"#{name}" for name in page.ids()}


def test_nothing_is_fetched_from_anywhere(run: RunFolder) -> None:
    page = page_of(run)
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    (policy,) = (meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert str(policy).startswith("default-src 'none';")
    assert "url(" not in page.text["style"]
    assert "@import" not in page.text["style"]


def test_hostile_text_stays_text(number: Any, write_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Such names are refused already; were they not, they would be text.
    for module in ("report.run_data", "run_folder"):
        monkeypatch.setattr(f"sae_faithful.{module}.check_name", lambda *_: None)
    bad = {"source": HOSTILE, "hook": HOSTILE, "variant": HOSTILE, "seed": 0}
    latent = {"latent": 0, "why": [HOSTILE], "maximum": 1.0, "promoted": [[HOSTILE, 1.0]], "suppressed": [],
              "contexts": [{"row": 0, "position": 0, "tokens": [HOSTILE, "x" * 10_000], "activations": [1.0, 0.0],
                            "peak": 0}]}  # fmt: skip
    folder = write_run(
        [
            number("some", "l0", 1.0, HOSTILE, hook=HOSTILE, variant=HOSTILE, dataset=HOSTILE, condition=HOSTILE,
                   unit=HOSTILE, headline=True, reason=HOSTILE),
            number("typicality", "typicality_gap", 0.1, None, dataset=HOSTILE, n=1, reason=HOSTILE),
        ],
        files={
            "config.json": {"sources": {HOSTILE: {"plugin": HOSTILE}}},
            "results/some/artifacts/reading.txt": f"{HOSTILE} **{HOSTILE}** `{HOSTILE}`\n{'y' * 10_000}\n",
            "results/top_contexts/artifacts/contexts.json": {"saes": [{**bad, "latents": [latent]}]},
        },
        sources=[HOSTILE], model=HOSTILE, summary=HOSTILE, evaluators=["some"], versions={HOSTILE: HOSTILE},
    )  # fmt: skip
    text = render_page(read_runs([folder]))
    page = Page(text)
    ordinary = Page(render_page(read_runs([write_run([], name="empty")])))
    assert len(page.all("script")) == len(ordinary.all("script")) == 6
    assert not page.all("b")
    # The three characters that would act were they there; the page shows what they are.
    assert not {"\u202e", "\x00", "\u2028"} & set(text)
    assert SHOWN in page.text["h1"]
    assert page.text["main"].count(SHOWN) > 8
    embedded = re.findall(r'type="application/json" id="[a-z]+-data">(.*?)</script>', text, re.S)
    assert len(embedded) == 3
    assert not any(set("<>&") & set(document) for document in embedded)
    found = json.loads(embedded[2])
    (sae,) = found["saes"]
    assert (sae["source"], sae["pages"]["0"]["contexts"][0]["tokens"][0]) == (HOSTILE, HOSTILE)
    text.encode()


def test_half_an_emoji_in_an_artifact_can_still_be_written(write_run: Any, tmp_path: Path) -> None:
    folder = write_run([], evaluators=[])
    target = folder.result_dir("top_contexts") / "artifacts" / "contexts.json"
    target.parent.mkdir(parents=True)
    place = {"row": 0, "position": 0, "tokens": ["\ud83d"], "activations": [1.0], "peak": 0}
    sae = {"source": "faithful", "hook": "h", "variant": "v", "seed": 0}
    target.write_text(
        json.dumps({"saes": [{**sae, "latents": [{"latent": 0, "why": [], "contexts": [place]}]}]})
    )
    assert "\\ud83d" in write_report(folder).read_text(encoding="utf-8")


def test_a_run_of_an_older_version_still_has_a_page(number: Any, write_run: Any) -> None:
    page = page_of(write_run([number("some", "l0", 1.0, "faithful", reason="r")]))
    assert "does not say whose text its sources are." in page.text["main"]
    assert {"features", "headlines", "texts", "monitors"}.isdisjoint(page.ids())
    assert "config-1" not in page.ids()


def test_several_runs_are_side_by_side(run: RunFolder, write_run: Any, number: Any) -> None:
    other = write_run(
        [number("fake_features", "ffr_contrast", 0.5, "faithful", subset="alive", condition="rate>0.1",
                headline=True, ci_low=0.0, ci_high=1.0)],
        name="other", evaluators=["fake_features"], sources=["faithful"],
    )  # fmt: skip
    path = write_comparison([run, other])
    assert path == run.root / "comparison.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.text["title"] == "Comparison of 2 runs"
    heads = re.findall(r"\S[^\n]*", page.text["thead"])
    assert [head for head in heads if ": " in head] == ["run: faithful", "run: news", "other: faithful"]
    # A comparison leaves each run's own files as they are.
    assert not run.html_file.exists()
    assert not run.report_file.exists()
    with pytest.raises(UsageError, match="is given twice"):
        write_comparison([run, other, run])


def test_the_command_writes_report_or_comparison_and_says_where(
    run: RunFolder, write_run: Any, tmp_path: Path
) -> None:
    other = write_run([], name="other")
    call = CliRunner().invoke
    done = call(main, ["report", str(run.root)])
    assert done.stdout == f"report: {run.report_file}\nto look at: {run.html_file.as_uri()}\n"
    assert "Figures, and a page for every latent, are in `report.html`." in run.report_file.read_text()
    assert len(run.verdicts_file.read_text().splitlines()) == 1
    elsewhere = tmp_path / "elsewhere.html"
    assert call(main, ["report", str(run.root), "--output", str(elsewhere)]).exit_code == 0
    assert elsewhere.read_text() == run.html_file.read_text()
    both = call(main, ["report", str(run.root), str(other.root)])
    assert both.stdout == f"to look at: {run.comparison_file.as_uri()}\n"
    refused = call(main, ["report", str(run.root), str(other.root), "--format", "csv"])
    assert refused.exit_code == 2
    assert (
        refused.stderr == "error: --format prints the rows of one run: give one DIRECTORY, and no --output\n"
    )
