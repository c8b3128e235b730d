"""What a step costs, where it hands over to SAELens's own, and what it leaves for SAELens to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from sae_faithful.ops import topk as two_stages

if TYPE_CHECKING:
    from collections.abc import Callable

ARCHITECTURES = ["topk", "batchtopk"]
HOOKS = ["hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("n_dead", [0, 20])
def test_one_product_and_few_passes_over_the_dictionary(
    training: Callable[..., Any],
    audited: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    n_dead: int,
) -> None:
    # Sizes at which the top k are found in two stages, which is the way with most passes.
    monkeypatch.setattr(two_stages, "MIN_ENTRIES", 1)
    rows, d_sae = 96, 1280
    counts: dict[str, tuple[int, int]] = {}
    for name in (architecture, f"sparse_{architecture}"):
        window = {"dead_feature_window": 3 if n_dead else 1000}
        each = training(name, d_sae=d_sae, n_dead=n_dead, dtype="float32", config=window)
        each.step(5, shape=(rows, each.sae.cfg.d_in))
        assert bool(each.trainer.dead_neurons.any()) == (n_dead > 0)
        with audited(rows, d_sae) as audit:
            each.step(shape=(rows, each.sae.cfg.d_in))
        counts[name] = (len(audit.products), len(audit.operations))
        if name.startswith("sparse"):
            assert audit.saved == [], "a dense tensor was kept for the backward pass"
    ours, theirs = counts[f"sparse_{architecture}"], counts[architecture]
    assert ours[0] <= 1, counts
    assert ours[1] <= 6, counts
    # SAELens's own, so that the audit is known to see: 6 products, 9 with dead latents; 26 operations and more.
    assert theirs[0] == (9 if n_dead else 6), counts
    assert theirs[1] >= 26, counts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_bitwise_the_same_every_time(training: Callable[..., Any], architecture: str) -> None:
    each = training(f"sparse_{architecture}", dtype="float32")
    with torch.no_grad():
        each.sae.b_enc[:3] += 1.5  # latents that fire on a third of the tokens and more
    dead = torch.arange(len(each.sae.W_dec)) >= 101
    seen: list[dict[str, torch.Tensor]] = []
    for _ in range(20):
        each.sae.zero_grad()
        output = each.forward(dead)
        output.loss.backward()
        seen.append({name: value.grad.clone() for name, value in each.sae.named_parameters()})
    assert (output.feature_acts.to_dense()[:, :3] > 0).float().mean() > 0.3
    assert all(grads[name].equal(value) for grads in seen for name, value in seen[0].items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_sees_dense_latents_and_may_change_them(
    training: Callable[..., Any], architecture: str, hook: str
) -> None:
    outputs: list[Any] = []
    for name in (architecture, f"sparse_{architecture}"):
        each = training(name)
        seen: list[torch.Tensor] = []

        def halve(value: torch.Tensor, hook: Any, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            assert not value.is_sparse
            seen.append(value)
            return value / 2

        getattr(each.sae, hook).add_hook(halve)
        dead = torch.arange(len(each.sae.W_dec)) >= 101
        outputs.append(each.forward(dead))
        assert len(seen) == 1
        unhooked = training(name).forward(dead)
        assert unhooked.loss != outputs[-1].loss
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(outputs[1].sae_out, outputs[0].sae_out, rtol=1e-12, atol=1e-12)


def test_a_backward_hook_is_called(training: Callable[..., Any]) -> None:
    each = training("sparse_topk")
    seen: list[Any] = []
    each.sae.hook_sae_acts_post.add_hook(lambda grad, hook: seen.append(grad), dir="bwd")
    each.forward().loss.backward()
    assert len(seen) == 1


def test_a_gradient_to_the_input_is_saelens_s(training: Callable[..., Any]) -> None:
    grads: list[torch.Tensor] = []
    for name in ("topk", "sparse_topk"):
        each = training(name)
        sae_in = torch.randn(8, each.sae.cfg.d_in, generator=torch.Generator().manual_seed(0)).double()
        sae_in.requires_grad_()
        each.forward(sae_in=sae_in).loss.backward()
        assert sae_in.grad is not None
        grads.append(sae_in.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_activations_are_those_of_encode(training: Callable[..., Any], architecture: str) -> None:
    each = training(f"sparse_{architecture}")
    output = each.forward()
    assert output.feature_acts.is_sparse
    assert not output.feature_acts.requires_grad
    expected = each.sae.encode(output.sae_in)
    torch.testing.assert_close(output.feature_acts.to_dense(), expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output.sae_out, each.sae.decode(expected), rtol=1e-12, atol=1e-12)


def test_saelens_s_log_reads_the_output(training: Callable[..., Any]) -> None:
    logs: list[dict[str, Any]] = []
    for name in ("topk", "sparse_topk"):
        each = training(name)
        output = each.step(2)
        logs.append(each.trainer.build_train_step_log_dict(output, n_training_samples=128))
    assert logs[1] == pytest.approx(logs[0], rel=1e-6)
    assert logs[1]["metrics/l0"] == pytest.approx(4.0)


def test_the_encoder_lies_feature_by_feature_and_stays_so(training: Callable[..., Any]) -> None:
    each = training("sparse_topk")
    W_enc = each.sae.W_enc
    for _ in range(2):
        assert W_enc.shape == (20, 151)
        assert W_enc.stride() == (1, 20)
        each.step()
    state = each.trainer.optimizer.state[W_enc]
    assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == (1, 20)
    each.forward().loss.backward()
    assert W_enc.grad.stride() == (1, 20)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_decoder_row_of_zeros_makes_no_nan(training: Callable[..., Any], architecture: str) -> None:
    each = training(f"sparse_{architecture}")
    with torch.no_grad():
        each.sae.W_dec[0] = 0
        each.sae.b_enc[0] = 10
    each.step(2)
    assert all(torch.isfinite(value).all() for value in each.weights().values())


def test_a_batch_in_which_nothing_fires_leaves_batchtopk_s_threshold(training: Callable[..., Any]) -> None:
    for name in ("batchtopk", "sparse_batchtopk"):
        each = training(name)
        with torch.no_grad():
            each.sae.topk_threshold.fill_(0.5)
            each.sae.b_enc.fill_(-100)
        each.step()
        assert float(each.sae.topk_threshold) == 0.5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled(training: Callable[..., Any], architecture: str) -> None:
    torch._dynamo.reset()
    compiled, eager = (training(f"sparse_{architecture}", n_dead=n_dead) for n_dead in (50, 50))
    compiled.sae.training_forward_pass = torch.compile(
        compiled.sae.training_forward_pass, backend="aot_eager"
    )
    for each in (compiled, eager):
        each.step(6)  # dead latents from the fourth on
    for name, value in eager.weights().items():
        torch.testing.assert_close(compiled.weights()[name], value, rtol=1e-12, atol=1e-12)


def test_use_sparse_activations_is_accepted_and_changes_nothing(training: Callable[..., Any]) -> None:
    # SAELens's own crashes with it in the backward pass while it rescales by decoder norms.
    plain, asked = training("sparse_topk"), training("sparse_topk", use_sparse_activations=True)
    for each in (plain, asked):
        each.step(3)
    assert all(asked.weights()[name].equal(value) for name, value in plain.weights().items())
    assert not asked.sae.encode(torch.zeros(2, 20).double()).is_sparse
