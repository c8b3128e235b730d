"""Explanations that are weighted tokens."""

from __future__ import annotations

import numpy as np
import pytest

from sae_faithful_plugins.autointerp.fragments import Record
from sae_faithful_plugins.autointerp.token_sets import LARGEST, TokenWeights


def test_weights_are_mean_activations_and_order_is_by_their_sum() -> None:
    first = Record(0, np.array([5, 6, 7, 5]), np.array([2.0, 0.0, 3.5, 4.0]))
    records = [first, Record(1, np.array([6, 5]), np.array([1.0, 0.0]))]
    found = TokenWeights.of(records)
    # w5: 2, 4, 0; w7: 3.5; w6: 0, 1.
    assert list(found.weights.items()) == [(5, 2.0), (7, 3.5), (6, 0.5)]
    assert found.simulate(np.array([7, 8, 6, 5])).tolist() == [3.5, 0.0, 0.5, 2.0]
    assert found.text(lambda token: f"w{token}") == "'w5' 2, 'w7' 3.5, 'w6' 0.5"


def test_negative_activations_count_as_none() -> None:
    found = TokenWeights.of([Record(0, np.array([5, 5, 6]), np.array([4.0, -4.0, -1.0]))])
    assert found.weights == {5: pytest.approx(2.0)}


def test_only_the_most_active_tokens_are_in_an_explanation() -> None:
    ids = np.arange(100, 100 + 3 * LARGEST)
    found = TokenWeights.of([Record(0, ids, np.linspace(1, 2, len(ids)))])
    assert list(found.weights) == ids[::-1][:LARGEST].tolist()


def test_a_feature_without_activation_has_no_token() -> None:
    assert TokenWeights.of([Record(0, np.arange(3), np.zeros(3))]).simulate(np.arange(3)).tolist() == [
        0,
        0,
        0,
    ]
    assert TokenWeights.of([]).weights == {}
