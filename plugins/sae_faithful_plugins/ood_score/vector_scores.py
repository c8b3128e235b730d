"""Scores at one hook: of activations alone, and of what the SAEs make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import EvalResult, Trial, derive_seed
from sae_faithful.metrics.auc import group_units
from sae_faithful.metrics.intervals import Interval, mean_interval
from sae_faithful.metrics.sae_shift import firing_shift, fvu_excess
from sae_faithful.metrics.two_sample import FOLDS, classifier_auc, knn_distance, mahalanobis, mean_over_tokens
from sae_faithful_plugins.ood_score.results import Measurement, Value, rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sae_faithful import SAEHandle
    from sae_faithful_plugins.ood_score.halves import Sample, Samples

LATENTS_PER_CHUNK = 2**24
"""At most so many latents (64 MiB in float32) are held at a time."""


def knn_distances(samples: Samples, k: int) -> dict[str, Value]:
    """Mean distance of each text's vectors to their k-th nearest reference."""
    if samples.n < k:
        return _missing(samples, "fewer reference vectors than k")
    return {
        name: Value(
            *mean_over_tokens(knn_distance(sample.vectors, samples.reference.vectors, k), sample.units),
            samples.n,
        )
        for name, sample in samples.texts.items()
    }


def classifier_aucs(samples: Samples, seed: int) -> dict[str, Value]:
    """How well a classifier tells each text's vectors from the reference's, on documents it has not seen."""
    documents = (len(np.unique(one.units)) for one in [samples.reference, *samples.texts.values()])
    if min(documents) < FOLDS:
        return _missing(samples, f"fewer than {FOLDS} documents in a half: not enough for the folds")
    reference = samples.reference
    return {
        name: Value(
            *classifier_auc(
                sample.vectors, sample.units, reference.vectors, reference.units,
                np.random.default_rng(derive_seed(seed, "ood_score", "classifier_auc")),
            ),
            samples.n,
        )
        for name, sample in samples.texts.items()
    }  # fmt: skip


TRIED_VECTORS = 1_000


def vector_trials(scores: Sequence[str], n: int, d_in: int, k: int, times: int) -> list[Trial]:
    """Of the scores that compare vectors with vectors, on random ones: `times` texts with `n` vectors each."""
    tried = max(k + 1, min(n, TRIED_VECTORS))

    def vectors() -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        drawn = rng.standard_normal((2, tried, d_in)).astype(np.float32)
        return drawn[0], drawn[1]

    def classify() -> None:
        one, other = vectors()
        units = np.arange(tried) // 10
        classifier_auc(one, units, other, units, np.random.default_rng(0))

    trials: list[Trial] = []
    if "knn" in scores:
        trials.append(Trial(run=lambda: knn_distance(*vectors(), k), times=times * (n / tried) ** 2))
    if "classifier" in scores:
        trials.append(Trial(run=classify, times=times * n / tried))
    return trials


def mahalanobis_distances(samples: Samples) -> dict[str, Value]:
    """Mean squared Mahalanobis distance of each text's vectors from the reference's, divided by d."""
    return {
        name: Value(
            *mean_over_tokens(mahalanobis(sample.vectors, samples.reference.vectors), sample.units), samples.n
        )
        for name, sample in samples.texts.items()
    }


def _missing(samples: Samples, reason: str) -> dict[str, Value]:
    return {name: Value(None, Interval(None, None, reason), samples.n) for name in samples.texts}


def sae_rows(
    handles: Sequence[SAEHandle], samples: Samples, reference: str, place: Mapping[str, Any]
) -> Iterator[EvalResult]:
    """`fvu_excess` and `firing_shift` of every SAE, and their means over the SAEs of a source."""
    values: dict[tuple[str, ...], list[float]] = {}
    for handle in handles:
        first = _sae_sums(handle, samples.reference)
        sums = {name: _sae_sums(handle, sample) for name, sample in samples.texts.items()}
        for column, (metric, measure) in enumerate(
            (("fvu_excess", fvu_excess), ("firing_shift", firing_shift))
        ):
            of_text = {
                name: Value(*measure(one[column], first[column]), samples.n) for name, one in sums.items()
            }
            for row in rows(Measurement(metric, of_text), reference, {**place, **handle.identity}):
                yield row
                assert row.value is not None and row.dataset is not None
                key = (row.metric, row.unit, handle.source, handle.hook, handle.variant, row.dataset)
                values.setdefault(key, []).append(row.value)
    for (metric, unit, source, hook, variant, dataset), seeds in values.items():
        low, high, reason = mean_interval(seeds)
        yield EvalResult(
            metric=metric, value=float(np.mean(seeds)), unit=unit, n=len(seeds), ci_low=low, ci_high=high,
            reason=reason, source=source, hook=hook, variant=variant, dataset=dataset, **place,
        )  # fmt: skip


def _sae_sums(handle: SAEHandle, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Per cluster of documents: the sums `fvu` takes, and the number of tokens before each latent's firings."""
    import torch

    clusters = group_units(sample.units)
    shape = int(clusters[-1]) + 1
    errors = np.zeros((shape, 3 + sample.vectors.shape[1]))
    firings = np.zeros((shape, 1 + handle.d_sae))
    step = max(1, LATENTS_PER_CHUNK // handle.d_sae)
    for start in range(0, len(clusters), step):
        part = torch.from_numpy(sample.vectors[start : start + step])
        latents = handle.encode(part)
        reconstruction = handle.decode(latents, part).to(part.device)
        exact = part.double()
        square = (exact - reconstruction.double()).square().sum(1, keepdim=True)
        one = torch.ones_like(square)
        columns = torch.cat([one, square, exact.square().sum(1, keepdim=True), exact], dim=1)
        where = torch.from_numpy(clusters[start : start + step])
        # Clusters are runs of neighbours: each chunk touches few.
        for cluster in where.unique().tolist():
            mine = where == cluster
            errors[cluster] += columns[mine].sum(0).numpy()
            firings[cluster, 0] += int(mine.sum())
            firings[cluster, 1:] += (latents[mine.to(latents.device)] > 0).sum(0).cpu().numpy()
    return errors, firings
