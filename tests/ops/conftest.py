"""How far a result is from its float64 reference."""

from __future__ import annotations

import torch


def error(got: torch.Tensor | None, expected: torch.Tensor | None) -> float:
    """||got - expected|| / ||expected||; where nothing but zeros is expected, ||got||."""
    assert got is not None and expected is not None
    assert got.shape == expected.shape
    expected = expected.detach()
    size = expected.norm().item() or 1.0
    return (got.detach().double() - expected).norm().item() / size
