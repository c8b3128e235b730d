"""Handing the plugins' SAE architectures to SAELens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_faithful.interfaces import UsageError
from sae_faithful.registry import load_plugins

if TYPE_CHECKING:
    from sae_faithful.registry import PluginManager


def register_architectures(plugins: PluginManager | None = None) -> list[str]:
    """Register every plugin architecture with SAELens and return their names; calling it again is harmless.

    After this call the names work in plain SAELens configs and scripts.

    Raises:
        UsageError: a plugin's architecture has the name of one that SAELens or another package registered.
    """
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, register_sae_training_class

    registrations = (plugins or load_plugins()).registrations("architecture")
    for name, registration in registrations.items():
        sae_class, config_class = registration.offered()
        present = SAE_TRAINING_CLASS_REGISTRY.get(name)
        if present is None:
            register_sae_training_class(name, sae_class, config_class)
        elif present != (sae_class, config_class):
            raise UsageError(
                f"architecture '{name}' of {registration.distribution} is already registered with SAELens "
                f"by {present[0].__module__}"
            )
    return list(registrations)
