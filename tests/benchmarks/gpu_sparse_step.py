"""Time sparse decoding and the whole training step on a GPU: correctness, ceilings, medians, memory, and goals.

    python tests/benchmarks/gpu_sparse_step.py --json gpu_sparse_step.json
    python tests/benchmarks/gpu_sparse_step.py --device cpu --tiny        # tries the logic; its figures mean nothing

Needs torch and Triton alone. Full steps need SAELens and this package installed as well; what is not there is named
in the table. The most important jobs come first; those that no time is left for (`--minutes`) are named.

- decode: output and gradients for given indices, every provider once a round; forward and backward in one call
  between CUDA events. Each call takes another of four inputs. Errors are against float64: the worst of output and
  gradients. Memory is the peak beyond what was there before and beyond the gradients.
- model: SAELens's loss and its gradients in plain torch against ours, without optimizer. Needs no SAELens.
- step: SAELens's `SAETrainer.step`, without and with 5 % dead latents.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sparse_providers import (
    BATCHTOPK,
    DECODERS,
    LAWS,
    SETS,
    SPARSE_BATCHTOPK,
    SPARSE_TOPK,
    SPARSE_TOPK_FUSED,
    TOPK,
    TOPK_COMPILED,
    TOPK_COO,
    Case,
    Clock,
    Decoder,
    Planted,
    Row,
    Shape,
    Training,
    bytes_of,
    case,
    coo_with_rescaling,
    decoded,
    decoded_in_float64,
    dense,
    first_line,
    indices_by,
    interleaved,
    machine,
    matmul_precision,
    peak_bytes,
    planted,
    relative_errors,
    saelens_missing,
    set_dead,
    show,
    step_as_ours,
    step_as_saelens,
    summary,
    trainer,
    worst,
)

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
ERROR_LIMITS = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 5e-4}
OURS = next(decoder for decoder in DECODERS if decoder.name == "ours")
DENSE_AUTOCAST = next(decoder for decoder in DECODERS if decoder.name == "dense autocast")


@dataclass
class Bench:
    """Where and how long to measure, and what was found."""

    device: str
    tiny: bool
    rounds: int
    """Rounds of a job, fewer where they would take longer than `seconds`."""
    seconds: float
    no_saelens: str
    rows: list[Row] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)
    checks: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def clock(self) -> Clock:
        """The device's."""
        return Clock(self.device)

    def rounds_for(self, seconds: float) -> int:
        """How many rounds of so many seconds."""
        return max(min(self.rounds, 7), min(self.rounds, int(self.seconds / max(seconds, 1e-9))))

    def shape(self, name: str) -> Shape:
        """By name; a few hundred times smaller for a trial of the logic."""
        found = SHAPES["B"]._replace(**VARIANTS_OF_B[name]) if name in VARIANTS_OF_B else SHAPES[name]
        if not self.tiny:
            return found
        return Shape(max(8, found.n // 64), found.d // 32, found.s // 256, found.k // 8)

    def add(self, row: Row) -> None:
        """Keep a row and show it as it comes."""
        self.rows.append(row)
        show(line_of(row))


# ---------------------------------------------------------------------------------------------- jobs


def measure_ceilings(bench: Bench) -> None:
    """What the device can do at all, in the same run."""
    size = 2**16 if bench.tiny else 2**28
    side = 128 if bench.tiny else 8192
    source = torch.randn(size, device=bench.device)
    target = torch.empty_like(source)
    ms = median_ms(bench, lambda: target.copy_(source))
    bench.ceilings["copy, GB/s read and written"] = 2 * bytes_of([source]) / ms / 1e6
    del source, target
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "fp32"), ("TF32", torch.float32, "tf32"), ("fp32", torch.float32, "fp32"),
    ):  # fmt: skip
        a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
        with matmul_precision(precision):
            ms = median_ms(bench, partial(torch.mm, a, b))
        bench.ceilings[f"GEMM {name}, TFLOP/s"] = 2 * side**3 / ms / 1e9
    for name in SHAPES:
        n, _, s, k = bench.shape(name)
        x = torch.randn(n, s, device=bench.device)
        bench.ceilings[f"torch.topk at {name}, ms"] = median_ms(
            bench, partial(torch.topk, x, k, sorted=False)
        )
    for name, value in bench.ceilings.items():
        show(f"{name}: {value:.4g}")


def median_ms(bench: Bench, call: Callable[[], object]) -> float:
    """Milliseconds of a call alone."""

    def run(_: int) -> list[Any]:
        start = bench.clock.mark()
        call()
        return [start, bench.clock.mark()]

    marks = interleaved({"": run}, bench.rounds_for)[""]
    return statistics.median(bench.clock.ms(*of) for of in marks)


def check_small_cases(bench: Bench) -> None:
    """Ours against float64 at odd sizes, in all dtypes, and where rows are empty, doubled, single or expanded."""
    shape = Shape(37, 83, 1003, 5)
    n, _, s, k = shape
    usual = indices_by("uniform", shape, bench.device, 0)
    with_empty = usual.masked_fill(torch.rand(n, k, device=bench.device) < 0.3, -1)
    kinds = {
        "uniform": usual,
        "8 hot": indices_by("8 hot", shape, bench.device, 0),
        "one latent only": torch.zeros_like(usual),
        "doubled": usual[:, :1].expand(n, k).contiguous(),
        "empty slots": with_empty,
        "all slots empty": torch.full_like(usual, -1),
        "N=1": usual[:1],
        "N=0": usual[:0],
        "k=0": usual[:, :0],
        "last latent": torch.full_like(usual, s - 1),
    }
    for dtype, limit in ERROR_LIMITS.items():
        for kind, indices in kinds.items():
            check(bench, f"{kind}, {dtype}", case(shape, indices, dtype, 0), limit)
        one = case(shape, usual, dtype, 0)
        expanded = one.grad[:1, :1].expand_as(one.grad)
        check(bench, f"expanded gradient, {dtype}", replace(one, grad=expanded), limit)


def check(bench: Bench, name: str, one: Case, limit: float) -> None:
    """One comparison of ours with float64."""
    try:
        error = worst(relative_errors(decoded(OURS, one)[0], decoded_in_float64(one)))
        row = {"check": name, "error": error, "limit": limit, "passed": error <= limit}
    except Exception as error:
        row = {"check": name, "error": first_line(error), "passed": False}
    bench.checks.append(row)
    if not row["passed"]:
        show(f"FAILED {row}")


def check_repeats(bench: Bench, name: str, law: str) -> None:
    """Whether 20 repeats give the same bits."""
    shape = bench.shape(name)
    one = case(shape, indices_by(law, shape, bench.device, 0), torch.float32, 0)
    for decoder in DECODERS:
        if decoder.name not in ("ours", "F.embedding_bag", "sparsify"):
            continue
        row: Row = {"check": f"20 repeats bitwise equal: {decoder.name}, {name}, {law}"}
        try:
            first = decoded(decoder, one)[0]
            row["equal"] = all(
                torch.equal(a, b) for _ in range(19) for a, b in zip(first, decoded(decoder, one)[0], strict=True)
            )  # fmt: skip
        except Exception as error:
            row["error"] = first_line(error)
        # Only ours promises it.
        row["passed"] = row.get("equal", False) if decoder is OURS else None
        bench.checks.append(row)
        show(f"{row['check']}: {row.get('equal', row.get('error'))}")


def measure_decoders(
    bench: Bench,
    name: str,
    law: str = "uniform",
    dtype: torch.dtype = torch.float32,
    decoders: Sequence[Decoder] = DECODERS,
) -> None:
    """Errors, times, rates and memory of every decoder that runs."""
    shape = bench.shape(name)
    cases = cases_of(bench, shape, law, dtype)
    wanted = decoded_in_float64(cases[0])
    rows: dict[str, Row] = {}
    calls: dict[str, Callable[[int], list[Any]]] = {}

    def run(decoder: Decoder, number: int) -> list[Any]:
        return decoded(decoder, cases[number % SETS], bench.clock.mark)[1]

    for decoder in decoders:
        if decoder.precision != "fp32" and dtype != torch.float32:
            continue
        row = rows[decoder.name] = {
            "level": "decode", "shape": name, "law": law, "dtype": str(dtype), "provider": decoder.name,
        }  # fmt: skip
        try:
            row["error"] = worst(relative_errors(decoded(decoder, cases[0])[0], wanted))
            memory = peak_bytes(partial(decoded, decoder, cases[0]), bench.device)
            one = cases[0]
            row["memory_mb"] = (memory - bytes_of([one.values, one.weight, one.bias])) / 1e6
        except Exception as error:
            row["missing"] = first_line(error)
            continue
        calls[decoder.name] = partial(run, decoder)
        if decoder.name == "ours":
            passed = row["error"] <= ERROR_LIMITS[dtype]
            bench.checks.append({"check": f"{name}, {law}, {dtype}", "error": row["error"], "passed": passed})
    del wanted
    for kind, found in interleaved(calls, bench.rounds_for).items():
        rows[kind] |= of_passes(bench, shape, cases[0], found)
    for row in rows.values():
        bench.add(row)


def measure_laws(bench: Bench, name: str) -> None:
    """Ours on every law of indices, side by side."""
    shape = bench.shape(name)
    cases = {law: cases_of(bench, shape, law, torch.float32) for law in LAWS}

    def run(law: str, number: int) -> list[Any]:
        return decoded(OURS, cases[law][number % SETS], bench.clock.mark)[1]

    rows: list[Row] = []
    for law, (one, *_) in cases.items():
        error = worst(relative_errors(decoded(OURS, one)[0], decoded_in_float64(one)))
        bench.checks.append(
            {"check": f"{name}, {law}", "error": error, "passed": error <= ERROR_LIMITS[torch.float32]}
        )
        rows.append(
            {"level": "laws", "shape": name, "law": law, "dtype": "torch.float32", "provider": "ours", "error": error}
        )  # fmt: skip
    marks = interleaved({law: partial(run, law) for law in LAWS}, bench.rounds_for)
    for row in rows:
        law = row["law"]
        bench.add(row | of_passes(bench, shape, cases[law][0], marks[law]))


def cases_of(bench: Bench, shape: Shape, law: str, dtype: torch.dtype) -> list[Case]:
    """Inputs to take in turn."""
    return [case(shape, indices_by(law, shape, bench.device, seed), dtype, seed) for seed in range(SETS)]


def of_passes(bench: Bench, shape: Shape, one: Case, marks: Sequence[Sequence[Any]]) -> Row:
    """Times of forward, backward and both, and the forward's rate."""
    forward = statistics.median(bench.clock.ms(of[0], of[1]) for of in marks)
    backward = statistics.median(bench.clock.ms(of[1], of[2]) for of in marks)
    # What a forward reads and writes if no row of the weight is read from a cache.
    moved = shape.n * shape.d * (shape.k + 1) * one.weight.element_size()
    both = summary([bench.clock.ms(of[0], of[2]) for of in marks], None)
    return both | {"forward_ms": forward, "backward_ms": backward, "forward_gb_s": moved / forward / 1e6}


def measure_model(bench: Bench, name: str, precision: str) -> None:
    """Loss and gradients of a step in plain torch: SAELens's way and ours."""
    shape = bench.shape(name)
    ways: dict[str, Callable[[Planted, torch.Tensor], torch.Tensor]] = {
        "SAELens's way": step_as_saelens,
        "ours": step_as_ours,
    }
    made = planted(shape, bench.device)
    batches = [made.inputs(seed) for seed in range(SETS)]
    parameters = ("W_enc", "b_enc", "W_dec", "b_dec")
    leaves = {part: getattr(made, part).clone().requires_grad_() for part in parameters}
    of_saelens = replace(made, **leaves)
    of_ours = replace(of_saelens, W_enc=made.W_enc.T.contiguous().T.requires_grad_())

    def run(way: str, number: int) -> list[Any]:
        weights = of_ours if way == "ours" else of_saelens
        with matmul_precision(precision):
            start = bench.clock.mark()
            with autocast(bench, precision):
                loss = ways[way](weights, batches[number % SETS])
            torch.autograd.grad(loss, [getattr(weights, part) for part in parameters])
            return [start, bench.clock.mark()]

    marks = interleaved({way: partial(run, way) for way in ways}, bench.rounds_for)
    for way, found in marks.items():
        memory = peak_bytes(partial(run, way, 0), bench.device) - bytes_of(list(leaves.values()))
        bench.add(
            {"level": "model", "shape": name, "precision": precision, "provider": way}
            | {"memory_mb": memory / 1e6} | summary([bench.clock.ms(*of) for of in found], None)
        )  # fmt: skip


def autocast(bench: Bench, precision: str) -> Any:
    """SAELens's autocast, or nothing."""
    return torch.autocast(bench.device, torch.bfloat16) if precision == "autocast" else nullcontext()


def measure_steps(
    bench: Bench,
    name: str,
    precision: str,
    trainings: Sequence[Training] = (TOPK, TOPK_COO, SPARSE_TOPK, SPARSE_TOPK_FUSED),
) -> None:
    """Times and memory of SAELens's trainer, without and with dead latents."""
    shape = bench.shape(name)
    weights = planted(shape, bench.device)
    batches = [weights.inputs(seed) for seed in range(SETS)]
    made = {training.name: trainer(training, weights) for training in trainings}
    del weights
    for dead in (False, True):

        def run(kind: str, number: int, dead: bool = dead) -> list[Any]:
            own = made[kind]
            own.autocast_if_enabled = autocast(bench, precision)
            set_dead(own, dead)
            with matmul_precision(precision):
                start = bench.clock.mark()
                own.step(batches[number % SETS])
                return [start, bench.clock.mark()]

        rows: dict[str, Row] = {}
        for kind in list(made):
            rows[kind] = {
                "level": "step", "shape": name, "precision": precision, "dead": dead,
                "provider": kind,
            }  # fmt: skip
            try:
                run(kind, 0)  # The optimizer's state is made here.
                gradients = bytes_of(list(made[kind].sae.parameters()))
                rows[kind]["memory_mb"] = (peak_bytes(partial(run, kind, 1), bench.device) - gradients) / 1e6
            except Exception as error:
                rows[kind]["missing"] = first_line(error)
                del made[kind]
        marks = interleaved({kind: partial(run, kind) for kind in made}, bench.rounds_for)
        for kind, found in marks.items():
            rows[kind] |= summary([bench.clock.ms(*of) for of in found], None)
        for row in rows.values():
            bench.add(row)


@cache
def compiled_dense() -> Callable[..., torch.Tensor]:
    """SAELens's way to decode, by inductor, whose import alone takes seconds."""
    return torch.compile(dense)


@dataclass(frozen=True)
class Job:
    """Something to measure."""

    name: str
    run: Callable[[], None]
    seconds: float = 40.0
    """It is not begun when less time than this is left."""


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
        Job("ceilings", partial(measure_ceilings, bench)),
        *(decode(bench, name) for name in big_first),
        *(whole_step(bench, name, precision) for precision in ("autocast", "fp32") for name in big_first),
        *(Job(f"laws {name}", partial(measure_laws, bench, name)) for name in big_first),
        *(Job(f"repeats, {law}", partial(check_repeats, bench, "A", law)) for law in LAWS),
        *(decode(bench, name, dtype=torch.bfloat16) for name in big_first),
        *(whole_step(bench, name, "tf32") for name in big_first),
    ]
    if not bench.no_saelens:
        batchtopk = partial(measure_steps, bench, "B", "autocast", [BATCHTOPK, SPARSE_BATCHTOPK])
        found += [
            Job("step B, autocast, batchtopk", batchtopk),
            Job("model B, autocast", partial(measure_model, bench, "B", "autocast")),
        ]
    found += [decode(bench, name) for name in VARIANTS_OF_B]
    found += [decode(bench, "B", law) for law in LAWS if law != "uniform"]
    # Compiling takes long, so that a run that it breaks off has the rest.
    compiled = Decoder("dense autocast, compiled", "", lambda *inputs: compiled_dense()(*inputs), "autocast")
    of_decoders = partial(measure_decoders, bench, "B", decoders=[DENSE_AUTOCAST, compiled, OURS])
    found.append(Job("decode B, compiled dense", of_decoders, 90.0))
    if not bench.no_saelens:
        of_steps = partial(measure_steps, bench, "B", "autocast", [TOPK, TOPK_COMPILED, SPARSE_TOPK])
        found.append(Job("step B, autocast, compiled SAELens", of_steps, 120.0))
    return found


def run_jobs(bench: Bench, started: float, minutes: float, save: Callable[[], None]) -> None:
    """All that the time allows; a job that fails is named and the next one begins. `save` is called after each."""
    for job in jobs(bench):
        spent = time.perf_counter() - started
        if 60 * minutes - spent < job.seconds:
            bench.skipped.append(f"{job.name} (no time)")
            continue
        show(f"-- {job.name} ({spent:.0f} s)")
        try:
            job.run()
        except Exception as error:
            bench.skipped.append(f"{job.name} ({first_line(error)})")
            show(f"   failed: {first_line(error)}")
        gc.collect()
        if bench.device == "cuda":
            torch.cuda.empty_cache()
        save()


# ---------------------------------------------------------------------------------------------- goals


@dataclass(frozen=True)
class Goal:
    """What a figure should reach, and how to get it from the results; None where it was not measured."""

    text: str
    limit: float
    value: Callable[[Bench], float | None]
    at_most: bool = False

    def verdict(self, bench: Bench) -> Row:
        """Met, missed or not measured."""
        value = self.value(bench)
        if value is None:
            return {"goal": self.text, "limit": self.limit, "value": None, "verdict": "not measured"}
        met = value <= self.limit if self.at_most else value >= self.limit
        return {"goal": self.text, "limit": self.limit, "value": value, "verdict": "met" if met else "missed"}


def figure(bench: Bench, key: str, **wanted: Any) -> float | None:
    """One figure of the first row that is as wanted."""
    rows = (row for row in bench.rows if all(row.get(name) == value for name, value in wanted.items()))
    return next((row[key] for row in rows if key in row), None)


def times_faster(bench: Bench, slow: str, fast: str, key: str = "ms", **wanted: Any) -> float | None:
    """The figure of `slow` over that of `fast`."""
    above = figure(bench, key, provider=slow, **wanted)
    below = figure(bench, key, provider=fast, **wanted)
    return None if above is None or below is None or below == 0 else above / below


def decode_goal(name: str, slow: str, limit: float) -> Goal:
    """Ours, forward and backward, against another decoder, in fp32."""
    wanted = {"level": "decode", "shape": name, "law": "uniform", "dtype": "torch.float32"}
    return Goal(
        f"decode {name}: times faster than {slow}",
        limit,
        partial(times_faster, slow=slow, fast="ours", **wanted),
    )


def step_goal(name: str, precision: str, fast: Training, limit: float) -> Goal:
    """A full step without dead latents against SAELens's."""
    wanted = {"level": "step", "shape": name, "precision": precision, "dead": False}
    return Goal(
        f"step {name}, {precision}: times faster, {fast.name}",
        limit,
        partial(times_faster, slow=TOPK.name, fast=fast.name, **wanted),
    )


def copy_share(bench: Bench) -> float | None:
    """The forward's rate at C over that of a copy, if it had no caches."""
    wanted = {"level": "decode", "shape": "C", "law": "uniform", "dtype": "torch.float32", "provider": "ours"}
    rate = figure(bench, "forward_gb_s", **wanted)
    copy = bench.ceilings.get("copy, GB/s read and written")
    return None if rate is None or copy is None else rate / copy


def hot_over_uniform(bench: Bench, name: str) -> float | None:
    """How much longer ours takes where 8 latents are hot."""
    wanted = {"level": "laws", "shape": name}
    hot, uniform = (figure(bench, "ms", law=law, **wanted) for law in ("8 hot", "uniform"))
    return None if hot is None or uniform is None else hot / uniform


def goals() -> list[Goal]:
    """All of them."""
    found: list[Goal] = []
    for name, autocast_limit, fp32_limit in (("A", 4, 25), ("B", 5, 40), ("C", 5, 40)):
        found += [decode_goal(name, "dense autocast", autocast_limit), decode_goal(name, "dense", fp32_limit)]
    for name, sparsify_limit in (("B", 1.2), ("C", 1.5)):
        found += [
            decode_goal(name, "torch.sparse COO", 10),
            decode_goal(name, "F.embedding_bag", 1.3),
            decode_goal(name, "sparsify", sparsify_limit),
        ]
    found.append(Goal("decode C: forward's rate over a copy's", 0.6, copy_share))
    for name in SHAPES:
        found.append(
            Goal(
                f"decode {name}: 8 hot latents over uniform", 1.5, partial(hot_over_uniform, name=name), True
            )
        )
        found += [
            step_goal(name, "autocast", SPARSE_TOPK, 2.0),
            step_goal(name, "fp32", SPARSE_TOPK, 3.5),
            step_goal(name, "autocast", SPARSE_TOPK_FUSED, 3.0),
        ]
        for precision in ("autocast", "fp32"):
            wanted = {"level": "step", "shape": name, "precision": precision, "dead": False}
            share = partial(times_faster, slow=SPARSE_TOPK.name, fast=TOPK.name, key="memory_mb", **wanted)
            found.append(Goal(f"step {name}, {precision}: memory over SAELens's", 0.4, share, at_most=True))
    return found


# ---------------------------------------------------------------------------------------------- output


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
        line += f" fwd {row['forward_ms']:8.3f} bwd {row['backward_ms']:8.3f} {row['forward_gb_s']:6.0f} GB/s"
    if "memory_mb" in row:
        line += f" {row['memory_mb']:8.0f} MB"
    return line + (f" error {row['error']:.1e}" if "error" in row else "")


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
        show(f"goal {row['limit']:g}: {row['goal']}: {row['verdict']}{reached}")


def driver() -> str:
    """The GPU driver's version."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> None:
    started = time.perf_counter()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="in all; jobs that no time is left for are named"
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="the most that the rounds of one job take"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the logic")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here: run with --device cpu --tiny to try the logic")
    if options.device == "cpu" and not options.tiny:
        raise SystemExit("--device cpu needs --tiny: the shapes are a GPU's")
    bench = Bench(options.device, options.tiny, options.rounds, options.seconds, saelens_missing())
    about = machine(options.device)
    if options.device == "cuda":
        about |= {"driver": driver(), "cuda": torch.version.cuda}
    about["steps"] = f"missing: {bench.no_saelens}" if bench.no_saelens else "measured"
    if not bench.no_saelens:
        about["SAELens's COO with rescaling"] = coo_with_rescaling(options.device)
    for name, value in about.items():
        show(f"{name}: {value}")
    for provider in (*DECODERS, TOPK, TOPK_COO, SPARSE_TOPK, SPARSE_TOPK_FUSED):
        show(f"  {provider.name}: {provider.what}")

    def save() -> None:
        if options.json:
            results = {
                "machine": about, "options": vars(options), "shapes": {name: bench.shape(name) for name in SHAPES},
                "rows": bench.rows, "ceilings": bench.ceilings, "checks": bench.checks, "skipped": bench.skipped,
                "goals": [goal.verdict(bench) for goal in goals()],
            }  # fmt: skip
            options.json.write_text(json.dumps(results, default=str, indent=1))

    run_jobs(bench, started, options.minutes, save)
    save()
    show_results(bench)
    if options.tiny:
        show("tiny sizes: no figure and no goal above means anything")


if __name__ == "__main__":
    main()
