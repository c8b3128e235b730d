"""Sums over clusters of rows, the units that intervals resample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from numpy.typing import DTypeLike

MAX_CLUSTERS = 200
"""More would cost memory (one sum a latent each) and change no interval."""


class ClusterSums:
    """Sums of per-row vectors over at most 200 clusters of neighbouring rows.

    Documents run over neighbouring rows, so that clusters of neighbours are independent where rows are not.

    Args:
        n_rows: of the whole token set.
        width: length of the vectors.
        dtype: of the sums. float32 halves the memory of counts and is exact up to 2²⁴ in each cluster.
    """

    def __init__(self, n_rows: int, width: int, dtype: DTypeLike = np.float64) -> None:
        self.n_rows = n_rows
        self.sums: Float[np.ndarray, "clusters width"] = np.zeros((min(n_rows, MAX_CLUSTERS), width), dtype)

    def __len__(self) -> int:
        return len(self.sums)

    def add(
        self, first_row: int, values: Float[torch.Tensor, "rows width"] | Float[np.ndarray, "rows width"]
    ) -> None:
        """Add the vectors of rows `first_row`, `first_row` + 1, ..."""
        array = values if isinstance(values, np.ndarray) else values.double().cpu().numpy()
        np.add.at(self.sums, self._cluster(first_row, len(array)), array)

    def count(
        self,
        first_row: int,
        n: int,
        rows: Int[torch.Tensor, " events"],
        columns: Int[torch.Tensor, " events"],
    ) -> None:
        """Add 1 in a column for every event.

        Args:
            first_row: of a batch.
            n: rows in the batch.
            rows: where in the batch each event is, 0 ≤ row < n.
            columns: what is counted there, 0 ≤ column < width.
        """
        import torch

        if n == 0:
            return
        cluster, width = self._cluster(first_row, n), self.sums.shape[1]
        first, span = int(cluster[0]), int(cluster[-1] - cluster[0]) + 1
        place = torch.from_numpy(cluster - first).to(rows.device)
        counts = torch.bincount(place[rows] * width + columns, minlength=span * width)
        self.sums[first : first + span] += counts.view(span, width).cpu().numpy()

    @property
    def total(self) -> Float[np.ndarray, " width"]:
        """Sum over all rows, in double precision."""
        return self.sums.sum(axis=0, dtype=np.float64)

    def _cluster(self, first_row: int, n: int) -> Int[np.ndarray, " rows"]:
        return (np.arange(first_row, first_row + n) * len(self.sums)) // self.n_rows
