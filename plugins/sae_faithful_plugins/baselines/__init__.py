"""Baselines `neurons`, `random`, `pca`, `ica`, `topk_pca`, `topk_ica` (Cunningham et al. 2023, arXiv 2309.08600)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_faithful import hookimpl
from sae_faithful_plugins.baselines.ica import ICA, TopKICA
from sae_faithful_plugins.baselines.pca import PCA, TopKPCA
from sae_faithful_plugins.baselines.unfitted import Neurons, RandomDirections

if TYPE_CHECKING:
    from collections.abc import Callable


@hookimpl
def register_baselines(register: Callable[[str, type], None]) -> None:
    register("neurons", Neurons)
    register("random", RandomDirections)
    register("pca", PCA)
    register("ica", ICA)
    register("topk_pca", TopKPCA)
    register("topk_ica", TopKICA)
