"""Sums of rows by feature, against the transpose of a dense float64 matrix times the rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sae_faithful.ops import Entries, decode_entries, sparse_outer

from .conftest import error

TOLERANCES = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 5e-3}
# n, k, n_features, d
SIZES = [
    (1, 1, 5, 1), (9, 3, 13, 7), (130, 32, 1001, 40), (130, 32, 13, 577), (9, 32, 5, 40), (1, 3, 1001, 577),
]  # fmt: skip


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_entries(n: int, k: int, n_features: int, lowest: int = -1) -> Entries:
    generator = torch.Generator().manual_seed(1)
    return Entries.of_rows(torch.randint(lowest, n_features, (n, k), generator=generator), n_features)


def leaves(*tensors: torch.Tensor, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    return [tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in tensors]


def dense(entries: Entries, values: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The entries scattered into [n, n_features], transposed, times the rows; and its column sums."""
    held = entries.indices >= 0
    row = torch.arange(len(rows)).repeat_interleave(entries.row_offsets.diff())
    acts = torch.zeros(len(rows), entries.n_features, dtype=torch.float64)
    acts = acts.index_put((row[held], entries.indices[held].long()), values[held], accumulate=True)
    return acts.T @ rows, acts.sum(0)


def assert_as_dense(
    entries: Entries,
    values: torch.Tensor,
    rows: torch.Tensor,
    grads: tuple[torch.Tensor, torch.Tensor],
    tolerances: tuple[float, float],
) -> None:
    """`sparse_outer` and its gradients are within the tolerances (of values, of rows) of `dense`."""
    inputs = [tensor.detach().requires_grad_() for tensor in (values, rows)]
    exact = leaves(*inputs, dtype=torch.float64)
    out, sums = sparse_outer(entries, *inputs)
    expected = dense(entries, *exact)
    torch.autograd.backward([out, sums], grads)
    torch.autograd.backward(expected, [grad.double() for grad in grads])
    assert out.dtype == rows.dtype
    assert sums.dtype == (torch.float64 if torch.float64 in (values.dtype, rows.dtype) else torch.float32)
    assert error(out, expected[0]) <= tolerances[1]
    assert error(sums, expected[1]) <= 1e-6
    for given, wanted, tolerance in zip(inputs, exact, tolerances, strict=True):
        assert given.grad is not None and given.grad.dtype == given.dtype
        assert error(given.grad, wanted.grad) <= tolerance


def test_by_hand() -> None:
    entries = Entries(torch.tensor([2, 0, -1, 2, 2]), torch.tensor([0, 3, 3, 5]), 4)
    values = torch.tensor([2.0, 3, 7, 1, 4], requires_grad=True)
    rows = torch.tensor([[1.0, 10], [50, 50], [2, 20]], requires_grad=True)
    out, sums = sparse_outer(entries, values, rows)
    # Feature 0: 3·row 0. Feature 2: 2·row 0 + (1 + 4)·row 2. The empty slot's 7 is nowhere, nor is row 1.
    assert out.tolist() == [[3, 30], [0, 0], [12, 120], [0, 0]]
    assert sums.tolist() == [3, 0, 7, 0]
    torch.autograd.backward([out, sums], [torch.ones(4, 2), torch.tensor([100.0, 0, 1000, 0])])
    # To a value: its row's sum (11 or 22), and what its feature's sum receives.
    assert values.grad is not None and values.grad.tolist() == [1011, 111, 0, 1022, 1022]
    assert rows.grad is not None and rows.grad.tolist() == [[5, 5], [0, 0], [5, 5]]


@pytest.mark.parametrize("lowest", [0, -1])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_sums_and_gradients(dtype: torch.dtype, size: tuple[int, int, int, int], lowest: int) -> None:
    n, k, n_features, d = size
    assert_as_dense(
        random_entries(n, k, n_features, lowest),
        random(n * k, seed=2, dtype=dtype),
        random(n, d, seed=3, dtype=dtype),
        (random(n_features, d, seed=4, dtype=dtype), random(n_features, seed=5, dtype=torch.float32)),
        (TOLERANCES[dtype],) * 2,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_two_parts_of_a_values_gradient_are_added_before_they_are_rounded(dtype: torch.dtype) -> None:
    # The dot product is 1 + 2⁻¹¹ + 2⁻¹², which half precision cannot hold; of it, the sum's gradient takes 1.
    entries = Entries.of_rows(torch.tensor([[0]]), 1)
    values = torch.ones(1, dtype=dtype, requires_grad=True)
    out, sums = sparse_outer(entries, values, torch.tensor([[1, 2**-11, 2**-12]], dtype=dtype))
    torch.autograd.backward([out, sums], [torch.ones_like(out), -torch.ones_like(sums)])
    assert values.grad is not None and values.grad.item() == 2**-11 + 2**-12


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float64),
    ],
)
def test_each_gradient_has_its_own_dtype(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    of = {**TOLERANCES, torch.float64: 1e-6}
    sums_dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    assert_as_dense(
        random_entries(30, 8, 13),
        random(240, seed=2, dtype=dtypes[0]),
        random(30, 17, seed=3, dtype=dtypes[1]),
        (random(13, 17, seed=4, dtype=dtypes[1]), random(13, seed=5, dtype=sums_dtype)),
        (of[dtypes[0]], of[dtypes[1]]),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_held_in_float32(dtype: torch.dtype) -> None:
    # One feature has 30 % of 10,000 rows. Everything is positive: see the decoder's test.
    n = 10_000
    hot = torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.3
    entries = Entries.of_rows(torch.where(hot, 3, -1)[:, None], 5)
    values, rows = random(n, seed=2).abs().to(dtype), random(n, 7, seed=3).abs().to(dtype) / 64
    out, sums = sparse_outer(entries, values, rows)
    expected = dense(entries, values.double(), rows.double())
    assert error(out, expected[0]) <= TOLERANCES[dtype]
    assert error(sums, expected[1]) <= 1e-5
    serial, products = torch.zeros(7, dtype=dtype), values[hot, None] * rows[hot]
    for product in products:
        serial += product
    assert error(serial, products.double().sum(0)) > 10 * TOLERANCES[dtype]


def test_results_are_bitwise_reproducible() -> None:
    entries = random_entries(2_000, 8, 200)
    entries.indices[: 2_000 * 8 : 24] = 3
    values, rows = leaves(random(16_000, seed=2), random(2_000, 40, seed=3), dtype=torch.float32)

    def results(entries: Entries) -> list[torch.Tensor]:
        out, sums = sparse_outer(entries, values, rows)
        return [out, sums, *torch.autograd.grad(out.square().sum() + sums.square().sum(), [values, rows])]

    first = results(entries.grouped())
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, results(entries), strict=True))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("lengths", [[3, 0, 1, 7, 0, 2, 5, 0], [0, 0, 18, 0], [0, 0]])
def test_rows_of_different_lengths_and_any_strides(index_dtype: torch.dtype, lengths: list[int]) -> None:
    nnz, n = sum(lengths), len(lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    indices = random_entries(1, 2 * nnz, 13).indices.to(index_dtype)[::2]
    entries = Entries(indices, offsets.to(index_dtype), 13)
    values, rows = random(2 * nnz, seed=2).float()[::2], random(7, n, seed=3).float().T
    g_out, g_sums = random(7, 13, seed=4).float().T, random(13, seed=5).float()
    assert_as_dense(entries, values, rows, (g_out, g_sums), (1e-6, 1e-6))
    ones = torch.ones(1)
    assert_as_dense(
        entries, ones.expand(nnz), rows[:1].expand(n, 7), (ones.expand(13, 7), ones.expand(13)), (1e-6, 1e-6)
    )


@pytest.mark.parametrize(("n", "k", "d"), [(0, 3, 7), (5, 0, 7), (5, 3, 0)], ids=["n", "k", "d"])
def test_nothing_to_add_up(n: int, k: int, d: int) -> None:
    entries = random_entries(n, k, 13)
    values, rows = leaves(random(n * k, seed=2), random(n, d, seed=3))
    out, sums = sparse_outer(entries, values, rows)
    assert torch.equal(out, torch.zeros(13, d, dtype=torch.float64))
    assert error(sums, dense(entries, values, rows)[1]) <= 1e-15
    out.sum().backward()
    for given in (values, rows):
        assert given.grad is not None and torch.equal(given.grad, torch.zeros_like(given))


def test_what_no_entry_uses_is_not_read() -> None:
    # Row 1 holds nothing, feature 1 is nobody's, and neither are the last row and the last feature.
    entries = Entries.of_rows(torch.tensor([[0, 2], [-1, -1], [2, -1], [-1, -1]]), 4)
    values = random(8, seed=2)
    values[[2, 3, 5, 6, 7]] = float("nan")
    rows = random(4, 7, seed=3)
    rows[[1, 3]] = float("nan")
    values, rows = leaves(values, rows)
    out, sums = sparse_outer(entries, values, rows)
    g_out, g_sums = random(4, 7, seed=4), random(4, seed=5)
    g_out[[1, 3]], g_sums[[1, 3]] = float("nan"), float("nan")
    torch.autograd.backward([out, sums], [g_out, g_sums])
    for given in (out, sums, values.grad, rows.grad):
        assert given is not None and bool(given.isfinite().all())


@pytest.mark.parametrize("used", ["out", "sums"])
def test_one_of_the_two_results_alone(used: str) -> None:
    entries = random_entries(9, 3, 13)
    values, rows = leaves(random(27, seed=2), random(9, 7, seed=3))
    exact = leaves(values, rows)
    which = ["out", "sums"].index(used)
    sparse_outer(entries, values, rows)[which].square().sum().backward()
    dense(entries, *exact)[which].square().sum().backward()
    assert error(values.grad, exact[0].grad) <= 1e-14
    assert error(rows.grad, torch.zeros(9, 7) if used == "sums" else exact[1].grad) <= 1e-14


@pytest.mark.parametrize("learned", ["values", "rows"])
def test_what_is_frozen_has_no_gradient(learned: str) -> None:
    inputs = {"values": random(27), "rows": random(9, 7)}
    inputs[learned].requires_grad_()
    out, sums = sparse_outer(random_entries(9, 3, 13), **inputs)
    (out.sum() + sums.sum()).backward()
    assert [name for name, tensor in inputs.items() if tensor.grad is not None] == [learned]


@pytest.mark.parametrize("grouped", [False, True])
def test_gradcheck(grouped: bool) -> None:
    entries = Entries(random_entries(1, 9, 6).indices, torch.tensor([0, 3, 3, 4, 9]), 6)
    entries = entries.grouped() if grouped else entries
    inputs = leaves(random(9, seed=2), random(4, 5, seed=3))
    assert torch.autograd.gradcheck(lambda *given: sparse_outer(entries, *given), inputs)


def test_gradcheck_where_both_results_and_the_entries_are_used_twice() -> None:
    entries = random_entries(5, 3, 6).grouped()

    def twice(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        out, sums = sparse_outer(entries, values, rows)
        again, sums_again = sparse_outer(entries, sums[entries.indices.clamp(min=0)], out[:5] + rows)
        return decode_entries(entries, values, again * sums_again[:, None] + out)

    inputs = leaves(random(15, seed=2), random(5, 4, seed=3) * 0.1)
    assert torch.autograd.gradcheck(twice, inputs, atol=1e-4, rtol=1e-4)


def test_autocast_changes_nothing() -> None:
    def results(enabled: bool) -> list[torch.Tensor]:
        values, rows = leaves(random(27, seed=2), random(9, 7, seed=3), dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out, sums = sparse_outer(random_entries(9, 3, 13), values, rows)
            grads = torch.autograd.grad(out.square().sum() + sums.square().sum(), [values, rows])
        return [out, sums, *grads]

    for without, within in zip(results(False), results(True), strict=True):
        assert within.dtype == torch.float32 and torch.equal(without, within)


@pytest.mark.parametrize("index", [-2, 13])
@pytest.mark.parametrize("grouped", [False, True])
def test_an_index_that_is_no_feature(index: int, grouped: bool) -> None:
    entries = Entries.of_rows(torch.tensor([[-1, 0, 12], [5, index, 1]]), 13)
    with pytest.raises(IndexError, match=f"index {index} is not one of 13 features"):
        sparse_outer(entries.grouped() if grouped else entries, random(6), random(2, 7))


@pytest.mark.parametrize(
    ("values", "rows", "message"),
    [
        ((5,), (2, 7), r"6 entries, but values has shape \(5,\)"),
        ((2, 3), (2, 7), r"6 entries, but values has shape \(2, 3\)"),
        ((6,), (3, 7), r"entries of 2 rows, but rows has \(3, 7\)"),
        ((6,), (2,), r"entries of 2 rows, but rows has \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit(values: tuple[int, ...], rows: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparse_outer(random_entries(2, 3, 13), torch.zeros(values), torch.zeros(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_registered_operator(dtype: torch.dtype) -> None:
    entries = random_entries(7, 3, 13).grouped()
    values, rows = leaves(random(21, seed=2), random(7, 5, seed=3), dtype=dtype)
    arguments: Any = (entries.indices, entries.row_offsets, values, rows, 13, entries.by_feature)
    torch.library.opcheck(torch.ops.sae_faithful.sparse_outer, arguments)


def test_compiled_without_a_break() -> None:
    indices = random_entries(9, 3, 13).indices.reshape(9, 3)

    def shared_sort(values: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        entries = Entries.of_rows(indices, 13).grouped()
        out, sums = sparse_outer(entries, values, rows)
        return decode_entries(entries, values, out), sums

    inputs = leaves(random(27, seed=2), random(9, 7, seed=3), dtype=torch.float32)
    compiled = torch.compile(shared_sort, fullgraph=True, backend="aot_eager")
    outs = [call(*inputs) for call in (shared_sort, compiled)]
    grads = [torch.autograd.grad(out.square().sum() + sums.square().sum(), inputs) for out, sums in outs]
    for eager, traced in zip((*outs[0], *grads[0]), (*outs[1], *grads[1]), strict=True):
        assert torch.equal(eager, traced)
