"""SAEs without some of their latents, held against the whole ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

from sae_faithful import UsageError, keep_latents

D_IN, D_SAE, K = 6, 12, 3
FIELDS = {"standard": {}, "jumprelu": {}, "gated": {}, "topk": {"k": K, "rescale_acts_by_decoder_norm": True}}


def make(architecture: str, **fields: Any) -> Any:
    """An SAE with random weights; every tensor matters."""
    torch.manual_seed(3)
    config = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "dtype": "float64", "device": "cpu"}
    sae = SAE.from_dict({**config, "apply_b_dec_to_input": True, **FIELDS[architecture], **fields})
    with torch.no_grad():
        for name, tensor in sae.named_parameters():
            small = 0.1 if name.startswith("b_") else 1
            tensor.copy_(torch.rand_like(tensor) if name == "threshold" else small * torch.randn_like(tensor))
    return sae.eval()


@pytest.fixture
def activations() -> torch.Tensor:
    return torch.randn(40, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_latents_that_stay_are_what_they_were(architecture: str, activations: torch.Tensor) -> None:
    whole, kept = make(architecture), [7, 0, 3, 11]
    part = keep_latents(whole, kept)
    codes = whole.encode(activations)
    assert (codes[:, kept] > 0).any(0).all()
    torch.testing.assert_close(part.encode(activations), codes[:, kept], rtol=0, atol=1e-12)
    # The reconstruction loses what the others added.
    gone = [latent for latent in range(D_SAE) if latent not in kept]
    expected = whole.decode(codes) - codes[:, gone] @ whole.W_dec[gone]
    torch.testing.assert_close(part(activations), expected, rtol=0, atol=1e-12)


def test_of_topk_the_next_latent_takes_the_place(activations: torch.Tensor) -> None:
    whole, kept = make("topk"), [1, 2, 4, 5, 7, 8]
    part = keep_latents(whole, kept)
    # Ranked by pre-activation times decoder norm, as SAELens does, among those that stay.
    scores = ((activations - whole.b_dec) @ whole.W_enc + whole.b_enc)[:, kept] * whole.W_dec[kept].norm(
        dim=-1
    )
    best = torch.zeros_like(scores).scatter(1, scores.topk(K).indices, scores.topk(K).values.relu())
    torch.testing.assert_close(part.encode(activations), best, rtol=0, atol=1e-12)
    assert part.cfg.k == K


def test_topk_without_latents_that_never_fire_reconstructs_the_same(activations: torch.Tensor) -> None:
    whole = make("topk")
    with torch.no_grad():
        whole.b_enc[[2, 9]] = -1e6
    kept = [latent for latent in range(D_SAE) if latent not in (2, 9)]
    torch.testing.assert_close(keep_latents(whole, kept)(activations), whole(activations), rtol=0, atol=1e-12)


def test_k_is_no_more_than_there_are_latents(activations: torch.Tensor) -> None:
    part = keep_latents(make("topk"), [4, 6])
    assert part.cfg.k == 2
    assert part.encode(activations).shape == (40, 2)


@pytest.mark.parametrize("architecture", list(FIELDS))
def test_saelens_loads_what_it_saved(architecture: str, activations: torch.Tensor, tmp_path: Path) -> None:
    part = keep_latents(keep_latents(make(architecture), [9, 8, 7, 6, 5]), [4, 0, 2])
    part.save_model(tmp_path)
    loaded: Any = SAE.load_from_disk(tmp_path)
    torch.testing.assert_close(loaded(activations), part(activations), rtol=0, atol=1e-12)
    assert loaded.cfg.d_sae == 3
    # Indices of the first of them, through two selections.
    assert loaded.cfg.metadata.kept_latents == [5, 9, 7]


def test_the_whole_sae_and_the_random_state_are_left_alone(activations: torch.Tensor) -> None:
    whole = make("topk")
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    part = keep_latents(whole, [0, 1])
    assert torch.equal(torch.rand(3), expected)
    with torch.no_grad():
        part.W_dec.zero_()
        part.b_dec.zero_()
    torch.testing.assert_close(whole.state_dict(), before, rtol=0, atol=0)
    assert whole.cfg.d_sae == D_SAE
    assert whole.cfg.metadata.kept_latents is None


@pytest.mark.parametrize("latents", [[], [1, 1], [D_SAE], [-1, 2]])
def test_what_cannot_be_kept_is_refused(latents: list[int]) -> None:
    with pytest.raises(UsageError, match=r"^latents to keep are one or more of 0 to 11, each once$"):
        keep_latents(make("standard"), latents)


def test_an_architecture_with_other_tensors_is_refused() -> None:
    sae = make("standard")
    sae.register_buffer("mask", torch.ones(D_SAE))
    with pytest.raises(UsageError, match="'standard' cannot be left out: what becomes of mask is unknown"):
        keep_latents(sae, [0])
