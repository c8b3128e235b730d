"""`sparse_batchtopk`: as many latents over the whole batch as `sparse_topk` has row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

from sae_faithful.ops import Entries, two_stage_topk
from sae_faithful_plugins.sparse_topk.topk import SparseTopKTrainingSAE

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass
class SparseBatchTopKTrainingSAEConfig(BatchTopKTrainingSAEConfig):
    """SAELens's options for `batchtopk`. `use_sparse_activations` changes nothing: training is sparse anyway."""

    @classmethod
    def architecture(cls) -> str:
        """The name in a config's `sae.architecture`; it is saved as SAELens's own `jumprelu`."""
        return "sparse_batchtopk"


class SparseBatchTopKTrainingSAE(BatchTopKTrainingSAE, SparseTopKTrainingSAE):  # pyright: ignore[reportIncompatibleVariableOverride]
    """SAELens's BatchTopK SAE (its threshold, folding and saving) with the step of `SparseTopKTrainingSAE`."""

    def choose(
        self, pre: Float[torch.Tensor, "n d_sae"], scores: Float[torch.Tensor, "n d_sae"]
    ) -> tuple[Entries, Float[torch.Tensor, " nnz"]]:
        """The k n latents of the batch with the highest scores, and their pre-activations.

        Where fewer are positive SAELens fills up with zeros of its ReLU, and this with latents that the ReLU sets
        to zero: nothing either way.
        """
        n_rows, d_sae = scores.shape
        places = two_stage_topk(scores.flatten(), int(self.cfg.k * n_rows))[1].sort().values
        rows = places // d_sae
        row_offsets = torch.searchsorted(rows, torch.arange(n_rows + 1, device=rows.device))
        return Entries(places % d_sae, row_offsets, d_sae), pre.flatten()[places]

    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: torch.Tensor) -> None:
        """SAELens's running mean of the smallest positive activation, from the activations alone."""
        if not acts_topk.is_sparse or acts_topk._nnz() == 0:
            super().update_topk_threshold(acts_topk.to_dense())
            return
        lr = self.cfg.topk_threshold_lr
        values = acts_topk._values().to(self.topk_threshold.dtype)
        lowest = torch.where(values > 0, values, torch.inf).min()
        moved = (1 - lr) * self.topk_threshold + lr * lowest
        # No wait for a GPU: a batch without a positive activation changes nothing.
        self.topk_threshold = torch.where(lowest.isfinite(), moved, self.topk_threshold)
