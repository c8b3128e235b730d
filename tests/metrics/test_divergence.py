from __future__ import annotations

import math

import numpy as np
import pytest

from sae_faithful.metrics.divergence import (
    count_types,
    coverage,
    jensen_shannon,
    unigram_divergence,
    unigram_excess,
)


def clusters_of(frequencies: np.ndarray, n: int, rng: np.random.Generator, size: int = 50) -> np.ndarray:
    """`size` clusters of `n` tokens in all."""
    return rng.multinomial(n // size, frequencies, size=size).astype(np.float64)


def test_counts_by_hand() -> None:
    counts = count_types(np.array([7, 3, 7, 9]), np.array([0, 0, 0, 1]), np.array([3, 7, 9]))
    assert counts.tolist() == [[1, 2, 0], [0, 0, 1]]


def test_jensen_shannon_by_hand() -> None:
    # P = (½, ½), Q = (1, 0), M = (¾, ¼): KL(P‖M) = ½ ln ⅔ + ½ ln 2 = ½ ln(4/3), KL(Q‖M) = ln(4/3).
    assert jensen_shannon(np.array([5.0, 5.0]), np.array([3.0, 0.0])) == pytest.approx(0.75 * math.log(4 / 3))
    assert jensen_shannon(np.array([2.0, 1.0]), np.array([4.0, 2.0])) == pytest.approx(0, abs=1e-15)


def test_flaw_jensen_shannon_is_no_half_of_jeffreys() -> None:
    """Reference flaw: its "Jensen–Shannon" is half of Jeffreys, which is infinite where ids do not overlap."""
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(math.log(2))
    # P = (.9, .1), Q = (.1, .9): Jeffreys/2 = .8 ln 9 / 1 = 1.758; true JS = ln 2 − H(.9) = .693147 − .325083.
    found = jensen_shannon(np.array([9.0, 1.0]), np.array([1.0, 9.0]))
    assert found == pytest.approx(0.368064, abs=1e-6)


def test_flaw_the_excess_measures_text_and_not_sample_size() -> None:
    """Reference flaw: its divergence mostly measures sample size."""
    rng = np.random.default_rng(0)
    frequencies = rng.dirichlet(np.full(500, 0.5))
    raw: list[float] = []
    for n in (500, 5_000, 50_000):
        text, null, reference = (clusters_of(frequencies, n, rng) for _ in range(3))
        raw.append(unigram_divergence(text, reference)[0])
        value, (low, high, _) = unigram_excess(text, null, reference)
        assert low is not None and high is not None
        assert low < 0 < high
        assert abs(value) < raw[-1] / 4
    assert raw[0] > 5 * raw[1] > 25 * raw[2]


def test_intervals_of_the_excess_cover_a_planted_divergence() -> None:
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.full(20, 1.0), size=2)
    covered = 0
    for _ in range(200):
        text, null, reference = clusters_of(p, 5_000, rng), *(clusters_of(q, 5_000, rng) for _ in range(2))
        _, (low, high, _) = unigram_excess(text, null, reference)
        assert low is not None and high is not None
        covered += low < jensen_shannon(p, q) < high
    # 95 % of 200 is 190; fewer than 180 has a probability of .2 %.
    assert covered >= 180


def test_coverage_by_hand() -> None:
    # Fifty clusters, each with a type of its own and one that all share: 51 of 102. Leaving one out leaves 50
    # types, always: no spread.
    counts = np.concatenate([np.eye(50), np.ones((50, 1))], axis=1)
    value, interval = coverage(counts, 102)
    assert value == 0.5
    assert interval.low is None
    # Ten of the clusters without a type of their own: 41 types; left out, 41 (10 times) or 40 (40 times), mean 40.2:
    # Σ(…)² = 10 · .64 + 40 · .04 = 8, SE = √(49/50 · 8) = 2.8.
    counts[:10, :10] = 0
    value, (low, high, _) = coverage(counts, 100)
    assert value == 0.41
    assert (low, high) == pytest.approx((0.41 - 2.009575 * 0.028, 0.41 + 2.009575 * 0.028), abs=1e-6)
