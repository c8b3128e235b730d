"""A training step on a GPU: loss and gradients in plain torch, and SAELens's whole trainer."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from gpu_profile import heaviest
from measuring import Row, bytes_of, first_line, interleaved, matmul_precision, peak_bytes, summary
from saelens_trainers import SPARSE_TOPK, SPARSE_TOPK_FUSED, TOPK, TOPK_COO, Training, set_dead, trainer
from sparse_inputs import SETS, Planted, planted
from sparse_providers import step_as_ours, step_as_saelens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpu_bench import Bench


def measure_model(bench: Bench, name: str, precision: str) -> None:
    """Loss and gradients of a step in plain torch: SAELens's way and ours."""
    shape = bench.shape(name)
    ways: dict[str, Callable[[Planted, torch.Tensor], torch.Tensor]] = {
        "SAELens's way": step_as_saelens,
        "ours": step_as_ours,
    }
    made = planted(shape, bench.device)
    batches = [made.inputs(seed) for seed in range(SETS)]
    parameters = ("W_enc", "b_enc", "W_dec", "b_dec")
    leaves = {part: getattr(made, part).clone().requires_grad_() for part in parameters}
    of_saelens = replace(made, **leaves)
    of_ours = replace(of_saelens, W_enc=made.W_enc.T.contiguous().T.requires_grad_())

    def run(way: str, number: int) -> list[Any]:
        weights = of_ours if way == "ours" else of_saelens
        with matmul_precision(precision):
            start = bench.clock.mark()
            with autocast(bench, precision):
                loss = ways[way](weights, batches[number % SETS])
            torch.autograd.grad(loss, [getattr(weights, part) for part in parameters])
            return [start, bench.clock.mark()]

    marks = interleaved({way: partial(run, way) for way in ways}, bench.rounds_for)
    for way, found in marks.items():
        memory = peak_bytes(partial(run, way, 0), bench.device) - bytes_of(list(leaves.values()))
        bench.add(
            {"level": "model", "shape": name, "precision": precision, "provider": way}
            | {"memory_mb": memory / 1e6} | summary([bench.clock.ms(*of) for of in found], None)
        )  # fmt: skip


def autocast(bench: Bench, precision: str) -> Any:
    """SAELens's autocast, or nothing."""
    return torch.autocast(bench.device, torch.bfloat16) if precision == "autocast" else nullcontext()


def measure_steps(
    bench: Bench,
    name: str,
    precision: str,
    trainings: Sequence[Training] = (TOPK, TOPK_COO, SPARSE_TOPK, SPARSE_TOPK_FUSED),
) -> None:
    """Times and memory of SAELens's trainer, without and with dead latents."""
    shape = bench.shape(name)
    weights = planted(shape, bench.device)
    batches = [weights.inputs(seed) for seed in range(SETS)]
    made = {training.name: trainer(training, weights) for training in trainings}
    del weights
    for dead in (False, True):

        def run(kind: str, number: int, dead: bool = dead) -> list[Any]:
            own = made[kind]
            own.autocast_if_enabled = autocast(bench, precision)
            set_dead(own, dead)
            with matmul_precision(precision):
                start = bench.clock.mark()
                own.step(batches[number % SETS])
                return [start, bench.clock.mark()]

        rows: dict[str, Row] = {}
        for kind in list(made):
            rows[kind] = {
                "level": "step", "shape": name, "precision": precision, "dead": dead,
                "provider": kind,
            }  # fmt: skip
            try:
                run(kind, 0)  # The optimizer's state is made here.
                gradients = bytes_of(list(made[kind].sae.parameters()))
                rows[kind]["memory_mb"] = (peak_bytes(partial(run, kind, 1), bench.device) - gradients) / 1e6
            except Exception as error:
                rows[kind]["missing"] = first_line(error)
                del made[kind]
        marks = interleaved({kind: partial(run, kind) for kind in made}, bench.rounds_for)
        for kind, found in marks.items():
            rows[kind] |= summary([bench.clock.ms(*of) for of in found], None)
        for row in rows.values():
            bench.add(row)
        for kind in made if not dead else ():
            if kind.startswith("sparse"):
                profile = heaviest(partial(run, kind, 0), bench.device)
                bench.profiles[f"step {name}, {precision}, {kind}"] = profile
