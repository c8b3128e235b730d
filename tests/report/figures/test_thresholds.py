"""SFR and FFR against their thresholds."""

from __future__ import annotations

from typing import Any

import pytest


def bounds(low: float, high: float) -> dict[str, float]:
    return {"ci_low": low, "ci_high": high}


def test_sfr_against_the_threshold_with_its_null_and_intervals(row: Any, make_run: Any, draw: Any) -> None:
    rows = [
        row("shared_features", "sfr", 0.25, condition="cosine>0.7", subset="alive", **bounds(0.2, 0.3)),
        row("shared_features", "sfr", 0.5, condition="cosine>0.5", subset="alive"),
        row("shared_features", "sfr", 0.1, "news", condition="cosine>0.7", subset="alive"),
        row("shared_features", "sfr_null", 0.01, condition="cosine>0.7", subset="alive", **bounds(0.0, 0.02)),
        # Of a pair, of another condition, of another metric, without a value: none of them is on the curve.
        row("shared_features", "sfr", 0.9, condition="cosine>0.6", subset="alive", seed=0, other_seed=1),
        row("shared_features", "sfr", 0.9, condition="|cosine|>0.6", subset="alive"),
        row("shared_features", "top1", 0.9, condition="cosine>0.6", subset="alive"),
        row("shared_features", "sfr", None, condition="cosine>0.8", subset="alive", reason="none"),
    ]
    found = draw(make_run(rows))
    assert list(found) == ["sfr-alive"]
    faithful, news, null = found["sfr-alive"].plotly["data"]
    # Sorted, and aside by half a step each way.
    assert faithful["x"] == pytest.approx([0.498, 0.698])
    assert news["x"] == pytest.approx([0.702])
    assert faithful["y"] == [0.5, 0.25]
    assert faithful["error_y"]["array"] == [None, pytest.approx(0.05)]
    assert faithful["error_y"]["arrayminus"] == [None, pytest.approx(0.05)]
    assert faithful["text"] == ["above 0.5: 0.5, no interval", "above 0.7: 0.25 [0.2, 0.3]"]
    assert news["error_y"]["visible"] is False
    assert (faithful["name"], news["name"], null["name"]) == ("faithful", "news", "null, faithful")
    # A null looks like its source, but dotted and open.
    assert null["line"]["color"] == faithful["line"]["color"] != news["line"]["color"]
    assert null["line"]["dash"] == "dot"
    assert null["marker"]["symbol"] == faithful["marker"]["symbol"] + "-open"
    # Not by colour alone.
    assert faithful["line"]["dash"] != news["line"]["dash"]
    assert faithful["marker"]["symbol"] != news["marker"]["symbol"]


def test_a_null_alone_is_no_figure(row: Any, make_run: Any, draw: Any) -> None:
    rows = [
        row("shared_features", "sfr", None, condition="cosine>0.7", subset="all", reason="one seed"),
        row("shared_features", "sfr_null", 0.01, condition="cosine>0.7", subset="all"),
    ]
    assert draw(make_run(rows)) == {}


def test_one_saes_own_interval_where_a_source_has_no_other(row: Any, make_run: Any, draw: Any) -> None:
    rows = [
        row("fake_features", "ffr_contrast", 0.1, condition="rate>0.1", subset="alive", reason="one SAE"),
        row("fake_features", "ffr_contrast", 0.1, condition="rate>0.1", subset="alive", seed=0,
            **bounds(0.05, 0.2)),
        row("fake_features", "ffr_contrast", 0.3, "news", condition="rate>0.1", subset="alive", seed=0,
            **bounds(0.2, 0.4)),
        row("fake_features", "ffr_contrast", 0.5, "news", condition="rate>0.1", subset="alive", seed=1,
            **bounds(0.4, 0.6)),
        row("fake_features", "ffr_contrast", 0.4, "news", condition="rate>0.1", subset="alive", reason="why"),
        row("fake_features", "ffr_contrast_random_sae", 0.02, condition="rate>0.1", subset="alive"),
    ]  # fmt: skip
    one, two, random = draw(make_run(rows))["ffr-ffr-contrast-alive"].plotly["data"]
    assert one["text"] == ["above 0.1: 0.1 [0.05, 0.2], one SAE"]
    # Two SAEs: neither's own interval is the source's.
    assert two["y"] == [0.4]
    assert two["error_y"]["visible"] is False
    assert random["name"] == "random SAE, faithful"


def test_captions_name_the_options_that_were_set(row: Any, make_run: Any, draw: Any) -> None:
    rows = [
        row("fake_features", metric, 0.1, condition="rate>0.1", subset="alive")
        for metric in ("ffr", "ffr_contrast")
    ]
    config = {"evaluators": ["shared_features", {"fake_features": {"activation": 0.5, "ratio": 3}}]}
    found = draw(make_run(rows, config=config))
    assert "above 0.5 on more than τ" in found["ffr-ffr-alive"].caption
    assert "more than 3 times" in found["ffr-ffr-contrast-alive"].caption
    assert "random" not in found["ffr-ffr-alive"].caption.split("`ffr`")[1].split("Intervals")[0]


def test_the_axis_of_tau_is_logarithmic_and_names_each(row: Any, make_run: Any, draw: Any) -> None:
    rows = [
        row("fake_features", "ffr", 0.1, condition=f"rate>{tau}", subset="all") for tau in (0.2, 0.01, 0.05)
    ]
    axis = draw(make_run(rows))["ffr-ffr-all"].plotly["layout"]["xaxis"]
    assert axis["type"] == "log"
    assert axis["tickvals"] == [0.01, 0.05, 0.2]
    assert axis["ticktext"] == ["0.01", "0.05", "0.2"]


def test_hooks_have_figures_of_their_own_and_runs_share_them(row: Any, make_run: Any, draw: Any) -> None:
    def rows(value: float) -> list[Any]:
        return [
            row("shared_features", "sfr", value, condition="cosine>0.7", subset="all", hook=hook)
            for hook in ("model.layers.3", "model.layers.4")
        ]

    found = draw(make_run(rows(0.1), label="first"), make_run(rows(0.2), label="second"))
    assert list(found) == ["sfr-all-model-layers-3", "sfr-all-model-layers-4"]
    figure = found["sfr-all-model-layers-3"]
    assert figure.title == "SFR of all latents, at model.layers.3"
    assert figure.group == "sfr"
    one, two = figure.plotly["data"]
    assert (one["name"], two["name"]) == ("first: faithful", "second: faithful")
    assert (one["y"], two["y"]) == ([0.1], [0.2])
    # Four sources in all, of which the third is the second run's first.
    assert one["line"]["color"] != two["line"]["color"]


def test_variants_have_the_colours_where_there_is_one_source(row: Any, make_run: Any, draw: Any) -> None:
    rows = [
        row("fake_features", "ffr", 0.1, condition="rate>0.1", subset="all", variant=variant)
        for variant in ("pca", "wide", "narrow", "random")
    ]
    run = make_run(rows, sources=["faithful"], baselines=["pca", "random"])
    wide, narrow, *baselines = draw(run)["ffr-ffr-all"].plotly["data"]
    assert (wide["name"], narrow["name"]) == ("wide", "narrow")
    assert wide["line"]["color"] != narrow["line"]["color"]
    assert [one["name"] for one in baselines] == ["pca", "random"]
    assert {one["line"]["color"] for one in baselines} == {"#808080"}
    assert len({one["marker"]["symbol"] for one in baselines}) == 2
