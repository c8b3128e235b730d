"""`sparse_topk`: one dense product over the dictionary a step, everything else on the active latents alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.sae import SAEConfig, TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopK

from sae_faithful.ops import Entries, decode_entries, sparse_encode, two_stage_topk
from sae_faithful_plugins.sparse_topk.dead_latents import DeadLatents, rows_apart

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float

NORMALISED_BY_INPUT = ("constant_norm_rescale", "layer_norm")
"""Normalisations under which SAELens has no auxiliary loss."""


@dataclass
class SparseTopKTrainingSAEConfig(TopKTrainingSAEConfig):
    """SAELens's options for `topk`. `use_sparse_activations` changes nothing: training is sparse anyway."""

    @classmethod
    def architecture(cls) -> str:
        """The name in a config's `sae.architecture`."""
        return "sparse_topk"

    def get_inference_config_class(self) -> type[SAEConfig]:
        """What it is saved as: SAELens's own `topk`, which loads without this package."""
        return TopKSAEConfig


class SparseTopKTrainingSAE(TopKTrainingSAE):
    """SAELens's TopK SAE with the same mathematics, and a step whose cost beyond the encoder is that of k latents.

    Rescaling by decoder norms n cancels: SAELens decodes relu(h n) / n, which is relu(h), and the gradients that
    go through n sum to zero. So h n chooses the latents and relu(h) is decoded. (A decoder row of zeros, where
    SAELens computes 0 · ∞, is no NaN here.)

    `W_enc` keeps its shape [d_in, d_sae] but lies feature by feature in memory, as its gradient does.
    """

    def initialize_weights(self) -> None:
        """SAELens's values, with `W_enc` feature by feature in memory."""
        super().initialize_weights()
        self.W_enc.data = _feature_major(self.W_enc.data)

    def get_activation_fn(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """For `encode`: dense. (SAELens's sparse tensors cannot be rescaled by decoder norms in training.)"""
        return TopK(self.cfg.k)

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """Files hold `W_enc` as SAELens writes it."""
        super().process_state_dict_for_saving(state_dict)
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Back to feature by feature."""
        super().process_state_dict_for_loading(state_dict)
        state_dict["W_enc"] = _feature_major(state_dict["W_enc"])

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """The step on active latents; SAELens's own where hooks or a gradient to the input want dense latents."""
        if self._wants_dense_latents(step_input):
            return super().training_forward_pass(step_input)
        dead = self._dead_latents(step_input)
        if dead is not None and self.cfg.normalize_activations in NORMALISED_BY_INPUT:
            return super().training_forward_pass(step_input)  # which refuses, and says why
        W_enc, dead_W_enc = rows_apart(self.W_enc.T, dead)
        W_dec, dead_W_dec = rows_apart(self.W_dec, dead)
        shift = self.b_dec if self.cfg.apply_b_dec_to_input else None

        with torch.no_grad():
            inputs = self.process_sae_in(step_input.sae_in)
            # In SAELens's order of operations, so that near-ties are decided alike.
            pre = inputs @ self.W_enc + self.b_enc
            norms = self.W_dec.norm(dim=-1) if self.cfg.rescale_acts_by_decoder_norm else None
            entries, chosen = self.choose(pre, pre if norms is None else pre * norms)
            entries = entries.grouped()
            del pre
        hidden = sparse_encode(entries, chosen, inputs, W_enc, self.b_enc, shift)
        acts = hidden.relu()
        sae_out = self.run_time_activation_norm_fn_out(decode_entries(entries, acts, W_dec, self.b_dec))

        mse_loss = self.mse_loss_fn(sae_out, step_input.sae_in).sum(dim=-1).mean()
        aux_loss = sae_out.new_tensor(0.0)
        if dead is not None:
            latents = DeadLatents(
                dead_W_enc, self.b_enc[dead], dead_W_dec, None if norms is None else norms[dead]
            )
            residual = (step_input.sae_in - sae_out).detach()
            aux_loss = self.cfg.aux_loss_coefficient * latents.auxiliary_loss(inputs, shift, residual)
        return TrainStepOutput(
            sae_in=step_input.sae_in,
            sae_out=sae_out,
            feature_acts=_as_saelens_reads_them(entries, acts.detach(), norms),  # pyright: ignore[reportCallIssue]
            hidden_pre=hidden,
            loss=mse_loss + aux_loss,
            losses={"mse_loss": mse_loss, "auxiliary_reconstruction_loss": aux_loss},
        )

    def choose(
        self, pre: Float[torch.Tensor, "n d_sae"], scores: Float[torch.Tensor, "n d_sae"]
    ) -> tuple[Entries, Float[torch.Tensor, " nnz"]]:
        """The k latents of each row with the highest scores, and their pre-activations."""
        indices = two_stage_topk(scores, self.cfg.k)[1]
        return Entries.of_rows(indices, self.cfg.d_sae), pre.gather(1, indices).reshape(-1)

    def _wants_dense_latents(self, step_input: TrainStepInput) -> bool:
        points = (self.hook_sae_input, self.hook_sae_acts_pre, self.hook_sae_acts_post, self.hook_sae_recons)
        hooked = any(point._forward_hooks or point._backward_hooks for point in points)
        return hooked or step_input.sae_in.requires_grad or step_input.sae_in.ndim != 2

    def _dead_latents(self, step_input: TrainStepInput) -> torch.Tensor | None:
        """Which latents are dead; None where no auxiliary loss is asked for."""
        mask = step_input.dead_neuron_mask
        if mask is None or self.cfg.aux_loss_coefficient == 0:
            return None
        # One wait for a GPU, which SAELens's counting of dead latents costs as well.
        dead = mask.nonzero().squeeze(1)
        return dead if dead.numel() else None


def _feature_major(W_enc: torch.Tensor) -> torch.Tensor:
    return W_enc.T.contiguous().T


@torch.compiler.disable
def _as_saelens_reads_them(
    entries: Entries, acts: torch.Tensor, norms: torch.Tensor | None
) -> Float[torch.Tensor, "n d_sae"]:
    """The activations as a sparse tensor: SAELens's trainer counts which latents fired."""
    order, rows, latents, _ = entries.by_feature
    acts = acts[order]
    if norms is not None:
        acts = acts * norms[latents]
    shape = (entries.row_offsets.numel() - 1, entries.n_features)
    return torch.sparse_coo_tensor(torch.stack([rows, latents]), acts, shape, check_invariants=False)
