"""Decoders on a GPU: ours against float64 first, then errors, times, rates and memory of all."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from measuring import Row, bytes_of, first_line, interleaved, peak_bytes, show, summary
from sparse_inputs import LAWS, SETS, Case, Shape, case, indices_by
from sparse_providers import DECODERS, Decoder, decoded, decoded_in_float64, dense, relative_errors, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpu_bench import Bench

ERROR_LIMITS = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 5e-4}

OURS = next(decoder for decoder in DECODERS if decoder.name == "ours")

DENSE_AUTOCAST = next(decoder for decoder in DECODERS if decoder.name == "dense autocast")


def check_small_cases(bench: Bench) -> None:
    """Ours against float64 at odd sizes, in all dtypes, and where rows are empty, doubled, single or expanded."""
    shape = Shape(37, 83, 1003, 5)
    n, _, s, k = shape
    usual = indices_by("uniform", shape, bench.device, 0)
    with_empty = usual.masked_fill(torch.rand(n, k, device=bench.device) < 0.3, -1)
    kinds = {
        "uniform": usual,
        "8 hot": indices_by("8 hot", shape, bench.device, 0),
        "one latent only": torch.zeros_like(usual),
        "doubled": usual[:, :1].expand(n, k).contiguous(),
        "empty slots": with_empty,
        "all slots empty": torch.full_like(usual, -1),
        "N=1": usual[:1],
        "N=0": usual[:0],
        "k=0": usual[:, :0],
        "last latent": torch.full_like(usual, s - 1),
    }
    for dtype, limit in ERROR_LIMITS.items():
        for kind, indices in kinds.items():
            check(bench, f"{kind}, {dtype}", case(shape, indices, dtype, 0), limit)
        one = case(shape, usual, dtype, 0)
        expanded = one.grad[:1, :1].expand_as(one.grad)
        check(bench, f"expanded gradient, {dtype}", replace(one, grad=expanded), limit)


def check(bench: Bench, name: str, one: Case, limit: float) -> None:
    """One comparison of ours with float64."""
    try:
        error = worst(relative_errors(decoded(OURS, one)[0], decoded_in_float64(one)))
        row = {"check": name, "error": error, "limit": limit, "passed": error <= limit}
    except Exception as error:
        row = {"check": name, "error": first_line(error), "passed": False}
    bench.checks.append(row)
    if not row["passed"]:
        show(f"FAILED {row}")


def check_repeats(bench: Bench, name: str, law: str) -> None:
    """Whether 20 repeats give the same bits."""
    shape = bench.shape(name)
    one = case(shape, indices_by(law, shape, bench.device, 0), torch.float32, 0)
    for decoder in DECODERS:
        if decoder.name not in ("ours", "F.embedding_bag", "sparsify"):
            continue
        row: Row = {"check": f"20 repeats bitwise equal: {decoder.name}, {name}, {law}"}
        try:
            first = decoded(decoder, one)[0]
            row["equal"] = all(
                torch.equal(a, b) for _ in range(19) for a, b in zip(first, decoded(decoder, one)[0], strict=True)
            )  # fmt: skip
        except Exception as error:
            row["error"] = first_line(error)
        # Only ours promises it.
        row["passed"] = row.get("equal", False) if decoder is OURS else None
        bench.checks.append(row)
        show(f"{row['check']}: {row.get('equal', row.get('error'))}")


def measure_decoders(
    bench: Bench,
    name: str,
    law: str = "uniform",
    dtype: torch.dtype = torch.float32,
    decoders: Sequence[Decoder] = DECODERS,
) -> None:
    """Errors, times, rates and memory of every decoder that runs."""
    shape = bench.shape(name)
    cases = cases_of(bench, shape, law, dtype)
    wanted = decoded_in_float64(cases[0])
    rows: dict[str, Row] = {}
    calls: dict[str, Callable[[int], list[Any]]] = {}

    def run(decoder: Decoder, number: int) -> list[Any]:
        return decoded(decoder, cases[number % SETS], bench.clock.mark)[1]

    for decoder in decoders:
        if decoder.precision != "fp32" and dtype != torch.float32:
            continue
        row = rows[decoder.name] = {
            "level": "decode", "shape": name, "law": law, "dtype": str(dtype), "provider": decoder.name,
        }  # fmt: skip
        try:
            row["error"] = worst(relative_errors(decoded(decoder, cases[0])[0], wanted))
            memory = peak_bytes(partial(decoded, decoder, cases[0]), bench.device)
            one = cases[0]
            row["memory_mb"] = (memory - bytes_of([one.values, one.weight, one.bias])) / 1e6
        except Exception as error:
            row["missing"] = first_line(error)
            continue
        calls[decoder.name] = partial(run, decoder)
        if decoder.name == "ours":
            passed = row["error"] <= ERROR_LIMITS[dtype]
            bench.checks.append({"check": f"{name}, {law}, {dtype}", "error": row["error"], "passed": passed})
    del wanted
    for kind, found in interleaved(calls, bench.rounds_for).items():
        rows[kind] |= of_passes(bench, shape, cases[0], found)
    for row in rows.values():
        bench.add(row)


def measure_laws(bench: Bench, name: str) -> None:
    """Ours on every law of indices, side by side."""
    shape = bench.shape(name)
    cases = {law: cases_of(bench, shape, law, torch.float32) for law in LAWS}

    def run(law: str, number: int) -> list[Any]:
        return decoded(OURS, cases[law][number % SETS], bench.clock.mark)[1]

    rows: list[Row] = []
    for law, (one, *_) in cases.items():
        error = worst(relative_errors(decoded(OURS, one)[0], decoded_in_float64(one)))
        bench.checks.append(
            {"check": f"{name}, {law}", "error": error, "passed": error <= ERROR_LIMITS[torch.float32]}
        )
        rows.append(
            {"level": "laws", "shape": name, "law": law, "dtype": "torch.float32", "provider": "ours", "error": error}
        )  # fmt: skip
    marks = interleaved({law: partial(run, law) for law in LAWS}, bench.rounds_for)
    for row in rows:
        law = row["law"]
        bench.add(row | of_passes(bench, shape, cases[law][0], marks[law]))


def cases_of(bench: Bench, shape: Shape, law: str, dtype: torch.dtype) -> list[Case]:
    """Inputs to take in turn."""
    return [case(shape, indices_by(law, shape, bench.device, seed), dtype, seed) for seed in range(SETS)]


def of_passes(bench: Bench, shape: Shape, one: Case, marks: Sequence[Sequence[Any]]) -> Row:
    """Times of forward, backward and both, and the forward's rate."""
    forward = statistics.median(bench.clock.ms(of[0], of[1]) for of in marks)
    backward = statistics.median(bench.clock.ms(of[1], of[2]) for of in marks)
    # What a forward reads and writes if no row of the weight is read from a cache.
    moved = shape.n * shape.d * (shape.k + 1) * one.weight.element_size()
    both = summary([bench.clock.ms(of[0], of[2]) for of in marks], None)
    return both | {"forward_ms": forward, "backward_ms": backward, "forward_gb_s": moved / forward / 1e6}


@cache
def compiled_dense() -> Callable[..., torch.Tensor]:
    """SAELens's way to decode, by inductor, whose import alone takes seconds."""
    return torch.compile(dense)
