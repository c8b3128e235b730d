"""Evaluators inside training: on held-out text, at SAELens's eval cadence, for a twentieth of the time."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sae_faithful.evaluation import checked, free_memory, observe
from sae_faithful.faults import is_out_of_memory
from sae_faithful.interfaces import EvalContext, EvalResult, RunError, UsageError
from sae_faithful.progress import silenced
from sae_faithful.run_folder import RunFolder, write_json, write_text
from sae_faithful.sae_handle import SAEHandle
from sae_faithful.saelens_wandb import logging_to, without_histograms
from sae_faithful.stored import blamed_on, read_json_lines, reason_of
from sae_faithful.wandb_names import logged_names
from sae_faithful.wandb_run import WandbRun

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    from sae_faithful.config import ExperimentConfig
    from sae_faithful.language_model import LanguageModel
    from sae_faithful.plan import Plan, PlannedEvaluator, PlannedSAE
    from sae_faithful.tokens import TokenSet

log = logging.getLogger(__name__)

SHARE_OF_TRAINING = 0.05
"""A monitor whose next firing would take the monitors' time above this share of training's is left out that once."""


@dataclass(frozen=True)
class Watch:
    """What monitors look at and with what."""

    evaluators: Sequence[PlannedEvaluator]
    """With their small budgets."""
    held_out: Mapping[str, TokenSet]
    """The first held-out rows of every source and dataset."""
    sources: Sequence[str]
    """All sources, as the full evaluators know them."""
    language_model: LanguageModel
    seed: int
    batch_rows: int
    seqpos_slice: tuple[int | None, ...] = (None,)


def watch_texts(
    plan: Plan, config: ExperimentConfig, model: LanguageModel, held_out: Mapping[str, TokenSet]
) -> Watch:
    """The plan's monitors, and as much of each held-out text as the config lets them see."""
    # Two at least: some measures compare two halves of a text.
    rows = max(2, config.monitor_tokens // config.context_size)
    return Watch(
        evaluators=plan.monitors,
        held_out={name: tokens.head(rows) for name, tokens in held_out.items()},
        sources=[text.name for text in plan.sources],
        language_model=model,
        seed=config.seed,
        batch_rows=evaluation_rows(config),
        seqpos_slice=config.seqpos_slice,
    )


def evaluation_rows(config: ExperimentConfig) -> int:
    """Rows of text shown to the model at once when measuring."""
    return config.eval_batch_size_prompts or config.store_batch_size_prompts


@dataclass
class Cost:
    """How often one monitor ran, and for how long."""

    seconds: list[float] = field(default_factory=list[float])
    """Of each firing."""
    left_out: int = 0


class Monitors:
    """SAELens's evaluator of one source's training: called in place of its own, which would eat training tokens.

    What training draws and learns is the same with and without it: it reads held-out tokens only, measures
    copies of the SAEs, and leaves the random state as it was.
    """

    def __init__(self, watch: Watch, source: str, saes: Mapping[str, PlannedSAE]) -> None:
        """`saes` by the name that SAELens's runner knows them by."""
        self.watch = watch
        self.source = source
        self.saes = saes
        self.rows: list[dict[str, Any]] = []
        """Every result so far, with the number of the call that gave it."""
        self.costs = {planned.name: Cost() for planned in watch.evaluators}
        self._calls = 0
        self._fit = True
        """Whether memory has sufficed so far."""
        self._started = self._training = 0.0

    @contextlib.contextmanager
    def attached_to(self, runner: Any) -> Generator[None]:
        """Be the evaluator of a SAELens runner while it runs, also where nothing goes to W&B.

        Without evaluators too: SAELens's own would make the weights depend on whether W&B is on.
        """
        from sae_lens import MultiSAETrainingRunner

        multi = isinstance(runner, MultiSAETrainingRunner)
        runner.evaluator = self._of_multi if multi else self._of_single
        self._started = time.monotonic()
        with contextlib.ExitStack() as stack:
            if self.watch.evaluators and not runner.cfg.logger.log_to_wandb:
                # SAELens evaluates only when it logs to W&B.
                stack.enter_context(without_histograms(runner.saes if multi else {"": runner.sae}))
                stack.enter_context(logging_to(WandbRun(None), runner, name_of=lambda _: ""))
            yield
        self._training = time.monotonic() - self._started - self.seconds

    def _of_single(self, sae: Any, data_provider: Any, activation_scaler: Any) -> dict[str, Any]:
        """What `LanguageModelSAETrainingRunner.evaluator` is called as."""
        name = next(iter(self.saes))
        return self._of_multi({name: sae}, data_provider, {name: activation_scaler}, {})

    def _of_multi(
        self,
        saes: Mapping[str, Any],
        data_provider: Any,
        activation_scalers: Mapping[str, Any],
        hook_names: Mapping[str, str],
    ) -> dict[str, Any]:
        """What `MultiSAETrainingRunner.evaluator` is called as; returns what W&B is to log."""
        del hook_names  # the plan knows them
        self._calls += 1
        due = self._due()
        if not due:
            return {}
        with _paused(data_provider), random_state_kept(), silenced():
            rows = self._fire_if_it_fits(due, saes, activation_scalers)
        self.rows += [{"call": self._calls, **asdict(row)} for row in rows]
        return {name: row.value for name, row in zip(logged_names(rows), rows, strict=True)}

    @property
    def seconds(self) -> float:
        """Time spent so far."""
        return sum(sum(one.seconds) for one in self.costs.values())

    @property
    def share(self) -> float:
        """`seconds` by those that training itself took; known when it is over."""
        return self.seconds / self._training

    def state(self) -> dict[str, Any]:
        """What was measured so far, for a checkpoint."""
        costs = {name: {"seconds": one.seconds, "left_out": one.left_out} for name, one in self.costs.items()}
        trained = time.monotonic() - self._started - self.seconds
        return {"calls": self._calls, "rows": self.rows, "costs": costs, "training_seconds": trained}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's `state`, with the monitors that it knows."""
        self._calls, self.rows = state["calls"], list(state["rows"])
        for name, one in state["costs"].items():
            if name in self.costs:
                self.costs[name] = Cost(list(one["seconds"]), one["left_out"])
        self._started = time.monotonic() - self.seconds - state["training_seconds"]

    def report_cost(self) -> None:
        """Say what the monitors cost, where there are any."""
        if not self.watch.evaluators:
            return
        counts = ", ".join(
            times_fired(name, len(one.seconds), one.left_out) for name, one in self.costs.items()
        )
        log.info("saes/%s: monitors took %.1f %% of training time: %s", self.source, 100 * self.share, counts)
        if self.share > SHARE_OF_TRAINING:
            # Each fires once whatever it costs: that is how its cost becomes known.
            name = max(self.costs, key=lambda name: sum(self.costs[name].seconds))
            log.warning(
                "saes/%s: more than 5 %%, the most of it for '%s'; give it a smaller budget",
                self.source,
                name,
            )

    def write(self, folder: Path) -> None:
        """Where there are monitors: `SOURCE.jsonl` with every result, `SOURCE.json` with what it cost.

        Raises:
            RunError: a link takes `folder` out of the run folder, in which it lies.
        """
        if not self.watch.evaluators:
            return
        RunFolder(folder.parent).check_inside(folder)
        others = self._of_others(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in others + self.rows]
        write_text(folder / f"{self.source}.jsonl", "".join(lines))
        cost = {
            "share_of_training_time": self.share,
            "seconds": self.seconds,
            "training_seconds": self._training,
            "fired": {name: len(one.seconds) for name, one in self.costs.items()},
            "left_out": {name: one.left_out for name, one in self.costs.items()},
        }
        write_json(folder / f"{self.source}.json", cost)

    def _due(self) -> list[PlannedEvaluator]:
        """Every monitor the first time; then those that, if they take as long as last, stay within the share.

        None once memory has not sufficed: a training needs as much at every step.
        """
        left = SHARE_OF_TRAINING * (time.monotonic() - self._started - self.seconds) - self.seconds
        due: list[PlannedEvaluator] = []
        for planned in self.watch.evaluators:
            seconds = self.costs[planned.name].seconds
            cost = seconds[-1] if seconds else 0.0
            if self._fit and cost <= max(left, 0.0):
                left -= cost
                due.append(planned)
            else:
                self.costs[planned.name].left_out += 1
        return due

    def _fire_if_it_fits(
        self, due: Sequence[PlannedEvaluator], saes: Mapping[str, Any], scalers: Mapping[str, Any]
    ) -> list[EvalResult]:
        try:
            return self._fire(due, saes, scalers)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Out of the block above: the error's traceback holds the copies of the SAEs.
        free_memory(self.watch.language_model.device)
        self._fit = False
        for planned in due:
            self.costs[planned.name].left_out += 1
        log.warning(
            "saes/%s: out of memory in monitors, which are left out from here on; lower saes_at_once to have them",
            self.source,
        )
        return []

    def _fire(
        self, due: Sequence[PlannedEvaluator], saes: Mapping[str, Any], scalers: Mapping[str, Any]
    ) -> list[EvalResult]:
        """The rows that have a value; all observers share the passes of the model, and their cost."""
        watch = self.watch
        begun = time.monotonic()
        context = EvalContext(
            handles=[
                SAEHandle.from_training(
                    saes[name],
                    scalers[name],
                    source=self.source,
                    hook=planned.hook,
                    variant=planned.variant,
                    seed=planned.seed,
                )
                for name, planned in self.saes.items()
            ],
            held_out=watch.held_out,
            sources=watch.sources,
            language_model=watch.language_model,
            seed=watch.seed,
        )
        observers = {planned.name: self._observers(planned, context) for planned in due}
        every = [one for group in observers.values() for one in group or ()]
        observe(every, context, watch.batch_rows, watch.seqpos_slice)
        shared = (time.monotonic() - begun) / len(due)
        rows: list[EvalResult] = []
        for planned in due:
            begun = time.monotonic()
            group = observers[planned.name]
            if group is not None:
                rows += self._rows(planned, context, group)
            self.costs[planned.name].seconds.append(shared + time.monotonic() - begun)
        return rows

    def _observers(self, planned: PlannedEvaluator, context: EvalContext) -> list[Any] | None:
        try:
            return list(planned.evaluator.observers(context))
        except (RunError, UsageError) as error:
            self._warn(planned, error)
            return None

    def _rows(
        self, planned: PlannedEvaluator, context: EvalContext, observers: Sequence[Any]
    ) -> list[EvalResult]:
        try:
            return [
                checked(replace(result, evaluator=planned.name))
                for result in planned.evaluator.evaluate(context, observers)
                if isinstance(result, EvalResult) and result.value is not None
            ]
        except (RunError, UsageError) as error:
            self._warn(planned, error)
            return []

    def _warn(self, planned: PlannedEvaluator, error: Exception) -> None:
        """Hours of training are worth more than one look at them."""
        log.warning("saes/%s: monitor %s: %s", self.source, planned.name, error)

    def _of_others(self, folder: Path) -> list[dict[str, Any]]:
        """What an earlier training of the same source left; nothing where that is damaged, which ends no training."""
        path = folder / f"{self.source}.jsonl"
        try:
            rows = read_monitor_rows(folder, self.source)
            with blamed_on(path):
                return [row for row in rows if not self._is_about(row)]
        except RunError as error:
            log.warning("%s cannot be read: %s; it is begun anew", path, reason_of(error.__cause__ or error))
            return []

    def _is_about(self, row: Mapping[str, Any]) -> bool:
        """Whether the row is of SAEs trained here; means of a source are of whatever was trained together."""
        mine = {(sae.hook, sae.variant, sae.seed) for sae in self.saes.values()}
        return row["seed"] is None or (row["hook"], row["variant"], row["seed"]) in mine


def read_monitor_rows(folder: Path, source: str) -> list[dict[str, Any]]:
    """What monitors of one source measured; nothing where there were none."""
    path = folder / f"{source}.jsonl"
    return read_json_lines(path) if path.exists() else []


def times_fired(name: str, fired: int, left_out: int) -> str:
    """How often a monitor fired, in words."""
    return f"{name} {fired}×" + (f" ({left_out} left out for want of time or memory)" if left_out else "")


@contextlib.contextmanager
def _paused(data_provider: Any) -> Generator[None]:
    """SAELens's prefetching thread runs the same model."""
    from sae_lens.training.prefetch import PrefetchingIterator

    with (
        data_provider.paused() if isinstance(data_provider, PrefetchingIterator) else contextlib.nullcontext()
    ):
        yield


@contextlib.contextmanager
def random_state_kept() -> Generator[None]:
    """Whatever an evaluator draws from the global generators, training draws what it would have drawn."""
    import random

    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
