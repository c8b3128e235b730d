from __future__ import annotations

import math

import numpy as np
import pytest

from sae_faithful.metrics.jackknife import NO_SPREAD
from sae_faithful.metrics.sae_shift import firing_shift, fvu, fvu_excess


def test_fvu_by_hand() -> None:
    # x = (1, 0) and (0, 1), mean (½, ½): Σ‖x − x̄‖² = 2 − (1 + 1)/2 = 1; errors of .25 in all.
    assert fvu(np.array([2, 0.25, 2, 1, 1])) == 0.25
    # Activations that never vary: nothing to explain.
    assert fvu(np.array([2, 0.0, 8, 4, 0])) == 0
    assert fvu(np.array([2, 0.1, 8, 4, 0])) == 1


def test_fvu_excess_by_hand() -> None:
    text = np.tile([2, 0.25, 2, 1, 1], (60, 1))
    reference = np.tile([2, 0.10, 2, 1, 1], (60, 1))
    value, interval = fvu_excess(text, reference)
    assert value == pytest.approx(0.15)
    assert interval.reason == NO_SPREAD
    # Errors of 0 and .5 in turn have the same mean, and a spread.
    text[::2, 1], text[1::2, 1] = 0, 0.5
    value, (low, high, _) = fvu_excess(text, reference)
    assert low is not None and high is not None
    # FVU = Σ error / 60: SD of the errors √(60/59)/4, over √60: SE = 1/(4√59) = .032547; t(59) = 2.000995.
    assert value == pytest.approx(0.15)
    assert (high - low) / 2 == pytest.approx(2.000995 * 0.032547, rel=1e-3)


def test_firing_shift_by_hand() -> None:
    # 99 tokens a side. Latent 0 fires on 49 and on 24: rates .495 and .245; latent 1 on none: .005 both.
    text, reference = np.array([[99.0, 49, 0]]), np.array([[99.0, 24, 0]])
    expected = 0.495 * math.log(0.495 / 0.245) + 0.505 * math.log(0.505 / 0.755)
    assert firing_shift(text, reference)[0] == pytest.approx(expected)
    assert firing_shift(text, text)[0] == 0


def test_a_latent_that_never_fired_on_the_reference_costs_a_finite_sum() -> None:
    # Rates .995 and .005: .995 ln 199 + .005 ln(1/199) = .99 ln 199.
    value, _ = firing_shift(np.array([[99.0, 99]]), np.array([[99.0, 0]]))
    assert value == pytest.approx(0.99 * math.log(199))


def test_intervals_cover_a_planted_shift() -> None:
    rng = np.random.default_rng(0)
    p, q = np.array([0.3, 0.1, 0.5]), np.array([0.2, 0.1, 0.6])
    truth = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum()
    covered = 0
    for _ in range(200):
        samples = [
            np.concatenate([np.full((60, 1), 100.0), rng.binomial(100, rates, (60, 3))], axis=1)
            for rates in (p, q)
        ]
        _, (low, high, _) = firing_shift(samples[0], samples[1])
        assert low is not None and high is not None
        covered += low < truth < high
    assert covered >= 180
