"""The page in a real Chromium: it draws, sorts, searches and links, on a phone, in the dark, for everyone, offline."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from sae_faithful.run_folder import RunFolder

HOOK = "model.layers.0"
HOSTILE = "<script>hit()</script><img src=x onerror=hit()>&lt;\x00\u202e👩\u200d💻 עברית"
SHOWN = "<script>hit()</script><img src=x onerror=hit()>&lt;\\x00\\u202e👩\u200d💻 עברית"


@pytest.fixture
def report(visit: Any, real_run: RunFolder) -> Any:
    """The real run's page."""
    return lambda address="", **how: visit(real_run.html_file, address, **how).page


def chosen(folder: RunFolder, seed: int = 0) -> list[dict[str, Any]]:
    """Latents of the first source's SAE that have contexts."""
    path = folder.result_dir("top_contexts") / "artifacts" / "contexts.json"
    (sae,) = (
        one
        for one in json.loads(path.read_text())["saes"]
        if (one["source"], one["seed"]) == ("faithful", seed)
    )
    return sae["latents"]


def address(latent: int, seed: int = 0) -> str:
    return f"#feature/faithful/{HOOK}/base/{seed}/{latent}"


def first_cells(page: Any, label: str) -> list[str]:
    return page.locator(f"table[aria-label='{label}'] tbody th").all_inner_texts()


def width_of(page: Any) -> int:
    return page.evaluate("document.scrollingElement.scrollWidth")


def test_it_opens_with_the_answer_from_disk_alone(report: Any) -> None:
    page = report()
    assert page.locator("h1").inner_text() == page.title()
    assert page.locator("main h2").first.inner_text() == "The answer"
    badges = page.locator(".card .badge").all_inner_texts()
    # SFR, FFR and CE difference are judged; nothing was probed.
    assert len(badges) == 3
    assert all(badge.startswith(("supported", "contradicted", "undecided")) for badge in badges)
    assert "Not measured: probe accuracy of latents." in page.locator("#answer").inner_text()


def test_figures_draw_when_they_come_into_view(report: Any) -> None:
    page = report()
    plots = page.locator(".plot")
    assert plots.count() >= 5
    assert plots.last.locator(".main-svg").count() == 0
    assert page.evaluate("window.Plotly") is None
    for i in range(plots.count()):
        plots.nth(i).scroll_into_view_if_needed()
        plots.nth(i).locator(".main-svg").first.wait_for()
        assert plots.nth(i).locator("p").count() == 0
        # Something was drawn, not just axes.
        assert plots.nth(i).evaluate("place => place.data.length && place.calcdata.length") > 0


def test_tables_sort_by_mouse_and_by_keyboard(report: Any) -> None:
    page = report()
    column = page.locator("table[aria-label='Texts'] thead th").nth(3)

    def gaps() -> list[float]:
        rows = page.locator("table[aria-label='Texts'] tbody tr")
        cells = rows.evaluate_all("rows => rows.map(row => row.cells[3].dataset.sort)")
        return [float(cell) for cell in cells]

    before = gaps()
    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "ascending"
    assert gaps() == sorted(before)
    column.locator("button").focus()
    page.keyboard.press("Enter")
    assert column.get_attribute("aria-sort") == "descending"
    assert gaps() == sorted(before, reverse=True)
    assert len(set(before)) == len(before) == 3
    # Lines stay with their evaluator.
    heads = page.locator("table.headlines tbody tr:first-child").all_inner_texts()
    page.locator("table.headlines thead button").nth(1).click()
    assert page.locator("table.headlines tbody tr:first-child").all_inner_texts() == heads


def test_any_latent_opens_by_its_index(report: Any) -> None:
    page = report()
    field, error = page.locator("#latent-index"), page.locator(".error[role=alert]")
    field.fill("96")
    page.keyboard.press("Enter")
    assert error.inner_text() == f"faithful · {HOOK} · base · seed 0 has latents 0 to 95."
    field.fill("-1")
    page.get_by_role("button", name="Open").click()
    assert error.inner_text() == "“-1” is no index of a latent."
    page.locator("#which-sae").select_option(index=4)
    field.fill("95")
    page.keyboard.press("Enter")
    page.locator("#feature h1").wait_for()
    assert page.locator("#feature h1").inner_text() == "Latent 95"
    assert "words · model.layers.0 · base · seed 1" in page.locator("#feature .summary").inner_text()
    assert not page.locator("#report").is_visible()
    assert page.evaluate("document.activeElement.textContent") == "Latent 95"


def test_lists_of_latents_sort_and_filter(report: Any) -> None:
    page = report()
    label = f"Latents of faithful · {HOOK} · base · seed 0"
    listed = first_cells(page, label)
    assert listed
    page.get_by_role("region", name=label).get_by_role("button", name="Latent").click()
    page.get_by_role("region", name=label).get_by_role("button", name="Latent").click()
    assert first_cells(page, label) == sorted(listed, key=int, reverse=True)
    page.locator("#which-reason").select_option("most stable")
    assert 0 < len(first_cells(page, label)) <= 8


def test_a_feature_links_to_its_match_in_another_seed(report: Any, real_run: RunFolder) -> None:
    page = report()
    first = page.locator("#latent-list tbody a").first
    latent = first.inner_text()
    first.click()
    assert page.locator("#feature h1").inner_text() == f"Latent {latent}"
    (written,) = (one for one in chosen(real_run) if one["latent"] == int(latent))
    texts = page.locator("#feature .tokens").all_inner_texts()
    assert texts[: len(written["contexts"])] == ["".join(one["tokens"]) for one in written["contexts"]]
    peaks = page.locator("#feature .token.peak").all_inner_texts()
    assert peaks == [one["tokens"][one["peak"]] for one in written["contexts"]]
    page.get_by_role("button", name="Show activations").click()
    assert page.locator("#feature .token.peak sub").first.inner_text()
    match = page.locator("table[aria-label=Matches] a").first
    number = match.inner_text().removeprefix("latent ")
    match.click()
    assert page.locator("#feature h1").inner_text() == f"Latent {number}"
    assert "seed 1" in page.locator("#feature .summary").inner_text()
    # The match was chosen too, so it has contexts.
    assert page.locator("#feature .context").count() > 0
    page.go_back()
    assert page.locator("#feature h1").inner_text() == f"Latent {latent}"
    page.get_by_role("link", name="All features").click()
    assert page.locator("#features").is_visible()
    assert not page.locator("#feature").is_visible()


def test_a_phone_scrolls_one_way_only(report: Any, real_run: RunFolder) -> None:
    page = report(width=390)
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
    for details in page.locator("main details").all():
        details.evaluate("one => { one.open = true; }")
    assert width_of(page) <= 390
    page.locator(".menu summary").click()
    page.get_by_role("navigation", name="Contents, short").get_by_role(
        "link", name="Headline numbers"
    ).click()
    assert page.locator("#headlines-title").is_visible()
    assert not page.locator(".menu").evaluate("menu => menu.open")
    page.goto(real_run.html_file.as_uri() + address(chosen(real_run)[0]["latent"]))
    assert page.locator("#feature h1").is_visible()
    assert width_of(page) <= 390


def test_dark_is_the_systems_or_the_readers_choice(report: Any) -> None:
    page = report(dark=True)

    def is_dark() -> bool:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return max(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) < 128

    assert is_dark()
    plot = page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    plot.locator(".main-svg").first.wait_for()
    colours = [plot.evaluate("place => place._fullLayout.font.color")]
    page.get_by_role("button", name="Dark theme", pressed=True).click()
    assert not is_dark()
    page.wait_for_function(
        "old => document.querySelector('.plot')._fullLayout.font.color !== old", arg=colours[0]
    )
    page.reload()
    assert not is_dark()


def test_the_config_is_copied(report: Any, real_run: RunFolder) -> None:
    page = report()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".config summary").click()
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Copied.").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert yaml.safe_load(copied) == json.loads(real_run.config_file.read_text())


def test_printed_it_is_open_and_without_navigation(report: Any) -> None:
    page = report(dark=True)
    page.emulate_media(media="print")
    assert not page.locator(".top").is_visible()
    assert not page.locator(".side").is_visible()
    closed = page.locator("main details:not([open])")
    n_closed = closed.count()
    assert n_closed > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert closed.count() == 0
    assert page.locator(".plot .main-svg").count() >= page.locator(".plot").count()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert closed.count() == n_closed


def test_hostile_text_shows_and_does_nothing(visit: Any, write_run: Any, number: Any) -> None:
    from sae_faithful.report import write_report

    place = {
        "row": 0,
        "position": 0,
        "tokens": [HOSTILE, "\n", "x" * 10_000],
        "activations": [2.0, 0.0, 1.0],
        "peak": 0,
    }
    latent = {"latent": 3, "why": [HOSTILE], "maximum": 2.0, "contexts": [place], "promoted": [[HOSTILE, 1.0]],
              "suppressed": [["  ", -1.0]]}  # fmt: skip
    sae = {"source": HOSTILE, "hook": "a/b#c%", "variant": "base", "seed": 0, "latents": [latent]}
    folder = write_run(
        [number("some", "l0", 1.0, HOSTILE, hook="a/b#c%", headline=True, reason=HOSTILE)],
        files={
            "results/top_contexts/artifacts/contexts.json": {"saes": [sae]},
            "results/some/artifacts/reading.txt": f"{HOSTILE}\n{'y' * 10_000}\n```\n{'z' * 10_000}\n```\n",
        },
        sources=["faithful"], model=HOSTILE, summary=HOSTILE, evaluators=["some"],
    )  # fmt: skip
    page = visit(write_report(folder), width=390).page
    page.evaluate("() => { window.hit = () => { window.wasHit = true; }; }")
    assert SHOWN in page.locator("h1").inner_text()
    page.locator("#texts summary").first.click()
    assert page.locator("#texts p").first.inner_text() == SHOWN
    assert page.locator("#texts p").nth(1).inner_text() == "y" * 10_000
    assert width_of(page) <= 390
    page.locator("#latent-list tbody a").click()
    assert page.locator("#feature h1").inner_text() == "Latent 3"
    assert page.locator(".tokens").inner_text() == SHOWN + "↵" + "x" * 10_000
    assert page.locator(".token-list li").all_inner_texts() == [f"{SHOWN}\n1", "␣␣\n-1"]
    assert width_of(page) <= 390
    assert page.evaluate("window.wasHit") is None
    assert page.locator("main img, main script").count() == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("which", ["report", "feature"])
def test_axe_finds_nothing_serious(report: Any, real_run: RunFolder, which: str, dark: bool) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = report(address(chosen(real_run)[0]["latent"]) if which == "feature" else "", dark=dark)
    for plot in page.locator(".plot:visible").all():
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()
    for details in page.locator("main details").all():
        details.evaluate("one => { one.open = true; }")
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response
    assert len(found["passes"]) > 20
    serious = [
        (one["id"], [node["html"][:200] for node in one["nodes"]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []
