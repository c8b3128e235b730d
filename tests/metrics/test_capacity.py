"""Capacity and features per neuron, on directions whose sharing is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_faithful.metrics import capacity
from sae_faithful.metrics.capacity import axes, capacities, distinct, features_per_neuron, random_rows


def test_orthogonal_directions_have_a_dimension_each_whatever_their_length() -> None:
    rows = torch.diag(torch.tensor([1.0, 5.0, 0.01]))
    np.testing.assert_allclose(capacities(rows), 1)


def test_features_that_point_the_same_way_share_a_dimension() -> None:
    rows = torch.tensor([[1.0, 0, 0], [3.0, 0, 0], [2.0, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(capacities(rows), [1 / 3, 1 / 3, 1 / 3, 1])


def test_three_directions_in_a_plane_have_two_dimensions_between_them() -> None:
    # At 120°: cosines −½; 1 / (1 + ¼ + ¼).
    angles = torch.tensor([0, 2 * torch.pi / 3, 4 * torch.pi / 3])
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    np.testing.assert_allclose(capacities(rows), 2 / 3, rtol=1e-6)


def test_capacities_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    # An odd size, and blocks that do not divide it.
    monkeypatch.setattr(capacity, "ROWS_AT_ONCE", 16)
    rows = np.random.default_rng(0).normal(size=(53, 17))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.testing.assert_allclose(capacities(torch.from_numpy(rows)), 1 / (cosines**2).sum(axis=1), rtol=1e-6)
    assert capacities(torch.from_numpy(rows)).sum() <= 17


def test_two_sides_of_a_direction_count_once() -> None:
    rows = random_rows(20, 8, seed=0)
    both = torch.cat([rows, -rows])
    np.testing.assert_allclose(capacities(both), np.tile(capacities(rows), 2))
    np.testing.assert_allclose(features_per_neuron(both), features_per_neuron(rows))
    assert distinct(both).tolist() == [True] * 20 + [False] * 20
    # The standard basis, split by sign: its zeros are 0 and −0.
    eye = torch.eye(5)
    np.testing.assert_allclose(capacities(torch.cat([eye, -eye])), 1)


def test_a_row_has_one_opposite_at_most_and_copies_are_none() -> None:
    row = torch.tensor([1.0, 2.0])
    assert axes(torch.stack([row, row, -row, -2 * row, -row])).tolist() == [0, 1, 1, 3, 0]


def test_opposites_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "ROWS_AT_ONCE", 3)
    rows = random_rows(5, 4, seed=1)
    assert axes(torch.cat([rows, -rows])).tolist() == [0, 1, 2, 3, 4] * 2


def test_rows_of_length_zero_have_no_capacity_and_take_none() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(capacities(rows), [np.nan, 1, np.nan])
    assert distinct(rows).tolist() == [False, True, False]
    assert np.isnan(capacities(torch.zeros(2, 3))).all()


def test_entries_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="invalid numeric entries"):
        capacities(torch.tensor([[1.0, float("nan")]]))


def test_features_of_a_neuron_are_counted_by_participation() -> None:
    # Neuron 0: two features wholly; 1: one; 2: none. Lengths do not matter.
    rows = torch.tensor([[1.0, 0, 0], [7.0, 0, 0], [0, 2.0, 0]])
    np.testing.assert_array_equal(features_per_neuron(rows), [2, 1, np.nan])
    # Shares of the unit rows' squares .8 and .2 on neuron 0: (.8 + .2)² / (.64 + .04).
    mixed = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    np.testing.assert_allclose(features_per_neuron(mixed), 1 / 0.68)


def test_every_neuron_of_random_directions_takes_part_in_a_third_of_them() -> None:
    # E w² = 1/d, E w⁴ = 3/(d(d+2)): n·(d + 2)/(3d).
    values = features_per_neuron(random_rows(4_000, 50, seed=0))
    assert values.mean() == pytest.approx(4_000 * 52 / 150, rel=0.02)


def test_random_directions_have_the_capacity_that_crowding_leaves() -> None:
    # Of n directions in d dimensions: d / n or so, where n is much larger than d.
    values = capacities(random_rows(1_000, 20, seed=0))
    assert values.mean() == pytest.approx(1 / (1 + 999 / 20), rel=0.02)
    np.testing.assert_array_equal(random_rows(3, 4, seed=0), random_rows(3, 4, seed=0))
