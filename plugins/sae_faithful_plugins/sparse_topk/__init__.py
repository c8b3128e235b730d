"""SAELens's TopK and BatchTopK with a training step that computes only with the active latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_faithful import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable


@hookimpl
def register_architectures(register: Callable[[str, Callable[[], tuple[Any, Any]], str], None]) -> None:
    """Offer `sparse_topk` and `sparse_batchtopk`."""
    register("sparse_topk", _topk, "SAELens's topk, trained several times faster")
    register("sparse_batchtopk", _batchtopk, "SAELens's batchtopk, trained several times faster")


def _topk() -> tuple[Any, Any]:
    from sae_faithful_plugins.sparse_topk.topk import SparseTopKTrainingSAE, SparseTopKTrainingSAEConfig

    return SparseTopKTrainingSAE, SparseTopKTrainingSAEConfig


def _batchtopk() -> tuple[Any, Any]:
    from sae_faithful_plugins.sparse_topk.batchtopk import (
        SparseBatchTopKTrainingSAE,
        SparseBatchTopKTrainingSAEConfig,
    )

    return SparseBatchTopKTrainingSAE, SparseBatchTopKTrainingSAEConfig
