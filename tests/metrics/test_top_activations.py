from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_faithful.metrics.firing import Firings
from sae_faithful.metrics.top_activations import TopActivations


def found(latents: torch.Tensor) -> Firings:
    return Firings.find(latents, torch.ones(latents.shape[:2], dtype=torch.bool))


def test_the_strongest_rows_come_first_each_with_its_strongest_token() -> None:
    # Latent 0 in three rows of three tokens: strongest 5 (row 2, position 1), 3 (row 0, position 0), 1 (row 1).
    # Row 2 has a 4 too: a row counts once. Latent 1 fires once, latent 2 never.
    latents = torch.zeros(3, 3, 3)
    latents[:, :, 0] = torch.tensor([[3.0, 2.0, 0.0], [0.0, 0.0, 1.0], [4.0, 5.0, 0.0]])
    latents[1, 2, 1] = 7.0
    top = TopActivations(3, 2)
    top.add(10, found(latents))
    assert top.values.tolist() == [[5, 3], [7, 0], [0, 0]]
    assert top.rows[0].tolist() == [12, 10]
    assert top.positions[0].tolist() == [1, 0]
    assert (top.rows[1, 0], top.positions[1, 0]) == (11, 2)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_streaming_agrees_with_sorting_everything(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.rand(50, 6, 20, generator=generator) - 0.7
    top = TopActivations(20, 4)
    for start in range(0, 50, size):
        top.add(start, found(latents[start : start + size]))
    best = latents.numpy().max(axis=1)
    rows = np.argsort(-best, axis=0)[:4].T
    for j in range(20):
        assert top.rows[j].tolist() == rows[j].tolist()
        assert top.values[j].tolist() == best[rows[j], j].tolist()
        assert top.positions[j].tolist() == latents.numpy()[rows[j], :, j].argmax(axis=1).tolist()


def test_of_equal_activations_the_first_seen_is_kept() -> None:
    top = TopActivations(1, 2)
    for start in (0, 2):
        top.add(start, found(torch.ones(2, 3, 1)))
    assert (top.rows.tolist(), top.positions.tolist()) == ([[0, 1]], [[0, 0]])


def test_nothing_that_fires_changes_nothing() -> None:
    top = TopActivations(2, 3)
    top.add(0, found(torch.zeros(2, 2, 2)))
    assert not top.values.any()
