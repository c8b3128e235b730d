"""Gradients of chosen pre-activations, against those of the dense encoder in float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from sae_faithful.ops import Entries, sparse_decode, sparse_encode

TOLERANCES = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 5e-3}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def error(got: torch.Tensor | None, expected: torch.Tensor | None) -> float:
    """||got - expected|| / ||expected||."""
    assert got is not None and expected is not None
    assert got.shape == expected.shape
    return ((got.detach().double() - expected.detach()).norm() / expected.detach().norm()).item()


class Encoder(NamedTuple):
    """Leaves that learn: x [n, d_in], weight [d_sae, d_in], bias [d_sae], shift [d_in]."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    shift: torch.Tensor

    def to(self, dtype: torch.dtype) -> Encoder:
        return Encoder(*(tensor.detach().to(dtype).requires_grad_() for tensor in self))

    def dense(self, entries: Entries) -> torch.Tensor:
        """All pre-activations, of which those at the entries are taken; 0 at empty slots."""
        pre = (self.x - self.shift) @ self.weight.T + self.bias
        rows = torch.arange(len(pre)).repeat_interleave(entries.row_offsets.diff())
        return torch.where(entries.indices >= 0, pre[rows, entries.indices.clamp(min=0)], 0)

    def sparse(self, entries: Entries) -> torch.Tensor:
        """The same by `sparse_encode`, whose shift is subtracted without a gradient of its own."""
        with torch.no_grad():
            values = self.dense(entries)
        return sparse_encode(
            entries, values, self.x - self.shift.detach(), self.weight, self.bias, self.shift
        )


def encoder(n: int, d_sae: int, d_in: int, dtype: torch.dtype = torch.float64) -> Encoder:
    shapes = [(n, d_in), (d_sae, d_in), (d_sae,), (d_in,)]
    return Encoder(*(random(*shape, seed=seed) for seed, shape in enumerate(shapes))).to(dtype)


def random_entries(lengths: list[int], d_sae: int, lowest: int = -1) -> Entries:
    """Rows of these lengths."""
    generator = torch.Generator().manual_seed(9)
    indices = torch.randint(lowest, d_sae, (sum(lengths),), generator=generator)
    return Entries(indices, torch.tensor([0, *lengths]).cumsum(0), d_sae)


ROWS = {"equal": [3] * 9, "ragged": [3, 0, 1, 7, 0, 2, 32, 5, 0], "many": [32] * 130}


@pytest.mark.parametrize("lengths", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("d_in", [1, 7, 577])
@pytest.mark.parametrize("grouped", [False, True])
def test_gradients_are_the_dense_encoders(lengths: list[int], d_in: int, grouped: bool) -> None:
    ours, theirs = (encoder(len(lengths), 13, d_in) for _ in range(2))
    entries = random_entries(lengths, 13)
    grad = random(sum(lengths), seed=5)
    pre = ours.sparse(entries.grouped() if grouped else entries)
    expected = theirs.dense(entries)
    assert torch.equal(pre, expected)
    pre.backward(grad)
    expected.backward(grad)
    for given, wanted in zip(ours, theirs, strict=True):
        # The sums are float64's in another order.
        assert error(given.grad, wanted.grad) <= 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_by_dtype(dtype: torch.dtype) -> None:
    ours = encoder(130, 1001, 40, dtype)
    theirs = ours.to(torch.float64)
    # To half precision x - shift is not exact: all begin with what is left of it.
    inputs = (ours.x - ours.shift).detach().requires_grad_()
    entries, grad = random_entries([32] * 130, 1001), random(130 * 32, seed=5, dtype=dtype)
    values = torch.zeros(130 * 32, dtype=dtype)
    pre = sparse_encode(entries, values, inputs, ours.weight, ours.bias, ours.shift)
    pre.backward(grad)
    wanted = theirs._replace(x=(inputs.detach().double() + theirs.shift.detach()).requires_grad_())
    wanted.dense(entries).backward(grad.double())
    assert pre.dtype == dtype
    for given, exact in zip((inputs, *ours[1:]), wanted, strict=True):
        assert given.grad is not None and given.grad.dtype == dtype
        assert error(given.grad, exact.grad) <= TOLERANCES[dtype]


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_activations_and_parameters_of_different_dtypes(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    of_activations, of_parameters = dtypes
    inputs = random(30, 7, dtype=of_activations).requires_grad_()
    _, weight, bias, shift = encoder(30, 13, 7, of_parameters)
    entries, grad = random_entries([8] * 30, 13), random(240, seed=5, dtype=of_activations)
    sparse_encode(entries, grad, inputs, weight, bias, shift).backward(grad)
    exact = Encoder(inputs, weight, bias, shift).to(torch.float64)
    exact = exact._replace(x=(exact.x + exact.shift).detach().requires_grad_())
    exact.dense(entries).backward(grad.double())
    for given, wanted in zip((inputs, weight, bias, shift), exact, strict=True):
        assert given.grad is not None and given.grad.dtype == given.dtype
        # A weight's gradient has passed through the dtype of the inputs.
        assert error(given.grad, wanted.grad) <= TOLERANCES[torch.bfloat16]


def test_values_are_handed_on_and_receive_nothing() -> None:
    entries, values = random_entries([3, 1], 13), random(4).requires_grad_()
    x, weight, bias, _ = encoder(2, 13, 7)
    pre = sparse_encode(entries, values, x, weight, bias)
    assert torch.equal(pre, values) and pre.data_ptr() != values.data_ptr()
    pre.sum().backward()
    assert values.grad is None and weight.grad is not None


@pytest.mark.parametrize("learned", Encoder._fields)
def test_what_is_frozen_has_no_gradient(learned: str) -> None:
    ours, theirs = (encoder(9, 13, 7) for _ in range(2))
    for name, tensor in ours._asdict().items():
        tensor.requires_grad_(name == learned)
    entries = random_entries([3] * 9, 13)
    ours.sparse(entries).square().sum().backward()
    theirs.dense(entries).square().sum().backward()
    assert [name for name, tensor in ours._asdict().items() if tensor.grad is not None] == [learned]
    assert error(getattr(ours, learned).grad, getattr(theirs, learned).grad) <= 1e-13


def test_any_strides() -> None:
    ours, theirs = (encoder(9, 13, 7) for _ in range(2))
    ours = ours._replace(
        x=random(7, 9, seed=7).T.requires_grad_(), weight=random(7, 13, seed=8).T.requires_grad_()
    )
    theirs = theirs._replace(x=ours.x.clone().detach().requires_grad_())
    theirs = theirs._replace(weight=ours.weight.clone().detach().requires_grad_())
    assert ours.weight.stride() == (1, 13)
    entries = random_entries([3] * 9, 13)
    # The gradient of a sum is one number, expanded.
    ours.sparse(entries).sum().backward()
    theirs.dense(entries).sum().backward()
    for given, wanted in zip(ours, theirs, strict=True):
        assert error(given.grad, wanted.grad) <= 1e-13


@pytest.mark.parametrize("lengths", [[], [0, 0, 0]])
def test_no_entries_no_gradients(lengths: list[int]) -> None:
    ours = encoder(len(lengths), 13, 7)
    ours.sparse(random_entries(lengths, 13)).sum().backward()
    for given in ours:
        assert given.grad is not None and torch.equal(given.grad, torch.zeros_like(given))


def test_an_autoencoder_trains_as_the_dense_one() -> None:
    # relu(top 3 of the pre-activations), decoded; one sort serves both halves.
    ours, theirs = (encoder(9, 13, 7) for _ in range(2))
    decoders = [random(13, 7, seed=6).requires_grad_() for _ in range(2)]
    with torch.no_grad():
        indices = ((ours.x - ours.shift) @ ours.weight.T + ours.bias).topk(3).indices
    entries = Entries.of_rows(indices, 13).grouped()
    acts = ours.sparse(entries).relu().reshape(9, 3)
    (sparse_decode(indices, acts, decoders[0], ours.shift) - ours.x).square().sum().backward()
    all_acts = torch.zeros(9, 13, dtype=torch.float64).scatter(
        1, indices, theirs.dense(entries).relu().reshape(9, 3)
    )
    (all_acts @ decoders[1] + theirs.shift - theirs.x).square().sum().backward()
    for given, wanted in zip((*ours, decoders[0]), (*theirs, decoders[1]), strict=True):
        assert error(given.grad, wanted.grad) <= 1e-13


def test_gradients_are_bitwise_reproducible() -> None:
    ours = encoder(2_000, 200, 40, torch.float32)
    entries = random_entries([8] * 2_000, 200)
    entries.indices[::24] = 3
    values, grad = random(16_000, dtype=torch.float32), random(16_000, seed=5, dtype=torch.float32)
    first, *others = (
        torch.autograd.grad(sparse_encode(entries, values, *ours), ours, grad) for _ in range(20)
    )
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_autocast_changes_nothing() -> None:
    entries, values = random_entries([3] * 9, 13), random(27, dtype=torch.float32)

    def results(enabled: bool) -> list[torch.Tensor]:
        ours = encoder(9, 13, 7, torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            pre = sparse_encode(entries, values, *ours)
            return [pre, *torch.autograd.grad(pre.square().sum(), ours)]

    for name, without, within in zip(("pre", *Encoder._fields), results(False), results(True), strict=True):
        assert within.dtype == torch.float32, name
        assert torch.equal(without, within), name
