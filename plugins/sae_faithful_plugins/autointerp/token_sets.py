"""A score without a language model: the explanation is a weighted set of tokens, its simulation a look-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float, Int

    from sae_faithful_plugins.autointerp.fragments import Record

LARGEST = 10
"""Tokens in an explanation: a longer list is a table of the vocabulary and explains nothing."""


@dataclass(frozen=True)
class TokenWeights:
    """The tokens that a feature is most active on, each with its mean activation."""

    weights: Mapping[int, float]
    """By token id, most activation first."""

    @classmethod
    def of(cls, records: Sequence[Record]) -> TokenWeights:
        """From the fragments that an explainer sees: the tokens with the largest summed activation.

        Negative activations count as 0, as explainers see them.
        """
        if not records:
            return cls({})
        ids = np.concatenate([record.ids for record in records])
        activations = np.maximum(np.concatenate([record.activations for record in records]), 0)
        tokens, place = np.unique(ids, return_inverse=True)
        sums = np.bincount(place, activations.astype(np.float64))
        means = sums / np.bincount(place)
        order = [int(i) for i in np.argsort(-sums, kind="stable")[:LARGEST] if sums[i] > 0]
        return cls({int(tokens[i]): float(means[i]) for i in order})

    def simulate(self, ids: Int[np.ndarray, " tokens"]) -> Float[np.ndarray, " tokens"]:
        """Each token's weight; 0 for one that is not in the set."""
        return np.array([self.weights.get(int(token), 0.0) for token in ids])

    def text(self, decode: Callable[[int], str]) -> str:
        """The explanation, to be read."""
        return ", ".join(f"'{decode(token)}' {weight:.3g}" for token, weight in self.weights.items())
