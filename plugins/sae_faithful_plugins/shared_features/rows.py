"""What is read off compared SAEs: rows, columns and sentences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import EvalResult, FeatureTable
from sae_faithful.metrics.intervals import Interval, mean_interval
from sae_faithful.metrics.matching import SUBSETS, mean_max_cosine, mean_over_pairs, top1_ratio
from sae_faithful.metrics.paired import seeds_to_decide, spread_over_seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from sae_faithful import SAEHandle
    from sae_faithful_plugins.shared_features.pairs import Comparison, Pair

HEADLINE = 0.7
"""The threshold of the papers (Paulo & Belrose 2025)."""


@dataclass(frozen=True)
class Statistic:
    """One number of a pair of SAEs."""

    metric: str
    subset: str
    condition: str | None
    of: Callable[[Pair], tuple[float, ...]]
    """One value where the order of the two makes no difference; else that of A in B and that of B in A."""
    unit: str = "share of latents"
    headline: bool = False


def matched_statistics(
    thresholds: Sequence[float], prefix: str = "", where: str | None = None
) -> Iterator[Statistic]:
    """Shared Feature Ratio at each threshold and mean cosine of a one-to-one matching.

    The decoder's own within a source go into the short table; across sources, only its alive SFR.
    """
    for subset in SUBSETS:
        shown = (prefix == "" and subset != "firing_weighted") or (prefix == "cross_" and subset == "alive")
        for threshold in thresholds:
            yield Statistic(
                f"{prefix}sfr",
                subset,
                _joined(f"cosine>{threshold:g}", where),
                lambda pair, threshold=threshold, subset=subset: (
                    pair.match.shared_ratio(*pair.weights, threshold, subset),
                ),
                headline=shown and threshold == HEADLINE,
            )
        yield Statistic(
            f"{prefix}mean_matched_cosine",
            subset,
            where,
            lambda pair, subset=subset: (pair.match.mean_cosine(*pair.weights, subset),),
            unit="cosine",
            headline=shown and prefix == "",
        )


def top1_statistics(thresholds: Sequence[float]) -> Iterator[Statistic]:
    """Share of latents whose nearest neighbour is above each threshold, and the mean of its cosine; both ways."""
    for subset in SUBSETS:
        for threshold in thresholds:
            yield Statistic(
                "top1",
                subset,
                f"cosine>{threshold:g}",
                lambda pair, threshold=threshold, subset=subset: tuple(
                    top1_ratio(nearest, weights, threshold, subset)
                    for nearest, weights in zip(pair.nearest or (), pair.weights, strict=True)
                ),
            )
        yield Statistic(
            "mmcs",
            subset,
            None,
            lambda pair, subset=subset: tuple(
                mean_max_cosine(nearest, weights, subset)
                for nearest, weights in zip(pair.nearest or (), pair.weights, strict=True)
            ),
            unit="cosine",
        )


def rows_of(
    comparison: Comparison, statistics: Iterable[Statistic], place: Mapping[str, Any]
) -> Iterator[EvalResult]:
    """For each statistic the rows of every pair, their mean with its interval over SAEs, and its null."""
    for statistic in statistics:
        values: dict[tuple[int, int], float] = {}
        for (seed, other), pair in comparison.pairs.items():
            found = statistic.of(pair)
            seeds = [(seed, other), (other, seed)][: len(found)]
            values.update(zip(seeds, found, strict=True))
            yield from _pair_rows(statistic, seeds, found, pair, place)
        yield _mean_row(statistic, *mean_over_pairs(values), len(values), place)
        if comparison.null:
            draws = [float(np.mean(statistic.of(pair))) for pair in comparison.null]
            null = replace(statistic, metric=f"{statistic.metric}_null")
            yield _mean_row(null, float(np.mean(draws)), mean_interval(draws), len(draws), place)


def _pair_rows(
    statistic: Statistic,
    seeds: Sequence[tuple[int, int]],
    found: Sequence[float],
    pair: Pair,
    place: Mapping[str, Any],
) -> Iterator[EvalResult]:
    sizes = [len(side) for side in pair.match.nonzero]
    reason = "one pair of SAEs; the interval over SAEs is in the source's row"
    if len(found) == 1:
        sizes = [min(sizes)]
        if not pair.match.certified:
            reason += (
                f"; the matching is not certified: the best total cosine may be {pair.match.gap:.2g} larger"
            )
    for (seed, other), value, n in zip(seeds, found, sizes, strict=True):
        yield EvalResult(
            metric=statistic.metric, value=value, unit=statistic.unit, n=n, reason=reason, subset=statistic.subset,
            condition=statistic.condition, seed=seed, other_seed=other, **place,
        )  # fmt: skip


def _mean_row(
    statistic: Statistic, value: float, interval: Interval, n: int, place: Mapping[str, Any]
) -> EvalResult:
    return EvalResult(
        metric=statistic.metric, value=value, unit=statistic.unit, n=n, ci_low=interval.low, ci_high=interval.high,
        reason=interval.reason, subset=statistic.subset, condition=statistic.condition,
        headline=statistic.headline, **place,
    )  # fmt: skip


def stability(comparison: Comparison, handle: SAEHandle) -> FeatureTable:
    """In which share of the source's other seeds each latent reappears, its mean matched cosine there, and as what."""
    cosines: list[np.ndarray] = []
    matches: dict[str, np.ndarray] = {}
    for seeds, pair in comparison.pairs.items():
        if handle.seed not in seeds:
            continue
        side = seeds.index(handle.seed)
        cosines.append(pair.match.cosine_of(side))
        partner, other = pair.match.partner_of(side), seeds[1 - side]
        matches[f"match.seed{other}"] = partner
        known = np.where(np.isnan(partner), np.nan, cosines[-1])
        matches[f"matched_cosine.seed{other}"] = known.astype(np.float32)
    together = np.stack(cosines)
    return FeatureTable(
        handle=handle,
        columns={
            "stability": _share_above(together),
            "mean_matched_cosine": together.mean(axis=0).astype(np.float32),
            **matches,
        },
    )


def cross_stability(comparison: Comparison, handle: SAEHandle, side: int, other: str) -> FeatureTable:
    """In which share of the SAEs of the other source each latent reappears; the handle is on that side of pairs."""
    cosines = [
        pair.match.cosine_of(side) for seeds, pair in comparison.pairs.items() if seeds[side] == handle.seed
    ]
    return FeatureTable(handle=handle, columns={f"cross_stability.{other}": _share_above(np.stack(cosines))})


def reading(where: str, what: str, metric: str, rows: Iterable[EvalResult], n_seeds: int) -> Iterator[str]:
    """Whether the SFR of alive latents at the papers' threshold stands above its null, with separated intervals.

    No sentence where that threshold was not asked for.
    """
    found = {row.metric: row for row in rows if row.headline and row.subset == "alive"}
    if metric not in found:
        return
    row, null = found[metric], found.get(f"{metric}_null")
    line = f"{where}: {what} (cosine > {HEADLINE:g}) {_with_interval(row)}"
    if null is None:
        yield f"{line}; no null was drawn."
        return
    line += f" against a null of {_with_interval(null)}"
    if row.ci_low is None or null.ci_high is None:
        yield f"{line}; undecided: {row.reason or null.reason}."
    elif row.ci_low > null.ci_high:
        yield f"{line}: above it, intervals separated."
    else:
        assert row.value is not None  # it has an interval
        spread = spread_over_seeds(row.value, row.ci_low, n_seeds)
        seeds = seeds_to_decide(row.value - null.ci_high, spread) if row.value > null.ci_high else None
        yield (
            f"{line}: the intervals overlap, so {n_seeds} seeds do not tell sharing from chance"
            + (f"; about {seeds} would, if it is as found." if seeds is not None else ".")
        )


def _with_interval(row: EvalResult) -> str:
    return f"{row.value:.3f}" + ("" if row.ci_low is None else f" [{row.ci_low:.3f}, {row.ci_high:.3f}]")


def _share_above(cosines: np.ndarray) -> np.ndarray:
    return (cosines > HEADLINE).mean(axis=0).astype(np.float32)


def _joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)
