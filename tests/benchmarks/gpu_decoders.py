"""Decoders on a GPU: ours against float64 first, then errors, times, rates and memory of all."""

from __future__ import annotations

import statistics
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from gpu_bench import Bench
from gpu_profile import heaviest
from measuring import Row, bytes_of, first_line, interleaved, peak_bytes, summary
from sparse_inputs import LAWS, SETS, Case, Shape, case, indices_by
from sparse_providers import (
    DECODERS,
    Decoder,
    decoded,
    decoded_in_float64,
    dense,
    relative_errors,
    worst,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ERROR_LIMITS = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 5e-4}

OURS = next(decoder for decoder in DECODERS if decoder.name == "ours")

DENSE_AUTOCAST = next(decoder for decoder in DECODERS if decoder.name == "dense autocast")


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
            found = decoded(decoder, cases[0])[0]
            row["output"] = str(found[0].dtype)
            row["error"] = worst(relative_errors(found, wanted))
            del found
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
    if OURS.name in calls:
        name_of = f"decode {name}, {law}, {str(dtype).removeprefix('torch.')}"
        bench.profiles[name_of] = heaviest(partial(run, OURS, 0), bench.device)


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
    bench.profiles[f"decode {name}, 8 hot, float32"] = heaviest(partial(run, "8 hot", 0), bench.device)
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
    size = one.weight.element_size()
    # What a forward reads and writes if no row of the weight is read from a cache.
    gathered = shape.n * shape.d * (shape.k + 1) * size
    # What both passes must: the rows of the weight that are used, twice; indices and values, twice; the output and
    # its gradient; every row of the weight's gradient; the values' gradient.
    used = int(one.indices.unique().numel()) * shape.d * size
    entries = one.indices.numel() * (4 + one.values.element_size())
    compulsory = 2 * used + 2 * entries + bytes_of([one.grad, one.grad, one.weight, one.values])
    both = summary([bench.clock.ms(of[0], of[2]) for of in marks], None)
    return both | {
        "forward_ms": forward, "backward_ms": backward,
        "forward_gb_s": gathered / forward / 1e6, "gb_s": compulsory / both["ms"] / 1e6,
    }  # fmt: skip


@cache
def compiled_dense() -> Callable[..., torch.Tensor]:
    """SAELens's way to decode, by inductor, whose import alone takes seconds."""
    return torch.compile(dense)
