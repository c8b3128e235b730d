"""Shared Feature Ratio on decoders planted by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sae_faithful import TokenSet, UsageError, load_plugins
from sae_faithful_plugins.shared_features import HEADLINE, SharedFeatures, pairs

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


def test_permuted_copies_share_everything_in_every_comparison(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    rng = np.random.default_rng(0)
    encoder, decoder = np.abs(rng.standard_normal((VOCAB, 40))), rotated(40, seed=0)
    handles: list[Any] = []
    for source in ("faithful", "web"):
        for seed in (0, 1):
            order = rng.permutation(40)
            handles.append(plant(encoder[:, order], decoder[order], source=source, seed=seed))
    measured = measure(SharedFeatures(), handles, {"faithful": own_text(), "web": own_text()})
    for condition, metrics in (
        ("cosine>0.9", ("sfr", "encoder_sfr", "top1")),
        ("cosine>0.9, in SAEs of web", ("cross_sfr",)),
        (None, ("mean_matched_cosine", "encoder_mean_matched_cosine", "mmcs")),
        ("in SAEs of web", ("cross_mean_matched_cosine",)),
    ):
        for metric in metrics:
            for subset in ("all", "alive", "firing_weighted"):
                row = measured.row(metric, source="faithful", condition=condition, subset=subset)
                assert row["value"] == pytest.approx(1, abs=1e-6)
    stabilities = measured.features[["it.stability", "it.cross_stability.web", "it.cross_stability.faithful"]]
    # A latent is compared with the SAEs of the *other* source; with its own there is nothing to say.
    assert stabilities.fillna(1).eq(1).all().all()
    assert stabilities.notna().sum().tolist() == [160, 80, 80]


@pytest.mark.parametrize(("fraction", "n_shared"), [(0, 0), (0.3, 3), (0.5, 5), (1, 10)])
def test_a_planted_fraction_is_recovered_exactly_in_every_comparison(
    fraction: float, n_shared: int, plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # Two SAEs of each of two sources, ten latents each: so many on axes that all four have, the others on axes
    # of their own. Encoder and decoder hold them in different orders.
    handles: list[Any] = []
    for i, (source, seed) in enumerate([("faithful", 0), ("faithful", 1), ("web", 0), ("web", 1)]):
        own = range(10 + 10 * i, 20 + 10 * i - n_shared)
        directions = axes(*range(n_shared), *own)
        rng = np.random.default_rng(i)
        handles.append(
            plant(
                directions[rng.permutation(10)].T, directions[rng.permutation(10)], source=source, seed=seed
            )
        )
    measured = measure(SharedFeatures(), handles, {"faithful": own_text(), "web": own_text()})
    for source in ("faithful", "web"):
        for metric in ("sfr", "encoder_sfr", "top1"):
            row = measured.row(metric, source=source, condition="cosine>0.7", subset="all")
            assert row["value"] == pytest.approx(fraction)
        for metric in ("mean_matched_cosine", "encoder_mean_matched_cosine", "mmcs"):
            assert measured.row(metric, source=source, subset="all")["value"] == pytest.approx(fraction)
    cross = measured.row("cross_sfr", condition="cosine>0.7, in SAEs of web", subset="all")
    assert cross["value"] == pytest.approx(fraction)
    assert measured.features["it.stability"].sum() == 4 * n_shared
    assert measured.features["it.cross_stability.web"].sum() == 2 * n_shared


def test_a_smaller_dictionary_is_looked_for_in_the_next_larger_ones_of_other_seeds(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # Seed 1's wide dictionary has 3 of the 4 axes of seed 0's narrow one, seed 0's has 1 of those of seed 1's; the
    # widest has them all but is not the next size. Within a seed all would be found.
    axes_of = {
        ("narrow", 0): range(4), ("narrow", 1): range(10, 14),
        ("wide", 0): [0, 1, 2, 3, 10, 20, 21, 22], ("wide", 1): [10, 11, 12, 13, 0, 1, 2, 30],
        ("widest", 0): range(16), ("widest", 1): range(16),
    }  # fmt: skip
    handles = [
        plant(axes(*indices).T, axes(*indices), variant=variant, seed=seed)
        for (variant, seed), indices in axes_of.items()
    ]
    measured = measure(SharedFeatures(), handles, {"faithful": own_text()})
    row = measured.row("mmcs_larger", variant="narrow", subset="all")
    assert (row["value"], row["n"], row["condition"]) == ((3 / 4 + 1 / 4) / 2, 2, "in SAEs of wide")
    assert row["reason"] == "fewer than three SAEs: one pair says nothing about the spread over SAEs"
    # Of their 8 axes each, 5 and 7 are among the widest's 0 to 15.
    wide = measured.row("mmcs_larger", variant="wide", subset="all")
    assert (wide["value"], wide["condition"]) == (12 / 16, "in SAEs of widest")
    assert not [row for row in measured.rows if row["metric"] == "mmcs_larger" and row["variant"] == "widest"]
    null = measured.row("mmcs_larger_null", variant="narrow", subset="all")
    assert null["n"] == 5


def test_one_seed_has_no_larger_dictionary_to_be_looked_for_in(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    handles = [plant(axes(*range(n)).T, axes(*range(n)), variant=f"r{n}", seed=0) for n in (4, 8)]
    measured = measure(SharedFeatures(), handles, {"faithful": own_text()})
    assert not [row for row in measured.rows if row["metric"].startswith("mmcs_larger")]


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
    matches = [f"it.{name}.seed{seed}" for name in ("match", "matched_cosine") for seed in (0, 1)]
    assert table.drop(columns=matches).notna().all().all()
    # The row of length zero is like no direction, and one of the others is left over: neither has a match.
    for seed, other in ((0, 1), (1, 0)):
        assert table.loc[seed, f"it.match.seed{other}"].isna().sum() == 1
        assert table.loc[seed, f"it.match.seed{seed}"].isna().all()


def test_flaw_the_matrix_of_cosines_is_never_held(
    plant: Callable[..., Any], measure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference flaw: the whole n×n matrix in memory."""
    import torch

    from sae_faithful.ops import match_features, nearest_cosines

    n, largest = 1_000, 0

    class Recorder(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    # Blocks as much smaller than n² as the default's 2²⁵ are where a matrix would not fit.
    for op in (match_features, nearest_cosines):
        monkeypatch.setitem(op.__kwdefaults__, "block", 20_000)
    handles = [plant(firing_on([ALWAYS] * n), rotated(n, seed), seed=seed) for seed in (0, 1)]
    with Recorder():
        # Two rows of text, since their latents are a tensor too.
        measured = measure(SharedFeatures(null_draws=0, encoder=False), handles, {"faithful": own_text(2)})
    assert sfr(measured) == 0
    # The 64 best of every row and of every column are candidates.
    assert 128 * n <= largest < n * n / 5


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
    match = pairs.match_directions
    place = {"condition": "cosine>0.7", "subset": "all", "seed": 0, "other_seed": 1}
    certain = share(axes(0, 1), axes(0, 2)).row("sfr", **place)
    assert "certified" not in certain["reason"]
    monkeypatch.setattr(
        pairs, "match_directions", lambda a, b: replace(match(a, b), certified=False, gap=0.25)
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


# Encoder directions


def test_encoder_directions_have_a_matching_of_their_own(share: Callable[..., Any]) -> None:
    # Latent i of A reads token 5 + i; B has tokens 5 and 6 exchanged, 7 at cosine .6 and 8 not at all.
    a = firing_on([[5], [6], [7], [8]])
    b = firing_on([[6], [5], [7], [20]])
    b[21, 2] = 4 / 3
    # The decoders share the last latent alone.
    measured = share(axes(0, 1, 2, 3), axes(10, 11, 12, 3), encoders=[a, b])
    assert sfr(measured) == 1 / 4
    assert measured.row("encoder_sfr", condition="cosine>0.5", subset="all")["value"] == 3 / 4
    assert measured.row("encoder_sfr", condition="cosine>0.7", subset="all")["value"] == 2 / 4
    cosine = measured.row("encoder_mean_matched_cosine", subset="all")["value"]
    assert cosine == pytest.approx((1 + 1 + 0.6 + 0) / 4)
    # B's fourth latent reads a token that the text does not have: three pairs have both alive.
    alive = measured.row("encoder_mean_matched_cosine", subset="alive")["value"]
    assert alive == pytest.approx((1 + 1 + 0.6) / 3)
    null = measured.row("encoder_sfr_null", condition="cosine>0.7", subset="all")
    assert (null["n"], null["headline"]) == (5, False)


# Nearest neighbours


def test_top1_is_counted_both_ways_without_one_to_one(share: Callable[..., Any]) -> None:
    # Both latents of A are nearest to B's first, at cosines 1 and .8; of B only the first has a near one.
    a = np.stack([axes(0)[0], 0.8 * axes(0)[0] + 0.6 * axes(1)[0]])
    measured = share(a, axes(0, 2), thresholds=[0.7, 0.9])
    both = {"condition": "cosine>0.7", "subset": "all"}
    assert measured.row("top1", seed=0, other_seed=1, **both)["value"] == 1
    assert measured.row("top1", seed=1, other_seed=0, **both)["value"] == 0.5
    row = measured.row("top1", **both)
    assert (row["value"], row["n"], row["headline"]) == (0.75, 2, False)
    assert sfr(measured) == 0.5
    assert measured.row("top1", condition="cosine>0.9", subset="all")["value"] == 0.5
    # The mean of these cosines: 1 and .8 of A's, 1 and 0 of B's.
    ways = [measured.row("mmcs", seed=i, other_seed=1 - i, subset="all") for i in (0, 1)]
    assert [row["value"] for row in ways] == pytest.approx([0.9, 0.5])
    row = measured.row("mmcs", subset="all")
    assert (row["value"], row["n"], row["unit"]) == (pytest.approx(0.7), 2, "cosine")


def test_top1_divides_by_the_latents_of_its_own_side(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # A has six latents, one of them without a direction, three alive; B has the first two of A.
    holed = axes(0, 1, 2, 3, 4, 5)
    holed[5] = 0
    encoders = [firing_on([[5], [6], [7], [], [], []]), firing_on([[5], []])]
    handles = [plant(encoders[0], holed, seed=0), plant(encoders[1], axes(0, 1), seed=1)]
    measured = measure(SharedFeatures(null_draws=0), handles, {"faithful": own_text()})

    def both(subset: str) -> tuple[float, float]:
        return tuple(
            measured.row("top1", condition="cosine>0.7", subset=subset, seed=i, other_seed=1 - i)["value"]
            for i in (0, 1)
        )  # pyright: ignore[reportReturnType]

    assert both("all") == (2 / 5, 1)
    # Of A's alive 0, 1, 2 the first two: the neighbour need not be alive itself.
    assert both("alive") == (pytest.approx(2 / 3), 1)
    # .6 and .2 of A's .9 firings.
    assert both("firing_weighted") == (pytest.approx(8 / 9), 1)
    sizes = [
        measured.row("top1", condition="cosine>0.7", subset="all", seed=i, other_seed=1 - i)["n"]
        for i in (0, 1)
    ]
    assert sizes == [6, 2]


def test_the_interval_of_top1_is_a_jackknife_over_saes(share: Callable[..., Any]) -> None:
    measured = share(*THREE)
    # On orthogonal axes both directions are as the matching: 6 values, .5, .25, .25 twice; SE 1/6 as above.
    row = measured.row("top1", condition="cosine>0.7", subset="all")
    assert row["value"] == pytest.approx(1 / 3)
    assert (row["ci_low"], row["n"]) == (pytest.approx(1 / 3 - 0.717109, abs=1e-5), 6)


# Across sources


@pytest.fixture
def across(plant: Callable[..., Any], measure: Callable[..., Any]) -> Callable[..., Any]:
    """Measure sources whose SAEs have these decoders by seed, all latents alive."""

    def go(sources: dict[str, dict[int, np.ndarray]], **options: Any) -> Any:
        handles = [
            plant(firing_on([ALWAYS] * len(decoder)), decoder, source=source, seed=seed)
            for source, decoders in sources.items()
            for seed, decoder in decoders.items()
        ]
        return measure(SharedFeatures(**options), handles, {source: own_text() for source in sources})

    return go


def test_saes_of_two_sources_are_matched_and_each_latent_is_told_where_it_reappears(
    across: Callable[..., Any],
) -> None:
    # Four latents each. Between faithful 0 and web 1: axes 0 and 1; between faithful 1 and web 0: axis 0.
    measured = across(
        {
            "faithful": {0: axes(0, 1, 2, 3), 1: axes(0, 4, 5, 6)},
            "web": {0: axes(0, 10, 11, 12), 1: axes(1, 0, 13, 14)},
        }
    )
    condition = "cosine>0.7, in SAEs of web"
    pair = {"condition": condition, "subset": "all", "source": "faithful"}
    assert measured.row("cross_sfr", seed=0, other_seed=1, **pair)["value"] == 2 / 4
    assert measured.row("cross_sfr", seed=1, other_seed=0, **pair)["value"] == 1 / 4
    row = measured.row("cross_sfr", **pair)
    assert (row["value"], row["n"], row["ci_low"]) == (3 / 8, 2, None)
    assert measured.row("cross_sfr", **{**pair, "subset": "alive"})["headline"]
    table = measured.features.set_index(["source", "seed", "latent"])
    assert table.loc[("faithful", 0), "it.cross_stability.web"].tolist() == [1, 1, 0, 0]
    assert table.loc[("faithful", 1), "it.cross_stability.web"].tolist() == [1, 0, 0, 0]
    assert table.loc[("web", 0), "it.cross_stability.faithful"].tolist() == [1, 0, 0, 0]
    assert table.loc[("web", 1), "it.cross_stability.faithful"].tolist() == [1, 1, 0, 0]
    reading = (measured.folder / "artifacts" / "reading.txt").read_text()
    where = f"faithful and web at {HOOK}/main: alive cross-source SFR (cosine > 0.7) 0.375"
    assert where in reading


def test_saes_of_one_seed_are_not_compared_across_sources(across: Callable[..., Any]) -> None:
    # As they began with the same weights, those of one seed are alike whatever they were trained on.
    decoders = {seed: axes(*range(8 * seed, 8 * seed + 8)) for seed in range(3)}
    measured = across({"faithful": decoders, "web": {seed: one.copy() for seed, one in decoders.items()}})
    for threshold in (0.5, 0.9):
        condition = f"cosine>{threshold:g}, in SAEs of web"
        assert measured.row("cross_sfr", condition=condition, subset="all")["value"] == 0
    assert not any(row["seed"] == row["other_seed"] for row in measured.rows if row["seed"] is not None)


def test_two_sources_with_the_same_saes_score_across_as_within(across: Callable[..., Any]) -> None:
    decoders = dict(enumerate(THREE))
    measured = across({"faithful": decoders, "web": decoders}, null_draws=0)
    within = measured.row("sfr", source="faithful", condition="cosine>0.7", subset="all")
    cross = measured.row("cross_sfr", condition="cosine>0.7, in SAEs of web", subset="all")
    assert within["value"] == pytest.approx(1 / 3)
    for bound in ("value", "ci_low", "ci_high"):
        assert cross[bound] == pytest.approx(within[bound])


def test_the_interval_across_sources_leaves_out_both_saes_of_a_seed(across: Callable[..., Any]) -> None:
    # Ten latents. Faithful 0 has axes 0-4 of web 1 and none of web 2; faithful 1 has none of web 0 and 3 of
    # web 2; faithful 2 has 1 of web 0 and 2 of web 1.
    shared = {(0, 1): 5, (0, 2): 0, (1, 0): 0, (1, 2): 3, (2, 0): 1, (2, 1): 2}
    faithful: dict[int, list[int]] = {seed: [] for seed in range(3)}
    web: dict[int, list[int]] = {seed: [] for seed in range(3)}
    free = iter(range(D))
    for (a, b), count in shared.items():
        common = [next(free) for _ in range(count)]
        faithful[a] += common
        web[b] += common
    decoders = [
        {seed: axes(*used, *(next(free) for _ in range(10 - len(used)))) for seed, used in side.items()}
        for side in (faithful, web)
    ]
    measured = across(dict(zip(("faithful", "web"), decoders, strict=True)))
    row = measured.row("cross_sfr", condition="cosine>0.7, in SAEs of web", subset="all")
    # Mean of .5, 0, 0, .3, .1, .2 = 11/60. Without seed 0 (.3 + .2)/2 = .25, without 1 (0 + .1)/2 = .05, without
    # 2 (.5 + 0)/2 = .25; mean .55/3, Σ of squares .0266667, SE² = 2/3 · that, SE = .133333; t 4.302653.
    assert row["value"] == pytest.approx(11 / 60)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(
        (11 / 60 - 0.573687, 11 / 60 + 0.573687), abs=1e-5
    )
    assert row["n"] == 6


def test_only_seeds_that_both_sources_have_are_compared(across: Callable[..., Any]) -> None:
    measured = across(
        {
            "faithful": {0: axes(0, 1), 1: axes(0, 1), 2: axes(0, 1)},
            "web": {1: axes(0, 1), 2: axes(0, 1), 3: axes(0, 1)},
        },
        null_draws=0,
    )
    compared = {
        (row["seed"], row["other_seed"])
        for row in measured.rows
        if row["metric"] == "cross_sfr" and row["seed"] is not None
    }
    assert compared == {(1, 2), (2, 1)}
    table = measured.features.set_index(["source", "seed"])
    assert table.loc[("faithful", 0), "it.cross_stability.web"].isna().all()
    assert table.loc[("faithful", 1), "it.cross_stability.web"].tolist() == [1, 1]


def test_one_seed_in_common_gives_a_row_with_a_reason(across: Callable[..., Any]) -> None:
    measured = across({"faithful": {0: axes(0, 1)}, "web": {0: axes(0, 1)}})
    row = measured.row("cross_sfr")
    assert (row["source"], row["condition"], row["value"]) == ("faithful", "in SAEs of web", None)
    assert row["reason"].startswith("fewer than two SAE seeds in common")
    assert row["reason"] in (measured.folder / "artifacts" / "reading.txt").read_text()


def test_every_pair_of_sources_is_compared_once_and_only_at_one_hook_and_variant(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    handles = [
        plant(firing_on([ALWAYS] * 2), axes(0, 1), source=source, hook=hook, variant=variant, seed=seed)
        for source, places in {
            "a": [(HOOK, "main"), (HOOK, "wide")],
            "b": [(HOOK, "main"), ("model.layers.1", "main")],
            "c": [(HOOK, "main"), (HOOK, "wide")],
        }.items()
        for hook, variant in places
        for seed in (0, 1)
    ]
    texts = {source: own_text() for source in "abc"}
    measured = measure(SharedFeatures(null_draws=0), handles, texts)
    found = [
        (row["source"], row["condition"], row["hook"], row["variant"])
        for row in measured.rows
        if row["metric"] == "cross_mean_matched_cosine" and row["seed"] is None and row["subset"] == "all"
    ]
    assert found == [
        ("a", "in SAEs of b", HOOK, "main"),
        ("a", "in SAEs of c", HOOK, "main"),
        ("b", "in SAEs of c", HOOK, "main"),
        ("a", "in SAEs of c", HOOK, "wide"),
    ]


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
    assert "seeds do not tell sharing from chance" in reading


def test_the_reading_says_how_many_seeds_would_separate_an_sfr_from_its_null() -> None:
    from sae_faithful import EvalResult
    from sae_faithful_plugins.shared_features.rows import reading

    common: dict[str, Any] = {"unit": "share of latents", "subset": "alive", "headline": True}
    null = EvalResult(metric="sfr_null", value=0.0, ci_low=0.0, ci_high=0.0, **common)
    row = EvalResult(metric="sfr", value=0.0555, ci_low=-0.0435, ci_high=0.1545, **common)
    # Three seeds: t(.975, 2) = 4.303, so SE = .099 / 4.303 = .0230 and the spread over seeds .0230 · √3 = .0399.
    # t · spread / √S is 3.182 · .0199 = .0634 for four seeds and 2.776 · .0178 = .0495 < .0555 for five.
    (sentence,) = reading("here", "alive SFR", "sfr", [row, null], 3)
    assert sentence.endswith("so 3 seeds do not tell sharing from chance; about 5 would, if it is as found.")
    below = EvalResult(metric="sfr", value=-0.01, ci_low=-0.02, ci_high=0.0, **common)
    (sentence,) = reading("here", "alive SFR", "sfr", [below, null], 3)
    assert sentence.endswith("so 3 seeds do not tell sharing from chance.")


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


def test_random_dictionaries_score_their_nulls_in_every_comparison(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # In six dimensions chance alone makes many pairs similar: the null is far from 0, and must be met.
    rng = np.random.default_rng(0)
    handles = [
        plant(
            (rng.standard_normal((150, 6)) @ axes(*range(5, 11))).T,
            rng.standard_normal((150, 6)) @ axes(*range(6)),
            source=source,
            seed=seed,
        )
        for source in ("faithful", "web")
        for seed in range(3)
    ]
    measured = measure(SharedFeatures(null_draws=8), handles, {"faithful": own_text(), "web": own_text()})
    for metric, condition in (
        ("sfr", "cosine>0.9"),
        ("encoder_sfr", "cosine>0.9"),
        ("top1", "cosine>0.9"),
        ("cross_sfr", "cosine>0.9, in SAEs of web"),
        ("mmcs", None),
        ("mean_matched_cosine", None),
        ("encoder_mean_matched_cosine", None),
        ("cross_mean_matched_cosine", "in SAEs of web"),
    ):
        place = {"source": "faithful", "condition": condition, "subset": "all"}
        row, null = (measured.row(f"{metric}{suffix}", **place) for suffix in ("", "_null"))
        assert 0.2 < null["value"] < 0.99
        assert row["ci_low"] < null["ci_high"], metric
        assert null["ci_low"] < row["ci_high"], metric
        # The interval is no excuse: both are the same to a few hundredths.
        assert row["value"] == pytest.approx(null["value"], abs=0.05), metric


def test_without_nulls_there_are_no_null_rows_and_the_reading_says_so(share: Callable[..., Any]) -> None:
    measured = share(*THREE, null_draws=0)
    assert not [row for row in measured.rows if row["metric"].endswith("_null")]
    reading = (measured.folder / "artifacts" / "reading.txt").read_text()
    assert reading.startswith(f"faithful/{HOOK}/main: alive SFR (cosine > 0.7) 0.333 [")
    assert reading.endswith("; no null was drawn.")


def test_without_the_papers_threshold_there_is_no_reading(share: Callable[..., Any]) -> None:
    measured = share(axes(0, 1), axes(0, 2), thresholds=[0.5])
    assert sfr(measured, 0.5) == 0.5
    assert not (measured.folder / "artifacts" / "reading.txt").exists()


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
    assert HEADLINE == 0.7


# Options and monitors


OPTIONAL = {"encoder": "encoder_", "top1": ("top1", "mmcs"), "cross_source": "cross_"}


def test_what_is_switched_off_is_gone_and_changes_nothing_else(across: Callable[..., Any]) -> None:
    sources = {
        source: {seed: rotated(24, 10 * first + seed) for seed in (0, 1)}
        for first, source in enumerate(("faithful", "web"))
    }
    full = across(sources)
    for option, prefix in OPTIONAL.items():
        reduced = across(sources, **{option: False})
        assert reduced.rows == [row for row in full.rows if not row["metric"].startswith(prefix)]
        assert len(reduced.rows) < len(full.rows)
        columns = {column for column in reduced.features if "cross_stability" in column}
        assert bool(columns) == (option != "cross_source")


def test_the_monitors_budget_measures_live_saes_as_they_are_now(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    import torch

    monitor = load_plugins().create("evaluator", "shared_features", SharedFeatures.monitor_budget)
    handles = [
        plant(firing_on([ALWAYS] * 4), axes(0, 1, 2, 3), source=source, seed=seed)
        for source in ("faithful", "web")
        for seed in (0, 1)
    ]
    texts = {"faithful": own_text(), "web": own_text()}
    before = measure(monitor, handles, texts)
    assert {row["metric"] for row in before.rows} == {"alive", "sfr", "mean_matched_cosine"}
    assert {row["condition"] for row in before.rows if row["metric"] == "sfr"} == {"cosine>0.7"}
    assert sfr(before, source="faithful") == 1
    with torch.no_grad():
        handles[0].sae.W_dec.copy_(torch.as_tensor(axes(0, 10, 11, 12)))
    assert sfr(measure(monitor, handles, texts), source="faithful") == 1 / 4


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
        ({"thresholds": [float("nan")]}, "thresholds: nan is not a cosine"),
        ({"thresholds": []}, "thresholds: at least one is needed"),
        ({"thresholds": [0.7, 0.5, 0.7]}, "thresholds: 0.7 is given twice"),
        ({"null_draws": 1}, r"null_draws 1: an interval needs at least 2 \(0 for no nulls\)"),
        ({"null_draws": -1}, "null_draws -1: an interval needs at least 2"),
        ({"threshold": 0.7}, "unknown option 'threshold'.*thresholds"),
    ],
)
def test_bad_options_are_refused_by_name_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_plugins().create("evaluator", "shared_features", options)
