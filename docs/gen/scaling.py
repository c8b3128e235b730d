"""Works out docs/scaling.md: what an experiment costs on machines that this project has not been run on.

Work is counted exactly from the sizes; what an H100 can do is its data sheet's; which share of that a step reaches is
taken from what the same step reaches here of what this machine can do (docs/scaling/rates.json, measured by
tests/benchmarks/scaling.py).

    python docs/gen/scaling.py            writes the tables into docs/scaling.md
    python docs/gen/scaling.py --check    says whether they are out of date
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sae_faithful.memory import disk_of_saes, disk_of_texts

DOCS = Path(__file__).parents[1]
PAGE = DOCS / "scaling.md"
BEGIN, END = "<!-- worked out by docs/gen/scaling.py -->\n", "<!-- end of what is worked out -->\n"
FLOAT, BFLOAT, HOUR = 4, 2, 3_600
D_SAE, K, SEEDS, SOURCES, CONTEXT = 65_536, 64, 5, 3, 1_024
BATCH = 4_096
"""Training tokens a step."""
SAMPLES = 256
"""Samples drawn at once."""
ADAM_PASSES = 7
"""Reads of weights, gradients and two averages; writes of all but the gradients."""
SELECTION_PASSES = 3
"""Over a token's pre-activations, to find the largest."""


class GPU(NamedTuple):
    """What a data sheet says, per second."""

    bfloat: float
    float32: float
    bytes: float
    memory: float


# NVIDIA H100 SXM5 data sheet: without sparsity.
H100 = GPU(bfloat=989e12, float32=67e12, bytes=3.35e12, memory=80e9)


@dataclass(frozen=True)
class Model:
    """From its config.json and model card."""

    name: str
    layers: int
    width: int
    parameters: float
    embedding: float
    """Parameters of the matrix that is looked up and not multiplied with; 0 where it is also the output's."""
    key_values: int
    """Bytes a token of the cache of keys and values, bfloat16."""
    trained_on: float
    """Tokens."""

    @property
    def read(self) -> float:
        """Parameters that every token is multiplied with."""
        return self.parameters - self.embedding

    @property
    def to_hook(self) -> float:
        """The same up to the middle layer's output."""
        outside = 128_256 * self.width
        return (self.read - outside) / 2


MODELS = (
    Model("Llama 3.2 1B", 16, 2_048, 1.236e9, 0, 2 * 8 * 64 * BFLOAT * 16, 9e12),
    Model("Llama 3.1 8B", 32, 4_096, 8.03e9, 128_256 * 4_096, 2 * 8 * 128 * BFLOAT * 32, 15e12),
)


class Step(NamedTuple):
    """A step's seconds on one GPU, what limits it, and its FLOP."""

    name: str
    seconds: float
    limit: str
    flop: float
    units: int
    """Into how many pieces it can be spread."""


def steps(model: Model, tokens: float, shares: dict[str, float], dense: bool = False) -> list[Step]:
    """The run: one source that the model writes itself, two that exist; five SAEs on each."""
    # A batch's next token: all weights once, and every sample's keys and values so far.
    a_batch = BFLOAT * model.read + SAMPLES * model.key_values * CONTEXT / 2
    flop = 2 * model.read * tokens
    generate = max(a_batch / H100.bytes * tokens / SAMPLES, flop / H100.bfloat) / shares["generated"]
    forward = 2 * model.to_hook * tokens * SOURCES
    width = model.width * D_SAE
    per_token = (10 if dense else 2) * width + 8 * K * model.width
    sae = per_token * tokens * SEEDS * SOURCES
    traffic = (
        (ADAM_PASSES * FLOAT * 2 * width / BATCH + SELECTION_PASSES * FLOAT * D_SAE)
        * tokens
        * SEEDS
        * SOURCES
    )
    in_products, in_memory = sae / H100.float32 / shares["train"], traffic / H100.bytes
    held_out = tokens / 10 * SOURCES
    # Every SAE on every text; the model once over each.
    latents, forwards = 4 * width * held_out * SEEDS * SOURCES, 2 * model.to_hook * held_out
    measuring = latents / H100.float32 / shares["encode"] + forwards / H100.bfloat / shares["forward"]
    matching = 2 * D_SAE**2 * model.width * SOURCES * SEEDS * (SEEDS - 1) / 2
    return [
        Step("generate one source", generate, "memory traffic", flop, 10**6),
        Step("activations of three sources", forward / H100.bfloat / shares["forward"], "products", forward, SOURCES),
        Step(
            "train 15 SAEs", in_products + in_memory,
            "products" if in_products > in_memory else "memory traffic", sae, SOURCES,
        ),
        Step("measure on all held-out text", measuring, "products", latents + forwards, 4),
        Step("match 30 pairs of seeds", matching / H100.float32 / shares["encode"], "products", matching, 1),
    ]  # fmt: skip


def memory(model: Model) -> tuple[float, float]:
    """Bytes that training needs at once, and what the SAEs alone do: weights, gradients, Adam's two averages."""
    saes = 4 * FLOAT * 2 * model.width * D_SAE * SEEDS
    buffer = 2 * FLOAT * 64 * CONTEXT * model.width
    return BFLOAT * model.parameters + saes + buffer + 3 * FLOAT * BATCH * D_SAE, saes


def disk(model: Model, tokens: float) -> tuple[float, float]:
    """Bytes of all texts, one of them drawn, and of all SAEs, without checkpoints."""
    texts = disk_of_texts([int(tokens)] * SOURCES, drawn=int(tokens))
    return texts, disk_of_saes(2 * model.width * D_SAE * SEEDS * SOURCES)


def hours(seconds: float) -> str:
    """To two figures."""
    value = seconds / HOUR
    return (
        f"{value:,.0f} h" if value >= 10 else f"{value:.1f} h" if value >= 0.1 else f"{seconds / 60:.1f} min"
    )


def rounded(value: float) -> str:
    """To two figures."""
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):,.0f}"


def spread(step: Step, gpus: int) -> float:
    """Seconds when its pieces lie on several GPUs."""
    return step.seconds / min(gpus, step.units)


def tables(shares: dict[str, float]) -> str:
    """Both models, 100 million and 10 billion tokens."""
    lines: list[str] = []
    for model in MODELS:
        lines += [
            f"### {model.name}",
            "",
            "| step | 100M tokens, one H100 | on 8 | 10B tokens, one H100 | on 8 |",
        ]
        lines.append("|---|---|---|---|---|")
        small, large = steps(model, 1e8, shares), steps(model, 1e10, shares)
        for one, other in zip(small, large, strict=True):
            cells = (one.seconds, spread(one, 8), other.seconds, spread(other, 8))
            lines.append(f"| {one.name} | {' | '.join(map(hours, cells))} |")
        for label, dense in (("all, `sparse_topk`", False), ("all, dense `topk`", True)):
            rows = [steps(model, tokens, shares, dense) for tokens in (1e8, 1e10)]
            cells = [hours(sum(spread(s, n) for s in row)) for row in rows for n in (1, 8)]
            lines.append(f"| **{label}** | {' | '.join(cells)} |")
        needed, saes = memory(model)
        fits = "fits" if needed < H100.memory else "does not fit: the plan makes groups"
        text, weights = disk(model, 1e8)
        longest = max(small, key=lambda s: s.seconds)
        whole = sum(s.flop for s in small)
        training = 6 * model.parameters * model.trained_on
        lines += [
            "",
            f"- Memory while training: {needed / 1e9:.0f} GB, of which the five SAEs {saes / 1e9:.0f} GB; in 80 GB "
            f"that {fits}. It does not depend on the number of tokens.",
            f"- Disk: {text / 1e9:.1f} GB for text at 100M tokens, {100 * text / 1e9:,.0f} GB at 10B; "
            f"{weights / 1e9:.0f} GB of SAEs, and three times as much for each checkpoint, where there are any.",
            f"- The bottleneck on one GPU is to {longest.name} ({longest.limit}): "
            f"{longest.seconds / sum(s.seconds for s in small):.0%} of the time.",
            f"- {whole:.1e} FLOP in all, against {training:.1e} for training the model "
            f"(6 × parameters × {model.trained_on / 1e12:.0f}T tokens): {rounded(training / whole)} times as much; at "
            f"10B tokens {rounded(training / (100 * whole))} times.",
            "",
        ]
    return "\n".join(lines)


def main() -> int:
    """Write, or check."""
    rates = json.loads((DOCS / "scaling" / "rates.json").read_text())
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    written = head + BEGIN + "\n" + measured(rates) + "\n" + tables(rates["shares"]) + END + tail
    if "--check" in sys.argv:
        return int(written != page)
    PAGE.write_text(written, encoding="utf-8")
    return 0


def measured(rates: dict[str, dict[str, float]]) -> str:
    """The measured half."""
    names = {
        "generated": "sampling", "forward": "forward up to the hook", "logits": "whole forward",
        "encode": "an SAE's latents", "train": "training step of an SAE",
    }  # fmt: skip
    machine = rates["machine"]
    lines = [
        f"Measured on {machine['date']} on {machine['cores']} cores ({machine['processor']}, {machine['threads']} "
        f"threads, torch {machine['torch']}), {rates['options']['model']} at {rates['options']['hook']}, "
        f"{rates['options']['architecture']} with {int(rates['sizes']['d_sae']):,} latents; a product of large "
        f"matrices reaches {rates['rates']['gemm'] / 1e9:,.0f} GFLOP/s there:",
        "",
        "| step | tokens/s | share of that | from, to |",
        "|---|---|---|---|",
    ]
    for name, label in names.items():
        low, high = rates["spread"][name]
        lines.append(
            f"| {label} | {rates['rates'][name]:,.0f} | {rates['shares'][name]:.2f} | {low:.2f}, {high:.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
