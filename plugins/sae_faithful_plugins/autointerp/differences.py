"""SAEs against baselines: differences of mean scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sae_faithful import EvalResult
from sae_faithful.metrics.intervals import Interval, mean_difference_interval, mean_interval
from sae_faithful_plugins.autointerp.scoring import MIN_FEATURES, NONE_SCORED, too_few_features

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sae_faithful import SAEHandle

DIFFERENCE = "_difference"
HEADLINES = ("token_set_score_difference", "autointerp_score_difference")
"""And of these only the whole score of a source: a row for every baseline is long enough."""
HEADLINE_SUBSET = "top_and_random"


class Kind(NamedTuple):
    """What is compared: like only with like."""

    metric: str
    unit: str
    subset: str
    by: str


@dataclass(frozen=True)
class Sample:
    """The scores of one SAE's or baseline's features, without those that have none."""

    handle: SAEHandle
    values: Sequence[float]


class Difference(NamedTuple):
    """A row, and what it compares."""

    kind: Kind
    baseline: str
    row: EvalResult


@dataclass
class Differences:
    """Holds each SAE's scores against those of every baseline of its source and hook."""

    dataset: str | None
    _samples: dict[Kind, list[Sample]] = field(default_factory=dict[Kind, list[Sample]])

    def add(self, kind: Kind, sample: Sample) -> None:
        """Scores that were measured."""
        self._samples.setdefault(kind, []).append(sample)

    def found(self) -> Iterator[Difference]:
        """Of every SAE, then of its source, against each baseline; none where there are no baselines."""
        for kind, samples in self._samples.items():
            places = dict.fromkeys((one.handle.source, one.handle.hook) for one in samples)
            for place in places:
                here = [one for one in samples if (one.handle.source, one.handle.hook) == place]
                saes = _by_variant(one for one in here if one.handle.kind != "baseline")
                baselines = _by_variant(one for one in here if one.handle.kind == "baseline")
                for several in saes.values():
                    for name, fits in baselines.items():
                        yield from self._against(kind, several, name, fits)

    def _against(
        self, kind: Kind, saes: Mapping[int, Sample], name: str, fits: Mapping[int, Sample]
    ) -> Iterator[Difference]:
        first = next(iter(fits.values()))
        for seed, one in saes.items():
            # A baseline that draws is fitted once for each seed, any other once for all.
            other = fits.get(seed, first)
            n = len(one.values) + len(other.values)
            yield self._difference(kind, name, _of_features(one, other), n, one.handle.identity)
        scored = [one for one in saes.values() if one.values]
        where = {key: first.handle.identity[key] for key in ("source", "hook")}
        where["variant"] = next(iter(saes.values())).handle.variant
        found = _of_saes(scored, [one for one in fits.values() if one.values])
        yield self._difference(kind, name, found, len(scored), where)

    def _difference(
        self,
        kind: Kind,
        name: str,
        found: tuple[float | None, Interval],
        n: int,
        where: Mapping[str, Any],
    ) -> Difference:
        value, (low, high, reason) = found
        metric = kind.metric + DIFFERENCE
        condition = ", ".join(part for part in (f"minus {name}", kind.subset, kind.by) if part)
        headline = "seed" not in where and metric in HEADLINES and kind.subset == HEADLINE_SUBSET
        row = EvalResult(
            metric=metric, value=value, unit=kind.unit, n=n, ci_low=low, ci_high=high, reason=reason,
            dataset=self.dataset, condition=condition, headline=headline, **where,
        )  # fmt: skip
        return Difference(kind, name, row)


def _of_features(one: Sample, other: Sample) -> tuple[float | None, Interval]:
    """An SAE's mean minus a baseline's; both sets of features are samples, independent of each other."""
    if not one.values or not other.values:
        return None, Interval(None, None, NONE_SCORED)
    value = float(np.mean(one.values) - np.mean(other.values))
    fewest = min(len(one.values), len(other.values))
    if fewest < MIN_FEATURES:
        return value, too_few_features(fewest)
    return value, mean_difference_interval(one.values, other.values)


def _of_saes(saes: Sequence[Sample], fits: Sequence[Sample]) -> tuple[float | None, Interval]:
    """The SAEs' mean minus the baseline's.

    SAEs are a sample of one mean each. So are the fits of a baseline that has several. One that has a single fit,
    which any seed would give, is a sample of its features.
    """
    if not saes or not fits:
        return None, Interval(None, None, NONE_SCORED)
    means, others = ([float(np.mean(one.values)) for one in samples] for samples in (saes, fits))
    value = float(np.mean(means) - np.mean(others))
    if len(means) < 2:
        return value, mean_interval(means)
    if len(fits) > 1:
        return value, mean_difference_interval(means, others)
    if len(fits[0].values) < MIN_FEATURES:
        return value, too_few_features(len(fits[0].values))
    return value, mean_difference_interval(means, fits[0].values)


def _by_variant(samples: Iterator[Sample]) -> dict[str, dict[int, Sample]]:
    """By variant (a baseline's name), then by seed."""
    found: dict[str, dict[int, Sample]] = {}
    for one in samples:
        found.setdefault(one.handle.variant, {})[one.handle.seed] = one
    return found
