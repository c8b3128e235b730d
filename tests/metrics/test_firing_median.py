from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_faithful.metrics.firing import Firings
from sae_faithful.metrics.firing_median import FiringMedians


def fired(*latents: list[float]) -> Firings:
    """One row in which each latent has the given activations, on as many tokens."""
    longest = max(len(values) for values in latents)
    table = torch.zeros(1, longest, len(latents))
    for index, values in enumerate(latents):
        table[0, : len(values), index] = torch.tensor(values)
    return Firings.find(table, torch.ones(1, longest, dtype=torch.bool))


def thresholds(*latents: list[float]) -> np.ndarray:
    medians = FiringMedians(len(latents))
    medians.add(fired(*latents))
    return medians.thresholds()


def test_the_threshold_is_the_largest_float_of_the_medians_bin() -> None:
    # Between 2 and 4 bins are 2/16 = .125 wide, between 1 and 2 half of that.
    found = thresholds([2.0, 2.0, 2.0], [1.0, 3.05, 9.0], [1.99])
    below = [np.nextafter(np.float32(edge), np.float32(0)) for edge in (2.125, 3.125, 2.0)]
    assert found.tolist() == below


def test_the_median_of_an_even_number_is_the_lower_one() -> None:
    assert thresholds([1.0, 8.0])[0] < 1.0625
    assert thresholds([1.0, 8.0, 8.0])[0] > 8


def test_latents_that_never_fired_have_zero_and_huge_medians_infinity() -> None:
    assert thresholds([1.0], [], [2.0**16]).tolist()[1:] == [0, np.inf]
    assert FiringMedians(2).thresholds().tolist() == [0, 0]


@pytest.mark.parametrize("scale", [1e-4, 0.03, 1.0, 700.0])
def test_half_of_the_activations_are_above_the_median_up_to_the_stated_error(scale: float) -> None:
    """What counts as above is above the median; what does not is at most 1/16 above it."""
    rng = np.random.default_rng(0)
    values = (scale * rng.lognormal(0, 0.7, size=(1, 1_001, 40))).astype(np.float32)
    medians = FiringMedians(40)
    for part in np.array_split(values, 7, axis=1):
        medians.add(Firings.find(torch.from_numpy(part), torch.ones(1, part.shape[1], dtype=torch.bool)))
    threshold, exact = medians.thresholds(), np.median(values[0], axis=0)
    assert (threshold >= exact).all()
    assert (threshold <= exact * (1 + 1 / 16)).all()


def test_scaling_by_a_power_of_two_scales_the_threshold() -> None:
    values = [0.3, 1.1, 1.7, 5.2, 40.0]
    assert thresholds([8 * value for value in values])[0] == 8 * thresholds(values)[0]


def test_widths_beyond_one_chunk_agree_with_narrow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_faithful.metrics import firing_median

    latents = [[float(2**i), float(2**i)] for i in range(-5, 6)]
    whole = thresholds(*latents)
    monkeypatch.setattr(firing_median, "LATENTS_PER_CHUNK", 4)
    assert thresholds(*latents).tolist() == whole.tolist()
