"""Operations on tensors, one a file. Importing this package imports no torch; each name loads it on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_faithful.ops.assignment import Matching, match_features
    from sae_faithful.ops.nearest import nearest_cosines

_HOMES = {"Matching": "assignment", "match_features": "assignment", "nearest_cosines": "nearest"}

__all__ = ["Matching", "match_features", "nearest_cosines"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sae_faithful.ops' has no attribute '{name}'")
    return getattr(import_module(f"sae_faithful.ops.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
