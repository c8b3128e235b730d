"""The Triton kernels against float64, and what they compile to.

Triton decides at its import whether kernels are interpreted. So what checks numbers runs where the kernels run: on a
GPU, and interpreted in a process of its own, which `test_interpreted` starts.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_faithful.ops.entries import group_by_feature

triton = pytest.importorskip("triton", reason="the kernels need Triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
WITHOUT_GPU = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# Of the norm: the interpreter rounds to bfloat16 towards zero, which costs single numbers more.
TOLERANCE = {FP32: 1e-6, FP16: 5e-4, BF16: 5e-3}

# Feature 3 is in 13 entries, which more than two chunks of 4 hold; 5 is twice in a row; 0, 9 and others in none.
RAGGED = [[3, 1, 3, -1], [], [5, 3, 5], [-1, -1], [3], [3, 2, 3, 10, 3, -1, 3, 1], [8, 3, 4, 3], [3, 3, 3]]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module under test, with chunks of 4 entries, and every tensor that it makes full of NaN at first."""
    if not INTERPRETED and DEVICE == "cpu":
        pytest.skip("no GPU here: test_interpreted has run it")
    from sae_faithful.ops import sparse_triton

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(math.nan))
    monkeypatch.setattr(sparse_triton, "CHUNK", 4)
    return sparse_triton


class Case(NamedTuple):
    """Everything that the functions take. NaN is in what none of them may use."""

    indices: torch.Tensor
    row_offsets: torch.Tensor
    values: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    grad: torch.Tensor


def make(
    rows: Sequence[Sequence[int]],
    width: int,
    *,
    n_features: int = 11,
    weight_dtype: torch.dtype = FP32,
    dtype: torch.dtype = FP32,
    index_dtype: torch.dtype = torch.int64,
) -> Case:
    """Random numbers at the given indices; NaN in empty slots and in weights of features that no row has."""
    random = torch.Generator().manual_seed(width)
    indices = torch.tensor([index for row in rows for index in row], dtype=index_dtype)
    values = torch.randn(len(indices), generator=random)
    values[indices < 0] = math.nan
    weight = torch.randn(n_features, width, generator=random)
    weight[[feature not in indices for feature in range(n_features)]] = math.nan
    return Case(
        within(indices, 0),
        torch.tensor([0, *map(len, rows)]).cumsum(0).to(DEVICE),
        within(values.to(dtype)),
        within(weight.to(weight_dtype)),
        within(torch.randn(width, generator=random).to(weight_dtype)),
        within(torch.randn(len(rows), width, generator=random).to(dtype)),
    )


def within(tensor: torch.Tensor, around: float = math.nan) -> torch.Tensor:
    """A view on the same numbers, in the middle of others."""
    margin = 1024
    buffer = torch.full((tensor.numel() + 2 * margin,), around, dtype=tensor.dtype, device=DEVICE)
    inner = buffer[margin : margin + tensor.numel()].view(tensor.shape)
    return inner.copy_(tensor)


class Results(NamedTuple):
    """What the functions return, in the order of `run`."""

    out: torch.Tensor
    g_values: torch.Tensor
    g_weight: torch.Tensor
    outer: torch.Tensor
    sums: torch.Tensor


def run(kernels: Any, case: Case) -> Results:
    """All functions, in the dtypes in which training has them."""
    indices, row_offsets, values, weight, bias, grad = case
    n_features = len(weight)
    plan = group_by_feature(indices, row_offsets, n_features)
    g_values, g_weight = kernels.decode_backward(
        grad, values, weight, plan, want_values=True, want_weight=True
    )
    out = kernels.decode(indices, row_offsets, values, weight, bias, grad.dtype)
    return Results(out, g_values, g_weight, *kernels.outer(values, grad, plan, n_features, weight.dtype))


def entries(case: Case) -> Iterator[tuple[int, int, int]]:
    """(e, row, feature) of every slot that is not empty."""
    indices, offsets = case.indices.tolist(), case.row_offsets.tolist()
    for row, (start, stop) in enumerate(pairwise(offsets)):
        yield from ((e, row, indices[e]) for e in range(start, stop) if indices[e] >= 0)


def expected(case: Case) -> Results:
    """The same in float64, an entry at a time."""
    values, weight, bias, grad = (tensor.double().cpu() for tensor in case[2:])
    out = bias.repeat(len(grad), 1)
    g_values, sums = torch.zeros_like(values), weight.new_zeros(len(weight))
    g_weight = torch.zeros_like(weight)
    for e, row, feature in entries(case):
        out[row] += values[e] * weight[feature]
        g_values[e] = grad[row] @ weight[feature]
        g_weight[feature] += values[e] * grad[row]
        sums[feature] += values[e]
    return Results(out, g_values, g_weight, g_weight, sums)


def assert_close(got: Results, wanted: Results) -> None:
    """Every result has its shape, has a number everywhere, 0 where 0 is due, and is close by its dtype."""
    for name, a, b in zip(Results._fields, got, wanted, strict=True):
        a, tolerance = a.cpu(), TOLERANCE[a.dtype]
        assert a.shape == b.shape, name
        assert a.isfinite().all(), name
        assert not a[b == 0].any(), name
        assert (a.double() - b).norm() <= tolerance * b.norm(), name


def test_by_hand(kernels: Any) -> None:
    # Rows: 2·(1, 2, 3) + 1·(4, 5, 6) + bias; nothing + bias; 3·(1, 2, 3) + bias.
    indices, row_offsets = torch.tensor([0, 2, -1, 0]).to(DEVICE), torch.tensor([0, 3, 3, 4]).to(DEVICE)
    values, weight, bias, grad = (
        torch.tensor(numbers).to(DEVICE)
        for numbers in (
            [2.0, 1, 9, 3],
            [[1.0, 2, 3], [7, 7, 7], [4, 5, 6]],
            [10.0, 0, 0],
            [[1.0, 0, 0], [0, 5, 0], [0, 0, 1]],
        )
    )
    out, g_values, g_weight, outer, sums = run(
        kernels, Case(indices, row_offsets, values, weight, bias, grad)
    )
    assert out.tolist() == [[16, 9, 12], [10, 0, 0], [13, 6, 9]]
    # Row 0's gradient picks the first column of weights 0 and 2, row 2's the third one of weight 0.
    assert g_values.tolist() == [1, 4, 0, 3]
    assert g_weight.tolist() == outer.tolist() == [[2, 0, 3], [0, 0, 0], [1, 0, 0]]
    assert sums.tolist() == [5, 0, 1]


def test_the_plan_by_hand(kernels: Any) -> None:
    # Entries 0 … 5 of rows 0, 0, 2, 2, 2, 3 (row 1 and the last have none) have features 4, -1, 0, 4, 0, 4.
    indices = torch.tensor([4, -1, 0, 4, 0, 4]).to(DEVICE)
    plan = group_by_feature(indices, torch.tensor([0, 2, 2, 5, 6, 6]).to(DEVICE), 6)
    assert [tensor.tolist() for tensor in plan] == [
        [1, 2, 4, 0, 3, 5],
        [0, 2, 2, 0, 2, 3],
        [-1, 0, 0, 4, 4, 4],
        [1, 3, 3, 3, 3, 6, 6],
    ]
    assert {tensor.dtype for tensor in plan} == {torch.int32}


@pytest.mark.parametrize(
    ("width", "dtype"),
    [*product([40, 77, 130], [FP32, BF16, FP16]), pytest.param(300, FP32, id="three tiles")],
)
def test_against_float64(kernels: Any, width: int, dtype: torch.dtype) -> None:
    case = make(RAGGED, width, weight_dtype=dtype, dtype=dtype)
    got = run(kernels, case)
    assert [result.dtype for result in got] == [dtype, FP32, dtype, dtype, FP32]
    assert_close(got, expected(case))


@pytest.mark.parametrize("weight_dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_weights_of_another_dtype(kernels: Any, weight_dtype: torch.dtype, dtype: torch.dtype) -> None:
    case = make(RAGGED, 77, weight_dtype=weight_dtype, dtype=dtype, index_dtype=torch.int32)
    assert_close(run(kernels, case), expected(case))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 13, 256])
def test_features_cut_anywhere(kernels: Any, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(kernels, "CHUNK", chunk)
    case = make(RAGGED, 40)
    assert_close(run(kernels, case), expected(case))


@pytest.mark.parametrize(
    ("rows", "n_features"),
    [
        pytest.param([[2]], 3, id="one entry"),
        pytest.param([[0] * 9], 1, id="one feature, all of it"),
        pytest.param([[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2, 2]], 3, id="features that begin at cuts"),
        pytest.param([[], [], []], 5, id="no entries"),
        pytest.param([[-1] * 5, [-1] * 6], 5, id="empty slots alone"),
        pytest.param([[-1] * 5, [4] * 6], 5, id="the last feature behind empty slots"),
        pytest.param([], 5, id="no rows"),
        pytest.param([[], [-1] * 6], 0, id="no features"),
    ],
)
def test_edges(kernels: Any, rows: list[list[int]], n_features: int) -> None:
    case = make(rows, 70, n_features=n_features)
    assert_close(run(kernels, case), expected(case))


@pytest.mark.parametrize("width", [0, 1])
def test_hardly_any_columns(kernels: Any, width: int) -> None:
    case = make(RAGGED, width)
    assert_close(run(kernels, case), expected(case))


def test_no_bias(kernels: Any) -> None:
    case = make(RAGGED, 40)
    out = kernels.decode(*case[:4], None, FP32)
    zero = case._replace(bias=torch.zeros_like(case.bias))
    wanted = expected(zero).out
    assert (out.cpu().double() - wanted).norm() <= TOLERANCE[FP32] * wanted.norm()


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers with others between them."""
    twice = tensor.repeat_interleave(2, dim=-1)
    twice[..., 1::2] = math.nan if tensor.is_floating_point() else 0
    return twice[..., ::2]


@pytest.mark.parametrize("name", Case._fields)
def test_numbers_that_do_not_lie_side_by_side(kernels: Any, name: str) -> None:
    case = make(RAGGED, 40)
    apart = strided(getattr(case, name))
    assert not apart.is_contiguous()
    for here, there in zip(run(kernels, case), run(kernels, case._replace(**{name: apart})), strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (8, 1)])
def test_an_expanded_gradient(kernels: Any, shape: tuple[int, int]) -> None:
    # What `.sum().backward()` hands out has no strides.
    case = make(RAGGED, 40)
    case = case._replace(grad=case.grad[: shape[0], : shape[1]].expand_as(case.grad))
    assert_close(run(kernels, case), expected(case))


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_gradients_one_at_a_time(kernels: Any, wanted: tuple[bool, bool]) -> None:
    case = make(RAGGED, 77)
    both = run(kernels, case)[1:3]
    plan = group_by_feature(case.indices, case.row_offsets, len(case.weight))
    alone = kernels.decode_backward(
        case.grad, case.values, case.weight, plan, want_values=wanted[0], want_weight=wanted[1]
    )
    for want, one, reference in zip(wanted, alone, both, strict=True):
        assert torch.equal(one, reference) if want else one is None


def test_the_same_bits_every_time(kernels: Any) -> None:
    case = make(RAGGED, 130)
    first = run(kernels, case)
    for _ in range(2):
        for once, again in zip(first, run(kernels, case), strict=True):
            assert torch.equal(once, again)


def test_nothing_waits_for_the_device(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    called: set[str] = set()
    # The interpreter would add its own.
    monkeypatch.setattr(kernels, "_launch", lambda *arguments, **options: None)
    case = make(RAGGED, 40)
    with Recorder():
        run(kernels, case)
    assert "sort" in called
    assert not called & {
        "_local_scalar_dense",
        "nonzero",
        "index",
        "masked_select",
        "repeat_interleave",
        "item",
    }


@pytest.mark.skipif(INTERPRETED, reason="is what runs")
@pytest.mark.skipif(
    triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="Triton 3.6 interprets with NumPy before 2.4 only; it compiles with any",
)
def test_interpreted() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # None of those that `kernels` lets through was skipped.
    assert "no GPU here" not in done.stdout


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `sparse_triton_aot.py` says of every kernel."""
    if INTERPRETED:
        pytest.skip("an interpreter compiles nothing")
    script = Path(__file__).with_name("sparse_triton_aot.py")
    environment = {**WITHOUT_GPU, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_registers_suffice(machine_code: dict[str, Any]) -> None:
    for name, facts in machine_code.items():
        assert facts["reg"] <= 96, name
        assert facts["stack"] == facts["local"] == 0, name
        assert not {"LDL", "STL"} & facts["instructions"].keys(), name


def test_no_atomics(machine_code: dict[str, Any]) -> None:
    for name, facts in machine_code.items():
        assert facts["instructions"].keys() <= {"LDG", "LDG.128", "STG", "STG.128"}, name
        assert "STG" in facts["instructions"] or "STG.128" in facts["instructions"], name


def test_threads_load_16_bytes_at_once(machine_code: dict[str, Any]) -> None:
    wide = {name: facts["instructions"].get("LDG.128", 0) for name, facts in machine_code.items()}
    # Decode: four rows of the weight and the bias. Backward: 256 columns of four rows of the gradient and of one of
    # the weight, of which a warp loads 128 in float32 and all in half precision at once. Outer: the gradient alone.
    rows = {"fp32": (5, 10, 8), "bf16": (5, 5, 4), "fp32 weight, bf16 rest": (5, 6, 4)}
    for case, (decode, backward, outer) in rows.items():
        assert wide[f"{case}: 0 _decode_kernel"] >= decode
        assert wide[f"{case}: 1 _by_feature_kernel"] >= backward
        assert wide[f"{case}: 3 _by_feature_kernel"] >= outer
