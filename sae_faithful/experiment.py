"""A whole run: five steps that meet only in the run folder."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from sae_faithful import interruption
from sae_faithful.architectures import register_architectures
from sae_faithful.baselines import baseline_handle, fit_baselines
from sae_faithful.data import Text, prepare_texts, typicality_results
from sae_faithful.environment import environment
from sae_faithful.estimates import estimate
from sae_faithful.evaluation import evaluate, merge_features, read_rows, row_to_json
from sae_faithful.interfaces import EvalContext, ModelUnreadable, UsageError
from sae_faithful.language_model import LanguageModel
from sae_faithful.model_source import may_be_on_hub
from sae_faithful.monitors import evaluation_rows, watch_texts
from sae_faithful.plan import Plan, make_plan
from sae_faithful.plan_text import plan_text
from sae_faithful.progress import exactly, libraries_as_well
from sae_faithful.registry import load_plugins
from sae_faithful.report import write_report
from sae_faithful.run_folder import RunFolder, write_aside, write_json, write_text
from sae_faithful.sae_handle import SAEHandle
from sae_faithful.stand_ins import UnreadableModel
from sae_faithful.steps import (
    baseline_inputs,
    evaluation_inputs,
    steps_by_settings,
    training_inputs,
)
from sae_faithful.timings import REPORT, Timings, kept, timed
from sae_faithful.training import train_source
from sae_faithful.wandb_run import one_experiment

if TYPE_CHECKING:
    from pathlib import Path

    from transformer_lens.HookedTransformer import HookedRootModule

    from sae_faithful.config import ExperimentConfig
    from sae_faithful.plan import TextSettings
    from sae_faithful.registry import PluginManager
    from sae_faithful.run_folder import Step

log = logging.getLogger(__name__)

STOPS = ("data", "saes", "results")


def run(
    config: ExperimentConfig,
    *,
    output: Path | str | None = None,
    plugins: PluginManager | None = None,
    override_model: HookedRootModule | None = None,
    until: str = "results",
) -> RunFolder:
    """Do what `config` says and return the folder that holds it; finished steps are not done again.

    Args:
        config: what to do.
        output: the run folder; default: the config's `output_path`.
        plugins: default: every installed plugin.
        override_model: a model made in code, in place of `config.model_name`, as in SAELens's runners.
        until: stop after the step `data` or `saes`; default: all five.

    Raises:
        UsageError: the config asks for something impossible; nothing has been written.
        RunError: a source, an SAE or an evaluator fails; what was finished stays.
    """
    if until not in STOPS:
        raise UsageError(f"unknown step '{until}'; choices: {', '.join(STOPS)}")
    plugins = plugins or load_plugins()
    register_architectures(plugins)
    with interruption.recorded(), libraries_as_well():
        model = LanguageModel.from_config(config, config.hook_names, override_model)
        plan = make_plan(config, plugins, model)
        folder = RunFolder(output or config.output_path or "output")
        folder.check_settings(steps_by_settings(plan, model))
        _set_threads(config)
        with folder.locked():
            timings = _announce(plan, config, model, folder, until)
            with kept(timings), one_experiment():
                folder.clear_partial()
                _do(plan, config, model, folder, plugins, until)
        log.info("run: took %s", exactly(sum(timings.seconds.values())))
    return folder


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
        model = LanguageModel.from_config(config, config.hook_names, override_model)
        try:
            plan = make_plan(config, plugins, model)
        except ModelUnreadable as error:
            if not may_be_on_hub(model.name):
                raise
            model = UnreadableModel(
                name=model.name, class_name=model.class_name, hooks=model.hooks, reason=str(error)
            )
            plan = make_plan(config, plugins, model)
        folder = RunFolder(output or config.output_path or "output")
        folder.check_settings(steps_by_settings(plan, model))
        _set_threads(config)
        return plan_text(estimate(plan, config, model, folder, until), config, folder)


def _announce(
    plan: Plan, config: ExperimentConfig, model: LanguageModel, folder: RunFolder, until: str
) -> Timings:
    """Show the plan, where anybody listens: to measure takes seconds."""
    if not log.isEnabledFor(logging.INFO):
        return Timings(folder.timings_file)
    made = estimate(plan, config, model, folder, until)
    log.info("%s", plan_text(made, config, folder))
    return Timings(folder.timings_file, made.expected, made.facts)


def _do(
    plan: Plan,
    config: ExperimentConfig,
    model: LanguageModel,
    folder: RunFolder,
    plugins: PluginManager,
    until: str,
) -> None:
    """The five steps."""
    texts = prepare_texts(plan, config, model, folder)
    _write_record(config, plan, model, texts, folder)
    if until == "data":
        return
    measured = _train(plan, config, model, texts, folder)
    if until == "saes":
        return
    measured |= _fit_baselines(plan, config, model, texts, folder)
    _evaluate(plan, config, model, texts, measured, folder)
    with timed(REPORT):
        collect_results(plan, config, model, folder)
        write_report(folder)
        plugins.hook.publish(run_folder=folder.root)


def _train(
    plan: Plan, config: ExperimentConfig, model: LanguageModel, texts: dict[str, Text], folder: RunFolder
) -> dict[str, tuple[Step, SAEHandle]]:
    """Step 2, and of step 3 a handle for every SAE on disk, by its path."""
    trained: dict[str, tuple[Step, SAEHandle]] = {}
    for source, dataset_path, inputs in training_inputs(plan, model):
        tokens = texts[source].train if source in texts else None
        held_out = {name: text.held_out for name, text in texts.items()}
        watch = watch_texts(plan, config, model, held_out) if source in texts else None
        train_source(source, plan.saes, config, model, folder, inputs, tokens, dataset_path, watch)
        for sae in plan.saes:
            step = sae.step(source, inputs)
            handle = SAEHandle.from_disk(
                folder.root / step.path,
                source=source,
                hook=sae.hook,
                variant=sae.variant,
                seed=sae.seed,
                device=config.device,
            )
            trained[step.path] = (step, handle)
    return trained


def _fit_baselines(
    plan: Plan, config: ExperimentConfig, model: LanguageModel, texts: dict[str, Text], folder: RunFolder
) -> dict[str, tuple[Step, SAEHandle]]:
    """The rest of step 3: a handle for every baseline, by its path."""
    fitted: dict[str, tuple[Step, SAEHandle]] = {}
    for text in plan.sources if plan.baselines else ():
        train = texts[text.name].train
        assert train is not None  # it is a source
        inputs = baseline_inputs(text, model)
        fit_baselines(text.name, plan.baselines, config, model, folder, inputs, train, text.plugin)
        for planned in plan.baselines:
            step = planned.step(text.name, inputs)
            fitted[step.path] = (step, baseline_handle(planned, text.name, folder, str(config.device)))
    return fitted


def _evaluate(
    plan: Plan,
    config: ExperimentConfig,
    model: LanguageModel,
    texts: dict[str, Text],
    measured: dict[str, tuple[Step, SAEHandle]],
    folder: RunFolder,
) -> None:
    """Step 4."""
    context = EvalContext(
        handles=[handle for _, handle in measured.values()],
        held_out={name: text.held_out for name, text in texts.items()},
        sources=[text.name for text in plan.sources],
        language_model=model,
        seed=config.seed,
    )
    inputs = evaluation_inputs(plan, model)
    evaluate(plan.evaluators, context, folder, inputs, evaluation_rows(config), config.seqpos_slice)


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


def _set_threads(config: ExperimentConfig) -> None:
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)


def _write_record(
    config: ExperimentConfig, plan: Plan, model: LanguageModel, texts: dict[str, Text], folder: RunFolder
) -> None:
    """The resolved config, which gives the same data anywhere, and what the run was made with."""
    import torch

    resolved = config.to_dict()
    resolved["threads"] = torch.get_num_threads()
    # Where things go is not what they are; and SAELens puts a random id into the former.
    del resolved["checkpoint_path"], resolved["output_path"]
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
        "summary": _summary(config),
        "sources": [text.name for text in plan.sources],
        "own_text": [text.name for text in plan.sources if texts[text.name].card["made"].get("own_text")],
        "datasets": [text.name for text in plan.texts if not text.trained_on],
        "baselines": baselines,
        "evaluators": [planned.name for planned in plan.evaluators],
    }
    write_json(folder.manifest_file, manifest)


def _summary(config: ExperimentConfig) -> str:
    """What was trained, in a sentence."""
    sae = config.sae.to_dict()
    return (
        f"{sae['architecture']}, {sae['d_sae']:,} latents; hooks {', '.join(config.hook_names)}; variants "
        f"{', '.join(config.variants)}; seeds {', '.join(map(str, config.sae_seeds))}; "
        f"{config.training_tokens:,} training tokens each, context {config.context_size}"
    )
