"""How far a latent stands for one token: its selectivity, and the share of its variance that tokens explain.

A token that is chosen on the text it is measured on looks selective even where activations are noise. So the text
is cut into two halves, by documents; what is chosen or estimated on one is multiplied with, or measured on, the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from jaxtyping import Bool, Float, Float64, Int

SILENT = "never active"
ONE_HALF = "active in one half of the text only"
SELDOM = "active at fewer than 10 positions"
RARER = "mostly active on tokens that are too rare"
CONSTANT = "the same on every token"
LEAST = 0.5
"""A latent has a score if its mean activation on the tokens that can be looked at is so much of that on all."""
MIN_ACTIVE = 10
"""A latent has a score if it is active at so many positions: of fewer, nothing much can be said."""
LATENTS_AT_ONCE = 64
"""Scores are made for so many latents at a time: means by token take as much room as sums."""


class TokenSums:
    """Sums of activations by latent, token and half of the text.

    Memory: 16 · (n_tokens + 1) · n_latents bytes, however long the text.

    Args:
        n_latents: how many.
        n_tokens: of how many different tokens sums are kept apart: those that occur in both halves.
    """

    def __init__(self, n_latents: int, n_tokens: int) -> None:
        import torch

        self.n_latents, self.n_tokens = n_latents, n_tokens
        shape = (2, n_tokens + 1)
        self._counts = torch.zeros(shape[0] * shape[1], dtype=torch.int64)
        self._sums = torch.zeros(shape[0] * shape[1], n_latents, dtype=torch.float64)
        self.active: Int[np.ndarray, " latents"] = np.zeros(n_latents, np.int64)
        """Positions with an activation above 0."""
        self.squares: Float64[np.ndarray, " latents"] = np.zeros(n_latents)
        """Sums of squares over the positions of tokens that are kept apart."""

    def add(
        self,
        values: Float[torch.Tensor, "positions latents"],
        tokens: Int[np.ndarray, " positions"],
        halves: Int[np.ndarray, " positions"],
    ) -> None:
        """Take in some positions.

        Args:
            values: activations, none below 0.
            tokens: number of each position's token, `n_tokens` for all that are not kept apart.
            halves: 0 or 1.
        """
        import torch

        cells = torch.from_numpy(halves.astype(np.int64) * (self.n_tokens + 1) + tokens)
        values = values.detach().to("cpu", torch.float64)
        self._counts += torch.bincount(cells, minlength=len(self._counts))
        self._sums.index_add_(0, cells, values)
        self.active += (values > 0).sum(dim=0).numpy()
        self.squares += values[torch.from_numpy(tokens < self.n_tokens)].square().sum(dim=0).numpy()

    def silent(self) -> TokenSums:
        """Sums of as many latents that were active at none of the positions that have passed."""
        none = TokenSums(self.n_latents, self.n_tokens)
        none._counts += self._counts
        return none

    @property
    def counts(self) -> Int[np.ndarray, "2 tokens_and_rest"]:
        """Positions of each token in each half; last those of all other tokens."""
        return self._counts.numpy().reshape(2, -1)

    @property
    def sums(self) -> Float64[np.ndarray, "2 tokens_and_rest latents"]:
        """Sums of activations at these positions."""
        return self._sums.numpy().reshape(2, -1, self.n_latents)


@dataclass(frozen=True)
class Scores:
    """One number a latent, or why there is none."""

    values: Float64[np.ndarray, " latents"]
    """NaN where there is none."""
    reasons: list[str | None]
    """Of each latent; None where there is a value."""


def token_selectivity(sums: TokenSums, min_count: int) -> Scores:
    """Class selectivity index of every latent with tokens as classes (Morcos et al. 2018, arXiv 1803.06959).

    (μ_max − μ_rest) / (μ_max + μ_rest): mean activation on the preferred token, and at the positions of all others.
    Only tokens with `min_count` occurrences in each half are looked at. The preferred one, t, is the one with the
    largest mean in one half. The difference is taken in the *other* half, the sum in the half that chose:
        Σ_h [μ(t_h) − μ_rest(t_h)] in half 1 − h  /  Σ_h [μ(t_h) + μ_rest(t_h)] in half h.
    In [−1, 1]: 1 for a latent that fires on one token alone, 0 in expectation for one that knows nothing of tokens,
    whatever its rate and the length of the text (to .02: halves share a denominator, for the sake of the bounds).
    With the difference over the sum of the *same* half it would not be: a sparse latent is mostly silent at few
    positions, and that would count as −1. Higher is more selective.

    A latent that is less than half as active on these tokens as on all has none: its own may be a rarer one. (Were
    rarer tokens part of the rest, this condition alone would make noise look selective.)
    """
    counts = sums.counts
    frequent = counts[:, :-1].min(axis=0) >= min_count
    if frequent.sum() < 2:
        # One token has no others to be held against.
        frequent[:] = False
    values = np.full(sums.n_latents, np.nan)
    for block, part, reasons in _blocks(sums, frequent):
        numerator, denominator = np.zeros(part.shape[2]), np.zeros(part.shape[2])
        n = counts[:, :-1][:, frequent]
        by_token = part[:, :-1][:, frequent]
        total, size = by_token.sum(axis=1), n.sum(axis=1)
        for half in (0, 1) if n.size else ():
            chosen = (by_token[half] / n[half][:, None]).argmax(axis=0)
            means: list[tuple[np.ndarray, np.ndarray]] = []
            for of in (half, 1 - half):
                own = np.take_along_axis(by_token[of], chosen[None], axis=0)[0]
                rest = (total[of] - own) / np.maximum(size[of] - n[of][chosen], 1)
                means.append((own / n[of][chosen], rest))
            (chosen_mean, chosen_rest), (mean, rest) = means
            numerator += mean - rest
            denominator += chosen_mean + chosen_rest
        scored = [reason is None for reason in reasons]
        values[block][scored] = numerator[scored] / denominator[scored]
    return Scores(values, _reasons(sums, frequent))


def token_r2(sums: TokenSums) -> Scores:
    """Share of each latent's variance that the token explains, over the tokens that occur in both halves.

    The covariance over positions of the two halves' means by token, over the variance of the activations:
        Σ_t w_t (m_t0 − m_0)(m_t1 − m_1) / Var a,   w_t the share of positions, m_h = Σ_t w_t m_th.
    Errors of the two halves' means are independent, so the numerator estimates the variance of E[a | token] without
    the bias that noise gives to squares of means: 1 for a latent that is any function of the token, 0 in expectation
    for one that knows nothing of it, whatever its rate and the length of the text; the error of an estimate may take
    it slightly out of [0, 1]. (The sum of squares that halves agree on: Sahani & Linden 2003's signal power.)
    """
    counts = sums.counts
    both = counts[:, :-1].min(axis=0) > 0
    values = np.full(sums.n_latents, np.nan)
    reasons = _reasons(sums, both)
    n = counts[:, :-1][:, both]
    size = max(int(counts[:, :-1].sum()), 1)
    weights = n.sum(axis=0) / max(int(n.sum()), 1)
    for block, part, found in _blocks(sums, both):
        first, second = part[:, :-1][:, both] / n[:, :, None]
        shared = weights @ ((first - weights @ first) * (second - weights @ second))
        variance = sums.squares[block] / size - (part[:, :-1].sum(axis=(0, 1)) / size) ** 2
        # Of an activation that never varies, rounding leaves a little, of either sign.
        varies = variance > 1e-12 * sums.squares[block] / size
        scored = np.array([reason is None for reason in found]) & varies
        values[block][scored] = shared[scored] / variance[scored]
        for latent in np.flatnonzero(~varies):
            reasons[block.start + latent] = found[latent] or CONSTANT
    return Scores(values, reasons)


def _blocks(
    sums: TokenSums, looked_at: Bool[np.ndarray, " tokens"]
) -> Iterator[tuple[slice, Float64[np.ndarray, "2 tokens_and_rest block"], list[str | None]]]:
    """Some latents at a time, with their sums and why there can be no score."""
    reasons = _reasons(sums, looked_at)
    for start in range(0, sums.n_latents, LATENTS_AT_ONCE):
        block = slice(start, min(start + LATENTS_AT_ONCE, sums.n_latents))
        yield block, sums.sums[:, :, block], reasons[block]


def _reasons(sums: TokenSums, looked_at: Bool[np.ndarray, " tokens"]) -> list[str | None]:
    """Why each latent can have no score: None where it can."""
    total, inside = sums.sums.sum(axis=1), looked_at.astype(np.float64) @ sums.sums[:, :-1]
    share = sums.counts[:, :-1][:, looked_at].sum() / max(int(sums.counts.sum()), 1)
    reasons: list[str | None] = []
    for latent in range(sums.n_latents):
        active = total[:, latent] > 0
        if not active.any():
            reasons.append(SILENT)
        elif not active.all():
            reasons.append(ONE_HALF)
        elif sums.active[latent] < MIN_ACTIVE:
            reasons.append(SELDOM)
        elif inside[:, latent].sum() < LEAST * share * total[:, latent].sum() or inside[:, latent].min() <= 0:
            reasons.append(RARER)
        else:
            reasons.append(None)
    return reasons
