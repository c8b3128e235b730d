"""Each latent's firing rate on random tokens against that on real text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful.report.figures.figure import Figure, Trace, make_figure
from sae_faithful.report.figures.numbers import hooks, option, parameter, place_text
from sae_faithful.report.figures.series import all_series
from sae_faithful.report.figures.style import GREY, axis, layout, limit_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from sae_faithful.report.figures.series import Series
    from sae_faithful.report.run_data import RunData

RANDOM, OWN = "fake_features.rate_random", "fake_features.rate_own"
TAU = 0.1
"""The paper's."""
RATIO = 2.0
"""The evaluator's default."""
MOST_POINTS = 8_000
"""Of one figure: more make the file large, and hide each other."""


@dataclass(frozen=True)
class _Points:
    """The latents of a series that fire at all."""

    series: Series
    own: NDArray[np.float64]
    random: NDArray[np.float64]
    seed: NDArray[np.int64]
    latent: NDArray[np.int64]

    def __getitem__(self, kept: NDArray[Any]) -> _Points:
        return _Points(self.series, self.own[kept], self.random[kept], self.seed[kept], self.latent[kept])


def firing_rate_figures(runs: Sequence[RunData]) -> list[Figure]:
    """A figure for each hook: every latent of the trained SAEs a point, or a sample of them."""
    found: list[Figure] = []
    at_hooks = hooks(runs, "fake_features")
    for hook in at_hooks:
        tables = [_points(series, hook) for series in all_series(runs) if not series.baseline]
        points = [table for table in tables if table is not None]
        if points:
            found.append(_figure(runs, points, hook, at_hooks))
    return found


def _points(series: Series, hook: str) -> _Points | None:
    features: pd.DataFrame | None = series.run.features
    if features is None or RANDOM not in features or OWN not in features:
        return None
    part = features[
        (features["source"] == series.source)
        & (features["hook"] == hook)
        & (features["variant"] == series.variant)
        & features[RANDOM].notna()
        & features[OWN].notna()
        & ((features[RANDOM] > 0) | (features[OWN] > 0))
    ]
    if not len(part):
        return None
    columns = [part[name].to_numpy() for name in (OWN, RANDOM, "seed", "latent")]
    return _Points(series, *columns)


def _figure(runs: Sequence[RunData], points: Sequence[_Points], hook: str, at_hooks: Sequence[str]) -> Figure:
    tau, ratio = _tau(runs), float(option(runs, "fake_features", "ratio", RATIO))
    drawn = _sample(points, tau, ratio)
    n_all, n_drawn = sum(len(one.own) for one in points), sum(len(one.own) for one in drawn)
    floors = [_below(np.concatenate([getattr(one, name) for one in drawn])) for name in ("own", "random")]
    axes = [_log_axis(floor) for floor in floors]
    zeros = any((one.own == 0).any() or (one.random == 0).any() for one in drawn)
    highest = max(float(one.own.max()) for one in drawn)
    caption = (
        f"Each point is a latent of an SAE. Latents above the line at τ = {tau:g} fire on more than that share of "
        f"random tokens; those that are also left of the slanted line fire on random tokens more than {ratio:g} times "
        "as often as on their source's held-out text, and count for `ffr_contrast`. Both scales are logarithmic"
        + ("; a rate of 0 is drawn on the edge, at the tick 0." if zeros else ".")
        + " Latents that fire on neither are not drawn. "
        + (
            f"Drawn are {n_drawn:,} of {n_all:,}: of each source those that count, as far as there is room, and a "
            "random sample of the others."
            if n_drawn < n_all
            else f"{n_all:,} latents of all seeds."
        )
    )
    return make_figure(
        parts=("firing-rates", hook if len(at_hooks) > 1 else None),
        title=f"Firing rates on random tokens and on real text{place_text(hook, at_hooks)}",
        caption=caption,
        section="fakeness",
        data=[
            *(trace for one in drawn for trace in _traces(one, *floors)),
            _slanted(ratio, floors[0], highest),
        ],
        layout=layout(
            x=axis("rate on own held-out text (share of tokens)", **axes[0]),
            y=axis("rate on random tokens (share)", **axes[1]),
            height=460,
            shapes=[limit_line(tau, text=f"τ = {tau:g}", across="x")],
        ),
    )


def _sample(points: Sequence[_Points], tau: float, ratio: float) -> list[_Points]:
    """At most `MOST_POINTS` in all: of each series the fake ones first, then others at random."""
    room = MOST_POINTS // len(points)
    rng = np.random.default_rng(0)
    drawn: list[_Points] = []
    for one in points:
        fake = (one.random > tau) & (one.random > ratio * one.own)
        order = rng.permutation(len(one.own))
        order = order[np.argsort(~fake[order], kind="stable")]
        drawn.append(one[np.sort(order[:room])])
    return drawn


def _traces(one: _Points, own_floor: float, random_floor: float) -> list[Trace]:
    """One trace for latents that fire on both, and one for each axis's zeros, whose hover says 0."""
    look = one.series.look
    groups = [
        ((one.own > 0) & (one.random > 0), "%{x:.3~g}", "%{y:.3~g}"),
        (one.own == 0, "0", "%{y:.3~g}"),
        (one.random == 0, "%{x:.3~g}", "0"),
    ]
    traces: list[Trace] = []
    for mask, own, random in groups:
        if not mask.any():
            continue
        part = one[mask]
        traces.append(
            {
                "type": "scattergl",
                "mode": "markers",
                "name": look.name,
                "legendgroup": f"{one.series.run.label}/{one.series.source}/{one.series.variant}",
                "showlegend": not traces,
                "x": np.where(part.own > 0, part.own, own_floor),
                "y": np.where(part.random > 0, part.random, random_floor),
                "customdata": np.stack([part.seed, part.latent], axis=1),
                "hovertemplate": f"seed %{{customdata[0]}}, latent %{{customdata[1]}}<br>on text {own}"
                f"<br>on random tokens {random}<extra>%{{fullData.name}}</extra>",
                "marker": {"color": look.colour, "symbol": look.symbol, "size": 5, "opacity": 0.4},
            }
        )
    return traces


def _slanted(ratio: float, low: float, high: float) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{ratio:g} × rate on text",
        "x": [low, high],
        "y": [ratio * low, ratio * high],
        "line": {"color": GREY, "dash": "dashdot", "width": 1.5},
        "hoverinfo": "skip",
    }


def _below(rates: NDArray[np.float64]) -> float:
    """Where zeros are drawn: half a decade below the smallest rate that is not 0."""
    above = rates[rates > 0]
    return float(above.min()) / 3 if len(above) else 1e-6


def _log_axis(floor: float) -> dict[str, Any]:
    """Decades by name, and 0 at the edge; a margin left of it."""
    decades = [10.0**power for power in range(int(np.ceil(np.log10(floor * 2))), 1)]
    return {
        "type": "log",
        "range": [float(np.log10(floor)) - 0.15, 0.05],
        "tickmode": "array",
        "tickvals": [floor, *decades],
        "ticktext": ["0", *(f"{one:g}" for one in decades)],
    }


def _tau(runs: Sequence[RunData]) -> float:
    """The measured τ nearest to the paper's."""
    taus = [
        tau
        for run in runs
        for row in run.rows
        if row["metric"] == "ffr_contrast" and (tau := parameter(row["condition"], "rate")) is not None
    ]
    return min(taus, key=lambda tau: abs(tau - TAU), default=TAU)
