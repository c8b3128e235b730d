"""Directions that were fitted and not trained, as an SAELens SAE: in memory and on disk."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from sae_faithful.interfaces import RunError
from sae_faithful.stored import blamed_on

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from sae_faithful.interfaces import Directions

SIGNED_FILE = "signed_weights.safetensors"
"""In the place of SAELens's files, none of whose architectures has latents below 0."""


def check(directions: Directions, owner: str, d_in: int) -> None:
    """Refuse what no SAE can be made of.

    Raises:
        RunError: a wrong shape, a number that is not finite, or a `k` that the latents do not allow.
    """
    n = len(directions.read)
    shapes = {"read": (n, d_in), "write": (n, d_in), "mean": (d_in,)}
    for name, shape in shapes.items():
        tensor: torch.Tensor = getattr(directions, name)
        if n == 0 or tuple(tensor.shape) != shape:
            raise RunError(
                f"{owner}: {name} has the shape {list(tensor.shape)}, expected [n, d_in] with {d_in=}"
            )
        if not bool(tensor.isfinite().all()):
            raise RunError(f"{owner}: {name} holds numbers that are not finite")
    if directions.k is not None:
        if directions.sign == "signed":
            raise RunError(f"{owner}: k is for latents that are not below 0; sign is signed")
        if not 1 <= directions.k <= n_latents(directions):
            raise RunError(f"{owner}: k is {directions.k}, but there are {n_latents(directions)} latents")


def n_latents(directions: Directions) -> int:
    """How many latents the directions make."""
    return len(directions.read) * (2 if directions.sign == "split" else 1)


def as_sae(directions: Directions, metadata: Mapping[str, Any], reshape: str = "none") -> Any:
    """A SAELens SAE with the directions' latents and reconstruction.

    `standard`, or with a `k` `topk`: both subtract the mean from the input and add it to the output as `b_dec`.
    Where latents are signed it is a `standard` one without its ReLU, which SAELens cannot load.

    Args:
        directions: checked ones.
        metadata: SAELens's: model, hook and what else says how the activations are made.
        reshape: SAELens's `reshape_activations`.
    """
    import torch
    from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    read, write = directions.read, directions.write
    if directions.sign == "split":
        read, write = torch.cat([read, -read]), torch.cat([write, -write])
    fields: dict[str, Any] = {
        "d_in": read.shape[1],
        "d_sae": len(read),
        "reshape_activations": reshape,
        "metadata": SAEMetadata(**metadata),
    }
    # SAELens draws weights on construction; whoever draws next shall not notice.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if directions.k is not None:
            # Latents are ranked by their codes alone, whatever the length of the rows they write along.
            sae = TopKSAE(TopKSAEConfig(k=directions.k, rescale_acts_by_decoder_norm=False, **fields))
        else:
            sae_class = _signed_class() if directions.sign == "signed" else StandardSAE
            sae = sae_class(StandardSAEConfig(**fields))
        sae.W_enc.copy_(read.T)
        sae.W_dec.copy_(write)
        sae.b_enc.zero_()
        sae.b_dec.copy_(directions.mean)
    return sae.eval()


def save(sae: Any, folder: Path) -> None:
    """Write the SAE: SAELens's files, or, where latents are signed, one of our own."""
    if isinstance(sae, _signed_class()):
        from safetensors.torch import save_file

        save_file(
            {name: tensor.contiguous() for name, tensor in sae.state_dict().items()}, folder / SIGNED_FILE
        )
    else:
        sae.save_model(folder)


def load(folder: Path, signed: Mapping[str, Any] | None, device: str) -> Any:
    """What `save` wrote.

    Args:
        folder: where.
        signed: the SAE's config if its latents are signed, else None.
        device: of the SAE.
    """
    import torch
    from sae_lens import SAE, StandardSAEConfig
    from safetensors.torch import load_file

    with blamed_on(folder):
        if signed is None:
            return SAE.load_from_disk(folder, device=device)
        config = StandardSAEConfig.from_dict({**signed, "device": device})
        with torch.random.fork_rng(devices=[]):
            sae = _signed_class()(config)
        sae.load_state_dict(load_file(folder / SIGNED_FILE, device=device))
        return sae


@cache
def _signed_class() -> Any:
    import torch
    from sae_lens import StandardSAE

    class SignedSAE(StandardSAE):
        """A standard SAE without its ReLU: its latents may be below 0."""

        def get_activation_fn(self) -> Any:
            """None."""
            return torch.nn.Identity()

    return SignedSAE
