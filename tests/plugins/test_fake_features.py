"""Fake Feature Ratio on latents planted by hand: which fire on random tokens, and on which real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sae_faithful import EvalContext, TokenSet, UsageError, load_plugins
from sae_faithful_plugins.fake_features import FakeFeatures, random_tokens

VOCAB, BOS, EOS, PAD = 64, 0, 1, 2
ORDINARY = np.arange(3, VOCAB)
N_RANDOM = 1_000


def own_text(n_rows: int = 60) -> TokenSet:
    """Rows of BOS, nine times w5 and once w6."""
    return TokenSet.from_rows(np.tile([BOS, *[5] * 9, 6], (n_rows, 1)))


def table(*latents: dict[int, float]) -> np.ndarray:
    """Encoder [vocabulary, latents] of latents given as activation by token."""
    encoder = np.zeros((VOCAB, len(latents)))
    for column, latent in enumerate(latents):
        for token, activation in latent.items():
            encoder[token, column] = activation
    return encoder


def everywhere(activation: float, *, but: tuple[int, ...] = ()) -> dict[int, float]:
    """A latent with that activation on every ordinary token but a few."""
    return {int(token): activation for token in ORDINARY if token not in but}


# Eight latents. On random tokens a latent that fires on all but one or two tokens has a rate of about 60/61.
EIGHT = table(
    everywhere(2.0),  # 0: dense: fires on everything, its own text too
    everywhere(2.0, but=(5,)),  # 1: on 1 in 10 of its own text's tokens: six times as often on random ones...
    everywhere(0.5, but=(5,)),  # 2: ... and the same, but never above 1
    {6: 2.0},  # 3: on one token in 61: not fake
    {5: 3.0},  # 4: likewise
    {},  # 5: dead
    everywhere(2.0, but=(5, 6)),  # 6: never on its own text: dead there, but active on random tokens
    {},  # 7: dead
)


@pytest.fixture
def eight(plant: Callable[..., Any], measure: Callable[..., Any]) -> Any:
    """The eight latents, measured."""
    return measure(FakeFeatures(n_tokens=N_RANDOM), [plant(EIGHT)], {"faithful": own_text()})


def test_planted_fake_latents_give_the_exact_ratios(eight: Any) -> None:
    # Active above 1 on over a tenth of random tokens: latents 0, 1, 6 of 8.
    assert eight.row("ffr", seed=0, subset="all")["value"] == 3 / 8
    # Active at all: 0, 1, 2, 6.
    assert eight.row("ffr_fire", seed=0, subset="all")["value"] == 4 / 8
    # And more than twice as often as on its own text: 1, 2, 6.
    assert eight.row("ffr_contrast", seed=0, subset="all")["value"] == 3 / 8


def test_flaw_dead_latents_are_not_in_the_alive_ratios(eight: Any) -> None:
    """Reference flaw: dead latents in the denominator."""
    # Alive on the SAE's own text: 0 to 4. Of these 0 and 1; 0, 1 and 2; 1 and 2.
    assert eight.row("ffr", seed=0, subset="alive")["value"] == 2 / 5
    assert eight.row("ffr_fire", seed=0, subset="alive")["value"] == 3 / 5
    assert eight.row("ffr_contrast", seed=0, subset="alive")["value"] == 2 / 5


def test_flaw_merely_dense_latents_are_not_counted_by_the_contrast(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    """Reference flaw: no contrast with real text, so that dense latents count as fake."""
    # All four fire on everything or on half of everything; own text is w5 and w6.
    dense = table(everywhere(2.0), everywhere(2.0), dict.fromkeys(range(3, 34), 2.0), {})
    # Latent 2: rate 31/61 on random tokens, 1 on its own text.
    result = measure(FakeFeatures(n_tokens=N_RANDOM), [plant(dense)], {"faithful": own_text()})
    assert result.row("ffr", seed=0, subset="all")["value"] == 3 / 4
    assert result.row("ffr_contrast", seed=0, subset="all")["value"] == 0


def test_the_contrast_asks_for_more_than_the_ratio(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # Fires on w6 and on all other tokens but w5: own rate .1, random rate .98: between 9 and 10 times.
    handle = plant(table(everywhere(1.0, but=(5,))))
    for ratio, expected in ((9.0, 1.0), (11.0, 0.0)):
        result = measure(FakeFeatures(n_tokens=N_RANDOM, ratio=ratio), [handle], {"faithful": own_text()})
        assert result.row("ffr_contrast", seed=0, subset="all")["value"] == expected


@pytest.mark.parametrize(
    ("activation", "ffr", "fire"), [(1.0, 0.0, 1.0), (1.001, 1.0, 1.0), (0.001, 0.0, 1.0)]
)
def test_ffr_counts_activations_above_one_and_ffr_fire_above_zero(
    plant: Callable[..., Any], measure: Callable[..., Any], activation: float, ffr: float, fire: float
) -> None:
    handle = plant(table(everywhere(activation)))
    result = measure(FakeFeatures(n_tokens=200), [handle], {"faithful": own_text()})
    assert result.row("ffr", seed=0, subset="all")["value"] == ffr
    assert result.row("ffr_fire", seed=0, subset="all")["value"] == fire


def test_flaw_scaling_activations_moves_ffr_but_not_ffr_fire_nor_ffr_contrast(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    """Reference flaw: a threshold of 1.0 depends on the scale; the same SAE with latents ten times as large."""
    encoder = table(everywhere(0.5), everywhere(0.5, but=(5,)), everywhere(2.0, but=(5,)), {})
    decoder = np.eye(4, VOCAB)
    values = [
        measure(FakeFeatures(n_tokens=N_RANDOM), [plant(*weights)], {"faithful": own_text()})
        for weights in ((encoder, decoder), (10 * encoder, decoder / 10))
    ]
    ratios = [
        [one.row(metric, seed=0, subset="all")["value"] for metric in ("ffr", "ffr_fire", "ffr_contrast")]
        for one in values
    ]
    # Before: latent 2 alone is above 1; 0, 1 and 2 fire; 1 and 2 stand out. After: 0, 1 and 2 are above 1.
    assert ratios == [[1 / 4, 3 / 4, 2 / 4], [3 / 4, 3 / 4, 2 / 4]]


def test_flaw_bos_is_not_in_the_denominator(plant: Callable[..., Any], measure: Callable[..., Any]) -> None:
    """Reference flaw: the dropped BOS is counted."""
    # Latent 0 fires on every ordinary token, latent 1 on BOS alone.
    encoder = table(everywhere(2.0), {BOS: 2.0})
    result = measure(FakeFeatures(n_tokens=N_RANDOM), [plant(encoder)], {"faithful": own_text()})
    # Rows of 11 hold 10 random tokens each. With BOS counted the rates would be 10/11 and 1/11.
    assert result.features["it.rate_random"].tolist() == [1.0, 0.0]
    assert result.features["it.rate_own"].tolist() == [1.0, 0.0]
    assert result.row("ffr", seed=0, subset="all")["n"] == 1_000


def test_a_share_of_exactly_tau_is_not_more_than_tau(
    plant: Callable[..., Any], measure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_faithful_plugins import fake_features

    # Ten "random" tokens a row, one of them w6.
    monkeypatch.setattr(fake_features, "random_tokens", lambda context, n: own_text())
    handle = plant(table({6: 2.0}))
    result = measure(FakeFeatures(taus=[0.09, 0.1]), [handle], {"faithful": own_text()})
    assert result.row("ffr", seed=0, subset="all", condition="rate>0.09")["value"] == 1
    assert result.row("ffr", seed=0, subset="all", condition="rate>0.1")["value"] == 0


def test_every_tau_has_its_rows(plant: Callable[..., Any], measure: Callable[..., Any]) -> None:
    # A quarter of the ordinary tokens: 15 of 61.
    handle = plant(table(dict.fromkeys(range(10, 25), 2.0)))
    source = FakeFeatures(n_tokens=N_RANDOM, taus=[0.01, 0.2, 0.3])
    result = measure(source, [handle], {"faithful": own_text()})
    found = [
        result.row("ffr", seed=0, subset="all", condition=f"rate>{tau}")["value"] for tau in (0.01, 0.2, 0.3)
    ]
    assert found == [1, 1, 0]


def test_when_no_latent_is_alive_the_alive_rows_say_so(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    result = measure(FakeFeatures(n_tokens=200), [plant(table({}, {60: 2.0}))], {"faithful": own_text()})
    row = result.row("ffr", seed=0, subset="alive")
    assert (row["value"], row["reason"]) == (None, "no latent is alive")
    assert result.row("ffr", seed=0, subset="all")["value"] == 0


# Random tokens


def context_of(model: Any, seed: int = 7, n_columns: int = 11) -> EvalContext:
    held_out = {"faithful": own_text().head(3)}
    assert held_out["faithful"].context_size == n_columns
    return EvalContext(handles=[], held_out=held_out, sources=[], language_model=model, seed=seed)


def test_rows_of_random_tokens_start_with_bos_and_are_as_long_as_the_training_rows(
    one_hot_model: Any,
) -> None:
    rows = random_tokens(context_of(one_hot_model), 1_005).rows()
    # Ten random tokens a row: 101 rows are the fewest that hold 1,005.
    assert rows.shape == (101, 11)
    assert (rows[:, 0] == BOS).all()


def test_flaw_special_tokens_are_never_sampled(one_hot_model: Any) -> None:
    """Reference flaw: ids uniform over the whole vocabulary, special tokens included."""
    drawn = random_tokens(context_of(one_hot_model), 10_000).rows()[:, 1:]
    assert not np.isin(drawn, [BOS, EOS, PAD]).any()
    # All the others are, equally often: 10,000 draws of 61 tokens.
    counts = np.bincount(drawn.flatten(), minlength=VOCAB)[3:]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_flaw_random_tokens_are_seeded(
    one_hot_model: Any, plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    """Reference flaw: random tokens without a seed."""
    one, again, other = (random_tokens(context_of(one_hot_model, seed), 500).rows() for seed in (7, 7, 8))
    assert (one == again).all()
    assert (one != other).any()
    # Six tokens of 61: a rate near tau, so that every random number shows in the interval.
    handle = plant(table(dict.fromkeys(range(10, 16), 2.0), everywhere(2.0)))
    first, second = (
        measure(FakeFeatures(n_tokens=N_RANDOM), [handle], {"faithful": own_text()}) for _ in range(2)
    )
    assert first.rows == second.rows


# Intervals and several SAEs


def test_a_borderline_latent_widens_the_interval_and_a_clear_one_does_not(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # 1,000 tokens in 100 sequences: the SE of a rate of 6/61 = .098 is .0094, so .1 is within it.
    encoder = table(everywhere(2.0), dict.fromkeys(range(10, 16), 2.0))
    result = measure(FakeFeatures(n_tokens=N_RANDOM), [plant(encoder)], {"faithful": own_text()})
    row = result.row("ffr", seed=0, subset="all")
    assert (row["ci_low"], row["ci_high"]) == (0.5, 1.0)
    clear = measure(FakeFeatures(n_tokens=N_RANDOM), [plant(encoder[:, :1])], {"faithful": own_text()})
    row = clear.row("ffr", seed=0, subset="all")
    assert (row["ci_low"], row["ci_high"]) == (1.0, 1.0)


def test_too_few_sequences_give_a_reason_and_no_interval(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    result = measure(FakeFeatures(n_tokens=490), [plant(EIGHT)], {"faithful": own_text()})
    row = result.row("ffr", seed=0, subset="all")
    # 49 rows of ten.
    assert (row["ci_low"], row["ci_high"]) == (None, None)
    assert row["reason"] == "49 sequences; an interval needs at least 50"


def test_too_little_text_of_its_own_costs_the_contrast_alone_its_interval(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    measured = measure(FakeFeatures(n_tokens=N_RANDOM), [plant(EIGHT)], {"faithful": own_text(20)})
    assert measured.row("ffr_fire", seed=0, subset="all")["ci_low"] == 4 / 8
    row = measured.row("ffr_contrast", seed=0, subset="all")
    assert (row["value"], row["ci_low"]) == (3 / 8, None)
    assert row["reason"] == "20 sequences; an interval needs at least 50"


def test_the_sources_row_is_the_mean_over_saes_with_its_t_interval(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # One, two and three fake latents of five: shares .2, .4, .6.
    handles = [
        plant(table(*[everywhere(2.0)] * n, *[{}] * (5 - n)), seed=seed) for seed, n in enumerate((1, 2, 3))
    ]
    result = measure(FakeFeatures(n_tokens=N_RANDOM), handles, {"faithful": own_text()})
    assert [result.row("ffr", seed=seed, subset="all")["value"] for seed in range(3)] == [0.2, 0.4, 0.6]
    row = result.row("ffr", subset="all")
    # Mean .4, SD .2, SE .2/√3 = .1154701; t with 2 degrees of freedom at 97.5 %: 4.302653. Half width .496828.
    assert row["value"] == pytest.approx(0.4)
    assert row["ci_low"] == pytest.approx(0.4 - 0.496828, abs=1e-5)
    assert row["ci_high"] == pytest.approx(0.4 + 0.496828, abs=1e-5)
    assert row["n"] == 3


def test_one_sae_gives_a_source_row_with_a_reason(eight: Any) -> None:
    row = eight.row("ffr", subset="all")
    assert (row["value"], row["ci_low"]) == (3 / 8, None)
    assert row["reason"] == "one SAE says nothing about the spread between SAEs"


def test_each_sae_is_held_against_its_own_sources_text(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # Fires on everything but w5. On w5 text it never fires, on w9 text always.
    encoder = table(everywhere(2.0, but=(5,)))
    texts = {name: TokenSet.from_rows(np.tile([BOS, *[t] * 10], (60, 1))) for name, t in (("a", 5), ("b", 9))}
    handles = [plant(encoder, source=name) for name in texts]
    result = measure(FakeFeatures(n_tokens=N_RANDOM), handles, texts)
    assert result.row("ffr_contrast", source="a", subset="all")["value"] == 1
    assert result.row("ffr_contrast", source="b", subset="all")["value"] == 0


def test_every_latents_rates_go_to_the_feature_table(eight: Any) -> None:
    table_of = eight.features.set_index("latent")
    assert len(table_of) == 8
    assert table_of["it.rate_own"].tolist() == pytest.approx([1.0, 0.1, 0.1, 0.1, 0.9, 0.0, 0.0, 0.0])
    assert table_of["it.rate_random_above"].iloc[2] == 0
    assert table_of["it.rate_random"].iloc[2] == table_of["it.rate_random"].iloc[1] > 0.9


def test_flaw_the_model_runs_once_for_all_saes(
    plant: Callable[..., Any], measure: Callable[..., Any], one_hot_model: Any
) -> None:
    """Reference flaw: the model is loaded and run again for every SAE."""
    handles = [plant(EIGHT, seed=seed) for seed in range(4)]
    measure(FakeFeatures(n_tokens=N_RANDOM), handles, {"faithful": own_text()})
    # The random tokens in one batch of 100 rows, the text in one of 60.
    assert sorted(n for _, n in one_hot_model.passes) == [60, 100]


def test_results_do_not_depend_on_the_batches(plant: Callable[..., Any], measure: Callable[..., Any]) -> None:
    results = [
        measure(FakeFeatures(n_tokens=N_RANDOM), [plant(EIGHT)], {"faithful": own_text()}, batch_rows=n)
        for n in (7, 1_000)
    ]
    assert results[0].rows == results[1].rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taus": [0.1, 1.0]}, r"taus: 1.0 is not a share in \[0, 1\)"),
        ({"taus": [-0.1]}, r"taus: -0.1 is not a share in \[0, 1\)"),
        ({"tau": 0.1}, "unknown option 'tau'"),
        ({"n_tokens": "many"}, "n_tokens.*'many'"),
    ],
)
def test_bad_options_are_refused_by_name_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_plugins().create("evaluator", "fake_features", options)
