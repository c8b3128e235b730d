"""How much memory and disk the steps of a run need, by formula: sizes are known before any weights load."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_faithful.evaluation import LATENTS_PER_BATCH
from sae_faithful.stand_ins import baseline_sizes
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
BYTES_PER_DRAWN_TOKEN = 4
"""In the cache: its id, of texts that are drawn in shards."""
DRAWN_BY = "self_generated"
"""The source that draws its text in shards."""
COPIES_IN_CHECKPOINT = 3
"""Weights and Adam's two averages."""


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
    """Texts, SAEs and checkpoints of the whole run, with what the cache keeps of texts."""
    unknown: list[str] = field(default_factory=list[str])
    latents: int = 0
    """Of all SAEs of all sources."""
    encoded: int = 0
    """Latents of all SAEs and baselines of all sources at one hook, where they are most."""

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
        """All SAEs, the latents that all of one hook have on a batch of rows, and once more those that are made."""
        rows = config.eval_batch_size_prompts or config.store_batch_size_prompts
        rows = max(1, min(rows, LATENTS_PER_BATCH // (self.widest * config.context_size)))
        return self._always + self.saes + FLOAT * rows * config.context_size * (self.encoded + self.widest)


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


def needs_of(plan: Plan, config: ExperimentConfig, model: LanguageModel) -> Needs:
    """From the config and the model's shape."""
    unknown: list[str] = []
    try:
        weights, vocab = _weights(model), model.vocab_size
    except ValueError as error:
        weights, vocab = 0, 0
        unknown.append(f"memory without the model's own, and times: {error}")
    sources = len(plan.sources) or 1
    parameters = sources * sum(parameters_of(sae) for sae in plan.saes)
    at_hook: Counter[str] = Counter()
    for sae in plan.saes:
        at_hook[sae.hook] += int(sae.config.d_sae)
    for baseline in plan.baselines:
        at_hook[baseline.hook] += baseline_sizes(plan, baseline)["d_sae"]
    return Needs(
        process=current_memory() + LOADED_LATER,
        model=weights,
        vocab=vocab,
        d_in={sae.hook: int(sae.config.d_in) for sae in plan.saes},
        saes=FLOAT * parameters,
        widest=max((int(sae.config.d_sae) for sae in plan.saes), default=1),
        disk=disk_of_texts(
            [text.n_tokens for text in plan.texts],
            sum(text.n_tokens for text in plan.texts if text.plugin == DRAWN_BY),
        )
        + disk_of_saes(parameters, config.n_checkpoints),
        unknown=unknown,
        latents=sources * sum(int(sae.config.d_sae) for sae in plan.saes),
        encoded=sources * max(at_hook.values(), default=0),
    )


def disk_of_texts(lengths: Sequence[int], drawn: int) -> int:
    """Bytes of texts of so many tokens each, of which `drawn` stay in the cache, while the longest is made."""
    return BYTES_PER_TOKEN * (sum(lengths) + max(lengths, default=0)) + BYTES_PER_DRAWN_TOKEN * drawn


def disk_of_saes(parameters: int, n_checkpoints: int = 0) -> int:
    """Bytes of SAEs with so many parameters together, and of every checkpoint of them."""
    return FLOAT * parameters * (1 + COPIES_IN_CHECKPOINT * n_checkpoints)


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
