"""From KLs of nested sets to rows: how many features, how much of the curve, how large an edit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from sae_faithful import EvalResult, derive_seed
from sae_faithful.metrics.intervals import (
    MIN_CLUSTERS,
    NO_SPREAD,
    Interval,
    bootstrap_interval,
    mean_interval,
    ratio_interval,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float, Int

UNITS = {
    "task_accuracy": "share of pairs",
    "logit_difference": "logits",
    "kl_unpatched": "nats",
    "kl_patched": "nats",
    "features_to_half": "features",
    "edit_to_half": "activation units",
    "area": "share",
    "area_difference": "share",
}
HEADLINES = ("features_to_half", "area", "area_difference")
NO_ANSWERS = "the pairs name no answer and distractor"
NO_KL = "base and target prompts have the same prediction: there is nothing to patch"
NEVER_HALF = "no measured set brings KL to half"
NOT_ALWAYS_HALF = "in some resamples no measured set brings KL to half"
NOT_EVERY_SAE = "not every SAE brings KL to half"


@dataclass
class Series:
    """One decomposition: nested sets of its features, measured on the pairs."""

    where: dict[str, Any]
    """Source, hook, variant, seed."""
    sizes: list[int]
    """Of the sets."""
    lengths: Float[np.ndarray, " pairs"]
    """Tokens of each prompt."""
    kl: Float[np.ndarray, "orders sizes pairs"]
    edits: Float[np.ndarray, "orders sizes pairs"]
    """Sums over a prompt's tokens of ‖x − x'‖."""
    kl_all: Float[np.ndarray, " pairs"]
    """With every feature, candidates or not."""
    edits_all: Float[np.ndarray, " pairs"]
    area_features: int
    n_changed: int
    """Features whose code changes in the pairs that chose."""
    orders: list[list[int]] = field(default_factory=list["list[int]"])
    """Features in each order of removal, backwards: the sets are its beginnings."""
    thresholds: list[list[dict[str, float]]] = field(default_factory=list["list[dict[str, float]]"])
    """For each order and threshold how many features were left, and KL with them, on the pairs that chose."""
    comparison: bool = False
    """Whether it is one of the evaluator's own, beside the SAEs."""

    @property
    def n(self) -> int:
        """Pairs."""
        return len(self.lengths)

    def areas(self) -> Float[np.ndarray, " pairs"]:
        """Area under each pair's KL over set size, from 0 to `area_features`, mean over orders.

        By trapezoids; a decomposition with fewer candidates stays where it is.
        """
        kl = self.kl.mean(axis=0)
        inside = [i for i, size in enumerate(self.sizes) if size <= self.area_features]
        sizes = np.array([self.sizes[i] for i in inside], np.float64)
        tail = (self.area_features - sizes[-1]) * kl[inside[-1]]
        return (np.trapezoid(kl[inside], sizes, axis=0) + tail) / self.area_features

    def half_positions(
        self, weights: Float[np.ndarray, "resamples pairs"]
    ) -> Int[np.ndarray, "orders resamples"]:
        """Index of the smallest set with at most half of the unpatched KL; −1: none."""
        levels = np.einsum("osp,rp->ors", self.kl, weights)
        reached = levels <= levels[:, :, :1] / 2
        return np.where(reached.any(axis=2), reached.argmax(axis=2), -1)


def task_rows(differences: Float[np.ndarray, " pairs"]) -> Iterator[EvalResult]:
    """Whether the model does the task at all.

    Args:
        differences: logit of the answer minus logit of the distractor, of the pairs that name them.
    """
    n = len(differences)
    if n == 0:
        for metric in ("task_accuracy", "logit_difference"):
            yield row(metric, None, Interval(None, None, NO_ANSWERS), n)
        return
    right = int((differences > 0).sum())
    # Clopper & Pearson: exact for any number of pairs, also where all are right.
    exact = stats.binomtest(right, n).proportion_ci(0.95)
    yield row("task_accuracy", right / n, Interval(float(exact.low), float(exact.high)), n, headline=True)
    yield row("logit_difference", float(differences.mean()), ratio(differences, np.ones(n)), n)


def unpatched_row(kl: Float[np.ndarray, " pairs"]) -> EvalResult:
    """How far the base prompts' predictions are from the target prompts'."""
    return row("kl_unpatched", float(kl.mean()), ratio(kl, np.ones(len(kl))), len(kl))


def rows_of_series(
    series: Sequence[Series], unpatched: Float[np.ndarray, " pairs"], seed: int
) -> Iterator[EvalResult]:
    """Rows of every decomposition, and of every source over its SAEs.

    Args:
        series: all that were measured.
        unpatched: KL of each pair without a patch.
        seed: the experiment's.
    """
    over_saes: dict[tuple[Any, ...], list[EvalResult]] = {}
    for one in series:
        found = [*_own_rows(one, seed), *_differences(one, series, unpatched)]
        yield from found
        if one.comparison:
            continue
        for result in found:
            place = (result.metric, result.condition, result.source, result.hook, result.variant)
            over_saes.setdefault(place, []).append(result)
    for (metric, condition, source, hook, variant), results in over_saes.items():
        values = [result.value for result in results if result.value is not None]
        where = {"source": source, "hook": hook, "variant": variant, "condition": condition}
        if len(values) < len(results):
            lacking = next(result.reason for result in results if result.value is None)
            reason = NO_KL if lacking == NO_KL else NOT_EVERY_SAE
            yield row(
                metric, None, Interval(None, None, reason), len(results),
                headline=metric in HEADLINES, **where,
            )  # fmt: skip
            continue
        yield row(
            metric, float(np.mean(values)), mean_interval(values), len(values),
            headline=metric in HEADLINES, **where,
        )  # fmt: skip


def _own_rows(one: Series, seed: int) -> Iterator[EvalResult]:
    where = {**one.where, "headline": one.comparison}
    plain = {**where, "headline": False}
    ones = np.ones(one.n)
    candidates = one.kl[:, -1].mean(axis=0)
    for condition, kl in (("all", one.kl_all), ("candidates", candidates)):
        yield row("kl_patched", float(kl.mean()), ratio(kl, ones), one.n, condition=condition, **plain)
    unpatched = one.kl[:, 0].mean(axis=0)
    if unpatched.mean() <= 0:
        nothing = Interval(None, None, NO_KL)
        for metric in ("features_to_half", "edit_to_half", "area"):
            yield row(metric, None, nothing, one.n, **plain)
        return
    positions = one.half_positions(np.ones((1, one.n)))[:, 0]
    if (positions < 0).any():
        never = Interval(None, None, NEVER_HALF)
        yield row("features_to_half", None, never, one.n, **where)
        yield row("edit_to_half", None, never, one.n, **plain)
    else:
        features, edit = _to_half(one, seed)
        value = float(np.mean([one.sizes[i] for i in positions]))
        yield row("features_to_half", value, features, one.n, **where)
        sums = np.mean([one.edits[order, i] for order, i in enumerate(positions)], axis=0)
        yield row("edit_to_half", float(sums.sum() / one.lengths.sum()), edit, one.n, **plain)
    areas = one.areas()
    yield row("area", float(areas.sum() / unpatched.sum()), ratio(areas, unpatched), one.n, **where)


def _to_half(one: Series, seed: int) -> tuple[Interval, Interval]:
    """Intervals of the number of features that bring KL to half, and of their edit, in the same draws of pairs."""
    sizes = np.array([*one.sizes, np.inf])

    def features(weights: np.ndarray) -> np.ndarray:
        return sizes[one.half_positions(weights)].mean(axis=0)

    def edit(weights: np.ndarray) -> np.ndarray:
        positions = one.half_positions(weights)
        sums = np.einsum("osp,rp->ors", one.edits, weights)
        sums = np.concatenate([sums, np.full((*sums.shape[:2], 1), np.inf)], axis=2)
        chosen = np.take_along_axis(sums, positions[:, :, None], axis=2)[:, :, 0]
        return chosen.mean(axis=0) / (weights @ one.lengths)

    found: list[Interval] = []
    for statistic in (features, edit):
        rng = np.random.default_rng(derive_seed(seed, "ioi_patching", "half", *one.where.values()))
        found.append(_bounded(statistic, one.n, rng))
    return found[0], found[1]


def _bounded(statistic: Any, n: int, rng: np.random.Generator) -> Interval:
    """The bootstrap's interval, if what never comes to half leaves it an upper bound."""
    if n < MIN_CLUSTERS:
        return too_few_pairs(n)
    # Ten times the largest finite value stands for infinity, between which and a number nothing interpolates.
    drawn: list[np.ndarray] = []

    def kept(weights: np.ndarray) -> np.ndarray:
        values = statistic(weights)
        finite = values[np.isfinite(values)]
        drawn.append(finite)
        return np.where(np.isfinite(values), values, 10 * finite.max(initial=1.0))

    low, high, reason = bootstrap_interval(kept, n, rng)
    if high is not None and high > drawn[0].max(initial=0.0):
        return Interval(None, None, NOT_ALWAYS_HALF)
    if high == low:
        return Interval(None, None, NO_SPREAD)
    return Interval(low, high, reason)


def _differences(
    one: Series, series: Sequence[Series], unpatched: Float[np.ndarray, " pairs"]
) -> Iterator[EvalResult]:
    """An SAE's area minus that of each comparison at its place, on the same pairs."""
    if one.comparison:
        return
    for other in series:
        if not other.comparison or any(other.where[key] != one.where[key] for key in ("source", "hook")):
            continue
        condition = f"minus {other.where['variant']}"
        if unpatched.mean() <= 0:
            nothing = Interval(None, None, NO_KL)
            yield row("area_difference", None, nothing, one.n, condition=condition, **one.where)
            continue
        apart = one.areas() - other.areas()
        value = float(apart.sum() / unpatched.sum())
        yield row("area_difference", value, ratio(apart, unpatched), one.n, condition=condition, **one.where)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Interval:
    """Interval of a ratio of sums over pairs."""
    n = len(numerators)
    return ratio_interval(numerators, denominators) if n >= MIN_CLUSTERS else too_few_pairs(n)


def too_few_pairs(n: int) -> Interval:
    """No interval, and why."""
    return Interval(None, None, f"{n} pairs; an interval needs at least {MIN_CLUSTERS}")


def row(metric: str, value: float | None, interval: Interval, n: int, **where: Any) -> EvalResult:
    """A row of results."""
    return EvalResult(
        metric=metric, value=value, unit=UNITS[metric], n=n, ci_low=interval.low, ci_high=interval.high,
        reason=interval.reason, **where,
    )  # fmt: skip
