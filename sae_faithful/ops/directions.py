"""Unit rows of a matrix, and products of them that are float32's: what matching and nearest neighbours share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy as np
    from jaxtyping import Float64, Int


@contextmanager
def exact_float32() -> Generator[None]:
    """No TF32 or bfloat16 products, which the user may have allowed: rounding bounds are float32's."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def tensor(matrix: torch.Tensor | np.ndarray) -> torch.Tensor:
    """The matrix where it is, as a tensor."""
    return matrix if isinstance(matrix, torch.Tensor) else torch.tensor(matrix)


def directions(
    name: str, matrix: torch.Tensor
) -> tuple[Int[np.ndarray, " kept"], Float64[torch.Tensor, "kept d"]]:
    """Which rows are not zero, and their directions; ValueError for wrong shapes and entries that are not finite."""
    if matrix.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}: rows of directions are wanted")
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"{name} has invalid numeric entries (infinite or NaN)")
    kept = matrix.any(dim=1).nonzero().squeeze(1)
    unit = matrix[kept].double()
    if unit.numel():
        # First by the largest entry: the squares of tiny numbers are zero.
        unit /= unit.abs().amax(dim=1, keepdim=True)
        unit /= torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    return kept.cpu().numpy(), unit
