"""Which entries are held, who computes with them, and what importing that brings along."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sae_faithful.ops import Entries, decode_entries, sparse_outer
from sae_faithful.ops.entries import CHECK_INDICES, check_entries, group_by_feature, implementation


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def test_rows_of_equal_length() -> None:
    entries = Entries.of_rows(torch.tensor([[4, 0, -1], [2, 2, 1]]), 5)
    assert entries.indices.tolist() == [4, 0, -1, 2, 2, 1]
    assert entries.row_offsets.tolist() == [0, 3, 6]
    assert (entries.n_features, len(entries.by_feature)) == (5, 0)


@pytest.mark.parametrize(("n", "k"), [(0, 3), (3, 0), (0, 0)])
def test_rows_of_nothing(n: int, k: int) -> None:
    entries = Entries.of_rows(torch.zeros(n, k, dtype=torch.long), 5)
    assert entries.indices.tolist() == []
    assert entries.row_offsets.tolist() == [0] * (n + 1)


@pytest.mark.parametrize("shape", [(), (6,), (1, 2, 3)])
def test_what_is_not_rows_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rows of indices are wanted") as refused:
        Entries.of_rows(torch.zeros(shape, dtype=torch.long), 5)
    assert str(shape) in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_by_feature_by_hand(dtype: torch.dtype) -> None:
    # Rows (2, 0), (), (-1, 2, 2): entry 2 is empty, feature 0 has entry 1, feature 2 has 0, 3 and 4, in row order.
    indices, offsets = torch.tensor([2, 0, -1, 2, 2], dtype=dtype), torch.tensor([0, 2, 2, 5])
    order, rows, features, starts = group_by_feature(indices, offsets, 4)
    assert order.tolist() == [2, 1, 0, 3, 4]
    assert rows.tolist() == [2, 0, 0, 2, 2]
    assert features.tolist() == [-1, 0, 2, 2, 2]
    assert starts.tolist() == [1, 2, 2, 5, 5]


def test_grouping_sorts_once_and_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    entries = Entries.of_rows(torch.randint(-1, 13, (9, 3), generator=generator), 13)
    grouped = entries.grouped()
    assert len(entries.by_feature) == 0 and grouped.grouped() is grouped
    values = torch.randn(27, generator=generator, requires_grad=True)
    weight = torch.randn(13, 7, generator=generator, requires_grad=True)
    rows = torch.randn(9, 7, generator=generator, requires_grad=True)
    sorts: list[int] = []
    sort = torch.sort
    monkeypatch.setattr(torch, "sort", lambda *args, **options: (sorts.append(1), sort(*args, **options))[1])

    def results(held: Entries) -> tuple[torch.Tensor, ...]:
        out, (per_feature, sums) = decode_entries(held, values, weight), sparse_outer(held, values, rows)
        loss = out.square().sum() + per_feature.square().sum() + sums.square().sum()
        return out, per_feature, sums, *torch.autograd.grad(loss, (values, weight, rows))

    of_grouped = results(grouped)
    assert sorts == []
    of_plain = results(entries)
    assert sorts
    assert all(torch.equal(a, b) for a, b in zip(of_plain, of_grouped, strict=True))


def check(indices: torch.Tensor) -> None:
    """All of them in one row of 13 features."""
    check_entries(indices, torch.tensor([0, indices.numel()]), 13)


@pytest.mark.parametrize(
    ("indices", "outside"), [([0, 13], 13), ([-2, 0], -2), ([-1, 40, 12], 40), ([-9, 40], -9)]
)
def test_an_index_that_is_no_feature(indices: list[int], outside: int) -> None:
    with pytest.raises(IndexError, match=rf"^index {outside} is not one of 13 features \(nor -1, which"):
        check(torch.tensor(indices))


@pytest.mark.parametrize("indices", [[], [-1], [0, 12, -1]])
def test_indices_that_are_features_or_empty(indices: list[int]) -> None:
    check(torch.tensor(indices, dtype=torch.long))


@pytest.mark.parametrize(("setting", "checked"), [(None, False), ("0", False), ("", False), ("1", True)])
def test_indices_on_a_gpu_are_checked_if_asked_for(
    setting: str | None, checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CHECK_INDICES, raising=False)
    if setting is not None:
        monkeypatch.setenv(CHECK_INDICES, setting)
    indices = torch.tensor([0, 13]).as_subclass(OnGpu)
    if checked:
        with pytest.raises(IndexError, match="index 13 is not one of 13 features"):
            check(indices)
    else:
        check(indices)
    # On a CPU they always are.
    with pytest.raises(IndexError):
        check(torch.tensor([0, 13]))


@pytest.mark.parametrize("dtype", [torch.int16, torch.bool, torch.float32])
def test_indices_of_another_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"^indices are {dtype}: int32 or int64 is wanted"):
        check(torch.zeros(3, dtype=dtype))


@pytest.mark.parametrize("row_offsets", [[], [0], [0, 2], [0, 4], [1, 3], [0, 3, 1, 3], [0, -1, 3]])
def test_row_offsets_that_do_not_hold_the_entries(row_offsets: list[int]) -> None:
    entries = Entries(torch.tensor([0, 1, 2]), torch.tensor(row_offsets, dtype=torch.long), 5)
    with pytest.raises(ValueError, match=r"^row_offsets must rise from 0 to the 3 entries"):
        decode_entries(entries, torch.ones(3), torch.ones(5, 2))


def test_the_variable_is_called_as_documented() -> None:
    assert CHECK_INDICES == "SAE_FAITHFUL_CHECK_INDICES"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_cpu_computes_without_kernels(dtype: torch.dtype) -> None:
    assert implementation(torch.zeros(1, dtype=dtype)).__name__ == "sae_faithful.ops.sparse_eager"


def test_float64_on_a_gpu_computes_without_kernels() -> None:
    single, double = (
        torch.zeros(1, dtype=dtype).as_subclass(OnGpu) for dtype in (torch.float32, torch.float64)
    )
    assert implementation(single, double).__name__ == "sae_faithful.ops.sparse_eager"


def run(program: str) -> None:
    """A fresh interpreter goes through the program."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]


def test_importing_the_package_imports_no_torch() -> None:
    run("""
import sys
import sae_faithful.ops
assert "sparse_decode" in dir(sae_faithful.ops) and "Entries" in sae_faithful.ops.__all__
assert "torch" not in sys.modules
""")


def test_without_triton_and_without_sae_lens() -> None:
    # None in sys.modules: importing that raises ImportError.
    run("""
import sys
sys.modules["triton"] = sys.modules["sae_lens"] = None
import torch
from sae_faithful.ops import Entries, decode_entries, sparse_decode, sparse_encode, sparse_outer
import sae_faithful.ops.entries
assert not sae_faithful.ops.entries.TRITON_FOUND
values, weight = torch.ones(1, 2, requires_grad=True), torch.ones(3, 4, requires_grad=True)
indices = torch.tensor([[2, -1]])
entries = Entries.of_rows(indices, 3)
sparse_decode(indices, values, weight).sum().backward()
assert values.grad.tolist() == [[4, 0]]
assert weight.grad.sum(1).tolist() == [0, 0, 4]
pre = sparse_encode(entries, values.reshape(-1), torch.ones(1, 4), weight, torch.zeros(3))
assert decode_entries(entries, pre, weight).tolist() == [[1, 1, 1, 1]]
assert sparse_outer(entries, pre, torch.ones(1, 4))[1].tolist() == [0, 0, 1]
assert "sae_faithful.ops.sparse_triton" not in sys.modules
""")


def test_names_are_functions_even_after_their_files_are_imported() -> None:
    import sae_faithful.ops.decode
    import sae_faithful.ops.encode
    import sae_faithful.ops.outer
    from sae_faithful.ops import sparse_decode, sparse_encode

    for function, file in [
        (sparse_decode, sae_faithful.ops.decode), (sparse_encode, sae_faithful.ops.encode),
        (sparse_outer, sae_faithful.ops.outer),
    ]:  # fmt: skip
        assert callable(function) and getattr(file, function.__name__) is function
