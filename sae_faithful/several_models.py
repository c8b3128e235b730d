"""One file for several models: what they share, and what each has in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_faithful.config import ExperimentConfig, apply_overrides, check_name, read_config_file
from sae_faithful.interfaces import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

KEY = "models"
SHARED = (KEY, "ray", "output_path")
"""What no model has for itself."""


def models_in_file(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, ExperimentConfig] | None:
    """A config for each of the file's `models`, by name; None for a file that has no such key.

    Raises:
        UsageError: as `ExperimentConfig.from_file`; what is wrong with one model's config names it.
    """
    content = apply_overrides(read_config_file(path), overrides)
    if KEY not in content:
        return None
    return configs_of_models(content)


def configs_of_models(content: Mapping[str, Any]) -> dict[str, ExperimentConfig]:
    """For each of `content[models]` the rest of `content` with that model's fields over it.

    Raises:
        UsageError: no model, a name that cannot be a folder's, fields that are none, what `from_dict` refuses.
    """
    models = content[KEY]
    if not isinstance(models, dict) or not models:
        raise UsageError(f"models = {models!r}: expected {{NAME: {{model_name: ..., field: value, ...}}}}")
    shared = {name: value for name, value in content.items() if name != KEY}
    configs: dict[str, ExperimentConfig] = {}
    for name, fields in models.items():
        check_name(name)
        if not isinstance(fields, dict):
            raise UsageError(f"models.{name} = {fields!r}: expected {{field: value, ...}}")
        for field in fields:
            if field in SHARED:
                raise UsageError(f"models.{name}.{field}: one for all models; give it beside models")
        try:
            configs[str(name)] = ExperimentConfig.from_dict(_merged(shared, _nested(fields)))
        except UsageError as error:
            raise type(error)(f"models.{name}: {error}") from None
    return configs


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`sae.d_in: 768` as `sae: {d_in: 768}`."""
    nested: dict[str, Any] = {}
    for key, value in fields.items():
        *parents, last = str(key).split(".")
        inner: dict[str, Any] = {last: value}
        for parent in reversed(parents):
            inner = {parent: inner}
        nested = _merged(nested, inner)
    return nested


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings field by field, anything else as `over` has it."""
    merged = dict(base)
    for key, value in over.items():
        there = merged.get(key)
        both = isinstance(there, dict) and isinstance(value, dict)
        merged[key] = _merged(there, value) if both else value  # pyright: ignore[reportArgumentType]
    return merged
