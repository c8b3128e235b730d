"""What an ablation does where everything is linear, and what it leaves of the feature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful_plugins.case_studies.ablation import ONE_CONTEXT, Ablation, contexts_of

WIDTH = 16


def unit_rows(n: int, seed: int = 1) -> torch.Tensor:
    """Random directions of length 1."""
    drawn = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, WIDTH))).float()
    return torch.nn.functional.normalize(drawn, dim=1)


def ablate(
    model: Any, handle: Any, ids: np.ndarray, latent: int = 0, contexts: Any = None, **options: Any
) -> Ablation | None:
    mask = ~np.isin(ids, model.special_token_ids)
    contexts = np.arange(len(ids)) if contexts is None else np.asarray(contexts)
    options = {"resolve": False, "log_probs": False, **options}
    return Ablation.run(handle, latent, ids, mask, contexts, model, **options)


def codes_of(model: Any, handle: Any, ids: np.ndarray, latent: int = 0) -> np.ndarray:
    """0 at special tokens."""
    codes = handle.encode(model.embedding[torch.from_numpy(ids)])[..., latent].numpy().copy()
    codes[np.isin(ids, model.special_token_ids)] = 0
    return codes


def test_in_a_linear_readout_the_effect_is_minus_c_f_w_u(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    directions = unit_rows(24) * 2.5
    handle = sae_of(directions, unit_rows(24, seed=5), bias=-0.3)
    found = ablate(linear, handle, rows)
    assert found is not None
    codes = codes_of(linear, handle, rows)
    active = codes > 0
    assert found.n_positions == active.sum() > 100
    mean_code = (codes.sum(axis=1) / np.maximum(active.sum(axis=1), 1))[active.any(axis=1)]
    expected = -mean_code[:, None] * (directions[0] @ linear.readout).numpy()
    assert found.effects.shape == expected.shape
    np.testing.assert_allclose(found.effects, expected, atol=2e-5)
    np.testing.assert_allclose(found.mean, expected.mean(axis=0), atol=2e-5)


def test_only_positions_where_the_feature_is_active_are_edited_and_special_tokens_never(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    handle = sae_of(unit_rows(24))
    # The feature is active at BOS too.
    linear.embedding[0] = 100 * unit_rows(24)[0]
    assert handle.encode(linear.embedding[0])[0] > 0
    assert ablate(linear, handle, rows[:5]) is not None
    (edited,) = linear.edited
    before = linear.embedding[torch.from_numpy(rows[:5])]
    changed = (edited != before).any(dim=-1).numpy()
    np.testing.assert_array_equal(changed, codes_of(linear, handle, rows[:5]) > 0)
    # What is left of x is orthogonal to f, and nothing of it is changed that was before.
    direction = unit_rows(24)[0]
    along = ((edited - before) @ direction)[..., None] * direction
    torch.testing.assert_close(edited - before, along)


def test_ablation_of_a_tied_unit_norm_feature_leaves_its_pre_activation_at_0(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    directions = unit_rows(24)
    handle = sae_of(directions, bias=-0.4)
    found = ablate(linear, handle, rows)
    assert found is not None
    active = codes_of(linear, handle, rows) > 0
    pre = torch.cat(linear.edited) @ directions[0] - 0.4
    np.testing.assert_allclose(pre.numpy()[active], 0, atol=1e-6)
    assert found.own_code_left < 1e-6
    again = ablate(linear, handle, rows, resolve=True)
    assert again is not None
    np.testing.assert_allclose(again.effects, found.effects, atol=1e-5)


def test_ablation_of_an_untied_feature_leaves_some_of_its_code_and_resolving_nothing(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    # Reads along e, writes along f with e·f = .25: a quarter of the code goes.
    direction, other = torch.eye(WIDTH)[0], torch.eye(WIDTH)[1]
    reads = 0.25 * direction + (1 - 0.25**2) ** 0.5 * other
    handle = sae_of(direction[None], reads[None])
    subtracted = ablate(linear, handle, rows)
    resolved = ablate(linear, handle, rows, resolve=True)
    assert subtracted is not None
    assert resolved is not None
    assert subtracted.own_code_left == pytest.approx(0.75, abs=1e-5)
    assert resolved.own_code_left == pytest.approx(0, abs=1e-5)
    # The multiple is 1 / (e·f) everywhere.
    np.testing.assert_allclose(resolved.effects, 4 * subtracted.effects, rtol=1e-4, atol=1e-5)
    assert (resolved.n_unresolved, resolved.n_positions) == (0, subtracted.n_positions)


def test_what_nothing_silences_is_left_as_it_is_and_counted(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    # The more is taken away, the more active it is.
    direction = torch.eye(WIDTH)[:1]
    handle = sae_of(-direction, direction)
    assert ablate(linear, handle, rows[:5], resolve=True) is None
    torch.testing.assert_close(linear.edited[0], linear.embedding[torch.from_numpy(rows[:5])])
    # It is what subtracting does, too.
    found = ablate(linear, handle, rows[:5])
    assert found is not None
    assert found.own_code_left == pytest.approx(2)


def test_a_topk_feature_is_silent_as_soon_as_others_are_larger(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    handle = sae_of(unit_rows(24), k=3)
    subtracted = ablate(linear, handle, rows)
    resolved = ablate(linear, handle, rows, resolve=True)
    assert subtracted is not None
    assert resolved is not None
    assert resolved.own_code_left == 0
    assert np.abs(resolved.mean).max() < np.abs(subtracted.mean).max()


def test_an_sae_that_normalises_its_inputs_is_ablated_in_activation_units(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    handle = sae_of(unit_rows(24), normalize_activations="layer_norm")
    found = ablate(linear, handle, rows[:10])
    assert found is not None
    x = linear.embedding[torch.from_numpy(rows[:10])]
    # Its codes are of x with mean 0 and variance 1; what they stand for is scaled back.
    deviation = x.std(dim=-1, keepdim=True)
    codes = handle.encode(x)[..., 0].numpy() * deviation[..., 0].numpy()
    codes[:, 0] = 0
    expected = -codes.sum(axis=1) / np.maximum((codes > 0).sum(axis=1), 1)
    expected = expected[(codes > 0).any(axis=1), None] * (unit_rows(24)[0] @ linear.readout).numpy()
    np.testing.assert_allclose(found.effects, expected, rtol=1e-3, atol=1e-4)


def test_log_probabilities_change_by_the_same_as_logits_but_for_one_number_a_position(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    handle = sae_of(unit_rows(24))
    logits, log_probs = (ablate(linear, handle, rows[:10], log_probs=choice) for choice in (False, True))
    assert logits is not None
    assert log_probs is not None
    difference = logits.effects - log_probs.effects
    np.testing.assert_allclose(np.ptp(difference, axis=1), 0, atol=1e-4)
    assert np.abs(difference).max() > 0.01


def test_the_next_token_is_the_one_in_the_text_and_the_last_position_has_none(
    linear: Any, sae_of: Callable[..., Any]
) -> None:
    linear.embedding[:, 0] = -1.0
    linear.embedding[9, 0] = 3.0
    handle = sae_of(torch.eye(WIDTH)[:1])
    # Active at w9 alone: before w20 in one row, at the end of another.
    ids = np.array([[0, 30, 9, 20], [0, 30, 31, 9]])
    found = ablate(linear, handle, ids)
    assert found is not None
    without = linear.embedding[9].clone()
    without[0] = 0
    before, after = ((x @ linear.readout).log_softmax(dim=-1) for x in (linear.embedding[9], without))
    assert found.next_token[0] == pytest.approx(float(after[20] - before[20]), abs=1e-5)
    assert np.isnan(found.next_token[1])
    change = found.next_token_change
    assert change is not None
    assert change[0] == pytest.approx(float(after[20] - before[20]), abs=1e-5)
    assert change[1].reason == ONE_CONTEXT
    only_last = ablate(linear, handle, ids, contexts=[1])
    assert only_last is not None
    assert only_last.next_token_change is None


def test_a_context_counts_once_and_intervals_are_over_contexts(
    linear: Any, sae_of: Callable[..., Any]
) -> None:
    linear.embedding[:, 0] = -1.0
    for token, code in ((9, 1.0), (10, 4.0)):
        linear.embedding[token, 0] = code
    linear.readout[0, 50] = 1.0
    handle = sae_of(torch.eye(WIDTH)[:1])
    # One row is active thrice with code 1, the other once with code 4.
    found = ablate(linear, handle, np.array([[0, 9, 9, 9], [0, 30, 10, 31]]))
    assert found is not None
    assert found.n_positions == 4
    np.testing.assert_allclose(found.effects[:, 50], [-1, -4], atol=1e-5)
    assert found.mean[50] == pytest.approx(-2.5, abs=1e-5)
    # t(.975, 1) = 12.706, standard error 1.5.
    low, high, _ = found.interval(50)
    assert low == pytest.approx(-2.5 - 12.706 * 1.5, rel=1e-3)
    assert high == pytest.approx(-2.5 + 12.706 * 1.5, rel=1e-3)


def test_a_feature_that_is_active_nowhere_has_no_ablation(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    assert ablate(linear, sae_of(unit_rows(4), bias=-100.0), rows) is None


def test_large_vocabularies_take_more_forwards_and_change_nothing(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_faithful_plugins.case_studies import ablation

    handle = sae_of(unit_rows(24))
    whole = ablate(linear, handle, rows[:7])
    monkeypatch.setattr(ablation, "LOGITS_PER_FORWARD", 64 * 16 * 2)
    before = len(linear.edited)
    parts = ablate(linear, handle, rows[:7])
    assert [len(one) for one in linear.edited[before:]] == [2, 2, 2, 1]
    assert whole is not None
    assert parts is not None
    np.testing.assert_allclose(parts.effects, whole.effects, atol=1e-6)


def test_contexts_are_rows_in_which_the_feature_is_active_drawn_under_a_seed() -> None:
    codes = np.zeros((100, 8))
    codes[::3, 4] = 1.0
    codes[1] = -1.0
    drawn = contexts_of(codes, 10, seed=1)
    assert len(set(drawn.tolist())) == 10
    assert (drawn % 3 == 0).all()
    assert drawn.tolist() == contexts_of(codes, 10, seed=1).tolist()
    assert drawn.tolist() != contexts_of(codes, 10, seed=2).tolist()
    assert contexts_of(codes, 1_000, seed=1).tolist() == list(range(0, 100, 3))
    # Any of them, not the first.
    assert max(max(contexts_of(codes, 10, seed=seed)) for seed in range(10)) > 90
