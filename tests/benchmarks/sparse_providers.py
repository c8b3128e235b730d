"""What the two benchmarks of sparse training share: what they compare, inputs, float64 references, clocks, memory."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

try:
    import sae_faithful  # noqa: F401
except ImportError:
    # The package itself needs to be installed, with pluggy; its kernels need torch and Triton alone.
    _package = ModuleType("sae_faithful")
    _package.__path__ = [str(Path(__file__).resolve().parents[2] / "sae_faithful")]
    sys.modules["sae_faithful"] = _package

from sae_faithful.ops import Entries, decode_entries, sparse_decode, sparse_encode, two_stage_topk

Row = dict[str, Any]
"""One line of a table: what was measured, and the figures."""

SETS = 4
"""Inputs taken in turn, so that no cache holds what a call reads."""

DEAD_SHARE = 0.05


class Shape(NamedTuple):
    """Tokens, width, latents, active latents a token."""

    n: int
    d: int
    s: int
    k: int

    def __str__(self) -> str:
        return f"N={self.n} D={self.d} S={self.s} k={self.k}"


# ---------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True)
class Case:
    """One input of a decoder, and the gradient that comes back to its output."""

    indices: torch.Tensor
    values: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    grad: torch.Tensor


def case(
    shape: Shape, indices: torch.Tensor, dtype: torch.dtype, seed: int, values: torch.Tensor | None = None
) -> Case:
    """Random numbers around given indices; never zeros, which are faster to multiply on some hardware."""
    device = indices.device
    rng = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=rng, device=device).to(dtype)

    values = normal(*indices.shape).abs() + 0.1 if values is None else values.to(dtype)
    return Case(indices, values, normal(shape.s, shape.d), normal(shape.d), normal(len(indices), shape.d))


LAWS = ("uniform", "zipf", "8 hot")


def indices_by(law: str, shape: Shape, device: str, seed: int) -> torch.Tensor:
    """k different latents a row [n, k]: uniform, Zipf's law, or uniform but for 8 latents of 30 % of the rows each."""
    rng = torch.Generator(device).manual_seed(seed)
    # The k largest of log p + Gumbel noise are a sample without replacement.
    keys = -torch.empty(shape.n, shape.s, device=device).exponential_(generator=rng).log_()
    if law == "zipf":
        ranks = torch.randperm(shape.s, generator=rng, device=device) + 1
        keys -= ranks.log()
    elif law == "8 hot":
        hot = torch.rand(shape.n, 8, generator=rng, device=device) < 0.3
        keys[:, :8] = torch.where(hot, torch.inf, -torch.inf)
    return torch.topk(keys, shape.k, sorted=False).indices


@dataclass(frozen=True)
class Planted:
    """Weights that look trained (encoder and decoder agree, norms differ), and inputs made of their directions."""

    shape: Shape
    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor

    def inputs(self, seed: int) -> torch.Tensor:
        """k directions a row and noise [n, d]; a few directions are in one row of five, most in hardly any."""
        n, d, s, k = self.shape
        device = self.W_dec.device
        rng = torch.Generator(device).manual_seed(seed)
        chosen = (torch.rand(n, k, generator=rng, device=device).square() * s).long().clamp(max=s - 1)
        strength = torch.rand(n, k, generator=rng, device=device) + 0.5
        noise = torch.randn(n, d, generator=rng, device=device) * (0.1 * d**-0.5)
        return (
            F.embedding_bag(chosen, self.W_dec, per_sample_weights=strength, mode="sum") + self.b_dec + noise
        )


def planted(shape: Shape, device: str, seed: int = 0) -> Planted:
    """Weights in float32."""
    rng = torch.Generator(device).manual_seed(seed)
    directions = F.normalize(torch.randn(shape.s, shape.d, generator=rng, device=device), dim=1)
    norms = torch.rand(shape.s, 1, generator=rng, device=device) * 0.6 + 0.7
    b_enc = torch.randn(shape.s, generator=rng, device=device) * 0.01
    b_dec = torch.randn(shape.d, generator=rng, device=device) * 0.1
    return Planted(shape, directions.T.contiguous(), b_enc, directions * norms, b_dec)


# ---------------------------------------------------------------------------------------------- decoders


@dataclass(frozen=True)
class Decoder:
    """One way to decode: `call(indices, values, weight, bias)` gives the output [n, d]."""

    name: str
    what: str
    call: Callable[..., torch.Tensor] = field(repr=False)
    precision: str = "fp32"
    """Of dense products: "fp32", "tf32" or "autocast" to bfloat16."""

    def forward(self, one: Case, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
        """The output, in the precision's autocast."""
        with torch.autocast(one.weight.device.type, torch.bfloat16, enabled=self.precision == "autocast"):
            return self.call(one.indices, *leaves)


def dense(
    indices: torch.Tensor, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """As SAELens does by default (without rescaling by norms, which costs it more)."""
    acts = torch.zeros(len(indices), len(weight), dtype=values.dtype, device=values.device)
    return acts.scatter_(-1, indices, values) @ weight + bias


def coo(
    indices: torch.Tensor, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """As SAELens does with `use_sparse_activations`."""
    n, k = indices.shape
    rows = torch.arange(n, device=indices.device).repeat_interleave(k)
    places = torch.stack([rows, indices.flatten()])
    return torch.sparse.mm(torch.sparse_coo_tensor(places, values.flatten(), (n, len(weight))), weight) + bias


def embedding_bag(
    indices: torch.Tensor, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """torch's own fused gather, with its own gradients."""
    return F.embedding_bag(indices, weight, per_sample_weights=values, mode="sum") + bias


def sparsify(
    indices: torch.Tensor, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """EleutherAI's: its Triton kernel on a GPU, its eager path on a CPU."""
    if weight.is_cuda:
        return _sparsify_kernel().xformers_embedding_bag(indices, weight, values) + bias
    from sparsify.utils import eager_decode

    return eager_decode(indices, values, weight.mT) + bias


@cache
def _sparsify_kernel() -> ModuleType:
    """Its one file that needs torch and Triton alone: the package imports a language model's libraries."""
    package = find_spec("sparsify")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'sparsify'")
    spec = spec_from_file_location(
        "sparsify_xformers", Path(package.submodule_search_locations[0]) / "xformers.py"
    )
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DENSE = Decoder("dense", "SAELens's default: scatter and matmul, fp32", dense)
DECODERS = (
    DENSE,
    Decoder("dense TF32", "the same, matmul precision 'high'", dense, "tf32"),
    Decoder("dense autocast", "the same under autocast to bfloat16", dense, "autocast"),
    Decoder("torch.sparse COO", "SAELens's use_sparse_activations", coo),
    Decoder("F.embedding_bag", "torch's, with autograd", embedding_bag),
    Decoder("sparsify", "eai-sparsify: Triton kernel on a GPU, eager on a CPU", sparsify),
    Decoder("ours", "sae_faithful.ops.sparse_decode", sparse_decode),
)


def decoded(
    decoder: Decoder, one: Case, marks: Callable[[], Any] = lambda: None
) -> tuple[list[Any], list[Any]]:
    """Output and gradients to values, weight and bias; and three marks: before, between and after the passes."""
    leaves = [leaf.detach().requires_grad_() for leaf in (one.values, one.weight, one.bias)]
    with matmul_precision(decoder.precision):
        start = marks()
        out = decoder.forward(one, leaves)
        between = marks()
        grads = torch.autograd.grad(out, leaves, one.grad.to(out.dtype))
        end = marks()
    return [out.detach(), *grads], [start, between, end]


def decoded_in_float64(one: Case, rows: int = 256) -> list[torch.Tensor]:
    """What `decoded` should give, by plain gathers in float64; -1 is an empty slot."""
    weight, bias = one.weight.double(), one.bias.double()
    g_weight = torch.zeros_like(weight)
    outputs, g_values = [bias.new_empty(0, len(bias))], [bias.new_empty(0, one.indices.shape[1])]
    for start in range(0, len(one.indices), rows):
        indices, values, grad = (part[start : start + rows] for part in (one.indices, one.values, one.grad))
        held = indices >= 0
        values, grad, places = values.double() * held, grad.double(), indices.clamp(min=0)
        gathered = weight[places]
        outputs.append((values.unsqueeze(2) * gathered).sum(1) + bias)
        g_values.append((gathered * grad.unsqueeze(1)).sum(2) * held)
        g_weight.index_add_(0, places.flatten(), (values.unsqueeze(2) * grad.unsqueeze(1)).flatten(end_dim=1))
    return [torch.cat(outputs), torch.cat(g_values), g_weight, one.grad.double().sum(0)]


def relative_errors(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> list[float]:
    """‖a − b‖ / ‖b‖ of each tensor; the plain norm of a where b is zero."""
    return [
        float((a.double() - b.double()).norm() / (b.double().norm() or 1.0))
        for a, b in zip(found, wanted, strict=True)
    ]


def worst(errors: Sequence[float]) -> float:
    """The largest; NaN if one is."""
    return float(torch.tensor(errors, dtype=torch.float64).max())


def first_line(error: Exception) -> str:
    """What an error says, in one line of a table."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:160]}"


# ---------------------------------------------------------------------------------------------- one step


def step_as_saelens(weights: Planted, x: torch.Tensor) -> torch.Tensor:
    """The loss of SAELens's TopK step (default options, no dead latents), in plain torch, as SAELens computes it."""
    norms = weights.W_dec.norm(dim=-1)
    pre = (x - weights.b_dec) @ weights.W_enc + weights.b_enc
    pre = pre * norms
    values, indices = torch.topk(pre, weights.shape.k, dim=-1, sorted=False)
    acts = torch.zeros_like(pre).scatter_(-1, indices, values.relu())
    out = (acts * (1 / norms)) @ weights.W_dec + weights.b_dec
    return (out - x).pow(2).sum(dim=-1).mean()


def step_as_ours(weights: Planted, x: torch.Tensor) -> torch.Tensor:
    """The same loss, as `sparse_topk` computes it. `W_enc` lies feature by feature in memory."""
    with torch.no_grad():
        inputs = x - weights.b_dec
        pre = inputs @ weights.W_enc + weights.b_enc
        indices = two_stage_topk(pre * weights.W_dec.norm(dim=-1), weights.shape.k)[1]
        chosen = pre.gather(1, indices).reshape(-1)
        entries = Entries.of_rows(indices, weights.shape.s).grouped()
        del pre
    hidden = sparse_encode(entries, chosen, inputs, weights.W_enc.T, weights.b_enc, weights.b_dec)
    out = decode_entries(entries, hidden.relu(), weights.W_dec, weights.b_dec)
    return (out - x).pow(2).sum(dim=-1).mean()


# ---------------------------------------------------------------------------------------------- SAELens's trainer


@dataclass(frozen=True)
class Training:
    """One way to train: an architecture and its options."""

    name: str
    architecture: str
    against: str
    """The SAELens architecture it is compared with."""
    options: Mapping[str, Any] = field(default_factory=dict)
    fused: bool = False
    compiled: bool = False
    what: str = ""


TOPK = Training("SAELens topk", "topk", "topk", what="default options")
TOPK_COO = Training(
    "SAELens topk, COO *", "topk", "topk",
    {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False},
    what="use_sparse_activations. Another model: without rescaling by decoder norms, with which it raises",
)  # fmt: skip
TOPK_COMPILED = Training(
    "SAELens topk, compiled", "topk", "topk", compiled=True, what="compile_sae's forward pass"
)
SPARSE_TOPK = Training("sparse_topk", "sparse_topk", "topk", what="ours, SAELens's Adam")
SPARSE_TOPK_FUSED = Training(
    "sparse_topk, fused Adam", "sparse_topk", "topk", fused=True, what="ours, torch's fused Adam"
)
BATCHTOPK = Training("SAELens batchtopk", "batchtopk", "batchtopk", what="default options")
SPARSE_BATCHTOPK = Training("sparse_batchtopk", "sparse_batchtopk", "batchtopk", what="ours, SAELens's Adam")


def saelens_missing() -> str:
    """Why SAELens's trainer cannot be measured; empty if it can."""
    try:
        from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

        from sae_faithful import register_architectures

        register_architectures()
    except ImportError as error:
        return first_line(error)
    return "" if "sparse_topk" in SAE_TRAINING_CLASS_REGISTRY else "the plugin sparse_topk is not installed"


def trainer(training: Training, weights: Planted, dtype: torch.dtype = torch.float32) -> Any:
    """SAELens's `SAETrainer` on the given weights, without logging and checkpoints."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    n, d, s, k = weights.shape
    device = weights.W_dec.device.type
    config = TrainingSAEConfig.from_dict(
        {"architecture": training.architecture, "d_in": d, "d_sae": s, "k": k, "device": device}
        | {"dtype": str(dtype).removeprefix("torch.")} | dict(training.options)
    )  # fmt: skip
    sae = TrainingSAE.from_dict(config.to_dict())
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(sae, name).copy_(getattr(weights, name))
    if training.compiled:
        sae.training_forward_pass = torch.compile(sae.training_forward_pass)
    made = SAETrainer(
        SAETrainerConfig(
            n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=n * 10_000,
            device=device, autocast=False, lr=1e-4, lr_end=1e-4, lr_scheduler_name="constant", lr_warm_up_steps=0,
            lr_decay_steps=0, n_restart_cycles=1, adam_beta1=0.9, adam_beta2=0.999, train_batch_size_samples=n,
            dead_feature_window=1000, feature_sampling_window=1000, logger=LoggingConfig(log_to_wandb=False),
            n_batches_for_norm_estimate=1,
        ),
        sae,
        iter([]),
    )  # fmt: skip
    for group in made.optimizer.param_groups if training.fused else ():
        group.update(fused=True, foreach=False)
    return made


def set_dead(made: Any, dead: bool) -> None:
    """The latents that the next step takes for dead: none, or one in twenty."""
    counts = made.n_forward_passes_since_fired
    counts.zero_()
    if dead:
        counts[:: round(1 / DEAD_SHARE)] = made.cfg.dead_feature_window + 1


def output_and_gradients(made: Any, x: torch.Tensor, dead: bool) -> list[torch.Tensor]:
    """The reconstruction and the gradients to W_enc, b_enc, W_dec and b_dec, before clipping."""
    from sae_lens.saes.sae import TrainStepInput

    set_dead(made, dead)
    sae = made.sae
    step = TrainStepInput(
        sae_in=x.to(sae.dtype), dead_neuron_mask=made.dead_neurons, coefficients=made.get_coefficients(),
        n_training_steps=0, is_logging_step=False,
    )  # fmt: skip
    with made.autocast_if_enabled:
        found = sae.training_forward_pass(step)
    parameters = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]
    return [found.sae_out.detach(), *torch.autograd.grad(found.loss, parameters)]


def coo_with_rescaling(device: str) -> str:
    """What SAELens's COO activations do when rescaled by decoder norms, its default."""
    training = Training("", "topk", "topk", {"use_sparse_activations": True})
    weights = planted(Shape(8, 8, 16, 2), device)
    try:
        trainer(training, weights).step(weights.inputs(0))
    except (RuntimeError, NotImplementedError) as error:
        return f"raises {first_line(error)}"
    return "runs"


# ---------------------------------------------------------------------------------------------- measuring


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

    After the warm-up `rounds` is asked for their number, told how many seconds the last of the warm-up took.
    """
    seconds = 0.0
    for number in range(warm_up):
        started = time.perf_counter()
        for call in calls.values():
            call(number)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    marks: dict[str, list[list[Any]]] = {name: [] for name in calls}
    for number in range(rounds(seconds)):
        for name, call in calls.items():
            marks[name].append(call(number))
    return marks


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
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
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


def show(line: str = "") -> None:
    """To stdout, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
