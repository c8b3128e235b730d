"""Evaluator `sae_probes_benchmark`: the sparse-probing benchmark of the package sae-probes, in its own environment."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sae_faithful import Artifact, UsageError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sae_faithful import EvalContext, EvalResult, Observer

log = logging.getLogger("sae_faithful.sae_probes_benchmark")


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("sae_probes_benchmark", SAEProbesBenchmark)


@dataclass
class SAEProbesBenchmark:
    """The sae-probes benchmark: k-sparse probes on an SAE's latents (Kantamneni et al. 2025).

    The model runs here and writes its activations into the cache that sae-probes reads; splits, probes and scores
    are sae-probes's own, computed by the interpreter that SAE_FAITHFUL_SAE_PROBES_PYTHON names.
    """

    datasets: list[str] = field(default_factory=list[str])
    """The benchmark's names, `92_glue_sst2` say; empty means all 113."""
    setting: Literal["normal", "scarcity", "imbalance"] = "normal"
    """`normal`: up to 1,024 balanced training texts; `scarcity`: 2 to 1,024 of them; `imbalance`: one class
    from 5 % to 95 %."""
    ks: list[int] = field(default_factory=lambda: [1, 16])
    """How many latents a probe reads."""
    reg_type: Literal["l1", "l2"] = "l1"
    """The probe's penalty."""
    max_tokens: int = 1_023
    """Last tokens of a text that are read, BOS not counted; what is before them is cut."""
    split_seed: int = 42
    """What sae-probes splits the texts by; published scores have its default."""

    def __post_init__(self) -> None:
        from sae_faithful_plugins.sae_probes_benchmark.environment import Environment

        if not self.ks:
            raise ValueError("ks is empty")
        for name, value in [("max_tokens", self.max_tokens), *(("ks:", k) for k in self.ks)]:
            if value < 1:
                raise ValueError(f"{name} {value} is not positive")
        if repeated := [name for name in self.datasets if self.datasets.count(name) > 1]:
            raise ValueError(f"dataset '{repeated[0]}' is named twice")
        self._environment = Environment.find()
        for name in self.datasets:
            if name not in self._environment.datasets:
                raise ValueError(_unknown_dataset(name, self._environment.datasets))

    def observers(self, context: EvalContext) -> list[Observer]:
        """None: texts are no packed rows. But no probe may read more latents than there are.

        Raises:
            UsageError: one would; sae-probes would take them all and call that k.
        """
        for handle in context.handles:
            if max(self.ks) > handle.d_sae:
                raise UsageError(
                    f"sae_probes_benchmark: ks: {max(self.ks)} is more than the {handle.d_sae} latents of "
                    f"{'/'.join(str(part) for part in handle.key)}"
                )
        return []

    def evaluate(
        self, context: EvalContext, observers: Sequence[Observer]
    ) -> Iterator[EvalResult | Artifact]:
        """Rows of all SAEs; and what sae-probes wrote, with the latents it chose."""
        from sae_faithful_plugins.sae_probes_benchmark.results import Benchmark

        del observers  # there are none
        texts = self._environment.texts(self.datasets or self._environment.datasets)
        with tempfile.TemporaryDirectory(prefix="sae_probes_benchmark-") as name:
            raw = self._score(context, texts, Path(name))
        n_texts = {dataset: len(its_texts) for dataset, its_texts in texts.items()}
        yield from Benchmark.of(raw, context.handles, n_texts, self.setting).rows()
        saes = [handle.identity for handle in context.handles]
        content = {"versions": self._environment.versions, "saes": saes, "scores": raw}
        yield Artifact(name="sae_probes", kind="json", content=content)

    def _score(self, context: EvalContext, texts: dict[str, list[str]], folder: Path) -> list[dict[str, Any]]:
        """Write activations and SAEs into `folder`, and have sae-probes score them."""
        import torch

        from sae_faithful_plugins.sae_probes_benchmark.activations import last_token_activations
        from sae_faithful_plugins.sae_probes_benchmark.worker import MODEL

        cache = folder / f"model_activations_{MODEL}"
        cache.mkdir()
        hooks = list(dict.fromkeys(handle.hook for handle in context.handles))
        for i, (dataset, its_texts) in enumerate(texts.items()):
            log.info("sae-probes: activations of %s (%d of %d)", dataset, i + 1, len(texts))
            found = last_token_activations(context.language_model, its_texts, hooks, self.max_tokens)
            for hook, activations in found.items():
                torch.save(activations, cache / f"{dataset}_{hook}.pt")
        saes: list[tuple[str, str]] = []
        for i, handle in enumerate(context.handles):
            handle.sae.save_model(folder / f"sae{i}")
            saes.append((handle.hook, str(folder / f"sae{i}")))
        return self._environment.score(
            {
                "saes": saes,
                "activations": str(folder),
                "datasets": list(texts),
                "setting": self.setting,
                "reg_type": self.reg_type,
                "ks": self.ks,
                "seed": self.split_seed,
                "threads": torch.get_num_threads(),
            }
        )


def _unknown_dataset(name: str, choices: Sequence[str]) -> str:
    """There are too many to list: the nearest."""
    from difflib import get_close_matches

    near = get_close_matches(name, choices, n=3, cutoff=0.4)
    hint = f" (did you mean {', '.join(near)}?)" if near else ""
    return f"unknown dataset '{name}'{hint}; sae-probes has {len(choices)}: {', '.join(choices[:3])}, ..."
