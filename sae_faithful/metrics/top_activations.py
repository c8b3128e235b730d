"""Each latent's strongest activations and where they were, kept while tokens stream past."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int

    from sae_faithful.metrics.firing import Firings


class TopActivations:
    """For every latent the m rows in which it is most active, each with its strongest token.

    One token a row: neighbours of one passage would else fill the list. Memory is m values and places a latent,
    whatever the number of tokens. Of equal activations the first seen is kept.
    """

    def __init__(self, d_sae: int, m: int) -> None:
        self.values: Float[np.ndarray, "d_sae m"] = np.zeros((d_sae, m), np.float32)
        """Strongest first; 0 where a latent fired in fewer rows."""
        self.rows: Int[np.ndarray, "d_sae m"] = np.zeros((d_sae, m), np.int64)
        self.positions: Int[np.ndarray, "d_sae m"] = np.zeros((d_sae, m), np.int64)

    def add(self, first_row: int, found: Firings) -> None:
        """Take in what fired in rows that were not seen before."""
        m = self.values.shape[1]
        latents, values = found.latents.cpu().numpy(), found.values.cpu().numpy()
        # Few are stronger than what is kept, once some text has passed.
        (stronger,) = np.nonzero(values > self.values[latents, m - 1])
        latents, values = latents[stronger], values[stronger]
        rows, positions = found.rows.cpu().numpy()[stronger], found.positions.cpu().numpy()[stronger]
        best = _first_of_runs(np.lexsort((positions, -values, rows, latents)), latents, rows)
        latents, values, rows, positions = (each[best] for each in (latents, values, rows, positions))
        order = np.lexsort((rows, -values, latents))
        latents, values, rows, positions = (each[order] for each in (latents, values, rows, positions))
        changed, start = np.unique(latents, return_index=True)
        rank = np.arange(len(latents)) - np.repeat(start, np.diff(start, append=len(latents)))
        kept = rank < m
        owner, rank = np.searchsorted(changed, latents[kept]), rank[kept]
        news = [np.zeros((len(changed), m), kind) for kind in (np.float32, np.int64, np.int64)]
        for new, each in zip(news, (values, rows + first_row, positions), strict=True):
            new[owner, rank] = each[kept]
        keep_largest((self.values, self.rows, self.positions), changed, news)


def keep_largest(
    kept: Sequence[np.ndarray], latents: Int[np.ndarray, " changed"], news: Sequence[np.ndarray]
) -> None:
    """Merge new entries into those kept, in place: each latent's largest values, of equal ones the earlier.

    Args:
        kept: arrays [d_sae, m]; the first holds values, largest first, the others what belongs to them.
        latents: those with new entries.
        news: arrays [changed, any number] for these latents, in the order of `kept`.
    """
    m = kept[0].shape[1]
    both = [np.concatenate([old[latents], new], axis=1) for old, new in zip(kept, news, strict=True)]
    order = np.argsort(-both[0], axis=1, kind="stable")[:, :m]
    for old, each in zip(kept, both, strict=True):
        old[latents] = np.take_along_axis(each, order, axis=1)


def _first_of_runs(order: np.ndarray, latents: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of each (latent, row), the one that comes first in `order`, which sorts by latent and row."""
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(latents[order]) != 0) | (np.diff(rows[order]) != 0)
    return order[new]
