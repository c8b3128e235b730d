"""Matching on a GPU: seconds, where they go, and what is proven."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from gpu_surroundings import Pipeline, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def measure_matching(bench: Pipeline, n: int, d: int) -> None:
    """Seconds, where they go, and what is proven."""
    from matching import planted

    from sae_faithful.ops import match_features

    a, b = (side.to(bench.device) for side in planted(n, d, 0.5, 0))
    small = [side[: max(64, n // 64)] for side in (a, b)]
    match_features(*small)  # Loads what a first call loads.
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with parts_timed(bench) as parts:
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


@contextmanager
def parts_timed(bench: Pipeline) -> Iterator[dict[str, float]]:
    """Seconds of the parts of matching, added up; the device is waited for after each."""
    from sae_faithful.ops import assignment

    parts = dict.fromkeys(PARTS.values(), 0.0)

    def run(call: Callable[..., Any], part: str, *arguments: Any) -> Any:
        seconds, result = timed(bench, partial(call, *arguments))
        parts[part] += seconds
        return result

    before = {name: getattr(assignment, name) for name in PARTS}
    for name, part in PARTS.items():
        setattr(assignment, name, partial(run, before[name], part))
    try:
        yield parts
    finally:
        for name, call in before.items():
            setattr(assignment, name, call)
