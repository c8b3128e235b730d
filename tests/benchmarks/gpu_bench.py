"""What the benchmarks for a GPU share: shapes, what was found, and jobs within minutes."""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from measuring import Clock, Row, bytes_of, first_line, interleaved, matmul_precision, show
from sparse_inputs import Shape
from sparse_providers import two_stage_topk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SHAPES = {
    "A": Shape(4096, 768, 24576, 32),
    "B": Shape(4096, 2048, 65536, 64),
    "C": Shape(4096, 4096, 131072, 64),
}

VARIANTS_OF_B = {
    "B, N=1024": {"n": 1024},
    "B, N=16384": {"n": 16384},
    "B, D=2304": {"d": 2304},
    "B, D=5120": {"d": 5120},
    "B, S=100003": {"s": 100003},
    "B, k=32": {"k": 32},
    "B, k=128": {"k": 128},
}


@dataclass
class Bench:
    """Where and how long to measure, and what was found."""

    device: str
    tiny: bool
    rounds: int
    """Of what is measured side by side; fewer where they would take longer than `seconds`."""
    seconds: float
    no_saelens: str = ""
    """Why SAELens's trainer cannot be measured; empty if it can."""
    until: float = math.inf
    """When all must be over, on `time.perf_counter`'s clock."""
    rows: list[Row] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)
    checks: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    job: str = ""
    """Which one runs: figures are compared with others of theirs."""
    profiles: dict[str, Row] = field(default_factory=dict)
    """What ours spends its time on, by what was run."""

    @property
    def clock(self) -> Clock:
        """The device's."""
        return Clock(self.device)

    def rounds_for(self, seconds: float) -> int:
        """How many rounds of so many seconds: at least 7, or 3 where little time is left."""
        seconds = max(seconds, 1e-9)
        left = max(0.0, self.until - time.perf_counter()) / 2
        fewest = 7 if 7 * seconds < left else 3
        fits = min(self.seconds, left) / seconds
        return min(self.rounds, max(fewest, int(min(fits, self.rounds))))

    def shape(self, name: str) -> Shape:
        """By name; a few hundred times smaller for a trial of the logic."""
        found = SHAPES["B"]._replace(**VARIANTS_OF_B[name]) if name in VARIANTS_OF_B else SHAPES[name]
        if not self.tiny:
            return found
        return Shape(max(8, found.n // 64), found.d // 32, found.s // 256, found.k // 8)

    def add(self, row: Row) -> None:
        """Keep a row and show it as it comes."""
        self.rows.append(row | {"job": self.job})
        show(line_of(row))


def measure_ceilings(bench: Bench) -> None:
    """What the device can do at all, in the same run."""
    measure_rates(bench)
    for name in SHAPES:
        n, _, s, k = bench.shape(name)
        x = torch.randn(n, s, device=bench.device)
        ways = {"torch.topk": partial(torch.topk, sorted=False), "two_stage_topk": two_stage_topk}
        for way, topk in ways.items():
            ceiling(bench, f"{way} at {name}, ms", median_ms(bench, partial(topk, x, k)))
        found, wanted = (topk(x, k)[0].sort(dim=1).values for topk in ways.values())
        same = torch.equal(found, wanted)
        bench.checks.append({"check": f"two_stage_topk's values are torch.topk's, {name}", "passed": same})


COPY = "copy, GB/s read and written"


def measure_rates(bench: Bench) -> None:
    """A copy in memory, and products of large matrices."""
    size = 2**16 if bench.tiny else 2**28
    side = 128 if bench.tiny else 8192
    source = torch.randn(size, device=bench.device)
    target = torch.empty_like(source)
    ms = median_ms(bench, lambda: target.copy_(source))
    ceiling(bench, COPY, 2 * bytes_of([source]) / ms / 1e6)
    del source, target
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "fp32"), ("TF32", torch.float32, "tf32"), ("fp32", torch.float32, "fp32"),
    ):  # fmt: skip
        a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
        with matmul_precision(precision):
            ms = median_ms(bench, partial(torch.mm, a, b))
        ceiling(bench, f"GEMM {name}, TFLOP/s", 2 * side**3 / ms / 1e9)


def ceiling(bench: Bench, name: str, value: float) -> None:
    """Keep one and show it."""
    bench.ceilings[name] = value
    show(f"{name}: {value:.4g}")


def median_ms(bench: Bench, call: Callable[[], object]) -> float:
    """Milliseconds of a call alone."""

    def run(_: int) -> list[Any]:
        start = bench.clock.mark()
        call()
        return [start, bench.clock.mark()]

    marks = interleaved({"": run}, bench.rounds_for)[""]
    return statistics.median(bench.clock.ms(*of) for of in marks)


@dataclass(frozen=True)
class Job:
    """Something to measure."""

    name: str
    run: Callable[[], None]
    seconds: float = 20.0
    """It is not begun when less time than this is left."""


def run_jobs(bench: Bench, jobs: Sequence[Job], started: float, save: Callable[[], None]) -> None:
    """All that the time allows; a job that fails is named and the next one begins. `save` is called after each."""
    for job in jobs:
        spent = time.perf_counter() - started
        if bench.until - time.perf_counter() < job.seconds:
            bench.skipped.append(f"{job.name} (no time)")
            continue
        show(f"-- {job.name} ({spent:.0f} s)")
        bench.job = job.name
        try:
            job.run()
        except Exception as error:
            bench.skipped.append(f"{job.name} ({first_line(error)})")
            show(f"   failed: {first_line(error)}")
        gc.collect()
        if bench.device == "cuda":
            torch.cuda.empty_cache()
        save()


def line_of(row: Row) -> str:
    """One row, aligned."""
    about = row.get("precision") or f"{row['law']} {row['dtype'].removeprefix('torch.')}"
    if row.get("dead"):
        about += ", 5 % dead"
    head = f"{row['level']:7s}{row['shape']:13s}{about:19s}{row['provider']:25s}"
    if "missing" in row:
        return f"{head} missing: {row['missing']}"
    spread = f"({row['p20']:.3f} – {row['p80']:.3f}, {row['rounds']})"
    line = f"{head}{row['ms']:10.3f} {spread:>27s}"
    if "forward_ms" in row:
        line += f" fwd {row['forward_ms']:8.3f} bwd {row['backward_ms']:8.3f} {row['gb_s']:6.0f} GB/s"
    if "memory_mb" in row:
        line += f" {row['memory_mb']:8.0f} MB"
    return line + (f" error {row['error']:.1e}" if "error" in row else "")


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The command line that every script for a GPU has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--minutes", type=float, default=9.0, help="in all; what no time is left for is named")
    made.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    made.add_argument("--tiny", action="store_true", help="tiny sizes, to try the logic")
    made.add_argument("--json", type=Path, help="also write the figures here")
    return made


def options_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was asked for; refused where the device cannot do it.

    Raises:
        SystemExit: no GPU, or a GPU's sizes on a CPU.
    """
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here: run with --device cpu --tiny to try the logic")
    if options.device == "cpu" and not options.tiny:
        raise SystemExit("--device cpu needs --tiny: the sizes are a GPU's")
    return options
