"""Time sparse decoding and the whole training step on a GPU: correctness, ceilings, medians, memory, and goals.

    python tests/benchmarks/gpu_sparse_step.py --json gpu_sparse_step.json
    python tests/benchmarks/gpu_sparse_step.py --device cpu --tiny        # tries the logic; its figures mean nothing

Needs torch and Triton alone. Full steps need SAELens and this package installed as well; what is not there is named
in the table. The most important jobs come first; those that no time is left for (`--minutes`) are named.

- checks, before anything is timed. Decode and what the encoder gets (`sparse_outer`, `sparse_encode`), with gradients,
  against float64: at odd sizes, and at every shape and dtype; at the main shapes by every law of indices too (float32).
  The training steps: reconstruction and gradients in SAELens's trainer, in float32, at one small shape without and
  with 5 % dead latents, against SAELens's own architecture in float64. Steps under autocast and in TF32 are not
  compared: their rounding decides near-ties of the top k otherwise. 20 repeats of decode bit by bit, at the main
  shapes by every law. The exit code is 1 if a check fails.
- decode: output and gradients for given indices, every provider once a round; forward and backward in one call
  between CUDA events. Each call takes another of four inputs than the two before it, whoever made those. Errors are
  against float64: the worst of output and gradients. GB/s are of the bytes that both passes cannot do without. Memory
  is the peak beyond what was there before and beyond the gradients.
- model: SAELens's loss and its gradients in plain torch against ours, without optimizer. Needs no SAELens.
- step: SAELens's `SAETrainer.step`, without and with 5 % dead latents. Four batches take turns here and in `model`.
- goals: met or missed, and for a missed one what ours spends the device's time on, from a profile in the same run.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial

import torch
from gpu_bench import (
    SHAPES,
    VARIANTS_OF_B,
    Bench,
    Job,
    line_of,
    measure_ceilings,
    options_of,
    parser_of,
    run_jobs,
)
from gpu_checks import check_repeats, check_shapes, check_small_cases, check_steps
from gpu_decoders import (
    DENSE_AUTOCAST,
    OURS,
    compiled_dense,
    measure_decoders,
    measure_laws,
)
from gpu_goals import goals
from gpu_steps import measure_model, measure_steps
from measuring import driver, machine, show
from saelens_trainers import (
    BATCHTOPK,
    SPARSE_BATCHTOPK,
    SPARSE_TOPK,
    SPARSE_TOPK_FUSED,
    TOPK,
    TOPK_COMPILED,
    TOPK_COO,
    coo_with_rescaling,
    saelens_missing,
)
from sparse_inputs import LAWS
from sparse_providers import DECODERS, Decoder


def decode(bench: Bench, name: str, law: str = "uniform", dtype: torch.dtype = torch.float32) -> Job:
    """Every decoder on one kind of input."""
    run = partial(measure_decoders, bench, name, law, dtype)
    return Job(f"decode {name}, {law}, {str(dtype).removeprefix('torch.')}", run)


def whole_step(bench: Bench, name: str, precision: str) -> Job:
    """SAELens's trainer, or without SAELens what comes nearest."""
    measure = measure_model if bench.no_saelens else measure_steps
    return Job(
        f"{'model' if bench.no_saelens else 'step'} {name}, {precision}",
        partial(measure, bench, name, precision),
    )


def jobs(bench: Bench) -> list[Job]:
    """What to do, the most important first."""
    big_first = ("B", "C", "A")
    found = [
        Job("checks at small sizes", partial(check_small_cases, bench)),
        Job("checks at every shape and dtype", partial(check_shapes, bench)),
        *(() if bench.no_saelens else [Job("checks of training steps", partial(check_steps, bench))]),
        *(
            Job(f"repeats {name}, {law}", partial(check_repeats, bench, name, law))
            for name in big_first
            for law in LAWS
        ),
        Job("ceilings", partial(measure_ceilings, bench)),
        *(decode(bench, name) for name in big_first),
        *(whole_step(bench, name, precision) for precision in ("autocast", "fp32") for name in big_first),
        *(Job(f"laws {name}", partial(measure_laws, bench, name)) for name in big_first),
        *(decode(bench, name, dtype=torch.bfloat16) for name in big_first),
        *(whole_step(bench, name, "tf32") for name in big_first),
    ]
    if not bench.no_saelens:
        batchtopk = partial(measure_steps, bench, "B", "autocast", [BATCHTOPK, SPARSE_BATCHTOPK])
        found += [
            *(
                Job(f"model {name}, {precision}", partial(measure_model, bench, name, precision))
                for precision in ("autocast", "fp32")
                for name in big_first
            ),
            Job("step B, autocast, batchtopk", batchtopk),
        ]
    found += [decode(bench, name) for name in VARIANTS_OF_B]
    found += [decode(bench, "B", law) for law in LAWS if law != "uniform"]
    found += [decode(bench, name, dtype=torch.bfloat16) for name in VARIANTS_OF_B]
    # Compiling takes long, so that a run that it breaks off has the rest.
    compiled = Decoder("dense autocast, compiled", "", lambda *inputs: compiled_dense()(*inputs), "autocast")
    of_decoders = partial(measure_decoders, bench, "B", decoders=[DENSE_AUTOCAST, compiled, OURS])
    found.append(Job("decode B, compiled dense", of_decoders, 90.0))
    if not bench.no_saelens:
        of_steps = partial(measure_steps, bench, "B", "autocast", [TOPK, TOPK_COMPILED, SPARSE_TOPK])
        found.append(Job("step B, autocast, compiled SAELens", of_steps, 120.0))
    return found


def show_results(bench: Bench) -> None:
    """The one table, and what was checked, missed and left out."""
    show(
        "\nmilliseconds: median (20th – 80th percentile, rounds); memory beyond what was held before and gradients"
    )
    for row in bench.rows:
        show(line_of(row))
    for name, value in bench.ceilings.items():
        show(f"ceiling: {name} {value:.4g}")
    failed = [row for row in bench.checks if row["passed"] is False]
    show(f"checks: {len(bench.checks)}, failed {len(failed)}")
    for row in failed:
        show(f"  failed: {row['check']} {row.get('error', '')}")
    for name in bench.skipped:
        show(f"skipped: {name}")
    for row in (goal.verdict(bench) for goal in goals()):
        reached = "" if row["value"] is None else f" ({row['value']:.3g})"
        why = f"; {row['reason']}" if "reason" in row else ""
        sign = "≤" if row["at_most"] else "≥"
        show(f"goal {sign} {row['limit']:g}: {row['goal']}: {row['verdict']}{reached}{why}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = parser_of(__doc__)
    made.add_argument("--rounds", type=int, default=30, help="of all that is measured side by side")
    made.add_argument("--seconds", type=float, default=45.0, help="the most that these rounds take")
    made.add_argument("--no-steps", action="store_true", help="leave SAELens's trainer out")
    return made


def main() -> None:
    started = time.perf_counter()
    options = options_of(parser())
    until = started + 60 * options.minutes
    no_saelens = "left out by --no-steps" if options.no_steps else saelens_missing()
    bench = Bench(options.device, options.tiny, options.rounds, options.seconds, no_saelens, until)
    about = machine(options.device)
    if options.device == "cuda":
        about |= {"driver": driver(), "cuda": torch.version.cuda}
    about["steps"] = f"missing: {bench.no_saelens}" if bench.no_saelens else "measured"
    if not bench.no_saelens:
        about["SAELens's COO with rescaling"] = coo_with_rescaling(options.device)
    for name, value in about.items():
        show(f"{name}: {value}")
    trainings = () if no_saelens else (TOPK, TOPK_COO, TOPK_COMPILED, SPARSE_TOPK, SPARSE_TOPK_FUSED)
    providers = {provider.name: provider.what for provider in (*DECODERS, *trainings)}
    for name, what in providers.items():
        show(f"  {name}: {what}")

    def save() -> None:
        if options.json:
            results = {
                "machine": about, "options": vars(options), "shapes": {name: bench.shape(name) for name in SHAPES},
                "providers": providers, "rows": bench.rows, "ceilings": bench.ceilings, "checks": bench.checks,
                "skipped": bench.skipped,
                "profiles": bench.profiles, "seconds": time.perf_counter() - started,
                "goals": [goal.verdict(bench) for goal in goals()],
            }  # fmt: skip
            options.json.write_text(json.dumps(results, default=str, indent=1))

    run_jobs(bench, jobs(bench), started, save)
    save()
    show_results(bench)
    if options.tiny:
        show("tiny sizes: no figure and no goal above means anything")
    if any(row["passed"] is False for row in bench.checks):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
