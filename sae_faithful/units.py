"""What a run does, in pieces that any process may do: each leaves its outcome in the run folder, whole."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sae_faithful.baselines import baseline_handle, fit_baselines
from sae_faithful.data import (
    Text,
    open_text,
    prepare_text,
    random_tokens_step,
    refuse_what_is_not_its_own,
    score_random_tokens,
)
from sae_faithful.evaluation import evaluate
from sae_faithful.hashing import hash_settings
from sae_faithful.interfaces import EvalContext
from sae_faithful.language_model import LanguageModel
from sae_faithful.monitors import evaluation_rows, watch_texts
from sae_faithful.plan import make_plan
from sae_faithful.run_folder import RunFolder, cache_dir
from sae_faithful.sae_handle import SAEHandle
from sae_faithful.stand_ins import request_for
from sae_faithful.steps import (
    baseline_inputs,
    evaluation_inputs,
    evaluator_steps,
    steps_by_settings,
    training_inputs,
)
from sae_faithful.timings import Timings
from sae_faithful.training import train_source
from sae_faithful.trust import remote_code_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformer_lens.HookedTransformer import HookedRootModule

    from sae_faithful.config import ExperimentConfig
    from sae_faithful.interfaces import Pieces
    from sae_faithful.plan import Plan, PlannedText
    from sae_faithful.registry import PluginManager

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Experiment:
    """One config with what follows from it: the same in every process that works on it."""

    config: ExperimentConfig
    plan: Plan
    model: LanguageModel
    folder: RunFolder
    plugins: PluginManager
    timings: Timings
    threads: int = 0
    """PyTorch's, as the config or the driver's machine says; 0: not known yet."""
    pieces: dict[str, Pieces | None] = field(default_factory=dict[str, "Pieces | None"])
    """By text; of one text at a time, since they may hold a model. None for a source that is loaded in one go."""

    @classmethod
    def planned(
        cls,
        config: ExperimentConfig,
        output: Path | str | None,
        plugins: PluginManager,
        override_model: HookedRootModule | None = None,
        *,
        model: LanguageModel | None = None,
    ) -> Experiment:
        """Resolved and checked; nothing is written and no weights are loaded.

        Raises:
            UsageError: the config asks for something impossible, or the folder holds steps made with other settings.
        """
        for line in remote_code_of(config):
            log.warning("%s", line)
        model = model or LanguageModel.from_config(config, config.hook_names, override_model)
        plan = make_plan(config, plugins, model)
        folder = RunFolder(output or config.output_path or "output")
        folder.check_settings(steps_by_settings(plan, model))
        return cls(config, plan, model, folder, plugins, Timings(folder.timings_file))

    def set_threads(self) -> None:
        """Compute with that many: their number can change the last bit of a result."""
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)

    def text(self, name: str) -> PlannedText:
        """What the plan says of one source or dataset."""
        return next(text for text in self.plan.texts if text.name == name)

    def texts(self) -> dict[str, Text]:
        """Every source and dataset, all of them on disk."""
        return {text.name: open_text(self.folder.data_dir(text.name)) for text in self.plan.texts}


class Unit(Protocol):
    """A piece of a run: a picklable dataclass. Done twice, it finds its outcome and does nothing."""

    @property
    def name(self) -> str:
        """As in `timings.json`, unique in a run."""
        ...

    @property
    def after(self) -> tuple[str, ...]:
        """Names of the units that come first, of those that are handed out together with it."""
        ...

    def finished(self, experiment: Experiment) -> bool:
        """Whether its outcome is there."""
        ...

    def do(self, experiment: Experiment, *, spread: bool = False) -> Sequence[Unit]:
        """Do it. With `spread` it may instead return what others can do first; then it is asked again.

        Raises:
            UsageError, RunError: as the step it is.
        """
        ...


@dataclass(frozen=True)
class MakeText:
    """Step 1 for one source or dataset."""

    text: str
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"data/{self.text}"

    def finished(self, experiment: Experiment) -> bool:
        return experiment.folder.finished(experiment.text(self.text).step(experiment.model.identity))

    def do(self, experiment: Experiment, *, spread: bool = False) -> Sequence[Unit]:
        if spread and not self.finished(experiment):
            pieces = pieces_of(experiment, self.text)
            missing = [] if pieces is None else list(pieces.missing())
            # A single one is drawn on the way.
            if len(missing) > 1:
                return [MakePiece(self.text, piece) for piece in missing]
        close_pieces(experiment)
        config, folder = experiment.config, experiment.folder
        prepare_text(experiment.text(self.text), config, experiment.model, folder)
        # Before the next source is paid for.
        refuse_what_is_not_its_own(open_text(folder.data_dir(self.text)), config.typicality_limit)
        return ()


@dataclass(frozen=True)
class MakePiece:
    """What a source puts into the cache, for `MakeText` to find there."""

    text: str
    piece: str
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"data/{self.text}: {self.piece}"

    def finished(self, experiment: Experiment) -> bool:
        del experiment
        return False  # the source knows, and asks for no other

    def do(self, experiment: Experiment, *, spread: bool = False) -> Sequence[Unit]:
        del spread
        pieces = pieces_of(experiment, self.text)
        assert pieces is not None  # it named this one
        pieces.make(self.piece)
        return ()


@dataclass(frozen=True)
class ScoreRandomTokens:
    """The typicality gap that all texts are compared with."""

    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "references/uniform_random_tokens"

    def finished(self, experiment: Experiment) -> bool:
        return experiment.folder.finished(random_tokens_step(experiment.config, experiment.model))

    def do(self, experiment: Experiment, *, spread: bool = False) -> Sequence[Unit]:
        del spread
        score_random_tokens(experiment.config, experiment.model, experiment.folder)
        return ()


@dataclass(frozen=True)
class TrainSource:
    """Step 2 for one source."""

    source: str
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"saes/{self.source}"

    def finished(self, experiment: Experiment) -> bool:
        _, inputs = self._inputs(experiment)
        steps = (sae.step(self.source, inputs) for sae in experiment.plan.saes)
        return all(experiment.folder.finished(step) for step in steps)

    def do(self, experiment: Experiment, *, spread: bool = False) -> Sequence[Unit]:
        del spread
        plan, config, model = experiment.plan, experiment.config, experiment.model
        dataset_path, inputs = self._inputs(experiment)
        tokens, watch = None, None
        if plan.texts and plan.stock_dataset is None:
            texts = experiment.texts()
            tokens = texts[self.source].train
            held_out = {name: text.held_out for name, text in texts.items()}
            watch = watch_texts(plan, config, model, held_out)
        train_source(
            self.source, plan.saes, config, model, experiment.folder, inputs, tokens, dataset_path, watch
        )
        return ()

    def _inputs(self, experiment: Experiment) -> tuple[str, dict[str, Any]]:
        known = training_inputs(experiment.plan, experiment.model)
        return next((path, inputs) for source, path, inputs in known if source == self.source)


@dataclass(frozen=True)
class FitBaselines:
    """Step 3's baselines of one source."""

    source: str
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"baselines/{self.source}"

    def finished(self, experiment: Experiment) -> bool:
        inputs = baseline_inputs(experiment.text(self.source), experiment.model)
        steps = (planned.step(self.source, inputs) for planned in experiment.plan.baselines)
        return all(experiment.folder.finished(step) for step in steps)

    def do(self, experiment: Experiment, *, spread: bool = False) -> Sequence[Unit]:
        del spread
        text = experiment.text(self.source)
        tokens = open_text(experiment.folder.data_dir(self.source)).train
        assert tokens is not None  # it is a source
        inputs = baseline_inputs(text, experiment.model)
        fit_baselines(
            self.source, experiment.plan.baselines, experiment.config, experiment.model, experiment.folder, inputs,
            tokens, text.plugin,
        )  # fmt: skip
        return ()


@dataclass(frozen=True)
class Evaluate:
    """Step 4 for some of the evaluators, with one pass of the model over each text for all of these."""

    evaluators: tuple[str, ...]
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"results/{','.join(self.evaluators)}"

    def finished(self, experiment: Experiment) -> bool:
        plan = experiment.plan
        steps = evaluator_steps(plan.evaluators, evaluation_inputs(plan, experiment.model))
        return all(experiment.folder.finished(steps[name]) for name in self.evaluators)

    def do(self, experiment: Experiment, *, spread: bool = False) -> Sequence[Unit]:
        del spread
        plan, config, model = experiment.plan, experiment.config, experiment.model
        context = EvalContext(
            handles=handles(experiment),
            held_out={name: text.held_out for name, text in experiment.texts().items()},
            sources=[text.name for text in plan.sources],
            language_model=model,
            seed=config.seed,
        )
        inputs = evaluation_inputs(plan, model)
        rows = evaluation_rows(config)
        evaluate(
            plan.evaluators,
            context,
            experiment.folder,
            inputs,
            rows,
            config.seqpos_slice,
            only=self.evaluators,
        )
        return ()


def hash_of_steps(experiment: Experiment) -> str:
    """Of all settings and inputs: two processes with the same one would do the same."""
    steps = steps_by_settings(experiment.plan, experiment.model)
    return hash_settings({"model": experiment.model.identity, "steps": {one.path: one.hash for one in steps}})


def handles(experiment: Experiment) -> list[SAEHandle]:
    """Step 3: a handle for every SAE on disk, then for every baseline; weights are read on first use."""
    plan, config, folder = experiment.plan, experiment.config, experiment.folder
    trained = [
        SAEHandle.from_disk(
            folder.sae_dir(source, sae.hook, sae.variant, sae.seed),
            source=source,
            hook=sae.hook,
            variant=sae.variant,
            seed=sae.seed,
            device=config.device,
        )
        for source, _, _ in training_inputs(plan, experiment.model)
        for sae in plan.saes
    ]
    fitted = [
        baseline_handle(planned, text.name, folder, str(config.device))
        for text in plan.sources
        for planned in plan.baselines
    ]
    return trained + fitted


def pieces_of(experiment: Experiment, text: str) -> Pieces | None:
    """What the text's source offers, kept until another text's are asked for."""
    if text not in experiment.pieces:
        close_pieces(experiment)
        planned = experiment.text(text)
        ask = getattr(planned.source, "pieces", None)
        request = request_for(planned, experiment.config, experiment.model, cache_dir())
        experiment.pieces[text] = None if ask is None else ask(request)
    return experiment.pieces[text]


def close_pieces(experiment: Experiment) -> None:
    """Let go of what the last text's pieces are made with."""
    for pieces in experiment.pieces.values():
        getattr(pieces, "close", lambda: None)()
    experiment.pieces.clear()


def evaluator_units(experiment: Experiment, *, apart: bool) -> list[Unit]:
    """All evaluators in one unit, which share the passes of the model; or `apart`, each after those that it reads."""
    evaluators = experiment.plan.evaluators
    names = [planned.name for planned in evaluators]
    if not names:
        return []
    if not apart:
        return [Evaluate(tuple(names))]
    return [
        Evaluate((one.name,), after=tuple(f"results/{name}" for name in one.read_among(names)))
        for one in evaluators
    ]
