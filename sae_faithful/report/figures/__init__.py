"""The figures of the report: rows and artifacts of finished runs into plotly's plain JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from sae_faithful.report.figures.autointerp import autointerp_figures
from sae_faithful.report.figures.distance import distance_figures
from sae_faithful.report.figures.figure import Figure
from sae_faithful.report.figures.firing_rates import firing_rate_figures
from sae_faithful.report.figures.heat_maps import heat_map_figures
from sae_faithful.report.figures.matched_cosines import matched_cosine_figures
from sae_faithful.report.figures.patching import patching_figures
from sae_faithful.report.figures.probing import probing_figures
from sae_faithful.report.figures.style import template
from sae_faithful.report.figures.sweep import sweep_figures
from sae_faithful.report.figures.thresholds import ffr_figures, sfr_figures
from sae_faithful.report.figures.training import training_figures
from sae_faithful.report.figures.typicality import typicality_figures
from sae_faithful.stored import reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful.report.run_data import RunData

__all__ = ["Figure", "figures", "template"]

KINDS = (
    matched_cosine_figures,
    sfr_figures,
    ffr_figures,
    firing_rate_figures,
    distance_figures,
    typicality_figures,
    heat_map_figures,
    sweep_figures,
    probing_figures,
    autointerp_figures,
    patching_figures,
    training_figures,
)


def figures(runs: Sequence[RunData]) -> list[Figure]:
    """Every figure that the runs have data for, all runs in one; sections together, in their order.

    Colours of text, grid and hover labels are left to `template("light")` or `template("dark")`, which a page puts
    into `layout.template`.
    """
    found: list[Figure] = []
    for kind in KINDS:
        with reading(f"what {kind.__name__} are drawn from"):
            found += kind(runs)
    seen: Counter[str] = Counter()
    unlike: list[Figure] = []
    for figure in found:
        # Names of no Latin letter leave no trace in an id.
        seen[figure.id] += 1
        times = seen[figure.id]
        unlike.append(figure if times == 1 else replace(figure, id=f"{figure.id}-{times}"))
    return unlike
