"""Self-generation on a GPU: tokens a second by engine, dtype and batch."""

from __future__ import annotations

import statistics
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from gpu_bench import COPY
from gpu_surroundings import Pipeline, timed
from measuring import first_line

if TYPE_CHECKING:
    from measuring import Row

BATCHES = (256, 1024, 64)
"""Samples asked for in one call."""

DTYPES = {"bfloat16": "bf16", "float32": "fp32"}
STATIC, CONTINUOUS = "transformers, static", "transformers, continuous batching"
ENGINES = (STATIC, CONTINUOUS, "vllm")


def measure_generation(bench: Pipeline, engine: str, dtype: str, batch: int) -> None:
    """Tokens a second of one engine."""
    batch, context = (8, 16) if bench.tiny else (batch, 128)
    row: Row = {
        "what": "generate",
        "setting": f"{engine}, {dtype}, {batch:,} samples",
        "engine": engine,
    }
    row |= {"dtype": dtype, "batch": batch, "context": context, "model": bench.about_model}
    try:
        sampler = sampler_of(bench, engine, dtype, context)
    except Exception as error:
        bench.found(row | {"missing": first_line(error)})
        return
    row["setting"] += at_once(engine, batch)
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


def at_once(engine: str, batch: int) -> str:
    """How many of the samples an engine draws side by side; nothing where it decides that itself."""
    if engine == STATIC:
        return ", all at once"
    if engine == CONTINUOUS:
        from sae_faithful_plugins.self_generated.engines.continuous_batching import IN_FLIGHT

        return f", at most {min(batch, IN_FLIGHT)} at once"
    return ""


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
    continuous = engine == CONTINUOUS
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
