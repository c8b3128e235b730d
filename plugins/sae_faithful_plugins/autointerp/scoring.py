"""How well predicted activations agree with true ones, what counts as no score, and intervals over features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful.metrics.intervals import Interval, mean_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float

    from sae_faithful import SAEHandle
    from sae_faithful_plugins.autointerp.splits import Split

SUBSETS = ("top_and_random", "top_only", "random_only")
MIN_FEATURES = 10
"""Fewer features than this say too little about their own spread for an interval."""
NO_SPREAD = "every feature has the same score: it shows no spread"
NONE_SCORED = "no feature could be scored"
CONSTANT = "constant prediction"
CONSTANT_TRUTH = "constant activations"
FEW_RANDOM = "too few random fragments"
FEW_INACTIVE = "too few inactive fragments"


@dataclass(frozen=True)
class Missing:
    """No score, or no reply, and why: never a zero."""

    reason: str


Score = float | Missing
Prediction = np.ndarray | Missing


@dataclass(frozen=True)
class Scored:
    """One kind of score of one SAE's features."""

    handle: SAEHandle
    metric: str
    unit: str
    by: str
    """Who scored it: explainer, simulator and mode; empty where there is only one way."""
    scores: Mapping[int, Mapping[str, Score]]
    """By latent, then by subset of fragments (empty: all there are)."""
    explanations: Mapping[int, str] = field(default_factory=dict[int, str])


def correlation(predicted: Float[np.ndarray, " tokens"], actual: Float[np.ndarray, " tokens"]) -> Score:
    """Pearson's correlation over tokens; no score where one of the two never varies."""
    x, y = (np.asarray(one, np.float64) for one in (predicted, actual))
    if np.ptp(y) == 0:
        return Missing(CONSTANT_TRUTH)
    if np.ptp(x) == 0:
        return Missing(CONSTANT)
    x, y = x - x.mean(), y - y.mean()
    # A root of a product: of equal factors it is exact, so that truth itself scores exactly 1.
    value = (x @ y) / np.sqrt((x @ x) * (y @ y))
    return float(np.clip(value, -1, 1)) if np.isfinite(value) else Missing(CONSTANT)


def simulation_scores(split: Split, predictions: Sequence[Prediction]) -> dict[str, Score]:
    """The three correlations of a feature, each over the concatenated tokens of its fragments.

    Args:
        split: the feature's fragments.
        predictions: of the activations in `split.valid`, in that order.

    One fragment without a prediction leaves every subset that it is in without a score.
    """
    n_top = len(split.valid_top)
    parts = {"top_and_random": slice(None), "top_only": slice(n_top), "random_only": slice(n_top, None)}
    scores: dict[str, Score] = {}
    for subset, part in parts.items():
        records, given = split.valid[part], predictions[part]
        missing = [one for one in given if isinstance(one, Missing)]
        if subset != "top_only" and not split.valid_random:
            scores[subset] = Missing(FEW_RANDOM)
        elif missing:
            scores[subset] = missing[0]
        else:
            scores[subset] = correlation(
                np.concatenate([np.asarray(one) for one in given]),
                np.concatenate([record.activations for record in records]),
            )
    return scores


def no_scores(reason: Missing, subsets: Sequence[str] = SUBSETS) -> dict[str, Score]:
    """For a feature of which nothing could be measured."""
    return dict.fromkeys(subsets, reason)


def feature_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of a mean over features, which are a sample of the SAE's."""
    if not values:
        return Interval(None, None, NONE_SCORED)
    if len(values) < MIN_FEATURES:
        return too_few_features(len(values))
    if np.ptp(values) == 0:
        return Interval(None, None, NO_SPREAD)
    return mean_interval(values)


def too_few_features(n: int) -> Interval:
    """No interval, and why."""
    return Interval(None, None, f"{n} features; an interval needs at least {MIN_FEATURES}")


def exchanged(latents: Sequence[int], seed: int) -> dict[int, int]:
    """For every latent another one whose explanation it is given: one random cycle through all of them."""
    order: Any = np.random.default_rng(seed).permutation(np.asarray(latents))
    return {int(latent): int(other) for latent, other in zip(order, np.roll(order, 1), strict=True)}
