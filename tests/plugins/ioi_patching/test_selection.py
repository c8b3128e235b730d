"""Pruning on costs known by hand, and the sizes of sets that are measured."""

from __future__ import annotations

import numpy as np
import pytest

from sae_faithful_plugins.ioi_patching.selection import prune, set_sizes, strongest

COSTS = np.array([0.5, 0.0, 0.02, 0.0, 0.2, -0.01, 0.0])
"""What each feature's absence adds to KL, whatever else is there."""


def additive(inside: np.ndarray) -> float:
    return float(COSTS[~inside].sum())


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("seed", range(5))
def test_planted_costs_are_removed_at_their_threshold_and_the_dearest_stay(seed: int) -> None:
    found = prune(additive, 7, [0.001, 0.1, 0.3], rng(seed))
    assert found.kept == (3, 2, 1)
    assert found.order[:3].tolist() == [0, 4, 2]
    assert set(found.order[3:].tolist()) == {1, 3, 5, 6}
    # Without 5, which does harm, KL is below that of all: −0.01.
    assert found.kl == pytest.approx((-0.01, 0.01, 0.21))


def test_what_is_never_removed_stands_first_the_dearest_first() -> None:
    found = prune(additive, 7, [0.001], rng())
    assert found.order[:3].tolist() == [0, 4, 2]
    assert found.kept == (3,)


def test_sets_are_nested_and_each_threshold_begins_with_what_the_last_left() -> None:
    tried: list[frozenset[int]] = []

    def seen(inside: np.ndarray) -> float:
        tried.append(frozenset(np.flatnonzero(inside).tolist()))
        return additive(inside)

    found = prune(seen, 7, [0.001, 0.1, 0.3], rng())
    assert sorted(found.order.tolist()) == list(range(7))
    sets = [set(found.order[:n].tolist()) for n in found.kept]
    assert sets[0] > sets[1] > sets[2]
    # No set is tried twice.
    assert len(set(tried)) == len(tried) == found.evaluations


def test_features_that_stand_in_for_each_other_are_not_both_removed() -> None:
    """Either of two is enough: judged one by one against all, both would go."""

    def either(inside: np.ndarray) -> float:
        return 0.0 if inside[0] or inside[1] else 1.0

    for seed in range(5):
        found = prune(either, 4, [0.01], rng(seed))
        assert found.kept == (1,)
        assert found.order[0] in (0, 1)


def test_small_losses_are_measured_from_the_last_accepted_set() -> None:
    # Each of ten removals costs 0.05, less than the threshold; together 0.5: the drift is ACDC's own.
    found = prune(lambda inside: 0.05 * float((~inside).sum()), 10, [0.06], rng())
    assert found.kept == (0,)
    assert found.kl[0] == pytest.approx(0.5)


def test_orders_are_seeded_and_differ() -> None:
    same = [prune(lambda inside: 0.0, 12, [0.1], rng(4)).order.tolist() for _ in range(2)]
    assert same[0] == same[1]
    assert prune(lambda inside: 0.0, 12, [0.1], rng(5)).order.tolist() != same[0]


def test_nothing_to_prune() -> None:
    found = prune(lambda inside: 0.3, 0, [0.1, 0.2], rng())
    assert (found.order.tolist(), found.kept, found.kl) == ([], (0, 0), (0.3, 0.3))


def test_the_strongest_are_those_with_the_largest_absolute_effect() -> None:
    assert strongest(np.array([0.1, -3.0, 0.0, 2.0, -0.2]), 3).tolist() == [1, 3, 4]
    assert strongest(np.array([0.1, -3.0]), 9).tolist() == [0, 1]


def test_sizes_begin_with_every_small_one_and_end_with_all() -> None:
    assert set_sizes(64, 64) == [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert set_sizes(20, 64) == [0, 1, 2, 3, 4, 6, 8, 12, 16, 20]
    assert set_sizes(20, 10) == [0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20]
    assert set_sizes(0, 64) == [0]
