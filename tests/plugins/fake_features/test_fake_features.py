"""Fake Feature Ratio on latents planted by hand: which fire on random tokens, and on which real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sae_faithful import LanguageModel, TokenSet, UsageError, load_plugins
from sae_faithful_plugins.fake_features import FakeFeatures

VOCAB, BOS, EOS, PAD = 64, 0, 1, 2
ORDINARY = np.arange(3, VOCAB)
N_RANDOM = 1_000


@pytest.fixture(autouse=True)
def no_tokenizer(one_hot_model: Any) -> None:
    """A model given in code may come without one."""
    one_hot_model.tokenizer = None


def at_a_tenth(n_tokens: int, **options: Any) -> FakeFeatures:
    """The evaluator at the paper's threshold, with nothing beside the SAEs themselves."""
    return FakeFeatures(n_tokens, **{"taus": [0.1], "baselines": False, "n_contexts": 0, **options})


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
    return measure(at_a_tenth(N_RANDOM), [plant(EIGHT)], {"faithful": own_text()})


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
    result = measure(at_a_tenth(N_RANDOM), [plant(dense)], {"faithful": own_text()})
    assert result.row("ffr", seed=0, subset="all")["value"] == 3 / 4
    assert result.row("ffr_contrast", seed=0, subset="all")["value"] == 0


def test_the_contrast_asks_for_more_than_the_ratio(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # Fires on w6 and on all other tokens but w5: own rate .1, random rate .98: between 9 and 10 times.
    handle = plant(table(everywhere(1.0, but=(5,))))
    for ratio, expected in ((9.0, 1.0), (11.0, 0.0)):
        result = measure(at_a_tenth(N_RANDOM, ratio=ratio), [handle], {"faithful": own_text()})
        assert result.row("ffr_contrast", seed=0, subset="all")["value"] == expected


@pytest.mark.parametrize(
    ("activation", "ffr", "fire"), [(1.0, 0.0, 1.0), (1.001, 1.0, 1.0), (0.001, 0.0, 1.0)]
)
def test_ffr_counts_activations_above_one_and_ffr_fire_above_zero(
    plant: Callable[..., Any], measure: Callable[..., Any], activation: float, ffr: float, fire: float
) -> None:
    handle = plant(table(everywhere(activation)))
    result = measure(at_a_tenth(200), [handle], {"faithful": own_text()})
    assert result.row("ffr", seed=0, subset="all")["value"] == ffr
    assert result.row("ffr_fire", seed=0, subset="all")["value"] == fire


def test_flaw_scaling_activations_moves_ffr_but_not_ffr_fire_nor_ffr_contrast(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    """Reference flaw: a threshold of 1.0 depends on the scale; the same SAE with latents ten times as large."""
    encoder = table(everywhere(0.5), everywhere(0.5, but=(5,)), everywhere(2.0, but=(5,)), {})
    decoder = np.eye(4, VOCAB)
    values = [
        measure(at_a_tenth(N_RANDOM), [plant(*weights)], {"faithful": own_text()})
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
    result = measure(at_a_tenth(N_RANDOM), [plant(encoder)], {"faithful": own_text()})
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
    result = measure(at_a_tenth(100, taus=[0.09, 0.1]), [handle], {"faithful": own_text()})
    assert result.row("ffr", seed=0, subset="all", condition="rate>0.09")["value"] == 1
    assert result.row("ffr", seed=0, subset="all", condition="rate>0.1")["value"] == 0


def test_every_tau_has_its_rows(plant: Callable[..., Any], measure: Callable[..., Any]) -> None:
    # A quarter of the ordinary tokens: 15 of 61.
    handle = plant(table(dict.fromkeys(range(10, 25), 2.0)))
    source = at_a_tenth(N_RANDOM, taus=[0.01, 0.2, 0.3])
    result = measure(source, [handle], {"faithful": own_text()})
    found = [
        result.row("ffr", seed=0, subset="all", condition=f"rate>{tau}")["value"] for tau in (0.01, 0.2, 0.3)
    ]
    assert found == [1, 1, 0]


def test_when_no_latent_is_alive_the_alive_rows_say_so(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    result = measure(at_a_tenth(200), [plant(table({}, {60: 2.0}))], {"faithful": own_text()})
    row = result.row("ffr", seed=0, subset="alive")
    assert (row["value"], row["reason"]) == (None, "no latent is alive")
    assert result.row("ffr", seed=0, subset="all")["value"] == 0


def test_flaw_random_numbers_are_seeded(plant: Callable[..., Any], measure: Callable[..., Any]) -> None:
    """Reference flaw: no seed."""
    # Six tokens of 61: a rate near tau, so that every random number shows in the interval.
    handle = plant(table(dict.fromkeys(range(10, 16), 2.0), everywhere(2.0)))
    first, second = (measure(at_a_tenth(N_RANDOM), [handle], {"faithful": own_text()}) for _ in range(2))
    assert first.rows == second.rows


# Intervals and several SAEs


def test_a_borderline_latent_widens_the_interval_and_a_clear_one_does_not(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # 1,000 tokens in 100 sequences: the SE of a rate of 6/61 = .098 is .0094, so .1 is within it.
    encoder = table(everywhere(2.0), dict.fromkeys(range(10, 16), 2.0))
    result = measure(at_a_tenth(N_RANDOM), [plant(encoder)], {"faithful": own_text()})
    row = result.row("ffr", seed=0, subset="all")
    assert (row["ci_low"], row["ci_high"]) == (0.5, 1.0)
    clear = measure(at_a_tenth(N_RANDOM), [plant(encoder[:, :1])], {"faithful": own_text()})
    row = clear.row("ffr", seed=0, subset="all")
    assert (row["ci_low"], row["ci_high"]) == (1.0, 1.0)


def test_too_few_sequences_give_a_reason_and_no_interval(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    result = measure(at_a_tenth(490), [plant(EIGHT)], {"faithful": own_text()})
    row = result.row("ffr", seed=0, subset="all")
    # 49 rows of ten.
    assert (row["ci_low"], row["ci_high"]) == (None, None)
    assert row["reason"] == "49 sequences; an interval needs at least 50"


def test_too_little_text_of_its_own_costs_the_contrast_alone_its_interval(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    measured = measure(at_a_tenth(N_RANDOM), [plant(EIGHT)], {"faithful": own_text(20)})
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
    result = measure(at_a_tenth(N_RANDOM), handles, {"faithful": own_text()})
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
    result = measure(at_a_tenth(N_RANDOM), handles, texts)
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
    measure(at_a_tenth(N_RANDOM), handles, {"faithful": own_text()})
    # The random tokens in one batch of 100 rows, the text in one of 60.
    assert sorted(n for _, n in one_hot_model.passes) == [60, 100]


def test_flaw_the_model_is_loaded_once_for_all_saes(
    plant: Callable[..., Any], measure: Callable[..., Any], tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference flaw: the model is loaded again for every SAE."""
    import sae_lens.load_model

    loads: list[Any] = []
    load = sae_lens.load_model.load_model
    monkeypatch.setattr(
        sae_lens.load_model, "load_model", lambda *args, **kwargs: loads.append(args) or load(*args, **kwargs)
    )
    model = LanguageModel(tiny_llama, hooks=("model.layers.0",))
    handles = [plant(EIGHT, seed=seed) for seed in range(3)]
    # Random and shuffled tokens, the text itself and the contexts: all that there is to run.
    measure(FakeFeatures(200), handles, {"faithful": own_text()}, language_model=model)
    assert len(loads) == 1


def test_results_do_not_depend_on_the_batches(plant: Callable[..., Any], measure: Callable[..., Any]) -> None:
    results = [
        measure(at_a_tenth(N_RANDOM), [plant(EIGHT)], {"faithful": own_text()}, batch_rows=n)
        for n in (7, 1_000)
    ]
    assert results[0].rows == results[1].rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taus": [0.1, 1.0]}, r"taus: 1.0 is not a share in \[0, 1\)"),
        ({"taus": [-0.1]}, r"taus: -0.1 is not a share in \[0, 1\)"),
        ({"taus": []}, "taus: give at least one"),
        ({"activation": -1.0}, "activation: -1.0 is below 0"),
        ({"tau": 0.1}, "unknown option 'tau'"),
        ({"n_tokens": "many"}, "n_tokens.*'many'"),
    ],
)
def test_bad_options_are_refused_by_name_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_plugins().create("evaluator", "fake_features", options)


# Relative to the latent's own median

# Own text: w5 nine times in ten, w6 once, so that medians are the activations on w5. 2 and 2.2 are in different
# bins of the histogram (2 to 2.125, 2.125 to 2.25).
MEDIANS = table(
    {**everywhere(9.0), 5: 4.0, 6: 1.0},  # 0: median 4, and 9 on random tokens
    {**everywhere(9.0), 5: 9.0, 6: 9.0},  # 1: median 9, and 9 on random tokens: not above it
    {**everywhere(0.2), 5: 0.1, 6: 8.0},  # 2: as 0, but never above 1
    {**everywhere(2.2), 5: 2.0},  # 3: median 2, and 2.2 on random tokens
    everywhere(0.5, but=(5, 6)),  # 4: never on its own text
    {5: 3.0},  # 5: only on w5, just at its median
)


def test_ffr_relative_counts_activations_above_the_latents_own_median(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    result = measure(at_a_tenth(N_RANDOM), [plant(MEDIANS)], {"faithful": own_text()})
    # 0, 2 and 3; among all latents 4 too: it has no firing to be measured by, so that any counts.
    assert result.row("ffr_relative", seed=0, subset="all")["value"] == 4 / 6
    assert result.row("ffr_relative", seed=0, subset="alive")["value"] == 3 / 5
    row = result.row("ffr_relative", seed=0, subset="alive")
    assert (row["ci_low"], row["ci_high"]) == (3 / 5, 3 / 5)
    rates = result.features["it.rate_random_relative"]
    assert (rates > 0.9).tolist() == [True, False, True, True, True, False]
    assert rates[[1, 5]].tolist() == [0, 0]
    # The upper edges of the medians' bins; none for the latent that has no median.
    medians = result.features["it.median_own"]
    assert medians[[0, 1, 2, 3, 5]].tolist() == pytest.approx([4.25, 9.5, 0.1015625, 2.125, 3.125])
    assert np.isnan(medians[4])


def test_flaw_scaling_activations_does_not_move_ffr_relative(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    """Reference flaw: a threshold of 1.0 depends on the scale."""
    values = [
        measure(at_a_tenth(N_RANDOM), [plant(scale * MEDIANS)], {"faithful": own_text()})
        .row("ffr_relative", seed=0, subset="alive")["value"]
        for scale in (0.01, 1, 100)
    ]  # fmt: skip
    assert values == [3 / 5] * 3


# Baselines


def test_ratios_on_shuffled_text_are_those_of_its_unigrams(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # Half of the rows are w5, half w6 and w7. Shuffled, the latents' rates are what they were: no latent of
    # the one-hot model knows of order. Latent 2 fires on random tokens alone.
    rows = np.concatenate([np.tile([BOS, *[5] * 10], (30, 1)), np.tile([BOS, *[6, 7] * 5], (30, 1))])
    handle = plant(table({5: 2.0}, {6: 0.5}, everywhere(2.0, but=(5, 6, 7)), {}))
    evaluator = FakeFeatures(N_RANDOM, taus=[0.1, 0.3], n_contexts=0)
    result = measure(evaluator, [handle], {"faithful": TokenSet.from_rows(rows)})
    # Rates .5, .25, 0, 0: above .1 two fire, above .3 one; above 1.0 only the first.
    for metric, tenth, third in (("ffr_fire_shuffled", 2 / 4, 1 / 4), ("ffr_shuffled", 1 / 4, 1 / 4)):
        for tau, expected in ((0.1, tenth), (0.3, third)):
            assert result.row(metric, seed=0, subset="all", condition=f"rate>{tau}")["value"] == expected
    # No oftener than on text in its order, and never above the median.
    for metric in ("ffr_contrast_shuffled", "ffr_relative_shuffled"):
        assert result.row(metric, seed=0, subset="all", condition="rate>0.1")["value"] == 0
    assert result.features["it.rate_shuffled"].tolist() == [0.5, 0.25, 0, 0]
    assert result.row("ffr_fire_shuffled", subset="all", condition="rate>0.1")["value"] == 2 / 4


def test_the_random_sae_is_as_sparse_as_the_saes_and_stands_once_beside_those_of_a_source(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # Every token of the text lights 5 of 40 latents: k is 5, so that rates add up to at most 5.
    handles = [plant(table(*[everywhere(2.0)] * 5, *[{}] * 35), seed=seed) for seed in (0, 1)]
    evaluator = FakeFeatures(N_RANDOM, taus=[0.0, 0.9], n_contexts=0)
    result = measure(evaluator, handles, {"faithful": own_text()})
    row = result.row("ffr_fire_random_sae", subset="all", condition="rate>0")
    # Of 40 random directions nearly all are among the 5 nearest to some of 61 one-hot vectors, none to all.
    assert 0.9 <= row["value"] <= 1
    assert row["n"] == 1_000
    assert row["ci_low"] <= row["value"] <= row["ci_high"]
    assert result.row("ffr_fire_random_sae", subset="all", condition="rate>0.9")["value"] == 0
    # Own text is two tokens: at most ten latents are alive.
    alive = result.row("ffr_fire_random_sae", subset="alive", condition="rate>0")
    assert alive["value"] == 1
    # No more than 5 active a token: Σ rates ≤ 5, so at most 25 latents of 40 have a rate above .2.
    few = measure(FakeFeatures(N_RANDOM, taus=[0.2], n_contexts=0), handles, {"faithful": own_text()})
    assert few.row("ffr_fire_random_sae", subset="all")["value"] <= 25 / 40


def test_in_training_there_is_no_work_for_baselines_and_contexts(
    plant: Callable[..., Any], measure: Callable[..., Any], one_hot_model: Any
) -> None:
    monitor = load_plugins().create("evaluator", "fake_features", FakeFeatures.monitor_budget)
    result = measure(monitor, [plant(EIGHT)], {"faithful": own_text()})
    assert {row["metric"] for row in result.rows} == {
        f"{metric}{what}"
        for metric in ("ffr", "ffr_fire", "ffr_relative", "ffr_contrast")
        for what in ("", "_borderline")
    }
    assert {row["condition"] for row in result.rows} == {"rate>0.1"}
    # 500 random tokens in rows of ten, and the text; nothing else went through the model, nothing was drawn.
    assert sorted(n for _, n in one_hot_model.passes) == [50, 60]
    assert not (result.folder / "artifacts").exists()


# What is not settled


def test_borderline_latents_are_counted(plant: Callable[..., Any], measure: Callable[..., Any]) -> None:
    # Six tokens of 61 are .098 of them, near .1 at 1,000 tokens (SE .0094); 20 of 61 are far from it. Latent 2
    # fires on six too, but on all of its text with them: it is settled not to stand out.
    near = dict.fromkeys(range(10, 16), 2.0)
    dense = dict.fromkeys([5, 6, 10, 11, 12, 13], 2.0)
    handle = plant(table(near, dict.fromkeys(range(10, 30), 2.0), dense, {}))
    result = measure(at_a_tenth(N_RANDOM), [handle], {"faithful": own_text()})
    row = result.row("ffr_fire_borderline", seed=0, subset="all")
    assert (row["value"], row["n"]) == (2 / 4, 4)
    contrast = result.row("ffr_contrast_borderline", seed=0, subset="all")
    assert contrast["value"] == 1 / 4
    assert row["reason"] == contrast["reason"] == "how many latents the counts leave open is no estimate"
    assert result.row("ffr_borderline", seed=0, subset="all")["value"] == 2 / 4
    # Alive on its own text: latent 2 alone.
    row = result.row("ffr_fire_borderline", seed=0, subset="alive")
    assert (row["value"], row["n"]) == (1, 1)
    for metric, value in (("ffr_fire_borderline", 2 / 4), ("ffr_contrast_borderline", 1 / 4)):
        of_source = result.row(metric, subset="all")
        assert of_source["value"] == value
        assert of_source["reason"] == "one SAE says nothing about the spread between SAEs"


def test_too_few_sequences_say_nothing_about_what_is_settled(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    result = measure(at_a_tenth(490), [plant(EIGHT)], {"faithful": own_text()})
    row = result.row("ffr_borderline", seed=0, subset="all")
    assert (row["value"], row["reason"]) == (None, "49 sequences; an interval needs at least 50")


# The report's table


def test_the_table_shows_ffr_and_ffr_contrast_at_a_tenth(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    result = measure(FakeFeatures(N_RANDOM, n_contexts=0), [plant(EIGHT)], {"faithful": own_text()})
    shown = [
        (row["metric"], row["condition"], row["subset"], row["seed"])
        for row in result.rows
        if row["headline"]
    ]
    assert sorted(shown) == [
        (metric, "rate>0.1", subset, None)
        for metric in ("ffr", "ffr_contrast")
        for subset in ("alive", "all")
    ]
    assert {row["condition"] for row in result.rows} == {f"rate>{tau}" for tau in (0.01, 0.05, 0.1, 0.2)}
