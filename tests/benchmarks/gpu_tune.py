"""Try the sizes that the Triton kernels are built with on a GPU, against those that they have.

    python tests/benchmarks/gpu_tune.py --json gpu_tune.json
    python tests/benchmarks/gpu_tune.py --device cpu --tiny     # in Triton's interpreter; its figures mean nothing

For decode, its two gradients and the encoder's gradient, at the shapes of gpu_sparse_step.py: columns a program
(`_tile`), rows it loads at once (`ENTRIES`), warps, and entries a piece (`CHUNK`). Every setting is checked against
what the kernels' own gives, then timed in turn with it; the best are printed with how many times faster they are, and
what they take with 8 hot latents. A change of `sparse_triton` stays with who reads the table. Needs torch and Triton.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import torch
from gpu_bench import Bench, Job, options_of, parser_of, run_jobs
from measuring import driver, first_line, interleaved, machine, show
from sparse_inputs import Case, Shape, case, indices_by
from sparse_providers import relative_errors, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from measuring import Row

FUNCTIONS = ("decode", "decode_backward", "outer")
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "float32 weight, bfloat16 rest": (torch.float32, torch.bfloat16),
}
TINY = Shape(6, 70, 10, 3)
"""The interpreter takes milliseconds a program."""

SAME = 1e-6
"""Sums in another order differ by float32's rounding; half precision is rounded once, at the end."""


@dataclass(frozen=True)
class Setting:
    """What a kernel is built with; None is the kernels' own choice."""

    block: int | None = None
    entries: int | None = None
    warps: int | None = None
    chunk: int | None = None

    def __str__(self) -> str:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return ", ".join(f"{name} {value}" for name, value in given.items()) or "as it is"


OWN = Setting()


@contextmanager
def built_with(kernels: Any, setting: Setting) -> Iterator[None]:
    """Has `sparse_triton` launch its kernels with a setting."""
    before = {name: getattr(kernels, name) for name in ("ENTRIES", "CHUNK", "_tile", "_launch")}
    kernels.ENTRIES = setting.entries or kernels.ENTRIES
    kernels.CHUNK = setting.chunk or kernels.CHUNK
    if setting.block is not None:
        kernels._tile = lambda width, *widths: setting.block
    if setting.warps is not None:

        def with_warps(kernel: Any, grid: tuple[int, int], *arguments: Any, **options: Any) -> None:
            before["_launch"](kernel, grid, *arguments, **options | {"num_warps": setting.warps})

        kernels._launch = with_warps
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(kernels, name, value)


def settings(function: str, *, tiny: bool) -> Iterator[Setting]:
    """The kernels' own first."""
    yield OWN
    if tiny:
        yield Setting(block=64, entries=2, warps=1, chunk=8)
    elif function == "decode":
        for block, entries in product((128, 256, 512, 1024), (2, 4, 8)):
            for warps in sorted({max(1, block // 256), max(1, block // 128)}):
                yield Setting(block, entries, warps)
    else:
        for block, entries, chunk in product((128, 256, 512), (2, 4, 8), (128, 256, 512)):
            yield Setting(block, entries, 1, chunk)
        for block, entries in product((256, 512), (4, 8)):
            yield Setting(block, entries, 2)


def call_of(
    kernels: Any, function: str, one: Case, plan: Any, dtype: torch.dtype
) -> Callable[[], list[torch.Tensor]]:
    """One function of the module on one input."""
    n, k = one.indices.shape
    indices, values = one.indices.flatten(), one.values.flatten().to(dtype)
    offsets = torch.arange(n + 1, device=indices.device) * k
    grad = one.grad.to(dtype)
    if function == "decode":
        return lambda: [kernels.decode(indices, offsets, values, one.weight, one.bias, dtype)]
    if function == "decode_backward":
        both = {"want_values": True, "want_weight": True}
        return lambda: list(kernels.decode_backward(grad, values, one.weight, plan, **both))
    return lambda: list(kernels.outer(values, grad, plan, len(one.weight), one.weight.dtype))


def tune(bench: Bench, kernels: Any, name: str, function: str, dtypes: str) -> None:
    """Every setting of one function at one shape, uniform and hot."""
    from sae_faithful.ops.entries import group_by_feature

    shape = TINY if bench.tiny else bench.shape(name)
    weight_dtype, dtype = DTYPES[dtypes]
    calls: dict[str, Callable[[], list[torch.Tensor]]] = {}
    for law in ("uniform", "8 hot"):
        indices = indices_by(law, shape, bench.device, 0)
        one = case(shape, indices, weight_dtype, 0)
        offsets = torch.arange(shape.n + 1, device=bench.device) * shape.k
        plan = group_by_feature(indices.flatten(), offsets, shape.s)
        calls[law] = call_of(kernels, function, one, plan, dtype)
    wanted = {law: call() for law, call in calls.items()}
    runs: dict[str, Callable[[int], list[Any]]] = {}
    rows: dict[str, Row] = {}
    for setting in settings(function, tiny=bench.tiny):
        row = rows[str(setting)] = {
            "function": function,
            "shape": name,
            "dtypes": dtypes,
            "setting": str(setting),
        }
        try:
            with built_with(kernels, setting):
                errors = [worst(relative_errors(call(), wanted[law])) for law, call in calls.items()]
            limit = SAME if dtype == torch.float32 else 1e-3
            if not max(errors) <= limit:
                raise RuntimeError(f"differs by {max(errors):.1e}")
            runs[str(setting)] = partial(run_with, bench, kernels, setting, list(calls.values()))
        except Exception as error:
            row["missing"] = first_line(error)
    del wanted
    times = {
        setting: [[bench.clock.ms(*of) for of in pairwise(marks)] for marks in found]
        for setting, found in interleaved(runs, bench.rounds_for).items()
    }
    for setting, found in times.items():
        for place, law in enumerate(calls):
            rows[setting][law] = statistics.median(one[place] for one in found)
        ratios = [own[0] / one[0] for own, one in zip(times[str(OWN)], found, strict=True)]
        rows[setting]["ratio"] = statistics.median(ratios)
    bench.rows += rows.values()
    show_best(list(rows.values()))


def run_with(
    bench: Bench, kernels: Any, setting: Setting, calls: list[Callable[[], Any]], _: int
) -> list[Any]:
    """Marks before, between and after the calls."""
    with built_with(kernels, setting):
        marks = [bench.clock.mark()]
        for call in calls:
            call()
            marks.append(bench.clock.mark())
    return marks


def show_best(rows: list[Row], best: int = 4) -> None:
    """The fastest, the kernels' own, and what could not be built."""
    timed = sorted((row for row in rows if "uniform" in row), key=lambda row: row["uniform"])
    shown = [row for place, row in enumerate(timed) if place < best or row["setting"] == str(OWN)]
    for row in [*shown, *(row for row in rows if "missing" in row)]:
        head = f"{row['function']:16s}{row['shape']:4s}{row['dtypes']:31s}{row['setting']:48s}"
        if "missing" in row:
            show(f"{head} {row['missing']}")
        else:
            show(
                f"{head}{row['uniform']:9.3f} ms  {row['ratio']:5.2f} times as fast  8 hot {row['8 hot']:9.3f} ms"
            )


def main() -> None:
    started = time.perf_counter()
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    options = options_of(parser)
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported.
    from sae_faithful.ops import sparse_triton

    about = machine(options.device) | ({"driver": driver()} if options.device == "cuda" else {})
    show(", ".join(f"{name} {value}" for name, value in about.items()))
    until = started + 60 * options.minutes
    bench = Bench(options.device, options.tiny, options.rounds, 8.0, until=until)
    jobs = [
        Job(f"{function} {name}, {dtypes}", partial(tune, bench, sparse_triton, name, function, dtypes), 40.0)
        for name in (("A",) if options.tiny else ("B", "C", "A"))
        for dtypes in (list(DTYPES)[:1] if options.tiny else DTYPES)
        for function in FUNCTIONS
    ]

    def save() -> None:
        if options.json:
            found = {"machine": about, "options": vars(options), "rows": bench.rows, "skipped": bench.skipped}
            options.json.write_text(json.dumps(found, default=str, indent=1))

    run_jobs(bench, jobs, started, save)
    save()
    for name in bench.skipped:
        show(f"skipped: {name}")
    if options.tiny:
        show("tiny sizes: no figure above means anything")


if __name__ == "__main__":
    sys.exit(main())
