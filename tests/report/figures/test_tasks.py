"""Figures of tasks and of training: probing, autointerp, patching, monitors."""

from __future__ import annotations

from typing import Any

import pytest

HOOK = "model.layers.3"
CURVES = "results/ioi_patching/artifacts/curves.json"


def bounds(low: float, high: float) -> dict[str, float]:
    return {"ci_low": low, "ci_high": high}


def test_probe_scores_in_the_headlines_metric(row: Any, free_row: Any, make_run: Any, draw: Any) -> None:
    rows = [
        free_row("probing", "probe_mcc", 0.1, "correlation", dataset="cola", condition="raw", hook="elsewhere"),
        free_row("probing", "probe_mcc", 0.2, "correlation", dataset="cola", condition="majority"),
        free_row("probing", "probe_mcc", 0.6, "correlation", dataset="cola", condition="raw", hook=HOOK),
        row("probing", "probe_mcc", 0.4, unit="correlation", dataset="cola", condition="latents", **bounds(0.3, 0.6)),
        row("probing", "probe_mcc", 0.3, "news", unit="correlation", dataset="cola", condition="latents"),
        row("probing", "probe_accuracy", 0.9, dataset="cola", condition="latents"),
        row("probing", "probe_difference", 0.5, dataset="cola", condition="accuracy: latents - raw"),
        row("probing", "probe_difference", -0.2, unit="correlation", dataset="cola", headline=True,
            condition="mcc: latents - raw", **bounds(-0.3, -0.1)),
        row("probing", "probe_difference", 0.1, "news", unit="correlation", dataset="cola",
            condition="mcc: latents - raw"),
    ]  # fmt: skip
    found = draw(make_run(rows))
    here = "-model-layers-3"
    assert list(found) == [f"probing-cola-scores{here}", f"probing-cola-differences{here}"]
    figure = found[f"probing-cola-scores{here}"]
    no_sae, faithful, news = figure.plotly["data"]
    assert (no_sae["name"], no_sae["x"]) == ("no SAE", [0.2, 0.6])
    assert (faithful["x"], news["x"]) == ([0.4], [0.3])
    assert faithful["error_x"]["array"] == [pytest.approx(0.2)]
    # Two bars of `latents`, a gap of .6, one of `majority`, a gap, one of `raw`.
    assert (faithful["y"], news["y"]) == ([0], [1])
    assert no_sae["y"] == [2.6, 4.2]
    axis = figure.plotly["layout"]["yaxis"]
    assert axis["ticktext"] == ["latents", "majority", "raw"]
    assert axis["tickvals"] == [0.5, 2.6, 4.2]
    assert faithful["marker"]["pattern"]["shape"] != news["marker"]["pattern"]["shape"]
    assert figure.plotly["layout"]["xaxis"]["title"]["text"] == "MCC (correlation)"
    differences = found[f"probing-cola-differences{here}"].plotly
    assert [one["x"] for one in differences["data"]] == [[-0.2], [0.1]]
    assert [one["y"] for one in differences["data"]] == [[-0.125], [0.125]]
    assert differences["layout"]["xaxis"]["zeroline"] is True
    assert differences["layout"]["yaxis"]["ticktext"] == ["latents<br>− raw"]


def test_representations_without_an_sae_are_no_figure(free_row: Any, make_run: Any, draw: Any) -> None:
    rows = [free_row("probing", "probe_accuracy", 0.6, dataset="sst2", condition="raw", hook=HOOK)]
    assert draw(make_run(rows)) == {}


def test_scores_of_explanations_and_differences_from_baselines(row: Any, make_run: Any, draw: Any) -> None:
    def score(metric: str, value: float, **fields: Any) -> Any:
        return row("autointerp", metric, value, unit="correlation", **fields)

    rows = [
        score("token_set_score", 0.5, condition="top_only", variant="wide", reason="one SAE"),
        score("token_set_score", 0.5, condition="top_only", variant="wide", seed=0, **bounds(0.4, 0.7)),
        score("token_set_score_shuffled", 0.01, condition="top_only", variant="wide"),
        score("token_set_score", 0.2, condition="top_only", variant="pca"),
        score("token_set_score_difference", 0.9, condition="minus pca, random_only", variant="wide",
              **bounds(0.8, 1.0)),
        score("token_set_score_difference", 0.3, condition="minus pca, top_only", variant="wide", seed=0,
              **bounds(0.1, 0.5)),
        row("autointerp", "unscored", 7, variant="wide", condition="token_set_score, top_only"),
    ]  # fmt: skip
    found = draw(make_run(rows, baselines=["pca"], sources=["faithful"]))
    assert list(found) == [
        "autointerp-token-set-score-top-only", "autointerp-token-set-score-differences-top-only"
    ]  # fmt: skip
    wide, pca, shuffled = found["autointerp-token-set-score-top-only"].plotly["data"]
    assert (wide["x"], wide["y"], pca["x"], pca["y"]) == ([0.5], [0], [0.2], [1])
    assert wide["text"] == ["0.5 [0.4, 0.7], one SAE"]
    assert shuffled["marker"]["symbol"].endswith("-open")
    assert shuffled["x"] == [0.01]
    (minus,) = found["autointerp-token-set-score-differences-top-only"].plotly["data"]
    assert (minus["name"], minus["x"]) == ("minus pca", [0.3])
    assert minus["error_x"]["arrayminus"] == [pytest.approx(0.2)]


def test_scores_without_kinds_of_fragments(row: Any, make_run: Any, draw: Any) -> None:
    rows = [
        row("autointerp", "detection_f1", 0.5),
        row("autointerp", "detection_f1_difference", 0.2, condition="minus pca"),
    ]
    found = draw(make_run(rows))
    assert list(found) == ["autointerp-detection-f1", "autointerp-detection-f1-differences"]
    assert found["autointerp-detection-f1"].title == "detection_f1"


def curve(
    variant: str, kls: list[float], *, comparison: bool = False, low: float | None = None, high: float = 0
) -> dict[str, Any]:
    """A curve with bounds so far from its values, or without any."""
    points = [
        {
            "features": 2 * i,
            "kl": kl,
            "kl_ci_low": None if low is None else kl + low,
            "kl_ci_high": None if low is None else kl + high,
            "edit": i / 2,
        }
        for i, kl in enumerate(kls)
    ]
    place = {"source": "faithful", "hook": HOOK, "variant": variant, "seed": None if comparison else 0}
    return {**place, "comparison": comparison, "points": points}


def test_patching_against_edit_and_features(row: Any, make_run: Any, draw: Any) -> None:
    curves = [
        curve("base", [2.0, 1.0], low=-0.5, high=0.75),
        curve("pca", [2.0, 1.5], comparison=True),
    ]
    rows = [row("ioi_patching", "area", 0.5)]
    found = draw(make_run(rows, files={CURVES: {"kl_unpatched": 2.0, "curves": curves}}))
    assert list(found) == ["patching-edit", "patching-features"]
    band, line, pca = found["patching-edit"].plotly["data"]
    assert (line["x"], line["y"]) == ([0, 0.5], [2, 1])
    # There along the upper bounds, and back along the lower ones.
    assert (band["x"], band["y"]) == ([0, 0.5, 0.5, 0], [2.75, 1.75, 0.5, 1.5])
    assert band["showlegend"] is False
    assert (pca["name"], pca["line"]["color"], pca["y"]) == ("pca, faithful", "#808080", [2, 1.5])
    assert found["patching-features"].plotly["data"][1]["x"] == [0, 2]
    (unpatched,) = found["patching-edit"].plotly["layout"]["shapes"]
    assert (unpatched["y0"], unpatched["label"]["text"]) == (2, "no patch")


def watched(
    row: Any, call: int, value: float | None, source: str = "faithful", **fields: Any
) -> dict[str, Any]:
    return {"call": call, **row("fake_features", "ffr", value, source, **{"headline": True, **fields})}


def test_headline_numbers_over_training(row: Any, make_run: Any, draw: Any) -> None:
    files = {
        "monitors/faithful.jsonl": [
            watched(row, 2, 0.3, **bounds(0.2, 0.5)),
            watched(row, 1, 0.1),
            watched(row, 3, None, reason="nothing fired"),
            watched(row, 1, 0.9, seed=0, headline=False),
            watched(row, 1, 0.9, seed=1, headline=False),
            watched(row, 1, 0.9, condition="other", headline=False),
            watched(row, 2, 0.9, condition="other", headline=False),
            watched(row, 1, 0.4, condition="once"),
        ],
        "monitors/news.jsonl": [watched(row, 1, 0.2, "news")],
    }
    rows = [row("fake_features", "ffr", None, source, reason="x") for source in ("faithful", "news")]
    found = draw(make_run(rows, files=files))
    assert list(found) == ["training-ffr-all"]
    figure = found["training-ffr-all"]
    faithful, news = figure.plotly["data"]
    assert (faithful["x"], faithful["y"]) == ([1, 2], [0.1, 0.3])
    assert faithful["error_y"]["array"] == [None, pytest.approx(0.2)]
    assert (news["x"], news["y"]) == ([1], [0.2])
    assert figure.title == "ffr during training"
    assert figure.plotly["layout"]["yaxis"]["title"]["text"] == "share"
