"""`unit_norm_l1` as a SAELens training architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import StandardSAEConfig, TrainingSAE, TrainingSAEConfig
from sae_lens.saes.sae import SAEConfig, TrainCoefficientConfig, TrainStepInput
from torch import nn

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from numpy.typing import NDArray

FOLDABLE = ("none", "expected_average_only_in")
SHORTEST = 1e-8
"""Rows are divided by at least this, as in the authors' code: a row of zeros stays one."""


@dataclass
class UnitNormL1TrainingSAEConfig(TrainingSAEConfig):
    """Options of `unit_norm_l1`.

    SAELens's `apply_b_dec_to_input` and `decoder_init_norm` are accepted, since configs of other architectures
    carry them, and are always false and none: there is no decoder bias, and every row has length 1.

    Raises:
        ValueError: a normalisation that does not fold into weights with unit rows; a negative coefficient.
    """

    l1_coefficient: float = 1.0
    """α of ‖x − x̂‖² + α ‖c‖₁, mean over the batch, as SAELens's own; `l1_coefficient_of` converts the paper's;
    0: not sparse, the paper's control."""
    l1_warm_up_steps: int = 0
    """Steps over which the coefficient grows from 0; none in the paper."""
    tied: bool = True
    """Whether the encoder is the decoder's transpose, as in the paper's SAEs on the residual stream; `false`: an
    encoder of its own, as in those on MLPs, where it keeps more latents alive."""

    def __post_init__(self) -> None:
        if self.normalize_activations not in FOLDABLE:
            raise ValueError(
                f"unit_norm_l1 takes normalize_activations {' or '.join(FOLDABLE)}; "
                f"'{self.normalize_activations}' cannot be folded into unit rows without a decoder bias"
            )
        if self.l1_coefficient < 0:
            raise ValueError(f"l1_coefficient {self.l1_coefficient} is below 0")
        self.apply_b_dec_to_input = False
        self.decoder_init_norm = None
        super().__post_init__()

    @classmethod
    def architecture(cls) -> str:
        """The name in a config's `sae.architecture`."""
        return "unit_norm_l1"

    def get_inference_config_class(self) -> type[SAEConfig]:
        """What it is saved as: SAELens's own `standard`, which loads without this package."""
        return StandardSAEConfig


class UnitNormL1TrainingSAE(TrainingSAE[UnitNormL1TrainingSAEConfig]):
    """c = ReLU(W_enc x + b), x̂ = Σ c_i f_i, where f_i is row i of a parameter divided by its length.

    Cunningham et al. (2023, arXiv 2309.08600), section 2 and the authors' code: the division is part of the
    forward pass and gradients go through it, so they are orthogonal to the rows, and the parameter itself is never
    projected. Tied, the encoder reads along the same unit rows.

    `decoder_rows` [d_sae, d_in] and, untied, `encoder_rows` [d_sae, d_in] are the parameters, beside `b_enc`;
    `W_dec` and `W_enc` are made from them at each use. `b_dec` is a buffer of zeros, for SAELens's files.
    Checkpoints hold the parameters, so that training goes on exactly; the saved SAE holds the unit rows.
    """

    decoder_rows: nn.Parameter
    b_enc: nn.Parameter

    @property
    def W_dec(self) -> Float[torch.Tensor, "d_sae d_in"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Unit decoder rows, with their gradient."""
        return nn.functional.normalize(self.decoder_rows, dim=-1, eps=SHORTEST)

    @property
    def W_enc(self) -> Float[torch.Tensor, "d_in d_sae"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the encoder multiplies by."""
        return self.W_dec.T if self.cfg.tied else self.encoder_rows.T

    def initialize_weights(self) -> None:
        """Xavier-uniform weights and zero biases, as the paper's; the decoder is drawn first, tied or not."""
        shape = (self.cfg.d_sae, self.cfg.d_in)
        place: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        self.decoder_rows = nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape, **place)))
        if not self.cfg.tied:
            self.encoder_rows = nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape, **place)))
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, **place))
        # Not a parameter: nothing may learn it, and files of the kind `standard` have one.
        self.register_buffer("b_dec", torch.zeros(self.cfg.d_in, **place))

    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        """The L1 coefficient and its warm-up, named as by SAELens's `standard`."""
        return {"l1": TrainCoefficientConfig(self.cfg.l1_coefficient, self.cfg.l1_warm_up_steps)}

    def encode_with_hidden_pre(
        self, x: Float[torch.Tensor, "... d_in"]
    ) -> tuple[Float[torch.Tensor, "... d_sae"], Float[torch.Tensor, "... d_sae"]]:
        """Latents, and what they were before the ReLU."""
        hidden_pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre)), hidden_pre

    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,  # noqa: ARG002
        sae_out: torch.Tensor,  # noqa: ARG002
    ) -> dict[str, torch.Tensor]:
        """α ‖c‖₁, mean over the batch. SAELens's `standard` weighs each latent by its row's length, here 1."""
        return {"l1_loss": step_input.coefficients["l1"] * feature_acts.abs().sum(dim=-1).mean()}

    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Take activations as they are where training took them times s = `scaling_factor`; rows stay unit rows.

        ReLU(s·w·x + b) = s ReLU(w·x + b/s), and the reconstruction is divided by s in the end. So only the bias
        changes, and latents are those of training over s: lengths along their unit rows, in the model's own units.
        SAELens's way leaves latents alone and makes rows 1/s long.
        """
        self.b_enc.data /= scaling_factor
        self.cfg.normalize_activations = "none"

    @torch.no_grad()
    def fold_activation_whitening(self, *_: Any, **__: Any) -> None:
        """Refused, as the config refuses it: rows would have other lengths, and the mean would be a decoder bias."""
        raise ValueError("unit_norm_l1 has no decoder bias and unit rows: whitening cannot be folded into it")

    @torch.no_grad()
    def get_W_dec_norm(self) -> Float[torch.Tensor, " d_sae"]:
        """Ones: there is nothing for `fold_W_dec_norm` to fold."""
        return torch.ones_like(self.b_enc)

    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """SAELens's `standard`: the unit rows as `W_dec`, and `W_enc` [d_in, d_sae]."""
        rows = nn.functional.normalize(state_dict.pop("decoder_rows"), dim=-1, eps=SHORTEST)
        state_dict["W_dec"] = rows.contiguous()
        encoder = rows if self.cfg.tied else state_dict.pop("encoder_rows")
        # A copy: safetensors writes no two tensors that share memory.
        state_dict["W_enc"] = encoder.T.clone(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def log_histograms(self) -> dict[str, NDArray[np.generic]]:
        """Lengths of the rows before they are divided by them (they say how far Adam's steps still turn a row)."""
        return {
            "weights/decoder_row_norms": self.decoder_rows.float().norm(dim=-1).cpu().numpy(),
            "weights/b_e": self.b_enc.float().cpu().numpy(),
        }
