from __future__ import annotations

import numpy as np
import pytest

from sae_faithful.metrics.jackknife import NO_SPREAD, jackknife


def mean(totals: list[np.ndarray]) -> float:
    return totals[0][0] / totals[0][1]


def test_a_mean_has_the_ordinary_t_interval() -> None:
    # 50 clusters of one thing each, 0 and 2 in turn: mean 1, s² = 50/49, SE = √(50/49/50) = 1/7;
    # t with 49 degrees is 2.009575.
    sample = np.column_stack([np.tile([0.0, 2.0], 25), np.ones(50)])
    value, (low, high, reason) = jackknife([sample], mean)
    assert (value, reason) == (1, None)
    assert (low, high) == pytest.approx((1 - 2.009575 / 7, 1 + 2.009575 / 7), abs=1e-6)


def test_variances_of_independent_samples_add() -> None:
    sample = np.column_stack([np.tile([0.0, 2.0], 25), np.ones(50)])
    value, (low, high, _) = jackknife([sample, sample], lambda t: mean(t[:1]) - mean(t[1:]))
    assert value == 0
    assert (low, high) == pytest.approx((-2.009575 * 2**0.5 / 7, 2.009575 * 2**0.5 / 7), abs=1e-6)


def test_fewer_than_fifty_clusters_and_clusters_all_alike_have_a_reason_instead() -> None:
    alike = np.ones((50, 2))
    assert jackknife([alike], mean) == (1, (None, None, NO_SPREAD))
    assert jackknife([alike, alike[:49]], mean) == (
        1,
        (None, None, "49 sequences; an interval needs at least 50"),
    )
