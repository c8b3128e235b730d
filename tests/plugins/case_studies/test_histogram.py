"""Counts by token and strength, and shares with their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from sae_faithful.metrics.intervals import NO_SPREAD
from sae_faithful_plugins.case_studies.histogram import Histogram, Share, mean_share_interval


def test_a_feature_that_fires_on_one_token_has_all_its_mass_there() -> None:
    ids = np.random.default_rng(0).integers(3, 20, size=(60, 16))
    values = np.where(ids == 7, 1.5, 0.0)
    histogram = Histogram.of(values.ravel(), ids.ravel())
    assert histogram.tokens == [7]
    assert histogram.counts.tolist() == [[0] * 9 + [int((ids == 7).sum())], [0] * 10]
    share = Share.of(values, ids)
    assert share is not None
    assert (share.token, share.of_activation, share.of_positions) == (7, 1.0, 1.0)
    # Every sequence says the same: that is no reason to be certain.
    assert share.interval == (None, None, NO_SPREAD)


def test_bins_are_of_equal_width_and_hold_every_active_position() -> None:
    # Of width 0.2 from 0 to 2: the upper bound belongs to a bin, the lower does not.
    values = np.array([0.0, 0.1, 0.2, 0.21, 1.0, 1.9, 2.0, -3.0])
    ids = np.array([9, 4, 4, 4, 5, 5, 4, 9])
    histogram = Histogram.of(values, ids)
    assert histogram.largest == 2.0
    assert histogram.tokens == [4, 5]
    assert histogram.counts.tolist() == [
        [2, 1, 0, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
        [0] * 10,
    ]


def test_the_five_most_frequent_tokens_have_their_own_series_and_no_position_is_dropped() -> None:
    # Token t comes 20 − t times, and with strength t: the most frequent are not the strongest.
    ids = np.concatenate([np.full(20 - t, t) for t in range(10)])
    # More active positions than the paper's code keeps.
    ids = np.tile(ids, 60)
    values = ids + 1.0
    histogram = Histogram.of(values, ids)
    assert len(ids) > 5_000
    assert histogram.tokens == [0, 1, 2, 3, 4]
    assert histogram.counts[:5].sum(axis=1).tolist() == [60 * (20 - t) for t in range(5)]
    assert histogram.counts[5].sum() == 60 * sum(20 - t for t in range(5, 10))
    assert histogram.counts.sum() == len(ids)


def test_nothing_active() -> None:
    histogram = Histogram.of(np.array([0.0, -1.0]), np.array([4, 5]))
    assert (histogram.tokens, histogram.counts.tolist()) == ([], [[0] * 10])
    assert Share.of(np.array([[0.0, -1.0]]), np.array([[4, 5]])) is None


def test_a_share_is_of_activation_and_its_interval_is_over_sequences() -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(4, 6, size=(100, 8))
    values = np.where(ids == 4, 3.0, 1.0) * (rng.random(ids.shape) < 0.5)
    share = Share.of(values, ids)
    assert share is not None
    there = values * (ids == 4)
    assert share.token == 4
    assert share.of_activation == pytest.approx(there.sum() / values.sum())
    assert share.of_positions == pytest.approx(((values > 0) & (ids == 4)).sum() / (values > 0).sum())
    # Cochran's ratio estimator by hand.
    residuals = there.sum(axis=1) - share.of_activation * values.sum(axis=1)
    error = np.sqrt(100 / 99 * (residuals**2).sum()) / values.sum()
    low, high, _ = share.interval
    assert low is not None
    assert high is not None
    assert (high - low) / 2 == pytest.approx(1.9842 * error, rel=1e-4)
    assert (high + low) / 2 == pytest.approx(share.of_activation)


def test_few_sequences_give_no_interval() -> None:
    ids = np.tile(np.array([[4, 5]]), (49, 1))
    share = Share.of(np.ones(ids.shape), ids)
    assert share is not None
    assert share.interval.reason == "49 sequences; an interval needs at least 50"


def test_the_difference_of_a_feature_and_itself_has_no_spread_and_of_others_the_paired_one() -> None:
    rng = np.random.default_rng(2)
    ids = rng.integers(4, 8, size=(80, 8))
    one, other = (Share.of(rng.random(ids.shape), ids) for _ in range(2))
    assert one is not None
    assert other is not None
    same = mean_share_interval(0.0, [one.deviations, one.deviations], [1, -1])
    assert same == (None, None, NO_SPREAD)
    low, high, _ = mean_share_interval(0.3, [one.deviations, other.deviations], [1, -1])
    assert low is not None
    assert high is not None
    error = np.sqrt(80 / 79 * ((one.deviations - other.deviations) ** 2).sum())
    assert (high - low) / 2 == pytest.approx(1.9905 * error, rel=1e-4)
    assert (high + low) / 2 == pytest.approx(0.3)
    # A mean of two is half their sum.
    low, high, _ = mean_share_interval(0.3, [one.deviations, other.deviations])
    assert low is not None
    assert high is not None
    error = np.sqrt(80 / 79 * (((one.deviations + other.deviations) / 2) ** 2).sum())
    assert (high - low) / 2 == pytest.approx(1.9905 * error, rel=1e-4)
