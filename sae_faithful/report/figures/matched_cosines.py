"""How near the matched latents of two seeds are: counts of cosines, beside those of random dictionaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful.report.figures.figure import Figure, Trace, make_figure
from sae_faithful.report.figures.numbers import hooks, place_text
from sae_faithful.report.figures.series import all_series
from sae_faithful.report.figures.style import axis, faint, layout, limit_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sae_faithful.report.figures.series import Series
    from sae_faithful.report.run_data import RunData

CLAIMED = 0.7
"""The threshold of Cho et al. (2025, arXiv 2506.17673)."""
SUBSETS = {"alive": "alive latents", "all": "all latents"}
COLUMN = "shared_features.mean_matched_cosine"
RATE = "fake_features.rate_own"
COLUMN_BINS = np.linspace(-1, 1, 101).round(2)


@dataclass(frozen=True)
class _Histogram:
    series: Series
    edges: NDArray[np.float64]
    counts: NDArray[np.float64]
    null: NDArray[np.float64] | None
    thresholds: Sequence[float]


def matched_cosine_figures(runs: Sequence[RunData]) -> list[Figure]:
    """A figure for each hook and subset of latents, from what `shared_features` counted.

    Runs of older versions have no counts; for them, the mean over seeds of each latent's cosine.
    """
    found: list[Figure] = []
    at_hooks = hooks(runs, "shared_features")
    for hook in at_hooks:
        for subset, what in SUBSETS.items():
            histograms = [_counted(series, hook, subset) for series in all_series(runs)]
            counted = [histogram for histogram in histograms if histogram]
            if not counted:
                histograms = [_from_columns(series, hook, subset) for series in all_series(runs)]
            drawn = [histogram for histogram in histograms if histogram]
            if drawn:
                found.append(_figure(drawn, subset, what, hook, at_hooks, of_pairs=bool(counted)))
    return found


def _figure(
    drawn: Sequence[_Histogram], subset: str, what: str, hook: str, at_hooks: Sequence[str], *, of_pairs: bool
) -> Figure:
    line = CLAIMED if any(CLAIMED in one.thresholds for one in drawn) else None
    made = (
        "Cosines of decoder directions matched one to one between SAEs of two seeds, over all pairs of seeds of a "
        "source. Dotted: pairs of random dictionaries with the same second moments, matched in the same way."
        if of_pairs
        else "For each latent, the mean over the other seeds of its cosine with the decoder direction it was matched "
        "to. This run has no counts of single pairs and none of random dictionaries."
    )
    low = min(_lowest(one) for one in drawn)
    return make_figure(
        parts=("matched-cosines", subset, hook if len(at_hooks) > 1 else None),
        title=f"Cosines of matched {what}{place_text(hook, at_hooks)}",
        caption=f"{made} Each line is a histogram: share of {what if of_pairs else 'latents'} in each bin."
        + (
            f" Right of the dashed line ({line}, the paper's threshold) a pair counts as shared."
            if line
            else ""
        ),
        section="sharing",
        data=[trace for one in drawn for trace in _traces(one)],
        layout=layout(
            x=axis("cosine of matched directions", range=[low, 1.0]),
            y=axis("share of latents per bin", rangemode="tozero"),
            shapes=[limit_line(line, text=f"{line}")] if line else [],
        ),
    )


def _traces(one: _Histogram) -> list[Trace]:
    look = one.series.look
    middles = (one.edges[:-1] + one.edges[1:]) / 2
    traces = [
        _steps(middles, one.counts, look.name)
        | {
            "line": {"color": look.colour, "dash": look.dash, "width": 2, "shape": "hvh"},
            "fill": "tozeroy",
            "fillcolor": faint(look.colour, 0.12),
        }
    ]
    if one.null is not None and one.null.sum() > 0:
        line = {"color": look.colour, "dash": "dot", "width": 1.5, "shape": "hvh"}
        traces.append(_steps(middles, one.null, f"null, {look.name}") | {"line": line})
    return traces


def _steps(middles: NDArray[np.float64], counts: NDArray[np.float64], name: str) -> Trace:
    used = np.flatnonzero(counts)
    # One empty bin on either side, for the line to come down in.
    part = slice(max(used[0] - 1, 0), used[-1] + 2)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": middles[part],
        "y": (counts / counts.sum())[part],
        "customdata": counts[part].astype(int),
        "hovertemplate": "cosine %{x:.2f}: %{y:.2%} (%{customdata:,})<extra>%{fullData.name}</extra>",
    }


def _lowest(one: _Histogram) -> float:
    """Where the axis begins: a bin before anything was counted, and not above 0."""
    both = one.counts if one.null is None else one.counts + one.null
    return min(0.0, float(one.edges[max(np.flatnonzero(both)[0] - 1, 0)]))


def _counted(series: Series, hook: str, subset: str) -> _Histogram | None:
    """From the evaluator's counts."""
    found: dict[str, Any] = series.run.artifact("shared_features", "matched_cosines") or {}
    for group in found.get("groups", ()):
        if (group["source"], group["hook"], group["variant"]) != (series.source, hook, series.variant):
            continue
        counts = np.asarray(group[subset], float)
        if counts.sum() == 0:
            return None
        null = group["null" if subset == "all" else "null_alive"]
        return _Histogram(
            series,
            np.asarray(group["edges"], float),
            counts,
            np.asarray(null, float) if null else None,
            found["thresholds"],
        )
    return None


def _from_columns(series: Series, hook: str, subset: str) -> _Histogram | None:
    """From the columns of `features.parquet`."""
    features = series.run.features
    if features is None or COLUMN not in features or (subset == "alive" and RATE not in features):
        return None
    of_series = (
        (features["source"] == series.source)
        & (features["hook"] == hook)
        & (features["variant"] == series.variant)
    )
    if subset == "alive":
        of_series &= features[RATE] > 0
    cosines = features.loc[of_series, COLUMN].dropna().to_numpy(float)
    if not len(cosines):
        return None
    counts = np.histogram(np.clip(cosines, -1, 1), COLUMN_BINS)[0].astype(float)
    return _Histogram(series, COLUMN_BINS, counts, None, (CLAIMED,))
