"""Measuring SAEs that exist already: any that SAELens can load."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_faithful import interruption
from sae_faithful.architectures import register_architectures
from sae_faithful.data import doubtful_texts, prepare_texts
from sae_faithful.environment import environment
from sae_faithful.evaluation import evaluate
from sae_faithful.experiment import collect_results
from sae_faithful.interfaces import EvalContext, UsageError
from sae_faithful.language_model import LanguageModel
from sae_faithful.plan import Plan, plan_evaluators, plan_text, source_from_spec
from sae_faithful.progress import libraries_as_well
from sae_faithful.registry import load_plugins
from sae_faithful.report import write_report
from sae_faithful.run_folder import RunFolder, write_json
from sae_faithful.sae_handle import SAEHandle
from sae_faithful.stored import reason_of
from sae_faithful.trust import check_context_size, check_strangers_sae, weights_only

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformer_lens.HookedTransformer import HookedRootModule

    from sae_faithful.registry import PluginManager

DEFAULT_TOKENS = 20_000


@dataclass(frozen=True)
class MeasuredOn:
    """What the SAEs' own metadata say about how their activations are made (a `TextSettings`)."""

    model_name: str
    model_class_name: str
    context_size: int
    prepend_bos: bool
    seed: int
    typicality_tokens: int


@libraries_as_well()
def evaluate_saes(
    saes: Sequence[str],
    sources: Mapping[str, Mapping[str, Any]],
    evaluators: Sequence[Any],
    output: Path | str,
    *,
    seed: int = 0,
    typicality_tokens: int = DEFAULT_TOKENS,
    context_size: int | None = None,
    batch_rows: int = 16,
    device: str = "cpu",
    plugins: PluginManager | None = None,
    override_model: HookedRootModule | None = None,
) -> RunFolder:
    """Measure SAEs without training any; returns the folder with the results.

    Model, hook, BOS and context come from the SAEs' metadata. The first text counts as in-distribution for
    every SAE: what it really was trained on may not be at hand. SAEs at one hook, of one size and trained on
    one dataset count as seeds of each other, in the order given.

    Args:
        saes: folders that SAELens wrote, or `RELEASE/SAE_ID` of SAELens's directory.
        sources: texts by name, each `{plugin: NAME, option: value}`.
        evaluators: names, or `{name: options}`.
        output: the run folder.
        seed: of texts and measurements.
        typicality_tokens: at most so many tokens of each text are scored for its typicality gap.
        context_size: tokens a row; default: the metadata's.
        batch_rows: rows of text at once.
        device: of model and SAEs.
        plugins: default: every installed plugin.
        override_model: a model made in code, in place of the metadata's.

    Raises:
        UsageError: an SAE that cannot be loaded or measured, SAEs of different models, unknown names.
        RunError: a source or an evaluator fails.
    """
    plugins = plugins or load_plugins()
    register_architectures(plugins)
    if not saes or not sources or not evaluators:
        raise UsageError("evaluate needs at least one --sae, one --source and one --evaluator")
    check_context_size(context_size, "--context-size")
    loaded = [load_sae(name, device) for name in saes]
    settings, model = _settings(saes, loaded, seed, typicality_tokens, context_size, device, override_model)
    texts = [
        plan_text(
            settings, f"datasets.{name}", spec, source, getattr(source, "n_tokens", None) or DEFAULT_TOKENS
        )
        for name, spec in sources.items()
        for source in [source_from_spec(plugins, f"--source {name}", spec)]
    ]
    plan = Plan(
        texts=texts,
        saes=[],
        evaluators=plan_evaluators(evaluators, seed, plugins),
        monitors=[],
        stock_dataset=None,
    )
    reference = next(iter(sources))
    folder = RunFolder(output)
    inputs = {
        "model": model.identity,
        "saes": list(saes),
        "data": {text.name: text.step(model.identity).hash for text in texts},
    }
    steps = [*(text.step(model.identity) for text in texts), *(one.step(inputs) for one in plan.evaluators)]
    folder.check_settings(steps)
    with folder.locked(), interruption.recorded():
        folder.clear_partial()
        prepared = prepare_texts(plan, settings, model, folder)
        context = EvalContext(
            handles=_handles(loaded, reference),
            held_out={name: text.held_out for name, text in prepared.items()},
            sources=[reference],
            language_model=model,
            seed=seed,
        )
        write_json(folder.config_file, {**asdict(settings), "saes": list(saes), "sources": dict(sources)})
        manifest = {
            **environment(model),
            "summary": f"not trained here: {', '.join(saes)}; '{reference}' counted as in-distribution",
            "sources": [reference],
            "not_its_own": doubtful_texts(prepared, None),
            "datasets": [name for name in sources if name != reference],
            "evaluators": [planned.name for planned in plan.evaluators],
        }
        write_json(folder.manifest_file, manifest)
        evaluate(plan.evaluators, context, folder, inputs, batch_rows)
        collect_results(plan, settings, model, folder)
        write_report(folder)
        plugins.hook.publish(run_folder=folder.root)
    return folder


def load_sae(name: str, device: str) -> Any:
    """An SAELens SAE from a folder, or from SAELens's directory of releases.

    Raises:
        UsageError: it is in neither, or is no SAE (transcoders map one hook to another).
    """
    from sae_lens import SAE

    release, _, sae_id = name.partition("/")
    try:
        with weights_only():
            sae = (
                SAE.load_from_disk(Path(name).expanduser(), device=device)
                if Path(name).expanduser().is_dir()
                else SAE.from_pretrained(release, sae_id, device=device)
            )
    # SAELens takes the file as it is, and may fail anywhere in it.
    except Exception as error:
        reason = reason_of(error)
        raise UsageError(f"--sae '{name}' is no folder of an SAE and no RELEASE/SAE_ID: {reason}") from error
    check_strangers_sae(name, sae.cfg.metadata)
    if "transcoder" in sae.cfg.architecture():
        raise UsageError(f"--sae '{name}' is a {sae.cfg.architecture()}; only autoencoders can be measured")
    return sae


def _settings(
    names: Sequence[str], saes: Sequence[Any], seed: int, typicality_tokens: int, context_size: int | None,
    device: str, override_model: HookedRootModule | None,
) -> tuple[MeasuredOn, LanguageModel]:  # fmt: skip
    """What the SAEs agree on, checked against the model."""
    first = saes[0].cfg.metadata
    for name, sae in zip(names, saes, strict=True):
        for field in ("model_name", "model_class_name", "prepend_bos", "hook_head_index", "random_init_seed"):
            mine, theirs = getattr(sae.cfg.metadata, field), getattr(first, field)
            if mine != theirs:
                raise UsageError(
                    f"--sae '{name}' has {field} {mine}, but '{names[0]}' has {theirs}; run them apart"
                )
        if sae.cfg.metadata.hook_name is None or sae.cfg.metadata.model_name is None:
            raise UsageError(f"--sae '{name}' does not say which model and hook it is for")
    context_size = first.context_size if context_size is None else context_size
    if context_size is None:
        raise UsageError(f"--sae '{names[0]}' does not say its context size; give --context-size")
    model = LanguageModel(
        name=first.model_name,
        class_name=first.model_class_name or "HookedTransformer",
        hooks=tuple(dict.fromkeys(sae.cfg.metadata.hook_name for sae in saes)),
        hook_head_index=first.hook_head_index,
        device=device,
        from_pretrained_kwargs=dict(first.model_from_pretrained_kwargs or {}),
        given=override_model,
        random_init_seed=first.random_init_seed,
    )
    for name, sae in zip(names, saes, strict=True):
        size = model.hook_size(sae.cfg.metadata.hook_name)
        if size is not None and size != sae.cfg.d_in:
            raise UsageError(f"--sae '{name}' takes {sae.cfg.d_in} activations, but its hook gives {size}")
    if model.context_limit is not None and context_size > model.context_limit:
        raise UsageError(
            f"context size {context_size} is longer than the {model.context_limit} tokens {model.name} takes"
        )
    prepend_bos = True if first.prepend_bos is None else bool(first.prepend_bos)
    settings = MeasuredOn(
        model.name, model.class_name, int(context_size), prepend_bos, seed, typicality_tokens
    )
    return settings, model


def _handles(saes: Sequence[Any], reference: str) -> list[SAEHandle]:
    """Handles whose variant says size and training text, and whose seed counts SAEs that agree on them."""
    counts: dict[tuple[str, str], int] = {}
    handles: list[SAEHandle] = []
    for sae in saes:
        hook = str(sae.cfg.metadata.hook_name)
        trained_on = str(sae.cfg.metadata.dataset_path or "unknown").replace("/", "--")
        variant = f"{sae.cfg.architecture()}-{sae.cfg.d_sae}-on-{trained_on}"
        seed = counts.get((hook, variant), 0)
        counts[hook, variant] = seed + 1
        handles.append(
            SAEHandle(
                source=reference,
                hook=hook,
                variant=variant,
                seed=seed,
                load=lambda sae=sae: sae,
                kind="pretrained",
            )
        )
    return handles
