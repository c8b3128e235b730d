"""The drop-in runner: SAELens's own, which understands a source plugin's name as `dataset_path`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens import LanguageModelSAETrainingRunner

from sae_faithful.architectures import register_architectures
from sae_faithful.checkpoints import CheckpointedTraining
from sae_faithful.config import ExperimentConfig
from sae_faithful.data import load_tokens
from sae_faithful.interfaces import UsageError
from sae_faithful.language_model import LanguageModel
from sae_faithful.monitors import Monitors, watch_texts
from sae_faithful.optimizer import choose_adam
from sae_faithful.plan import make_plan, source_plugin_in_dataset_path
from sae_faithful.registry import load_plugins
from sae_faithful.saelens_output import bars_as_ours, misleading_warnings_silenced
from sae_faithful.saelens_wandb import logging_to
from sae_faithful.training import guard_against_nan, initialise, mark_random_init, run_seeded
from sae_faithful.trust import remote_code_of
from sae_faithful.wandb_run import open_wandb_run

if TYPE_CHECKING:
    from sae_lens.config import HfDataset, LanguageModelSAERunnerConfig
    from sae_lens.saes.sae import TrainingSAE
    from transformer_lens.HookedTransformer import HookedRootModule

    from sae_faithful.registry import PluginManager

log = logging.getLogger(__name__)


class PluginTrainingRunner(LanguageModelSAETrainingRunner):
    """`LanguageModelSAETrainingRunner(cfg)` for configs with plugin names in them; trains one SAE.

    `cfg.dataset_path` may be a source plugin's name (names without "/" only), whose options an
    `ExperimentConfig` may give in `sources`; the SAE trains on its training part. Everything else is
    SAELens's. The SAE's initialisation and the data order are each seeded with `cfg.seed` (an
    `ExperimentConfig`'s one `sae_seeds` entry seeds the former), so equal configs give equal weights.

    Raises:
        UsageError: the config asks for something impossible, or for several SAEs (`sae_faithful.run` does those).
        RunError: the source gives rows the model cannot take.
    """

    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig[Any],
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        override_sae: TrainingSAE[Any] | None = None,
        plugins: PluginManager | None = None,
    ) -> None:
        plugins = plugins or load_plugins()
        register_architectures(plugins)
        experiment = _as_experiment(cfg, plugins)
        for line in remote_code_of(experiment):
            log.warning("%s", line)
        model = LanguageModel.from_config(experiment, given=override_model)
        plan = make_plan(experiment, plugins, model)
        if len(plan.saes) > 1 or len(plan.sources) > 1:
            raise UsageError(
                f"PluginTrainingRunner trains one SAE; this config asks for {len(plan.saes)} on "
                f"{max(1, len(plan.sources))} sources: use sae_faithful.run"
            )
        planned = plan.saes[0]
        self._experiment = experiment
        self._monitors: Monitors | None = None
        if override_dataset is None and plan.sources:
            source = plan.sources[0]
            train, held_out = load_tokens(source, experiment, model).split()
            override_dataset = train.for_saelens()
            watch = watch_texts(plan, experiment, model, {source.name: held_out})
            self._monitors = Monitors(watch, source.name, {planned.name: planned})
        if override_sae is None and experiment.from_pretrained_path is None:
            override_sae = initialise([planned])[planned.name]
        with misleading_warnings_silenced():
            super().__init__(cfg, override_dataset, model.model, override_sae)
        mark_random_init(self.sae, model)
        check = guard_against_nan(self.sae, planned.name)
        choose_adam(self, fused=experiment.fused_adam)
        if not self.cfg.n_checkpoints and not self.cfg.save_final_checkpoint:
            # Interrupted, SAELens writes one all the same, without the weights.
            self.cfg.checkpoint_path = None
        # Its checkpoints are SAELens's own; what is wanted here is that a Ctrl-C is heard between steps, and that
        # nothing is saved after a loss that was not finite.
        CheckpointedTraining(self, None, check=check)

    def run(self) -> Any:
        """Train and save as SAELens does; returns the trained SAE."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(bars_as_ours("training"))
            if self.cfg.logger.log_to_wandb:
                run = open_wandb_run(self._experiment.to_dict(), job_type="train")
                stack.enter_context(
                    logging_to(run, self, name_of=lambda sae: run.artifact_name(sae.get_name()))
                )
            if self._monitors is not None:
                stack.enter_context(self._monitors.attached_to(self))
            sae = run_seeded(super(), self.cfg.seed)
        if self._monitors is None:
            return sae
        self._monitors.report_cost()
        if self.cfg.output_path is not None:
            self._monitors.write(Path(self.cfg.output_path) / "monitors")
        return sae


def _as_experiment(cfg: LanguageModelSAERunnerConfig[Any], plugins: PluginManager) -> ExperimentConfig:
    if isinstance(cfg, ExperimentConfig):
        # A source named both ways is one source.
        if cfg.dataset_path in cfg.sources or not cfg.sources:
            return cfg
        if source_plugin_in_dataset_path(cfg.dataset_path, plugins) is not None:
            raise UsageError(f"dataset_path '{cfg.dataset_path}' and sources name different texts")
        return cfg
    fields: dict[str, Any] = {
        entry.name: getattr(cfg, entry.name) for entry in dataclasses.fields(cfg) if entry.init
    }
    fields["verbose"] = False
    return ExperimentConfig(**fields)
