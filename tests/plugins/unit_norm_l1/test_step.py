"""The loss by hand and against the authors' own; the weights it leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sae_faithful_plugins.unit_norm_l1 import l1_coefficient_of

from .conftest import BATCH, D_IN, D_SAE, KINDS, batches, forward, make, noise, row_lengths, trained


@pytest.mark.parametrize(
    ("encoder", "latents", "mse"),
    [
        # Tied. (1, 2) gives .6 + 1.6 − 1, 2 + .5 and −1: x̂ = 1.2 (.6, .8) + 2.5 (0, 1) = (.72, 3.46), error 2.21.
        # (−1, 0) gives −1.6, .5 and 1: x̂ = (−1, .5), error .25.
        (None, [[1.2, 2.5, 0], [0, 0.5, 1]], (2.21 + 0.25) / 2),
        # Free: its rows are not divided. (1, 2) gives 3 − 1, 2.5 and 0: x̂ = 2 (.6, .8) + (0, 2.5) = (1.2, 4.1),
        # error .04 + 4.41. (−1, 0) gives −4, .5 and 0: x̂ = (0, .5), error 1.25.
        ([[3, 0], [0, 1], [0, 0]], [[2, 2.5, 0], [0, 0.5, 0]], (4.45 + 1.25) / 2),
    ],
    ids=["tied", "untied"],
)
def test_the_loss_of_two_activations_and_three_features_by_hand(
    encoder: Any, latents: Any, mse: float
) -> None:
    sae = make(d_in=2, d_sae=3, tied=encoder is None)
    with torch.no_grad():
        # Unit rows (.6, .8), (0, 1) and (−1, 0).
        sae.decoder_rows.copy_(torch.tensor([[3.0, 4], [0, 2], [-1, 0]]))
        sae.b_enc.copy_(torch.tensor([-1, 0.5, 0]))
        if encoder is not None:
            sae.encoder_rows.copy_(torch.tensor(encoder))
    out = forward(sae, torch.tensor([[1.0, 2], [-1, 0]], dtype=torch.float64), l1=0.5)
    expected = torch.tensor(latents, dtype=torch.float64)
    torch.testing.assert_close(out.feature_acts.detach(), expected)
    l1 = 0.5 * float(expected.sum()) / 2
    assert out.losses["mse_loss"].item() == pytest.approx(mse)
    assert out.losses["l1_loss"].item() == pytest.approx(l1)
    assert out.loss.item() == pytest.approx(mse + l1)


def authors_loss(sae: Any, x: torch.Tensor, alpha: float) -> torch.Tensor:
    """Mean over batch and dimensions of (x − x̂)², and α times the batch's mean of Σ c, written out."""
    rows = sae.decoder_rows / sae.decoder_rows.square().sum(dim=1, keepdim=True).sqrt()
    codes = (x @ (rows if sae.cfg.tied else sae.encoder_rows).T + sae.b_enc).clamp(min=0)
    return (codes @ rows - x).square().mean() + alpha * codes.sum() / len(x)


@KINDS
def test_the_authors_alpha_times_d_in_gives_their_gradients_times_d_in(tied: bool) -> None:
    alpha, x = 0.03, noise(BATCH, D_IN)
    ours, theirs = make(tied=tied), make(tied=tied)
    forward(ours, x, l1_coefficient_of(alpha, D_IN)).loss.backward()
    authors_loss(theirs, x, alpha).backward()
    reference = dict(theirs.named_parameters())
    assert set(reference) == {"decoder_rows", "b_enc"} | (set() if tied else {"encoder_rows"})
    for name, value in ours.named_parameters():
        assert value.grad.abs().max() > 1e-3
        torch.testing.assert_close(value.grad, D_IN * reference[name].grad, rtol=1e-10, atol=1e-12)
    # Eq. 4 taken literally would be d_in times too little sparsity: other gradients.
    literal = make(tied=tied)
    forward(literal, x, alpha).loss.backward()
    assert not torch.allclose(literal.b_enc.grad, D_IN * theirs.b_enc.grad, rtol=0.1)


def test_the_published_alpha_at_its_own_size() -> None:
    assert l1_coefficient_of(8.6e-4, 512) == pytest.approx(0.44032)
    assert l1_coefficient_of(0, 512) == 0


@pytest.mark.parametrize(("alpha", "d_in"), [(-1e-3, 512), (1e-3, 0)])
def test_an_alpha_that_cannot_be_is_refused(alpha: float, d_in: int) -> None:
    with pytest.raises(ValueError, match="alpha is 0 or more, d_in 1 or more"):
        l1_coefficient_of(alpha, d_in)


@KINDS
def test_gradients_go_through_the_division(tied: bool) -> None:
    sae = make(tied=tied)
    forward(sae, noise(BATCH, D_IN), 0.1).loss.backward()
    # The length of a row changes nothing, so the gradient has no part along the row.
    along = (sae.decoder_rows.grad * sae.decoder_rows).sum(dim=1)
    assert sae.decoder_rows.grad.norm() > 0.1
    assert along.abs().max() < 1e-12


# The weights


def test_weights_begin_xavier_uniform_and_biases_at_zero() -> None:
    sae = make(seed=3, d_in=64, d_sae=256, tied=False)
    bound = (6 / (64 + 256)) ** 0.5
    for rows in (sae.decoder_rows.detach(), sae.encoder_rows.detach()):
        assert float(rows.abs().max()) == pytest.approx(bound, rel=1e-3)
        # Uniform on ±bound.
        assert float(rows.std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not sae.decoder_rows.equal(sae.encoder_rows)
    assert float(sae.b_enc.abs().max()) == float(sae.b_dec.abs().max()) == 0
    # Seeded; the decoder is drawn first, whatever the encoder.
    assert sae.decoder_rows.equal(make(seed=3, d_in=64, d_sae=256).decoder_rows)
    assert not sae.decoder_rows.equal(make(seed=4, d_in=64, d_sae=256).decoder_rows)


@KINDS
def test_rows_have_length_one_after_training_and_there_is_no_decoder_bias(tied: bool) -> None:
    sae = make(tied=tied, l1_coefficient=0.1)
    before = sae.W_dec.detach().clone()
    # Far off centre: a decoder bias would have much to learn.
    trained(sae, (batch + 3 for batch in batches()), 20)
    assert (sae.W_dec - before).abs().max() > 0.05
    torch.testing.assert_close(row_lengths(sae.W_dec), torch.ones(D_SAE, dtype=torch.float64))
    # The parameter itself is not projected.
    assert (row_lengths(sae.decoder_rows) - 1).abs().max() > 0.05
    assert "b_dec" not in dict(sae.named_parameters())
    assert float(sae.b_dec.abs().max()) == 0
    assert sae.W_enc.equal(sae.W_dec.T) == tied


def test_a_row_of_zeros_makes_no_nan() -> None:
    sae = make()
    with torch.no_grad():
        sae.decoder_rows[0] = 0
    forward(sae, noise(BATCH, D_IN), 0.1).loss.backward()
    assert all(torch.isfinite(value.grad).all() for value in sae.parameters())
