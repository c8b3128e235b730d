"""Evaluator `probing`: what linear probes read from latents that they read from activations, or do not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_faithful import Artifact, FeatureTable, Progress, Work, derive_seed, hookimpl
from sae_faithful_plugins.probing.tasks import check_readable, load_task, parse_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sae_faithful import EvalContext, EvalResult, Observer, SAEHandle
    from sae_faithful_plugins.probing.fitting import Fit, Probe
    from sae_faithful_plugins.probing.representations import Key, PooledTexts
    from sae_faithful_plugins.probing.results import Scored
    from sae_faithful_plugins.probing.tasks import Task


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("probing", Probing)


@dataclass
class Probing:
    """Linear probes on latents, reconstructions and raw activations of labelled texts (Cho et al. 2025).

    Beside them the controls: what the reconstruction leaves out, a randomly initialised SAE, principal
    components, TF-IDF weights of the words, and the majority class. Headlines are paired differences.
    """

    tasks: list[str | dict[str, dict[str, str]]] = field(
        default_factory=lambda: ["sst2", "cola", "yelp_polarity"]
    )
    """`sst2`, `cola`, `yelp_polarity`, or a table of your own: `{NAME: {path: FILE, text: COLUMN, label:
    COLUMN}}`, with `test_path: FILE` where it has a test set. CSV, JSON lines or Parquet; columns are `text`
    and `label` unless named; two labels, class 1 being the later in the alphabet."""
    data: Literal["hub", "sae_probes"] = "hub"
    """Where the three named tasks come from: `hub`, or `sae_probes`, the installed package (`pip install
    --no-deps sae-probes zstandard`)."""
    max_examples: int = 2_000
    """Training texts of a task, and test texts of it, at most, the classes' shares kept (the paper: 10,000).
    """
    max_tokens: int = 128
    """Tokens of a text that are read, BOS not counted; the rest is cut."""
    pool: Literal["mean", "last"] = "mean"
    """One vector a text: `mean` over its tokens without BOS, or its `last` token's."""
    sparse_k: list[int] = field(default_factory=lambda: [1, 4, 16, 64])
    """Sizes of the k-sparse probes, and numbers of principal components."""
    cs: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1])
    """Candidates for scikit-learn's C, the inverse strength of the penalty."""

    def __post_init__(self) -> None:
        for name in ("max_examples", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not positive")
        for name in ("tasks", "cs"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty")
        for name in ("sparse_k", "cs"):
            for value in getattr(self, name):
                if value <= 0:
                    raise ValueError(f"{name}: {value} is not positive")
        check_readable(parse_tasks(self.tasks), self.data)
        self._loaded: list[Task] = []

    def work(self, context: EvalContext) -> Work:
        """Texts about half as long as they may be, and the probes, as fast as one of random numbers."""
        import torch

        from sae_faithful_plugins.probing.fitting import probe_trial

        tasks, hooks = len(parse_tasks(self.tasks)), {handle.hook for handle in context.handles}
        tokens = tasks * 2 * self.max_examples * self.max_tokens / 2
        # For each SAE latents, reconstruction, residual and a random SAE; for each hook what is there without SAEs.
        widest = max((handle.d_sae for handle in context.handles), default=1)
        dense = tasks * (2 * len(context.handles) + len(hooks) * (1 + len(self.sparse_k)))
        sparse = tasks * len(context.handles) * (2 + len(self.sparse_k))
        d_in = max((int(handle.sae.cfg.d_in) for handle in context.handles), default=1)
        trials = [
            probe_trial(self.max_examples, width, self.cs, times / torch.get_num_threads())
            for width, times in ((d_in, dense), (widest, sparse))
        ]
        # Each SAE's latents, their reconstruction, and a random SAE's latents.
        return Work(forward_tokens=tokens, encoded_tokens=3 * tokens * len(context.handles), trials=trials)

    def observers(self, context: EvalContext) -> list[Observer]:
        """None: texts are no packed rows. But what cannot be read should fail before the long pass."""
        self._loaded = [
            load_task(name, local, self.data, self.max_examples, derive_seed(context.seed, "probing", name))
            for name, local in parse_tasks(self.tasks).items()
        ]
        return []

    def evaluate(
        self, context: EvalContext, observers: Sequence[Observer]
    ) -> Iterator[EvalResult | FeatureTable | Artifact]:
        """Rows and rankings of every task; what the tasks were made from; and what the probes chose."""
        del observers  # there are none
        chosen: dict[str, Any] = {}
        for task in self._loaded:
            probed = ProbedTask(self, context, task)
            yield from probed.rows()
            chosen[task.name] = probed.chosen
        yield Artifact(
            name="tasks", kind="json", content={task.name: dict(task.card) for task in self._loaded}
        )
        yield Artifact(name="probes", kind="json", content=chosen)


class ProbedTask:
    """One task: its texts through the model once, a probe a representation, rows."""

    def __init__(self, options: Probing, context: EvalContext, task: Task) -> None:
        self.options = options
        self.context = context
        self.task = task
        self.seed = derive_seed(context.seed, "probing", task.name, "fit")
        self.chosen: dict[str, Any] = {}
        """C and latents of every probe, by representation."""
        self.scored: Scored

    def rows(self) -> Iterator[EvalResult | FeatureTable]:
        """Everything there is to say about the task."""
        from sae_faithful.metrics.probing import draw_texts
        from sae_faithful_plugins.probing.representations import pool_texts, tokenize
        from sae_faithful_plugins.probing.results import Scored

        task = self.task
        rng = np.random.default_rng(derive_seed(self.context.seed, "probing", task.name, "bootstrap"))
        self.scored = Scored(task.name, task.metric, task.test.labels, draw_texts(len(task.test), rng))
        model = self.context.language_model
        ids = tokenize(model, [*task.train.texts, *task.test.texts], self.options.max_tokens)
        yield from self.scored.shared_rows(self._text_floors(ids))
        pooled = pool_texts(self.context, ids, self.options.pool)
        hooks = dict.fromkeys(handle.hook for handle in self.context.handles)
        of_hooks = {hook: self._fits_of_hook(hook) for hook in hooks}
        of_saes = {handle.key: self._fits_of_sae(pooled.keys(handle)) for handle in self.context.handles}
        self._fit(
            pooled, [fit for fits in (of_hooks, of_saes) for one in fits.values() for fit in one.values()]
        )
        for hook, fits in of_hooks.items():
            yield from self.scored.shared_rows(_keys(fits), hook=hook)
        for handle in self.context.handles:
            own = _keys(of_saes[handle.key])
            yield from self.scored.rows_of_sae(handle, own)
            yield self._ranking(pooled, handle, own["latents"])
        yield from self.scored.rows_of_sources({key: _keys(fits) for key, fits in of_saes.items()})

    def _text_floors(self, ids: Sequence[Sequence[int]]) -> dict[str, Key]:
        """Probes without a model: of the words that the model gets to see, and of no text at all."""
        from sae_faithful_plugins.probing.fitting import fit_text_floor, majority

        train, test = self.task.train, self.task.test
        seen: list[str] = self.context.language_model.tokenizer.batch_decode([list(one) for one in ids])
        words = fit_text_floor(
            seen[: len(train)], train.labels, seen[len(train) :], cs=self.options.cs, seed=self.seed
        )
        self._add(("tfidf",), words)
        self._add(("majority",), majority(train.labels, len(test)))
        return {"tfidf": ("tfidf",), "majority": ("majority",)}

    def _fits_of_hook(self, hook: str) -> dict[str, Fit]:
        from sae_faithful_plugins.probing.fitting import Fit

        raw = ("raw", hook)
        components = {f"pca,k={k}": Fit(("pca", hook, k), raw, "pca", k) for k in self.options.sparse_k}
        return {"raw": Fit(raw, raw)} | components

    def _fits_of_sae(self, keys: dict[str, Key]) -> dict[str, Fit]:
        from sae_faithful_plugins.probing.fitting import Fit

        latents = keys["latents"]
        sparse = {f"latents,k={k}": Fit((*latents, k), latents, "select", k) for k in self.options.sparse_k}
        return {name: Fit(key, key) for name, key in keys.items()} | sparse

    def _ranking(self, pooled: PooledTexts, handle: SAEHandle, of: Key) -> FeatureTable:
        """What k-sparse probes rank the SAE's latents by, on all training texts."""
        from sae_faithful_plugins.probing.fitting import f_statistics

        train: Any = pooled.matrix(of)[: len(self.task.train)]
        statistic = f_statistics(train, self.task.train.labels).astype(np.float32)
        return FeatureTable(handle=handle, columns={f"f_statistic.{self.task.name}": statistic})

    def _fit(self, pooled: PooledTexts, fits: Sequence[Fit]) -> None:
        """All probes, once each: SAEs share representations."""
        import torch

        from sae_faithful_plugins.probing.fitting import fit_probes

        each = list({fit.key: fit for fit in fits}.values())
        probes = fit_probes(
            each, pooled.matrix, self.task.train.labels,
            cs=self.options.cs, seed=self.seed, processes=torch.get_num_threads(),
        )  # fmt: skip
        with Progress(f"probing: {self.task.name}", len(each), "probes") as progress:
            for fit, probe in zip(each, probes, strict=True):
                self._add(fit.key, probe)
                progress.update()

    def _add(self, key: Key, probe: Probe) -> None:
        self.scored.add(key, probe.scores)
        kept = {"C": probe.C} | ({} if probe.columns is None else {"latents": probe.columns})
        self.chosen["/".join(str(part) for part in key)] = kept


def _keys(fits: dict[str, Fit]) -> dict[str, Key]:
    return {name: fit.key for name, fit in fits.items()}
