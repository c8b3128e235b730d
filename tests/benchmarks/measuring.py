"""What benchmarks share: clocks, rounds in which everyone takes a turn, medians, memory, and what they ran on."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Row = dict[str, Any]
"""One line of a table: what was measured, and the figures."""


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """TF32 for "tf32", otherwise full float32 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Clock:
    """CUDA events on a GPU, wall clock or processor time (of all threads) elsewhere."""

    device: str
    processor_time: bool = False

    def mark(self) -> Any:
        """Now."""
        if self.device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return time.process_time() if self.processor_time else time.perf_counter()

    def ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two marks."""
        if self.device == "cuda":
            end.synchronize()
            return start.elapsed_time(end)
        return 1000 * (end - start)


def interleaved(
    calls: Mapping[str, Callable[[int], list[Any]]], rounds: Callable[[float], int], warm_up: int = 2
) -> dict[str, list[list[Any]]]:
    """The marks of every call in every round, one call after the other in each.

    A call is told a number, of which it takes the rest by how many inputs there are, a power of two. The numbers go on
    from call to call and from round to round, an odd number a round: of four inputs every call takes another than
    the two calls before it, and over four rounds all of them.

    After the warm-up `rounds` is asked for their number, told how many seconds the last of the warm-up took.
    """
    step = len(calls) | 1

    def one_round(number: int) -> dict[str, list[Any]]:
        return {name: call(number * step + place) for place, (name, call) in enumerate(calls.items())}

    seconds = 0.0
    for number in range(warm_up):
        started = time.perf_counter()
        one_round(number)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    found = [one_round(number) for number in range(warm_up, warm_up + rounds(seconds))]
    return {name: [marks[name] for marks in found] for name in calls}


def summary(times: Sequence[float], base: Sequence[float] | None) -> Row:
    """Median, 20th and 80th percentile in ms, and how many times faster than `base`, the median over the rounds."""
    ordered = sorted(times)
    last = len(ordered) - 1
    row: Row = {
        "ms": statistics.median(ordered), "p20": ordered[round(0.2 * last)], "p80": ordered[round(0.8 * last)],
        "rounds": len(ordered),
    }  # fmt: skip
    if base is not None:
        row["ratio"] = statistics.median(slow / fast for slow, fast in zip(base, times, strict=True))
    return row


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """The most that torch held during `call` beyond what it held before; libraries' own buffers are not seen."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    results = record.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())), default=0)


def bytes_of(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of their elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    about: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        # Where files lie on that machine is of no use to a reader.
        "command": " ".join(Path(argument).name if "/" in argument else argument for argument in sys.argv),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in ("triton", "sae-lens", "eai-sparsify"):
        try:
            about[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            about[name] = "missing"
    about |= {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}
    about["threads"] = torch.get_num_threads()
    about["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return about


def driver() -> str:
    """The GPU driver's version."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def first_line(error: Exception) -> str:
    """What an error says, in one line of a table."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:160]}"


def show(line: str = "") -> None:
    """To stdout, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
