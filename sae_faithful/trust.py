"""What a model, an SAE or a checkpoint may bring into this process: weights and settings, and no code unless asked."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any
from unittest import mock

from sae_faithful.interfaces import UsageError
from sae_faithful.names import check_name

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from sae_faithful.config import ExperimentConfig

MOST_CONTEXT = 10_000_000
"""Tokens of a context; SAELens lists every position of it when a config is made."""
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Any other name transformers may take for a repository of kernels, which are code."""
STRANGERS_MODEL_OPTIONS: dict[str, type] = {
    "revision": str, "dtype": str, "torch_dtype": str, "attn_implementation": str, "center_writing_weights": bool,
    "center_unembed": bool, "fold_ln": bool, "fold_value_biases": bool, "n_ctx": int,
}  # fmt: skip
"""What the config of an SAE that somebody else trained may say of how its model is loaded. Others name folders to
write into, hosts to ask, or code to run."""
STRANGERS_FIELDS: dict[str, type] = {
    "model_name": str, "model_class_name": str, "hook_name": str, "context_size": int, "hook_head_index": int,
    "random_init_seed": int,
}  # fmt: skip
MOST_SEED = 2**63 - 1
"""The largest that a run draws, and that PyTorch takes on every device."""


@contextlib.contextmanager
def weights_only() -> Generator[None]:
    """In this block `torch.load` makes tensors and plain values, and calls nothing, whatever its caller asked for.

    SAELens leaves that to PyTorch's default, which an environment variable changes; TransformerLens turns it off for
    some models.
    """
    import torch

    load = torch.load

    def safely(*args: Any, **options: Any) -> Any:
        return load(*args, **{**options, "weights_only": True})

    with mock.patch.object(torch, "load", safely):
        yield


def trusts_code(kwargs: Mapping[str, Any]) -> bool:
    """Whether a model's loading options let the code of its repository run."""
    return bool(kwargs.get("trust_remote_code"))


@contextlib.contextmanager
def code_only_as(kwargs: Mapping[str, Any], repository: str) -> Generator[None]:
    """In this block code from a model's repository runs only if `kwargs` say so, whatever its caller asked for; nobody
    is asked. What runs of `repository`, also by TransformerLens's short name, is of the revision that they name.

    TransformerLens turns it on for some models, by name and by architecture; SAELens leaves a tokenizer's to a
    question at the terminal. Neither hands the revision on to tokenizers and skeletons.
    """
    from transformer_lens import loading_from_pretrained
    from transformers import dynamic_module_utils
    from transformers.models.auto import auto_factory, configuration_auto, tokenization_auto

    resolve, load_class = (
        dynamic_module_utils.resolve_trust_remote_code,
        dynamic_module_utils.get_class_from_dynamic_module,
    )
    trusted = trusts_code(kwargs)
    repositories = {repository}
    with contextlib.suppress(ValueError):
        repositories.add(loading_from_pretrained.get_official_model_name(repository))
    revision = kwargs.get("code_revision") or kwargs.get("revision")

    def decide(trust_remote_code: object = None, *args: Any, **options: Any) -> bool:
        del trust_remote_code
        try:
            return bool(resolve(trusted, *args, **options))
        except ValueError as error:
            raise UsageError(
                "it needs code from its own repository, which runs for model_name alone, and only with "
                "model_from_pretrained_kwargs: {trust_remote_code: true}"
            ) from error

    def load_pinned(class_reference: str, where: str, *args: Any, **options: Any) -> type:
        of = class_reference.split("--")[0] if "--" in class_reference else str(where)
        if revision is not None and of in repositories and options.get("code_revision") is None:
            options["code_revision"] = revision
        return load_class(class_reference, where, *args, **options)

    with contextlib.ExitStack() as patches:
        for module in (auto_factory, configuration_auto, tokenization_auto):
            patches.enter_context(mock.patch.object(module, "resolve_trust_remote_code", decide))
            patches.enter_context(mock.patch.object(module, "get_class_from_dynamic_module", load_pinned))
        # It would say aloud that code is on, and hand that on to model classes which do not resolve it.
        patches.enter_context(mock.patch.object(loading_from_pretrained, "NEED_REMOTE_CODE_MODELS", ()))
        yield


def weights_from(class_name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A model's loading options, which ask for safetensors and for no code where they do not say otherwise."""
    options = dict(kwargs)
    if class_name in ("AutoModelForCausalLM", "HookedTransformer"):
        options["trust_remote_code"] = trusts_code(kwargs)
    if class_name == "AutoModelForCausalLM" and "gguf_file" not in options:
        options.setdefault("use_safetensors", True)
    return options


def remote_code_of(config: ExperimentConfig) -> list[str]:
    """A line for each thing whose own code a run executes, or whose pickles it reads; empty where there is none."""
    kwargs = config.model_from_pretrained_kwargs or {}
    lines: list[str] = []
    if trusts_code(kwargs):
        lines.append(
            "REMOTE CODE: model_from_pretrained_kwargs.trust_remote_code is on: code from the repository of "
            f"{config.model_name} runs here with your rights"
        )
    if kwargs.get("use_safetensors") is False:
        lines.append(f"PICKLES: model_from_pretrained_kwargs.use_safetensors is off for {config.model_name}")
    if config.dataset_trust_remote_code:
        of = f" of {config.dataset_path}" if config.dataset_path else ""
        lines.append(
            f"REMOTE CODE: dataset_trust_remote_code is on: code from the repository{of} may run here"
        )
    return lines


def check_strangers_sae(name: str, metadata: Any) -> None:
    """Refuse what the config of a downloaded SAE should not ask for.

    Raises:
        UsageError: a hook that is no name, options for its model that could write, ask or run something, or values
            that nothing could be made of.
    """
    kwargs = metadata.model_from_pretrained_kwargs
    if kwargs is not None and not isinstance(kwargs, dict):
        raise UsageError(
            f"--sae '{name}': its model_from_pretrained_kwargs are {type(kwargs).__name__}, not fields"
        )
    for key, value in (kwargs or {}).items():
        if key not in STRANGERS_MODEL_OPTIONS:
            raise UsageError(
                f"--sae '{name}' wants its model loaded with {key} = {value!r}, which an SAE's file may not ask "
                f"for; it may say {', '.join(STRANGERS_MODEL_OPTIONS)}: take the rest out of its cfg.json"
            )
        _check_kind(name, key, value, STRANGERS_MODEL_OPTIONS[key])
        if key == "attn_implementation" and value not in (None, *ATTENTION):
            raise UsageError(
                f"--sae '{name}': its attn_implementation is {value!r}; choices: {', '.join(ATTENTION)}"
            )
    for key, kind in STRANGERS_FIELDS.items():
        _check_kind(name, key, getattr(metadata, key), kind)
    check_context_size((kwargs or {}).get("n_ctx"), f"--sae '{name}': its n_ctx")
    check_context_size(metadata.context_size, f"--sae '{name}': its context_size")
    if not 0 <= (metadata.random_init_seed or 0) <= MOST_SEED:
        raise UsageError(
            f"--sae '{name}': its random_init_seed is {metadata.random_init_seed}, not 0 to {MOST_SEED}"
        )
    if metadata.hook_name is not None:
        check_name(metadata.hook_name, f"--sae '{name}': its hook_name")


def check_context_size(size: int | None, what: str) -> None:
    """Refuse what no context can be long.

    Raises:
        UsageError: `size` is below 1 token or above `MOST_CONTEXT`; `what` names it in the message.
    """
    if size is not None and not 1 <= size <= MOST_CONTEXT:
        raise UsageError(f"{what} is {size}, not 1 to {MOST_CONTEXT:,} tokens")


def _check_kind(name: str, key: str, value: Any, kind: type) -> None:
    # True is an int to Python.
    if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        raise UsageError(f"--sae '{name}': its {key} is {value!r}, not {kind.__name__}")
