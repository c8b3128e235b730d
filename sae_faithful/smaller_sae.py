"""An SAE without some of its latents: dead or fake ones, say."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from sae_faithful.interfaces import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

PER_LATENT = {"b_enc": 0, "W_dec": 0, "threshold": 0, "b_gate": 0, "b_mag": 0, "r_mag": 0, "W_enc": 1}
"""Tensors with one entry, row or column a latent, and the dimension it is in."""
OF_ALL = ("b_dec",)


def keep_latents(sae: Any, latents: Sequence[int]) -> Any:
    """A new SAELens SAE with these latents alone, in this order; `save_model` writes it.

    Encoder, decoder, biases and thresholds of the latents that stay are what they were, and so is `b_dec`. Where
    latents do not depend on each other (`standard`, `gated`, `jumprelu`), their codes stay too, and the
    reconstruction loses what the others added. A `topk` SAE keeps its k, or has as many as there are latents: a
    latent that is gone leaves its place to the next, so that codes and reconstruction stay exactly where it was
    not among the k. `metadata.kept_latents` says which latents they were; where that is there already, it is of
    the SAE that everything began with.

    Args:
        sae: an SAE as SAELens loads it, not one in training.
        latents: indices below its d_sae, each once.

    Raises:
        UsageError: no latents, one twice, one that is not there, or an architecture with other tensors.
    """
    import torch

    state: dict[str, torch.Tensor] = sae.state_dict()
    unknown = sorted(set(state) - {*PER_LATENT, *OF_ALL})
    if unknown:
        raise UsageError(
            f"latents of the architecture '{sae.cfg.architecture()}' cannot be left out: what becomes of "
            f"{', '.join(unknown)} is unknown"
        )
    kept = [int(latent) for latent in latents]
    if not kept or len(set(kept)) < len(kept) or not 0 <= min(kept) <= max(kept) < sae.cfg.d_sae:
        raise UsageError(f"latents to keep are one or more of 0 to {sae.cfg.d_sae - 1}, each once")
    config = copy.deepcopy(sae.cfg)
    config.d_sae = len(kept)
    if hasattr(config, "k"):
        config.k = min(config.k, len(kept))
    before = config.metadata.kept_latents
    config.metadata.kept_latents = kept if before is None else [before[latent] for latent in kept]
    index = torch.tensor(kept, device=sae.device)
    # SAELens draws weights on construction; whoever draws next shall not notice.
    with torch.random.fork_rng(devices=[]):
        smaller = type(sae)(config)
    smaller.load_state_dict(
        {
            name: tensor.index_select(PER_LATENT[name], index) if name in PER_LATENT else tensor
            for name, tensor in state.items()
        }
    )
    return smaller.to(sae.device).eval()
