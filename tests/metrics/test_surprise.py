from __future__ import annotations

import numpy as np
import pytest

from sae_faithful.metrics.jackknife import NO_SPREAD
from sae_faithful.metrics.surprise import auroc, first_token_excess, fpr_at_95, token_mean

HUNDRED = np.arange(1.0, 101.0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_tokens_count_equally_whatever_the_length_of_their_sequence() -> None:
    value, interval = token_mean(np.array([2.0, 12.0]), np.array([1.0, 3.0]))
    assert value == 14 / 4
    assert interval.reason == "2 sequences; an interval needs at least 50"


def test_auroc_by_hand(rng: np.random.Generator) -> None:
    # 200.5 against 1 … 100 wins always; 50 loses 50, ties 1, wins 49: 49.5 of 100.
    assert auroc(np.array([200.5]), HUNDRED, rng)[0] == 1
    assert auroc(np.array([50.0]), HUNDRED, rng)[0] == 0.495


@pytest.mark.parametrize(
    # The threshold is 95: of the reference's hundred scores the smallest that lets 95 through.
    ("shift", "share"), [(0, 0.95), (-5, 1.0), (5, 0.90), (94, 0.01), (95, 0.0), (-1_000, 1.0)],
)  # fmt: skip
def test_fpr_by_hand(rng: np.random.Generator, shift: float, share: float) -> None:
    assert fpr_at_95(HUNDRED + shift, HUNDRED, rng)[0] == pytest.approx(share)


def test_fpr_rounds_up_to_a_whole_sequence(rng: np.random.Generator) -> None:
    # 95 % of ten is 9.5: the threshold lets all ten through.
    assert fpr_at_95(np.array([9.5, 10.0, 10.5, 11.0]), np.arange(1.0, 11.0), rng)[0] == 0.5


def test_fpr_interval_covers_and_texts_apart_have_none(rng: np.random.Generator) -> None:
    covered = 0
    for _ in range(60):
        # Standard normals 1 apart: P(N(1, 1) < 1.644854) = Φ(.644854) = .740489.
        _, (low, high, _) = fpr_at_95(rng.normal(1, 1, 150), rng.normal(0, 1, 150), rng)
        assert low is not None and high is not None
        covered += low < 0.740489 < high
    assert covered >= 52
    assert fpr_at_95(HUNDRED + 1_000, HUNDRED, rng) == (0, (None, None, NO_SPREAD))
    assert fpr_at_95(HUNDRED[:49], HUNDRED, rng)[1].reason == "49 sequences; an interval needs at least 50"


def test_first_token_excess_is_zero_for_the_models_own(rng: np.random.Generator) -> None:
    p = np.array([0.6, 0.3, 0.1])
    entropy = -(p * np.log(p)).sum()
    first = rng.choice(3, size=2_000, p=p)
    value, (low, high, _) = first_token_excess(-np.log(p)[first], np.full(2_000, entropy))
    assert low is not None and high is not None
    assert low < 0 < high
    # Always the least likely token: ln 10 − H, with no spread at all.
    value, _ = first_token_excess(np.full(60, np.log(10)), np.full(60, entropy))
    assert value == pytest.approx(np.log(10) - entropy)


def test_flaw_the_first_token_score_does_not_measure_sample_size(rng: np.random.Generator) -> None:
    """Reference flaw: KL of observed first-token frequencies reads 6.2 nats at 1k samples of the model's own."""
    p = np.full(50_000, 1 / 50_000)
    for n in (100, 10_000):
        first = rng.integers(0, 50_000, n)
        entropy = np.full(n, -(p * np.log(p)).sum())
        assert first_token_excess(-np.log(p)[first], entropy)[0] == pytest.approx(0, abs=1e-9)
