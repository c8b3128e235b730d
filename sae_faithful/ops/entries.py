"""Which entries of a mostly empty [rows, features] matrix are held, and who computes with them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int

TRITON_FOUND = find_spec("triton") is not None

CHECK_INDICES = "SAE_FAITHFUL_CHECK_INDICES"
"""Set to 1, this environment variable has indices checked on a GPU too, where each check waits for it."""


@dataclass(frozen=True)
class Entries:
    """The places of a sparse [n_rows, n_features] matrix that hold a value, row by row.

    Entry e stands in column `indices[e]`; row n's entries are `row_offsets[n]` up to `row_offsets[n + 1]`. The
    index -1 marks an empty slot; an index that a row holds twice counts twice.
    """

    indices: Int[torch.Tensor, " nnz"]
    row_offsets: Int[torch.Tensor, " n_rows_and_1"]
    n_features: int
    by_feature: Sequence[torch.Tensor] = ()
    """The same entries feature by feature, for gradients; empty until `grouped`."""

    @classmethod
    def of_rows(cls, indices: Int[torch.Tensor, "n_rows k"], n_features: int) -> Entries:
        """The same number of entries in every row."""
        if indices.ndim != 2:
            raise ValueError(f"indices has shape {tuple(indices.shape)}: rows of indices are wanted")
        n_rows, k = indices.shape
        row_offsets = torch.arange(n_rows + 1, device=indices.device) * k
        return cls(indices.reshape(-1), row_offsets, n_features)

    def grouped(self) -> Entries:
        """With `by_feature` worked out, so that several gradients share one sort."""
        if self.by_feature:
            return self
        plan = group_by_feature(self.indices, self.row_offsets, self.n_features)
        return Entries(self.indices, self.row_offsets, self.n_features, plan)


def group_by_feature(
    indices: Int[torch.Tensor, " nnz"], row_offsets: Int[torch.Tensor, " n_rows_and_1"], n_features: int
) -> list[torch.Tensor]:
    """The entries in the order of their features, as the implementation for `indices`' device wants them."""
    return implementation(indices).group_by_feature(indices, row_offsets, n_features)


def implementation(*tensors: torch.Tensor) -> Any:
    """The module that computes on these tensors: `sparse_triton` on a GPU, `sparse_eager` elsewhere.

    Triton's kernels add up in float32, so float64 stays with `sparse_eager` on a GPU too.
    """
    exact = any(tensor.dtype == torch.float64 for tensor in tensors)
    if TRITON_FOUND and not exact and on_gpu(tensors[0]):
        from sae_faithful.ops import sparse_triton

        return sparse_triton
    from sae_faithful.ops import sparse_eager

    return sparse_eager


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether Triton's kernels can take it."""
    return tensor.is_cuda


def check_indices(indices: Int[torch.Tensor, " nnz"], n_features: int) -> None:
    """IndexError for an index outside -1 … n_features - 1; on a GPU only if `CHECK_INDICES` asks for it."""
    if indices.numel() == 0 or (indices.is_cuda and os.environ.get(CHECK_INDICES) != "1"):
        return
    low, high = (int(bound) for bound in torch.aminmax(indices))
    if low < -1 or high >= n_features:
        outside = low if low < -1 else high
        raise IndexError(
            f"index {outside} is not one of {n_features} features (nor -1, which marks an empty slot)"
        )
