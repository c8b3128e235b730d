"""The config: SAELens's own, plus plugin names."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.saes.sae import TrainingSAEConfig

from sae_faithful.interfaces import UsageError
from sae_faithful.names import check_name
from sae_faithful.redaction import secret_in
from sae_faithful.registry import unknown
from sae_faithful.resources import Resources
from sae_faithful.trust import MOST_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_HOOK = LanguageModelSAERunnerConfig.hook_name
BASE_VARIANT = "base"
MOST_CHARACTERS, MOST_VALUES, MOST_LEVELS = 500_000, 50_000, 50
MOST_BRACKETS = 200
"""Of a config, which may come from anywhere."""
MOST_BITS = 63
"""Of a whole number: beyond it floats overflow, and NumPy and PyTorch have no such numbers."""
FUSED_ADAM_DEVICES = ("cpu", "cuda", "mps", "xpu")


@dataclass
class ExperimentConfig(LanguageModelSAERunnerConfig[Any]):
    """A SAELens config with plugin names in it.

    SAELens's fields keep their names, types and defaults (but `dataset_trust_remote_code`, which is off).
    Everything that can be said in a file is checked by `from_dict`; plugins and model by `sae_faithful.run`.

    Raises:
        UsageError: a name that cannot be a folder's, repeated seeds, hooks that contradict each other,
            too few `baseline_tokens` or `saes_at_once`, `fused_adam` on a device without it.
    """

    dataset_trust_remote_code: bool = False

    sources: dict[str, Any] = field(default_factory=dict[str, Any])
    """Texts to train on, each alone: `NAME: {plugin: PLUGIN, option: value, ...}`, or `NAME: PLUGIN`. All
    give equally many tokens."""
    datasets: dict[str, Any] = field(default_factory=dict[str, Any])
    """Texts to measure on and never train on; same syntax."""
    sae_seeds: list[int] = field(default_factory=list[int])
    """Seeds of the SAEs' initialisations, trained together on identical batches; default: [`seed`]."""
    hook_names: list[str] = field(default_factory=list[str])
    """Several hooks, read in one pass of the model; default: [`hook_name`]."""
    variants: dict[str, Any] = field(default_factory=dict[str, Any])
    """Named overrides of `sae`'s fields, trained in the same pass; default: `base: {}`."""
    evaluators: list[Any] = field(default_factory=list[Any])
    """What to measure: plugin names, or `{NAME: {option: value, ...}}`."""
    baselines: list[Any] = field(default_factory=list[Any])
    """Directions to measure beside the SAEs, fitted for each source and hook: plugin names, or
    `{NAME: {option: value, ...}}`; another name than the plugin's takes `plugin: PLUGIN` among the options."""
    baseline_tokens: int = 50_000
    """Baselines are fitted to the activations at so many tokens of a source's training part."""
    monitors: list[Any] = field(default_factory=list[Any])
    """Evaluators to run on small budgets inside training, at SAELens's eval cadence; same syntax."""
    monitor_tokens: int = 512
    """At most so many held-out tokens of each source and dataset are shown to monitors."""
    model_init: Literal["pretrained", "random"] = "pretrained"
    """`random` draws the model's weights anew under `seed`: a control that knows nothing (Heap et al. 2025)."""
    typicality_tokens: int = 200_000
    """At most so many tokens of each source and dataset are scored for its typicality gap."""
    typicality_limit: float | None = 0.05
    """A source that claims to be the model's own text, with a typicality gap certainly beyond ± so many nats/token,
    stops the run; its data is kept. `null`: never."""

    exact_resume: bool = True
    """Whether a training that goes on from a checkpoint reads all used texts again, so that its SAEs are those of an
    undisturbed one; without, SAELens's cheaper way, and `resumed.json` beside the SAEs says so."""
    saes_at_once: int | None = None
    """At most so many SAEs of a source are trained in one pass of the model; default: as many as fit into memory. The
    others follow, on identical data: weights do not depend on it."""
    threads: int | None = None
    """PyTorch's CPU threads; default: PyTorch's own choice. Results are bit-identical at equal thread counts."""
    ray: dict[str, Any] = field(default_factory=dict[str, Any])
    """What each worker is given where the work is placed on a Ray cluster: `workers`, `cpus_per_worker`,
    `gpus_per_worker`, `max_retries`. Results do not depend on it."""
    fused_adam: bool = False
    """PyTorch's fused Adam kernel: one pass over the parameters in place of several; differs in rounding."""

    def __post_init__(self) -> None:
        if self.context_size > MOST_CONTEXT:
            raise UsageError(f"context_size {self.context_size:,} is above {MOST_CONTEXT:,} tokens")
        super().__post_init__()
        self.sae_seeds = list(self.sae_seeds) or [self.seed]
        if len(set(self.sae_seeds)) < len(self.sae_seeds):
            raise UsageError(f"sae_seeds {self.sae_seeds} has duplicate seeds; each SAE needs its own")
        if self.hook_names and self.hook_name not in (DEFAULT_HOOK, *self.hook_names):
            raise UsageError(f"hook_name '{self.hook_name}' is not among hook_names {self.hook_names}")
        self.hook_names = list(dict.fromkeys(self.hook_names)) or [self.hook_name]
        self.hook_name = self.hook_names[0]
        self.variants = dict(self.variants) or {BASE_VARIANT: {}}
        if self.baseline_tokens < 2:
            raise UsageError(f"baseline_tokens {self.baseline_tokens}: nothing can be fitted to fewer than 2")
        check_resources(self.ray)
        if self.typicality_limit is not None and not self.typicality_limit > 0:
            raise UsageError(f"typicality_limit {self.typicality_limit} is not above 0; null stops no run")
        if self.saes_at_once is not None and self.saes_at_once < 1:
            raise UsageError(f"saes_at_once {self.saes_at_once} is not positive")
        if self.fused_adam and str(self.device).partition(":")[0] not in FUSED_ADAM_DEVICES:
            choices = ", ".join(FUSED_ADAM_DEVICES)
            raise UsageError(
                f"fused_adam: not for device '{self.device}'; devices with the kernel: {choices}"
            )
        self.sources = {name: _spec(f"sources.{name}", spec) for name, spec in self.sources.items()}
        self.datasets = {name: _spec(f"datasets.{name}", spec) for name, spec in self.datasets.items()}
        for name in [*self.sources, *self.datasets, *self.variants]:
            check_name(name)
        for hook in self.hook_names:
            check_name(hook, "hook")
        both = sorted(set(self.sources) & set(self.datasets))
        if both:
            raise UsageError(f"'{both[0]}' names both a source and a dataset")

    @classmethod
    def from_dict(cls, cfg_dict: dict[str, Any]) -> ExperimentConfig:
        """From a dict as in a config file, or as SAELens's `to_dict` writes it.

        Raises:
            UsageError: an unknown key, a value of the wrong type, an unknown architecture.
        """
        values = dict(cfg_dict)
        if "models" in values:
            raise UsageError(
                "models: is for the commands and sae_faithful.run_models, which do a run for each of them"
            )
        secret = secret_in(values)
        if secret is not None:
            raise UsageError(
                f"{secret} would be written into configs and W&B; log in with `hf auth login`, `wandb login` or an "
                "environment variable: it holds a secret, or an address with a name and password"
            )
        names = [entry.name for entry in dataclasses.fields(cls)]
        _refuse_unknown(values, names, "config field", "")
        if "sae" not in values:
            raise UsageError(
                "the config needs 'sae', for example sae: {architecture: topk, d_sae: 4096, k: 32}"
            )
        sae = values.pop("sae")
        logger = values.pop("logger", None)
        if not isinstance(logger, LoggingConfig):
            logger = _fields("logger", {} if logger is None else logger)
            hints = get_type_hints(LoggingConfig)
            _refuse_unknown(logger, list(hints), "field", "logger.")
            logger = LoggingConfig(**_coerce(logger, hints, "logger."))
        checked = _coerce(values, get_type_hints(cls), "")
        sae_config = (
            sae if isinstance(sae, TrainingSAEConfig) else sae_config_from_dict(_fields("sae", sae), checked)
        )
        try:
            config = cls(sae=sae_config, logger=logger, **checked)
        except UsageError:
            raise
        except ValueError as error:  # SAELens's own checks
            raise UsageError(str(error)) from None
        except (
            Exception
        ) as error:  # what it computes of values that it does not check: an empty seqpos_slice, say
            raise UsageError(f"SAELens cannot make a config of these values: {error}") from error
        # SAELens appends a random id on construction; what was written down is what is meant.
        if "checkpoint_path" in checked:
            config.checkpoint_path = checked["checkpoint_path"]
        return config

    @classmethod
    def from_file(cls, path: Path | str, overrides: Sequence[str] = ()) -> ExperimentConfig:
        """From a YAML or JSON file, with `key=value` overrides (dots reach into nested fields).

        Raises:
            UsageError: the file cannot be read or says something wrong; see `from_dict`.
        """
        return cls.from_dict(apply_overrides(read_config_file(path), overrides))

    def to_dict(self) -> dict[str, Any]:
        """As SAELens's, ready for JSON; `from_dict` reads it back."""
        # A round trip through JSON turns tuples into lists, as a file would.
        return json.loads(json.dumps(super().to_dict(), default=str))


def read_config_file(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML or JSON file (JSON is YAML)."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > MOST_CHARACTERS:
            raise UsageError(
                f"config file '{path}' has {len(text):,} characters; no config needs {MOST_CHARACTERS:,}"
            )
        if (depth := _depth_of_brackets(text)) > MOST_BRACKETS:
            raise UsageError(
                f"config file '{path}' nests brackets {depth:,} deep; no config needs {MOST_BRACKETS}"
            )
        content = _parsed(text)
    except FileNotFoundError:
        raise UsageError(f"config file '{path}' does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"config file '{path}' cannot be read: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"config file '{path}' is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"config file '{path}' holds {type(content).__name__}, not a mapping of fields")
    _check_size(content, f"config file '{path}'")
    return content


def _parsed(text: str) -> Any:
    """YAML. What is JSON as well is read as JSON, a hundred times faster."""
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return yaml.safe_load(text)


def _depth_of_brackets(text: str) -> int:
    """An upper bound, since brackets in texts count: PyYAML takes seconds to give up on thousands of open ones."""
    steps = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[][{}]", text))
    return max(accumulate(steps), default=0)


def _check_size(content: Any, where: str) -> None:
    """Refuse what a few lines of YAML can become: aliases of aliases of aliases, one that holds itself, dates as keys.

    Raises:
        UsageError: too many values, too deep, or a whole number beyond 64 bits.
    """
    waiting, values = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        values += 1
        if values > MOST_VALUES or depth > MOST_LEVELS:
            what = f"{MOST_VALUES:,} values" if values > MOST_VALUES else f"{MOST_LEVELS} levels"
            raise UsageError(f"{where} holds more than {what}")
        if isinstance(value, dict):
            waiting += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
        elif isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise UsageError(
                f"{where} holds a whole number of {value.bit_length():,} bits; {MOST_BITS} are the most"
            )


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`content` with each `key=value` put in; values are read as YAML."""
    _check_size(content, "the config")
    result = json.loads(json.dumps(_with_text_keys(content), default=str))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UsageError(f"--set '{override}' is not KEY=VALUE, for example --set sae.k=16")
        *parents, last = key.split(".")
        target = result
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise UsageError(f"--set {key}: '{parent}' holds a single value, not fields")
        try:
            target[last] = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError):
            raise UsageError(f"--set {override}: '{text}' is not a YAML value") from None
        _check_size(target[last], f"--set {key}")
    return result


def _with_text_keys(value: Any) -> Any:
    """YAML has keys of any kind, a config names only."""
    if isinstance(value, dict):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    return [_with_text_keys(inner) for inner in value] if isinstance(value, list) else value


def named_options(text: str) -> tuple[str, dict[str, Any]]:
    """A name and its options as a command line gives them: `NAME` or `NAME={option: value}`.

    Raises:
        UsageError: what stands after `=` is no YAML mapping.
    """
    name, equals, options = text.partition("=")
    try:
        value = yaml.safe_load(options) if equals else {}
    except (yaml.YAMLError, RecursionError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise UsageError(f"'{text}' is not NAME or NAME={{option: value}}")
    _check_size(value, name)
    return name, _with_text_keys(value)


def check_resources(fields: Mapping[str, Any]) -> None:
    """UsageError for what a config's `ray` may not say."""
    hints = get_type_hints(Resources)
    _refuse_unknown(fields, list(hints), "field", "ray.")
    Resources(**_coerce(fields, hints, "ray."))


def sae_config_from_dict(sae: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """SAELens's training config for an architecture, every field known and of its type.

    `d_in` may be left out: the model at the config's hook says it.

    Raises:
        UsageError: unknown architecture or field, a value of the wrong type, a `k` that cannot be.
    """
    sae_class = training_config_class(sae.get("architecture"))
    hints = get_type_hints(sae_class)
    fields = {name: value for name, value in sae.items() if name != "architecture"}
    names = [entry.name for entry in dataclasses.fields(sae_class)]
    _refuse_unknown(fields, names, f"field of {sae['architecture']}", "sae.")
    metadata = fields.pop("metadata", None)
    checked = _coerce(fields, hints, "sae.")
    if checked.get("d_in") is None:
        checked["d_in"] = _d_in(config)
    if "d_sae" not in checked:
        raise UsageError("sae needs 'd_sae', the number of latents")
    defaults = {entry.name: entry.default for entry in dataclasses.fields(sae_class)}
    k = checked.get("k", defaults.get("k", 1))
    if not 0 < k <= checked["d_sae"]:
        raise UsageError(
            f"sae.k is {k}: of {checked['d_sae']} latents at least one and at most all are active"
        )
    try:
        # `from_dict` restores the metadata that a config written by SAELens carries.
        extra = {} if metadata is None else {"metadata": metadata}
        return sae_class.from_dict({**checked, **extra, "architecture": sae["architecture"]})
    except (TypeError, ValueError) as error:
        raise UsageError(f"sae: {error}") from None


def training_config_class(architecture: object) -> Any:
    """The SAELens training config class of an architecture, ours registered first."""
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    from sae_faithful.architectures import register_architectures

    register_architectures()
    # A list or a mapping cannot be looked up at all.
    if not isinstance(architecture, str) or architecture not in SAE_TRAINING_CLASS_REGISTRY:
        raise UsageError(
            unknown("architecture", str(architecture), sorted(SAE_TRAINING_CLASS_REGISTRY), "installed")
        )
    return SAE_TRAINING_CLASS_REGISTRY[architecture][1]


def _d_in(config: Mapping[str, Any]) -> int:
    from sae_faithful.language_model import LanguageModel

    defaults = {entry.name: entry.default for entry in dataclasses.fields(LanguageModelSAERunnerConfig)}
    hooks = config.get("hook_names") or [config.get("hook_name", DEFAULT_HOOK)]
    model = LanguageModel(
        name=config.get("model_name", defaults["model_name"]),
        class_name=config.get("model_class_name", defaults["model_class_name"]),
        hook_head_index=config.get("hook_head_index"),
        from_pretrained_kwargs=config.get("model_from_pretrained_kwargs") or {},
    )
    size = model.hook_size(hooks[0])
    if size is None:
        raise UsageError(
            f"sae needs 'd_in': the size of '{hooks[0]}' cannot be told without the model's weights"
        )
    return size


def _fields(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where} = {value!r}: expected fields, {where}: {{name: value, ...}}")
    return value


def _spec(where: str, spec: Any) -> dict[str, Any]:
    if isinstance(spec, str):
        return {"plugin": spec}
    if not isinstance(spec, dict) or not isinstance(spec.get("plugin"), str):
        raise UsageError(f"{where} = {spec!r}: expected {{plugin: NAME, option: value, ...}}")
    return dict(spec)


def _refuse_unknown(values: Mapping[str, Any], names: Sequence[str], kind: str, prefix: str) -> None:
    for key in values:
        if key not in names:
            raise UsageError(unknown(kind, f"{prefix}{key}", [f"{prefix}{name}" for name in names]))


def _coerce(values: Mapping[str, Any], hints: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Each value as its field's type: PyYAML reads 3e-4 as a string, SAELens keeps whatever it is given."""
    checked: dict[str, Any] = {}
    for key, value in values.items():
        try:
            checked[key] = TypeAdapter(hints[key], config={"arbitrary_types_allowed": True}).validate_python(
                value
            )
        except ValidationError as error:
            messages = "; ".join(dict.fromkeys(entry["msg"] for entry in error.errors(include_url=False)))
            raise UsageError(f"{prefix}{key} = {value!r}: {messages}") from None
    return checked
