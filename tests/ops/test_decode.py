"""The sparse decoder, against the product of a dense float64 matrix of activations with the weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sae_faithful.ops import Entries, decode_entries, sparse_decode

from .conftest import error

TOLERANCES = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 5e-3}
# n, k, d_sae, d_in
SIZES = [
    (1, 1, 5, 1), (9, 3, 13, 7), (130, 32, 1001, 40), (130, 32, 13, 577), (9, 32, 5, 40), (1, 3, 1001, 577),
]  # fmt: skip
ROW_LENGTHS = [3, 0, 1, 7, 0, 2, 5, 0]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_indices(*shape: int, d_sae: int, lowest: int = 0) -> torch.Tensor:
    return torch.randint(lowest, d_sae, shape, generator=torch.Generator().manual_seed(1))


def leaves(*tensors: torch.Tensor, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    return [tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in tensors]


def dense(
    rows: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    n_rows: int,
) -> torch.Tensor:
    """Activations scattered into [n_rows, d_sae], where entries of one place add up, times the weight."""
    held = indices >= 0
    acts = torch.zeros(n_rows, len(weight), dtype=torch.float64)
    acts = acts.index_put((rows[held], indices[held].long()), values[held], accumulate=True)
    out = acts @ weight
    return out if bias is None else out + bias


def assert_as_dense(
    indices: torch.Tensor,
    values: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    grad: torch.Tensor,
    tolerances: tuple[float, float, float, float],
) -> None:
    """`sparse_decode` and its gradients are within the tolerances (out, values, weight, bias) of `dense`."""
    inputs = [values, weight, *([] if bias is None else [bias])]
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    exact = leaves(*inputs, dtype=torch.float64)
    out = sparse_decode(indices, *inputs)
    assert out.dtype == torch.promote_types(values.dtype, weight.dtype)
    out.backward(grad)
    n, k = indices.shape
    expected = dense(
        torch.arange(n).repeat_interleave(k),
        indices.reshape(-1),
        exact[0].reshape(-1),
        exact[1],
        exact[2] if bias is not None else None,
        n,
    )
    expected.backward(grad.double())
    assert error(out, expected) <= tolerances[0]
    for given, wanted, tolerance in zip(inputs, exact, tolerances[1:], strict=False):
        assert given.grad is not None and given.grad.dtype == given.dtype
        assert error(given.grad, wanted.grad) <= tolerance


def test_by_hand() -> None:
    weight = torch.tensor([[1.0, 2], [10, 20], [100, 200]], requires_grad=True)
    values = torch.tensor([[2.0, 3, 7], [1, 1, 5]], requires_grad=True)
    bias = torch.tensor([0.5, -0.5], requires_grad=True)
    # Row 0: 2·w2 + 3·w0, and an empty slot. Row 1: w1 twice, and 5·w2.
    out = sparse_decode(torch.tensor([[2, 0, -1], [1, 1, 2]]), values, weight, bias)
    assert out.tolist() == [[203.5, 405.5], [520.5, 1039.5]]
    out.backward(torch.tensor([[1.0, 0], [0, 1]]))
    # To a value, its row of weight where the output's gradient is 1; nothing to an empty slot.
    assert values.grad is not None and values.grad.tolist() == [[100, 1, 0], [20, 20, 200]]
    assert weight.grad is not None and weight.grad.tolist() == [[3, 0], [0, 2], [2, 5]]
    assert bias.grad is not None and bias.grad.tolist() == [1, 1]


@pytest.mark.parametrize("lowest", [0, -1])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_output_and_gradients(dtype: torch.dtype, size: tuple[int, int, int, int], lowest: int) -> None:
    n, k, d_sae, d_in = size
    assert_as_dense(
        random_indices(n, k, d_sae=d_sae, lowest=lowest),
        random(n, k, seed=2, dtype=dtype),
        random(d_sae, d_in, seed=3, dtype=dtype),
        random(d_in, seed=4, dtype=dtype),
        random(n, d_in, seed=5, dtype=dtype),
        (TOLERANCES[dtype],) * 4,
    )


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float64, torch.float32, torch.bfloat16),
        (torch.float32, torch.float64, torch.float32),
    ],
)
def test_each_gradient_has_its_own_dtype(dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]) -> None:
    values, weight, bias = (
        random(*shape, seed=seed, dtype=dtype)
        for shape, seed, dtype in zip([(30, 8), (13, 17), (17,)], (2, 3, 4), dtypes, strict=True)
    )
    out_dtype = torch.promote_types(values.dtype, weight.dtype)
    of = {**TOLERANCES, torch.float64: 1e-6}
    assert_as_dense(
        random_indices(30, 8, d_sae=13, lowest=-1), values, weight, bias,
        random(30, 17, seed=5, dtype=out_dtype), (of[out_dtype], *(of[dtype] for dtype in dtypes)),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_held_in_float32(dtype: torch.dtype) -> None:
    # One latent fires on 30 % of the tokens. Everything is positive: sums held in half precision would stand still
    # as soon as an addend is less than half of their last digit.
    n, d_in = 10_000, 7
    hot = torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.3
    indices = torch.stack([torch.where(hot, 3, -1), random_indices(n, d_sae=50)], 1)
    values, grad = random(n, 2, seed=2).abs().to(dtype), random(n, d_in, seed=5).abs().to(dtype) / 64
    weight, bias = random(50, d_in, seed=3, dtype=dtype), random(d_in, seed=4, dtype=dtype)
    assert_as_dense(indices, values, weight, bias, grad, (TOLERANCES[dtype],) * 4)
    serial, products = torch.zeros(d_in, dtype=dtype), values[hot, 0, None] * grad[hot]
    for product in products:
        serial += product
    assert error(serial, products.double().sum(0)) > 10 * TOLERANCES[dtype]


def test_gradients_are_bitwise_reproducible() -> None:
    n, d_in = 2_000, 40
    indices = random_indices(n, 8, d_sae=200, lowest=-1)
    indices[: n // 3, 0] = 3
    shapes = [(n, 8), (200, d_in), (d_in,)]
    inputs = leaves(*(random(*shape) for shape in shapes), dtype=torch.float32)
    grad = random(n, d_in, seed=5, dtype=torch.float32)
    first, *others = (torch.autograd.grad(sparse_decode(indices, *inputs), inputs, grad) for _ in range(20))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("lowest", [0, -1])
def test_strides_do_not_matter(index_dtype: torch.dtype, lowest: int) -> None:
    tolerances = (1e-6,) * 4
    indices = random_indices(3, 9, d_sae=13, lowest=lowest).to(index_dtype).T
    values, weight, bias = random(3, 9, seed=2).T, random(7, 13, seed=3).T, random(7, 2, seed=4)[:, 0]
    values, weight, bias, grad = (
        tensor.to(torch.float32) for tensor in (values, weight, bias, random(7, 9, seed=5).T)
    )
    assert weight.stride() == (1, 13) and not values.is_contiguous() and not grad.is_contiguous()
    assert_as_dense(indices, values, weight, bias, grad, tolerances)
    # Every second column of something wider; one value for all; gradients that hold one number or one row.
    wide = indices.repeat_interleave(2, dim=1)[:, ::2]
    assert_as_dense(wide, values, weight, bias, torch.ones(()).expand(9, 7), tolerances)
    assert_as_dense(wide, torch.ones(1, 1).expand(9, 3), weight, bias, grad[:1].expand(9, 7), tolerances)
    assert_as_dense(indices, values, random(13, 14, seed=6).float()[:, ::2], bias, grad, tolerances)


def test_the_gradient_of_a_sum() -> None:
    indices = random_indices(9, 3, d_sae=13, lowest=-1)
    values, weight = leaves(random(9, 3, seed=2), random(13, 7, seed=3), dtype=torch.float32)
    sparse_decode(indices, values, weight).sum().backward()
    # An output gradient of ones: to a value, the sum of its row of weight.
    expected = torch.where(indices >= 0, weight.detach().double().sum(1)[indices.clamp(min=0)], 0)
    assert error(values.grad, expected) <= 1e-6


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("grouped", [False, True])
def test_rows_of_different_lengths(dtype: torch.dtype, index_dtype: torch.dtype, grouped: bool) -> None:
    lengths = torch.tensor(ROW_LENGTHS)
    nnz, offsets = int(lengths.sum()), torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    indices = random_indices(nnz, d_sae=13, lowest=-1).to(index_dtype)
    indices[3] = -1  # The third row holds nothing but an empty slot.
    entries = Entries(indices, offsets.to(index_dtype), 13)
    inputs = leaves(random(nnz, seed=2), random(13, 7, seed=3), random(7, seed=4), dtype=dtype)
    exact = leaves(*inputs, dtype=torch.float64)
    grad = random(len(lengths), 7, seed=5, dtype=dtype)
    out = decode_entries(entries.grouped() if grouped else entries, *inputs)
    rows = torch.arange(len(lengths)).repeat_interleave(lengths)
    expected = dense(rows, indices, *exact, len(lengths))
    out.backward(grad)
    expected.backward(grad.double())
    assert torch.equal(out[2], inputs[2]) and torch.equal(out[1], inputs[2])
    for given, wanted in zip([out, *(one.grad for one in inputs)], [expected, *(one.grad for one in exact)],
                             strict=True):  # fmt: skip
        assert error(given, wanted) <= TOLERANCES[dtype]


@pytest.mark.parametrize(
    ("n", "k", "d_in"), [(0, 3, 7), (5, 0, 7), (0, 0, 7), (5, 3, 0)], ids=["n", "k", "n and k", "d_in"]
)
def test_nothing_to_add_up(n: int, k: int, d_in: int) -> None:
    indices = random_indices(n, k, d_sae=13)
    values, weight, bias = leaves(random(n, k), random(13, d_in), random(d_in))
    out = sparse_decode(indices, values, weight, bias)
    assert torch.equal(out, bias.expand(n, d_in))
    out.backward(torch.ones(n, d_in))
    for given in (values, weight):
        assert given.grad is not None and torch.equal(given.grad, torch.zeros_like(given))
    assert bias.grad is not None and torch.equal(bias.grad, torch.full((d_in,), float(n)))


@pytest.mark.parametrize("n_slots", [0, 6])
@pytest.mark.parametrize("grouped", [False, True])
def test_rows_that_hold_nothing(n_slots: int, grouped: bool) -> None:
    offsets = torch.tensor([0, 0, n_slots // 2, n_slots])
    entries = Entries(torch.full((n_slots,), -1), offsets, 13)
    values, weight, bias = leaves(random(n_slots), random(13, 7), random(7))
    out = decode_entries(entries.grouped() if grouped else entries, values, weight, bias)
    assert torch.equal(out, bias.expand(3, 7))
    out.sum().backward()
    for given in (values, weight):
        assert given.grad is not None and torch.equal(given.grad, torch.zeros_like(given))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_of_weight_that_nobody_uses_are_not_read(bad: float) -> None:
    weight = random(13, 7, seed=3, dtype=torch.float32)
    weight[[0, 5, 12]] = bad
    # No 0, 5 or 12: the first, the last and the one that -1 would be counted from the end.
    indices = torch.tensor([[1, -1, 4], [-1, -1, -1], [11, 6, 6]])
    values, weight = leaves(random(3, 3, dtype=torch.float32), weight)
    out = sparse_decode(indices, values, weight)
    out.sum().backward()
    for given in (out, values.grad, weight.grad):
        assert given is not None and bool(given.isfinite().all())


def test_values_of_empty_slots_are_not_read() -> None:
    values = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    weight = torch.ones(2, 3, requires_grad=True)
    sparse_decode(torch.tensor([[1, -1]]), values, weight).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert values.grad is not None and values.grad.tolist() == [[3, 0]]


@pytest.mark.parametrize("learned", ["values", "weight", "bias"])
def test_what_is_frozen_has_no_gradient(learned: str) -> None:
    inputs = {"values": random(9, 3), "weight": random(13, 7), "bias": random(7)}
    inputs[learned].requires_grad_()
    sparse_decode(random_indices(9, 3, d_sae=13, lowest=-1), **inputs).sum().backward()
    assert [name for name, tensor in inputs.items() if tensor.grad is not None] == [learned]


def test_without_gradients() -> None:
    values, weight = random(9, 3), random(13, 7)
    indices = random_indices(9, 3, d_sae=13)
    assert not sparse_decode(indices, values, weight).requires_grad
    with torch.no_grad():
        assert not sparse_decode(indices, *leaves(values, weight)).requires_grad


@pytest.mark.parametrize("learned_bias", [False, True])
def test_gradcheck(learned_bias: bool) -> None:
    indices = random_indices(7, 3, d_sae=13, lowest=-1)
    indices[2], indices[3] = -1, 4
    inputs = leaves(random(7, 3, seed=2), random(13, 5, seed=3), *([random(5, seed=4)] * learned_bias))
    assert torch.autograd.gradcheck(lambda *given: sparse_decode(indices, *given), inputs)


@pytest.mark.parametrize("grouped", [False, True])
def test_gradcheck_of_rows_of_different_lengths(grouped: bool) -> None:
    offsets = torch.tensor([0, 3, 3, 4, 9])
    entries = Entries(random_indices(9, d_sae=6, lowest=-1), offsets, 6)
    entries = entries.grouped() if grouped else entries
    inputs = leaves(random(9, seed=2), random(6, 4, seed=3), random(4, seed=4))
    assert torch.autograd.gradcheck(lambda *given: decode_entries(entries, *given), inputs)


def test_second_derivatives_are_refused() -> None:
    values, weight = leaves(random(9, 3), random(13, 7))
    out = sparse_decode(random_indices(9, 3, d_sae=13), values, weight).square().sum()
    (g_weight,) = torch.autograd.grad(out, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        g_weight.sum().backward()


def test_autocast_changes_nothing() -> None:
    indices = random_indices(9, 3, d_sae=13, lowest=-1)

    def results(enabled: bool) -> list[torch.Tensor]:
        inputs = leaves(random(9, 3, seed=2), random(13, 7, seed=3), random(7, seed=4), dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = sparse_decode(indices, *inputs)
            return [out, *torch.autograd.grad(out, inputs, random(9, 7, seed=5, dtype=torch.float32))]

    for without, within in zip(results(False), results(True), strict=True):
        assert within.dtype == torch.float32 and torch.equal(without, within)


@pytest.mark.parametrize("index", [-2, 13, 2**31 - 1])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_an_index_that_is_no_feature(index: int, index_dtype: torch.dtype) -> None:
    indices = torch.tensor([[-1, 0, 12], [5, index, 1]], dtype=index_dtype)
    message = rf"index {index} is not one of 13 features \(nor -1, which marks an empty slot\)"
    with pytest.raises(IndexError, match=message):
        sparse_decode(indices, random(2, 3), random(13, 7))
    with pytest.raises(IndexError, match=message):
        decode_entries(Entries.of_rows(indices, 13), random(6), random(13, 7))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((9, 3), (9, 2), (13, 7)), r"indices has shape \(9, 3\), values \(9, 2\)"),
        (((9,), (9,), (13, 7)), r"indices has shape \(9,\): rows of indices are wanted"),
        (((9, 3), (9, 3), (13,)), r"weight has shape \(13,\): one direction a row is wanted"),
        (((9, 3), (9, 3), (13, 7, 1)), r"weight has shape \(13, 7, 1\): one direction a row is wanted"),
        (((9, 3), (9, 3), (13, 7), (13,)), r"bias has shape \(13,\), weight \(13, 7\)"),
        (((9, 3), (9, 3), (13, 7), (1, 7)), r"bias has shape \(1, 7\), weight \(13, 7\)"),
        (((9, 3), (9, 3), (13, 7), ()), r"bias has shape \(\), weight \(13, 7\)"),
    ],
)
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    indices, *others = shapes
    with pytest.raises(ValueError, match=message):
        sparse_decode(torch.zeros(indices, dtype=torch.long), *(torch.zeros(shape) for shape in others))


@pytest.mark.parametrize(
    ("values", "weight", "message"),
    [
        ((5,), (13, 7), r"6 entries, but values has shape \(5,\)"),
        ((2, 3), (13, 7), r"6 entries, but values has shape \(2, 3\)"),
        ((6,), (12, 7), "entries of 13 features, but weight has 12 rows"),
    ],
)
def test_entries_that_do_not_fit(values: tuple[int, ...], weight: tuple[int, int], message: str) -> None:
    entries = Entries.of_rows(torch.zeros(2, 3, dtype=torch.long), 13)
    with pytest.raises(ValueError, match=message):
        decode_entries(entries, torch.zeros(values), torch.zeros(weight))


@pytest.mark.parametrize(("dtype", "grouped"), [(torch.float32, False), (torch.bfloat16, True)])
def test_the_registered_operator(dtype: torch.dtype, grouped: bool) -> None:
    entries = Entries.of_rows(random_indices(7, 3, d_sae=13, lowest=-1), 13)
    values, weight, bias = leaves(random(21, seed=2), random(13, 5, seed=3), random(5, seed=4), dtype=dtype)
    plan = entries.grouped().by_feature if grouped else []
    arguments: Any = (entries.indices, entries.row_offsets, values, weight, bias, plan)
    torch.library.opcheck(torch.ops.sae_faithful.sparse_decode, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("want", [(True, True), (True, False), (False, True)])
def test_the_registered_operator_of_the_gradients(dtype: torch.dtype, want: tuple[bool, bool]) -> None:
    entries = Entries.of_rows(random_indices(7, 3, d_sae=13, lowest=-1), 13).grouped()
    grad, values, weight = (random(*shape, dtype=dtype) for shape in [(7, 5), (21,), (13, 5)])
    arguments: Any = (grad, values, weight, entries.by_feature, *want)
    torch.library.opcheck(torch.ops.sae_faithful.sparse_decode_backward, arguments)


@pytest.mark.parametrize("grouped", [None, False, True])
def test_compiled_without_a_break(grouped: bool | None) -> None:
    indices = random_indices(9, 3, d_sae=13, lowest=-1)

    def decode(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if grouped is None:
            return sparse_decode(indices, values, weight, bias)
        entries = Entries.of_rows(indices, 13)
        return decode_entries(entries.grouped() if grouped else entries, values.reshape(-1), weight, bias)

    inputs = leaves(random(9, 3, seed=2), random(13, 7, seed=3), random(7, seed=4), dtype=torch.float32)
    compiled_decode = torch.compile(decode, fullgraph=True, backend="aot_eager")
    eager, compiled = decode(*inputs), compiled_decode(*inputs)
    assert torch.equal(eager, compiled)
    grads = [torch.autograd.grad(out.square().sum(), inputs) for out in (eager, compiled)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
