"""What benchmarks of the work around training share: a model where it has to be, rows beside what each must take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gpu_bench import Bench
from gpu_models import chosen
from measuring import show
from sparse_providers import two_stage_topk  # noqa: F401 - makes `sae_faithful.ops` importable without an install

if TYPE_CHECKING:
    from collections.abc import Callable

    from measuring import Row


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
    head = f"{row['what']:15s}{row['setting']:78s}"
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


def timed(bench: Pipeline, call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall clock, the device's work included."""
    if bench.device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = call()
    if bench.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result
