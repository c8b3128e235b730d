"""Principal components of a text's activations, as SAEs are asked for codes and reconstructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from jaxtyping import Float

    from sae_faithful import ActivationBatch, TokenSet

Comparison = Literal["pca", "pca_split"]


class Moments:
    """Sums that principal components are made from, of one text's activations at one hook.

    Args:
        hook: where.
        source: the text's name.
        tokens: the text.
        n_tokens: how many of its tokens are looked at.
    """

    def __init__(self, hook: str, source: str, tokens: TokenSet, n_tokens: int) -> None:
        self.hook, self.source, self.tokens = hook, source, tokens
        self.left = n_tokens
        self.n = 0
        self.total: Float[torch.Tensor, " d_in"] | None = None
        self.products: Float[torch.Tensor, "d_in d_in"] | None = None

    def update(self, batch: ActivationBatch) -> None:
        """Take in one batch: tokens that count, until there are enough."""
        if self.left <= 0:
            return
        vectors = batch.activations[batch.mask][: self.left].double()
        self.left -= len(vectors)
        self.n += len(vectors)
        total, products = vectors.sum(dim=0), vectors.T @ vectors
        self.total = total if self.total is None else self.total + total
        self.products = products if self.products is None else self.products + products

    def components(self) -> tuple[Float[torch.Tensor, " d_in"], Float[torch.Tensor, "d_in d_in"]]:
        """Mean and orthonormal directions, one a row, those of most variance first.

        There are as many as dimensions whatever the number of tokens: directions without variance complete them.
        """
        assert self.total is not None
        assert self.products is not None
        mean = self.total / self.n
        covariance = self.products / self.n - torch.outer(mean, mean)
        directions = torch.linalg.eigh(covariance)[1].T.flip(0)
        return mean.float(), directions.float()


class Components:
    """Principal components as a coder.

    Args:
        kind: `pca` has one signed code a component: where it stands along it. `pca_split` has two of each, which
            are 0 or above as an SAE's are: how far the activation is on either side of the mean.
        mean: [d_in]
        directions: [d_in, d_in], orthonormal rows.
    """

    def __init__(
        self,
        kind: Comparison,
        mean: Float[torch.Tensor, " d_in"],
        directions: Float[torch.Tensor, "d_in d_in"],
    ) -> None:
        self.kind, self.mean = kind, mean
        self.directions = directions if kind == "pca" else torch.cat([directions, -directions])

    def encode(self, activations: Float[torch.Tensor, "... d_in"]) -> Float[torch.Tensor, "... codes"]:
        """Codes; they reconstruct exactly."""
        codes = (activations.float() - self.mean) @ self.directions.T
        return codes if self.kind == "pca" else codes.relu()

    def decode(
        self, latents: Float[torch.Tensor, "... codes"], activations: Float[torch.Tensor, "... d_in"]
    ) -> Float[torch.Tensor, "... d_in"]:
        """What codes stand for; the same at all activations."""
        del activations
        return latents @ self.directions + self.mean
