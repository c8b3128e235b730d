"""Sums over clusters of rows, the units that intervals resample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int

MAX_CLUSTERS = 200
"""More would cost memory (one sum a latent each) and change no interval."""


class ClusterSums:
    """Sums of per-row vectors over at most 200 clusters of neighbouring rows.

    Documents run over neighbouring rows, so that clusters of neighbours are independent where rows are not.
    """

    def __init__(self, n_rows: int, width: int) -> None:
        self.n_rows = n_rows
        self.sums: Float[np.ndarray, "clusters width"] = np.zeros((min(n_rows, MAX_CLUSTERS), width))

    def __len__(self) -> int:
        return len(self.sums)

    def add(
        self, first_row: int, values: Float[torch.Tensor, "rows width"] | Float[np.ndarray, "rows width"]
    ) -> None:
        """Add the vectors of rows `first_row`, `first_row` + 1, ..."""
        array = values if isinstance(values, np.ndarray) else values.double().cpu().numpy()
        np.add.at(self.sums, self._cluster(first_row, len(array)), array)

    @property
    def total(self) -> Float[np.ndarray, " width"]:
        """Sum over all rows."""
        return self.sums.sum(axis=0)

    def _cluster(self, first_row: int, n: int) -> Int[np.ndarray, " rows"]:
        return (np.arange(first_row, first_row + n) * len(self.sums)) // self.n_rows
