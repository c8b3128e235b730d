"""Time `match_features` against dense scipy: interleaved in one process, medians, ratios, peak memory.

    python tests/benchmarks/matching.py --sizes 2048 4096 8192 16384 --repeats 3
    python tests/benchmarks/matching.py --sizes 32768 65536 --alone --repeats 1 --json matching.json

Half of the features (`--shared`) are planted: the same direction on both sides but for noise; the rest are random.
Peak memory is the process's, so that it never falls from one size to the next: run a size alone to see its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
import torch
from scipy.optimize import linear_sum_assignment

from sae_faithful.ops import match_features

if TYPE_CHECKING:
    from collections.abc import Callable


def planted(n: int, d: int, shared: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of directions that have a share in common, at a cosine of about .98, in an order of their own."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, generator=generator)
    b = torch.randn(n, d, generator=generator)
    common = round(shared * n)
    b[:common] = a[:common] + 0.2 * b[:common]
    return a, b[torch.randperm(n, generator=generator)]


def dense(a: torch.Tensor, b: torch.Tensor) -> float:
    """The total cosine by scipy on the whole matrix."""
    unit_a, unit_b = (torch.nn.functional.normalize(side, dim=1) for side in (a, b))
    cosine = (unit_a @ unit_b.T).cpu().numpy()
    rows, cols = linear_sum_assignment(cosine, maximize=True)
    return float(cosine[rows, cols].sum(dtype=np.float64))


def timed(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds and result."""
    started = time.perf_counter()
    result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def peak_gb() -> float:
    """The process's largest resident memory so far (Linux counts in kilobytes, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def measure(n: int, options: argparse.Namespace) -> dict[str, Any]:
    """One size: ours and, unless left alone, scipy's in turn."""
    ours: list[float] = []
    theirs: list[float] = []
    peak = rounds = difference = None
    certified = True
    gap = 0.0
    for repeat in range(options.repeats):
        a, b = (side.to(options.device) for side in planted(n, options.d, options.shared, repeat))
        seconds, found = timed(
            lambda a=a, b=b: match_features(a, b, candidates=options.candidates), options.device
        )
        ours.append(seconds)
        certified, gap, rounds = certified and found.certified, max(gap, found.gap), found.rounds
        # Ours goes first, so that the first peak of a size is not scipy's.
        peak = peak or peak_gb()
        if not options.alone:
            seconds, total = timed(lambda a=a, b=b: dense(a, b), options.device)
            theirs.append(seconds)
            difference = max(difference or 0.0, abs(total - found.total))
    row: dict[str, Any] = {
        "n": n, "seconds": statistics.median(ours), "all_seconds": ours, "certified": certified, "gap": gap,
        "rounds": rounds, "peak_gb": peak,
    }  # fmt: skip
    if theirs:
        row |= {
            "scipy_seconds": statistics.median(theirs), "all_scipy_seconds": theirs,
            "ratio": statistics.median(ours) / statistics.median(theirs), "difference": difference,
            "peak_gb_with_scipy": peak_gb(),
        }  # fmt: skip
    return row


def machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "python": platform.python_version(), "torch": torch.__version__, "scipy": scipy.__version__,
        "numpy": np.__version__, "machine": platform.machine(), "system": platform.system(),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--shared", type=float, default=0.5)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="do not run scipy")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    about = machine(options.device)
    show(", ".join(f"{name} {value}" for name, value in about.items()))
    show(
        f"d {options.d}, shared {options.shared:g}, candidates {options.candidates}, repeats {options.repeats}"
    )
    rows: list[dict[str, Any]] = []
    for n in options.sizes:
        row = measure(n, options)
        rows.append(row)
        line = f"n {n:6d}  ours {row['seconds']:8.2f} s  peak {row['peak_gb']:.2f} GB  rounds {row['rounds']}"
        line += f"  certified {row['certified']}  gap {row['gap']:.1e}"
        if "ratio" in row:
            line += f"  scipy {row['scipy_seconds']:8.2f} s  peak {row['peak_gb_with_scipy']:.2f} GB"
            line += f"  ratio {row['ratio']:.2f}  totals differ {row['difference']:.1e}"
        show(line)
    if options.json:
        options.json.write_text(
            json.dumps({"machine": about, "options": vars(options), "rows": rows}, default=str)
        )


def show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
