"""Tokens that mean nothing: random ones, and real text out of order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_faithful import TokenSet, derive_seed, special_token_mask

if TYPE_CHECKING:
    from sae_faithful import EvalContext


ROWS_PER_BLOCK = 1_000
SHUFFLED_FROM = 1_000_000
"""Of a text with more tokens than this, and than twice what is wanted, the first ones are permuted: enough for its
unigram frequencies, and memory does not grow with the text."""


def random_tokens(context: EvalContext, n_tokens: int) -> TokenSet:
    """Rows of BOS and uniformly random ordinary tokens: at least `n_tokens` of them, BOS not counted.

    Rows are as long as those the SAEs were trained on.
    """
    context_size = next(iter(context.held_out.values())).context_size
    rng = np.random.default_rng(derive_seed(context.seed, "fake_features", "tokens"))
    n_rows = -(-n_tokens // (context_size - 1))
    # The same rows as if all were drawn at once.
    return TokenSet.on_disk(
        context.language_model.random_rows(min(ROWS_PER_BLOCK, n_rows - start), context_size, rng)
        for start in range(0, n_rows, ROWS_PER_BLOCK)
    )


def shuffled_tokens(context: EvalContext, source: str, n_tokens: int) -> TokenSet:
    """A source's held-out rows with their ordinary tokens permuted over all of them.

    Special tokens stay where they are, so that rows keep their BOS. Unigram frequencies are the text's own;
    everything else that it says is gone. Of the rows, as many as hold `n_tokens` tokens, or all there are.
    """
    text = context.held_out[source]
    rows, _ = text.arrays(0, -(-max(SHUFFLED_FROM, 2 * n_tokens) // max(text.context_size, 1)))
    rows = rows.copy()
    ordinary = special_token_mask(rows, context.language_model.special_token_ids)
    rng = np.random.default_rng(derive_seed(context.seed, "fake_features", "shuffled", source))
    rows[ordinary] = rng.permutation(rows[ordinary])
    enough = int(np.searchsorted(ordinary.sum(axis=1).cumsum(), n_tokens)) + 1
    kept = rows[:enough]
    return TokenSet.on_disk(
        kept[start : start + ROWS_PER_BLOCK] for start in range(0, len(kept), ROWS_PER_BLOCK)
    )
