"""From the rows of sae-probes to ours: one score an SAE, means over datasets and SAEs, paired differences."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import EvalResult
from sae_faithful.metrics.intervals import Interval, mean_interval
from sae_faithful.metrics.paired import difference_interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sae_faithful import SAEHandle

METRICS = {
    "test_auc": ("benchmark_auc", "probability"),
    "test_acc": ("benchmark_accuracy", "share of texts"),
    "test_f1": ("benchmark_f1", "F1"),
}
"""Metric and unit by sae-probes's name."""
AUC = "test_auc"
DIFFERENCE = "benchmark_auc_difference"
BASELINE = "logreg"
ONE_SPLIT = "sae-probes gives one score of one split, which shows no spread"

Who = int | str
"""An SAE's place among the handles, or the hook whose activations the baseline reads."""
Values = dict[Who, float]


@dataclass(frozen=True)
class Probe:
    """One kind of probe, the same for every SAE and dataset."""

    representation: str
    """`k=16`, or the baseline's `logreg`."""
    split: str = ""
    """What the setting varies: `,n_train=64` or `,positive=0.05`."""

    @classmethod
    def of(cls, row: Mapping[str, Any], setting: str) -> Probe:
        """The probe of one of sae-probes's rows."""
        representation = f"k={row['k']}" if "sae" in row else BASELINE
        if setting == "scarcity":
            return cls(representation, f",n_train={row['num_train']}")
        if setting == "imbalance":
            return cls(representation, f",positive={row['frac']:.2f}")
        return cls(representation)

    def __str__(self) -> str:
        return self.representation + self.split


@dataclass(frozen=True)
class Benchmark:
    """All scores of one run of sae-probes."""

    handles: Sequence[SAEHandle]
    sizes: Mapping[str, int]
    """Texts of each dataset, and datasets in their mean."""
    values: Mapping[str, Mapping[Probe, Mapping[str, Values]]]
    """By sae-probes's name of the metric, probe and dataset."""

    @classmethod
    def of(
        cls,
        raw: Sequence[Mapping[str, Any]],
        handles: Sequence[SAEHandle],
        n_texts: Mapping[str, int],
        setting: str,
    ) -> Benchmark:
        """Sort the rows, and add the mean over datasets where a probe has a score on all of them."""
        mean = f"mean of {len(n_texts)} datasets"
        values: dict[str, dict[Probe, dict[str, Values]]] = {metric: {} for metric in METRICS}
        for row in raw:
            who: Who = row["sae"] if "sae" in row else row["hook_name"]
            for metric in METRICS:
                probes = values[metric].setdefault(Probe.of(row, setting), {})
                probes.setdefault(row["dataset"], {})[who] = float(row[metric])
        for probes in values.values():
            for datasets in probes.values():
                if len(datasets) == len(n_texts):
                    everyone = next(iter(datasets.values()))
                    datasets[mean] = {
                        who: float(np.mean([scores[who] for scores in datasets.values()])) for who in everyone
                    }
        return cls(handles, {**n_texts, mean: len(n_texts)}, values)

    def rows(self) -> Iterator[EvalResult]:
        """Rows of every SAE and baseline, of every source, and of differences of AUC."""
        groups: dict[tuple[str, str, str], dict[int, int]] = defaultdict(dict)
        for i, handle in enumerate(self.handles):
            groups[handle.source, handle.hook, handle.variant][handle.seed] = i
        for metric, probes in self.values.items():
            for probe, datasets in probes.items():
                for dataset, scores in datasets.items():
                    yield from self._rows_of_probes(metric, probe, dataset, scores)
                    if probe.representation != BASELINE:
                        yield from self._rows_of_sources(metric, probe, dataset, scores, groups)

    def _rows_of_probes(
        self, metric: str, probe: Probe, dataset: str, scores: Values
    ) -> Iterator[EvalResult]:
        name, unit = METRICS[metric]
        for who, value in scores.items():
            where: dict[str, Any] = {"hook": who} if isinstance(who, str) else self.handles[who].identity
            yield EvalResult(
                metric=name, value=value, unit=unit, n=self.sizes[dataset], reason=ONE_SPLIT,
                dataset=dataset, condition=str(probe), **where,
            )  # fmt: skip

    def _rows_of_sources(
        self,
        metric: str,
        probe: Probe,
        dataset: str,
        scores: Values,
        groups: Mapping[tuple[str, str, str], Mapping[int, int]],
    ) -> Iterator[EvalResult]:
        name, unit = METRICS[metric]
        for (source, hook, variant), members in groups.items():
            where: dict[str, Any] = {"source": source, "hook": hook, "variant": variant, "dataset": dataset}
            own = {seed: scores[i] for seed, i in members.items()}
            low, high, reason = mean_interval(list(own.values()))
            yield EvalResult(
                metric=name, value=_mean(own), unit=unit, n=len(own), ci_low=low, ci_high=high,
                reason=reason, condition=str(probe), **where,
            )  # fmt: skip
            if metric == AUC:
                floor = self.values[AUC][Probe(BASELINE, probe.split)][dataset][hook]
                pair = f"{probe.representation} - {BASELINE}{probe.split}"
                yield _difference(where, pair, {seed: value - floor for seed, value in own.items()})
        if metric != AUC:
            return
        for (first, members), (second, others) in combinations(groups.items(), 2):
            if first[1:] != second[1:]:
                continue
            where = dict[str, Any](zip(("source", "hook", "variant"), first, strict=True)) | {
                "dataset": dataset
            }
            pair = (
                f"{probe.representation} of {first[0]} - {probe.representation} of {second[0]}{probe.split}"
            )
            # SAEs of one seed are compared: they began alike.
            paired = {seed: scores[i] - scores[others[seed]] for seed, i in members.items() if seed in others}
            none = f"{first[0]} and {second[0]} have no SAE seed in common"
            yield _difference(where, pair, paired, none)


def _difference(
    where: Mapping[str, Any], pair: str, by_seed: Mapping[int, float], none: str = ""
) -> EvalResult:
    """A paired difference of AUC; the report's table shows those of means over datasets.

    `none` says why no SAE gives one.
    """
    interval = Interval(None, None, none)
    if by_seed:
        interval = difference_interval({(seed,): value for seed, value in by_seed.items()})
    return EvalResult(
        metric=DIFFERENCE, value=_mean(by_seed) if by_seed else None, unit=METRICS[AUC][1], n=len(by_seed),
        ci_low=interval.low, ci_high=interval.high, reason=interval.reason, condition=pair,
        headline=where["dataset"].startswith("mean of "), **where,
    )  # fmt: skip


def _mean(by_seed: Mapping[int, float]) -> float:
    return float(np.mean(list(by_seed.values())))
