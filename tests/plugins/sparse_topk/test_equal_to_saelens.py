"""The same mathematics as SAELens's topk and batchtopk: float64 trajectories through SAELens's own trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

ARCHITECTURES = ["topk", "batchtopk"]
STEPS = 10


def assert_equal(ours: Any, theirs: Any, tolerance: float = 1e-12) -> None:
    mine, reference = ours.weights(), theirs.weights()
    assert mine.keys() == reference.keys()
    for name, value in reference.items():
        assert (mine[name] - value).abs().max() <= tolerance * value.abs().max().clamp(min=1), name
    for ours_step, theirs_step in zip(ours.losses, theirs.losses, strict=True):
        assert ours_step == pytest.approx(theirs_step, rel=1e-12, abs=1e-12)
    for statistic in ("act_freq_scores", "n_forward_passes_since_fired"):
        assert getattr(ours.trainer, statistic).equal(getattr(theirs.trainer, statistic)), statistic
    assert ours.trainer.n_frac_active_samples == theirs.trainer.n_frac_active_samples


def both(training: Callable[..., Any], architecture: str, **options: Any) -> tuple[Any, Any]:
    return training(f"sparse_{architecture}", **options), training(architecture, **options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("n_dead", "options"),
    [
        (0, {}),
        (7, {}),  # fewer than d_in / 2: all of them are in the loss, scaled down
        (50, {}),
        (50, {"rescale_acts_by_decoder_norm": False}),
        (50, {"apply_b_dec_to_input": False}),
        (50, {"aux_loss_coefficient": 0.25}),
        (50, {"aux_loss_coefficient": 0.0}),
        (50, {"decoder_init_norm": None}),
        (0, {"k": 1}),
        (0, {"k": 100}),
    ],
)
def test_ten_steps_give_the_same_weights(
    training: Callable[..., Any], architecture: str, n_dead: int, options: dict[str, Any]
) -> None:
    # With k = 100 of 151 some chosen latents are negative, and so set to zero.
    ours, theirs = both(training, architecture, n_dead=n_dead, **options)
    before = ours.weights()
    for each in (ours, theirs):
        each.step(STEPS)
    assert_equal(ours, theirs)
    assert any((ours.weights()[name] - value).abs().max() > 1e-3 for name, value in before.items())
    if n_dead:
        assert int(theirs.trainer.dead_neurons.sum()) >= n_dead
        has_loss = theirs.losses[-1]["auxiliary_reconstruction_loss"] > 0
        assert has_loss == (options.get("aux_loss_coefficient", 1.0) > 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("normalisation", ["none", "expected_average_only_in", "covariance_whitening"])
def test_fit_with_every_normalisation_of_the_input_distribution(
    training: Callable[..., Any], architecture: str, normalisation: str, apply_b_dec_to_input: bool
) -> None:
    # `fit` estimates what normalises the activations, and folds it into the weights at the end.
    ours, theirs = both(
        training, architecture, normalize_activations=normalisation, apply_b_dec_to_input=apply_b_dec_to_input
    )
    for each in (ours, theirs):
        each.trainer.fit()
    assert_equal(ours, theirs, tolerance=1e-11)
    assert ours.trainer.dead_neurons.any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalisation", ["constant_norm_rescale", "layer_norm"])
def test_normalisation_of_each_input(
    training: Callable[..., Any], architecture: str, normalisation: str
) -> None:
    options = {"normalize_activations": normalisation, "config": {"dead_feature_window": 1000}}
    ours, theirs = both(training, architecture, **options)
    for each in (ours, theirs):
        each.step(STEPS)
    assert_equal(ours, theirs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dead_latents_with_a_normalisation_that_saelens_refuses(
    training: Callable[..., Any], architecture: str
) -> None:
    messages: list[str] = []
    for each in both(training, architecture, normalize_activations="layer_norm"):
        with pytest.raises(ValueError, match="does not support activation normalization") as error:
            each.step(STEPS)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("n_dead", [0, 50])
def test_float32_gradients_of_one_step(training: Callable[..., Any], architecture: str, n_dead: int) -> None:
    grads: list[dict[str, torch.Tensor]] = []
    for each in both(training, architecture, n_dead=n_dead, dtype="float32"):
        dead = torch.arange(len(each.sae.W_dec)) >= len(each.sae.W_dec) - n_dead
        each.forward(dead).loss.backward()
        grads.append({name: value.grad for name, value in each.sae.named_parameters()})
    for name, theirs in grads[1].items():
        assert (grads[0][name] - theirs).norm() <= 2e-6 * theirs.norm(), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("n_dead", [0, 50])
@pytest.mark.parametrize(("dtype", "autocast"), [("float32", True), ("bfloat16", False), ("float16", False)])
def test_half_precision_gradients_are_as_near_float64_s_as_saelens_s_are(
    training: Callable[..., Any], architecture: str, n_dead: int, dtype: str, autocast: bool
) -> None:
    ours, theirs = both(training, architecture, n_dead=n_dead, dtype=dtype)
    exact = training(architecture)
    exact.sae.load_state_dict(ours.sae.state_dict())
    dead = torch.arange(len(exact.sae.W_dec)) >= len(exact.sae.W_dec) - n_dead
    for each in (ours, theirs, exact):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and each is not exact):
            loss = each.forward(dead).loss
        loss.backward()
    references = dict(exact.sae.named_parameters())

    def error(each: Any, name: str) -> float:
        grad, reference = each.sae.get_parameter(name).grad, references[name].grad
        return float((grad - reference).norm() / reference.norm())

    # Both choose latents by rounded scores, of which some are equal: those are decided otherwise than in float64,
    # and over a whole batch not always alike.
    for name in references:
        assert error(ours, name) <= 1.5 * error(theirs, name) + 1e-3, name


def test_ten_steps_under_autocast_stay_finite_and_fire_alike(training: Callable[..., Any]) -> None:
    ours, theirs = both(training, "topk", dtype="float32", config={"autocast": True})
    for each in (ours, theirs):
        each.step(STEPS)
        assert all(torch.isfinite(value).all() for value in each.weights().values())
    assert ours.losses[-1]["mse_loss"] == pytest.approx(theirs.losses[-1]["mse_loss"], rel=0.02)


def test_a_bfloat16_sae_learns(training: Callable[..., Any]) -> None:
    ours, theirs = both(training, "topk", dtype="bfloat16")
    for each in (ours, theirs):
        each.step(STEPS)
        assert all(torch.isfinite(value).all() for value in each.weights().values())
    assert ours.losses[-1]["mse_loss"] == pytest.approx(theirs.losses[-1]["mse_loss"], rel=0.05)
