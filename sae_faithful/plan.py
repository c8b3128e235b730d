"""What a config asks for, resolved and checked before any weights load."""

from __future__ import annotations

import dataclasses
import difflib
import graphlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sae_faithful.interfaces import UsageError
from sae_faithful.names import check_name
from sae_faithful.registry import unknown
from sae_faithful.run_folder import Step, baseline_path, data_path, result_path, sae_path

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sae_faithful.config import ExperimentConfig
    from sae_faithful.interfaces import Baseline, Evaluator, Source
    from sae_faithful.language_model import LanguageModel
    from sae_faithful.registry import PluginManager

HELD_OUT = 0.1
"""Share of every source that nothing is trained on."""

NOT_IN_MULTI = ("compile_sae", "from_pretrained_path", "use_cached_activations")
"""SAELens fields that its multi-SAE runner lacks."""

OF_ACTIVATIONS = ("baseline_tokens", "seed", "seqpos_slice", "hook_head_index", "autocast_lm")
"""Fields that say what a baseline is fitted to, beside the text and the model."""

# Fields that cannot change the trained weights: where things go, what is shown, where it runs.
NOT_OF_TRAINING = {
    "sae", "logger", "sources", "datasets", "sae_seeds", "hook_name", "hook_names", "hook_eval", "variants",
    "evaluators", "typicality_tokens", "dataset_path", "dataset_trust_remote_code", "streaming",
    "is_dataset_tokenized", "use_chat_formatting", "device", "llm_device", "act_store_device",
    "prefetch_llm_batches", "n_eval_batches", "eval_batch_size_prompts", "n_checkpoints", "checkpoint_path",
    "save_final_checkpoint", "output_path", "resume_from_checkpoint", "verbose", "sae_lens_version",
    "sae_lens_training_version", "cached_activations_path", "prepend_bos", "sequence_separator_token",
    "disable_concat_sequences", "threads", "monitors", "monitor_tokens", "baselines", "baseline_tokens",
    "exact_resume", "ray", "typicality_limit", "saes_at_once",
}  # fmt: skip


class TextSettings(Protocol):
    """What of a config determines a text; an `ExperimentConfig` has it all."""

    @property
    def model_name(self) -> str: ...
    @property
    def model_class_name(self) -> str: ...
    @property
    def context_size(self) -> int: ...
    @property
    def prepend_bos(self) -> bool: ...
    @property
    def seed(self) -> int: ...
    @property
    def typicality_tokens(self) -> int: ...


@dataclass(frozen=True)
class PlannedText:
    """One source or dataset."""

    name: str
    plugin: str
    source: Source
    n_tokens: int
    """Tokens to load, in whole rows."""
    trained_on: bool
    settings: Mapping[str, Any]

    def step(self, model_identity: str) -> Step:
        """Step 1 for this text."""
        return Step(data_path(self.name), self.settings, {"model": model_identity})


@dataclass(frozen=True)
class PlannedSAE:
    """One SAE of a source."""

    hook: str
    variant: str
    seed: int
    config: Any
    """SAELens's training config, with this hook's `d_in`."""
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name within its source's runner, folder and W&B run."""
        return f"{self.hook}/{self.variant}/seed{self.seed}"

    def step(self, text: str, inputs: Mapping[str, Any]) -> Step:
        """Step 2 for this SAE on one source."""
        return Step(sae_path(text, self.hook, self.variant, self.seed), self.settings, inputs)


@dataclass(frozen=True)
class PlannedBaseline:
    """One fit of a baseline to a source's activations."""

    hook: str
    name: str
    """Takes the place of an SAE's variant."""
    plugin: str
    seed: int
    baseline: Baseline
    settings: Mapping[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """The plugin's name and every option, as a config may give them under the baseline's name."""
        return {"plugin": self.plugin, **_plain(self.baseline)}

    def step(self, text: str, inputs: Mapping[str, Any]) -> Step:
        """Step 3 for this baseline on one source."""
        return Step(baseline_path(text, self.hook, self.name, self.seed), self.settings, inputs)


@dataclass(frozen=True)
class PlannedEvaluator:
    """One evaluator with its options."""

    name: str
    evaluator: Evaluator
    settings: Mapping[str, Any]

    @property
    def reads(self) -> Sequence[str]:
        """Names of the evaluators whose columns it wants."""
        return tuple(getattr(self.evaluator, "reads", ()))

    def read_among(self, names: Collection[str]) -> list[str]:
        """The evaluators whose columns it is given where these are run: those it reads, those it may read."""
        may_read = [name for name in getattr(self.evaluator, "may_read", ()) if name in names]
        return list(dict.fromkeys([*self.reads, *may_read]))

    def step(self, inputs: Mapping[str, Any]) -> Step:
        """Step 4 for this evaluator."""
        return Step(result_path(self.name), self.settings, inputs)


@dataclass(frozen=True)
class Plan:
    """Everything a run will do."""

    texts: Sequence[PlannedText]
    """Sources first, then datasets."""
    saes: Sequence[PlannedSAE]
    """The same for every source."""
    evaluators: Sequence[PlannedEvaluator]
    monitors: Sequence[PlannedEvaluator]
    """Evaluators with the small budgets they have inside training."""
    stock_dataset: str | None
    """SAELens's own `dataset_path`, when no plugin gives the text."""
    baselines: Sequence[PlannedBaseline] = ()
    """The same for every source."""

    @property
    def sources(self) -> list[PlannedText]:
        """What is trained on."""
        return [text for text in self.texts if text.trained_on]


def make_plan(config: ExperimentConfig, plugins: PluginManager, model: LanguageModel) -> Plan:
    """Resolve every name in `config` and check it against the plugins and the model's shape.

    Raises:
        UsageError: what is wrong, with the value and the choices.
    """
    saes = _saes(config, model)
    specs = dict(config.sources)
    stock = None
    if specs and config.dataset_path not in ("", *specs):
        raise UsageError(
            f"dataset_path '{config.dataset_path}' and sources {', '.join(specs)} both say what to train on; "
            "leave one out"
        )
    if not specs:
        plugin = source_plugin_in_dataset_path(config.dataset_path, plugins)
        if plugin is not None:
            specs = {plugin: {"plugin": plugin}}
        elif config.dataset_path:
            stock = config.dataset_path
        else:
            raise UsageError(
                "the config names no text to train on; add sources: {faithful: {plugin: self_generated}}"
            )
    texts = _texts(config, specs, plugins)
    evaluators = plan_evaluators(config.evaluators, config.seed, plugins)
    monitors = plan_monitors(config.monitors, config.seed, plugins)
    baselines = plan_baselines(config, plugins)
    named = {"evaluators": evaluators, "monitors": monitors, "baselines": baselines}
    if stock is not None and any(named.values()):
        raise UsageError(
            f"{next(key for key, planned in named.items() if planned)} need text that this run splits into a "
            "training part and a held-out one; name it as a source: "
            f"sources: {{web: {{plugin: hub_dataset, path: {stock}}}}} in place of dataset_path"
        )
    _check_saelens_fields(config, n_saes=len(saes), packed=stock is None)
    _check_model(config, model)
    return Plan(
        texts=texts,
        saes=saes,
        evaluators=evaluators,
        monitors=monitors,
        stock_dataset=stock,
        baselines=baselines,
    )


def source_plugin_in_dataset_path(path: str, plugins: PluginManager) -> str | None:
    """The source plugin that a `dataset_path` names, or None where it is SAELens's to load.

    Raises:
        UsageError: it looks like a misspelt plugin name.
    """
    if not path or "/" in path:
        return None
    sources = list(plugins.registrations("source"))
    if path in sources:
        return path
    # Old hub datasets have names without "/" too ("imdb"): only a near miss is an error.
    near = difflib.get_close_matches(path, sources, n=1, cutoff=0.8)
    if near:
        raise UsageError(f"unknown source '{path}' in dataset_path (did you mean {near[0]}?)")
    return None


def _texts(config: ExperimentConfig, specs: Mapping[str, Any], plugins: PluginManager) -> list[PlannedText]:
    sources = {name: source_from_spec(plugins, f"sources.{name}", spec) for name, spec in specs.items()}
    datasets = {
        name: source_from_spec(plugins, f"datasets.{name}", spec) for name, spec in config.datasets.items()
    }
    asked = {name: getattr(source, "n_tokens", None) for name, source in sources.items()}
    amounts = {amount for amount in asked.values() if amount is not None}
    if len(amounts) > 1:
        listed = ", ".join(f"{name}: {amount}" for name, amount in asked.items() if amount is not None)
        raise UsageError(f"every source gives the same number of distinct tokens, but n_tokens is {listed}")
    n_tokens = next(iter(amounts), config.training_tokens)
    n_measured = math.ceil(n_tokens * HELD_OUT)
    planned = [
        plan_text(config, f"sources.{name}", specs[name], source, n_tokens)
        for name, source in sources.items()
    ]
    for name, dataset in datasets.items():
        amount = getattr(dataset, "n_tokens", None) or n_measured
        planned.append(plan_text(config, f"datasets.{name}", config.datasets[name], dataset, amount))
    return planned


def plan_text(
    config: TextSettings, key: str, spec: Mapping[str, Any], source: Source, n_tokens: int
) -> PlannedText:
    """One text, `key` being `sources.NAME` or `datasets.NAME`.

    Raises:
        UsageError: fewer tokens than one row.
    """
    if n_tokens < config.context_size:
        raise UsageError(
            f"{key}: n_tokens {n_tokens} are fewer than one row of context_size {config.context_size}"
        )
    left_out = {"n_tokens", *getattr(source, "where_it_runs", ())}
    settings = {
        f"{key}.plugin": spec["plugin"],
        **{f"{key}.{name}": value for name, value in _plain(source).items() if name not in left_out},
        f"{key}.n_tokens": n_tokens,
        "typicality_tokens": config.typicality_tokens,
        **_select(config, ("context_size", "prepend_bos", "seed", "model_name", "model_class_name")),
    }
    kind, _, name = key.partition(".")
    return PlannedText(name, spec["plugin"], source, n_tokens, kind == "sources", settings)


def plan_evaluators(entries: Sequence[Any], seed: int, plugins: PluginManager) -> list[PlannedEvaluator]:
    """Evaluators by name, or `{name: options}`.

    Raises:
        UsageError: unknown names or options, a name twice, or columns wanted of evaluators that are not there.
    """
    planned = [
        _planned_evaluator("evaluators", name, options, seed, plugins)
        for name, options in _named("evaluators", entries).items()
    ]
    in_reading_order(planned)
    return planned


def in_reading_order(evaluators: Sequence[PlannedEvaluator]) -> list[PlannedEvaluator]:
    """Each after those whose columns it reads, otherwise as they stand.

    Raises:
        UsageError: one reads an evaluator that is not there, or two wait for each other.
    """
    named = {planned.name: planned for planned in evaluators}
    for planned in evaluators:
        for name in planned.reads:
            if name not in named:
                raise UsageError(
                    f"evaluator '{planned.name}' reads columns of '{name}', which the config does not run; "
                    f"evaluators: {', '.join(named)}"
                )
    try:
        graph = {one.name: one.read_among(named) for one in evaluators}
        order = graphlib.TopologicalSorter(graph).static_order()
        return [named[name] for name in order]
    except graphlib.CycleError as error:
        raise UsageError(f"evaluators read each other's columns: {' -> '.join(error.args[1])}") from None


def plan_monitors(entries: Sequence[Any], seed: int, plugins: PluginManager) -> list[PlannedEvaluator]:
    """Evaluators with their class's `monitor_budget` and, over it, the options given here.

    Raises:
        UsageError: unknown names or options, a name twice, an evaluator that has no such budget.
    """
    budgets = {
        name: one.offered.monitor_budget
        for name, one in plugins.registrations("evaluator").items()
        if hasattr(one.offered, "monitor_budget")
    }
    planned: list[PlannedEvaluator] = []
    for name, options in _named("monitors", entries).items():
        if name not in budgets:
            raise UsageError(unknown("monitor", name, sorted(budgets), "evaluators that can watch training"))
        planned.append(_planned_evaluator("monitors", name, {**budgets[name], **options}, seed, plugins))
    return planned


def plan_baselines(config: ExperimentConfig, plugins: PluginManager) -> list[PlannedBaseline]:
    """A fit a hook and, for baselines that ask for it, a seed.

    Raises:
        UsageError: unknown names or options, a name twice, or one that cannot be a folder's or is a variant's.
    """
    planned: list[PlannedBaseline] = []
    for name, given in _named("baselines", config.baselines).items():
        options = dict(given)
        plugin = str(options.pop("plugin", name))
        if name in config.variants:
            raise UsageError(
                f"'{name}' names both a variant and a baseline; their rows could not be told apart"
            )
        check_name(name)
        baseline = plugins.create("baseline", plugin, options)
        settings = {
            f"baselines.{name}.plugin": plugin,
            **{f"baselines.{name}.{option}": value for option, value in _plain(baseline).items()},
            **_select(config, OF_ACTIVATIONS),
        }
        seeds = config.sae_seeds if getattr(baseline, "every_seed", False) else config.sae_seeds[:1]
        planned += [
            PlannedBaseline(hook, name, plugin, seed, baseline, settings)
            for hook in config.hook_names
            for seed in seeds
        ]
    return planned


def _named(key: str, entries: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Options by name from a list of names and `{NAME: {option: value}}`."""
    named: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if isinstance(entry, str):
            name, options = entry, {}
        elif isinstance(entry, dict) and len(entry) == 1:
            name, options = next(iter(entry.items()))
        else:
            raise UsageError(f"{key}: {entry!r} is neither a name nor {{NAME: {{option: value}}}}")
        if options is not None and not isinstance(options, dict):
            raise UsageError(f"{key}.{name}: {options!r} is not {{option: value}}")
        if name in named:
            raise UsageError(f"{key.removesuffix('s')} '{name}' is listed more than once")
        named[name] = options or {}
    return named


def _planned_evaluator(
    key: str, name: str, options: Mapping[str, Any], seed: int, plugins: PluginManager
) -> PlannedEvaluator:
    evaluator = plugins.create("evaluator", name, dict(options))
    settings = {f"{key}.{name}.{option}": value for option, value in _plain(evaluator).items()}
    return PlannedEvaluator(name, evaluator, {**settings, "seed": seed})


def _saes(config: ExperimentConfig, model: LanguageModel) -> list[PlannedSAE]:
    from sae_faithful.config import sae_config_from_dict

    base = config.sae.to_dict()
    common = {
        entry.name: _json(getattr(config, entry.name))
        for entry in dataclasses.fields(config)
        if entry.name not in NOT_OF_TRAINING
    }
    planned: list[PlannedSAE] = []
    for hook in config.hook_names:
        size = model.hook_size(hook)
        for variant, override in config.variants.items():
            if not isinstance(override, dict):
                raise UsageError(
                    f"variants.{variant} = {override!r}: expected fields of sae, {{d_sae: 4096}}"
                )
            merged = _merge(base, override)
            # With several hooks, each SAE takes its own hook's size; a size given in the config must fit.
            given = hook == config.hook_names[0] or "d_in" in override
            if size is not None and given and merged["d_in"] != size:
                raise UsageError(
                    f"sae.d_in is {merged['d_in']}, but {config.model_name} has {size} activations at '{hook}'"
                )
            merged["d_in"] = size or merged["d_in"]
            merged.pop("metadata", None)
            sae = sae_config_from_dict(merged, {})
            fields = {f"sae.{key}": value for key, value in _json(sae.to_dict()).items()}
            settings = {
                **common,
                **{k: v for k, v in fields.items() if k not in ("sae.metadata", "sae.device")},
            }
            planned += [
                PlannedSAE(hook, variant, seed, dataclasses.replace(sae), settings)
                for seed in config.sae_seeds
            ]
    return planned


def _merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `override`; another architecture keeps only the fields that both have."""
    from sae_faithful.config import training_config_class

    if override.get("architecture", base["architecture"]) == base["architecture"]:
        return {**base, **override}
    known = {entry.name for entry in dataclasses.fields(training_config_class(override["architecture"]))}
    return {**{key: value for key, value in base.items() if key in known}, **override}


def _check_saelens_fields(config: ExperimentConfig, *, n_saes: int, packed: bool) -> None:
    import torch

    for name in ("device", "llm_device"):
        device = getattr(config, name)
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            raise UsageError(f"{name} is '{device}', but PyTorch {torch.__version__} sees no such GPU here")
    buffer = config.n_batches_in_buffer * len(range(config.context_size)[slice(*config.seqpos_slice)])
    if buffer < config.train_batch_size_tokens:
        raise UsageError(
            f"the activation buffer holds n_batches_in_buffer × context_size = {buffer} tokens, fewer than "
            f"train_batch_size_tokens = {config.train_batch_size_tokens}; raise n_batches_in_buffer"
        )
    if n_saes > 1:
        for name in NOT_IN_MULTI:
            if getattr(config, name):
                raise UsageError(
                    f"{name} is set, but SAELens's multi-SAE runner lacks it; with {n_saes} SAEs "
                    "(hooks × variants × seeds) leave it out, or train one"
                )
    if packed:
        defaults = {entry.name: entry.default for entry in dataclasses.fields(type(config))}
        for name in ("sequence_separator_token", "disable_concat_sequences", "use_chat_formatting"):
            default = "bos" if name == "sequence_separator_token" else defaults[name]
            if getattr(config, name) != default:
                raise UsageError(
                    f"{name} is for text that SAELens tokenises; sources pack documents with BOS between"
                )
    if config.resume_from_checkpoint is not None:
        raise UsageError("resume_from_checkpoint: run the same command again; finished parts are kept")
    # `from_dict` refuses this too; a config may be made without it.
    if isinstance((config.model_from_pretrained_kwargs or {}).get("token"), str):
        raise UsageError(
            "model_from_pretrained_kwargs.token would be written into configs and W&B; log in with `hf auth login`"
        )


def _check_model(config: ExperimentConfig, model: LanguageModel) -> None:
    limit = model.context_limit
    if limit is not None and config.context_size > limit:
        raise UsageError(
            f"context_size {config.context_size} is longer than the {limit} tokens {model.name} takes"
        )


def source_from_spec(plugins: PluginManager, key: str, spec: Mapping[str, Any]) -> Source:
    """The source that `{plugin: NAME, option: value}` asks for.

    Raises:
        UsageError: unknown names or options; `key` says where.
    """
    options = {name: value for name, value in spec.items() if name != "plugin"}
    try:
        return plugins.create("source", spec["plugin"], options)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from None


def _plain(options: Any) -> dict[str, Any]:
    return _json(dataclasses.asdict(options))


def _select(config: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: _json(getattr(config, name)) for name in names}


def _json(value: Any) -> Any:
    """As it would come back from a JSON file, so that settings compare equal after a reload."""
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
