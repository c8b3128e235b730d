"""The k largest entries in two stages, against a full sort in float64 and against `torch.topk`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sae_faithful.ops.topk as module
from sae_faithful.ops.topk import two_stage_topk

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# From as few groups as two stages take (4 k of 64 entries) upwards; a tail of 0, 1, 63 and other lengths.
SIZES = [(256, 1), (257, 1), (319, 1), (1000, 3), (1024, 4), (2049, 8), (4673, 5), (20011, 32)]
MIN_ENTRIES = module.MIN_ENTRIES


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small tensors take two stages as well; holds the k of every call that did."""
    calls: list[int] = []
    indices = module._largest

    def recorded(x: torch.Tensor, k: int) -> torch.Tensor:
        calls.append(k)
        return indices(x, k)

    monkeypatch.setattr(module, "_largest", recorded)
    monkeypatch.setattr(module, "MIN_ENTRIES", 1)
    return calls


def distinct(rows: int, n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """No two entries of a row are equal: different bit patterns below infinity's of the 16-bit types."""
    generator = torch.Generator().manual_seed(rows * n)
    patterns = torch.stack([torch.randperm(0x7C00, generator=generator)[:n] for _ in range(rows)])
    signs = 1 - 2 * torch.randint(2, (rows, n), generator=generator)
    half = patterns.to(torch.int16).view(torch.float16 if dtype == torch.float16 else torch.bfloat16)
    return half.to(dtype) * signs.to(dtype)


def largest(x: torch.Tensor, k: int) -> np.ndarray:
    """Sorted indices of the k largest; numpy sorts NaN last, as the largest."""
    order = np.argsort(x.detach().double().numpy(), axis=-1)
    return np.sort(order[..., x.shape[-1] - k :], axis=-1)


def check(x: torch.Tensor, k: int) -> None:
    """The same set as a full sort finds, as `torch.topk` finds, and the values that are there."""
    values, indices = two_stage_topk(x, k)
    assert (values.dtype, indices.dtype) == (x.dtype, torch.int64)
    np.testing.assert_array_equal(indices.sort(dim=-1).values.numpy(), largest(x, k))
    theirs = torch.topk(x, k, dim=-1, sorted=False).indices
    assert indices.sort(dim=-1).values.equal(theirs.sort(dim=-1).values)
    torch.testing.assert_close(values, x.gather(-1, indices), rtol=0, atol=0, equal_nan=True)


def test_by_hand(staged: list[int]) -> None:
    # Two of the three largest share group 1 (64..127), one is in the tail (768..799).
    x = torch.zeros(800)
    x[[70, 100, 790]] = torch.tensor([3.0, 1.0, 2.0])
    values, indices = two_stage_topk(x, 3)
    assert dict(zip(indices.tolist(), values.tolist(), strict=True)) == {70: 3, 100: 1, 790: 2}
    assert staged == [3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_the_same_entries_as_a_full_sort(n: int, k: int, dtype: torch.dtype, staged: list[int]) -> None:
    check(distinct(7, n, dtype), k)
    assert staged == [k]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (63, 5), (64, 64), (255, 1), (257, 2), (1023, 1023)])
def test_short_rows_fall_back(n: int, k: int, dtype: torch.dtype, staged: list[int]) -> None:
    check(distinct(7, n, dtype), k)
    assert staged == []


@pytest.mark.parametrize("start", [0, 64, 100, 960, 1010])
def test_the_largest_side_by_side(start: int, staged: list[int]) -> None:
    # 1017 = 15 groups and a tail of 57 from 960 on; three neighbours above everything else, in every third row.
    x = distinct(6, 1017)
    x[::3] /= x.abs().max()
    x[::3, start : start + 3] = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
    check(x, 3)
    assert two_stage_topk(x, 3)[0][0].sort().values.tolist() == [2, 3, 4]
    assert staged == [3, 3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_ties(n: int, k: int, dtype: torch.dtype, staged: list[int]) -> None:
    x = torch.randint(-3, 3, (7, n), generator=torch.Generator().manual_seed(n)).to(dtype)
    values, indices = two_stage_topk(x, k)
    assert values.sort().values.equal(torch.topk(x, k).values.flip(-1))
    assert values.equal(x.gather(-1, indices))
    assert all(len(set(row)) == k for row in indices.tolist())
    assert staged == [k]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nans", [1, 5, 8])
def test_nan_is_the_largest(nans: int, dtype: torch.dtype, staged: list[int]) -> None:
    x = distinct(7, 2100, dtype)
    # Each in a group of its own; all in the tail.
    x[2, torch.arange(nans) * 70] = torch.nan
    x[4, -nans:] = torch.nan
    check(x, 8)
    x[5, :20] = torch.nan
    assert two_stage_topk(x, 8)[0][5].isnan().all()
    assert staged == [8, 8]


def test_infinities(staged: list[int]) -> None:
    x = distinct(3, 2100)
    x[0] = -torch.inf
    x[1, 5:] = -torch.inf
    x[2, :3] = torch.inf
    values, indices = two_stage_topk(x, 8)
    assert values.sort().values.equal(torch.topk(x, 8).values.flip(-1))
    assert values.equal(x.gather(-1, indices))
    assert all(len(set(row)) == 8 for row in indices.tolist())
    assert set(range(5)) <= set(indices[1].tolist())
    assert staged == [8]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[0],
        lambda x: x[:1],
        lambda x: x.view(2, 3, 1, -1),
        lambda x: x.T.contiguous().T,
        lambda x: x[::2],
        lambda x: x[:, ::2],
        lambda x: x[:, 3:-4],
        lambda x: x[:2].expand(4, 2, -1),
    ],
    ids=["vector", "row", "4d", "transposed", "rows apart", "columns apart", "cut", "expanded"],
)
@pytest.mark.parametrize("k", [3, 30])
def test_any_shape_and_strides(
    view: Callable[[torch.Tensor], torch.Tensor], k: int, staged: list[int]
) -> None:
    x = view(distinct(6, 2100))
    check(x, k)
    assert two_stage_topk(x, k)[1].shape == (*x.shape[:-1], k)
    # 32 groups or half of that, against 4 k.
    assert staged == ([3, 3] if k == 3 else [])


@pytest.mark.parametrize(
    ("shape", "k"), [((0, 1000), 3), ((2, 0, 1000), 3), ((3, 1000), 0), ((3, 0), 0), ((0, 0), 0)]
)
def test_nothing(shape: tuple[int, ...], k: int, staged: list[int]) -> None:
    for found in two_stage_topk(torch.ones(shape), k):
        assert found.shape == (*shape[:-1], k)
    assert staged == []


@pytest.mark.parametrize(
    ("rows", "n", "k", "two"),
    [(32, 4096, 16, True), (31, 4096, 16, False), (32, 4096, 17, False), (33, 4095, 16, False)],
)
def test_where_two_stages_are_taken(
    rows: int, n: int, k: int, two: bool, staged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 4096 / 64 = 64 groups = 4 x 16; 32 x 4096 = 2^17 entries.
    monkeypatch.setattr(module, "MIN_ENTRIES", MIN_ENTRIES)
    check(distinct(rows, n), k)
    assert staged == [k] * two


@pytest.mark.parametrize(("n", "k", "two"), [(2100, 8, True), (2048, 8, True), (500, 8, False)])
def test_gradients(n: int, k: int, two: bool, staged: list[int]) -> None:
    x = torch.randn(2, 3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)).requires_grad_()
    (two_stage_topk(x, k)[0] ** 3).sum().backward()
    # d(v^3) = 3 v^2 at the largest entries and 0 elsewhere.
    expected = np.zeros(x.shape)
    values = x.detach().numpy()
    np.put_along_axis(expected, largest(x, k), np.take_along_axis(3 * values**2, largest(x, k), -1), -1)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-15)
    (theirs,) = torch.autograd.grad((torch.topk(x, k).values ** 3).sum(), x)
    assert x.grad.equal(theirs)
    assert staged == [k] * two


@pytest.mark.parametrize(("n", "k", "two"), [(2100, 8, True), (2048, 8, True), (500, 8, False)])
def test_compiled_in_one_graph(n: int, k: int, two: bool, staged: list[int]) -> None:
    torch.compiler.reset()
    compiled = torch.compile(two_stage_topk, fullgraph=True, backend="aot_eager")
    x = distinct(5, n).requires_grad_()
    values, indices = compiled(x, k)
    assert staged == [k] * two
    np.testing.assert_array_equal(indices.sort().values.numpy(), largest(x, k))
    assert values.equal(x.gather(-1, indices))
    (grad,) = torch.autograd.grad(values.sum(), x)
    assert grad.nonzero()[:, 1].view(5, k).equal(indices.sort().values)


@pytest.mark.parametrize("n", [8192, 8191])
def test_x_is_read_once_and_never_copied(n: int, staged: list[int]) -> None:
    x, readers, largest_made = distinct(8, n, torch.float32), [], 0

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest_made
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if tensor.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
                    largest_made = max(largest_made, tensor.numel())
                    first = args[0] if args else None
                    if isinstance(first, torch.Tensor) and first.numel() > x.numel() / 2:
                        readers.append(func.overloadpacket.__name__)
            return out

    with Recorder():
        two_stage_topk(x, 4)
    assert staged == [4]
    # index_select picks windows of x; only amax reads all of it.
    assert readers == ["amax", "index_select"]
    # Four groups of 64 and a tail shorter than one.
    assert 8 * 4 * 64 <= largest_made < 8 * 5 * 64


@pytest.mark.parametrize("k", [-1, 1001])
def test_what_cannot_be_chosen_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k {k}: from 0 to the 1000 entries"):
        two_stage_topk(torch.ones(2, 1000), k)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_cuda(n: int, k: int, dtype: torch.dtype, staged: list[int]) -> None:
    x = distinct(7, n, dtype)
    np.testing.assert_array_equal(two_stage_topk(x.cuda(), k)[1].sort().values.cpu().numpy(), largest(x, k))
    assert staged == [k]
