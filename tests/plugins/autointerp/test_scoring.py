"""Correlations with known answers, and what is no score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from sae_faithful_plugins.autointerp.fragments import FeatureRecords, Record
from sae_faithful_plugins.autointerp.scoring import (
    CONSTANT,
    CONSTANT_TRUTH,
    FEW_RANDOM,
    NO_SPREAD,
    NONE_SCORED,
    Missing,
    correlation,
    exchanged,
    feature_interval,
    simulation_scores,
)
from sae_faithful_plugins.autointerp.splits import Split


def split(n_random: int = 20, seed: int = 0, size: int = 64) -> Split:
    """A feature with heavy-tailed activations, a few in each fragment."""
    rng = np.random.default_rng(seed)

    def record(row: int, scale: float) -> Record:
        activations = np.zeros(size)
        activations[rng.choice(size, 5, replace=False)] = scale * rng.lognormal(size=5)
        return Record(row, rng.integers(3, 60, size), activations)

    top = [record(row, 5.0) for row in range(20)]
    random = [record(100 + row, 1.0) for row in range(n_random)]
    made = Split.of(FeatureRecords(0, 40, top, random, []))
    assert made is not None
    return made


def scores(one: Split, predict: Callable[[Record], np.ndarray | Missing]) -> dict[str, float | Missing]:
    return simulation_scores(one, [predict(record) for record in one.valid])


def test_oracle_simulator_scores_exactly_1() -> None:
    for seed in range(20):
        found = scores(split(seed=seed), lambda record: record.activations)
        assert found == {"top_and_random": 1.0, "top_only": 1.0, "random_only": 1.0}


def test_scaled_and_offset_oracle_still_scores_1() -> None:
    found = scores(split(), lambda record: 7 + 0.3 * record.activations)
    assert list(found.values()) == pytest.approx([1, 1, 1], abs=1e-12)
    opposite = scores(split(), lambda record: -record.activations)
    assert list(opposite.values()) == pytest.approx([-1, -1, -1], abs=1e-12)


def test_constant_prediction_is_no_score_and_says_why() -> None:
    found = scores(split(), lambda record: np.full(64, 3.0))
    assert set(found.values()) == {Missing(CONSTANT)}
    assert correlation(np.arange(4.0), np.zeros(4)) == Missing(CONSTANT_TRUTH)


def test_predictions_constant_in_each_fragment_are_scored_by_their_differences() -> None:
    # Constant within, but not over the concatenation.
    found = scores(split(), lambda record: np.full(64, record.activations.max()))
    assert isinstance(found["top_and_random"], float)
    assert found["top_and_random"] > 0


def test_random_predictions_score_near_0() -> None:
    found: list[float] = []
    for seed in range(200):
        rng = np.random.default_rng(1_000 + seed)
        value = scores(split(seed=seed), lambda record, rng=rng: rng.random(64))["top_and_random"]
        assert isinstance(value, float)
        found.append(value)
    # The standard deviation of a correlation over 640 tokens is 1/√639 = .0396; of a mean of 200, .0028.
    assert abs(np.mean(found)) < 3 * 0.0028
    assert np.mean(np.abs(found) < 2 * 0.0396) > 0.9
    assert np.max(np.abs(found)) < 4 * 0.0396


def test_the_correlation_is_of_concatenated_tokens_not_the_mean_of_fragments() -> None:
    # By hand: two fragments, in each of which the order is reversed, while the second is stronger throughout.
    actual = [np.array([0.0, 1.0]), np.array([10.0, 11.0])]
    predicted = [np.array([1.0, 0.0]), np.array([11.0, 10.0])]
    each = [correlation(p, a) for p, a in zip(predicted, actual, strict=True)]
    assert each == [-1.0, -1.0]
    # Deviations ±5.5 and ±4.5 against ±4.5 and ±5.5: 4·24.75 / (2·30.25 + 2·20.25) = 99/101.
    assert correlation(np.concatenate(predicted), np.concatenate(actual)) == pytest.approx(99 / 101)


def test_scores_are_of_the_concatenation_too() -> None:
    one = split()
    shifted = scores(one, lambda record: record.activations + 50.0 * (record.row >= 100))
    # Perfect in every fragment, and in each half.
    assert shifted["top_only"] == pytest.approx(1)
    assert shifted["random_only"] == pytest.approx(1)
    assert isinstance(shifted["top_and_random"], float)
    assert shifted["top_and_random"] < 0.2


def test_a_subset_with_a_failed_fragment_is_missing_and_the_other_is_not() -> None:
    def fails_on_random(record: Record) -> np.ndarray | Missing:
        return Missing("time-out") if record.row == 104 else record.activations

    assert scores(split(), fails_on_random) == {
        "top_and_random": Missing("time-out"), "top_only": 1.0, "random_only": Missing("time-out"),
    }  # fmt: skip


def test_a_feature_without_random_fragments_has_its_top_score_alone() -> None:
    found = scores(split(n_random=13), lambda record: record.activations)
    assert found == {
        "top_and_random": Missing(FEW_RANDOM), "top_only": 1.0, "random_only": Missing(FEW_RANDOM),
    }  # fmt: skip


def test_interval_over_features_by_hand() -> None:
    values = [0.1, 0.3] * 8
    low, high, reason = feature_interval(values)
    # Mean .2, standard deviation .1·√(16/15), over √16; t(.975, 15) = 2.13145.
    assert low == pytest.approx(0.2 - 2.13145 * 0.1 * (16 / 15) ** 0.5 / 4, abs=1e-6)
    assert high == pytest.approx(0.4 - low)
    assert reason is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [([], NONE_SCORED), ([0.1] * 9, "9 features; an interval needs at least 10"), ([1.0] * 10, NO_SPREAD)],
)
def test_reasons_for_no_interval(values: Sequence[float], reason: str) -> None:
    assert feature_interval(values) == (None, None, reason)


def test_exchanged_explanations_are_all_used_once_and_none_stays_where_it_was() -> None:
    latents = list(range(5, 25))
    given = exchanged(latents, seed=3)
    assert sorted(given) == sorted(given.values()) == latents
    assert all(latent != other for latent, other in given.items())
    assert given == exchanged(latents, seed=3) != exchanged(latents, seed=4)
