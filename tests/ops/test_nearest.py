"""Nearest neighbours both ways, against all cosines in float64."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful.ops import match_features, nearest_cosines


def dense(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    unit_a, unit_b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (a, b))
    return unit_a @ unit_b.T


def test_by_hand() -> None:
    # Cosines of (1, 0), (0, 1), (-1, 0) with (3, 4): .6, .8, -.6; with (-2, 0): -1, 0, 1.
    of_a, of_b = nearest_cosines(np.array([[1.0, 0], [0, 1], [-1, 0]]), np.array([[3.0, 4], [-2, 0]]))
    assert of_a.tolist() == pytest.approx([0.6, 0.8, 1.0])
    assert of_b.tolist() == pytest.approx([0.8, 1.0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (13, 5), (97, 97), (60, 131)])
@pytest.mark.parametrize("block", [1, 100, 1000, 2**25])
def test_the_largest_of_all_cosines_both_ways(shape: tuple[int, int], block: int) -> None:
    rng = np.random.default_rng(sum(shape))
    a, b = (rng.standard_normal((n, 19)) * rng.uniform(0.01, 100, (n, 1)) for n in shape)
    of_a, of_b = nearest_cosines(a, b, block=block)
    # Two neighbours closer than float32 tells apart would differ by less than this.
    np.testing.assert_allclose(of_a, dense(a, b).max(axis=1), atol=1e-6)
    np.testing.assert_allclose(of_b, dense(a, b).max(axis=0), atol=1e-6)


def test_copies_have_the_cosine_that_matching_gives_them() -> None:
    a = np.random.default_rng(0).standard_normal((50, 30)).astype(np.float32)
    b = a[::-1].copy()
    match = match_features(a, b)
    assert nearest_cosines(a, b)[0].tolist() == match.cosine.tolist()


def test_rows_of_length_zero_have_no_neighbour_and_are_nobodys() -> None:
    # Against the zero row, the nearest row of (-1, 0) would be at 0 and not at -1.
    of_a, of_b = nearest_cosines(np.array([[-1.0, 0], [0, 0]]), np.array([[0.0, 0], [2, 0], [0, 0]]))
    assert of_a.tolist() == [-1, -np.inf]
    assert of_b.tolist() == [-np.inf, -1, -np.inf]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_has_no_neighbour(shape: tuple[int, int]) -> None:
    of_a, of_b = nearest_cosines(np.ones((shape[0], 2)), np.ones((shape[1], 2)))
    assert (of_a.tolist(), of_b.tolist()) == ([-np.inf] * shape[0], [-np.inf] * shape[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_of_any_float_type(dtype: torch.dtype) -> None:
    a, b = (torch.randn(n, 9, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (20, 30))
    cosine = dense(a.double().numpy(), b.double().numpy())
    of_a, of_b = nearest_cosines(a.requires_grad_(), b)
    np.testing.assert_allclose(of_a, cosine.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(of_b, cosine.max(axis=0), atol=1e-6)


def test_the_matrix_is_never_held() -> None:
    n, block, largest = 1_000, 20_000, 0
    a, b = (torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))

    class Recorder(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    tracemalloc.start()
    with Recorder():
        nearest_cosines(a, b, block=block)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert largest == block
    # Python's and numpy's memory, where torch's is not counted.
    assert peak < 8 * n * n / 10


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), {}, "a has 3 dimensions and b 4"),
        (np.ones(3), np.ones((2, 3)), {}, r"a has shape \(3,\)"),
        (np.ones((2, 3)), np.full((2, 3), np.nan), {}, "b has invalid numeric entries"),
        (np.ones((2, 3)), np.ones((2, 3)), {"block": 0}, "block 0: at least 1"),
    ],
)
def test_what_has_no_neighbours_is_refused(a: Any, b: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_cosines(a, b, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda() -> None:
    a, b = (torch.randn(n, 40, generator=torch.Generator().manual_seed(n)) for n in (200, 300))
    for here, there in zip(
        nearest_cosines(a, b), nearest_cosines(a.cuda(), b.cuda(), block=999), strict=True
    ):
        np.testing.assert_allclose(here, there, atol=1e-6)
