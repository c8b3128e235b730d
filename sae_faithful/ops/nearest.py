"""The largest cosine of every row of A with any row of B, and of B with A, never holding the n×m matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sae_faithful.ops.directions import directions, exact_float32, tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Float64


def nearest_cosines(
    a: Float[torch.Tensor | np.ndarray, "n d"],
    b: Float[torch.Tensor | np.ndarray, "m d"],
    *,
    block: int = 2**25,
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " m"]]:
    """max_j cos(a_i, b_j) for every i, and max_i cos(a_i, b_j) for every j, in one pass over blocks of rows of A.

    Many rows may have the same nearest row: there is no matching. A row of length zero has no neighbour and is
    nobody's: −∞. Who is nearest is found in float32 and its cosine computed in float64, so that a value falls
    short of the true maximum by float32's rounding (about d·1e-7) at most, and copies give exactly what
    `match_features` gives.

    Products run where `a` is; `block` is the number of cosines held at once. Raises ValueError for wrong shapes
    or options and for entries that are not finite.
    """
    if block < 1:
        raise ValueError(f"block {block}: at least 1")
    with torch.no_grad(), exact_float32():
        given_a, given_b = tensor(a), tensor(b)
        kept_a, unit_a = directions("a", given_a)
        kept_b, unit_b = directions("b", given_b.to(unit_a.device))
        if unit_a.shape[1] != unit_b.shape[1]:
            raise ValueError(f"a has {unit_a.shape[1]} dimensions and b {unit_b.shape[1]}")
        of_a, of_b = np.full(len(given_a), -np.inf), np.full(len(given_b), -np.inf)
        if len(kept_a) and len(kept_b):
            nearest_a, nearest_b = _nearest(unit_a.float(), unit_b.float(), block)
            of_a[kept_a] = (unit_a * unit_b[nearest_a]).sum(dim=1).cpu().numpy()
            of_b[kept_b] = (unit_b * unit_a[nearest_b]).sum(dim=1).cpu().numpy()
    return of_a, of_b


def _nearest(
    a: Float[torch.Tensor, "n d"], b: Float[torch.Tensor, "m d"], block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Index [n] of the nearest row of B, and [m] of the nearest row of A."""
    height = max(1, block // len(b))
    of_a: list[torch.Tensor] = []
    best = torch.full((len(b),), -torch.inf, device=b.device)
    of_b = torch.zeros(len(b), dtype=torch.long, device=b.device)
    for start in range(0, len(a), height):
        cosine = a[start : start + height] @ b.T
        of_a.append(cosine.argmax(dim=1))
        value, row = cosine.max(dim=0)
        of_b = torch.where(value > best, row + start, of_b)
        best = torch.maximum(best, value)
    return torch.cat(of_a), of_b
