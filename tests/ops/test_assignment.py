"""The matching engine against scipy's dense solver, and what it proves."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sae_faithful.ops import assignment
from sae_faithful.ops.assignment import Matching, match_features
from sae_faithful.ops.directions import directions

EPS = 1e-6


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """All cosines in float64."""
    unit_a, unit_b = (side.astype(np.float64) for side in (a, b))
    unit_a, unit_b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (unit_a, unit_b))
    return unit_a @ unit_b.T


def optimum(a: np.ndarray, b: np.ndarray) -> float:
    """The largest total, by scipy on the whole matrix of the rows that are not zero."""
    a, b = a[a.any(axis=1)], b[b.any(axis=1)]
    if not (len(a) and len(b)):
        return 0.0
    cosine = cosines(a, b)
    return float(cosine[linear_sum_assignment(cosine, maximize=True)].sum())


def check_valid(found: Matching, a: np.ndarray, b: np.ndarray) -> None:
    """Every non-zero row of the smaller side is matched once, nothing twice, with its true cosine."""
    pairs = min(int(a.any(axis=1).sum()), int(b.any(axis=1).sum()))
    assert len(found.rows) == len(found.cols) == len(found.cosine) == pairs
    assert len(set(found.rows.tolist())) == len(set(found.cols.tolist())) == pairs
    assert a[found.rows].any(axis=1).all()
    assert b[found.cols].any(axis=1).all()
    assert (np.diff(found.rows) > 0).all()
    if pairs:
        true = np.diagonal(cosines(a[found.rows], b[found.cols]))
        np.testing.assert_allclose(found.cosine, true, atol=1e-12)


def check_exact(found: Matching, a: np.ndarray, b: np.ndarray) -> None:
    check_valid(found, a, b)
    slack = EPS * max(1, len(found.rows))
    assert found.certified
    assert 0 <= found.gap <= slack
    assert optimum(a, b) - found.gap - 1e-9 <= found.total <= optimum(a, b) + 1e-9


# Kinds of instances: each makes n and m directions from a seeded generator.


def gaussian(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    d = int(rng.integers(2, 64))
    return rng.standard_normal((n, d)), rng.standard_normal((m, d))


def planted(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Half of the smaller side is on both."""
    a, b = rng.standard_normal((n, 48)), rng.standard_normal((m, 48))
    shared = min(n, m) // 2
    b[:shared] = a[:shared] + 0.2 * b[:shared]
    return a, b[rng.permutation(m)]


def low_rank(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    rank = int(rng.integers(1, 5))
    basis = rng.standard_normal((rank, 32))
    return rng.standard_normal((n, rank)) @ basis, rng.standard_normal((m, rank)) @ basis


def duplicates(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Few different directions, each many times, at random lengths."""
    few = rng.standard_normal((int(rng.integers(1, 8)), 16))
    return tuple(few[rng.integers(0, len(few), size)] * rng.uniform(0.1, 10, (size, 1)) for size in (n, m))  # pyright: ignore[reportReturnType]


def near_ties(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Duplicates but for changes from far below float32's rounding to just above it."""
    a, b = duplicates(rng, n, m)
    scale = 10.0 ** rng.integers(-9, -4)
    return a + scale * rng.standard_normal(a.shape), b + scale * rng.standard_normal(b.shape)


def clusters(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Two clusters, one crowded in A and the other in B, so that the nearest candidates cannot serve all rows."""
    centres = 2 * rng.standard_normal((2, 24))
    in_a, in_b = (rng.random(n) < 0.8).astype(int), (rng.random(m) < 0.2).astype(int)
    return centres[in_a] + rng.standard_normal((n, 24)), centres[in_b] + rng.standard_normal((m, 24))


def cone(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """All about one direction, every cosine near 1, or (turned round) near −1."""
    axis = 10 * rng.standard_normal(20)
    sign = rng.choice([-1, 1])
    return rng.standard_normal((n, 20)) + axis, sign * (rng.standard_normal((m, 20)) + axis)


def with_zeros(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = gaussian(rng, n, m)
    a[rng.random(n) < 0.3] = 0
    b[rng.random(m) < 0.5] = 0
    return a, b


KINDS = [gaussian, planted, low_rank, duplicates, near_ties, clusters, cone, with_zeros]
SHAPES = [(1, 1), (1, 7), (5, 2), (40, 40), (60, 25), (25, 60), (90, 91), (128, 128)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("repeat", range(25))
def test_the_total_is_scipys_and_certified(kind: Callable[..., Any], repeat: int) -> None:
    """200 instances; so few candidates that most of them need column generation.

    Near ties once kept scipy's solver busy for hours: rows bid for columns in steps of 1e-9.
    """
    rng = np.random.default_rng([KINDS.index(kind), repeat])
    a, b = kind(rng, *SHAPES[repeat % len(SHAPES)])
    if repeat % 2:
        a, b = a.astype(np.float32), b.astype(np.float32)
    candidates = int(rng.choice([1, 3, 8, 64]))
    found = match_features(
        a, b, candidates=candidates, max_rounds=200, block=int(rng.choice([64, 1000, 2**20]))
    )
    check_exact(found, a, b)


@pytest.mark.parametrize("shape", [(700, 700), (500, 900), (900, 500)])
def test_larger_sets_are_exact_with_the_default_options(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    a, b = planted(rng, *shape)
    check_exact(match_features(a, b), a, b)


@pytest.fixture(scope="module")
def trained_decoders() -> tuple[np.ndarray, np.ndarray]:
    """Decoders of two TopK SAEs trained from different weights on 96 sparse features in 16 of 64 dimensions."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.util import temporary_seed

    decoders: list[np.ndarray] = []
    for seed in (0, 1):
        with temporary_seed(seed):
            sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=64, d_sae=256, k=8))
        data = torch.Generator().manual_seed(0)
        features = torch.randn(96, 16, generator=data) @ torch.randn(16, 64, generator=data)
        optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
        for step in range(300):
            present = torch.rand(256, 96, generator=data) < 0.05
            inputs = (present * torch.rand(256, 96, generator=data)) @ features
            out = sae.training_forward_pass(
                TrainStepInput(
                    sae_in=inputs, coefficients={}, dead_neuron_mask=None, n_training_steps=step, is_logging_step=False
                )
            )  # fmt: skip
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
        # It has learnt something.
        residual = (inputs - out.sae_out).square().sum() / (inputs - inputs.mean(0)).square().sum()
        assert residual.item() < 0.2
        decoders.append(sae.W_dec.detach().numpy())
    return decoders[0], decoders[1]


@pytest.mark.parametrize("candidates", [1, 8, 64])
def test_decoders_of_trained_saes(trained_decoders: tuple[np.ndarray, np.ndarray], candidates: int) -> None:
    a, b = trained_decoders
    check_exact(match_features(a, b, candidates=candidates, max_rounds=200), a, b)


def test_decoders_of_trained_saes_with_dead_latents(trained_decoders: tuple[np.ndarray, np.ndarray]) -> None:
    """Latents that never fired, stored as zeros: 40 of one SAE, 100 of the other."""
    a, b = (decoder.copy() for decoder in trained_decoders)
    rng = np.random.default_rng(0)
    a[rng.choice(256, 40, replace=False)] = 0
    b[rng.choice(256, 100, replace=False)] = 0
    found = match_features(a, b)
    check_exact(found, a, b)
    assert len(found.rows) == 156


def test_sides_can_be_exchanged() -> None:
    rng = np.random.default_rng(0)
    a, b = gaussian(rng, 50, 80)
    one, other = match_features(a, b), match_features(b, a)
    assert dict(zip(one.rows, one.cols, strict=True)) == dict(zip(other.cols, other.rows, strict=True))


# What is claimed where the optimum was not reached


@pytest.mark.parametrize("kind", [gaussian, planted, clusters, low_rank])
def test_a_matching_that_is_not_optimal_is_not_certified_and_its_gap_bounds_what_it_lacks(
    kind: Callable[..., Any],
) -> None:
    suboptimal = 0
    for seed in range(10):
        a, b = kind(np.random.default_rng(seed), 60, 60 + 20 * (seed % 3))
        deficits: list[float] = []
        for rounds in (0, 1, 2):
            found = match_features(a, b, candidates=1, max_rounds=rounds)
            check_valid(found, a, b)
            deficits.append(optimum(a, b) - found.total)
            assert deficits[-1] <= found.gap + 1e-9
            if deficits[-1] > EPS * 60:
                suboptimal += 1
                assert not found.certified
                assert found.rounds == rounds
        # Every round solves over more pairs.
        assert deficits == sorted(deficits, reverse=True)
    assert suboptimal > 0


@pytest.mark.parametrize("m", [60, 80])
def test_a_planted_suboptimal_matching_is_not_certified(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The solver hands out two partners the wrong way round: the proof does not believe it."""
    a, b = planted(np.random.default_rng(0), 60, m)
    best = optimum(a, b)
    solve = assignment._solve

    def exchanged(*args: Any) -> np.ndarray:
        partner = solve(*args)
        partner[[0, 1]] = partner[[1, 0]]
        return partner

    monkeypatch.setattr(assignment, "_solve", exchanged)
    found = match_features(a, b, candidates=64, max_rounds=2)
    check_valid(found, a, b)
    assert best - found.total > 0.1
    assert not found.certified
    assert found.gap >= best - found.total - 1e-9


@pytest.mark.parametrize("m", [60, 80])
def test_the_gap_bounds_what_any_assignment_lacks_at_any_prices(m: int) -> None:
    """u_i + v_j covers every pair: r_ij as in the module's docstring, against every pair by brute force."""
    rng = np.random.default_rng(m)
    a, b = gaussian(rng, 60, m)
    cosine = cosines(a, b)
    problem = assignment._Problem(*(directions("", torch.tensor(side))[1] for side in (a, b)), 500)
    found, beyond = assignment._best_candidates(problem, 5)
    candidates = assignment._Candidates.of(60, m, found)
    for _ in range(20):
        v, partner = rng.uniform(0, 0.5, m), rng.permutation(m)[:60]
        u = cosine[np.arange(60), partner] - v[partner]
        excess, (rows, cols, found_cosine) = assignment._examine(problem, candidates, beyond, u, v, EPS, 5)
        offer = cosine - v - u[:, None]
        np.testing.assert_allclose(excess, offer.max(axis=1).clip(0), atol=1e-12)
        np.testing.assert_allclose(found_cosine, cosine[rows, cols], atol=1e-12)
        assert (offer[rows, cols] > EPS).all()
        gap = excess.sum() + np.delete(v, partner).sum()
        assert optimum(a, b) <= cosine[np.arange(60), partner].sum() + gap + 1e-9


# Size


def test_the_matrix_is_never_held() -> None:
    """No tensor and no array of n·m entries, whatever is computed from the blocks."""
    rng = np.random.default_rng(0)
    n, block = 1_000, 20_000
    a, b = planted(rng, n, n)
    largest = 0

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
        found = match_features(a, b, candidates=4, block=block)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Python's and numpy's memory, where torch's is not counted.
    assert peak < 8 * n * n / 2
    check_exact(found, a, b)
    # The inputs have n·48 entries; a block stands beside the columns' best so far, 4 each.
    assert largest <= max(n * 48, block + 4 * n)
    assert largest < n * n / 10


# Inputs


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_nothing_matches_nothing(shape: tuple[int, int]) -> None:
    found = match_features(np.ones((shape[0], 3)), np.ones((shape[1], 3)))
    assert (len(found.rows), len(found.cols), found.total, found.certified, found.gap) == (0, 0, 0, True, 0)


def test_rows_of_length_zero_match_nothing() -> None:
    # Rows 0 and 2 of A and row 1 of B have directions.
    a = np.array([[1.0, 0], [0, 0], [0, 2]])
    found = match_features(a, np.array([[0.0, 0], [0, 3]]))
    assert (found.rows.tolist(), found.cols.tolist(), found.cosine.tolist()) == ([2], [1], [1])
    assert len(match_features(np.zeros((3, 2)), a).rows) == 0


@pytest.mark.parametrize("length", [1e-300, 1e-30, 1e30, 1e300])
def test_only_directions_count(length: float) -> None:
    # Squares of these lengths are 0 or infinite.
    a, b = gaussian(np.random.default_rng(0), 20, 20)
    plain, scaled = match_features(a, b), match_features(length * a, b)
    assert plain.cols.tolist() == scaled.cols.tolist()
    assert scaled.total == pytest.approx(plain.total)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_of_any_float_type(dtype: torch.dtype) -> None:
    a, b = (
        torch.tensor(side).to(dtype).requires_grad_() for side in planted(np.random.default_rng(0), 50, 60)
    )
    check_exact(match_features(a, b), *(side.detach().double().numpy() for side in (a, b)))


def test_inputs_precision_and_random_state_are_left_alone() -> None:
    a, b = duplicates(np.random.default_rng(0), 90, 90)
    before = a.copy(), b.copy(), torch.get_rng_state()
    torch.set_float32_matmul_precision("medium")
    try:
        check_exact(match_features(a, b, candidates=2, max_rounds=100), a, b)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(a, before[0])
    np.testing.assert_array_equal(b, before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), {}, "a has 3 dimensions and b 4"),
        (np.ones(3), np.ones((2, 3)), {}, r"a has shape \(3,\)"),
        (np.ones((2, 3)), np.full((2, 3), np.nan), {}, "b has invalid numeric entries"),
        (np.full((2, 3), np.inf), np.ones((2, 3)), {}, "a has invalid numeric entries"),
        (np.ones((2, 3)), np.ones((2, 3)), {"candidates": 0}, "candidates 0: at least 1"),
        (np.ones((2, 3)), np.ones((2, 3)), {"max_rounds": -1}, "max_rounds -1: at least 0"),
        (np.ones((2, 3)), np.ones((2, 3)), {"block": 0}, "block 0: at least 1"),
        (np.ones((2, 3)), np.ones((2, 3)), {"eps": 0.0}, "eps 0.0: at least 1e-10"),
    ],
)
def test_what_cannot_be_matched_is_refused(a: Any, b: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match_features(a, b, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda(kind: Callable[..., Any]) -> None:
    a, b = kind(np.random.default_rng(0), 120, 150)
    found = match_features(torch.tensor(a).cuda(), torch.tensor(b).cuda(), candidates=3, max_rounds=200)
    check_exact(found, a, b)


@pytest.mark.parametrize("gaining_cycles", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_longest_paths_as_by_trying_every_edge_in_every_round(seed: int, gaining_cycles: bool) -> None:
    random = np.random.default_rng(seed)
    n = 30
    pairs = random.choice(n * n, size=150, replace=False)
    tail, head = pairs // n, pairs % n
    height = random.integers(0, 50, n)
    # Whoever goes around gains nothing where every edge costs what it rises.
    gain = (height[head] - height[tail] - random.integers(0, 9, len(pairs))).astype(float)
    if gaining_cycles:
        gain += 5
    start = random.integers(-20, 20, n).astype(float)
    value = start.copy()
    for _ in range(n):
        offered = value[tail] + gain
        np.maximum.at(value, head, offered)
    assert value.max() > start.max()
    np.testing.assert_array_equal(assignment._longest_paths(start, tail, head, gain), value)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, sae_faithful.ops; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
