"""Figures of single latents: matched cosines and firing rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_faithful.report.figures import firing_rates

HOOK = "model.layers.3"
COSINES = "results/shared_features/artifacts/matched_cosines.json"


def latents(source: str = "faithful", seed: int = 0, **columns: Any) -> pd.DataFrame:
    """A table as `features.parquet` has it."""
    n = len(next(iter(columns.values())))
    place = {"source": source, "hook": HOOK, "variant": "base", "seed": seed, "latent": range(n)}
    return pd.DataFrame({**place, **{name.replace("__", "."): value for name, value in columns.items()}})


def counts(source: str, **given: Any) -> dict[str, Any]:
    return {"source": source, "hook": HOOK, "variant": "base", "edges": [-1, -0.5, 0, 0.5, 1], **given}


def test_matched_cosines_from_counts(row: Any, make_run: Any, draw: Any) -> None:
    groups = [
        counts("faithful", all=[0, 0, 6, 2], alive=[0, 0, 1, 1], null=[0, 4, 4, 0], null_alive=[0, 0, 2, 0]),
        counts("news", all=[0, 0, 3, 1], alive=[0, 0, 0, 0], null=[0, 0, 0, 0], null_alive=[0, 0, 0, 0]),
    ]
    rows = [row("shared_features", "sfr", None, source, reason="x") for source in ("faithful", "news")]
    run = make_run(rows, files={COSINES: {"thresholds": [0.5, 0.7], "groups": groups}})
    found = draw(run)
    faithful, null, news = found["matched-cosines-all"].plotly["data"]
    # Shares of 8 latents in bins of width .5, and an empty bin before them.
    assert faithful["x"] == [-0.25, 0.25, 0.75]
    assert faithful["y"] == [0, 0.75, 0.25]
    assert faithful["customdata"] == [0, 6, 2]
    assert null["y"] == [0, 0.5, 0.5, 0]
    assert null["line"]["dash"] == "dot"
    assert (faithful["name"], null["name"], news["name"]) == ("faithful", "null, faithful", "news")
    (line,) = found["matched-cosines-all"].plotly["layout"]["shapes"]
    assert (line["x0"], line["x1"], line["yref"]) == (0.7, 0.7, "y domain")
    # The axis begins left of the null, a bin before it.
    assert found["matched-cosines-all"].plotly["layout"]["xaxis"]["range"] == [-1, 1]
    # `news` has no alive latent.
    alive, null = found["matched-cosines-alive"].plotly["data"]
    assert (alive["name"], null["name"]) == ("faithful", "null, faithful")
    assert null["y"] == [0, 1, 0]


def test_no_line_where_the_papers_threshold_was_not_measured(row: Any, make_run: Any, draw: Any) -> None:
    groups = [counts("faithful", all=[0, 0, 6, 2], alive=[0] * 4, null=[0] * 4, null_alive=[0] * 4)]
    rows = [row("shared_features", "sfr", None, reason="x")]
    found = draw(make_run(rows, files={COSINES: {"thresholds": [0.5], "groups": groups}}))
    assert found["matched-cosines-all"].plotly["layout"]["shapes"] == []
    assert "threshold" not in found["matched-cosines-all"].caption


def test_matched_cosines_of_an_older_run_are_means_over_seeds(row: Any, make_run: Any, draw: Any) -> None:
    table = latents(
        shared_features__mean_matched_cosine=[0.111, 0.111, 0.731, np.nan],
        fake_features__rate_own=[0.0, 0.5, 0.5, 0.5],
    )
    rows = [row("shared_features", "sfr", None, reason="x")]
    found = draw(make_run(rows, features=table))
    assert "mean over the other seeds" in found["matched-cosines-all"].caption
    (of_all,) = found["matched-cosines-all"].plotly["data"]
    assert dict(zip(of_all["x"], of_all["y"], strict=True))[0.11] == pytest.approx(2 / 3, rel=1e-4)
    (alive,) = found["matched-cosines-alive"].plotly["data"]
    assert dict(zip(alive["x"], alive["y"], strict=True))[0.73] == 0.5


def rates(make_run: Any, row: Any, own: Any, random: Any, **more: Any) -> Any:
    table = latents(fake_features__rate_own=own, fake_features__rate_random=random)
    rows = [
        row("fake_features", "ffr_contrast", 0.1, condition=f"rate>{tau}", subset="all")
        for tau in (0.05, 0.2)
    ]
    return make_run(rows, features=table, **more)


def test_every_latent_that_fires_is_a_point(row: Any, make_run: Any, draw: Any) -> None:
    run = rates(make_run, row, own=[0.5, 0.03, 0.0, 0.25, 0.0], random=[0.25, 0.5, 0.125, 0.0, 0.0])
    figure = draw(run)["firing-rates"]
    both, no_text, no_random, slanted = figure.plotly["data"]
    assert (both["x"], both["y"]) == ([0.5, 0.03], [0.25, 0.5])
    assert both["customdata"] == [[0, 0], [0, 1]]
    # Zeros stand a third below the smallest rate of their axis, and say 0.
    assert (no_text["x"], no_text["y"]) == ([0.01], [0.125])
    assert "on text 0<br>" in no_text["hovertemplate"]
    assert no_random["x"] == [0.25]
    assert no_random["y"] == [pytest.approx(0.125 / 3, rel=1e-4)]
    assert no_random["hovertemplate"].split("<extra>")[0].endswith("on random tokens 0")
    # One entry in the legend; the latent that never fires is not there.
    assert [one["showlegend"] for one in (both, no_text, no_random)] == [True, False, False]
    assert "3,645" not in figure.caption
    assert "4 latents of all seeds" in figure.caption
    axis = figure.plotly["layout"]["xaxis"]
    assert axis["tickvals"][0] == 0.01
    assert axis["ticktext"][0] == "0"
    assert [slanted["y"][i] / slanted["x"][i] for i in (0, 1)] == pytest.approx([2, 2], rel=1e-4)


def test_tau_is_the_measured_one_nearest_to_the_papers_and_the_ratio_the_configs(
    row: Any, make_run: Any, draw: Any
) -> None:
    config = {"evaluators": [{"fake_features": {"ratio": 4}}]}
    figure = draw(rates(make_run, row, own=[0.5], random=[0.5], config=config))["firing-rates"]
    (line,) = figure.plotly["layout"]["shapes"]
    assert (line["y0"], line["label"]["text"]) == (0.05, "τ = 0.05")
    assert figure.plotly["data"][-1]["name"] == "4 × rate on text"
    assert "a rate of 0" not in figure.caption


def test_of_very_many_latents_the_fake_ones_and_a_sample(
    row: Any, make_run: Any, draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firing_rates, "MOST_POINTS", 30)
    own = np.full(1_000, 0.4)
    random = np.full(1_000, 0.3)
    fake = [5, 500, 999]
    own[fake] = 0.1
    figure = draw(rates(make_run, row, own=own, random=random))["firing-rates"]
    drawn = [latent for _, latent in figure.plotly["data"][0]["customdata"]]
    assert len(drawn) == 30
    assert set(fake) < set(drawn)
    # A sample of all, not the first ones.
    assert max(set(drawn) - set(fake)) > 500
    assert "Drawn are 30 of 1,000" in figure.caption


def test_without_columns_there_is_no_figure(row: Any, make_run: Any, draw: Any) -> None:
    rows = [row("fake_features", "ffr", None, condition="rate>0.1", reason="x")]
    assert draw(make_run(rows, features=latents(fake_features__rate_own=[0.5]))) == {}
    assert draw(make_run(rows, label="other")) == {}
    never = latents(fake_features__rate_own=[0.0], fake_features__rate_random=[0.0])
    assert draw(make_run(rows, label="third", features=never)) == {}
