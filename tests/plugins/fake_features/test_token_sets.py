"""Random tokens, and text out of order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from sae_faithful import EvalContext, TokenSet
from sae_faithful_plugins.fake_features.token_sets import random_tokens, shuffled_tokens

VOCAB, BOS, EOS, PAD = 64, 0, 1, 2


def context_of(model: Any, seed: int = 7, rows: np.ndarray | None = None) -> EvalContext:
    """With held-out rows of eleven tokens."""
    text = np.tile([BOS, *[5] * 9, 6], (3, 1)) if rows is None else rows
    held_out = {"faithful": TokenSet.from_rows(text)}
    return EvalContext(handles=[], held_out=held_out, sources=[], language_model=model, seed=seed)


def test_rows_of_random_tokens_start_with_bos_and_are_as_long_as_the_training_rows(
    one_hot_model: Any,
) -> None:
    rows = random_tokens(context_of(one_hot_model), 1_005).rows()
    # Ten random tokens a row: 101 rows are the fewest that hold 1,005.
    assert rows.shape == (101, 11)
    assert (rows[:, 0] == BOS).all()


def test_flaw_special_tokens_are_never_sampled(one_hot_model: Any) -> None:
    """Reference flaw: ids uniform over the whole vocabulary, special tokens included."""
    drawn = random_tokens(context_of(one_hot_model), 10_000).rows()[:, 1:]
    assert not np.isin(drawn, [BOS, EOS, PAD]).any()
    # All the others are, equally often: 10,000 draws of 61 tokens.
    counts = np.bincount(drawn.flatten(), minlength=VOCAB)[3:]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_flaw_random_tokens_are_seeded(one_hot_model: Any) -> None:
    """Reference flaw: random tokens without a seed."""
    one, again, other = (random_tokens(context_of(one_hot_model, seed), 500).rows() for seed in (7, 7, 8))
    assert (one == again).all()
    assert (one != other).any()


# Shuffled text


def packed() -> np.ndarray:
    """60 rows of BOS and ten tokens, each row's own word but for an EOS and a BOS in the middle."""
    rows = np.repeat(np.arange(3, 63), 11).reshape(60, 11)
    rows[:, 0] = BOS
    rows[::2, 4:6] = [EOS, BOS]
    return rows


def test_shuffled_text_has_the_same_tokens_in_another_order_over_all_rows(one_hot_model: Any) -> None:
    rows = shuffled_tokens(context_of(one_hot_model, rows=packed()), "faithful", 10_000).rows()
    assert rows.shape == (60, 11)
    np.testing.assert_array_equal(np.bincount(rows.ravel()), np.bincount(packed().ravel()))
    # Every row held one word; now they come from all over the text.
    assert all(len(np.unique(row)) > 4 for row in rows)


def test_special_tokens_stay_where_they_are(one_hot_model: Any) -> None:
    before = packed()
    after = shuffled_tokens(context_of(one_hot_model, rows=before), "faithful", 10_000).rows()
    special = np.isin(before, [BOS, EOS, PAD])
    np.testing.assert_array_equal(after[special], before[special])
    assert not np.isin(after[~special], [BOS, EOS, PAD]).any()


def test_shuffled_rows_are_as_many_as_hold_the_tokens_asked_for(one_hot_model: Any) -> None:
    context = context_of(one_hot_model, rows=packed())
    # Rows hold 8 and 10 ordinary tokens in turn: the first three 26, the fourth brings them to 36.
    for n_tokens, n_rows in ((8, 1), (9, 2), (26, 3), (27, 4), (540, 60), (10_000, 60)):
        assert len(shuffled_tokens(context, "faithful", n_tokens)) == n_rows
    # Drawn from all of the text even where few rows are asked for.
    assert len(np.unique(shuffled_tokens(context, "faithful", 100).rows())) > 40


def test_of_a_long_text_the_beginning_is_shuffled(
    one_hot_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_faithful_plugins.fake_features.token_sets.SHUFFLED_FROM", 200)
    context = context_of(one_hot_model, rows=packed())
    # 200 tokens are the first 19 rows of 11, with the words 3 to 21; for 150, the 300 tokens of the first 28 rows.
    for n_tokens, last in ((50, 21), (150, 30)):
        words = np.unique(shuffled_tokens(context, "faithful", n_tokens).rows())
        assert words[~np.isin(words, [BOS, EOS])].max() == last
        assert len(words) > last - 10


def test_random_rows_are_those_drawn_at_once(one_hot_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(one_hot_model, rows=packed())
    at_once = random_tokens(context, 650).rows()
    monkeypatch.setattr("sae_faithful_plugins.fake_features.token_sets.ROWS_PER_BLOCK", 7)
    np.testing.assert_array_equal(random_tokens(context, 650).rows(), at_once)
    assert at_once.shape == (65, 11)


def test_the_order_is_seeded(one_hot_model: Any) -> None:
    one, again, other = (
        shuffled_tokens(context_of(one_hot_model, seed, packed()), "faithful", 500).rows()
        for seed in (7, 7, 8)
    )
    assert (one == again).all()
    assert (one != other).any()
