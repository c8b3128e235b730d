"""How directions share the dimensions there are: capacity of a feature, features of a neuron."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from sae_faithful.ops.directions import directions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Float, Float64, Int

ROWS_AT_ONCE = 4_096


def axes(rows: Float[torch.Tensor, "n d"]) -> Int[np.ndarray, " n"]:
    """For each row the index of the row that stands for its axis: an earlier one that is its exact opposite, or itself.

    A direction split by sign is two latents, f and −f, of which never both are active: two sides of one feature, and
    not two features that share a dimension. Each row has one opposite at most.
    """
    axis = np.arange(len(rows))
    waiting: dict[bytes, list[int]] = {}
    for start in range(0, len(rows), ROWS_AT_ONCE):
        # Adding 0 makes 0 of −0, whose bytes differ.
        block = rows[start : start + ROWS_AT_ONCE].detach().float().cpu().numpy() + np.float32(0)
        opposites = -block + np.float32(0)
        for offset, (row, opposite) in enumerate(zip(block, opposites, strict=True)):
            earlier = waiting.get(_digest(opposite))
            if earlier and row.any():
                axis[start + offset] = earlier.pop()
            else:
                waiting.setdefault(_digest(row), []).append(start + offset)
    return axis


def capacities(rows: Float[torch.Tensor, "n d"]) -> Float64[np.ndarray, " n"]:
    """Capacity of each direction, (f_i·f_i)² / Σ_j (f_i·f_j)² over unit rows (Scherlis et al. 2022, arXiv 2210.01892).

    The fraction of a dimension that a feature has for itself: 1 if orthogonal to all others, 1/m if m features point
    the same way. Their sum is at most d. Opposite rows count once (`axes`) and have one value; rows of length zero
    have none (NaN) and are nobody's neighbours.

    Σ_j (f_i·f_j)² = f_iᵀ (Σ_j f_j f_jᵀ) f_i: n·d² operations and d² memory, never n×n. In float64, where the rows are
    (on the CPU if that device has none). Raises ValueError for entries that are not finite.
    """
    axis = axes(rows)
    values = np.full(len(rows), np.nan)
    gram: torch.Tensor | None = None
    for _, unit in _units(rows, axis):
        gram = unit.T @ unit if gram is None else gram + unit.T @ unit
    if gram is not None:
        for index, unit in _units(rows, axis):
            values[index] = (1 / ((unit @ gram) * unit).sum(dim=1)).cpu().numpy()
    return values[axis]


def features_per_neuron(rows: Float[torch.Tensor, "n d"]) -> Float64[np.ndarray, " d"]:
    """In how many features each neuron takes part: (Σ_i w_ij²)² / Σ_i w_ij⁴ over unit rows, the participation ratio.

    1 for a neuron that one feature alone writes to, n for one to which all n write equally. Opposite rows count
    once; a neuron that none writes to has no value (NaN). Raises ValueError for entries that are not finite.
    """
    squares, fourths = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for _, unit in _units(rows, axes(rows)):
        square = unit.square()
        squares += square.sum(dim=0).cpu().numpy()
        fourths += square.square().sum(dim=0).cpu().numpy()
    return np.divide(squares**2, fourths, out=np.full(len(squares), np.nan), where=fourths > 0)


def random_rows(n: int, d: int, seed: int) -> Float[torch.Tensor, "n d"]:
    """Normally distributed directions: what crowding n features into d dimensions gives by itself."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d), np.float32))


def distinct(rows: Float[torch.Tensor, "n d"]) -> Bool[np.ndarray, " n"]:
    """The rows that are not zero and not an earlier one's opposite."""
    return (axes(rows) == np.arange(len(rows))) & rows.any(dim=1).cpu().numpy()


def _units(
    rows: torch.Tensor, axis: Int[np.ndarray, " n"]
) -> Iterator[tuple[Int[np.ndarray, " block"], Float64[torch.Tensor, "block d"]]]:
    """Unit vectors, one an axis, with their indices, some at a time."""
    # Metal has no float64.
    rows = rows.detach().cpu() if rows.device.type == "mps" else rows.detach()
    own = np.flatnonzero(axis == np.arange(len(axis)))
    for start in range(0, len(own), ROWS_AT_ONCE):
        index = own[start : start + ROWS_AT_ONCE]
        kept, unit = directions("rows", rows[torch.from_numpy(index).to(rows.device)])
        if len(kept):
            yield index[kept], unit


def _digest(row: np.ndarray) -> bytes:
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()
