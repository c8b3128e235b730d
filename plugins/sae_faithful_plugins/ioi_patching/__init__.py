"""Evaluator `ioi_patching`: how few features must change for the model to say something else."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_faithful import Artifact, FeatureTable, Progress, Work, derive_seed, hash_file, hookimpl
from sae_faithful_plugins.ioi_patching.prompts import Pair, draw_ioi, read_pairs, tokenize_pairs
from sae_faithful_plugins.ioi_patching.selection import set_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sae_faithful import EvalContext, EvalResult
    from sae_faithful_plugins.ioi_patching.components import Moments
    from sae_faithful_plugins.ioi_patching.prompts import TokenPair

log = logging.getLogger(__name__)

PROMPT_TOKENS = 16
"""About so many has a prompt of `ioi`, BOS included; for an estimate."""


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("ioi_patching", IOIPatching)


@dataclass
class IOIPatching:
    """How few features, patched, make the model say what a counterfactual prompt would (Cunningham et al. 2023).

    Indirect object identification, or prompt pairs of your own. Headlines are the number of features that bring
    the divergence to half, the area under the curve, and that area's difference from principal components.
    """

    pairs: str = "ioi"
    """`ioi`: sentences written here; or `FILE.jsonl`, each line `{"base": ..., "target": ...}`, with `answer` and
    `distractor` where there is one right continuation of `base`."""
    n_pairs: int = 50
    """Pairs that are measured, at most; fewer than 50 get no intervals."""
    selection_pairs: int = 8
    """Pairs that choose the features, and are not measured (at most half of a file); 0: those measured
    choose, as in the paper."""
    candidates: int = 64
    """Features that may be chosen, those with the strongest first-order effect; the paper: all."""
    thresholds: list[float] = field(
        default_factory=lambda: [0.00001, 0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0]
    )
    """Nats that a removal may cost, ascending (the paper: 50, from 0.00001 to 1)."""
    orders: int = 1
    """Random orders of removal; numbers are means over them."""
    area_features: int = 64
    """Up to how many features the area under the curve goes."""
    comparisons: list[Literal["pca", "pca_split"]] = field(default_factory=lambda: ["pca", "pca_split"])
    """Principal components of each source's activations, beside the SAEs: signed, and split by sign."""
    component_tokens: int = 20_000
    """Held-out tokens of a source that its principal components are made from."""
    hooks: list[str] = field(default_factory=list[str])
    """Only SAEs at these hooks; empty: all."""
    variants: list[str] = field(default_factory=list[str])
    """Only these variants and baselines; empty: all."""
    pairs_hash: str = field(init=False, default="")
    # Found here, so that another content of the file is another setting.

    def __post_init__(self) -> None:
        for name in ("n_pairs", "candidates", "orders", "area_features", "component_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not positive")
        if self.selection_pairs < 0:
            raise ValueError(f"selection_pairs {self.selection_pairs} is below 0")
        if not self.thresholds or min(self.thresholds) <= 0:
            raise ValueError(f"thresholds {self.thresholds}: at least one, all above 0")
        if sorted(set(self.thresholds)) != self.thresholds:
            raise ValueError(f"thresholds {self.thresholds} do not ascend")
        if len(set(self.comparisons)) != len(self.comparisons):
            raise ValueError(f"comparisons {self.comparisons}: one is named twice")
        if self.pairs != "ioi":
            if not self.pairs.endswith(".jsonl"):
                raise ValueError(f"pairs '{self.pairs}' is neither 'ioi' nor a FILE.jsonl")
            path = Path(self.pairs).expanduser()
            self._read = read_pairs(path)
            self.pairs_hash = hash_file(path)

    def work(self, context: EvalContext) -> Work:
        """At least: candidates are tried twice each, more often where removing one makes others cheaper."""
        handles = context.handles_at(self.hooks, self.variants)
        places = {(handle.source, handle.hook) for handle in handles}
        series = len(handles) + sum(len(self._compared(context, *place)) for place in places)
        tries = 1 + 2 * self.candidates * self.orders
        sizes = len(set_sizes(self.candidates, self.area_features))
        pairs = (self.selection_pairs or self.n_pairs) * tries + self.n_pairs * sizes * self.orders
        return Work(
            passes={source: [] for source, _ in places},
            logit_tokens=series * pairs * PROMPT_TOKENS,
            at_least=True,
        )

    def observers(self, context: EvalContext) -> list[Moments]:
        """Those that principal components are made from. Unusable pairs fail here, before the long pass."""
        from sae_faithful_plugins.ioi_patching.components import Moments

        self._pairs(context)
        places = dict.fromkeys(
            (handle.source, handle.hook) for handle in context.handles_at(self.hooks, self.variants)
        )
        return [
            Moments(hook, source, context.held_out[source], self.component_tokens)
            for source, hook in places
            if self._compared(context, source, hook)
        ]

    def evaluate(
        self, context: EvalContext, observers: Sequence[Moments]
    ) -> Iterator[EvalResult | FeatureTable | Artifact]:
        """Rows of the task, of every SAE, of what it is compared with and of every source; the curves; a reading."""
        from sae_faithful_plugins.ioi_patching.curves import Experiment
        from sae_faithful_plugins.ioi_patching.reading import curves, reading, task_sentence
        from sae_faithful_plugins.ioi_patching.results import rows_of_series, task_rows, unpatched_row

        texts, choosing, measured = self._pairs(context)
        experiment = Experiment(self, context, choosing, measured)
        rows = [
            *task_rows(experiment.differences()),
            unpatched_row(experiment.unpatched),
        ]
        # Before the long part: one who reads it may stop.
        log.info("%s", task_sentence(rows))
        series = []
        handles = context.handles_at(self.hooks, self.variants)
        n_compared = sum(len(self._compared(context, one.source, one.hook)) for one in observers)
        with Progress("ioi_patching: curves", len(handles) + n_compared, "decompositions") as progress:
            for handle in handles:
                one, columns = experiment.measure(handle, handle.hook, handle.d_sae, handle.identity)
                series.append(one)
                yield FeatureTable(handle=handle, columns=columns)
                progress.update()
            for moments in observers:
                for name, coder, n in self._components(moments, context):
                    where = {"source": moments.source, "hook": moments.hook, "variant": name, "seed": None}
                    one, _ = experiment.measure(coder, moments.hook, n, where)
                    one.comparison = True
                    series.append(one)
                    progress.update()
        rows += rows_of_series(series, experiment.unpatched, context.seed)
        yield from rows
        yield Artifact(name="curves", kind="json", content=curves(series, experiment, texts))
        yield Artifact(name="reading", kind="text", content=reading(rows, self))

    def _pairs(self, context: EvalContext) -> tuple[list[Pair], list[TokenPair], list[TokenPair]]:
        """All pairs as texts, those that choose first; and as tokens, those that choose and those measured."""
        model = context.language_model
        rng = np.random.default_rng(derive_seed(context.seed, "ioi_patching", "pairs"))
        if self.pairs == "ioi":
            texts, tokens = draw_ioi(model, self.selection_pairs + self.n_pairs, rng)
            n_choosing = self.selection_pairs
        else:
            read = self._read
            every = tokenize_pairs(model, read, Path(self.pairs).expanduser())
            # Half of a small file is left to be measured.
            n_choosing = min(self.selection_pairs, len(read) // 2)
            drawn = rng.permutation(len(read))[: n_choosing + self.n_pairs]
            texts, tokens = [read[i][1] for i in drawn], [every[i] for i in drawn]
        measured = tokens[n_choosing:]
        return texts, tokens[:n_choosing] or measured, measured

    def _compared(self, context: EvalContext, source: str, hook: str) -> list[Literal["pca", "pca_split"]]:
        """Comparisons at one place, but for those that a measured variant or baseline of that name is already."""
        measured = context.handles_at(self.hooks, self.variants)
        taken = {one.variant for one in measured if (one.source, one.hook) == (source, hook)}
        return [name for name in self.comparisons if name not in taken]

    def _components(self, moments: Moments, context: EvalContext) -> Iterator[tuple[str, Any, int]]:
        from sae_faithful_plugins.ioi_patching.components import Components

        mean, directions = moments.components()
        for name in self._compared(context, moments.source, moments.hook):
            coder = Components(name, mean, directions)
            yield name, coder, len(coder.directions)
