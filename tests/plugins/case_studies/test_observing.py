"""Codes of studied features, and the neuron most like each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful import TokenSet
from sae_faithful_plugins.case_studies import observing
from sae_faithful_plugins.case_studies.observing import Neuron, Study, beginning, observe

WIDTH = 16


def unit_rows(n: int, seed: int = 1) -> torch.Tensor:
    """Random directions of length 1."""
    drawn = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, WIDTH))).float()
    return torch.nn.functional.normalize(drawn, dim=1)


def study(handle: Any, rows: np.ndarray, latents: list[int], start: int = 0) -> Study:
    mask = ~np.isin(rows, [0, 1, 2])
    return Study(handle, TokenSet.from_rows(rows), mask[start:], dict.fromkeys(latents, "named"), start)


def test_codes_are_the_sae_s_at_tokens_that_count(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    handle = sae_of(unit_rows(24))
    one = study(handle, rows, [5, 2], start=20)
    observe([one], linear, "correlation")
    expected = handle.encode(linear.embedding[torch.from_numpy(rows[20:])])[..., [5, 2]].numpy()
    expected[:, 0] = 0
    assert (handle.encode(linear.embedding[0])[[5, 2]] > 0).any()
    np.testing.assert_allclose(one.codes, expected.transpose(2, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(one.ids, rows[20:])


def test_the_most_similar_neuron_by_correlation_is_the_one_numpy_finds(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    linear.embedding += 0.3
    handle = sae_of(unit_rows(24))
    one = study(handle, rows, list(range(24)))
    observe([one], linear, "correlation")
    x = linear.embedding[torch.from_numpy(rows[:, 1:])].reshape(-1, WIDTH).numpy()
    signs = set()
    for i, neuron in enumerate(one.neurons):
        assert neuron is not None
        correlations = np.corrcoef(np.c_[one.codes[i, :, 1:].ravel(), x].T)[0, 1:]
        best = int(np.abs(correlations).argmax())
        assert neuron.index == best
        assert neuron.similarity == pytest.approx(correlations[best], abs=1e-5)
        assert neuron.sign == np.sign(correlations[best])
        # Its own activation, on the side that goes with the feature.
        values = np.maximum(neuron.sign * x[:, best], 0)
        np.testing.assert_allclose(one.neuron_values[i, :, 1:].ravel(), values, atol=1e-6)
        assert not one.neuron_values[i, :, 0].any()
        signs.add(neuron.sign)
    assert signs == {1, -1}


def test_the_most_similar_neuron_by_cosine_is_the_largest_entry_of_the_decoder_row(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    decoder = torch.zeros(2, WIDTH)
    decoder[0, 3], decoder[0, 4] = 3.0, 4.0
    decoder[1, 3], decoder[1, 4] = -8.0, 6.0
    one = study(sae_of(decoder), rows, [0, 1])
    observe([one], linear, "cosine")
    assert [(each.index, each.sign) for each in one.neurons if each] == [(4, 1), (3, -1)]
    assert [each.similarity for each in one.neurons if each] == pytest.approx([0.8, -0.8])


def test_a_feature_that_never_fires_has_no_neuron(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    bias = torch.tensor([0.0, -100.0])
    one = study(sae_of(unit_rows(2), bias=bias), rows, [0, 1])
    observe([one], linear, "correlation")
    assert isinstance(one.neurons[0], Neuron)
    assert one.neurons[1] is None
    assert not one.neuron_values[1].any()


def test_constant_neurons_are_like_nothing(linear: Any, sae_of: Callable[..., Any], rows: np.ndarray) -> None:
    # Of sizes whose squares' sums round.
    linear.embedding[:, :15] = torch.linspace(1e3, 1e5, 15) / 3
    one = study(sae_of(torch.eye(WIDTH)[15:]), rows, [0])
    observe([one], linear, "correlation")
    assert one.neurons[0] is not None
    assert one.neurons[0].index == 15
    assert np.isfinite(one.neurons[0].similarity)


def test_one_forward_serves_all_hooks_of_a_text_and_batches_change_nothing(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TokenSet.from_rows(rows)
    mask = ~np.isin(rows, [0, 1, 2])

    def studies() -> list[Study]:
        return [
            Study(sae_of(unit_rows(24), hook=f"model.layers.{i}"), text, mask, {0: "", 7: ""}) for i in (0, 1)
        ]

    whole = studies()
    observe(whole, linear, "correlation")
    assert linear.batches == [60, 60]
    linear.batches.clear()
    monkeypatch.setattr(observing, "TOKENS_PER_FORWARD", 16 * 25)
    parts = studies()
    observe(parts, linear, "correlation")
    assert linear.batches == [25, 25, 10] * 2
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one.codes, other.codes, atol=1e-6)
        assert [each.index for each in one.neurons if each] == [each.index for each in other.neurons if each]


def test_an_sae_without_features_costs_no_forward(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    observe([study(sae_of(unit_rows(24)), rows, [])], linear, "correlation")
    assert linear.batches == []


def test_the_beginning_of_a_text_is_whole_rows_cut_to_their_first_tokens(rows: np.ndarray) -> None:
    text = TokenSet.from_rows(rows)
    np.testing.assert_array_equal(beginning(text, 100, 10).rows(), rows[:10, :10])
    np.testing.assert_array_equal(beginning(text, 100, 0).rows(), rows[:6])
    np.testing.assert_array_equal(beginning(text, 1, 99).rows(), rows[:1])
    np.testing.assert_array_equal(beginning(text, 10**6, 16).rows(), rows)
