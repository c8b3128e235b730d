"""Planted features: 128 unit directions in 64 dimensions, of which an activation has 5 on average."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sae_faithful.metrics.matching import Weights, mean_max_cosine
from sae_faithful.ops import nearest_cosines

from .conftest import KINDS, make, noise, trained

N_FEATURES, WIDTH = 128, 64


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return torch.nn.functional.normalize(noise(N_FEATURES, WIDTH, seed=77).float(), dim=1)


def planted_batches(
    features: torch.Tensor, size: int = 512, seed: int = 1, decay: float = 1.0
) -> Iterator[torch.Tensor]:
    """Feature i is on `decay` times as often as feature i − 1."""
    rates = decay ** torch.arange(N_FEATURES)
    rates *= 5 / rates.sum()
    generator = torch.Generator().manual_seed(seed)
    while True:
        on = torch.rand(size, N_FEATURES, generator=generator) < rates
        yield (on * (0.5 + torch.rand(size, N_FEATURES, generator=generator))) @ features


def learn(features: torch.Tensor, steps: int, lr: float, *, decay: float = 1.0, **options: Any) -> Any:
    sae = make(d_in=WIDTH, d_sae=N_FEATURES, dtype="float32", **options)
    return trained(sae, planted_batches(features, decay=decay), steps, size=512, lr=lr)


def mmcs(a: torch.Tensor, b: torch.Tensor) -> float:
    nearest = nearest_cosines(a, b)[0]
    return mean_max_cosine(nearest, Weights(nearest), "all")


@KINDS
def test_a_planted_dictionary_is_found(features: torch.Tensor, tied: bool) -> None:
    sae = learn(features, *((700, 8e-3) if tied else (500, 5e-3)), l1_coefficient=0.3, tied=tied)
    found = sae.W_dec.detach()
    assert mmcs(features, found) > 0.9
    assert mmcs(found, features) > 0.9


def test_a_planted_dictionary_is_found_where_some_features_are_rarer(features: torch.Tensor) -> None:
    # The last is on 0.99¹²⁷ = 0.28 times as often as the first.
    found = learn(features, 700, 8e-3, decay=0.99, l1_coefficient=0.3).W_dec.detach()
    assert mmcs(features, found) > 0.9
    assert mmcs(found, features) > 0.9


def test_without_l1_it_is_dense_faithful_and_does_not_find_the_dictionary(features: torch.Tensor) -> None:
    x = next(planted_batches(features, 2_000, seed=99))
    l0: dict[float, float] = {}
    fvu: dict[float, float] = {}
    for l1 in (0.0, 0.3):
        sae = learn(features, 300, 8e-3, l1_coefficient=l1)
        with torch.no_grad():
            latents, reconstruction = sae.encode(x), sae(x)
        l0[l1] = float((latents != 0).sum(dim=1).float().mean())
        fvu[l1] = float((x - reconstruction).square().sum() / (x - x.mean(dim=0)).square().sum())
        if l1 == 0:
            # Directions drawn at random do as well.
            random = torch.nn.functional.normalize(noise(N_FEATURES, WIDTH, seed=5).float(), dim=1)
            assert mmcs(features, sae.W_dec.detach()) < mmcs(features, random) + 0.1 < 0.6
    assert l0[0.0] > 2 * l0[0.3]
    assert fvu[0.0] < fvu[0.3] / 2
