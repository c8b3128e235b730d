from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_faithful.metrics.fake_ratio import Criterion, FakeRatios
from sae_faithful.metrics.firing import Exceedances

ROWS = 60
OFTEN = Criterion("any", 0.1)
MORE_THAN_ON_TEXT = Criterion("any", 0.1, 2.0)


def constant(rates: list[float], rows: int = ROWS) -> Exceedances:
    """Latents that each fire on a given share of every row's ten tokens."""
    return in_rows([(rate, rows) for rate in rates], rows)


def in_rows(latents: list[tuple[float, int]], rows: int = ROWS) -> Exceedances:
    """Latents that each fire on a given share of the ten tokens of so many rows, and on none of the others."""
    values = torch.zeros(rows, 10, len(latents))
    for index, (rate, n) in enumerate(latents):
        values[:n, : round(10 * rate), index] = 1.0
    counts = Exceedances(rows, len(latents), 0.0)
    counts.add(0, values, torch.ones(rows, 10, dtype=torch.bool))
    return counts


def ratios(random: Exceedances, own: Exceedances, among: np.ndarray | None = None) -> FakeRatios:
    everything = np.ones(len(random.rates), bool)
    return FakeRatios({"any": random}, own, {"all": everything if among is None else among})


def share(
    random: Exceedances, own: Exceedances, criterion: Criterion, among: np.ndarray | None = None
) -> tuple[float, tuple[float | None, float | None, str | None]]:
    """One criterion's share and interval."""
    found = ratios(random, own, among).shares([criterion], np.random.default_rng(0))
    value, interval = found[criterion, "all"]
    return value, tuple(interval)


# Criteria


def test_a_rate_at_the_threshold_is_not_above_it() -> None:
    rates = np.array([0.0, 0.1, 0.11])
    assert OFTEN.holds(rates, rates).tolist() == [False, False, True]


def test_a_resampled_rate_at_the_threshold_is_not_above_it() -> None:
    # Rates of resamples are float32, in which 0.1 is a little more than it is in double precision.
    value, interval = share(constant([0.1, 0.1]), constant([0, 0]), OFTEN)
    assert (value, interval) == (0, (0, 0, None))


def test_firing_more_than_on_text_takes_both_conditions() -> None:
    random = np.array([0.05, 0.50, 0.50, 0.41, 0.40, 0.50])
    own = np.array([0.00, 0.00, 0.50, 0.20, 0.20, 0.30])
    # Over .1, and over twice the share on text: no (rare), yes, no (dense), yes, no (just twice), no.
    assert MORE_THAN_ON_TEXT.holds(random, own).tolist() == [False, True, False, True, False, False]


# The ratio


def test_planted_fake_latents_are_counted_exactly() -> None:
    # Of eight latents two always fire on random tokens and never on text, one fires always on both.
    random = constant([1, 1, 1, 0, 0, 0, 0, 0])
    own = constant([0, 0, 1, 1, 0.2, 0, 0, 0])
    # Every sequence says the same, and so does every resample.
    assert share(random, own, OFTEN) == (3 / 8, (3 / 8, 3 / 8, None))
    assert share(random, own, MORE_THAN_ON_TEXT) == (2 / 8, (2 / 8, 2 / 8, None))


def test_silent_latents_give_zero() -> None:
    silent = constant([0, 0, 0, 0])
    for criterion in (OFTEN, MORE_THAN_ON_TEXT):
        assert share(silent, silent, criterion) == (0, (0, 0, None))


def test_the_denominator_is_the_subset() -> None:
    # Among the alive (0, 2, 3) one of three is fake; latent 1 is fake but not among them.
    random = constant([1, 1, 0, 0])
    own = constant([0.1, 0, 0.5, 1])
    value, interval = share(random, own, OFTEN, own.rates > 0)
    assert value == pytest.approx(1 / 3)
    assert interval[:2] == pytest.approx((1 / 3, 1 / 3))


def test_a_borderline_latent_widens_the_interval_by_itself_alone() -> None:
    # Latent 0 fires everywhere in 8 of 60 rows: .133 of tokens. A resample draws Binomial(60, .133) of
    # those rows; at most 6 (a rate of at most .1) has probability .27, so both answers are inside 95 %.
    random = in_rows([(1, 8), (1, ROWS), (0, 0), (0, 0)])
    own = constant([0, 0, 0, 0], rows=70)
    for criterion in (OFTEN, MORE_THAN_ON_TEXT):
        assert share(random, own, criterion) == (0.5, (0.25, 0.5, None))


def test_the_interval_follows_the_text_too() -> None:
    # Random tokens say .5 for certain; on text latent 0 fires in 15 of 60 rows, .25 of tokens: twice
    # that is just .5, and half of the resamples of the text fall on either side.
    random, own = constant([0.5, 0]), in_rows([(1, 15), (0, 0)])
    assert share(random, own, MORE_THAN_ON_TEXT)[1] == (0, 0.5, None)
    assert share(random, own, OFTEN)[1] == (0.5, 0.5, None)


def test_few_sequences_give_a_value_without_an_interval() -> None:
    reason = "49 sequences; an interval needs at least 50"
    assert share(constant([1, 0], 49), constant([0, 0]), OFTEN) == (0.5, (None, None, reason))
    assert share(constant([1, 0]), constant([0, 0], 49), MORE_THAN_ON_TEXT) == (0.5, (None, None, reason))
    # Too little text costs nothing that does not look at it.
    assert share(constant([1, 0]), constant([0, 0], 49), OFTEN) == (0.5, (0.5, 0.5, None))


def test_criteria_and_subsets_asked_together_get_what_each_gets_alone() -> None:
    random, own = in_rows([(1, 8), (1, ROWS), (0.3, 20), (0, 0)]), in_rows([(1, 3), (0, 0), (0, 0), (1, 9)])
    alive = own.rates > 0
    both = FakeRatios({"any": random}, own, {"all": alive | True, "alive": alive})
    found = both.shares([OFTEN, MORE_THAN_ON_TEXT], np.random.default_rng(0))
    for criterion in (OFTEN, MORE_THAN_ON_TEXT):
        for subset, among in (("all", None), ("alive", alive)):
            value, interval = found[criterion, subset]
            assert (value, tuple(interval)) == share(random, own, criterion, among)


# What is not settled


def test_latents_far_from_the_threshold_are_settled_and_near_ones_are_not() -> None:
    # 600 tokens. Rates 1, 0 and .5 are far from .1. In 6 of 60 rows everywhere: just .1. In 8 rows: .133, with
    # SE² = 60/59 · (8 · 8.667² + 52 · 1.333²) / 600² = .00196, SE = .0443: .1 is .75 SE away. In 20 rows:
    # .333, SE .0614: 3.8 SE away.
    random = in_rows([(1, ROWS), (0, 0), (0.5, ROWS), (1, 6), (1, 8), (1, 20)])
    unsettled = ratios(random, constant([0] * 6)).unsettled(OFTEN)
    assert unsettled is not None
    assert unsettled.tolist() == [False, False, False, True, True, False]


def test_the_contrast_is_settled_where_one_condition_fails_for_certain() -> None:
    # 0: often, and never on text. 1: often, but as often on text. 2: .133 ± .044, and never on text: open.
    # 3: the same rate, but always on text: not fake whichever way the first condition goes.
    # 4: .5 against twice .25 ± .056: open.
    random = in_rows([(1, ROWS), (1, ROWS), (1, 8), (1, 8), (0.5, ROWS)])
    own = in_rows([(0, 0), (1, ROWS), (0, 0), (1, ROWS), (1, 15)])
    both = ratios(random, own)
    contrast, often = both.unsettled(MORE_THAN_ON_TEXT), both.unsettled(OFTEN)
    assert contrast is not None
    assert often is not None
    assert contrast.tolist() == [False, False, True, False, True]
    assert often.tolist() == [False, False, True, True, False]


def test_a_latent_that_never_fires_is_open_where_there_are_few_tokens() -> None:
    # Never in 600 tokens: SE = √(.5/601 · (1 − .5/601) / 600) = .00118, and t = 2.001: rates to .0024 are open.
    never = ratios(constant([0]), constant([0]))
    for tau, expected in ((0.002, True), (0.003, False)):
        unsettled = never.unsettled(Criterion("any", tau))
        assert unsettled is not None
        assert unsettled.tolist() == [expected]


def test_with_few_sequences_nothing_says_what_is_settled() -> None:
    assert ratios(constant([1], 49), constant([0])).unsettled(OFTEN) is None
    assert ratios(constant([1]), constant([0], 49)).unsettled(MORE_THAN_ON_TEXT) is None
    assert ratios(constant([1]), constant([0], 49)).unsettled(OFTEN) is not None


def test_of_latents_truly_at_the_threshold_about_95_percent_stay_open() -> None:
    """Of latents whose true rate is τ the 95 % intervals must leave about 95 % open."""
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(200, 50, 2_000, generator=generator) < 0.1).float()
    random = Exceedances(200, 2_000)
    random.add(0, values, torch.ones(200, 50, dtype=torch.bool))
    unsettled = ratios(random, constant([0] * 2_000)).unsettled(OFTEN)
    assert unsettled is not None
    # SE of the share: √(.05 · .95 / 2,000) = .005.
    assert unsettled.mean() == pytest.approx(0.95, abs=0.02)
