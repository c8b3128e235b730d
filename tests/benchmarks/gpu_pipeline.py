"""Time what surrounds training on a GPU: matching, `fake_features`, self-generation; each beside what it must do.

    python tests/benchmarks/gpu_pipeline.py --json gpu_pipeline.json
    python tests/benchmarks/gpu_pipeline.py --device cpu --tiny        # tries the logic; its figures mean nothing

- matching: 131,072 directions with as many, half of them shared; certified, and at most a minute. Must do: one float32
  product of all pairs, at the rate of a large product in the same run.
- fake_features: several SAEs at once, with what is on by default and without. Must do: the model up to the hook, every
  SAE's encoder product and top-k, measured in turn with it.
- generate: tokens a second by engine, dtype and number of samples. Must do: read the weights once a step, or multiply
  with them, at the rates of a copy and of a large product in the same run; keys and values are not counted.

Matching needs torch, numpy and scipy. The others need this package, SAELens and transformers; what is not there is
named in the table. The model is SmolLM2-135M where the package that carries it is installed, otherwise random weights
of its shape (which change no time, but hardly ever end a sample); which, stands in the table. The most important jobs
come first; those that no time is left for (`--minutes`) are named.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gpu_bench import Job, measure_rates, options_of, parser_of, run_jobs
from gpu_generation import BATCHES, DTYPES, ENGINES, measure_generation
from gpu_matching import measure_matching
from gpu_surroundings import Pipeline, line_of
from measuring import driver, machine, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from measuring import Row

MATCHING = ((131072, 576), (131072, 4096), (65536, 576))
"""Directions a side, and their width."""

SAES = Namespace(
    saes=6, d_sae=16384, k=32, context=128, tokens=262144, own_tokens=131072, reference_tokens=0, skip_reference=True,
    rows=32, repeats=3, processor_time=False,
)  # fmt: skip
"""Of SmolLM2-135M, as an experiment has them; rows a batch as the host takes them for this number of latents."""

TINY_SAES = {
    "saes": 2,
    "d_sae": 128,
    "k": 4,
    "context": 16,
    "tokens": 256,
    "own_tokens": 128,
    "rows": 4,
    "repeats": 1,
}


def planted_saes(bench: Pipeline) -> tuple[Any, Namespace]:
    """SAEs on a model, as `tests/benchmarks/evaluators.py` has them, and its options."""
    import evaluators

    from sae_faithful import LanguageModel

    sizes = vars(SAES) | (TINY_SAES if bench.tiny else {})
    options = Namespace(**sizes, hook=bench.hook, device=bench.device)
    model = LanguageModel(bench.model_name, hooks=(bench.hook,), device=bench.device)
    return evaluators.planted(model, options), options


def measure_fake_features(bench: Pipeline) -> None:
    """The host's pass with what the evaluator observes, in turn with what cannot be left out."""
    context, options = planted_saes(bench)
    import evaluators

    seconds = evaluators.measure(context, options)
    size = f"{options.saes} SAEs of {options.d_sae:,} latents"
    for name in evaluators.SETTINGS:
        ours, least = seconds[f"ours, {name}"], seconds[f"floor, {name}"]
        rounds = [floor / own for own, floor in zip(ours, least, strict=True)]
        taken = statistics.median(ours)
        bench.found(
            {
                "what": "fake_features", "setting": f"{name}, {size}", "name": name, "seconds": taken,
                "least_seconds": statistics.median(least), "all_seconds": ours, "all_least_seconds": least,
                "ratio": statistics.median(rounds), "tokens_per_second": options.tokens / taken,
                "model": bench.about_model,
            }
        )  # fmt: skip


def measure_after_the_pass(bench: Pipeline) -> None:
    """What the evaluator makes of its counts, which does not grow with the tokens; on the processor."""
    context, options = planted_saes(bench)
    import evaluators

    for name, setting in evaluators.SETTINGS.items():
        after = evaluators.after_the_pass(setting, context.language_model, context.handles, options)
        bench.found({"what": "fake_features", "setting": f"{name}, after the pass", "seconds": after})


def jobs(bench: Pipeline) -> Iterator[Job]:
    """What to do, the most important first."""
    sizes = [(max(64, n // 512), d // 16) for n, d in MATCHING] if bench.tiny else MATCHING
    matching = [Job(f"matching {n:,}, {d}", partial(measure_matching, bench, n, d), 90.0) for n, d in sizes]
    yield Job("rates", partial(measure_rates, bench), 0.0)
    yield matching[0]
    yield Job("fake_features", partial(measure_fake_features, bench), 60.0)
    for batch in BATCHES[:1] if bench.tiny else BATCHES:
        for dtype in DTYPES:
            for engine in ENGINES:
                run = partial(measure_generation, bench, engine, dtype, batch)
                yield Job(f"generate, {engine}, {dtype}, {batch}", run, 30.0)
    yield Job("fake_features, after the pass", partial(measure_after_the_pass, bench), 60.0)
    yield from matching[1:]


def goals(bench: Pipeline) -> list[Row]:
    """Met, missed and where the time goes, or not measured."""

    def verdict(text: str, limit: float, row: Row | None, key: str, at_most: bool) -> Row:
        value = None if row is None else row.get(key)
        found: Row = {"goal": text, "limit": limit, "at_most": at_most, "value": value}
        if row is None or value is None:
            return found | {"verdict": "not measured", "reason": "see what is missing or skipped"}
        met = value <= limit if at_most else value >= limit
        if row.get("certified", True) and met:
            return found | {"verdict": "met"}
        spent = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in row.get("parts", {}).items())
        return found | {
            "verdict": "missed",
            "reason": f"certified {row['certified']}; {spent}" if spent else "",
        }

    n, d = MATCHING[0]
    matched = next((row for row in bench.rows if row["what"] == "matching"), None)
    alone, default = (
        next((row for row in bench.rows if row.get("name") == name), None)
        for name in ("SAEs alone", "by default")
    )
    text = f"matching {n:,} with {n:,}, {d} dimensions, certified: seconds"
    return [
        verdict(text, 60.0, matched, "seconds", True),
        verdict("fake_features, SAEs alone: speed against what it must do", 0.8, alone, "ratio", False),
        verdict("fake_features, by default: speed against what it must do", 0.8, default, "ratio", False),
    ]


def show_results(bench: Pipeline) -> None:
    """The one table, and what was missed and left out."""
    show(
        f"\nmodel: {bench.about_model}\nseconds, the least that they could be, and what share of them that is"
    )
    for row in bench.rows:
        show(line_of(row))
    for name, value in bench.ceilings.items():
        show(f"ceiling: {name} {value:.4g}")
    for name in bench.skipped:
        show(f"skipped: {name}")
    for row in goals(bench):
        reached = "" if row["value"] is None else f" ({row['value']:.3g})"
        why = f"; {row['reason']}" if row.get("reason") else ""
        show(
            f"goal {'≤' if row['at_most'] else '≥'} {row['limit']:g}: {row['goal']}: {row['verdict']}{reached}{why}"
        )


def main() -> None:
    started = time.perf_counter()
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", default=[], help="jobs whose names begin so, and the rates")
    options = options_of(parser)
    about = machine(options.device)
    if options.device == "cuda":
        about |= {"driver": driver(), "cuda": torch.version.cuda}
    for name, value in about.items():
        show(f"{name}: {value}")
    with tempfile.TemporaryDirectory() as scratch:
        until = started + 60 * options.minutes
        bench = Pipeline(options.device, options.tiny, 30, 5.0, until=until, folder=Path(scratch))

        def save() -> None:
            if options.json:
                results = {
                    "machine": about | {"model": bench.about_model}, "options": vars(options), "rows": bench.rows,
                    "ceilings": bench.ceilings, "skipped": bench.skipped, "goals": goals(bench),
                    "seconds": time.perf_counter() - started,
                }  # fmt: skip
                options.json.write_text(json.dumps(results, default=str, indent=1))

        wanted = ["rates", *options.only] if options.only else [""]
        chosen_jobs = [job for job in jobs(bench) if job.name.startswith(tuple(wanted))]
        run_jobs(bench, chosen_jobs, started, save)
        save()
        show_results(bench)
    if options.tiny:
        show("tiny sizes: no figure and no goal above means anything")


if __name__ == "__main__":
    main()
