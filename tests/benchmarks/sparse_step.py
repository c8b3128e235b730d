"""Time sparse decoding and the whole training step against SAELens on a CPU: interleaved, medians, ratios, memory.

    python tests/benchmarks/sparse_step.py
    python tests/benchmarks/sparse_step.py --sizes 18432 --repeats 11 --json sparse_step.json

Decoders get the top k of inputs made of the decoder's directions, and compute output and gradients. A step is
SAELens's `SAETrainer.step` on such inputs: forward, backward, clipping, Adam and its counts of which latents fired.
Each round runs every provider once; a ratio is the median of what the rounds gave, against SAELens's dense one.

Correctness comes first: the relative errors ‖a − b‖ / ‖b‖ of outputs, and the worst of the gradients, against
float64; for steps with 5 % dead latents, so that the auxiliary loss counts. Far more than rounding in a step's errors
means that a near-tie of the top k was decided otherwise in float64.

Memory is the step's peak beyond parameters, optimizer state and gradients, as torch's profiler counts allocations
(matrix libraries' own buffers are not in it). It can be negative: a peak when not all gradients are there yet.
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from measuring import Clock, Row, bytes_of, first_line, interleaved, machine, peak_bytes, show, summary
from saelens_trainers import (
    BATCHTOPK,
    SPARSE_BATCHTOPK,
    SPARSE_TOPK,
    SPARSE_TOPK_FUSED,
    TOPK,
    TOPK_COO,
    as_saelens,
    coo_with_rescaling,
    exact_output_and_gradients,
    output_and_gradients,
    saelens_missing,
    set_dead,
    trainer,
)
from sparse_inputs import SETS, Planted, Shape, case, planted
from sparse_providers import DECODERS, DENSE, Decoder, decoded, decoded_in_float64, relative_errors, worst

if TYPE_CHECKING:
    from collections.abc import Callable

GOALS = {
    ("decode", "ours", 4608): 4.0,
    ("decode", "ours", 18432): 8.0,
    ("step", SPARSE_TOPK.name, 4608): 2.0,
    ("step", SPARSE_TOPK.name, 18432): 2.5,
}
"""How many times faster than SAELens's dense one, by what, provider and number of latents; no latents dead."""

GOALS_HOLD_FOR = (1024, 576, 32)
"""Tokens, width and active latents of the goals."""

FP32_DECODERS = [decoder for decoder in DECODERS if decoder.precision == "fp32"]

TRAININGS = (TOPK, TOPK_COO, SPARSE_TOPK, SPARSE_TOPK_FUSED, BATCHTOPK, SPARSE_BATCHTOPK)


def measure_decoders(weights: Planted, options: argparse.Namespace) -> list[Row]:
    """Errors and times of every decoder that runs."""
    cases = []
    for seed in range(SETS):
        pre = (weights.inputs(seed) - weights.b_dec) @ weights.W_enc + weights.b_enc
        values, indices = torch.topk(pre, weights.shape.k, sorted=False)
        cases.append(case(weights.shape, indices, torch.float32, seed, values.relu()))
    wanted = decoded_in_float64(cases[0])
    rows: dict[str, Row] = {}
    calls: dict[str, Callable[[int], list[Any]]] = {}
    clock = Clock("cpu", options.processor_time)

    def run(decoder: Decoder, number: int) -> list[Any]:
        return decoded(decoder, cases[number % SETS], clock.mark)[1]

    for decoder in FP32_DECODERS:
        row = rows[decoder.name] = {"level": "decode", "provider": decoder.name, "what": decoder.what}
        try:
            errors = relative_errors(decoded(decoder, cases[0])[0], wanted)
        except ImportError as error:
            row["missing"] = first_line(error)
            continue
        row |= {"output_error": errors[0], "gradient_error": worst(errors[1:])}
        calls[decoder.name] = partial(run, decoder)
    marks = interleaved(calls, lambda _: options.repeats)
    both = {name: [clock.ms(of[0], of[2]) for of in found] for name, found in marks.items()}
    for name, found in marks.items():
        forward = summary([clock.ms(of[0], of[1]) for of in found], None)["ms"]
        rows[name] |= summary(both[name], both[DENSE.name]) | {"forward_ms": forward}
    return list(rows.values())


def step_errors(weights: Planted) -> dict[str, Row]:
    """Every training's reconstruction and gradients against SAELens's own architecture in float64."""
    exact: dict[str, list[torch.Tensor]] = {}
    rows: dict[str, Row] = {}
    x = weights.inputs(0)
    for training in TRAININGS:
        if training.fused:
            continue  # the same gradients
        key = str(as_saelens(training))
        if key not in exact:
            exact[key] = exact_output_and_gradients(training, weights, x, True)
        errors = relative_errors(output_and_gradients(trainer(training, weights), x, True), exact[key])
        rows[training.name] = {"output_error": errors[0], "gradient_error": worst(errors[1:])}
    return rows


def measure_steps(weights: Planted, options: argparse.Namespace) -> list[Row]:
    """Errors, times and memory of every training, without and with dead latents."""
    errors = step_errors(weights)
    batches = [weights.inputs(seed) for seed in range(SETS)]
    made = {training.name: trainer(training, weights) for training in TRAININGS}
    clock = Clock("cpu", options.processor_time)
    rows: list[Row] = []
    for dead in (False, True):

        def run(name: str, number: int, dead: bool = dead) -> list[Any]:
            set_dead(made[name], dead)
            start = clock.mark()
            made[name].step(batches[number % SETS])
            return [start, clock.mark()]

        marks = interleaved({name: partial(run, name) for name in made}, lambda _: options.repeats)
        times = {name: [clock.ms(*of) for of in found] for name, found in marks.items()}
        baselines = {training.architecture: times[training.name] for training in (TOPK, BATCHTOPK)}
        for training in TRAININGS:
            name = training.name
            gradients = bytes_of(list(made[name].sae.parameters()))
            memory = peak_bytes(partial(run, name, 0), "cpu") - gradients
            rows.append(
                {"level": "step", "provider": name, "what": training.what, "dead": dead, "memory_mb": memory / 1e6}
                | errors.get(name, {})
                | summary(times[name], baselines[training.against])
            )  # fmt: skip
    return rows


def verdicts(rows: list[Row], shape: Shape) -> list[Row]:
    """Which goals are met."""
    found = []
    for (level, provider, s), goal in GOALS.items():
        if s != shape.s or (shape.n, shape.d, shape.k) != GOALS_HOLD_FOR:
            continue
        row = next(
            (row for row in rows if (row["level"], row["provider"]) == (level, provider) and not row.get("dead")), {}
        )  # fmt: skip
        ratio = row.get("ratio")
        verdict = "not measured" if ratio is None else "met" if ratio >= goal else "missed"
        found.append({"level": level, "provider": provider, "goal": goal, "ratio": ratio, "verdict": verdict})
    return found


def table(rows: list[Row]) -> list[str]:
    """The rows, aligned."""
    lines = [
        f"{'':8s}{'dead':5s}{'provider':26s}{'ms':>9s}  {'p20 – p80':>17s}{'forward':>9s}{'ratio':>8s}"
        f"{'memory MB':>11s}{'output err':>12s}{'grad err':>10s}"
    ]
    for row in rows:
        head = f"{row['level']:8s}{'5 %' if row.get('dead') else '':5s}{row['provider']:26s}"
        if "missing" in row:
            lines.append(f"{head}  not measured: {row['missing']}")
            continue
        spread = f"{row['p20']:.1f} – {row['p80']:.1f}"
        forward = f"{row['forward_ms']:.1f}" if "forward_ms" in row else ""
        memory = f"{row['memory_mb']:.0f}" if "memory_mb" in row else ""
        errors = [f"{row[key]:.1e}" if key in row else "" for key in ("output_error", "gradient_error")]
        lines.append(
            f"{head}{row['ms']:9.1f}  {spread:>17s}{forward:>9s}{row['ratio']:8.2f}{memory:>11s}"
            f"{errors[0]:>12s}{errors[1]:>10s}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[4608, 18432], help="numbers of latents")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--decode-only", action="store_true", help="no training steps")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="instead of wall clock: for busy machines, with one thread",
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    missing = "--decode-only" if options.decode_only else saelens_missing()
    about = machine("cpu") | {"load": round(os.getloadavg()[0], 2)}
    if not missing:
        about["SAELens's COO with rescaling"] = coo_with_rescaling("cpu")
    show(", ".join(f"{name} {value}" for name, value in (about | vars(options)).items()))
    for provider in (*FP32_DECODERS, *TRAININGS):
        show(f"  {provider.name}: {provider.what}")
    if missing:
        show(f"no steps: {missing}")
    results: list[dict[str, Any]] = []
    for s in options.sizes:
        shape = Shape(options.tokens, options.d, s, options.k)
        weights = planted(shape, "cpu")
        rows = measure_decoders(weights, options)
        if not missing:
            rows += measure_steps(weights, options)
        goals = verdicts(rows, shape)
        results.append({"shape": shape._asdict(), "rows": rows, "goals": goals})
        show(f"\n{shape}, fp32")
        for line in table(rows):
            show(line)
        for goal in goals:
            reached = "" if goal["ratio"] is None else f" ({goal['ratio']:.2f})"
            show(
                f"goal: {goal['level']} of {goal['provider']} ≥ {goal['goal']:g} times: {goal['verdict']}{reached}"
            )
    if options.json:
        options.json.write_text(
            json.dumps(
                {"machine": about, "options": vars(options), "results": results}, default=str, indent=1
            )
        )


if __name__ == "__main__":
    main()
