from __future__ import annotations

import pytest
import torch

from sae_faithful.metrics.random_sae import RandomTopK


def test_its_directions_are_unit_vectors_of_every_direction() -> None:
    directions = RandomTopK(64, 5_000, 8, seed=0).directions
    assert directions.norm(dim=1).tolist() == pytest.approx([1.0] * 5_000, rel=1e-5)
    # Uniform on the sphere: the second moments are 1/64 each way, with an SD of √(2/64²/5,000) or so.
    moments = directions.T @ directions / 5_000
    assert (moments - torch.eye(64) / 64).abs().max().item() < 0.003


def test_the_k_most_active_fire_with_the_projections_as_their_activations() -> None:
    sae = RandomTopK(16, 40, 5, seed=0)
    activations = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1))
    latents = sae.encode(activations)
    projected = activations @ sae.directions.T
    for token, row in zip(latents.flatten(0, 1), projected.flatten(0, 1), strict=True):
        strongest = row.topk(5)
        assert (token > 0).nonzero().flatten().tolist() == sorted(strongest.indices.tolist())
        assert token[strongest.indices].tolist() == strongest.values.tolist()


def test_what_points_away_does_not_fire_even_among_the_k() -> None:
    # As many as there are: every latent is among the k, and the half that points away stays at 0.
    latents = RandomTopK(8, 30, 30, seed=0).encode(torch.ones(1, 8))
    assert 0 < int((latents > 0).sum()) < 30
    assert (latents >= 0).all()


def test_seeds_and_shapes_make_it_and_nothing_else() -> None:
    one, same, other = (RandomTopK(8, 30, 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.directions, same.directions)
    assert not torch.equal(one.directions, other.directions)
