"""Ways to decode from few active latents, the float64 that they are compared with, and one step in plain torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from measuring import matmul_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sparse_inputs import Case, Planted

try:
    import sae_faithful  # noqa: F401
except ImportError:
    # The package itself needs to be installed, with pluggy; its kernels need torch and Triton alone.
    _package = ModuleType("sae_faithful")
    _package.__path__ = [str(Path(__file__).resolve().parents[2] / "sae_faithful")]
    sys.modules["sae_faithful"] = _package


from sae_faithful.ops import (
    Entries,
    decode_entries,
    sparse_decode,
    sparse_encode,
    sparse_outer,  # noqa: F401 - for who checks it, found as the others are
    two_stage_topk,
)


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
