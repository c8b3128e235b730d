"""Rows and columns from what was counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import EvalResult, derive_seed
from sae_faithful.metrics.fake_ratio import Criterion
from sae_faithful.metrics.intervals import Interval, mean_interval, too_few_clusters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sae_faithful_plugins.fake_features.counting import Meaningless, OwnText

HEADLINE_TAU = 0.1
"""The paper's threshold: its rows make the report's table."""
HEADLINES = ("ffr", "ffr_contrast")
SUBSETS = ("all", "alive")
NO_INTERVAL = "how many latents the counts leave open is no estimate"


class Results:
    """Makes an evaluation's rows; those of sources from those of their SAEs."""

    def __init__(self, taus: Sequence[float], ratio: float, seed: int) -> None:
        self.seed = seed
        self.criteria: dict[Criterion, str] = {}
        """Metric of each criterion."""
        for tau in taus:
            self.criteria |= {
                Criterion("above", tau): "ffr",
                Criterion("any", tau): "ffr_fire",
                Criterion("relative", tau): "ffr_relative",
                Criterion("any", tau, ratio): "ffr_contrast",
            }
        self._of_saes: dict[tuple[str, ...], list[EvalResult]] = {}

    def of_sae(self, own: OwnText, random: Meaningless, shuffled: Meaningless | None) -> Iterator[EvalResult]:
        """Ratios on random and on shuffled tokens, and how many latents are not settled, for one SAE."""
        place = own.handle.identity
        rows = [*self._shares(random, "", place), *self._unsettled(random, place)]
        if shuffled is not None:
            rows += self._shares(shuffled, "_shuffled", place)
        for row in rows:
            key = (own.handle.source, own.handle.hook, own.handle.variant)
            key += (row.metric, row.subset, row.condition or "")
            self._of_saes.setdefault(key, []).append(row)
            yield row

    def of_random_sae(self, own: OwnText, random: Meaningless) -> Iterator[EvalResult]:
        """Ratios of the random counterpart of a source's SAEs."""
        yield from self._shares(random, "_random_sae", {**own.handle.identity, "seed": None})

    def of_sources(self) -> Iterator[EvalResult]:
        """Means over SAEs."""
        for (source, hook, variant, metric, subset, condition), rows in self._of_saes.items():
            values = [row.value for row in rows if row.value is not None]
            if not values:
                continue
            low, high, reason = mean_interval(values)
            yield EvalResult(
                metric=metric, value=float(np.mean(values)), unit="share of latents", n=len(values),
                ci_low=low, ci_high=high, reason=reason, source=source, hook=hook, variant=variant,
                subset=subset, condition=condition,
                headline=metric in HEADLINES and condition == _condition(HEADLINE_TAU),
            )  # fmt: skip

    def _shares(self, on: Meaningless, suffix: str, place: dict[str, Any]) -> Iterator[EvalResult]:
        rng = np.random.default_rng(
            derive_seed(self.seed, "fake_features", "resamples", *on.own.handle.key, suffix)
        )
        shares = on.ratios().shares(list(self.criteria), rng)
        for criterion, metric in self.criteria.items():
            for subset in SUBSETS:
                value, interval = shares.get((criterion, subset), (None, Interval(None, None, None)))
                yield _row(metric + suffix, criterion, subset, value, interval, on.any.n_tokens, place)

    def _unsettled(self, on: Meaningless, place: dict[str, Any]) -> Iterator[EvalResult]:
        ratios = on.ratios()
        for criterion, metric in self.criteria.items():
            unsettled = ratios.unsettled(criterion)
            for subset in SUBSETS:
                among = ratios.among.get(subset)
                value, interval = None, Interval(None, None, NO_INTERVAL)
                if unsettled is None:
                    interval = too_few_clusters(ratios.n_clusters(criterion))
                elif among is not None:
                    value = float(unsettled[among].mean())
                n = 0 if among is None else int(among.sum())
                yield _row(f"{metric}_borderline", criterion, subset, value, interval, n, place)


def columns(own: OwnText, random: Meaningless, shuffled: Meaningless | None) -> dict[str, np.ndarray]:
    """Every latent's rates and its median."""
    thresholds = own.thresholds
    found = {
        "rate_random": random.any.rates,
        "rate_random_above": random.above.rates,
        "rate_random_relative": random.relative.rates,
        "rate_own": own.firings.rates,
        "median_own": np.where(own.alive, thresholds, np.nan),
    }
    if shuffled is not None:
        found["rate_shuffled"] = shuffled.any.rates
    return {name: column.astype(np.float32) for name, column in found.items()}


def _row(
    metric: str,
    criterion: Criterion,
    subset: str,
    value: float | None,
    interval: Interval,
    n: int,
    place: dict[str, Any],
) -> EvalResult:
    low, high, reason = interval
    return EvalResult(
        metric=metric, value=value, unit="share of latents", n=n, ci_low=low, ci_high=high,
        reason=reason or (None if value is not None else "no latent is alive"), subset=subset,
        condition=_condition(criterion.tau), **place,
    )  # fmt: skip


def _condition(tau: float) -> str:
    return f"rate>{tau:g}"
