"""One feature's case, and rows and columns of many."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import EvalResult
from sae_faithful.metrics.intervals import Interval, mean_interval
from sae_faithful_plugins.case_studies.histogram import Histogram, Share, mean_share_interval
from sae_faithful_plugins.case_studies.unembedding import Agreement, Unembedded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jaxtyping import Float

    from sae_faithful_plugins.case_studies.ablation import Ablation
    from sae_faithful_plugins.case_studies.observing import Neuron, Study
    from sae_faithful_plugins.case_studies.tree import Tree

METRICS = ("top_token_share", "neuron_top_token_share", "top_token_share_difference")
HEADLINES = ("top_token_share", "top_token_share_difference")
UNIT = "share of activation"
NOTHING = "no studied feature is active on the text"


class Case:
    """Everything that is known of one feature.

    Args:
        study: of its SAE.
        i: which of the study's features.
    """

    def __init__(self, study: Study, i: int) -> None:
        self.study, self.i, self.latent = study, i, study.latents[i]
        self.ablation: Ablation | None = None
        self.unembedded: Unembedded | str = "not asked for"
        self.tree: Tree | None = None
        self.document: dict[str, Any] = {}
        """In plain JSON, all but the tree."""

    @property
    def fires(self) -> bool:
        """Whether it is active on the text at all."""
        return bool((self.study.codes[self.i] > 0).any())

    @property
    def neuron(self) -> Neuron | None:
        """The most similar one."""
        return self.study.neurons[self.i]

    @cached_property
    def histogram(self) -> Histogram:
        """Of the feature."""
        return self._histogram(self.study.codes[self.i])

    @cached_property
    def neuron_histogram(self) -> Histogram:
        """Of the most similar neuron."""
        return self._histogram(self.study.neuron_values[self.i])

    @cached_property
    def share(self) -> Share | None:
        """Of the feature's activation on one token."""
        return Share.of(self.study.codes[self.i], self.study.ids)

    @cached_property
    def neuron_share(self) -> Share | None:
        """The same of the neuron."""
        return Share.of(self.study.neuron_values[self.i], self.study.ids)

    @cached_property
    def agreement(self) -> Agreement | None:
        """Of direct unembedding and ablation."""
        if self.ablation is None or not isinstance(self.unembedded, Unembedded):
            return None
        return self.unembedded.agreement(self.ablation.mean)

    def _histogram(self, values: Float[np.ndarray, "rows context"]) -> Histogram:
        return Histogram.of(values.ravel(), self.study.ids.ravel())


def rows(cases: Mapping[Study, Sequence[Case]]) -> Iterator[EvalResult]:
    """Means over the studied features of every SAE, and means of these over the SAEs of a source.

    Features are chosen, not sampled, so that intervals of an SAE are over sequences: what these features would give
    on other text of the kind.
    """
    of_saes: dict[tuple[str, str, str, str], list[EvalResult]] = {}
    for study, found in cases.items():
        for metric, (value, interval, n) in _means(found).items():
            row = _row(metric, value, interval, n, study.handle.identity)
            handle = study.handle
            of_saes.setdefault((metric, handle.source, handle.hook, handle.variant), []).append(row)
            yield row
    for (metric, source, hook, variant), found in of_saes.items():
        values = [row.value for row in found if row.value is not None]
        interval = mean_interval(values) if values else Interval(None, None, NOTHING)
        yield _row(
            metric, float(np.mean(values)) if values else None, interval, len(values),
            {"source": source, "hook": hook, "variant": variant, "headline": metric in HEADLINES},
        )  # fmt: skip


def _means(cases: Sequence[Case]) -> dict[str, tuple[float | None, Interval, int]]:
    """Of each metric the mean over features, its interval over rows, and how many features there were.

    Features and neurons are measured on the same rows, so that the interval of the difference is a paired one.
    """
    pairs = [(case.share, case.neuron_share) for case in cases]
    own = [one for one, _ in pairs if one is not None]
    neurons = [one for _, one in pairs if one is not None]
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    found: dict[str, tuple[float | None, Interval, int]] = {}
    for metric, shares in zip(METRICS[:2], (own, neurons), strict=True):
        found[metric] = _mean(shares, [])
    found[METRICS[2]] = _mean([one for one, _ in both], [other for _, other in both])
    return found


def _mean(shares: Sequence[Share], subtracted: Sequence[Share]) -> tuple[float | None, Interval, int]:
    if not shares:
        return None, Interval(None, None, NOTHING), 0
    signs = [1] * len(shares) + [-1] * len(subtracted)
    every = [*shares, *subtracted]
    total = sum(sign * one.of_activation for sign, one in zip(signs, every, strict=True))
    value = float(total / len(shares))
    return value, mean_share_interval(value, [one.deviations for one in every], signs), len(shares)


def _row(
    metric: str, value: float | None, interval: Interval, n: int, where: Mapping[str, Any]
) -> EvalResult:
    low, high, reason = interval
    return EvalResult(
        metric=metric, value=value, unit=UNIT, n=n, ci_low=low, ci_high=high, reason=reason, **where
    )


def columns(study: Study, cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Numbers of the studied features; empty in all others, and where a feature has none."""
    names = (
        "rate", "top_token", "top_token_share", "neuron", "neuron_similarity", "neuron_top_token_share",
        "next_token_change", "unembedding_pearson", "unembedding_spearman",
    )  # fmt: skip
    found = {name: np.full(study.handle.d_sae, np.nan) for name in names}
    n_tokens = max(int(study.mask.sum()), 1)
    for case in cases:
        values: dict[str, float] = {"rate": float((study.codes[case.i] > 0).sum() / n_tokens)}
        if case.share is not None:
            values |= {"top_token": case.share.token, "top_token_share": case.share.of_activation}
        if case.neuron is not None:
            values |= {"neuron": case.neuron.index, "neuron_similarity": case.neuron.similarity}
        if case.neuron_share is not None:
            values["neuron_top_token_share"] = case.neuron_share.of_activation
        if case.ablation is not None and case.ablation.next_token_change is not None:
            values["next_token_change"] = case.ablation.next_token_change[0]
        if case.agreement is not None:
            values["unembedding_pearson"] = case.agreement.pearson
            values["unembedding_spearman"] = case.agreement.spearman
        for name, value in values.items():
            found[name][case.latent] = value
    return found
