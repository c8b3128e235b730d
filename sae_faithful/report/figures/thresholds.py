"""Shares of latents against a threshold: SFR against the cosine, FFR against τ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_faithful.report.figures.figure import Figure, Trace, make_figure
from sae_faithful.report.figures.numbers import (
    OVER_SAES,
    Value,
    bars,
    hooks,
    option,
    parameter,
    place_text,
    rows_of,
    values,
)
from sae_faithful.report.figures.series import all_series
from sae_faithful.report.figures.style import axis, layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful.report.figures.series import Series
    from sae_faithful.report.run_data import RunData

SUBSETS = {
    "alive": "alive latents",
    "all": "all latents",
    "firing_weighted": "latents weighted by firings",
}
RATIOS = {
    "ffr_contrast": "that fire on more than τ of the random tokens and more than {ratio:g} times as often as on the "
    "source's own text: `ffr_contrast`, the recommended one",
    "ffr": "whose activation is above {activation:g} on more than τ of the random tokens: `ffr`, the paper's, which "
    "depends on the scale of activations",
    "ffr_fire": "that fire on more than τ of the random tokens: `ffr_fire`",
    "ffr_relative": "that on more than τ of the random tokens are active above their own median on the source's "
    "text: `ffr_relative`",
}
RATIO_NAMES = {
    "ffr_contrast": "Contrast FFR",
    "ffr": "FFR",
    "ffr_fire": "Fire FFR",
    "ffr_relative": "Relative FFR",
}


ASIDE, ASIDE_LOG = 0.004, 0.025
"""How far apart curves stand: in cosine, and as a share of τ."""


@dataclass(frozen=True)
class _Curve:
    """One metric of a series, against its threshold."""

    series: Series
    name: str
    points: dict[float, Value]
    reference: bool = False
    """Whether it is what the metric gives where nothing was learned: thin and dotted."""

    def trace(self, aside: float, *, log: bool = False) -> Trace:
        """As plotly draws it, `aside` of its thresholds, so that error bars do not hide each other."""
        thresholds = sorted(self.points)
        found = [self.points[at] for at in thresholds]
        look = self.series.look
        return {
            "type": "scatter",
            "mode": "lines+markers",
            "name": self.name,
            "x": [at * (1 + aside) if log else at + aside for at in thresholds],
            "y": [one.value for one in found],
            "error_y": bars(found, look.colour),
            "text": [f"above {at:g}: {one.text}" for at, one in zip(thresholds, found, strict=True)],
            "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
            "line": {
                "color": look.colour,
                "dash": "dot" if self.reference else look.dash,
                "width": 1.2 if self.reference else 2,
            },
            "marker": {
                "color": look.colour,
                "symbol": look.symbol + ("-open" if self.reference else ""),
                "size": 5 if self.reference else 8,
            },
        }


def sfr_figures(runs: Sequence[RunData]) -> list[Figure]:
    """SFR against the threshold, a figure for each hook and subset of latents."""
    found: list[Figure] = []
    at_hooks = hooks(runs, "shared_features")
    for hook in at_hooks:
        for subset, what in SUBSETS.items():
            curves = _curves(runs, "shared_features", "sfr", "cosine", "sfr_null", "null", hook, subset)
            if not curves:
                continue
            found.append(
                make_figure(
                    parts=("sfr", subset, hook if len(at_hooks) > 1 else None),
                    title=f"SFR of {what}{place_text(hook, at_hooks)}",
                    caption=(
                        f"Share of {what} whose decoder direction, matched one to one between SAEs of two seeds, has a "
                        "cosine above the threshold (`sfr`, mean over pairs of seeds; the paper's threshold is 0.7). "
                        "Dotted: the same of random dictionaries with the same second moments (`sfr_null`). Intervals "
                        "are 95 %: by the jackknife over SAEs, which takes three; of the null over draws. Where a "
                        "number has none nothing is drawn."
                    ),
                    section="sharing",
                    data=_traces(curves, ASIDE),
                    layout=layout(
                        x=axis("cosine above (threshold)"),
                        y=axis("share of latents", rangemode="tozero"),
                    ),
                )
            )
    return found


def ffr_figures(runs: Sequence[RunData]) -> list[Figure]:
    """Each fake feature ratio of alive latents against τ, and the paper's of all latents; by hook."""
    found: list[Figure] = []
    at_hooks = hooks(runs, "fake_features")
    shown = [("ffr_contrast", "alive"), ("ffr", "alive"), ("ffr", "all"), ("ffr_fire", "alive"),
             ("ffr_relative", "alive")]  # fmt: skip
    options = {
        name: option(runs, "fake_features", name, default)
        for name, default in (("activation", 1.0), ("ratio", 2.0))
    }
    for hook in at_hooks:
        for metric, subset in shown:
            curves = _curves(
                runs, "fake_features", metric, "rate", f"{metric}_random_sae", "random SAE", hook, subset
            )
            if not curves:
                continue
            dotted = any(curve.reference for curve in curves)
            found.append(
                make_figure(
                    parts=("ffr", metric, subset, hook if len(at_hooks) > 1 else None),
                    title=f"{RATIO_NAMES[metric]} of {SUBSETS[subset]}{place_text(hook, at_hooks)}",
                    caption=(
                        f"Share of {SUBSETS[subset]} {RATIOS[metric].format(**options)}. "
                        + (
                            "Dotted: a randomly initialised SAE of the same size and sparsity, one draw. "
                            * dotted
                        )
                        + f"{OVER_SAES} The interval of one SAE, and of the random one, is over sequences of tokens."
                    ),
                    section="fakeness",
                    data=_traces(curves, ASIDE_LOG, log=True),
                    layout=layout(
                        x=axis("τ (share of random tokens, log scale)", type="log", **_ticks(curves)),
                        y=axis("share of latents", rangemode="tozero"),
                    ),
                )
            )
    return found


def _curves(
    runs: Sequence[RunData], evaluator: str, metric: str, parameter_name: str, reference: str,
    reference_name: str, hook: str, subset: str,
) -> list[_Curve]:  # fmt: skip
    """The curves of all series that have one, then those of their references."""
    curves: list[_Curve] = []
    for series in all_series(runs):
        for name, of_what, is_reference in (
            (metric, series.look.name, False),
            (reference, f"{reference_name}, {series.look.name}", True),
        ):
            rows = [
                row
                for row in rows_of(series.run, evaluator, name, hook=hook, subset=subset)
                if series.of(row) and parameter(row["condition"], parameter_name) is not None
            ]
            points = values(rows, lambda row: parameter(row["condition"], parameter_name))
            if points:
                curves.append(_Curve(series, of_what, points, is_reference))
    # A reference says nothing without what it is a reference for.
    if all(curve.reference for curve in curves):
        return []
    return sorted(curves, key=lambda curve: curve.reference)


def _traces(curves: Sequence[_Curve], step: float, *, log: bool = False) -> list[Trace]:
    """Curves of one series, and its reference, equally far aside."""
    places = list(dict.fromkeys(curve.series.look.name for curve in curves))
    middle = (len(places) - 1) / 2
    return [curve.trace(step * (places.index(curve.series.look.name) - middle), log=log) for curve in curves]


def _ticks(curves: Sequence[_Curve]) -> dict[str, Any]:
    """A tick at every τ: a log axis would name one in ten."""
    taus = sorted({tau for curve in curves for tau in curve.points})
    return {"tickmode": "array", "tickvals": taus, "ticktext": [f"{tau:g}" for tau in taus]}
