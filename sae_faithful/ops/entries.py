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
"""Set to 1, this environment variable has entries checked on a GPU too, where each check waits for it."""


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
    """The same entries feature by feature (`group_by_feature`), for gradients; empty until `grouped`."""

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
    """`[order, rows, features, starts]`, int32: the entries sorted by feature, where feature f's begin at `starts[f]`.

    Entries of one feature stay in the order of the rows; the empty slots come before `starts[0]`. Nothing here waits
    for a GPU.
    """
    features, order = torch.sort(indices.int(), stable=True)
    # Row n holds the entries from row_offsets[n] on: the last offset that is not beyond an entry.
    rows = torch.searchsorted(row_offsets.contiguous(), order, right=True, out_int32=True) - 1
    each = torch.arange(n_features + 1, dtype=torch.int32, device=indices.device)
    return [order.int(), rows, features, torch.searchsorted(features, each, out_int32=True)]


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


def check_entries(
    indices: Int[torch.Tensor, " nnz"], row_offsets: Int[torch.Tensor, " n_rows_and_1"], n_features: int
) -> None:
    """Refuse entries that are not as `Entries` says; on a GPU, which would have to be waited for, only if asked to.

    Raises:
        ValueError: indices of another dtype than int32 and int64, row offsets that do not lead from 0 to nnz.
        IndexError: an index outside -1 … n_features - 1.
    """
    if indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"indices are {indices.dtype}: int32 or int64 is wanted")
    if indices.is_cuda and os.environ.get(CHECK_INDICES) != "1":
        return
    nnz = indices.numel()
    if not (
        row_offsets.numel() > 0
        and int(row_offsets[0]) == 0
        and int(row_offsets[-1]) == nnz
        and bool((row_offsets.diff() >= 0).all())
    ):
        raise ValueError(f"row_offsets must rise from 0 to the {nnz} entries")
    if nnz == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(indices))
    if low < -1 or high >= n_features:
        outside = low if low < -1 else high
        raise IndexError(
            f"index {outside} is not one of {n_features} features (nor -1, which marks an empty slot)"
        )
