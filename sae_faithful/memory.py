"""How much memory and disk the steps of a run need, by formula: sizes are known before any weights load."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_faithful.evaluation import LATENTS_PER_BATCH
from sae_faithful.steps import estimates_norm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sae_faithful.config import ExperimentConfig
    from sae_faithful.language_model import LanguageModel
    from sae_faithful.plan import Plan, PlannedSAE

FLOAT = 4
COPIES_OF_LOGITS = 4
"""Logits, log-probabilities, probabilities and their product are held at once."""
LOGIT_TOKENS = 1_024
"""Tokens of one whole forward."""
COPIES_OF_SAE = 4
"""Weights, gradients and Adam's two averages."""
COPIES_IN_STEP = 3
"""More of the SAE whose step it is: what the optimizer makes on its way."""
COPIES_OF_LATENTS = 8
"""Before the activation function, after it, gradients, and what is made between: measured with SAELens's `topk`."""
COPIES_OF_BUFFER = 2
"""SAELens shuffles by copying."""
LOADED_LATER = 200_000_000
"""What libraries take from the first forward on; 130 MB measured."""
REPORT_LIBRARIES = 200_000_000
"""Tables, figures and templates."""
REPORT_BYTES_PER_LATENT = 4_000
"""Some 60 columns, three times while tables are joined, and what pages show."""
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of control groups of the second and the first version."""
BYTES_PER_TOKEN = 8
"""On disk: its id and its document's number, 32 bits each."""


@dataclass(frozen=True)
class Needs:
    """Bytes; what a GPU holds counts like the rest."""

    process: int
    """What the process has before the model is loaded, and what it will have of libraries then."""
    model: int
    """Its weights, in the type they are loaded in."""
    vocab: int
    d_in: dict[str, int]
    """By hook."""
    saes: int
    """Weights of all SAEs of all sources, as evaluators hold them."""
    widest: int
    """d_sae of the largest."""
    disk: int
    """Texts and SAEs of the whole run."""
    unknown: list[str] = field(default_factory=list[str])
    latents: int = 0
    """Of all SAEs of all sources."""

    @property
    def _always(self) -> int:
        return self.process + self.model

    def whole_forwards(self) -> int:
        """A step that makes the model predict, `LOGIT_TOKENS` at a time."""
        return self._always + COPIES_OF_LOGITS * LOGIT_TOKENS * self.vocab * FLOAT

    def training(self, saes: Sequence[PlannedSAE], config: ExperimentConfig) -> int:
        """SAEs that are trained together take their steps one after the other: one has latents at a time."""
        return self._always + training_bytes(saes, config)

    def fitting(self, tokens: int, hooks: Sequence[str]) -> int:
        """Activations of all hooks, and as much again for what a fit makes of those of one."""
        widths = [self.d_in[hook] for hook in dict.fromkeys(hooks)]
        return self._always + FLOAT * tokens * (sum(widths) + max(widths, default=0))

    def report(self) -> int:
        """A row a latent and what pages show of it; tokens do not matter."""
        return self._always + REPORT_LIBRARIES + REPORT_BYTES_PER_LATENT * self.latents

    def passes(self, config: ExperimentConfig) -> int:
        """All SAEs, and of one batch of rows the latents of each that observers ask for, two at a time."""
        rows = config.eval_batch_size_prompts or config.store_batch_size_prompts
        latents = min(LATENTS_PER_BATCH, rows * config.context_size * self.widest)
        return self._always + self.saes + 2 * FLOAT * latents


def training_bytes(saes: Sequence[PlannedSAE], config: ExperimentConfig) -> int:
    """What is held to train these SAEs on the same batches, beside the model: activations, SAEs, one step of one."""
    width = sum({sae.hook: int(sae.config.d_in) for sae in saes}.values())
    tokens = COPIES_OF_BUFFER * config.n_batches_in_buffer * config.context_size
    if len(saes) > 1 and any(estimates_norm(sae) for sae in saes):
        # SAELens keeps all batches that a norm is estimated from.
        tokens += config.n_batches_for_norm_estimate * config.train_batch_size_tokens
    parameters = sum(parameters_of(sae) for sae in saes)
    # Monitors measure copies of them all at once.
    copies = COPIES_OF_SAE + bool(config.monitors)
    latents = config.train_batch_size_tokens * max((int(sae.config.d_sae) for sae in saes), default=0)
    step = COPIES_IN_STEP * max((parameters_of(sae) for sae in saes), default=0) + COPIES_OF_LATENTS * latents
    return FLOAT * (tokens * width + copies * parameters + step)


def parameters_of(sae: PlannedSAE) -> int:
    """An encoder and a decoder with their biases."""
    d_in, d_sae = int(sae.config.d_in), int(sae.config.d_sae)
    return 2 * d_in * d_sae + d_in + d_sae


def needs_of(plan: Plan, model: LanguageModel) -> Needs:
    """From the config and the model's shape."""
    unknown: list[str] = []
    try:
        weights, vocab = _weights(model), model.vocab_size
    except ValueError as error:
        weights, vocab = 0, 0
        unknown.append(f"memory without the model's own, and times: {error}")
    sources = len(plan.sources) or 1
    on_disk = FLOAT * sources * sum(parameters_of(sae) for sae in plan.saes)
    return Needs(
        process=current_memory() + LOADED_LATER,
        model=weights,
        vocab=vocab,
        d_in={sae.hook: int(sae.config.d_in) for sae in plan.saes},
        saes=on_disk,
        widest=max((int(sae.config.d_sae) for sae in plan.saes), default=1),
        disk=on_disk + BYTES_PER_TOKEN * sum(text.n_tokens for text in plan.texts),
        unknown=unknown,
        latents=sources * sum(int(sae.config.d_sae) for sae in plan.saes),
    )


def weights_of(model: LanguageModel) -> int:
    """Bytes of the model's weights; 0 where they are not known before they are loaded."""
    try:
        return _weights(model)
    except ValueError:
        return 0


def current_memory() -> int:
    """Bytes that this process holds now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def machine(device: str, folder: Path) -> dict[str, Any]:
    """What there is here: bytes of memory, of the GPU's if one is used, and free on the disk of `folder`."""
    import torch

    there: dict[str, Any] = {}
    if sys.platform != "win32":
        there["memory"] = device_memory("cpu")
    if torch.device(device).type == "cuda":
        there["gpu"] = device_memory(device)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    there["disk"] = shutil.disk_usage(existing).free
    return there


def device_memory(device: str) -> int:
    """Bytes that a device has, used or not: of a GPU, or of this machine as far as this process may have them."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[1]
    if sys.platform == "win32":
        return sys.maxsize
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_container_limits())


def _container_limits() -> Iterator[int]:
    """What a container or a batch system allows; beyond it the process is killed."""
    for path in CONTAINER_LIMITS:
        try:
            limit = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if limit.isdigit():
            yield int(limit)


def _weights(model: LanguageModel) -> int:
    return sum(one.numel() * one.element_size() for one in model.skeleton.parameters())
