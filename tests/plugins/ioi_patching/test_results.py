"""Rows from curves made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sae_faithful_plugins.ioi_patching.results import Series, rows_of_series

N = 60
SPREAD = 1 + 0.1 * np.sin(np.arange(N))
"""By what a pair's KLs differ from the mean's, all alike."""


def series(levels: list[list[float]], *, comparison: bool = False, area: int = 8, **where: Any) -> Series:
    """Sets of 0, 1, 2 and 4 features; one list of KLs an order; edits of 0, 1, 2, 3 a token."""
    kl = np.array(levels)[:, :, None] * SPREAD
    edits = np.broadcast_to(np.array([0.0, 1, 2, 3])[None, :, None] * 5, kl.shape)
    place = {"source": "own", "hook": "h", "variant": "main", "seed": 0, **where}
    return Series(
        where=place, sizes=[0, 1, 2, 4], lengths=np.full(N, 5.0), kl=kl, edits=edits, kl_all=kl[0, -1],
        edits_all=edits[0, -1], area_features=area, n_changed=4, comparison=comparison,
    )  # fmt: skip


def rows_by_metric(every: list[Series]) -> dict[tuple[Any, ...], Any]:
    unpatched = every[0].kl[0, 0]
    return {
        (row.metric, row.condition, row.variant, row.seed): row for row in rows_of_series(every, unpatched, 7)
    }


def test_half_and_area_by_hand() -> None:
    # Half of 4 is 2: reached with two features (1.9), not with one (2.1).
    found = rows_by_metric([series([[4.0, 2.1, 1.9, 1.0]])])
    half = found["features_to_half", None, "main", 0]
    assert half.value == 2
    assert (half.ci_low, half.reason) == (None, "every resample gives the same value: it shows no spread")
    assert found["edit_to_half", None, "main", 0].value == pytest.approx(2)
    # Trapezoids: 3.05 + 2 + 2 · 1.45 = 7.95; then 4 more features at 1: 11.95, of 8 · 4.
    area = found["area", None, "main", 0]
    assert area.value == pytest.approx(11.95 / 32)
    assert area.n == N
    assert found["kl_patched", "candidates", "main", 0].value == pytest.approx(SPREAD.mean())


def test_exactly_half_is_half() -> None:
    assert rows_by_metric([series([[4.0, 2.0, 1.0, 0.0]])])["features_to_half", None, "main", 0].value == 1


def test_an_area_that_ends_before_the_curve_does() -> None:
    found = rows_by_metric([series([[4.0, 2.0, 1.0, 0.0]], area=2)])
    # 3 + 1.5 of 2 · 4.
    assert found["area", None, "main", 0].value == pytest.approx(4.5 / 8)


def test_numbers_are_means_over_orders() -> None:
    found = rows_by_metric([series([[4.0, 2.0, 1.0, 1.0], [4.0, 3.0, 3.0, 1.0]])])
    # One feature in the first order, four in the second.
    assert found["features_to_half", None, "main", 0].value == 2.5
    assert found["edit_to_half", None, "main", 0].value == pytest.approx((1 + 3) / 2)
    # 3 + 1.5 + 2 + 4 = 10.5 and 3.5 + 3 + 4 + 4 = 14.5.
    assert found["area", None, "main", 0].value == pytest.approx(12.5 / 32)


def test_a_number_that_depends_on_the_pairs_has_an_interval() -> None:
    one = series([[4.0, 2.0, 1.0, 0.0]])
    one.kl = one.kl.copy()
    # With one feature half of the pairs are at 3 and half at 1 of 4: whether their mean is half hangs on the draw.
    one.kl[0, :, :] = np.array([4.0, 0, 1.0, 0.0])[:, None]
    one.kl[0, 1] = np.where(np.arange(N) % 2, 3.0, 1.0)
    half = rows_by_metric([one])["features_to_half", None, "main", 0]
    assert (half.value, half.ci_low, half.ci_high) == (1, 1, 2)
    # Where nothing else helps, some draws never come to half.
    one.kl[0, 2:] = 3.0
    half = rows_by_metric([one])["features_to_half", None, "main", 0]
    assert half.value == 1
    assert (half.ci_low, half.reason) == (None, "in some resamples no measured set brings KL to half")


def test_the_difference_is_the_saes_area_minus_the_comparisons() -> None:
    sae = [series([[4.0, 2.0, 1.0, 0.0]], seed=seed) for seed in (0, 1)]
    pca = series([[4.0, 4.0, 3.0, 2.0]], comparison=True, variant="pca", seed=None)
    elsewhere = series([[4.0, 0.0, 0.0, 0.0]], comparison=True, variant="pca", seed=None, hook="other")
    found = rows_by_metric([*sae, pca, elsewhere])
    difference = found["area_difference", "minus pca", "main", 0]
    # 3 + 1.5 + 1 + 0 = 5.5 minus 4 + 3.5 + 5 + 8 = 20.5, of 32.
    assert difference.value == pytest.approx(-15 / 32)
    assert difference.ci_low == pytest.approx(-15 / 32)
    source = found["area_difference", "minus pca", "main", None]
    assert (source.value, source.n, source.headline) == (pytest.approx(-15 / 32), 2, True)
    assert ("area_difference", "minus pca", "pca", None) not in found
    # The comparison's own row is its only one, and a headline.
    assert found["area", None, "pca", None].headline
    assert not found["area", None, "main", 0].headline
