"""The figure of stability against distance."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

SOURCES = ["own", "news", "code", "shuffled"]


@pytest.fixture
def rows(row: Any, free_row: Any) -> list[Any]:
    found = [
        free_row("typicality", "typicality_gap", gap, "nats/token", dataset=name)
        for name, gap in zip(SOURCES, (0.0, 0.5, -0.9, 2.0), strict=True)
    ]
    for name, value in zip(SOURCES, (0.4, 0.3, 0.2, 0.1), strict=True):
        where = {"source": name, "subset": "alive", "condition": "cosine>0.7"}
        found.append(row("shared_features", "sfr", value, ci_low=value - 0.05, ci_high=value + 0.02, **where))
        found += [
            row("shared_features", "sfr", value + by, seed=one, other_seed=two, **where)
            for (one, two), by in zip(combinations(range(3), 2), (-0.01, 0, 0.01), strict=True)
        ]
    return found


def test_a_source_is_a_point_with_its_interval(rows: Any, make_run: Any, draw: Any) -> None:
    figure = draw(make_run(rows, sources=SOURCES))["distance-sfr"]
    data = figure.plotly["data"]
    assert [one["name"] for one in data] == SOURCES
    assert [one["x"] for one in data] == [[0], [0.5], [0.9], [2]]
    assert [one["y"] for one in data] == [[0.4], [0.3], [0.2], [0.1]]
    assert data[0]["error_y"]["array"] == [pytest.approx(0.02)]
    assert data[0]["error_y"]["arrayminus"] == [pytest.approx(0.05)]
    assert figure.section == "distance"
    assert "Spearman's correlation over 4 sources -1.00" in figure.caption
    assert "p = 0.083, undecided; about 5 sources would decide it" in figure.caption


def test_fewer_sources_have_no_figure(rows: Any, make_run: Any, draw: Any) -> None:
    assert "distance-sfr" not in draw(make_run(rows, sources=SOURCES[:3]))


def test_each_run_has_its_own(rows: Any, make_run: Any, draw: Any) -> None:
    found = draw(make_run(rows, label="a", sources=SOURCES), make_run(rows, label="b", sources=SOURCES))
    assert {"distance-a-sfr", "distance-b-sfr"} <= set(found)
    assert found["distance-a-sfr"].title.startswith("a: SFR of alive latents")
    assert found["distance-b-sfr"].plotly["data"][0]["name"] == "b: own"
