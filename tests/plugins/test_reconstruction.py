"""Reconstruction: by hand on the one-hot model, and against SAELens's own functions on the tiny Llama."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from sae_faithful import ExperimentConfig, LanguageModel, SAEHandle, TokenSet
from sae_faithful_plugins.fake_features import FakeFeatures
from sae_faithful_plugins.reconstruction import Reconstruction
from sae_faithful_plugins.reconstruction.observing import WITH_BOS
from sae_faithful_plugins.self_generated import SelfGenerated
from sae_faithful_plugins.shared_features import SharedFeatures

VOCAB, BOS, EOS, PAD, D_MODEL = 64, 0, 1, 2, 64
HOOK, LATER_HOOK = "model.layers.0", "model.layers.1"


def rows_of(*tokens: int, n_rows: int = 60) -> TokenSet:
    return TokenSet.from_rows(np.tile(tokens, (n_rows, 1)))


def identity_on(*tokens: int) -> np.ndarray:
    """Encoder whose latent i is the activation on token i, for those tokens."""
    encoder = np.zeros((VOCAB, VOCAB))
    encoder[list(tokens), list(tokens)] = 1.0
    return encoder


def row_of(measured: Any, metric: str, **wanted: Any) -> dict[str, Any]:
    """The one row, under the default condition (without BOS) unless another is named."""
    return measured.row(metric, **{"condition": None, **wanted})


# By hand. Activations are unit vectors e5 and e6; BOS's is 100 · e0.

THREE_FIVES_AND_A_SIX = (BOS, 5, 5, 5, 6, 5, 5, 5, 6, 5, 5, 5, 6)


@pytest.fixture
def keeps_five(plant: Callable[..., Any]) -> SAEHandle:
    """An SAE that reconstructs e5 exactly and nothing else."""
    return plant(identity_on(5), np.eye(VOCAB))


def test_explained_variance_l0_and_ce_loss_score_by_hand(
    keeps_five: SAEHandle, measure: Callable[..., Any]
) -> None:
    measured = measure(Reconstruction(), [keeps_five], {"faithful": rows_of(*THREE_FIVES_AND_A_SIX)})
    place = {"seed": 0, "dataset": "faithful"}
    # Errors: 1 on each w6, a quarter of tokens. Variance: E‖x‖² − ‖E x‖² = 1 − (9/16 + 1/16) = 3/8.
    assert row_of(measured, "explained_variance", **place)["value"] == pytest.approx(1 - (1 / 4) / (3 / 8))
    # One latent on w5, none on w6.
    assert row_of(measured, "l0", **place)["value"] == pytest.approx(3 / 4)
    # Predictions at w5 are the model's own, at w6 those of a zero activation: all of the ablated loss.
    # 9 w5 and 2 w6 predict something; the last w6 of a row has no next token.
    assert row_of(measured, "ce_loss_score", **place)["value"] == pytest.approx(9 / 11)
    assert row_of(measured, "fvu", **place)["value"] == pytest.approx((1 / 4) / (3 / 8))
    assert row_of(measured, "l0", **place)["n"] == 60 * 12
    assert row_of(measured, "ce_loss_score", **place)["n"] == 60 * 11


# At w5 and w6 the one-hot model gives w5 and w6 the weight e⁴ and 62 others the weight 1.
TOTAL_WEIGHT = 2 * math.e**4 + 62
OWN_LOSS = -math.log(math.e**4 / TOTAL_WEIGHT)
UNIFORM_LOSS = math.log(64)


def test_the_other_measures_by_hand(keeps_five: SAEHandle, measure: Callable[..., Any]) -> None:
    measured = measure(Reconstruction(), [keeps_five], {"faithful": rows_of(*THREE_FIVES_AND_A_SIX)})
    found = {
        metric: row_of(measured, metric, seed=0)["value"]
        for metric in ("r2_per_dimension", "l2", "cosine", "ce_difference", "kl", "perplexity")
    }
    # Of 12 tokens 3 are w6. Dimension 5: no error. Dimension 6: 1 − 3 / (3 − 9/12). The others never vary.
    assert found["r2_per_dimension"] == pytest.approx((1 + (1 - 3 / 2.25)) / 2)
    # e6 becomes 0, with which it has no angle.
    assert found["l2"] == pytest.approx(3 / 12)
    assert found["cosine"] == pytest.approx(9 / 12)
    # 2 of 11 predictions are made at w6, from nothing: uniform.
    assert found["ce_difference"] == pytest.approx(2 / 11 * (UNIFORM_LOSS - OWN_LOSS), abs=1e-6)
    entropy = 2 * math.e**4 / TOTAL_WEIGHT * OWN_LOSS + 62 / TOTAL_WEIGHT * math.log(TOTAL_WEIGHT)
    assert found["kl"] == pytest.approx(2 / 11 * (UNIFORM_LOSS - entropy), abs=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp((9 * OWN_LOSS + 2 * UNIFORM_LOSS) / 11), rel=1e-5)
    clean = measured.row("perplexity_clean", condition=None)
    assert clean["value"] == pytest.approx(math.exp(OWN_LOSS), rel=1e-5)
    assert (clean["source"], clean["hook"], clean["dataset"], clean["n"]) == (None, None, "faithful", 660)


def test_with_bos_it_is_replaced_and_predictions_made_at_it_count(
    keeps_five: SAEHandle, measure: Callable[..., Any]
) -> None:
    measured = measure(Reconstruction(), [keeps_five], {"faithful": rows_of(*THREE_FIVES_AND_A_SIX)})
    found = {
        metric: row_of(measured, metric, seed=0, condition=WITH_BOS)
        for metric in ("l2", "cosine", "l0", "ce_difference", "ce_loss_score")
    }
    # BOS, of norm 100, is lost.
    assert found["l2"]["value"] == pytest.approx((100 + 3) / 13)
    assert found["cosine"]["value"] == found["l0"]["value"] == pytest.approx(9 / 13)
    # After BOS the weights are e⁴⁰⁰ and 1: a loss of log 2, from nothing log 64. Two predictions at w6 besides.
    lost = (UNIFORM_LOSS - math.log(2)) + 2 * (UNIFORM_LOSS - OWN_LOSS)
    assert found["ce_difference"]["value"] == pytest.approx(lost / 12, abs=1e-6)
    all_lost = lost + 9 * (UNIFORM_LOSS - OWN_LOSS)
    assert found["ce_loss_score"]["value"] == pytest.approx(1 - lost / all_lost, abs=1e-6)
    assert found["ce_loss_score"]["n"] == 60 * 12
    own = measured.row("perplexity_clean", condition=WITH_BOS)["value"]
    assert own == pytest.approx(math.exp((math.log(2) + 11 * OWN_LOSS) / 12), rel=1e-5)


def test_with_bos_other_special_tokens_still_count_nowhere(
    keeps_five: SAEHandle, measure: Callable[..., Any]
) -> None:
    measured = measure(Reconstruction(), [keeps_five], {"faithful": rows_of(BOS, 5, EOS, 6, PAD)})
    row = row_of(measured, "l0", seed=0, condition=WITH_BOS)
    assert (row["value"], row["n"]) == (pytest.approx(1 / 3), 60 * 3)


def test_a_bos_where_the_saes_were_not_trained_stays_out(
    keeps_five: SAEHandle, measure: Callable[..., Any]
) -> None:
    # As an SAE's file has it: from the second position on.
    keeps_five.sae.cfg.metadata.seqpos_slice = [1, None]
    measured = measure(Reconstruction(), [keeps_five], {"faithful": rows_of(BOS, 5, BOS, 6)})
    # w5, the second BOS, w6.
    row = row_of(measured, "l0", seed=0, condition=WITH_BOS)
    assert (row["value"], row["n"]) == (pytest.approx(1 / 3), 60 * 3)


def test_a_text_without_bos_has_no_rows_with_bos(keeps_five: SAEHandle, measure: Callable[..., Any]) -> None:
    measured = measure(Reconstruction(), [keeps_five], {"faithful": rows_of(5, 6, 5, 5)})
    assert {row["condition"] for row in measured.rows} == {None}


def test_losses_with_bos_are_made_from_fewer_rows(keeps_five: SAEHandle, measure: Callable[..., Any]) -> None:
    held_out = {"faithful": TokenSet.from_rows(np.array([[BOS] + [5] * 7] * 10 + [[BOS] + [6] * 7] * 50))}
    options = Reconstruction(ce_tokens=160, bos_ce_tokens=80)
    for batch_rows in (3, 1_000):
        measured = measure(options, [keeps_five], held_out, batch_rows=batch_rows)
        # 20 rows, half of them w5, with 6 predictions each; 10 rows of w5, with one more prediction, made at BOS.
        row = row_of(measured, "ce_difference", seed=0)
        assert (row["value"], row["n"]) == (pytest.approx((UNIFORM_LOSS - OWN_LOSS) / 2, abs=1e-6), 120)
        row = row_of(measured, "ce_difference", seed=0, condition=WITH_BOS)
        assert (row["value"], row["n"]) == (pytest.approx((UNIFORM_LOSS - math.log(2)) / 7, abs=1e-6), 70)
    # None at all, and no more than without BOS.
    none = measure(Reconstruction(ce_tokens=160, bos_ce_tokens=0), [keeps_five], held_out)
    assert {row["metric"] for row in none.rows if row["condition"] == WITH_BOS} == ACTIVATION_SPACE
    most = measure(Reconstruction(ce_tokens=80, bos_ce_tokens=160), [keeps_five], held_out)
    assert row_of(most, "kl", seed=0, condition=WITH_BOS)["n"] == 70


ACTIVATION_SPACE = {"explained_variance", "fvu", "r2_per_dimension", "l2", "cosine", "l0", "alive_features"}


@pytest.mark.parametrize("option", ["ce_tokens", "bos_ce_tokens", "alive_firings"])
def test_a_negative_number_of_tokens_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}: -1 is below 0"):
        Reconstruction(**{option: -1})


def test_the_short_table_has_four_numbers_of_every_source_on_every_text(
    keeps_five: SAEHandle, measure: Callable[..., Any]
) -> None:
    texts = {"faithful": rows_of(BOS, 5, 6, 5), "news": rows_of(BOS, 6, 5, 6)}
    measured = measure(Reconstruction(), [keeps_five], texts)
    shown = [row for row in measured.rows if row["headline"]]
    assert {(row["metric"], row["dataset"]) for row in shown} == {
        (metric, text)
        for metric in ("explained_variance", "l0", "ce_loss_score", "ce_difference")
        for text in texts
    }
    assert {(row["seed"], row["condition"]) for row in shown} == {(None, None)}


# Sparsity against fidelity


def test_features_are_alive_above_ten_firings_on_each_text(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # Of 60 rows: w5 in all, w6 in 11, w7 in 10, w8 in none. A latent for each; w9's fires on BOS alone.
    tokens = np.full((60, 4), 5)
    tokens[:, 0], tokens[:11, 2], tokens[:10, 3] = BOS, 6, 7
    encoder = identity_on(5, 6, 7, 8)
    encoder[BOS, 9] = 1.0
    handle = plant(encoder, np.eye(VOCAB))
    texts = {"faithful": TokenSet.from_rows(tokens), "other": rows_of(BOS, 8, 8)}
    measured = measure(Reconstruction(), [handle], texts)
    row = row_of(measured, "alive_features", seed=0, dataset="faithful")
    assert (row["value"], row["n"], row["unit"]) == (2, 180, "latents")
    assert row_of(measured, "alive_features", seed=0, dataset="other")["value"] == 1
    assert row_of(measured, "alive_features", seed=0, dataset="faithful", condition=WITH_BOS)["value"] == 3
    lower = measure(Reconstruction(alive_firings=9), [handle], texts)
    assert row_of(lower, "alive_features", seed=0, dataset="faithful")["value"] == 3


def test_a_sweep_has_a_point_for_every_sae_on_every_text(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    handles = [
        plant(identity_on(5)[:, :n], variant=variant, seed=seed)
        for variant, n in (("wide", 64), ("narrow", 32))
        for seed in (0, 1)
    ]
    for handle in handles:
        if handle.variant == "wide":
            handle.sae.cfg.metadata.training_architecture = "standard"
            handle.sae.cfg.metadata.training_architecture_details = {"l1_coefficient": 3.2}
    texts = {"faithful": rows_of(*THREE_FIVES_AND_A_SIX), "news": rows_of(BOS, 6, 6, 5)}
    measured = measure(Reconstruction(), handles, texts)
    points = json.loads((measured.folder / "artifacts/sweep.json").read_text())["points"]
    assert [(point["dataset"], point["variant"], point["seed"]) for point in points] == [
        (text, variant, seed) for text in texts for variant in ("narrow", "wide") for seed in (0, 1)
    ]
    first, wide = points[0], points[2]
    # What its file does not say stays empty.
    assert (first["architecture"], first["expansion"], first["alpha"], first["k"]) == (
        "standard",
        0.5,
        None,
        None,
    )
    assert (wide["d_sae"], wide["expansion"], wide["l1_coefficient"]) == (64, 1, 3.2)
    assert wide["alpha"] == pytest.approx(3.2 / 64)
    for name in ("l0", "fvu", "alive_features", "perplexity"):
        row = row_of(measured, name, variant="narrow", seed=0, dataset="faithful")
        assert (first[name], first[f"{name}_low"]) == (row["value"], row["ci_low"])
    # The two seeds of a variant are the same SAE here.
    assert first["mmcs"] == pytest.approx(1)
    table = (measured.folder / "artifacts/sweep.txt").read_text().splitlines()
    assert table[2] == (
        "| source | hook | variant | architecture | expansion | l1_coefficient | alpha | l0 | fvu | alive_features "
        "| perplexity | mmcs | SAEs |"
    )
    # The means on the source's own text; 1/4 of tokens is lost, of a variance of 3/8.
    assert table[4].startswith(f"| faithful | {HOOK} | narrow | standard | 0.5 |  |  | 0.75 | 0.6667 | 1 |")
    assert table[5].startswith(f"| faithful | {HOOK} | wide | standard | 1 | 3.2 | 0.05 | 0.75 |")
    assert len(table) == 6


def test_one_variant_is_no_sweep_to_show(keeps_five: SAEHandle, measure: Callable[..., Any]) -> None:
    measured = measure(Reconstruction(ce_tokens=0), [keeps_five], {"faithful": rows_of(BOS, 5, 6)})
    artifacts = measured.folder / "artifacts"
    assert [path.name for path in artifacts.iterdir()] == ["sweep.json"]
    (point,) = json.loads((artifacts / "sweep.json").read_text())["points"]
    assert "perplexity" not in point
    assert "mmcs" not in point


# Inside training


def test_a_monitor_runs_no_whole_forward_and_measures_the_weights_of_the_moment(
    plant: Callable[..., Any],
    one_hot_model: Any,
    measure: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    def refuse(*_: Any) -> Any:
        raise AssertionError("a whole forward")

    monkeypatch.setattr(one_hot_model, "logits", refuse)
    monkeypatch.setattr(one_hot_model, "logits_with_edit", refuse)
    handle = plant(identity_on(), np.eye(VOCAB))
    monitor = Reconstruction(**Reconstruction.monitor_budget)
    held_out = {"faithful": rows_of(*THREE_FIVES_AND_A_SIX)}
    before = measure(monitor, [handle], held_out)
    assert {row["metric"] for row in before.rows} == ACTIVATION_SPACE
    assert {row["condition"] for row in before.rows} == {None}
    assert row_of(before, "l0", seed=0)["value"] == 0
    with torch.no_grad():
        handle.sae.W_enc[5, 5] = 1.0
    assert row_of(measure(monitor, [handle], held_out), "l0", seed=0)["value"] == pytest.approx(3 / 4)


# The one-hot model, once more


def test_a_perfect_sae_scores_one_and_one_that_gives_zero_scores_zero(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    perfect = plant(identity_on(5, 6), np.eye(VOCAB), seed=0)
    nothing = plant(identity_on(), np.eye(VOCAB), seed=1)
    measured = measure(Reconstruction(), [perfect, nothing], {"faithful": rows_of(*THREE_FIVES_AND_A_SIX)})
    assert row_of(measured, "explained_variance", seed=0)["value"] == pytest.approx(1)
    assert row_of(measured, "ce_loss_score", seed=0)["value"] == pytest.approx(1)
    assert row_of(measured, "ce_loss_score", seed=1)["value"] == pytest.approx(0)
    # Errors of 1 a token against a variance of 3/8: worse than the mean.
    assert row_of(measured, "explained_variance", seed=1)["value"] == pytest.approx(1 - 8 / 3)


def test_an_sae_of_shuffled_rows_is_worse_than_none(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    """A negative control: latents as they were, each with the direction of another."""
    own = plant(identity_on(5, 6), np.eye(VOCAB), seed=0)
    shuffled = plant(identity_on(5, 6), np.roll(np.eye(VOCAB), 3, axis=0), seed=1)
    measured = measure(Reconstruction(), [own, shuffled], {"faithful": rows_of(*THREE_FIVES_AND_A_SIX)})
    assert row_of(measured, "l0", seed=1)["value"] == row_of(measured, "l0", seed=0)["value"] == 1
    assert row_of(measured, "fvu", seed=0)["value"] == pytest.approx(0)
    # Errors of 1 + 1 a token, orthogonal as its direction is, against a variance of 3/8.
    assert row_of(measured, "fvu", seed=1)["value"] == pytest.approx(2 / (3 / 8))


def test_flaw_bos_is_left_out_whatever_its_norm(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    """Reference flaw: BOS left in, whose huge norm inflates explained variance."""
    # The same SAE, which besides reconstructs BOS (norm 100) exactly, with every latent active on it.
    encoder = identity_on(5)
    encoder[BOS, 10:] = 1e-9
    encoder[BOS, BOS] = 1.0
    measured = measure(
        Reconstruction(), [plant(encoder, np.eye(VOCAB))], {"faithful": rows_of(*THREE_FIVES_AND_A_SIX)}
    )
    # As without.
    assert row_of(measured, "explained_variance", seed=0)["value"] == pytest.approx(1 / 3)
    assert row_of(measured, "l0", seed=0)["value"] == pytest.approx(3 / 4)
    # With BOS in, 13 tokens hold Σ‖x‖² = 10,012 and Σx = (100, 9, 3); errors 3.
    flattered = 1 - 3 / (10_012 - (100**2 + 9**2 + 3**2) / 13)
    assert flattered > 0.9996
    row = row_of(measured, "explained_variance", seed=0, condition=WITH_BOS)
    assert row["value"] == pytest.approx(flattered)
    assert row["n"] == 60 * 13
    # Nor is the flattered number what a report shows.
    assert not any(row["headline"] for row in measured.rows if row["condition"] == WITH_BOS)


def test_flaw_sequences_count_by_their_tokens_and_not_equally(
    keeps_five: SAEHandle, measure: Callable[..., Any]
) -> None:
    """Reference flaw: sequences weighted equally whatever their length."""
    # One in two rows is short: BOS, one w6, then padding, which does not count.
    long, short = [BOS, 5, 5, 5, 5, 5, 5, 6], [BOS, 6, PAD, PAD, PAD, PAD, PAD, PAD]
    tokens = TokenSet.from_rows(np.array([long, short] * 30))
    measured = measure(Reconstruction(), [keeps_five], {"faithful": tokens})
    # Of 8 tokens a pair of rows, 6 are w5. Rows weighted equally would give an L0 of (6/7 + 0) / 2 = .43.
    assert row_of(measured, "l0", seed=0)["value"] == pytest.approx(6 / 8)
    # Errors 2/8; variance 1 − (9/16 + 1/16) = 3/8.
    assert row_of(measured, "explained_variance", seed=0)["value"] == pytest.approx(1 - (2 / 8) / (3 / 8))
    # Of 7 predictions one is made from nothing: padding after w6, of weight 1. Equal rows would make it one in two.
    difference = row_of(measured, "ce_difference", seed=0)["value"]
    assert difference == pytest.approx((UNIFORM_LOSS - math.log(TOTAL_WEIGHT)) / 7, abs=1e-6)


def test_the_ce_loss_score_is_made_from_the_first_rows_only(
    keeps_five: SAEHandle, measure: Callable[..., Any]
) -> None:
    # Ten rows of w5 alone (all reconstructed), then fifty of w6 alone (none).
    tokens = TokenSet.from_rows(np.array([[BOS] + [5] * 7] * 10 + [[BOS] + [6] * 7] * 50))
    held_out = {"faithful": tokens}
    for batch_rows in (3, 1_000):
        measured = measure(Reconstruction(ce_tokens=80), [keeps_five], held_out, batch_rows=batch_rows)
        row = row_of(measured, "ce_loss_score", seed=0)
        # 80 tokens are 10 rows, each with six predictions made at w5.
        assert (row["value"], row["n"]) == (pytest.approx(1), 60)
        assert row["reason"] == "10 sequences; an interval needs at least 50"
        # The others are of every row: 10 rows of 60 have a latent active.
        assert row_of(measured, "l0", seed=0)["value"] == pytest.approx(1 / 6)


def test_every_sae_is_measured_on_every_text_and_the_sources_row_is_the_mean(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # L0 on text a (w5 only): 1, 1, 2 for seeds 0, 1, 2; on text b (w6 only): 0, 1, 1.
    encoders = [identity_on(5), identity_on(5, 6), identity_on(5, 6)]
    encoders[2][5, 40] = 1.0
    handles = [plant(encoder, np.eye(VOCAB), source="a", seed=seed) for seed, encoder in enumerate(encoders)]
    texts = {"a": rows_of(BOS, *[5] * 7, 6), "b": rows_of(BOS, *[6] * 7, 5)}
    measured = measure(Reconstruction(), handles, texts)
    # Seven of the main token and one of the other: (7 · 1 + 0, 7 + 1, 7 · 2 + 1) / 8 on a.
    found = {
        name: [row_of(measured, "l0", seed=seed, dataset=name)["value"] for seed in range(3)]
        for name in texts
    }
    assert found == {"a": [7 / 8, 1, 15 / 8], "b": [1 / 8, 1, 9 / 8]}
    row = row_of(measured, "l0", dataset="a")
    # Mean 10/8; deviations −3/8, −2/8, 5/8: SD √(38/64 / 2) = .544862, SE .314576,
    # half width 4.302653 · .314576 = 1.353512.
    assert row["value"] == pytest.approx(10 / 8)
    assert row["ci_low"] == pytest.approx(10 / 8 - 1.353512, abs=1e-5)
    assert row["ci_high"] == pytest.approx(10 / 8 + 1.353512, abs=1e-5)
    assert (row["source"], row["n"]) == ("a", 3)


def test_per_sae_rows_have_intervals_over_sequences_that_hold_the_value(
    keeps_five: SAEHandle, measure: Callable[..., Any]
) -> None:
    rows = np.random.default_rng(0).choice([5, 6], p=[0.75, 0.25], size=(80, 12))
    rows[:, 0] = BOS
    measured = measure(Reconstruction(), [keeps_five], {"faithful": TokenSet.from_rows(rows)})
    rows = [row for row in measured.rows if row["seed"] == 0]
    # Eleven measures, without and with BOS.
    assert len(rows) == 2 * 11
    for row in rows:
        if row["metric"] == "alive_features":
            assert row["reason"] == "how many latents fired often enough on these tokens is no estimate"
        else:
            assert row["ci_low"] < row["value"] < row["ci_high"], row
    # L0 is a share of 880 tokens of .75 that fall independently: SE √(.75 · .25 / 880) = .0146, width about 4 SE.
    row = row_of(measured, "l0", seed=0)
    assert row["ci_high"] - row["ci_low"] == pytest.approx(4 * 0.0146, rel=0.3)


def test_fewer_than_fifty_sequences_give_a_reason_and_no_interval(
    keeps_five: SAEHandle, measure: Callable[..., Any]
) -> None:
    held_out = {"faithful": rows_of(*THREE_FIVES_AND_A_SIX, n_rows=49)}
    measured = measure(Reconstruction(), [keeps_five], held_out)
    rows = [row for row in measured.rows if row["seed"] == 0 or row["source"] is None]
    # Ten of the SAE and the model's own perplexity, without and with BOS.
    rows = [row for row in rows if row["metric"] != "alive_features"]
    assert len(rows) == 2 * 11
    for row in rows:
        assert (row["ci_low"], row["reason"]) == (None, "49 sequences; an interval needs at least 50")


# Against SAELens, on the tiny Llama


@pytest.fixture
def own_tokens(make_request: Callable[..., Any]) -> TokenSet:
    """Sixty rows of the tiny Llama's own samples: documents of all lengths, with BOS and EOS inside rows."""
    tokens = SelfGenerated(batch_size=64).load(make_request(n_tokens=960))
    assert (tokens.rows()[:, 1:] == BOS).any()
    assert (tokens.rows() == EOS).any()
    return tokens


def make_sae(kind: str, seed: int, hook: str = HOOK, source: str = "faithful") -> SAEHandle:
    """A randomly initialised SAELens SAE with biases; a random dictionary explains a little."""

    def load() -> Any:
        import torch
        from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
        from sae_lens.util import temporary_seed

        with temporary_seed(seed), torch.no_grad():
            sae: Any = (
                StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=96))
                if kind == "standard"
                else TopKSAE(TopKSAEConfig(d_in=D_MODEL, d_sae=96, k=24))
            )
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
            sae.W_enc.copy_(sae.W_dec.T)
            sae.b_enc.normal_(std=0.1)
            sae.b_dec.normal_(std=0.1)
        return sae

    return SAEHandle(source=source, hook=hook, variant="main", seed=seed, load=load)


@pytest.mark.parametrize("kind", ["standard", "topk"])
@pytest.mark.parametrize("hook", [HOOK, LATER_HOOK])
def test_explained_variance_equals_saelens_calculator(
    llama: LanguageModel, own_tokens: TokenSet, measure: Callable[..., Any], kind: str, hook: str
) -> None:
    import torch
    from sae_lens.evals import ExplainedVarianceCalculator

    handle = make_sae(kind, 3, hook)
    measured = measure(
        Reconstruction(), [handle], {"faithful": own_tokens}, language_model=llama, batch_rows=7
    )
    tokens = torch.from_numpy(own_tokens.rows())
    with torch.no_grad():
        activations = llama.model.run_with_cache(tokens, names_filter=[hook])[1][hook]
        ordinary = activations[~torch.isin(tokens, torch.tensor([BOS, EOS, PAD]))]
        oracle = ExplainedVarianceCalculator()
        oracle.add_batch(handle.sae(ordinary), ordinary)
        l0 = (handle.sae.encode(ordinary).to_dense() != 0).sum(dim=-1).float().mean()
    row = row_of(measured, "explained_variance", seed=3)
    assert row["value"] == pytest.approx(oracle.compute(), abs=1e-5)
    assert row["n"] == len(ordinary)
    assert row_of(measured, "l0", seed=3)["value"] == pytest.approx(float(l0), abs=1e-5)


@pytest.mark.parametrize(("kind", "hook"), [("standard", HOOK), ("topk", HOOK), ("topk", LATER_HOOK)])
@pytest.mark.parametrize(("condition", "special"), [(None, [BOS, EOS, PAD]), (WITH_BOS, [EOS, PAD])])
def test_losses_and_divergence_equal_saelens_with_special_tokens_excluded(
    llama: LanguageModel,
    own_tokens: TokenSet,
    measure: Callable[..., Any],
    kind: str,
    hook: str,
    condition: str | None,
    special: list[int],
) -> None:
    import torch
    from sae_lens.evals import get_recons_loss
    from sae_lens.training.activation_scaler import ActivationScaler

    handle = make_sae(kind, 3, hook)
    measured = measure(
        Reconstruction(), [handle], {"faithful": own_tokens}, language_model=llama, batch_rows=7
    )
    tokens = torch.from_numpy(own_tokens.rows())
    losses = get_recons_loss(
        handle.sae, llama.model, ActivationScaler(), tokens,
        compute_kl=True, compute_ce_loss=True, ignore_tokens=special, hook_name=hook,
    )  # fmt: skip
    # As `get_downstream_reconstruction_metrics` does it: predictions made at tokens that count, and that have a next.
    counted = ~torch.isin(tokens, torch.tensor(special))[:, :-1]
    sae, own, ablated, divergence = (
        float(losses[name][:, : counted.shape[1]][counted].double().mean())
        for name in ("ce_loss_with_sae", "ce_loss_without_sae", "ce_loss_with_ablation", "kl_div_with_sae")
    )
    found = {
        metric: row_of(measured, metric, seed=3, condition=condition)
        for metric in ("ce_loss_score", "ce_difference", "kl", "perplexity")
    }
    assert found["ce_loss_score"]["value"] == pytest.approx((ablated - sae) / (ablated - own), abs=1e-4)
    assert found["ce_difference"]["value"] == pytest.approx(sae - own, abs=1e-5)
    assert found["kl"]["value"] == pytest.approx(divergence, abs=1e-5)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(sae), rel=1e-5)
    clean = measured.row("perplexity_clean", condition=condition)
    assert clean["value"] == pytest.approx(math.exp(own), rel=1e-5)
    assert {row["n"] for row in (clean, *found.values())} == {int(counted.sum())}
    # The numbers are far enough apart for the comparison to mean something.
    assert abs(ablated - own) > 0.05
    assert abs(sae - own) > 0.01
    assert divergence > 0.01


@pytest.mark.parametrize("hook", [HOOK, LATER_HOOK])
def test_the_identity_leaves_the_loss_and_a_zero_sae_has_that_of_zero_ablation(
    llama: LanguageModel, plant: Callable[..., Any], measure: Callable[..., Any], hook: str
) -> None:
    import torch

    eye = np.eye(D_MODEL)
    identity = plant(np.hstack([eye, -eye]), np.vstack([eye, -eye]), hook=hook, seed=0)
    nothing = plant(np.zeros((D_MODEL, 8)), eye[:8], hook=hook, seed=1)
    rows = np.random.default_rng(0).integers(3, VOCAB, (60, 12))
    rows[:, 0] = BOS
    held_out = {"faithful": TokenSet.from_rows(rows)}
    measured = measure(Reconstruction(), [identity, nothing], held_out, language_model=llama)
    tokens = torch.from_numpy(rows)
    # Without BOS its activation stays and only the others are replaced; with it everything is.
    for condition, first in ((None, 1), (WITH_BOS, 0)):
        zeroed = (torch.arange(12) >= first)[:, None]
        with torch.no_grad():
            own, ablated = (
                torch.nn.functional.cross_entropy(
                    logits[:, first:-1].flatten(0, 1).double(), tokens[:, first + 1 :].flatten()
                ).item()
                for logits in (
                    llama.logits(tokens),
                    llama.logits_with_edit(
                        tokens, hook, lambda x, zeroed=zeroed: torch.where(zeroed, torch.zeros_like(x), x)
                    ),
                )
            )
        assert abs(ablated - own) > 0.05
        found = {
            (metric, seed): row_of(measured, metric, seed=seed, condition=condition)["value"]
            for metric in ("ce_difference", "perplexity", "kl", "ce_loss_score")
            for seed in (0, 1)
        }
        assert found["ce_difference", 0] == pytest.approx(0, abs=1e-5)
        assert found["kl", 0] == pytest.approx(0, abs=1e-5)
        assert found["ce_loss_score", 0] == pytest.approx(1, abs=1e-4)
        assert found["perplexity", 0] == pytest.approx(math.exp(own), rel=1e-5)
        assert found["ce_difference", 1] == pytest.approx(ablated - own, abs=1e-5)
        assert found["perplexity", 1] == pytest.approx(math.exp(ablated), rel=1e-5)
        if condition == WITH_BOS:
            assert found["ce_loss_score", 1] == pytest.approx(0, abs=1e-4)


def test_results_do_not_depend_on_the_batches(
    llama: LanguageModel, own_tokens: TokenSet, measure: Callable[..., Any]
) -> None:
    few, many = (
        measure(
            Reconstruction(), [make_sae("topk", 3)], {"faithful": own_tokens},
            language_model=llama, batch_rows=n,
        )
        for n in (9, 60)
    )  # fmt: skip
    for one, other in zip(few.rows, many.rows, strict=True):
        assert one["value"] == pytest.approx(other["value"], abs=1e-5)
        assert one["n"] == other["n"]


# How often the model runs


class Counted:
    """Counts the model's runs: those stopped at a hook, and whole ones by whether something is edited."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cached: list[tuple[str, ...]] = []
        self.edited = self.plain = 0
        with_cache, with_hooks = model.run_with_cache, model.run_with_hooks

        def run_with_cache(*args: Any, **kwargs: Any) -> Any:
            self.cached.append(tuple(kwargs["names_filter"]))
            return with_cache(*args, **kwargs)

        def run_with_hooks(*args: Any, **kwargs: Any) -> Any:
            if kwargs["fwd_hooks"]:
                self.edited += 1
            else:
                self.plain += 1
            return with_hooks(*args, **kwargs)

        monkeypatch.setattr(model, "run_with_cache", run_with_cache)
        monkeypatch.setattr(model, "run_with_hooks", run_with_hooks)


def test_flaw_the_clean_and_ablated_forwards_run_once_for_all_saes(
    llama: LanguageModel,
    own_tokens: TokenSet,
    measure: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`get_recons_loss` repeats both for every SAE."""
    handles = [make_sae("topk", seed) for seed in range(3)]
    for options, (plain, edited) in {
        # 60 rows of 16 fit one forward of 1,024 tokens: one as it is, one ablated and one for each SAE.
        "without BOS": (Reconstruction(bos=False), (1, 1 + 3)),
        "with BOS": (Reconstruction(), (1, 1 + 3 + 3)),
        "no losses": (Reconstruction(ce_tokens=0), (0, 0)),
    }.values():
        with monkeypatch.context() as patch:
            counted = Counted(llama.model, patch)
            measure(options, handles, {"faithful": own_tokens}, language_model=llama)
            assert (counted.plain, counted.edited) == (plain, edited)
            assert len(counted.cached) == 1


def test_a_text_has_one_perplexity_of_the_model_whatever_the_hooks(
    llama: LanguageModel, own_tokens: TokenSet, measure: Callable[..., Any]
) -> None:
    handles = [make_sae("topk", 0, hook) for hook in (HOOK, LATER_HOOK)]
    options = Reconstruction(ce_tokens=160, bos=False)
    measured = measure(options, handles, {"faithful": own_tokens}, language_model=llama)
    assert len([row for row in measured.rows if row["metric"] == "perplexity_clean"]) == 1


def test_one_pass_of_a_token_set_serves_all_evaluators_saes_and_hooks(
    llama: LanguageModel,
    own_tokens: TokenSet,
    make_request: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    from sae_faithful.evaluation import evaluate
    from sae_faithful.interfaces import EvalContext
    from sae_faithful.plan import PlannedEvaluator
    from sae_faithful.run_folder import RunFolder

    counted = Counted(llama.model, monkeypatch)
    other = SelfGenerated(batch_size=64).load(make_request(n_tokens=960, seed=8))
    # Two sources, two hooks, two seeds: eight SAEs.
    handles = [
        make_sae("topk", seed, hook, source)
        for source in ("a", "b")
        for hook in (HOOK, LATER_HOOK)
        for seed in (0, 1)
    ]
    context = EvalContext(
        handles=handles, held_out={"a": own_tokens, "b": other}, sources=["a", "b"], language_model=llama, seed=7
    )  # fmt: skip
    evaluators = [
        PlannedEvaluator("shared_features", SharedFeatures(), {}),
        PlannedEvaluator("fake_features", FakeFeatures(n_tokens=750, baselines=False), {}),
        PlannedEvaluator("reconstruction", Reconstruction(ce_tokens=16, bos=False), {}),
    ]
    encoded: list[int] = []
    encode = SAEHandle.encode
    monkeypatch.setattr(
        SAEHandle,
        "encode",
        lambda self, activations: encoded.append(len(activations)) or encode(self, activations),
    )
    folder = RunFolder(tmp_path / "run")
    evaluate(evaluators, context, folder, {}, batch_rows=1_000)
    # Three token sets: random tokens (750 / 15 = 50 rows) and the two sources' text, each in one batch.
    assert len(counted.cached) == 3
    assert all(set(hooks) == {HOOK, LATER_HOOK} for hooks in counted.cached)
    # Each SAE encodes random tokens and its own text once for all that look, and, for `reconstruction`,
    # the other source's text: 3 · 8.
    assert len(encoded) == 3 * 8
    # Done again, everything is there already.
    evaluate(evaluators, context, folder, {}, batch_rows=1_000)
    assert len(counted.cached) == 3


# Held out


def test_flaw_held_out_text_is_never_training_text(tiny_config: dict[str, Any]) -> None:
    """Reference flaw: evaluation on the first rows of the *train* split."""
    from sae_faithful import load_plugins
    from sae_faithful.data import prepare_texts
    from sae_faithful.plan import make_plan
    from sae_faithful.run_folder import RunFolder

    config = ExperimentConfig.from_dict({**tiny_config, "evaluators": ["reconstruction"]})
    model = LanguageModel.from_config(config, config.hook_names)
    plan = make_plan(config, load_plugins(), model)
    text = prepare_texts(plan, config, model, RunFolder(tiny_config["output_path"]))["faithful"]
    assert text.train is not None
    trained, held_out = text.train.arrays(), text.held_out.arrays()
    assert len(held_out[0]) > 0
    # No document is on both sides, not even in part, nor any row.
    assert not set(trained[1].flatten()) - {-1} & set(held_out[1].flatten())
    assert not {row.tobytes() for row in trained[0]} & {row.tobytes() for row in held_out[0]}
    # Nor is a document written twice under two numbers.
    documents = {document.tobytes() for document in text.train.documents(BOS)}
    assert not documents & {document.tobytes() for document in text.held_out.documents(BOS)}


def test_evaluators_look_at_held_out_text_and_random_tokens_only(one_hot_model: Any) -> None:
    from sae_faithful.interfaces import EvalContext

    held_out: Mapping[str, TokenSet] = {"a": rows_of(BOS, 5, 6), "b": rows_of(BOS, 6, 5)}
    handles = [make_sae("topk", seed, source=source) for source in held_out for seed in (0, 1)]
    context = EvalContext(
        handles=handles, held_out=held_out, sources=["a", "b"], language_model=one_hot_model, seed=7
    )
    texts = {id(tokens) for tokens in held_out.values()}
    assert {id(observer.tokens) for observer in Reconstruction().observers(context)} == texts
    assert {id(observer.tokens) for observer in SharedFeatures().observers(context)} == texts
    drawn = [
        observer.tokens for observer in FakeFeatures(n_tokens=100, baselines=False).observers(context)
        if id(observer.tokens) not in texts
    ]  # fmt: skip
    # One set of random tokens, shared by the four SAEs.
    assert len(drawn) == 4
    assert len({id(tokens) for tokens in drawn}) == 1


def test_the_ablated_loss_of_the_one_hot_model_is_that_of_a_uniform_guess(one_hot_model: Any) -> None:
    """The by-hand scores above rest on this."""
    import torch

    tokens = torch.tensor([[BOS, 5, 6]])
    own = one_hot_model.logits(tokens)
    ablated = one_hot_model.logits_with_edit(tokens, HOOK, torch.zeros_like)
    loss = torch.nn.functional.cross_entropy(ablated[0, :-1], tokens[0, 1:])
    assert float(loss) == pytest.approx(math.log(64))
    # Two tokens of weight e⁴, 62 of weight 1: at w5 the next one, w6, has p = e⁴ / (2e⁴ + 62).
    own_loss = torch.nn.functional.cross_entropy(own[0, 1:2], tokens[0, 2:])
    assert float(own_loss) == pytest.approx(-math.log(math.e**4 / (2 * math.e**4 + 62)), abs=1e-5)
