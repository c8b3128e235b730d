"""What sparse training is measured on: shapes, indices, values, weights that look trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

SETS = 4
"""Inputs taken in turn, call by call (`interleaved`): what a call leaves in a cache is not what the next one reads."""


class Shape(NamedTuple):
    """Tokens, width, latents, active latents a token."""

    n: int
    d: int
    s: int
    k: int

    def __str__(self) -> str:
        return f"N={self.n} D={self.d} S={self.s} k={self.k}"


@dataclass(frozen=True)
class Case:
    """One input of a decoder, and the gradient that comes back to its output."""

    indices: torch.Tensor
    values: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    grad: torch.Tensor


def case(
    shape: Shape, indices: torch.Tensor, dtype: torch.dtype, seed: int, values: torch.Tensor | None = None
) -> Case:
    """Random numbers around given indices; never zeros, which are faster to multiply on some hardware."""
    device = indices.device
    rng = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=rng, device=device).to(dtype)

    values = normal(*indices.shape).abs() + 0.1 if values is None else values.to(dtype)
    return Case(indices, values, normal(shape.s, shape.d), normal(shape.d), normal(len(indices), shape.d))


LAWS = ("uniform", "zipf", "8 hot")


def indices_by(law: str, shape: Shape, device: str, seed: int) -> torch.Tensor:
    """k different latents a row [n, k]: uniform, Zipf's law, or uniform but for 8 latents of 30 % of the rows each."""
    rng = torch.Generator(device).manual_seed(seed)
    # The k largest of log p + Gumbel noise are a sample without replacement.
    keys = -torch.empty(shape.n, shape.s, device=device).exponential_(generator=rng).log_()
    if law == "zipf":
        ranks = torch.randperm(shape.s, generator=rng, device=device) + 1
        keys -= ranks.log()
    elif law == "8 hot":
        hot = torch.rand(shape.n, 8, generator=rng, device=device) < 0.3
        keys[:, :8] = torch.where(hot, torch.inf, -torch.inf)
    return torch.topk(keys, shape.k, sorted=False).indices


@dataclass(frozen=True)
class Planted:
    """Weights that look trained (encoder and decoder agree, norms differ), and inputs made of their directions."""

    shape: Shape
    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor

    def inputs(self, seed: int) -> torch.Tensor:
        """k directions a row and noise [n, d]; a few directions are in one row of five, most in hardly any."""
        n, d, s, k = self.shape
        device = self.W_dec.device
        rng = torch.Generator(device).manual_seed(seed)
        chosen = (torch.rand(n, k, generator=rng, device=device).square() * s).long().clamp(max=s - 1)
        strength = torch.rand(n, k, generator=rng, device=device) + 0.5
        noise = torch.randn(n, d, generator=rng, device=device) * (0.1 * d**-0.5)
        return (
            F.embedding_bag(chosen, self.W_dec, per_sample_weights=strength, mode="sum") + self.b_dec + noise
        )


def planted(shape: Shape, device: str, seed: int = 0) -> Planted:
    """Weights in float32."""
    rng = torch.Generator(device).manual_seed(seed)
    directions = F.normalize(torch.randn(shape.s, shape.d, generator=rng, device=device), dim=1)
    norms = torch.rand(shape.s, 1, generator=rng, device=device) * 0.6 + 0.7
    b_enc = torch.randn(shape.s, generator=rng, device=device) * 0.01
    b_dec = torch.randn(shape.d, generator=rng, device=device) * 0.1
    return Planted(shape, directions.T.contiguous(), b_enc, directions * norms, b_dec)
