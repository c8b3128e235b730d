"""The handle, against SAELens's own SAEs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sae_faithful import SAEHandle, name_of_sae

if TYPE_CHECKING:
    from pathlib import Path

    import torch

D_IN, D_SAE = 6, 10
ARCHITECTURES = ("topk", "standard", "jumprelu", "gated")


def make_sae(architecture: str, **changes: Any) -> Any:
    """An SAELens SAE with every parameter random, so that none could be left out unnoticed."""
    import torch
    from sae_lens.registry import SAE_CLASS_REGISTRY
    from sae_lens.util import temporary_seed

    sae_class, config_class = SAE_CLASS_REGISTRY[architecture]
    extra = {"k": 3} if architecture == "topk" else {}
    with temporary_seed(0):
        sae = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, **extra, **changes))
        for parameter in sae.parameters():
            parameter.data.copy_(torch.randn_like(parameter) * 0.5)
    return sae


def handle_for(sae: Any, path: Path) -> SAEHandle:
    sae.save_model(path)
    return SAEHandle.from_disk(path, source="web", hook="model.layers.0", variant="base", seed=3)


@pytest.fixture
def activations() -> torch.Tensor:
    """Two rows of five positions, off centre."""
    import torch

    return torch.randn(2, 5, D_IN, generator=torch.Generator().manual_seed(1)) * 2 + 1


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_encode_and_decode_are_saelens_s(
    architecture: str, normalize: str, activations: torch.Tensor, tmp_path: Path
) -> None:
    import torch
    from sae_lens import SAE

    handle = handle_for(make_sae(architecture, normalize_activations=normalize), tmp_path)
    stock = SAE.load_from_disk(tmp_path).eval()
    with torch.no_grad():
        expected = stock.encode(activations)
        reconstruction = stock.decode(expected)

    latents = handle.encode(activations)
    assert latents.shape == (2, 5, D_SAE)
    # Some latents fire and some do not, or the comparison would say little.
    assert 0 < (latents > 0).float().mean() < 1
    torch.testing.assert_close(latents, expected, rtol=0, atol=0)
    torch.testing.assert_close(handle.decode(latents, activations), reconstruction, rtol=0, atol=0)


def test_a_topk_sae_worked_out_by_hand(tmp_path: Path) -> None:
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=2, d_sae=3, k=1))
    sae.W_enc.data = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    sae.W_dec.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    sae.b_enc.data = torch.tensor([0.0, 0.0, -1.0])
    sae.b_dec.data = torch.tensor([1.0, -1.0])
    handle = handle_for(sae, tmp_path)
    # x - b_dec = (4, 1) - (1, -1) = (3, 2); before TopK: (3, 2, 3 + 2 - 1 = 4), of which the largest stays.
    latents = handle.encode(torch.tensor([[4.0, 1.0]]))
    assert latents.tolist() == [[0.0, 0.0, 4.0]]
    # 4 · (.5, .5) + (1, -1) = (3, 1).
    assert handle.decode(latents, torch.tensor([[4.0, 1.0]])).tolist() == [[3.0, 1.0]]


def test_one_encode_may_be_decoded_twice_where_inputs_are_normalised(
    activations: torch.Tensor, tmp_path: Path
) -> None:
    import torch

    sae = make_sae("standard", normalize_activations="layer_norm")
    handle = handle_for(sae, tmp_path)
    latents = handle.encode(activations)
    first, second = handle.decode(latents, activations), handle.decode(latents, activations)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    # SAELens itself forgets the norm after one decode: the reason why `decode` asks for the activations.
    with torch.no_grad():
        stock_latents = sae.encode(activations)
        sae.decode(stock_latents)
        with pytest.raises(AttributeError):
            sae.decode(stock_latents)


def test_a_decode_uses_the_norm_of_its_own_activations(activations: torch.Tensor, tmp_path: Path) -> None:
    import torch

    handle = handle_for(make_sae("standard", normalize_activations="layer_norm"), tmp_path)
    latents = handle.encode(activations)
    expected = handle.decode(latents, activations)
    # Another batch in between: its mean and deviation must not be used for this one.
    handle.encode(activations * 7 + 3)
    torch.testing.assert_close(handle.decode(latents, activations), expected, rtol=0, atol=0)


def test_an_edited_latent_moves_the_reconstruction_along_its_direction(
    activations: torch.Tensor, tmp_path: Path
) -> None:
    import torch

    handle = handle_for(make_sae("standard"), tmp_path)
    latents = handle.encode(activations)
    edited = latents.clone()
    edited[..., 4] += 2
    moved = handle.decode(edited, activations) - handle.decode(latents, activations)
    torch.testing.assert_close(moved, (2 * handle.W_dec[4]).expand_as(moved))


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
def test_contributions_of_parts_add_up_to_what_decoding_the_whole_adds(
    normalize: str, activations: torch.Tensor, tmp_path: Path
) -> None:
    """The bias is in none of them, and the norm of each input in all."""
    import torch

    handle = handle_for(make_sae("standard", normalize_activations=normalize), tmp_path)
    latents = handle.encode(activations)
    half = latents.clone()
    half[..., : D_SAE // 2] = 0
    rest = latents - half
    whole = handle.decode(latents, activations)
    nothing = handle.decode(torch.zeros_like(latents), activations)
    parts = [handle.contribution(part, activations) for part in (half, rest)]
    assert all(float(part.abs().max()) > 0.1 for part in (*parts, nothing))
    torch.testing.assert_close(nothing + parts[0] + parts[1], whole, rtol=1e-4, atol=1e-5)
    assert not handle.contribution(torch.zeros_like(latents), activations).any()


def test_sparse_latents_of_a_live_training_sae_come_out_dense(activations: torch.Tensor) -> None:
    import torch
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    config = TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3, use_sparse_activations=True)
    live = TopKTrainingSAE(config)
    with torch.no_grad():
        stock = live.encode(activations)
    assert stock.is_sparse
    handle = SAEHandle(source="web", hook="h", variant="base", seed=0, load=lambda: live)
    latents = handle.encode(activations)
    assert not latents.is_sparse
    torch.testing.assert_close(latents, stock.to_dense(), rtol=0, atol=0)
    torch.testing.assert_close(handle.decode(latents, activations), live.decode(stock).detach())


def test_an_sae_trained_on_separate_heads_takes_them_concatenated(tmp_path: Path) -> None:
    import torch

    sae = make_sae("standard", reshape_activations="hook_z")
    heads = torch.randn(2, 5, 3, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = sae.encode(heads)
        reconstruction = sae.decode(expected)
    assert reconstruction.shape == heads.shape
    handle = handle_for(sae, tmp_path)
    flat = heads.flatten(2)
    latents = handle.encode(flat)
    torch.testing.assert_close(latents, expected, rtol=0, atol=0)
    torch.testing.assert_close(handle.decode(latents, flat), reconstruction.flatten(2), rtol=0, atol=0)


def test_activations_of_another_precision_are_taken(activations: torch.Tensor, tmp_path: Path) -> None:
    import torch

    handle = handle_for(make_sae("topk", normalize_activations="layer_norm"), tmp_path)
    half = activations.to(torch.bfloat16)
    latents = handle.encode(half)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, handle.encode(half.float()), rtol=0, atol=0)
    assert handle.decode(latents, half).dtype == torch.float32


def test_its_name_says_which_it_is_and_reads_nothing(tmp_path: Path) -> None:
    nowhere = SAEHandle.from_disk(tmp_path, source="web", hook="model.layers.0", variant="base", seed=3)
    assert str(nowhere) == name_of_sae(nowhere.identity) == "web, model.layers.0, base, seed 3"


def test_identity_and_shape_need_no_second_read(tmp_path: Path) -> None:
    import torch

    sae = make_sae("topk")
    loads: list[int] = []

    def load() -> Any:
        loads.append(1)
        return sae

    handle = SAEHandle(source="web", hook="model.layers.0", variant="base", seed=3, load=load)
    assert handle.key == ("web", "model.layers.0", "base", 3)
    assert handle.kind == "trained"
    assert loads == []
    assert handle.d_sae == D_SAE
    torch.testing.assert_close(handle.W_dec, sae.W_dec.detach(), rtol=0, atol=0)
    assert not handle.W_dec.requires_grad
    assert not handle.encode(torch.zeros(1, D_IN)).requires_grad
    assert loads == [1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_encoder_directions_are_rows(architecture: str, tmp_path: Path) -> None:
    import torch

    sae = make_sae(architecture)
    encoder = handle_for(sae, tmp_path).W_enc
    assert encoder.shape == (D_SAE, D_IN)
    assert not encoder.requires_grad
    torch.testing.assert_close(encoder, sae.W_enc.detach().T, rtol=0, atol=0)


def test_a_latent_fires_along_its_encoder_direction_alone(tmp_path: Path) -> None:
    import torch
    from sae_lens import StandardSAE, StandardSAEConfig

    sae = StandardSAE(StandardSAEConfig(d_in=2, d_sae=3))
    # Columns, in SAELens's layout: (1, 0), (0, 1) and (3, 4).
    sae.W_enc.data = torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 4.0]])
    handle = handle_for(sae, tmp_path)
    assert handle.W_enc.tolist() == [[1, 0], [0, 1], [3, 4]]
    # Across (3, 4) the third latent is silent; along it, 5.
    assert handle.encode(torch.tensor([[4.0, -3.0], [0.6, 0.8]]))[:, 2].tolist() == pytest.approx([0, 5])


def test_a_tied_sae_reads_along_its_decoder() -> None:
    import torch
    from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig

    tied = TemporalSAE(TemporalSAEConfig(d_in=D_IN, d_sae=128, n_heads=2, tied_weights=True))
    assert not hasattr(tied, "W_enc")
    handle = SAEHandle(source="web", hook="h", variant="base", seed=0, load=lambda: tied)
    torch.testing.assert_close(handle.W_enc, tied.W_dec.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "standard", "jumprelu"])
def test_a_handle_on_a_training_sae_is_what_would_be_saved(
    architecture: str, normalize: str, activations: torch.Tensor, tmp_path: Path
) -> None:
    """The oracle is SAELens's own end of training: fold the scaler in, save for inference, load."""
    import torch
    from sae_lens import SAE
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
    from sae_lens.training.activation_scaler import ActivationScaler

    sae_class, config_class = SAE_TRAINING_CLASS_REGISTRY[architecture]
    extra = {"k": 3} if "topk" in architecture else {}
    torch.manual_seed(0)
    training = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, normalize_activations=normalize, **extra))
    for parameter in training.parameters():
        parameter.data.copy_(torch.randn_like(parameter) * 0.5)
    if architecture == "batchtopk":
        training.topk_threshold.fill_(0.2)
    scaler = ActivationScaler()
    batches = iter([torch.randn(64, D_IN) * 3 + 1 for _ in range(4)])
    if normalize == "expected_average_only_in":
        scaler.estimate_scaling_factor(d_in=D_IN, data_provider=batches, n_batches_for_norm_estimate=4)
    if normalize == "covariance_whitening":
        scaler.estimate_whitening(d_in=D_IN, data_provider=batches, n_batches_for_norm_estimate=4)
    before = {name: tensor.clone() for name, tensor in training.state_dict().items()}
    state = torch.get_rng_state()

    handle = SAEHandle.from_training(training, scaler, source="web", hook="h", variant="base", seed=0)
    latents = handle.encode(activations)
    reconstruction = handle.decode(latents, activations)

    # Training goes on as if nothing had been measured.
    assert torch.equal(torch.get_rng_state(), state)
    assert training.cfg.normalize_activations == normalize
    for name, tensor in training.state_dict().items():
        assert torch.equal(tensor, before[name])

    if scaler.scaling_factor is not None:
        training.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if scaler.whitening is not None:
        whitening = scaler.whitening
        training.fold_activation_whitening(
            mean=whitening.mean,
            whitening_matrix=whitening.matrix,
            unwhitening_matrix=whitening.inverse_matrix,
        )
    training.save_inference_model(tmp_path)
    saved = SAE.load_from_disk(tmp_path).eval()
    with torch.no_grad():
        expected = saved.encode(activations)
        assert torch.equal(latents, expected)
        assert torch.equal(reconstruction, saved.decode(expected))
