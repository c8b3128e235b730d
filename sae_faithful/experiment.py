"""A whole run: five steps that meet only in the run folder."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sae_faithful import interruption
from sae_faithful.architectures import register_architectures
from sae_faithful.data import Text, doubtful_texts, refuse_what_is_not_its_own, typicality_results
from sae_faithful.environment import environment
from sae_faithful.estimates import estimate
from sae_faithful.evaluation import merge_features, read_rows, row_to_json
from sae_faithful.interfaces import ModelUnreadable, UsageError
from sae_faithful.language_model import LanguageModel
from sae_faithful.model_source import may_be_on_hub
from sae_faithful.placement import Here, Placement
from sae_faithful.plan_text import plan_text
from sae_faithful.progress import exactly, libraries_as_well
from sae_faithful.ray_placement import on_ray
from sae_faithful.registry import load_plugins
from sae_faithful.report import write_comparison, write_report
from sae_faithful.run_folder import RunFolder, write_aside, write_json, write_text
from sae_faithful.stand_ins import UnreadableModel
from sae_faithful.steps import training_inputs
from sae_faithful.timings import REPORT, begins, timed
from sae_faithful.training import resumed_inexactly
from sae_faithful.trust import remote_code_of
from sae_faithful.units import (
    Experiment,
    FitBaselines,
    MakeText,
    ScoreRandomTokens,
    TrainSource,
    evaluator_units,
)
from sae_faithful.wandb_run import group_of, one_experiment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from transformer_lens.HookedTransformer import HookedRootModule

    from sae_faithful.config import ExperimentConfig
    from sae_faithful.placement import Rounds
    from sae_faithful.plan import Plan, TextSettings
    from sae_faithful.registry import PluginManager

log = logging.getLogger(__name__)

STOPS = ("data", "saes", "results")


def run(
    config: ExperimentConfig,
    *,
    output: Path | str | None = None,
    plugins: PluginManager | None = None,
    override_model: HookedRootModule | None = None,
    until: str = "results",
    ray: str | None = None,
) -> RunFolder:
    """Do what `config` says and return the folder that holds it; finished steps are not done again.

    Args:
        config: what to do.
        output: the run folder; default: the config's `output_path`.
        plugins: default: every installed plugin.
        override_model: a model made in code, in place of `config.model_name`, as in SAELens's runners.
        until: stop after the step `data` or `saes`; default: all five.
        ray: place the work on a Ray cluster: its address, or `local` for this machine's cores. What comes out is the
            same. Workers know installed plugins and named models only.

    Raises:
        UsageError: the config asks for something impossible; nothing has been written.
        RunError: a source, an SAE or an evaluator fails; what was finished stays.
    """
    _check_stop(until)
    if ray is not None and not (plugins is None and override_model is None):
        raise UsageError("ray: workers find plugins and models by name; not with plugins or override_model")
    plugins = plugins or load_plugins()
    register_architectures(plugins)
    with interruption.recorded(), libraries_as_well():
        experiment = Experiment.planned(config, output, plugins, override_model)
        _do([experiment], until, ray)
    return experiment.folder


def run_models(
    configs: Mapping[str, ExperimentConfig],
    *,
    output: Path | str,
    until: str = "results",
    ray: str | None = None,
) -> dict[str, RunFolder]:
    """A run for each model, in a folder of its name below `output`, and one page with all of them side by side.

    All are checked before any weights load. With `ray` they share the workers; without, they come one after the other.

    Args:
        configs: what to do, by name; `several_models.models_in_file` reads them from one file.
        output: the folder of all runs.
        until: as for `run`.
        ray: as for `run`; what is reserved for workers is what the first config says.

    Raises:
        UsageError, RunError: as `run`.
    """
    _check_stop(until)
    plugins = load_plugins()
    register_architectures(plugins)
    root = Path(output).expanduser()
    with interruption.recorded(), libraries_as_well():
        experiments = {
            name: Experiment.planned(config, root / name, plugins) for name, config in configs.items()
        }
        _do(list(experiments.values()), until, ray)
    folders = {name: experiment.folder for name, experiment in experiments.items()}
    if until == "results" and len(folders) > 1:
        write_comparison(list(folders.values()), root / "comparison.html")
    return folders


def dry_run(
    config: ExperimentConfig,
    *,
    output: Path | str | None = None,
    plugins: PluginManager | None = None,
    override_model: HookedRootModule | None = None,
    until: str = "results",
) -> str:
    """The plan of `run` with the same arguments, as it is shown; nothing is done and nothing written.

    A model that has to be downloaded or converted is, into its cache, so that the machine's speed can be measured;
    where it cannot be had, the plan says so and everything else is checked.

    Raises:
        UsageError: as `run`.
    """
    plugins = plugins or load_plugins()
    register_architectures(plugins)
    with libraries_as_well():
        return _shown(_planned_as_far_as_can_be(config, output, plugins, override_model), until)


def dry_run_models(
    configs: Mapping[str, ExperimentConfig], *, output: Path | str, until: str = "results"
) -> str:
    """The plans of `run_models`, as `dry_run` shows each.

    Raises:
        UsageError: as `run_models`.
    """
    plugins = load_plugins()
    register_architectures(plugins)
    root = Path(output).expanduser()
    with libraries_as_well():
        planned = [
            _planned_as_far_as_can_be(config, root / name, plugins) for name, config in configs.items()
        ]
        return "\n\n".join(_shown(experiment, until) for experiment in planned)


def _planned_as_far_as_can_be(
    config: ExperimentConfig,
    output: Path | str | None,
    plugins: PluginManager,
    override_model: HookedRootModule | None = None,
) -> Experiment:
    """Planned, with a stand-in for a model that is not here and may be on the hub."""
    try:
        return Experiment.planned(config, output, plugins, override_model)
    except ModelUnreadable as error:
        model = LanguageModel.from_config(config, config.hook_names, override_model)
        if not may_be_on_hub(model.name):
            raise
        model = UnreadableModel(
            name=model.name, class_name=model.class_name, hooks=model.hooks, reason=str(error)
        )
        return Experiment.planned(config, output, plugins, model=model)


def _shown(experiment: Experiment, until: str) -> str:
    import torch

    config, folder, model = experiment.config, experiment.folder, experiment.model
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return plan_text(estimate(experiment.plan, config, model, folder, until), config, folder)


def _check_stop(until: str) -> None:
    if until not in STOPS:
        raise UsageError(f"unknown step '{until}'; choices: {', '.join(STOPS)}")


def _do(experiments: Sequence[Experiment], until: str, ray: str | None) -> None:
    """All steps of all runs, on the workers of a Ray cluster or here."""
    import torch

    begun, threads = time.monotonic(), torch.get_num_threads()
    for experiment in experiments:
        experiment.threads = experiment.config.threads or threads
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_experiment())
        placement: Placement = Here()
        if ray is not None:
            placement = stack.enter_context(on_ray(ray, experiments))
        # Closed one by one, so that every folder's lock is given up whatever happened.
        runs = [
            (one, stack.enter_context(contextlib.closing(_rounds(one, until, placement))))
            for one in experiments
        ]
        placement.do(runs)
    log.info("run: took %s", exactly(time.monotonic() - begun))


def _rounds(experiment: Experiment, until: str, placement: Placement) -> Rounds:
    """The five steps."""
    plan, config, model, folder = experiment.plan, experiment.config, experiment.model, experiment.folder
    experiment.set_threads()
    with folder.locked():
        _announce(experiment, until, here=not placement.apart)
        folder.clear_partial()
        # What they measured is written when a training is over, which is late to refuse it.
        folder.check_inside(folder.monitors_dir)
        yield [*(MakeText(text.name) for text in plan.texts), *([ScoreRandomTokens()] if plan.texts else [])]
        experiment.set_threads()  # another run may have set others
        texts = experiment.texts()
        _write_record(config, plan, model, texts, folder, placement.facts())
        for text in texts.values():  # those too that were there before, which no worker is asked for
            refuse_what_is_not_its_own(text, config.typicality_limit)
        if until == "data":
            return
        saes = [TrainSource(source) for source, _, _ in training_inputs(plan, model)]
        if until == "saes":
            yield saes
            return
        yield [*saes, *(FitBaselines(text.name) for text in plan.sources if plan.baselines)]
        yield evaluator_units(experiment, apart=placement.apart)
        begins(REPORT)
        with timed(REPORT):
            collect_results(plan, config, model, folder)
            write_report(folder)
            experiment.plugins.hook.publish(run_folder=folder.root)


def _announce(experiment: Experiment, until: str, *, here: bool) -> None:
    """Show the plan, where anybody listens: to measure takes seconds, and says nothing of other machines."""
    if not log.isEnabledFor(logging.INFO):
        return
    config, folder = experiment.config, experiment.folder
    reason = None if here else "times: the work is done by workers, whose speed is not measured"
    made = estimate(experiment.plan, config, experiment.model, folder, until, unmeasured=reason)
    log.info("%s", plan_text(made, config, folder))
    timings = experiment.timings
    timings.expected, timings.facts = made.expected, made.facts
    timings.memory, timings.more_memory = made.memory, made.more_memory


def collect_results(plan: Plan, config: TextSettings, model: LanguageModel, folder: RunFolder) -> None:
    """Step 5: every evaluator's rows and columns in one file each."""
    lines = [row_to_json(row) + "\n" for row in typicality_results(plan, config, model, folder)]
    results = {planned.name: folder.result_dir(planned.name) for planned in plan.evaluators}
    for path in results.values():
        lines += [json.dumps(row, ensure_ascii=False) + "\n" for row in read_rows(path)]
    write_text(folder.results_file, "".join(lines))
    features = merge_features(results)
    if features is None:
        folder.features_file.unlink(missing_ok=True)
    else:
        write_aside(folder.features_file, lambda path: features.to_parquet(path, index=False))


def _write_record(
    config: ExperimentConfig, plan: Plan, model: LanguageModel, texts: dict[str, Text], folder: RunFolder,
    machine: Mapping[str, Any],
) -> None:  # fmt: skip
    """The resolved config, which gives the same data anywhere, and what the run was made with."""
    import torch

    resolved = config.to_dict()
    resolved["threads"] = torch.get_num_threads()
    # Where things go is not what they are; and SAELens puts a random id into the former.
    del resolved["checkpoint_path"], resolved["output_path"], resolved["ray"]
    for planned in plan.texts:
        kind = "sources" if planned.trained_on else "datasets"
        card = texts[planned.name].card
        spec = {"plugin": planned.plugin, **card["options"], **card["made"].get("resolved_options", {})}
        resolved[kind][planned.name] = spec
    baselines = {planned.name: planned.options for planned in plan.baselines}
    resolved["baselines"] = [{name: options} for name, options in baselines.items()]
    write_json(folder.config_file, resolved)
    manifest = {
        **environment(model),
        **machine,
        "remote_code": remote_code_of(config),
        "resumed_inexactly": resumed_inexactly(folder),
        "summary": _summary(config),
        "sources": [text.name for text in plan.sources],
        "own_text": [text.name for text in plan.sources if texts[text.name].card["made"].get("own_text")],
        "not_its_own": doubtful_texts(texts, config.typicality_limit),
        "datasets": [text.name for text in plan.texts if not text.trained_on],
        "baselines": baselines,
        "evaluators": [planned.name for planned in plan.evaluators],
    }
    write_json(folder.manifest_file, manifest)
    if config.logger.log_to_wandb:
        # One name for the runs of all sources, which may start at the same time.
        group_of(folder.root)


def _summary(config: ExperimentConfig) -> str:
    """What was trained, in a sentence."""
    sae = config.sae.to_dict()
    return (
        f"{sae['architecture']}, {sae['d_sae']:,} latents; hooks {', '.join(config.hook_names)}; variants "
        f"{', '.join(config.variants)}; seeds {', '.join(map(str, config.sae_seeds))}; "
        f"{config.training_tokens:,} training tokens each, context {config.context_size}"
    )
