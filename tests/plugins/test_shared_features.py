"""Shared Feature Ratio on decoders planted by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sae_faithful import TokenSet, UsageError, load_plugins
from sae_faithful_plugins import shared_features
from sae_faithful_plugins.shared_features import SharedFeatures

VOCAB, BOS, D = 64, 0, 64
HOOK = "model.layers.0"


def own_text(n_rows: int = 60) -> TokenSet:
    """Rows of BOS, six times w5, twice w6, once w7, once w8."""
    return TokenSet.from_rows(np.tile([BOS, *[5] * 6, 6, 6, 7, 8], (n_rows, 1)))


def axes(*numbers: int) -> np.ndarray:
    """Decoder whose rows are those unit vectors."""
    return np.eye(D)[list(numbers)]


def at_cosine(cosines: list[float]) -> np.ndarray:
    """Decoder whose row i has cosine c_i with unit vector i and none with the other first unit vectors."""
    n = len(cosines)
    c = np.array(cosines)[:, None]
    return c * np.eye(D)[:n] + np.sqrt(1 - c**2) * np.eye(D)[n : 2 * n]


def firing_on(tokens: list[list[int]]) -> np.ndarray:
    """Encoder whose latent i fires on the i-th list of tokens."""
    encoder = np.zeros((VOCAB, len(tokens)))
    for latent, fires_on in enumerate(tokens):
        encoder[fires_on, latent] = 1.0
    return encoder


ALWAYS = [5, 6, 7, 8]


@pytest.fixture
def share(plant: Callable[..., Any], measure: Callable[..., Any]) -> Callable[..., Any]:
    """Measure SAEs of one source with these decoders, all latents alive unless an encoder says otherwise."""

    def go(*decoders: np.ndarray, encoders: list[np.ndarray] | None = None, **options: Any) -> Any:
        encoders = encoders or [firing_on([ALWAYS] * len(decoder)) for decoder in decoders]
        handles = [
            plant(encoder, decoder, seed=seed)
            for seed, (encoder, decoder) in enumerate(zip(encoders, decoders, strict=True))
        ]
        return measure(SharedFeatures(**options), handles, {"faithful": own_text()})

    return go


def sfr(measured: Any, threshold: float = 0.7, subset: str = "all", **place: Any) -> float:
    return measured.row("sfr", condition=f"cosine>{threshold:g}", subset=subset, **place)["value"]


def rotated(n: int, seed: int) -> np.ndarray:
    """Random directions of different lengths."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, D)) * rng.uniform(0.5, 2, size=(n, 1))


def test_permuted_copies_share_everything(share: Callable[..., Any]) -> None:
    decoder = rotated(40, seed=0)
    order = np.random.default_rng(1).permutation(40)
    # Other lengths too: only directions count.
    measured = share(decoder, 3 * decoder[order])
    for subset in ("all", "alive", "firing_weighted"):
        for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
            assert sfr(measured, threshold, subset) == pytest.approx(1)
        cosine = measured.row("mean_matched_cosine", subset=subset)["value"]
        assert cosine == pytest.approx(1, abs=1e-6)


def test_a_negated_direction_is_not_shared(share: Callable[..., Any]) -> None:
    # Cosines are signed: eight of sixteen directions are turned round.
    decoder = axes(*range(16))
    turned = decoder * np.repeat([1, -1], 8)[:, None]
    assert sfr(share(decoder, turned)) == 8 / 16


def test_a_planted_share_is_found_exactly_at_every_threshold(share: Callable[..., Any]) -> None:
    # Eight latents each at cosine 1, .75, .55 and 0.
    measured = share(axes(*range(32)), at_cosine([1.0] * 8 + [0.75] * 8 + [0.55] * 8 + [0.0] * 8))
    found = [sfr(measured, threshold) for threshold in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert found == [24 / 32, 16 / 32, 16 / 32, 8 / 32, 8 / 32]
    # (8 · 1 + 8 · .75 + 8 · .55 + 8 · 0) / 32 = 18.4 / 32.
    cosine = measured.row("mean_matched_cosine", subset="all")["value"]
    assert cosine == pytest.approx(18.4 / 32, abs=1e-6)


def test_a_pair_at_the_threshold_is_not_above_it(share: Callable[..., Any]) -> None:
    measured = share(axes(0, 1), axes(0, 2), thresholds=[0.0, -0.5])
    # Cosines 1 and 0: the 0 is not above 0, but above -.5.
    assert (sfr(measured, 0), sfr(measured, -0.5)) == (0.5, 1)


def test_flaw_dead_latents_are_not_in_the_alive_ratio(share: Callable[..., Any]) -> None:
    """Reference flaw: dead latents are counted."""
    # 16 latents; the first four fire (on w5, w6, w7, w8), and only the first two are shared.
    encoder = firing_on([[5], [6], [7], [8], *[[]] * 12])
    measured = share(axes(*range(16)), at_cosine([1.0, 1.0] + [0.0] * 14), encoders=[encoder, encoder.copy()])
    assert sfr(measured, subset="all") == 2 / 16
    assert sfr(measured, subset="alive") == 2 / 4
    # Of the firings, .6 and .2 belong to shared latents, .1 and .1 to the others.
    assert sfr(measured, subset="firing_weighted") == pytest.approx(0.8)


def test_a_latent_alive_in_one_sae_alone_is_not_shared_among_the_alive(share: Callable[..., Any]) -> None:
    encoders = [firing_on([[5], [6], [], []]), firing_on([[5], [], [], []])]
    measured = share(axes(0, 1, 2, 3), axes(0, 1, 2, 3), encoders=encoders)
    assert sfr(measured, subset="all") == 1
    # One pair has both alive; two and one latents are alive: 1 / 1.5.
    assert sfr(measured, subset="alive") == pytest.approx(2 / 3)


def test_the_share_of_alive_latents_is_told(share: Callable[..., Any]) -> None:
    # One, two and three of four latents fire.
    encoders = [firing_on([[5]] * n + [[]] * (4 - n)) for n in (1, 2, 3)]
    measured = share(*[axes(0, 1, 2, 3)] * 3, encoders=encoders)
    assert [measured.row("alive", seed=seed)["value"] for seed in range(3)] == [1 / 4, 2 / 4, 3 / 4]
    # Found out on the ten ordinary tokens of sixty rows.
    assert measured.row("alive", seed=0)["n"] == 600
    row = measured.row("alive")
    # SD .25, SE .25/√3 = .144338, half width 4.302653 · .144338 = .621035.
    assert row["value"] == pytest.approx(0.5)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((0.5 - 0.621035, 0.5 + 0.621035), abs=1e-5)


def test_flaw_a_zero_row_gives_no_nan(share: Callable[..., Any]) -> None:
    """Reference flaw: a decoder row of length zero gives NaN."""
    decoder = axes(*range(16))
    holed = decoder.copy()
    holed[3] = 0
    measured = share(decoder, holed)
    # 15 pairs; 16 directions in one and 15 in the other: 15 / 15.5. All four numbers are finite, or writing fails.
    assert sfr(measured) == pytest.approx(15 / 15.5)
    table = measured.features.set_index(["seed", "latent"])
    assert table.loc[(1, 3), "it.stability"] == 0
    assert table.loc[(0, 3), "it.mean_matched_cosine"] == 0
    assert table.notna().all().all()


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_flaw_a_match_that_fails_is_an_error_and_no_missing_value(share: Callable[..., Any]) -> None:
    """Reference flaw: `except Exception` turns a failed match into None."""
    broken = axes(0, 1, 2)
    broken[1, 1] = np.inf
    with pytest.raises(ValueError, match="invalid numeric entries"):
        share(axes(0, 1, 2), broken)


def test_dictionaries_of_different_sizes_are_matched_as_far_as_the_smaller_goes(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    handles = [plant(firing_on([ALWAYS] * n), axes(*range(n)), seed=seed) for seed, n in enumerate((16, 8))]
    measured = measure(SharedFeatures(), handles, {"faithful": own_text()})
    # Eight pairs, all shared; the mean size is 12.
    assert sfr(measured) == pytest.approx(8 / 12)


def test_a_pair_whose_matching_is_not_certified_says_so_with_its_gap(
    share: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    match = shared_features.match_directions
    place = {"condition": "cosine>0.7", "subset": "all", "seed": 0, "other_seed": 1}
    certain = share(axes(0, 1), axes(0, 2)).row("sfr", **place)
    assert "certified" not in certain["reason"]
    monkeypatch.setattr(
        shared_features, "match_directions", lambda a, b: replace(match(a, b), certified=False, gap=0.25)
    )
    uncertain = share(axes(0, 1), axes(0, 2)).row("sfr", **place)
    assert uncertain["reason"].endswith(
        "the matching is not certified: the best total cosine may be 0.25 larger"
    )
    assert uncertain["value"] == certain["value"]


# Which SAEs are compared


def test_only_saes_of_one_source_hook_and_variant_are_compared(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    places = [
        ("a", HOOK, "main"), ("a", HOOK, "wide"), ("a", "model.layers.1", "main"), ("b", HOOK, "main"),
    ]  # fmt: skip
    # Two seeds each, their decoders on axes of their own: across groups nothing is shared, within everything.
    handles = [
        plant(
            firing_on([ALWAYS] * 4), axes(*range(4 * i, 4 * i + 4)), source=source, hook=hook,
            variant=variant, seed=seed,
        )
        for seed in (0, 1)
        for i, (source, hook, variant) in enumerate(places)
    ]  # fmt: skip
    measured = measure(SharedFeatures(), handles, {"a": own_text(), "b": own_text()})
    for source, hook, variant in places:
        place = {"source": source, "hook": hook, "variant": variant}
        assert sfr(measured, **place) == 1
        assert sfr(measured, seed=0, other_seed=1, **place) == 1
    pairs = [
        row
        for row in measured.rows
        if row["metric"] == "sfr" and row["other_seed"] is not None and row["condition"] == "cosine>0.7"
    ]
    # One pair a group, three subsets.
    assert len(pairs) == 4 * 3


def test_one_seed_gives_a_row_with_a_reason(share: Callable[..., Any]) -> None:
    measured = share(axes(0, 1))
    row = measured.row("sfr")
    assert (row["metric"], row["value"]) == ("sfr", None)
    assert row["reason"] == f"faithful/{HOOK}/main has one seed; sharing needs at least two"
    assert "not measured, one seed" in (measured.folder / "artifacts" / "reading.txt").read_text()


def test_two_seeds_give_a_value_and_the_reason_why_there_is_no_interval(share: Callable[..., Any]) -> None:
    row = share(axes(0, 1), axes(0, 2)).row("sfr", condition="cosine>0.7", subset="all")
    assert (row["value"], row["ci_low"], row["ci_high"], row["n"]) == (0.5, None, None, 1)
    assert "fewer than three SAEs" in row["reason"]


# 16 latents each. B shares axes 0-7 with A; C shares axes 0-3 with both.
THREE = [axes(*range(16)), axes(*range(8), *range(16, 24)), axes(*range(4), *range(24, 36))]


def test_flaw_every_pair_of_seeds_is_measured_and_three_give_a_jackknife_interval(
    share: Callable[..., Any],
) -> None:
    """Reference flaw: one pair of seeds, no interval."""
    measured = share(*THREE)
    pairs = {(0, 1): 8 / 16, (0, 2): 4 / 16, (1, 2): 4 / 16}
    for (seed, other), value in pairs.items():
        assert sfr(measured, seed=seed, other_seed=other) == value
    row = measured.row("sfr", condition="cosine>0.7", subset="all")
    # Mean of .5, .25, .25 = 1/3. Without A .25, without B .25, without C .5: mean 1/3,
    # Σ of squares 2 · (1/12)² + (1/6)² = 1/24; SE² = 2/3 · 1/24 = 1/36, SE = 1/6.
    # t with 2 degrees of freedom at 97.5 %: 4.302653; half width .717109.
    assert row["value"] == pytest.approx(1 / 3)
    assert row["ci_low"] == pytest.approx(1 / 3 - 0.717109, abs=1e-5)
    assert row["ci_high"] == pytest.approx(1 / 3 + 0.717109, abs=1e-5)
    assert row["n"] == 3


def test_a_latents_stability_is_the_share_of_other_seeds_in_which_it_reappears(
    share: Callable[..., Any],
) -> None:
    table = share(*THREE).features.set_index(["seed", "latent"])["it.stability"]
    # A: axes 0-3 are in B and C, 4-7 in B alone, the others nowhere.
    assert table.loc[0].tolist() == [1.0] * 4 + [0.5] * 4 + [0.0] * 8
    assert table.loc[1].tolist() == [1.0] * 4 + [0.5] * 4 + [0.0] * 8
    assert table.loc[2].tolist() == [1.0] * 4 + [0.0] * 12


# The null


def test_random_dictionaries_share_nothing_and_neither_does_their_null(share: Callable[..., Any]) -> None:
    measured = share(rotated(32, 0), rotated(32, 1), rotated(32, 2))
    # In 64 dimensions the best of 32 random directions has a cosine of about .3.
    assert sfr(measured) == 0
    null = measured.row("sfr_null", condition="cosine>0.7", subset="all")
    assert (null["value"], null["n"]) == (0, 5)
    cosine = measured.row("mean_matched_cosine", subset="all")["value"]
    null_cosine = measured.row("mean_matched_cosine_null", subset="all")["value"]
    assert cosine == pytest.approx(null_cosine, abs=0.05)
    reading = (measured.folder / "artifacts" / "reading.txt").read_text()
    assert "does not tell sharing from chance" in reading


def test_the_null_shows_what_few_dimensions_alone_make_similar(share: Callable[..., Any]) -> None:
    # Directions in a plane: of 32 random ones, most have a partner within 45 degrees.
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, size=(2, 32))
    planes = [np.stack([np.cos(a), np.sin(a)], axis=1) @ axes(0, 1) for a in angles]
    null = share(*planes).row("sfr_null", condition="cosine>0.7", subset="all")
    assert null["value"] > 0.75


def test_sharing_above_the_null_is_said_in_words_and_with_separated_intervals(
    share: Callable[..., Any],
) -> None:
    decoder = rotated(32, 0)
    measured = share(decoder, decoder[::-1].copy(), decoder.copy())
    reading = (measured.folder / "artifacts" / "reading.txt").read_text()
    assert reading.startswith(f"faithful/{HOOK}/main: alive SFR (cosine > 0.7) 1.000 [1.000, 1.000]")
    assert reading.endswith("above it, intervals separated.")


def test_the_null_is_seeded(plant: Callable[..., Any], measure: Callable[..., Any]) -> None:
    handles = [plant(firing_on([ALWAYS] * 24), rotated(24, seed), seed=seed) for seed in (0, 1)]
    one, again, other = (
        measure(SharedFeatures(), handles, {"faithful": own_text()}, seed=seed) for seed in (7, 7, 8)
    )
    assert one.rows == again.rows
    assert (
        one.row("mean_matched_cosine_null", subset="all")["value"]
        != other.row("mean_matched_cosine_null", subset="all")["value"]
    )


def test_headline_rows_are_those_of_the_papers_threshold(share: Callable[..., Any]) -> None:
    measured = share(*THREE)
    headlines = {(row["metric"], row["condition"], row["subset"]) for row in measured.rows if row["headline"]}
    wanted = {(f"sfr{null}", "cosine>0.7", subset) for null in ("", "_null") for subset in ("all", "alive")}
    wanted |= {
        (f"mean_matched_cosine{null}", None, subset) for null in ("", "_null") for subset in ("all", "alive")
    }
    assert headlines == wanted | {("alive", None, "all")}
    assert shared_features.HEADLINE == 0.7


def test_one_pass_serves_all_seeds(
    plant: Callable[..., Any], measure: Callable[..., Any], one_hot_model: Any
) -> None:
    handles = [plant(firing_on([ALWAYS] * 4), axes(0, 1, 2, 3), seed=seed) for seed in range(4)]
    measure(SharedFeatures(), handles, {"faithful": own_text()})
    assert one_hot_model.passes == [((HOOK,), 60)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": [0.5, 1.0]}, r"thresholds: 1.0 is not a cosine in \[-1, 1\)"),
        ({"null_draws": 1}, "null_draws 1: an interval needs at least 2"),
        ({"threshold": 0.7}, "unknown option 'threshold'.*thresholds"),
    ],
)
def test_bad_options_are_refused_by_name_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_plugins().create("evaluator", "shared_features", options)
