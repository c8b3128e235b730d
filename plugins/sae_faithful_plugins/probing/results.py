"""From the scores of many probes on the same test texts to rows: values, means over SAEs, paired differences."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import EvalResult
from sae_faithful.metrics.intervals import Interval
from sae_faithful.metrics.probing import (
    PROBE_METRICS,
    ProbeMetric,
    nested_interval,
    probe_metric,
    resampled_metric,
    texts_interval,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sae_faithful import SAEHandle
    from sae_faithful_plugins.probing.representations import Key

Group = tuple[str, str, str]
"""Source, hook and variant: the SAEs that differ by seed alone."""
UNITS: dict[ProbeMetric, str] = {
    "accuracy": "share of texts",
    "macro_f1": "F1",
    "auc": "probability",
    "mcc": "correlation",
}
AGAINST = ("raw", "random_sae")
"""What latents and reconstructions are compared with, within a source."""


@dataclass
class Scored:
    """All probes of one task: their metrics on the test texts and in the same bootstrap draws of them."""

    task: str
    headline: ProbeMetric
    labels: np.ndarray
    draws: np.ndarray
    """[resamples, texts], shared by every probe: that is what pairs them."""
    metrics: dict[tuple[ProbeMetric, Key], tuple[float, np.ndarray]] = field(
        default_factory=dict["tuple[ProbeMetric, Key]", "tuple[float, np.ndarray]"]
    )

    def add(self, key: Key, scores: np.ndarray) -> None:
        """Measure one probe."""
        for metric in PROBE_METRICS:
            value = probe_metric(metric, self.labels, scores)
            resampled = resampled_metric(metric, self.labels, scores, self.draws)
            self.metrics[metric, key] = (value, resampled)

    @property
    def n(self) -> int:
        """Test texts."""
        return len(self.labels)

    def shared_rows(self, keys: Mapping[str, Key], **where: Any) -> Iterator[EvalResult]:
        """Rows of probes that no SAE has a part in, by representation."""
        for representation, key in keys.items():
            for metric in PROBE_METRICS:
                value, resampled = self.metrics[metric, key]
                interval = texts_interval(metric, value, resampled, self.labels)
                yield self._row(metric, value, interval, self.n, representation, **where)

    def rows_of_sae(self, handle: SAEHandle, keys: Mapping[str, Key]) -> Iterator[EvalResult]:
        """Rows of one SAE's representations; intervals over test texts."""
        own = {name: key for name, key in keys.items() if name != "raw"}
        yield from self.shared_rows(own, **handle.identity)

    def rows_of_sources(
        self, keys: Mapping[tuple[str, str, str, int], Mapping[str, Key]]
    ) -> Iterator[EvalResult]:
        """Means over the SAEs of a source, and paired differences within and between sources.

        Args:
            keys: each SAE's representations, by the SAE's key, sources in the config's order.
        """
        groups: dict[Group, dict[int, Mapping[str, Key]]] = {}
        for (source, hook, variant, seed), own in keys.items():
            groups.setdefault((source, hook, variant), {})[seed] = own
        for group, saes in groups.items():
            yield from self._rows_of_source(group, saes)
        for (first, saes), (second, others) in combinations(groups.items(), 2):
            if first[1:] == second[1:]:
                yield from self._rows_between(first, saes, second[0], others)

    def _rows_of_source(self, group: Group, saes: Mapping[int, Mapping[str, Key]]) -> Iterator[EvalResult]:
        where = dict(zip(("source", "hook", "variant"), group, strict=True))
        names = list(next(iter(saes.values())))
        for metric in PROBE_METRICS:
            for name in names:
                if name == "raw":
                    continue
                results = [self.metrics[metric, own[name]] for own in saes.values()]
                value, interval = self._over_saes(results)
                yield self._row(metric, value, interval, len(saes), name, **where)
            for name in names:
                for other in AGAINST:
                    if name in AGAINST or name == "residual" or (other == "random_sae" and name != "latents"):
                        continue
                    pairs = [self._difference(metric, own[name], own[other]) for own in saes.values()]
                    value, interval = self._over_saes(pairs)
                    yield self._difference_row(
                        metric, value, interval, len(saes), f"{name} - {other}",
                        headline=other == "raw" and name in ("latents", "reconstruction"), **where,
                    )  # fmt: skip

    def _rows_between(
        self,
        first: Group,
        saes: Mapping[int, Mapping[str, Key]],
        other: str,
        others: Mapping[int, Mapping[str, Key]],
    ) -> Iterator[EvalResult]:
        """SAEs of one seed are compared: they began alike."""
        where = dict(zip(("source", "hook", "variant"), first, strict=True))
        seeds = [seed for seed in saes if seed in others]
        pair = f"latents of {first[0]} - latents of {other}"
        for metric in PROBE_METRICS:
            if not seeds:
                reason = f"{first[0]} and {other} have no SAE seed in common"
                none = Interval(None, None, reason)
                yield self._difference_row(metric, None, none, 0, pair, headline=True, **where)
                continue
            pairs = [
                self._difference(metric, saes[seed]["latents"], others[seed]["latents"]) for seed in seeds
            ]
            value, interval = self._over_saes(pairs)
            yield self._difference_row(metric, value, interval, len(seeds), pair, headline=True, **where)

    def _difference(self, metric: ProbeMetric, one: Key, other: Key) -> tuple[float, np.ndarray]:
        (value, resampled), (other_value, other_resampled) = (
            self.metrics[metric, one],
            self.metrics[metric, other],
        )
        return value - other_value, resampled - other_resampled

    def _over_saes(self, results: Sequence[tuple[float, np.ndarray]]) -> tuple[float, Interval]:
        values = [value for value, _ in results]
        resampled = np.stack([draws for _, draws in results], axis=1)
        return float(np.mean(values)), nested_interval(values, resampled, self.n)

    def _row(
        self,
        metric: ProbeMetric,
        value: float | None,
        interval: Interval,
        n: int,
        representation: str,
        **where: Any,
    ) -> EvalResult:
        return EvalResult(
            metric=f"probe_{metric}", value=value, unit=UNITS[metric], n=n, ci_low=interval.low,
            ci_high=interval.high, reason=interval.reason, dataset=self.task, condition=representation, **where,
        )  # fmt: skip

    def _difference_row(
        self,
        metric: ProbeMetric,
        value: float | None,
        interval: Interval,
        n: int,
        pair: str,
        *,
        headline: bool,
        **where: Any,
    ) -> EvalResult:
        return EvalResult(
            metric="probe_difference", value=value, unit=UNITS[metric], n=n, ci_low=interval.low,
            ci_high=interval.high, reason=interval.reason, dataset=self.task, condition=f"{metric}: {pair}",
            headline=headline and metric == self.headline, **where,
        )  # fmt: skip
