"""How well a linear probe tells two classes apart, and paired differences between probes of the same texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from scipy import special, stats

from sae_faithful.metrics.intervals import (
    LEVEL,
    MIN_CLUSTERS,
    N_RESAMPLES,
    NO_SPREAD,
    Interval,
    percentile_interval,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int

ProbeMetric = Literal["accuracy", "macro_f1", "auc", "mcc"]
PROBE_METRICS: tuple[ProbeMetric, ...] = get_args(ProbeMetric)


def probe_metric(
    metric: ProbeMetric, labels: Int[np.ndarray, " texts"], scores: Float[np.ndarray, " texts"]
) -> float:
    """One metric of a binary probe, by scikit-learn. Higher is better in all four.

    `accuracy` is the share of texts told right; `macro_f1` the mean of the F1 of both classes; `auc` the
    probability that a text of class 1 scores above one of class 0, ties counting half; `mcc` the correlation of
    labels and predictions (Matthews 1975), 0 where either is constant.

    Args:
        metric: which.
        labels: 0 or 1; both occur.
        scores: log odds of class 1; above 0, class 1 is predicted.
    """
    from sklearn import metrics

    predicted = (scores > 0).astype(np.int64)
    if metric == "accuracy":
        return float(metrics.accuracy_score(labels, predicted))
    if metric == "macro_f1":
        return float(metrics.f1_score(labels, predicted, labels=[0, 1], average="macro"))
    if metric == "auc":
        return float(metrics.roc_auc_score(labels, scores))
    return float(metrics.matthews_corrcoef(labels, predicted))


def draw_texts(n_texts: int, rng: np.random.Generator, n_resamples: int = N_RESAMPLES) -> np.ndarray:
    """Bootstrap draws of texts: how often each was drawn, [resamples, texts]; one matrix serves all probes."""
    weights = rng.multinomial(n_texts, np.full(n_texts, 1 / n_texts), size=n_resamples)
    return weights.astype(np.float32)


def resampled_metric(
    metric: ProbeMetric,
    labels: Int[np.ndarray, " texts"],
    scores: Float[np.ndarray, " texts"],
    weights: Float[np.ndarray, "resamples texts"],
) -> Float[np.ndarray, " resamples"]:
    """`probe_metric` of every draw of texts; NaN in draws without one of the classes (AUC alone).

    Equal to scikit-learn's on the drawn texts, without a call of it a draw.
    """
    if metric == "auc":
        return _resampled_auc(labels, scores, weights)
    predicted = scores > 0
    cells = np.stack([(labels == i) & (predicted == j) for i in (0, 1) for j in (0, 1)], axis=1)
    tn, fp, fn, tp = (weights @ cells.astype(weights.dtype)).astype(np.float64).T
    if metric == "accuracy":
        return (tn + tp) / (tn + fp + fn + tp)
    if metric == "macro_f1":
        return (_ratio(2 * tp, 2 * tp + fp + fn) + _ratio(2 * tn, 2 * tn + fp + fn)) / 2
    return _ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def texts_interval(
    metric: ProbeMetric,
    value: float,
    resampled: Float[np.ndarray, " resamples"],
    labels: Int[np.ndarray, " texts"],
) -> Interval:
    """Interval over test texts of one probe's metric: `percentile_interval`, but for the AUC.

    An AUC near 1 has a long tail downwards and none upwards, which resamples of few texts miss: its interval is
    logit(AUC) ± t · SD of the resamples' logits, back on the scale of the AUC (Pepe 2003, section 5.2.3). An AUC of
    0 or 1 counts as half a pair of texts away from it, and draws that are all alike show no spread.
    """
    n = len(labels)
    if n < MIN_CLUSTERS:
        return too_few_texts(n)
    if metric != "auc":
        return percentile_interval(resampled, n)
    positive = int(labels.sum())
    half_a_pair = 0.5 / (positive * (n - positive))
    draws = resampled[np.isfinite(resampled)]
    if np.ptp(draws) == 0:
        return Interval(None, None, NO_SPREAD)
    centre, logits = (special.logit(np.clip(one, half_a_pair, 1 - half_a_pair)) for one in (value, draws))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * logits.std(ddof=1))
    # What half a pair took away at 0 and 1 is no reason to leave the value itself outside.
    low, high = float(special.expit(centre - half)), float(special.expit(centre + half))
    return Interval(min(low, value), max(high, value))


def nested_interval(
    values: Sequence[float], resampled: Float[np.ndarray, "resamples saes"], n_texts: int
) -> Interval:
    """Interval of the mean over S SAEs of one number each, all measured on the same test texts.

    The spread over SAEs is s²/S, s² the sample variance of the values. What all SAEs share through the texts
    they are measured on is the mean covariance, over pairs of SAEs, of their values in the same bootstrap draws of
    texts; what the texts do to one SAE alone is in s² already. SE² is the sum; bounds by Student's t with
    Satterthwaite's degrees of freedom, at least S − 1. (To draw SAEs with replacement instead would make the spread
    (S−1)/S of what it is, and the interval of three SAEs far too narrow.)

    Args:
        values: one an SAE: a metric, or a difference of two of them.
        resampled: the same in each draw of texts; the draws are shared by all SAEs.
        n_texts: test texts.
    """
    n = len(values)
    if n < 2:
        return Interval(None, None, "one SAE says nothing about the spread between SAEs")
    if n_texts < MIN_CLUSTERS:
        return too_few_texts(n_texts)
    draws = resampled[np.isfinite(resampled).all(axis=1)]
    covariance = np.cov(draws, rowvar=False)
    shared = max(0.0, float((covariance.sum() - np.trace(covariance)) / (n * (n - 1))))
    between = float(np.var(values, ddof=1)) / n
    mean, error = float(np.mean(values)), float(np.sqrt(between + shared))
    if error == 0:
        return Interval(mean, mean)
    degrees = (n - 1) * ((between + shared) / between) ** 2 if between > 0 else np.inf
    half = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * error
    return Interval(mean - half, mean + half)


def too_few_texts(n: int) -> Interval:
    """No interval, and why."""
    return Interval(None, None, f"{n} test texts; an interval needs at least {MIN_CLUSTERS}")


def _resampled_auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ over pairs of w⁺ w⁻ ([s⁺ > s⁻] + ½ [s⁺ = s⁻]), over Σ w⁺ Σ w⁻."""
    ties = np.unique(scores, return_inverse=True)[1]
    order = np.argsort(ties, kind="stable")
    starts = np.flatnonzero(np.diff(ties[order], prepend=-1))
    sorted_weights = weights[:, order]
    positive = labels[order] == 1
    # One column a distinct score.
    of_one = np.add.reduceat(sorted_weights * positive, starts, axis=1, dtype=np.float64)
    of_zero = np.add.reduceat(sorted_weights * ~positive, starts, axis=1, dtype=np.float64)
    below = np.cumsum(of_zero, axis=1) - of_zero / 2
    pairs = of_one.sum(axis=1) * of_zero.sum(axis=1)
    return np.divide((of_one * below).sum(axis=1), pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """0 where the denominator is, as scikit-learn has it."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
