"""Numbers and names on their way into a figure, and all figures together."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from sae_faithful.report.figures import template
from sae_faithful.report.figures.figure import anchor, plain, shown
from sae_faithful.report.figures.style import faint

HOSTILE = "<script>alert(1)</script>"
ALEPH = "\u05d0"


def test_numbers_become_json_of_five_figures() -> None:
    given = {
        "array": np.array([[0.1234567, np.nan], [np.inf, -np.inf]]),
        "scalars": (np.float32(0.5), np.int64(3), 2.0, 123456.7, 1e-9 / 3),
        "kept": ["0.123456789", None, True, 7],
    }
    assert plain(given) == {
        "array": [[0.12346, None], [None, None]],
        "scalars": [0.5, 3, 2, 123460, 3.3333e-10],
        "kept": ["0.123456789", None, True, 7],
    }
    assert isinstance(plain(2.0), int)
    assert plain(True) is True


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain name", "plain name"),
        (HOSTILE, "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ('<a href="javascript:alert(1)">x</a>', '&lt;a href="javascript:alert(1)"&gt;x&lt;/a&gt;'),
        ("&lt;b&gt; &amp;", "&amp;lt;b&amp;gt; &amp;amp;"),
        ("a\0b\u202ec\nd", "a\\u0000b\\u202ec\\u000ad"),
        # A mark that would end the isolation is not one any more.
        (f"{ALEPH}\u2069{ALEPH}", f"\u2068{ALEPH}\\u2069{ALEPH}\u2069"),
        ("\U0001f600", "\U0001f600"),
        ("x" * 10_000, "x" * 40 + "…" + "x" * 20),
    ],
)
def test_names_show_literally(text: str, seen: str) -> None:
    assert shown(text) == seen


def test_anchors_are_plain() -> None:
    assert anchor("sfr", "alive", "model.layers.3") == "sfr-alive-model-layers-3"
    assert anchor("typicality", "<b>'\"") == "typicality-b"


def test_faint_colours() -> None:
    assert faint("#ff8000", 0.2) == "rgba(255,128,0,0.2)"


def test_a_run_without_data_has_no_figures(make_run: Any, draw: Any) -> None:
    assert draw(make_run([])) == {}
    assert draw() == {}


def hostile_run(row: Any, free_row: Any, make_run: Any, **more: Any) -> Any:
    """Names that do harm where they are taken for HTML, wherever a name may stand."""
    here = {"source": HOSTILE, "hook": "<i>", "variant": ALEPH}
    rows = [
        *(
            row("reconstruction", "l0", 3.0, **here, dataset=name, ci_low=2.0, ci_high=4.0)
            for name in (HOSTILE, "%{x}")
        ),
        row("shared_features", "sfr", 0.2, **here, condition="cosine>0.7", subset="all"),
        row("fake_features", "ffr", 0.2, **here, condition="rate>0.1", subset="all"),
        row("probing", "probe_accuracy", 0.7, **here, dataset="<b>", condition="<u>"),
        row("probing", "probe_difference", 0.1, **here, dataset="<b>", condition="accuracy: <u> - <s>"),
        row("autointerp", "token_set_score", 0.1, **here, condition="<em>"),
        row("autointerp", "token_set_score_difference", 0.1, **here, condition="minus <b>, <em>"),
        free_row("typicality", "typicality_gap", 0.1, dataset=HOSTILE),
    ]
    return make_run(rows, sources=[HOSTILE], **more)


def texts(part: Any) -> list[str]:
    if isinstance(part, dict):
        return [text for one in part.values() for text in texts(one)]
    if isinstance(part, list):
        return [text for one in part for text in texts(one)]
    return [part] if isinstance(part, str) else []


def test_no_text_from_data_is_read_as_html(row: Any, free_row: Any, make_run: Any, draw: Any) -> None:
    point = {"source": HOSTILE, "hook": "<i>", "dataset": HOSTILE, "seed": 0, "l0": 3.0, "fvu": 0.1}
    curve = {"source": HOSTILE, "hook": "<i>", "variant": "<b>", "seed": None, "comparison": True,
             "points": [{"features": 1, "kl": 1.0, "kl_ci_low": 0.5, "kl_ci_high": 2.0, "edit": 0.5}]}  # fmt: skip
    files = {
        "results/reconstruction/artifacts/sweep.json": {
            "points": [
                {**point, "variant": variant, "architecture": "<script>"} for variant in (ALEPH, "<b>")
            ]
        },
        "results/ioi_patching/artifacts/curves.json": {"kl_unpatched": 2.0, "curves": [curve]},
    }
    run = hostile_run(row, free_row, make_run, files=files, label="<b>label")
    found = draw(run)
    assert {figure.section for figure in found.values()} == {
        "sharing", "fakeness", "text", "faithfulness", "probing", "autointerp", "patching"
    }  # fmt: skip
    ours = {"<extra></extra>", "<extra>%{fullData.name}</extra>", "<br>"}
    for figure in found.values():
        for text in texts(figure.plotly):
            for tag in ours:
                text = text.replace(tag, "")
            assert "<" not in text, text
            # A template reads placeholders: no name stands in one.
            if text.startswith("%{") or "<br>" in text:
                assert HOSTILE not in text


def test_names_of_no_latin_letter_keep_figures_apart(row: Any, make_run: Any, draw: Any) -> None:
    rows = [
        row("probing", "probe_accuracy", 0.7, dataset=task, condition="latents") for task in (ALEPH, "\u05d1")
    ]
    assert list(draw(make_run(rows))) == ["probing-scores", "probing-scores-2"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_templates_are_plotlys(scheme: str) -> None:
    figure = go.Figure(layout={"template": template(scheme)})
    assert figure.layout.template.layout.font.color == {"light": "#1f2328", "dark": "#e6e8eb"}[scheme]


def test_layouts_leave_text_and_width_to_the_page(row: Any, free_row: Any, make_run: Any, draw: Any) -> None:
    for figure in draw(hostile_run(row, free_row, make_run)).values():
        layout = figure.plotly["layout"]
        assert "font" not in layout
        assert "width" not in layout
        assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"
        assert layout["xaxis"]["automargin"] is layout["yaxis"]["automargin"] is True
        assert "color" not in layout["xaxis"]["title"]
