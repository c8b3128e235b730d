"""Rows of SAEs, baselines and neurons, of differences between them, and of sources."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import EvalResult, FeatureTable
from sae_faithful.metrics.intervals import Interval, mean_difference_interval, mean_interval
from sae_faithful_plugins.polysemanticity.measuring import ALIVE, CAPACITY, R2, SELECTIVITY, Measured, Metric

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = {
    SELECTIVITY: "index",
    R2: "share of variance",
    CAPACITY: "dimensions",
    "capacity_null": "dimensions",
    "features_per_neuron": "features",
    "features_per_neuron_null": "features",
}
COMPARED = (SELECTIVITY, R2, CAPACITY)
HEADLINES = (SELECTIVITY, f"{SELECTIVITY}_difference")
MIN_VALUES = 10
"""Fewer latents, or neurons, than this say too little about their own spread for an interval."""
NO_VALUES = "no latent has a value"
NO_SPREAD = "all values are equal: they show no spread"
A_COUNT = "a count, not an estimate"


@dataclass
class Results:
    """Makes rows of what was measured, and from them those of sources."""

    dataset: str | None
    rows: list[EvalResult] = field(default_factory=list[EvalResult])
    """All of them."""
    _measured: list[Measured] = field(default_factory=list[Measured])

    def of_latents(self, measured: Measured) -> Iterator[EvalResult | FeatureTable]:
        """Rows of one SAE, of one fit of a baseline, or of neurons; columns of an SAE or a baseline."""
        self._measured.append(measured)
        where = measured.latents.identity
        for (metric, subset), values in measured.values.items():
            value = measured.mean((metric, subset))
            # Neurons have no row of a source.
            headline = metric in HEADLINES and where["seed"] is None
            yield self._row(
                metric, value, interval_over_values(values), len(values), subset, where, headline=headline
            )
        for metric, reasons in measured.reasons.items():
            for reason, count in (("", len(reasons)), *sorted(Counter(reasons).items())):
                condition = f"{metric}: {reason}" if reason else metric
                counted = Interval(None, None, A_COUNT)
                yield self._row(
                    "unmeasured", float(count), counted, measured.n_sampled, "all", where, condition=condition
                )
        if measured.handle is not None:
            yield FeatureTable(handle=measured.handle, columns=measured.columns)

    def differences(self) -> Iterator[EvalResult]:
        """Every SAE minus neurons and each baseline of its hook, and the same of sources."""
        for saes in self._groups(saes=True).values():
            first = saes[0].latents.identity
            for name, others in self._others(first["source"], first["hook"]).items():
                for metric in COMPARED:
                    yield from self._difference((metric, ALIVE), saes, name, others)

    def of_sources(self) -> Iterator[EvalResult]:
        """Means over SAEs, and over fits of a baseline."""
        for group in self._groups(saes=None).values():
            where = {**group[0].latents.identity, "seed": None}
            for metric in dict.fromkeys(metric for one in group for metric in one.values):
                means = _means(group, metric)
                interval = mean_interval(means) if means else Interval(None, None, NO_VALUES)
                value = float(np.mean(means)) if means else None
                name, subset = metric
                yield self._row(name, value, interval, len(means), subset, where, headline=name in HEADLINES)

    def _difference(
        self, metric: Metric, saes: list[Measured], name: str, others: list[Measured]
    ) -> Iterator[EvalResult]:
        condition = f"minus {name}"
        for sae in saes:
            where = sae.latents.identity
            same = [one for one in others if one.latents.identity["seed"] == where["seed"]]
            other = (same or others)[0]
            pair = (sae.values.get(metric, np.zeros(0)), other.values.get(metric, np.zeros(0)))
            value, interval = difference_over_values(*pair)
            # Where there is one SAE, its own interval is the one there is.
            headline = len(saes) == 1 and metric[0] == SELECTIVITY
            yield self._row(
                f"{metric[0]}_difference", value, interval, min(map(len, pair)), ALIVE, where,
                condition=condition, headline=headline,
            )  # fmt: skip
        means, fits = _means(saes, metric), _means(others, metric)
        where = {**saes[0].latents.identity, "seed": None}
        value, interval = None, Interval(None, None, NO_VALUES)
        if means and fits:
            value = float(np.mean(means) - np.mean(fits))
            interval = _over_saes(means, fits, others[0].values[metric])
        yield self._row(
            f"{metric[0]}_difference", value, interval, len(means), ALIVE, where,
            condition=condition, headline=metric[0] == SELECTIVITY,
        )  # fmt: skip

    def _groups(self, *, saes: bool | None) -> dict[tuple[Any, ...], list[Measured]]:
        """SAEs, or SAEs and fits of baselines, by source, hook and variant."""
        groups: dict[tuple[Any, ...], list[Measured]] = {}
        for one in self._measured:
            if one.handle is not None and (saes is None or one.is_sae == saes):
                groups.setdefault(one.handle.key[:3], []).append(one)
        return groups

    def _others(self, source: str, hook: str) -> dict[str, list[Measured]]:
        """What SAEs of one place are held against, by name."""
        others: dict[str, list[Measured]] = {}
        for one in self._measured:
            if not one.is_sae and (one.latents.source, one.latents.hook) == (source, hook):
                others.setdefault(one.latents.variant, []).append(one)
        return others

    def _row(
        self, metric: str, value: float | None, interval: Interval, n: int, subset: str, where: dict[str, Any],
        *, condition: str | None = None, headline: bool = False,
    ) -> EvalResult:  # fmt: skip
        unit = "latents" if metric == "unmeasured" else UNITS[metric.removesuffix("_difference")]
        row = EvalResult(
            metric=metric, value=value, unit=unit, n=n, ci_low=interval.low, ci_high=interval.high,
            reason=interval.reason, subset=subset, dataset=self.dataset, condition=condition, headline=headline,
            **where,
        )  # fmt: skip
        self.rows.append(row)
        return row


def interval_over_values(values: np.ndarray) -> Interval:
    """Student's t interval of a mean over latents, or neurons; or why there is none."""
    if len(values) == 0:
        return Interval(None, None, NO_VALUES)
    if len(values) < MIN_VALUES:
        return _too_few(len(values))
    if np.ptp(values) < 1e-12 * np.abs(values).max():
        return Interval(None, None, NO_SPREAD)
    return mean_interval(values.tolist())


def difference_over_values(values: np.ndarray, others: np.ndarray) -> tuple[float | None, Interval]:
    """Difference of two means over latents, with Welch's interval; or why there is none."""
    if min(len(values), len(others)) == 0:
        return None, Interval(None, None, NO_VALUES)
    difference = float(values.mean() - others.mean())
    fewer = min(len(values), len(others))
    if fewer < MIN_VALUES:
        return difference, _too_few(fewer)
    return difference, mean_difference_interval(values.tolist(), others.tolist())


def _over_saes(means: list[float], fits: list[float], of_first: np.ndarray) -> Interval:
    """Of a difference between a source's SAEs and what they are held against.

    Args:
        means: of the SAEs.
        fits: of what they are held against.
        of_first: values of the first fit's latents, whose spread counts where it is the only one.
    """
    if len(means) < 2:
        return mean_interval(means)
    if len(fits) > 1:
        return mean_difference_interval(means, fits)
    if len(of_first) < MIN_VALUES:
        return _too_few(len(of_first))
    return mean_difference_interval(means, of_first.tolist())


def _means(group: list[Measured], metric: Metric) -> list[float]:
    return [mean for one in group if (mean := one.mean(metric)) is not None]


def _too_few(n: int) -> Interval:
    return Interval(None, None, f"{n} values; an interval needs at least {MIN_VALUES}")
