"""Operations on tensors, one a file. Importing this package imports no torch; each name loads it on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_faithful.ops.assignment import Matching, match_features
    from sae_faithful.ops.decode import decode_entries, sparse_decode
    from sae_faithful.ops.encode import sparse_encode
    from sae_faithful.ops.entries import Entries
    from sae_faithful.ops.nearest import nearest_cosines
    from sae_faithful.ops.outer import sparse_outer
    from sae_faithful.ops.topk import two_stage_topk

# Files are not called as their functions are: a submodule, once imported, would hide the function.
_HOMES = {
    "Entries": "entries",
    "Matching": "assignment",
    "decode_entries": "decode",
    "match_features": "assignment",
    "nearest_cosines": "nearest",
    "sparse_decode": "decode",
    "sparse_encode": "encode",
    "sparse_outer": "outer",
    "two_stage_topk": "topk",
}

__all__ = [
    "Entries",
    "Matching",
    "decode_entries",
    "match_features",
    "nearest_cosines",
    "sparse_decode",
    "sparse_encode",
    "sparse_outer",
    "two_stage_topk",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sae_faithful.ops' has no attribute '{name}'")
    return getattr(import_module(f"sae_faithful.ops.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
