"""SAEs against baselines: values and intervals worked out by hand, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from scipy import stats

from sae_faithful import SAEHandle
from sae_faithful_plugins.autointerp.differences import Difference, Differences, Kind, Sample
from sae_faithful_plugins.autointerp.reading import reading

BY = "explainer=a, b, simulator=c, mode=json"
SCORE = Kind("autointerp_score", "correlation", "top_and_random", BY)
TOKENS = Kind("token_set_score", "correlation", "top_and_random", "")
HOOK = "model.layers.0"


def handle(variant: str, seed: int = 0, **changes: Any) -> SAEHandle:
    fields = {
        "source": "faithful",
        "hook": HOOK,
        "variant": variant,
        "seed": seed,
        "load": lambda: None,
        **changes,
    }
    return SAEHandle(**fields)


def baseline(name: str, seed: int = 0, **changes: Any) -> SAEHandle:
    return handle(name, seed, kind="baseline", **changes)


def ten(mean: float) -> list[float]:
    """Ten scores around a mean; s² = 10 · .1² / 9 = 1/90."""
    return [mean - 0.1] * 5 + [mean + 0.1] * 5


def found(samples: Sequence[tuple[SAEHandle, list[float]]], kind: Kind = SCORE) -> list[Difference]:
    differences = Differences(None)
    for one, values in samples:
        differences.add(kind, Sample(one, values))
    return list(differences.found())


def test_an_sae_against_a_baseline_is_a_difference_of_two_samples_of_features() -> None:
    sae, source = (one.row for one in found([(handle("main"), ten(0.7)), (baseline("pca"), ten(0.4))]))
    assert (sae.metric, sae.unit, sae.seed, sae.variant) == (
        "autointerp_score_difference", "correlation", 0, "main",
    )  # fmt: skip
    assert (sae.condition, sae.n) == (f"minus pca, top_and_random, {BY}", 20)
    # SE² = 1/900 + 1/900, and 18 degrees of freedom since both have the same spread: t = 2.1009.
    assert sae.value == pytest.approx(0.3)
    assert (sae.ci_low, sae.ci_high) == pytest.approx((0.3 - 0.09904, 0.3 + 0.09904), abs=1e-5)
    assert not sae.headline
    # One SAE: its source has the value alone.
    assert source.value == pytest.approx(0.3)
    assert (source.seed, source.n, source.ci_low) == (None, 1, None)
    assert source.reason == "one SAE says nothing about the spread between SAEs"
    assert source.headline


def test_a_source_against_a_baseline_of_one_fit_is_saes_against_its_features() -> None:
    rows = found([(handle("main", 0), ten(0.6)), (handle("main", 1), ten(0.8)), (baseline("pca"), ten(0.4))])
    source = rows[-1].row
    # SE² = .02/2 + (1/90)/10; Welch and Satterthwaite's degrees of freedom.
    square = 0.01 + 1 / 900
    half = stats.t.ppf(0.975, square**2 / (0.01**2 / 1 + (1 / 900) ** 2 / 9)) * square**0.5
    assert source.value == pytest.approx(0.3)
    assert (source.ci_low, source.ci_high) == pytest.approx((0.3 - half, 0.3 + half))
    assert source.n == 2
    # Both SAEs are held against the one fit.
    assert [one.row.value for one in rows[:2]] == pytest.approx([0.2, 0.4])


def test_a_baseline_of_several_fits_is_compared_seed_by_seed_and_fits_are_a_sample() -> None:
    rows = found(
        [
            (handle("main", 0), ten(0.6)), (handle("main", 1), ten(0.8)),
            (baseline("ica", 0), ten(0.5)), (baseline("ica", 1), ten(0.3)),
        ]
    )  # fmt: skip
    assert [one.row.value for one in rows] == pytest.approx([0.1, 0.5, 0.3])
    # Means .6, .8 and .5, .3: SE² = .01 + .01, two degrees of freedom: t = 4.3027.
    half = 4.302653 * 0.02**0.5
    assert (rows[2].row.ci_low, rows[2].row.ci_high) == pytest.approx((0.3 - half, 0.3 + half), abs=1e-5)


def test_only_like_is_compared_with_like() -> None:
    samples = [
        (handle("main"), ten(0.7)), (handle("wide"), ten(0.6)),
        (baseline("pca"), ten(0.4)), (baseline("ica"), ten(0.3)),
        (baseline("pca", hook="elsewhere"), ten(0.1)), (baseline("pca", source="other"), ten(0.2)),
    ]  # fmt: skip
    rows = [one.row for one in found(samples) if one.row.seed is None]
    values = {(row.variant, (row.condition or "").split(",")[0]): row.value for row in rows}
    assert values == {
        ("main", "minus pca"): pytest.approx(0.3), ("main", "minus ica"): pytest.approx(0.4),
        ("wide", "minus pca"): pytest.approx(0.2), ("wide", "minus ica"): pytest.approx(0.3),
    }  # fmt: skip
    assert {(row.source, row.hook) for row in rows} == {("faithful", HOOK)}
    differences = Differences("news")
    differences.add(SCORE, Sample(handle("main"), ten(0.7)))
    differences.add(TOKENS, Sample(baseline("pca"), ten(0.7)))
    assert list(differences.found()) == []


def test_where_there_is_no_interval_there_is_a_reason_and_without_scores_no_value() -> None:
    few, _ = (one.row for one in found([(handle("main"), [0.5] * 4), (baseline("pca"), ten(0.4))]))
    assert (few.value, few.reason) == (pytest.approx(0.1), "4 features; an interval needs at least 10")
    alike, _ = (one.row for one in found([(handle("main"), [1.0] * 10), (baseline("pca"), [1.0] * 10)]))
    assert (alike.value, alike.reason) == (0, "all values of both samples are equal: they show no spread")
    for samples in (([], ten(0.4)), (ten(0.4), [])):
        rows = [one.row for one in found([(handle("main"), samples[0]), (baseline("pca"), samples[1])])]
        assert [(row.value, row.reason) for row in rows] == [(None, "no feature could be scored")] * 2
    # Of two SAEs one has scores: the source is that one, and has no interval.
    rows = [
        one.row
        for one in found([(handle("main"), ten(0.7)), (handle("main", 1), []), (baseline("pca"), ten(0.4))])
    ]
    assert [row.value for row in rows] == [pytest.approx(0.3), None, pytest.approx(0.3)]
    assert (rows[2].n, rows[2].reason) == (1, "one SAE says nothing about the spread between SAEs")
    # The features of a single fit are too few.
    saes = [(handle("main"), ten(0.7)), (handle("main", 1), ten(0.6))]
    few = found([*saes, (baseline("pca"), [0.2, 0.4])])[-1].row
    assert few.reason == "2 features; an interval needs at least 10"


@pytest.mark.parametrize(
    ("metric", "subset", "headline"),
    [
        ("token_set_score", "top_and_random", True), ("autointerp_score", "top_and_random", True),
        ("autointerp_score", "top_only", False), ("token_set_score", "random_only", False),
        ("detection_balanced_accuracy", "", False), ("fuzzing_f1", "", False),
    ],
)  # fmt: skip
def test_the_short_table_has_whole_scores_of_sources_only(metric: str, subset: str, headline: bool) -> None:
    kind = Kind(metric, "share", subset, "")
    rows = [one.row for one in found([(handle("main"), ten(0.7)), (baseline("pca"), ten(0.4))], kind)]
    assert [row.headline for row in rows] == [False, headline]


def test_the_reading_says_higher_lower_or_undecided_and_by_whom() -> None:
    rows = found(
        [
            (handle("main"), ten(0.5)), (baseline("low"), ten(0.3)), (baseline("same"), ten(0.48)),
            (baseline("high"), ten(0.9)), (baseline("empty"), []), (baseline("few"), [0.1, 0.2]),
        ]
    )  # fmt: skip
    # 1.2009 · √(2/900) is .0990 for each.
    assert reading(rows).splitlines()[:6] == [
        f"autointerp_score at {HOOK} (autointerpretation, by simulation; {BY}):",
        "- faithful, main: higher than low: +0.200 (95 % interval +0.101 to +0.299, over features of the one SAE).",
        "- faithful, main: undecided against same: +0.020 (95 % interval -0.079 to +0.119, over features of the one "
        "SAE).",
        "- faithful, main: lower than high: -0.400 (95 % interval -0.499 to -0.301, over features of the one SAE).",
        "- faithful, main: not compared with empty: no feature could be scored.",
        "- faithful, main: undecided against few: +0.350, no interval (2 features; an interval needs at least 10).",
    ]


def test_the_reading_of_several_saes_and_hooks_has_a_part_for_each_and_no_other_subsets() -> None:
    several = [
        *found(
            [(handle("main", seed), ten(0.7 + seed / 100)) for seed in (0, 1)] + [(baseline("pca"), ten(0.4))]
        ),
        *found([(handle("main", hook="late"), ten(0.7)), (baseline("pca", hook="late"), ten(0.4))]),
        *found([(handle("main"), ten(0.7)), (baseline("pca"), ten(0.4))], SCORE._replace(subset="top_only")),
        *found([(handle("main"), ten(0.7)), (baseline("pca"), ten(0.4))], TOKENS),
    ]
    text = reading(several)
    assert text.count("higher than pca") == 3
    assert "over 2 SAEs)" in text
    assert [line.split(" (")[0] for line in text.splitlines() if line.endswith("):")] == [
        f"autointerp_score at {HOOK}", "autointerp_score at late", f"token_set_score at {HOOK}",
    ]  # fmt: skip
    # What needs no language model is never called autointerpretation.
    (token_line,) = [line for line in text.splitlines() if line.startswith("token_set_score")]
    assert token_line.count("autointerpretation") == token_line.count("no autointerpretation") == 1
    assert "explainer" not in token_line


def test_one_sae_whose_own_fit_has_no_scores_is_read_by_its_source() -> None:
    rows = found([(handle("main"), ten(0.7)), (baseline("ica", 0), []), (baseline("ica", 1), ten(0.4))])
    assert "undecided against ica: +0.300, no interval (one SAE says nothing" in reading(rows)
