"""Ours against float64 on a GPU: odd sizes, every shape that is timed in every dtype, training steps; and repeats."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from gpu_bench import SHAPES, VARIANTS_OF_B, Bench
from gpu_decoders import ERROR_LIMITS, OURS
from measuring import Row, first_line, matmul_precision, show
from saelens_trainers import (
    SPARSE_BATCHTOPK,
    SPARSE_TOPK,
    Training,
    exact_output_and_gradients,
    output_and_gradients,
    trainer,
)
from sparse_inputs import LAWS, Case, Planted, Shape, case, indices_by, planted
from sparse_providers import (
    DECODERS,
    Entries,
    decode_entries,
    decoded,
    decoded_in_float64,
    relative_errors,
    sparse_encode,
    sparse_outer,
    step_as_ours,
    step_as_saelens,
    worst,
)

if TYPE_CHECKING:
    from collections.abc import Callable

STEP_LIMIT = 1e-5
"""The sums of a step's gradients are longer than a decoder's: b_dec's goes over all rows or all latents."""

STEP_SHAPE = Shape(128, 96, 2048, 8)
"""So few rows that no near-tie of the top k is decided otherwise in float64; enough to find them in two stages, and
more dead latents than the auxiliary loss takes."""

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")


def check_small_cases(bench: Bench) -> None:
    """Ours against float64 at odd sizes, in all dtypes, and where rows are empty, doubled, single or expanded."""
    shape = Shape(137, 83, 1003, 5)  # one latent in all rows: more entries than the kernels take in one piece
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
            check_case(bench, f"{kind}, {dtype}", case(shape, indices, dtype, 0), limit)
        one = case(shape, usual, dtype, 0)
        expanded = one.grad[:1, :1].expand_as(one.grad)
        check_case(bench, f"expanded gradient, {dtype}", replace(one, grad=expanded), limit)
        check(
            bench, f"ragged rows, {dtype}", partial(errors_of_ragged_rows, shape, dtype, bench.device), limit
        )
    # As under autocast: master weights, and activations of fewer bits.
    one = case(shape, usual, torch.float32, 0)
    mixed = replace(one, values=one.values.bfloat16())
    check_case(bench, "float32 weight, bfloat16 values", mixed, ERROR_LIMITS[torch.bfloat16])
    check(bench, "gradients of a step in plain torch", partial(errors_of_step, bench.device), STEP_LIMIT)


def check_shapes(bench: Bench) -> None:
    """Ours against float64 at every shape that is timed, in every dtype; at the main ones by every law in float32."""
    for name in (*SHAPES, *VARIANTS_OF_B):
        shape = bench.shape(name)
        for law in LAWS if name in SHAPES else ("uniform",):
            indices = indices_by(law, shape, bench.device, 0)
            for dtype, limit in ERROR_LIMITS.items():
                if law == "uniform" or dtype == torch.float32:
                    check_case(bench, f"{name}, {law}, {dtype}", case(shape, indices, dtype, 0), limit)


def check_steps(bench: Bench) -> None:
    """Each of our trainings in SAELens's trainer, float32, against SAELens's own in float64; without and with dead."""
    for training in (SPARSE_TOPK, SPARSE_BATCHTOPK):
        for dead in (False, True):
            name = f"reconstruction and gradients of {training.name}{', 5 % dead' if dead else ''}"
            check(bench, name, partial(errors_of_training, bench.device, training, dead), STEP_LIMIT)


def check_case(bench: Bench, name: str, one: Case, limit: float) -> None:
    """Ours against float64 on one input: decode with its gradients, and what an encoder gets from the same entries."""
    wanted = cache(partial(decoded_in_float64, one))
    check(bench, name, lambda: relative_errors(decoded(OURS, one)[0], wanted()), limit)

    def errors_of_outer() -> list[float]:
        entries = Entries.of_rows(one.indices, len(one.weight))
        found = sparse_outer(entries, one.values.flatten(), one.grad)
        return relative_errors(found, [wanted()[2], sums_in_float64(one)])

    check(bench, f"sparse_outer, {name}", errors_of_outer, limit)
    of_encoder = partial(errors_of_encoder, one, wanted)
    check(bench, f"sparse_encode, {name}", of_encoder, max(limit, STEP_LIMIT))


def errors_of_encoder(one: Case, decoded_exactly: Callable[[], list[torch.Tensor]]) -> list[float]:
    """`sparse_encode`'s gradients to inputs, weight, bias and shift, where `one.values` come back to the entries.

    Those to inputs and weight are what a decoder gives for such values. The shift's is a product of torch's in the
    weight's dtype, not a kernel's: float32 alone, which training has.
    """
    names = ["inputs", "weight", "bias", *(["shift"] if one.weight.dtype == torch.float32 else [])]
    given = {
        "inputs": one.grad, "weight": one.weight, "bias": one.weight.new_zeros(len(one.weight)), "shift": one.bias,
    }  # fmt: skip
    leaves = {name: given[name].detach().requires_grad_() for name in names}
    entries = Entries.of_rows(one.indices, len(one.weight)).grouped()
    back = one.values.flatten()
    with matmul_precision("fp32"):
        found = torch.autograd.grad(sparse_encode(entries, back, **leaves), list(leaves.values()), back)
    output, _, by_feature, _ = decoded_exactly()
    sums = sums_in_float64(one)
    wanted = [output - one.bias.double(), by_feature, sums, -(sums @ one.weight.double())]
    return relative_errors(found, wanted[: len(found)])


def sums_in_float64(one: Case) -> torch.Tensor:
    """The sum of each latent's values."""
    values = one.values.double() * (one.indices >= 0)
    sums = values.new_zeros(len(one.weight))
    return sums.index_add_(0, one.indices.clamp(min=0).flatten(), values.flatten())


def check(bench: Bench, name: str, errors: Callable[[], list[float]], limit: float) -> None:
    """Whether none of some relative errors is above the limit."""
    row: Row = {"check": name, "limit": limit, "passed": False}
    try:
        row["errors"] = errors()
        row["error"] = worst(row["errors"])
        row["passed"] = row["error"] <= limit
    except Exception as error:
        row["error"] = first_line(error)
    bench.checks.append(row)
    if not row["passed"]:
        show(f"FAILED {row}")


def errors_of_ragged_rows(shape: Shape, dtype: torch.dtype, device: str) -> list[float]:
    """Ours where rows have different numbers of entries, one latent in most: decode, and the encoder's gradients."""
    n, _, s, k = shape
    rng = torch.Generator(device).manual_seed(0)
    lengths = torch.randint(0, 2 * k, (n,), generator=rng, device=device)
    lengths[::7] = 0
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    rows = torch.repeat_interleave(torch.arange(n, device=device), lengths)
    indices = torch.randint(-1, s, (len(rows),), generator=rng, device=device)
    indices[::2] = 3
    entries = Entries(indices, offsets, s)
    of_each = torch.ones(len(rows), 1, device=device, dtype=torch.long)
    one = case(shape, of_each, dtype, 0)
    values, weight, bias = (
        part.detach().requires_grad_() for part in (one.values[:, 0], one.weight, one.bias)
    )
    grad = one.grad[:n]
    out = decode_entries(entries, values, weight, bias)
    found = [
        out,
        *torch.autograd.grad(out, [values, weight, bias], grad),
        *sparse_outer(entries, values, grad),
    ]

    exact = [part.detach().double().requires_grad_() for part in (values, weight, bias)]
    held = indices >= 0
    dense = exact[0].new_zeros(n, s).index_put((rows[held], indices[held]), exact[0][held], accumulate=True)
    wanted = dense @ exact[1] + exact[2]
    of_wanted = torch.autograd.grad(wanted, exact, grad.double(), retain_graph=True)
    return relative_errors(
        [part.detach() for part in found],
        [wanted.detach(), *of_wanted, dense.detach().T @ grad.double(), dense.detach().sum(0)],
    )


def errors_of_step(device: str) -> list[float]:
    """The gradients of our step's loss (the fp32 way, in plain torch) against SAELens's way in float64."""
    weights, x = step_inputs(device)
    found = step_gradients(step_as_ours, weights, x)
    exact = replace(weights, **{part: getattr(weights, part).double() for part in PARAMETERS})
    return relative_errors(found, step_gradients(step_as_saelens, exact, x.double()))


def errors_of_training(device: str, training: Training, dead: bool) -> list[float]:
    """Reconstruction and gradients of a training's step against SAELens's own architecture in float64."""
    weights, x = step_inputs(device)
    with matmul_precision("fp32"):
        found = output_and_gradients(trainer(training, weights), x, dead)
    return relative_errors(found, exact_output_and_gradients(training, weights, x, dead))


def step_inputs(device: str) -> tuple[Planted, torch.Tensor]:
    """Weights and inputs of a small step; drawn on the processor, so that they are the same on every device."""
    weights = planted(STEP_SHAPE, "cpu")
    moved = {part: getattr(weights, part).to(device) for part in PARAMETERS}
    return replace(weights, **moved), weights.inputs(0).to(device)


def step_gradients(
    way: Callable[[Planted, torch.Tensor], torch.Tensor], weights: Planted, x: torch.Tensor
) -> list[torch.Tensor]:
    """To W_enc, b_enc, W_dec and b_dec."""
    leaves = {part: getattr(weights, part).clone().requires_grad_() for part in PARAMETERS}
    with matmul_precision("fp32"):
        return list(torch.autograd.grad(way(replace(weights, **leaves), x), list(leaves.values())))


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
