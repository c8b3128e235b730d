"""What directions say to an output matrix, by hand."""

from __future__ import annotations

import torch

from sae_faithful.metrics.direct_path import NO_MATRIX, DirectPath

# Rows of length 1, 1, 2, 8 and 0: the median is 1.
MATRIX = torch.tensor([[1.0, 0.0], [0.0, -1.0], [2.0, 0.0], [0.0, 8.0], [0.0, 0.0]])


def test_scores_are_products_with_every_row() -> None:
    path = DirectPath.of(MATRIX, 2)
    assert isinstance(path, DirectPath)
    directions = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    assert path.scores(directions).tolist() == [[1, -2, 2, 16, 0], [-1, -0.5, -2, 4, 0]]


def test_rows_of_outlying_length_are_not_kept() -> None:
    for max_norm, kept in (
        (4.0, [0, 1, 2, 4]),
        (8.0, [0, 1, 2, 3, 4]),
        (1.5, [0, 1, 4]),
        (0, [0, 1, 2, 3, 4]),
    ):
        path = DirectPath.of(MATRIX, 2, max_norm)
        assert isinstance(path, DirectPath)
        assert path.kept.nonzero()[0].tolist() == kept


def test_why_there_is_none() -> None:
    assert DirectPath.of(None, 2) == NO_MATRIX
    assert DirectPath.of(MATRIX, 3) == "activations have 3 entries here, what is unembedded has 2"
