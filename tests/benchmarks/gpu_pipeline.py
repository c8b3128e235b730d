"""Time what surrounds training on a GPU: matching, `fake_features`, self-generation; each beside what it must do.

    python tests/benchmarks/gpu_pipeline.py --json gpu_pipeline.json
    python tests/benchmarks/gpu_pipeline.py --device cpu --tiny        # tries the logic; its figures mean nothing

- matching: 131,072 directions with as many, half of them shared; certified, and at most a minute. Must do: one float32
  product of all pairs, at the rate of a large product in the same run.
- fake_features: several SAEs at once, with what is on by default and without. Must do: the model up to the hook, every
  SAE's encoder product and top-k, measured in turn with it.
- generate: tokens a second by engine, dtype and batch. Must do: read the weights once a step, or multiply with them,
  at the rates of a copy and of a large product in the same run; keys and values are not counted.

Matching needs torch, numpy and scipy. The others need this package, SAELens and transformers; what is not there is
named in the table. The model is SmolLM2-135M where the package that carries it is installed, otherwise random weights
of its shape (which change no time, but hardly ever end a sample); which, stands in the table. The most important jobs
come first; those that no time is left for (`--minutes`) are named.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gpu_bench import COPY, Bench, Job, measure_rates, run_jobs
from gpu_models import chosen
from measuring import driver, first_line, machine, show
from sparse_providers import two_stage_topk  # noqa: F401 - makes `sae_faithful.ops` importable without an install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

BATCHES = (256, 1024, 64)
DTYPES = {"bfloat16": "bf16", "float32": "fp32"}
ENGINES = ("transformers, static", "transformers, continuous batching", "vllm")


@dataclass
class Pipeline(Bench):
    """Where and how long to measure, and what was found; and the model, written where it has to be."""

    folder: Path = field(default_factory=Path)
    about_model: str = "not loaded"

    @cached_property
    def model_name(self) -> str:
        """What `LanguageModel` loads."""
        name, self.about_model = chosen(self.folder, tiny=self.tiny)
        show(f"model: {self.about_model}")
        return name

    @property
    def hook(self) -> str:
        """Where SAEs read: a third of the depth."""
        return "model.layers.0" if self.tiny else "model.layers.9"

    def found(self, row: Row) -> None:
        """Keep a row and show it."""
        if "seconds" in row and "least_seconds" in row:
            row["share"] = row["least_seconds"] / row["seconds"]
        self.rows.append(row)
        show(line_of(row))


def line_of(row: Row) -> str:
    """One row, aligned."""
    head = f"{row['what']:15s}{row['setting']:58s}"
    if "missing" in row:
        return f"{head} missing: {row['missing']}"
    line = f"{head}{row['seconds']:10.3f} s"
    if "least_seconds" in row:
        line += f"   at least {row['least_seconds']:.3f} s   {100 * row['share']:5.1f} %"
    if "tokens_per_second" in row:
        line += f"   {row['tokens_per_second']:,.0f} tokens/s"
    if "parts" in row:
        line += "   " + ", ".join(f"{name} {spent:.2f} s" for name, spent in row["parts"].items())
    if "certified" in row:
        line += f"   certified {row['certified']}, gap {row['gap']:.1e}"
    return line + (f"   {row['memory_mb']:.0f} MB" if "memory_mb" in row else "")


# ---------------------------------------------------------------------------------------------- matching


def measure_matching(bench: Pipeline, n: int, d: int) -> None:
    """Seconds, where they go, and what is proven."""
    from matching import planted

    from sae_faithful.ops import match_features

    a, b = (side.to(bench.device) for side in planted(n, d, 0.5, 0))
    small = [side[: max(64, n // 64)] for side in (a, b)]
    match_features(*small)  # Loads what a first call loads.
    parts: dict[str, float] = {}
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with parts_timed(bench, parts):
        seconds, result = timed(bench, lambda: match_features(a, b))
    held = {"memory_mb": torch.cuda.max_memory_allocated() / 1e6} if bench.device == "cuda" else {}
    gemm = bench.ceilings["GEMM fp32, TFLOP/s"]
    bench.found(
        {
            "what": "matching", "setting": f"{n:,} with {n:,}, {d:,} dimensions", "n": n, "d": d, "seconds": seconds,
            "least_seconds": 2 * n * n * d / gemm / 1e12, "parts": parts, "certified": result.certified,
            "gap": result.gap, "rounds": result.rounds, "total": result.total,
        } | held
    )  # fmt: skip


PARTS = {"_best_candidates": "candidates", "_solve_in_steps": "assignment and prices", "_examine": "proof"}


class parts_timed:
    """Adds up the seconds of the parts of matching; the device is waited for after each."""

    def __init__(self, bench: Pipeline, parts: dict[str, float]) -> None:
        self.bench, self.parts, self.before = bench, parts, {}

    def __enter__(self) -> None:
        from sae_faithful.ops import assignment

        for name, part in PARTS.items():
            self.before[name] = getattr(assignment, name)
            setattr(assignment, name, partial(self.run, self.before[name], part))

    def run(self, call: Callable[..., Any], part: str, *arguments: Any) -> Any:
        """One part."""
        seconds, result = timed(self.bench, partial(call, *arguments))
        self.parts[part] = self.parts.get(part, 0.0) + seconds
        return result

    def __exit__(self, *_: object) -> None:
        from sae_faithful.ops import assignment

        for name, call in self.before.items():
            setattr(assignment, name, call)


def timed(bench: Pipeline, call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall clock, the device's work included."""
    if bench.device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = call()
    if bench.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


# ---------------------------------------------------------------------------------------------- fake_features


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


# ---------------------------------------------------------------------------------------------- self-generation


def measure_generation(bench: Pipeline, engine: str, dtype: str, batch: int) -> None:
    """Tokens a second of one engine."""
    batch, context = (8, 16) if bench.tiny else (batch, 128)
    row: Row = {
        "what": "generate",
        "setting": f"{engine}, {dtype}, {batch:,} samples at once",
        "engine": engine,
    }
    row |= {"dtype": dtype, "batch": batch, "context": context, "model": bench.about_model}
    try:
        sampler = sampler_of(bench, engine, dtype, context)
    except Exception as error:
        bench.found(row | {"missing": first_line(error)})
        return
    try:
        sampler.sample(batch, 0)  # Loads the weights, and whatever a first call builds.
        if bench.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        runs = [timed(bench, partial(sampler.sample, batch, seed)) for seed in (1, 2)]
    finally:
        sampler.close()
        sampler.model.unload()
    drawn = statistics.mean(sum(map(len, samples)) for _, samples in runs)
    seconds = statistics.mean(taken for taken, _ in runs)
    steps = max(len(sample) for _, samples in runs for sample in samples)
    row |= {
        "seconds": seconds,
        "tokens": drawn,
        "tokens_per_second": drawn / seconds,
        "model": bench.about_model,
    }
    row["least_seconds"] = least_seconds(bench, sampler.model.skeleton, dtype, steps, drawn)
    if bench.device == "cuda":
        row["memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
    bench.found(row)


def sampler_of(bench: Pipeline, engine: str, dtype: str, context: int) -> Any:
    """What `self_generated` draws with."""
    from sae_faithful import LanguageModel, SourceRequest
    from sae_faithful_plugins.self_generated import SelfGenerated
    from sae_faithful_plugins.self_generated.engines import make_sampler
    from sae_faithful_plugins.self_generated.engines.transformers import TransformersSampler

    if engine == "vllm":
        options = SelfGenerated(engine="vllm", dtype=dtype, gpu_memory_utilization=0.4)
    else:
        options = SelfGenerated(dtype=dtype)
    request = SourceRequest(
        name="own", n_tokens=context, context_size=context, prepend_bos=True, seed=0, cache_dir=bench.folder,
        language_model=LanguageModel(bench.model_name, hooks=(bench.hook,), device=bench.device),
    )  # fmt: skip
    if engine == "vllm":
        return make_sampler(options, request)
    continuous = engine != "transformers, static"
    sampler = TransformersSampler.from_options(options, request, continuous=continuous)
    if continuous:
        from sae_faithful_plugins.self_generated.engines.continuous_batching import why_not

        reason = why_not(sampler.model)
        if reason:
            raise RuntimeError(reason)
    return sampler


def least_seconds(bench: Pipeline, skeleton: Any, dtype: str, steps: int, tokens: float) -> float:
    """The longer of reading all weights once a step and multiplying every token with them, at this run's rates."""
    weights = sum(one.numel() for one in skeleton.parameters())  # the input's matrix is the output's too
    size = getattr(torch, dtype).itemsize
    read = steps * weights * size / (bench.ceilings[COPY] * 1e9)
    return max(read, 2 * weights * tokens / (bench.ceilings[f"GEMM {DTYPES[dtype]}, TFLOP/s"] * 1e12))


# ---------------------------------------------------------------------------------------------- all of it


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="in all; what no time is left for is named"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the logic")
    parser.add_argument("--only", nargs="+", default=[], help="jobs whose names begin so, and the rates")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here: run with --device cpu --tiny to try the logic")
    if options.device == "cpu" and not options.tiny:
        raise SystemExit("--device cpu needs --tiny: the sizes are a GPU's")
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
