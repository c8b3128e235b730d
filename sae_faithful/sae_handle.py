"""One handle for every SAE, on disk or live, so that evaluators need not know which it is."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from sae_faithful.stored import blamed_on

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch
    from jaxtyping import Float

NORMALISED_BY_INPUT = ("layer_norm", "constant_norm_rescale")


def name_of_sae(identity: Mapping[str, Any]) -> str:
    """`SOURCE, HOOK, VARIANT, seed N`, for people, of anything with those four keys."""
    return "{source}, {hook}, {variant}, seed {seed}".format_map(identity)


@dataclass(eq=False)
class SAEHandle:
    """An SAE with its identity. Its weights are read on first use."""

    source: str
    """The source it was trained on."""
    hook: str
    variant: str
    seed: int
    load: Callable[[], Any]
    """Gives the SAELens `SAE`."""
    kind: Literal["trained", "pretrained", "baseline"] = "trained"

    @classmethod
    def from_disk(
        cls, path: Path, *, source: str, hook: str, variant: str, seed: int, device: str = "cpu"
    ) -> SAEHandle:
        """An SAE in a folder that SAELens wrote."""

        def load() -> Any:
            from sae_lens import SAE

            with blamed_on(path):
                return SAE.load_from_disk(path, device=device)

        return cls(source=source, hook=hook, variant=variant, seed=seed, load=load)

    @classmethod
    def from_training(
        cls, training_sae: Any, scaler: Any, *, source: str, hook: str, variant: str, seed: int
    ) -> SAEHandle:
        """A live SAELens `TrainingSAE` as it would be saved now: a copy, its `ActivationScaler` folded in.

        Draws no random numbers that training would miss, and shares no memory with what is trained.
        """
        return cls(
            source=source,
            hook=hook,
            variant=variant,
            seed=seed,
            load=lambda: _as_saved(training_sae, scaler),
        )

    @cached_property
    def sae(self) -> Any:
        """The SAELens SAE in evaluation mode, taking heads already concatenated."""
        sae = self.load().eval()
        sae.turn_off_forward_pass_hook_z_reshaping()
        return sae

    @property
    def identity(self) -> dict[str, Any]:
        """Source, hook, variant and seed, as `EvalResult` takes them."""
        return {"source": self.source, "hook": self.hook, "variant": self.variant, "seed": self.seed}

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Source, hook, variant and seed."""
        return (self.source, self.hook, self.variant, self.seed)

    def __str__(self) -> str:
        return name_of_sae(self.identity)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return int(self.sae.cfg.d_sae)

    @property
    def prepend_bos(self) -> bool | None:
        """Whether the rows it was trained on begin with BOS; None where its file does not say."""
        told = getattr(getattr(self.sae.cfg, "metadata", None), "prepend_bos", None)
        return None if told is None else bool(told)

    @property
    def neuronpedia_id(self) -> str | None:
        """`MODEL/SAE` at Neuronpedia; None where its file does not say."""
        told = getattr(getattr(self.sae.cfg, "metadata", None), "neuronpedia_id", None)
        return None if told is None else str(told)

    @property
    def W_dec(self) -> Float[torch.Tensor, "d_sae d_in"]:
        """Decoder directions, one a row, not normalised."""
        return self.sae.W_dec.detach()

    @property
    def W_enc(self) -> Float[torch.Tensor, "d_sae d_in"]:
        """Encoder directions, one a *row* (SAELens's `W_enc` has one a column), not normalised.

        What a latent reads along, before bias and gate. An SAE without encoder weights of its own is tied: it
        reads along its decoder's rows.
        """
        weights = getattr(self.sae, "W_enc", None)
        return self.W_dec if weights is None else weights.detach().T

    def encode(self, activations: Float[torch.Tensor, "... d_in"]) -> Float[torch.Tensor, "... d_sae"]:
        """Latents of model activations, dense, in the SAE's dtype."""
        import torch

        with torch.no_grad():
            latents = self.sae.encode(activations.to(self.sae.device))
        return latents.to_dense() if latents.is_sparse else latents

    def decode(
        self, latents: Float[torch.Tensor, "... d_sae"], activations: Float[torch.Tensor, "... d_in"]
    ) -> Float[torch.Tensor, "... d_in"]:
        """Reconstruction from latents.

        Args:
            latents: what `encode` gave, or an edit of it.
            activations: what was encoded: SAEs that normalise each input need its norm again, and
                SAELens forgets it after one decode.
        """
        import torch

        with torch.no_grad():
            if self.sae.cfg.normalize_activations in NORMALISED_BY_INPUT:
                self.sae.run_time_activation_norm_fn_in(activations.to(self.sae.device, self.sae.dtype))
            return self.sae.decode(latents)

    def contribution(
        self, latents: Float[torch.Tensor, "... d_sae"], activations: Float[torch.Tensor, "... d_in"]
    ) -> Float[torch.Tensor, "... d_in"]:
        """What latents add to a reconstruction beside any others: decode(latents) − decode(0).

        Decoders are affine in the latents, also in SAEs that normalise each input, where it depends on the input.

        Args:
            latents: those that count, 0 elsewhere.
            activations: what was encoded, as for `decode`.
        """
        return self.decode(latents, activations) - self.decode(latents.new_zeros(latents.shape), activations)


def _as_saved(training_sae: Any, scaler: Any) -> Any:
    """What SAELens's runners do at the end of training, on a copy and without the disk."""
    import torch
    from sae_lens import SAE

    with torch.no_grad(), torch.random.fork_rng():
        final = type(training_sae)(copy.deepcopy(training_sae.cfg))
        final.load_state_dict(training_sae.state_dict())
        if scaler.scaling_factor is not None:
            final.fold_activation_norm_scaling_factor(scaler.scaling_factor)
        if scaler.whitening is not None:
            final.fold_activation_whitening(
                mean=scaler.whitening.mean,
                whitening_matrix=scaler.whitening.matrix,
                unwhitening_matrix=scaler.whitening.inverse_matrix,
            )
        weights = final.state_dict()
        final.process_state_dict_for_saving_inference(weights)
        sae = SAE.from_dict(final.cfg.get_inference_sae_cfg_dict())
        sae.load_state_dict(weights)
    return sae
