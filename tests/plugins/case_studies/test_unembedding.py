"""What a direction says to the output matrix, and whether its ablation does that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful.metrics.direct_path import NO_MATRIX
from sae_faithful_plugins.case_studies.ablation import Ablation
from sae_faithful_plugins.case_studies.unembedding import Unembedded

WIDTH = 16


def unit_rows(n: int, seed: int = 1) -> torch.Tensor:
    """Random directions of length 1."""
    drawn = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, WIDTH))).float()
    return torch.nn.functional.normalize(drawn, dim=1)


def test_scores_are_f_w_u_and_in_a_linear_readout_the_ablation_agrees(
    linear: Any, sae_of: Callable[..., Any], rows: np.ndarray
) -> None:
    handle = sae_of(unit_rows(24))
    found = Unembedded.of(handle, 3, linear.unembedding(), 4.0)
    assert isinstance(found, Unembedded)
    np.testing.assert_allclose(found.scores, (unit_rows(24)[3] @ linear.readout).numpy(), rtol=1e-5)
    assert found.kept.all()
    ablation = Ablation.run(handle, 3, rows, rows > 2, np.arange(10), linear, resolve=False, log_probs=False)
    assert ablation is not None
    agreement = found.agreement(ablation.mean)
    assert agreement is not None
    assert agreement == pytest.approx((1, 1), abs=1e-3)
    opposite = found.agreement(-ablation.mean)
    assert opposite is not None
    assert opposite == pytest.approx((-1, -1), abs=1e-3)


def test_tokens_with_an_unembedding_of_outlying_length_are_left_out(
    linear: Any, sae_of: Callable[..., Any]
) -> None:
    linear.readout[:, 40] *= 100
    handle = sae_of(unit_rows(24))
    found = Unembedded.of(handle, 0, linear.unembedding(), 4.0)
    assert isinstance(found, Unembedded)
    assert np.flatnonzero(~found.kept).tolist() == [40]
    # What the outlier does is no part of the agreement.
    effects = -found.scores.astype(np.float64)
    effects[40] = 1e6
    agreement = found.agreement(effects)
    assert agreement is not None
    assert agreement.pearson == pytest.approx(1)
    everything = Unembedded.of(handle, 0, linear.unembedding(), 0)
    assert isinstance(everything, Unembedded)
    assert everything.kept.all()


def test_why_there_is_none(linear: Any, sae_of: Callable[..., Any]) -> None:
    handle = sae_of(unit_rows(24))
    assert Unembedded.of(handle, 0, None, 4.0) == NO_MATRIX
    assert (
        Unembedded.of(handle, 0, torch.zeros(64, 48), 4.0)
        == "activations have 16 entries here, what is unembedded has 48"
    )


def test_a_direction_that_says_the_same_of_all_tokens_agrees_with_nothing(
    linear: Any, sae_of: Callable[..., Any]
) -> None:
    found = Unembedded.of(sae_of(torch.zeros(1, 16)), 0, linear.unembedding(), 4.0)
    assert isinstance(found, Unembedded)
    assert found.agreement(np.arange(64.0)) is None
