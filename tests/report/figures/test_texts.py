"""Figures of texts: typicality, trained-on × evaluated-on, sweeps."""

from __future__ import annotations

from typing import Any

import pytest

from sae_faithful.report.figures import typicality

SWEEP = "results/reconstruction/artifacts/sweep.json"
HOOK = "model.layers.3"


def gap(free_row: Any, value: float, name: str, **fields: Any) -> Any:
    return free_row("typicality", "typicality_gap", value, "nats/token", dataset=name, **fields)


def test_boxes_of_documents_and_means_of_tokens(free_row: Any, make_run: Any, draw: Any) -> None:
    rows = [
        gap(free_row, 0.1, "faithful", ci_low=-0.1, ci_high=0.4),
        gap(free_row, 0.9, "news", reason="few documents"),
        gap(free_row, 7.0, "uniform_random_tokens"),
    ]
    files = {
        "data/faithful/typicality.json": {"gaps": [0.5, -0.25], "n_tokens": [3, 4]},
        "references/uniform_random_tokens/typicality.json": {"gaps": [7.0], "n_tokens": [3]},
    }
    figure = draw(make_run(rows, files=files))["typicality"]
    data = figure.plotly["data"]
    assert [one["type"] for one in data] == ["box", "box", "scatter", "scatter", "scatter"]
    assert [one["name"] for one in data[:2]] == ["faithful", "uniform_random_tokens"]
    assert (data[0]["x"], data[0]["y0"], data[1]["y0"]) == ([0.5, -0.25], 0, 2)
    mean, without, _ = data[2:]
    assert mean["x"] == [0.1]
    assert mean["error_x"]["array"] == [pytest.approx(0.3)]
    assert mean["error_x"]["arrayminus"] == [pytest.approx(0.2)]
    assert without["error_x"]["visible"] is False
    assert figure.plotly["layout"]["yaxis"]["ticktext"] == ["faithful", "news", "uniform_random_tokens"]
    # A source's text has the source's colour, a reference none.
    assert len({one["marker"]["color"] for one in data[2:]}) == 3
    assert data[0]["marker"]["color"] == mean["marker"]["color"]
    assert "Boxes" in figure.caption


def test_means_alone_where_texts_are_of_an_older_version(free_row: Any, make_run: Any, draw: Any) -> None:
    figure = draw(make_run([gap(free_row, 0.1, "faithful")]))["typicality"]
    assert [one["type"] for one in figure.plotly["data"]] == ["scatter"]
    assert "Boxes" not in figure.caption


def test_a_sample_of_very_many_documents(
    free_row: Any, make_run: Any, draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typicality, "MOST_DOCUMENTS", 10)
    files = {"data/faithful/typicality.json": {"gaps": list(range(100))}}
    figure = draw(make_run([gap(free_row, 0.1, "faithful")], files=files))["typicality"]
    box = figure.plotly["data"][0]
    assert len(set(box["x"])) == 10
    assert max(box["x"]) > 10
    assert "a random sample" in figure.caption


def test_two_runs_texts_stand_apart(free_row: Any, make_run: Any, draw: Any) -> None:
    runs = [make_run([gap(free_row, 0.1, "news")], label=label) for label in ("a", "b")]
    ticks = draw(*runs)["typicality"].plotly["layout"]["yaxis"]["ticktext"]
    assert ticks == ["a: news", "b: news"]


def test_trained_on_by_evaluated_on(row: Any, make_run: Any, draw: Any) -> None:
    rows = [
        row("reconstruction", "explained_variance", 0.1, dataset="news", condition="with BOS"),
        row("reconstruction", "explained_variance", 0.9, dataset="faithful", ci_low=0.8, ci_high=0.95),
        row("reconstruction", "explained_variance", 0.7, dataset="news"),
        row("reconstruction", "explained_variance", 0.5, "news", dataset="news"),
        # One text is no table.
        row("reconstruction", "l0", 31.96, dataset="faithful"),
        row("reconstruction", "l0", 31.0, "news", dataset="faithful"),
    ]
    found = draw(make_run(rows))
    assert list(found) == ["heat-map-explained-variance"]
    figure = found["heat-map-explained-variance"]
    (cells,) = figure.plotly["data"]
    assert cells["z"] == [[0.9, 0.7], [None, 0.5]]
    assert cells["text"] == [["0.900", "0.700"], ["", "0.500"]]
    assert cells["customdata"][0][0] == ["faithful", "faithful", "0.9 [0.8, 0.95]"]
    assert cells["customdata"][0][1][2] == "0.7, no interval"
    assert figure.plotly["layout"]["xaxis"]["ticktext"] == ["faithful", "news"]
    assert figure.plotly["layout"]["yaxis"]["ticktext"] == ["faithful", "news"]
    # The first source on top.
    assert figure.plotly["layout"]["yaxis"]["range"] == [1.5, -0.5]


def test_heat_maps_of_runs_are_apart(row: Any, make_run: Any, draw: Any) -> None:
    def rows() -> list[Any]:
        return [row("reconstruction", "l0", 3.0, dataset=name) for name in ("faithful", "news")]

    found = draw(make_run(rows(), label="a"), make_run(rows(), label="b"))
    assert list(found) == ["heat-map-l0-a", "heat-map-l0-b"]
    assert found["heat-map-l0-b"].plotly["layout"]["yaxis"]["ticktext"] == ["b: faithful"]
    assert found["heat-map-l0-b"].title.endswith(", b")


def point(variant: str, l0: float | None, fvu: float, **more: Any) -> dict[str, Any]:
    place = {"source": "faithful", "hook": HOOK, "variant": variant, "seed": 0, "dataset": "faithful"}
    return {**place, "l0": l0, "fvu": fvu, **more}


def test_a_sweep_has_a_point_for_each_sae(row: Any, make_run: Any, draw: Any) -> None:
    points = [
        point(
            "k8", 8.0, 0.5, fvu_low=0.4, fvu_high=0.7, architecture="topk", d_sae=64, k=8, l1_coefficient=None
        ),
        point("k8", 8.0, 0.6, seed=1),
        point("pca", 20.0, 0.1),
        point("random", None, 0.1),
    ]
    rows = [row("reconstruction", "fvu", None, variant=name, reason="x") for name in ("k8", "pca", "random")]
    run = make_run(rows, files={SWEEP: {"points": points}}, baselines=["pca", "random"], sources=["faithful"])
    figure = draw(run)["sweep-faithful"]
    trained, pca = figure.plotly["data"]
    assert (trained["x"], trained["y"]) == ([8, 8], [0.5, 0.6])
    assert trained["error_y"]["array"] == [pytest.approx(0.2), None]
    assert trained["customdata"][0] == ["seed 0", "architecture topk, d_sae 64, k 8", "0.5 [0.4, 0.7]"]
    assert pca["marker"]["color"] == "#808080"
    assert figure.plotly["layout"]["xaxis"]["type"] == "log"


def test_one_variant_is_no_sweep(row: Any, make_run: Any, draw: Any) -> None:
    rows = [row("reconstruction", "fvu", None, variant="k8", reason="x")]
    assert draw(make_run(rows, files={SWEEP: {"points": [point("k8", 8.0, 0.5)]}})) == {}
