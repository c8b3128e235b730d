"""Token selectivity and capacity of planted latents beside neurons that are known to be better, worse or alike."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful import ExperimentConfig, TokenSet, UsageError, load_plugins, run
from sae_faithful.metrics.intervals import mean_difference_interval, mean_interval
from sae_faithful.metrics.selectivity import SELDOM, SILENT, Scores
from sae_faithful_plugins.polysemanticity import Polysemanticity
from sae_faithful_plugins.polysemanticity.measuring import of_latents
from sae_faithful_plugins.polysemanticity.observing import Halves

VOCAB, BOS, HOOK = 64, 0, "model.layers.0"


def text(n_rows: int = 120, seed: int = 0) -> TokenSet:
    """Rows of BOS and 30 ordinary tokens, each row a document."""
    rows = np.random.default_rng(seed).integers(3, VOCAB, (n_rows, 31))
    rows[:, 0] = BOS
    return TokenSet.from_rows(rows)


def rotation(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(VOCAB, VOCAB)))[0]


@pytest.fixture
def mixed_model(one_hot_model: Any) -> Any:
    """A model each of whose neurons answers to every token: one-hot vectors in a random basis."""

    class Mixed(type(one_hot_model)):
        def activations(self, tokens: Any, hooks: Any) -> dict[str, Any]:
            turn = torch.from_numpy(rotation(0)).float()
            return {hook: found @ turn for hook, found in super().activations(tokens, hooks).items()}

    return Mixed()


@pytest.fixture
def detectors(plant: Callable[..., Any]) -> Any:
    """An SAE whose latents each read one token of the mixed model."""
    handle = plant(rotation(0).T)
    with torch.no_grad():
        # On the other tokens rounding leaves a little.
        handle.sae.b_enc.fill_(-1e-3)
    return handle


def split(encoder: np.ndarray) -> np.ndarray:
    return np.concatenate([encoder, -encoder], axis=1)


def fit(handle: Any, variant: str, seed: int = 0) -> Any:
    """The same as a baseline."""
    return dataclasses.replace(handle, kind="baseline", variant=variant, seed=seed)


# More, less or as monosemantic as neurons


def test_latents_of_one_token_are_more_monosemantic_than_neurons_of_many(
    detectors: Any, measure: Callable[..., Any], mixed_model: Any
) -> None:
    result = measure(Polysemanticity(), [detectors], {"faithful": text()}, language_model=mixed_model)
    # Three of the 64 tokens are special and do not occur.
    own = result.row("token_selectivity", seed=0)
    assert (own["value"], own["n"], own["subset"]) == (pytest.approx(1, abs=1e-4), 61, "alive")
    neurons = result.row("token_selectivity", variant="neurons")
    assert neurons["value"] < 0.85
    assert (neurons["n"], neurons["headline"]) == (128, True)
    # A neuron is still a function of the token, whatever it stands for.
    assert result.row("token_r2", variant="neurons")["value"] == pytest.approx(1)
    difference = result.row("token_selectivity_difference", seed=0, condition="minus neurons")
    assert difference["ci_low"] > 0.1
    assert difference["headline"]
    lines = (result.folder / "artifacts/reading.txt").read_text()
    assert "- faithful, model.layers.0, main: more monosemantic than the neuron basis" in lines
    assert "by token selectivity: yes." in lines
    assert f"1.000 against {neurons['value']:.3f}, difference {difference['value']:+.3f}" in lines
    assert (
        f"interval {difference['ci_low']:+.3f} to {difference['ci_high']:+.3f}, over the latents of one"
        in lines
    )
    assert "Without a value: 3 of the 64 latents looked at." in lines


def test_latents_of_many_tokens_are_less_monosemantic_than_neurons_of_one(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    result = measure(Polysemanticity(), [plant(rotation(1))], {"faithful": text()})
    difference = result.row("token_selectivity_difference", seed=0, condition="minus neurons")
    assert difference["ci_high"] < -0.1
    assert "by token selectivity: no." in (result.folder / "artifacts/reading.txt").read_text()


def test_latents_in_another_random_basis_are_neither(
    plant: Callable[..., Any], measure: Callable[..., Any], mixed_model: Any
) -> None:
    """The answer is nothing."""
    result = measure(
        Polysemanticity(), [plant(split(rotation(3)))], {"faithful": text()}, language_model=mixed_model
    )
    difference = result.row("token_selectivity_difference", seed=0, condition="minus neurons")
    assert difference["ci_low"] < 0 < difference["ci_high"]
    assert "by token selectivity: undecided." in (result.folder / "artifacts/reading.txt").read_text()


def test_noise_is_selective_for_nothing(
    plant: Callable[..., Any], measure: Callable[..., Any], one_hot_model: Any
) -> None:
    """Activations that know nothing of the tokens, neurons' as well."""

    class Noise(type(one_hot_model)):
        def activations(self, tokens: Any, hooks: Any) -> dict[str, Any]:
            seed = int(tokens.sum())
            noise = np.random.default_rng(seed).normal(size=(*tokens.shape, VOCAB))
            return {hook: torch.from_numpy(noise).float() for hook in hooks}

    result = measure(
        Polysemanticity(), [plant(np.eye(VOCAB))], {"faithful": text()}, language_model=Noise(), batch_rows=20
    )
    for where in ({"seed": 0}, {"variant": "neurons"}):
        for metric in ("token_selectivity", "token_r2"):
            assert abs(result.row(metric, **where)["value"]) < 0.06
    assert result.row("token_r2", seed=0)["value"] == pytest.approx(0, abs=0.005)


# Intervals


def test_intervals_of_an_sae_are_over_its_latents(
    plant: Callable[..., Any], measure: Callable[..., Any], mixed_model: Any
) -> None:
    result = measure(
        Polysemanticity(n_features=40), [plant(rotation(1))], {"faithful": text()}, language_model=mixed_model
    )
    values = result.features["it.token_selectivity"].dropna().to_numpy()
    assert len(values) == 40
    row = result.row("token_selectivity", seed=0)
    assert (row["n"], row["value"]) == (40, pytest.approx(values.mean()))
    low, high, _ = mean_interval(values.tolist())
    assert (row["ci_low"], row["ci_high"]) == (pytest.approx(low), pytest.approx(high))


def test_differences_are_over_latents_of_one_sae_and_over_saes_of_a_source(
    plant: Callable[..., Any], measure: Callable[..., Any], mixed_model: Any
) -> None:
    saes = [plant(rotation(seed + 1), seed=seed) for seed in range(3)]
    other = fit(plant(split(rotation(9))), "random")
    result = measure(Polysemanticity(), [*saes, other], {"faithful": text()}, language_model=mixed_model)

    def column(variant: str, seed: int) -> list[float]:
        table = result.features
        chosen = table[(table.variant == variant) & (table.seed == seed)]
        return chosen["it.token_selectivity"].dropna().tolist()

    others, own = column("random", 0), [column("main", seed) for seed in range(3)]
    condition = {"condition": "minus random", "variant": "main"}
    row = result.row("token_selectivity_difference", seed=1, **condition)
    expected = mean_difference_interval(own[1], others)
    assert row["value"] == pytest.approx(np.mean(own[1]) - np.mean(others))
    assert (row["ci_low"], row["ci_high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert not row["headline"]
    of_source = result.row("token_selectivity_difference", **condition)
    means = [float(np.mean(values)) for values in own]
    # The baseline was fitted once: its part of the interval is that of its latents.
    expected = mean_difference_interval(means, others)
    assert of_source["value"] == pytest.approx(np.mean(means) - np.mean(others))
    assert of_source["ci_low"] == pytest.approx(expected.low)
    assert (of_source["n"], of_source["headline"]) == (3, True)
    mean = result.row("token_selectivity", variant="main")
    low, _, _ = mean_interval(means)
    assert (mean["value"], mean["ci_low"]) == (pytest.approx(np.mean(means)), pytest.approx(low))
    assert "over 3 SAEs" in (result.folder / "artifacts/reading.txt").read_text()


def test_a_baseline_of_several_fits_is_paired_by_seed_and_spreads_over_fits(
    plant: Callable[..., Any], measure: Callable[..., Any], mixed_model: Any
) -> None:
    saes = [plant(rotation(seed + 1), seed=seed) for seed in (4, 5)]
    fits = [fit(plant(split(rotation(seed + 20))), "random", seed) for seed in (5, 4)]
    result = measure(Polysemanticity(), [*saes, *fits], {"faithful": text()}, language_model=mixed_model)
    of = {
        (variant, seed): result.row("token_selectivity", variant=variant, seed=seed)["value"]
        for variant in ("main", "random")
        for seed in (4, 5)
    }
    for seed in (4, 5):
        row = result.row("token_selectivity_difference", seed=seed, condition="minus random")
        assert row["value"] == pytest.approx(of["main", seed] - of["random", seed])
    of_source = result.row("token_selectivity_difference", condition="minus random")
    expected = mean_difference_interval([of["main", 4], of["main", 5]], [of["random", 5], of["random", 4]])
    assert of_source["ci_high"] == pytest.approx(expected.high)
    # Baselines are held against nothing.
    assert {row["variant"] for row in result.rows if row["metric"].endswith("_difference")} == {"main"}


def test_one_sae_says_nothing_about_other_seeds_in_the_row_of_the_source(
    detectors: Any, measure: Callable[..., Any], mixed_model: Any
) -> None:
    result = measure(Polysemanticity(), [detectors], {"faithful": text()}, language_model=mixed_model)
    for metric in ("token_selectivity", "token_selectivity_difference", "capacity_difference"):
        row = result.row(metric, variant="main", subset="alive")
        assert (row["ci_low"], row["reason"]) == (None, "one SAE says nothing about the spread between SAEs")


def test_few_latents_have_no_interval(plant: Callable[..., Any], measure: Callable[..., Any]) -> None:
    result = measure(Polysemanticity(), [plant(np.eye(VOCAB)[:, 10:19])], {"faithful": text()})
    reason = "9 values; an interval needs at least 10"
    assert result.row("token_r2", seed=0)["reason"] == reason
    row = result.row("token_r2_difference", seed=0)
    assert (row["value"], row["reason"]) == (pytest.approx(0), reason)


def test_latents_that_are_all_alike_show_no_spread(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    result = measure(Polysemanticity(), [plant(np.eye(VOCAB))], {"faithful": text()})
    for metric in ("token_selectivity", "token_r2", "capacity"):
        row = result.row(metric, seed=0, subset="alive")
        assert (row["value"], row["reason"]) == (
            pytest.approx(1),
            "all values are equal: they show no spread",
        )
    row = result.row("token_selectivity_difference", seed=0)
    assert row["reason"] == "all values of both samples are equal: they show no spread"
    assert "no interval (all values of both samples" in (result.folder / "artifacts/reading.txt").read_text()


# What is looked at


def test_dead_latents_have_no_score_and_are_counted(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    encoder = np.eye(VOCAB)[:, :40]
    encoder[:, 30:] = 0
    decoder = np.eye(40, VOCAB)
    # Two latents write along one direction, one of them dead; and one alive beside them.
    decoder[35] = decoder[5]
    decoder[6] = decoder[7]
    result = measure(Polysemanticity(), [plant(encoder, decoder)], {"faithful": text()})
    # Dead: the ten last ones, and those that read BOS, EOS and PAD.
    count = {
        row["condition"]: (row["value"], row["n"])
        for row in result.rows
        if row["metric"] == "unmeasured" and row["seed"] == 0
    }
    assert count["token_selectivity"] == count["token_selectivity: never active"] == (13.0, 40)
    assert result.row("token_selectivity", seed=0)["n"] == 27
    capacity = result.features["it.capacity"].to_numpy()
    assert np.isnan(capacity[30:]).all()
    assert np.isnan(capacity[:3]).all()
    assert capacity[[5, 6, 7]].tolist() == pytest.approx([1, 0.5, 0.5])
    # 25 of 27 have a dimension alone; of all 40, 36.
    assert result.row("capacity", seed=0, subset="alive")["value"] == pytest.approx(26 / 27)
    assert result.row("capacity", seed=0, subset="all")["value"] == pytest.approx(38 / 40)
    # Neuron 7 takes part in two features; 24 more in one; the others in none.
    row = result.row("features_per_neuron", seed=0)
    assert (row["value"], row["n"]) == (pytest.approx(27 / 26), 26)
    assert result.row("features_per_neuron_null", seed=0)["value"] == pytest.approx(27 * 66 / 192, rel=0.2)
    assert 0.5 < result.row("capacity_null", seed=0)["value"] < 0.8


def test_no_latent_has_a_value_where_none_is_active(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    result = measure(Polysemanticity(), [plant(np.zeros((VOCAB, 20)))], {"faithful": text()})
    for metric in ("token_selectivity", "token_r2", "token_selectivity_difference", "capacity_difference"):
        for seed in (0, None):
            row = result.row(metric, seed=seed, variant="main")
            assert (row["value"], row["reason"]) == (None, "no latent has a value")
    assert "by token selectivity: undecided." in (result.folder / "artifacts/reading.txt").read_text()


def test_a_sample_of_latents_is_looked_at_and_drawn_by_the_seed(
    plant: Callable[..., Any], measure: Callable[..., Any], mixed_model: Any
) -> None:
    def chosen(seed: int) -> list[int]:
        result = measure(
            Polysemanticity(n_features=12), [plant(rotation(1))], {"faithful": text()},
            language_model=mixed_model, seed=seed,
        )  # fmt: skip
        assert result.row("unmeasured", seed=0, condition="token_r2")["n"] == 12
        assert result.row("token_r2", variant="neurons")["n"] == 12
        # What the weights say is said of all.
        assert result.row("capacity", seed=0, subset="alive")["n"] == VOCAB
        return np.flatnonzero(result.features["it.token_r2"].notna()).tolist()

    assert len(chosen(7)) == 12
    assert chosen(7) == chosen(7) != chosen(8)


def test_batches_change_nothing_and_text_beyond_n_tokens_is_not_looked_at(
    plant: Callable[..., Any], measure: Callable[..., Any], mixed_model: Any
) -> None:
    def values(tokens: TokenSet, batch_rows: int = 1_000, n_tokens: int = 60 * 31) -> list[float]:
        result = measure(
            Polysemanticity(n_tokens=n_tokens), [plant(rotation(1))], {"faithful": tokens},
            language_model=mixed_model, batch_rows=batch_rows,
        )  # fmt: skip
        return result.features[["it.token_selectivity", "it.token_r2"]].to_numpy().ravel().tolist()

    whole = values(text())
    assert values(text(), batch_rows=7) == pytest.approx(whole)
    assert values(text(60)) == pytest.approx(whole)
    # What does not fill a row is one row more.
    assert values(text(60), n_tokens=59 * 31 + 1) == pytest.approx(whole)
    assert values(text(), n_tokens=100_000) != pytest.approx(whole)


def test_both_sides_of_a_signed_latent_are_measured(
    detectors: Any, measure: Callable[..., Any], mixed_model: Any
) -> None:
    mixed = [detectors]
    sides = measure(Polysemanticity(), mixed, {"faithful": text()}, language_model=mixed_model)
    signed = measure(
        Polysemanticity(neurons="signed"),
        mixed,
        {"faithful": text()},
        language_model=mixed_model,
        batch_rows=1,
    )
    relu = measure(Polysemanticity(neurons="relu"), mixed, {"faithful": text()}, language_model=mixed_model)
    row = signed.row("token_selectivity", variant="neurons")
    # All sides have a value, so that a mean over means of two sides is a mean over sides.
    assert row["value"] == pytest.approx(sides.row("token_selectivity", variant="neurons")["value"])
    assert (row["n"], relu.row("token_selectivity", variant="neurons")["n"]) == (64, 64)
    assert row["value"] != pytest.approx(relu.row("token_selectivity", variant="neurons")["value"])


def test_a_latent_has_the_mean_of_the_sides_that_have_a_value_or_a_reason_that_is_not_silence() -> None:
    above = Scores(np.array([1.0, 1.0, np.nan, np.nan]), [None, None, SILENT, SILENT])
    below = Scores(np.array([0.5, np.nan, np.nan, np.nan]), [None, SILENT, SELDOM, SILENT])
    values, reasons = of_latents([above, below])
    np.testing.assert_array_equal(values, [0.75, 1, np.nan, np.nan])
    assert reasons == [SELDOM, SILENT]


def test_text_that_passed_before_a_latent_was_below_zero_counts(
    plant: Callable[..., Any], measure: Callable[..., Any], one_hot_model: Any
) -> None:
    class Late(type(one_hot_model)):
        """Neuron 5 is below 0 on the tokens 9 and 10, more so on 9."""

        def activations(self, tokens: Any, hooks: Any) -> dict[str, Any]:
            found = torch.nn.functional.one_hot(tokens, VOCAB).float()
            found[..., 5] -= (tokens == 9) + 0.5 * (tokens == 10)
            return dict.fromkeys(hooks, found)

    # Neither token is in the first forty rows.
    early, late = (np.random.default_rng(0).integers(low, VOCAB, (n, 31)) for low, n in ((11, 40), (3, 80)))
    tokens = TokenSet.from_rows(np.concatenate([early, late]))

    def value(batch_rows: int) -> float:
        evaluator, model = Polysemanticity(neurons="signed"), Late()
        result = measure(
            evaluator,
            [plant(np.eye(VOCAB))],
            {"faithful": tokens},
            language_model=model,
            batch_rows=batch_rows,
        )
        return result.row("token_selectivity", variant="neurons")["value"]

    assert value(7) == pytest.approx(value(1_000))


def test_a_signed_baseline_is_measured_as_signed_neurons_are(
    detectors: Any, measure: Callable[..., Any], mixed_model: Any
) -> None:
    from sae_faithful import Directions
    from sae_faithful.directions_sae import as_sae

    eye = torch.eye(VOCAB)
    signed = dataclasses.replace(detectors, kind="baseline", variant="neurons")
    signed.load = lambda: as_sae(Directions(read=eye, write=eye, mean=torch.zeros(VOCAB), sign="signed"), {})
    options = {"language_model": mixed_model}
    ours = measure(Polysemanticity(neurons="signed"), [detectors], {"faithful": text()}, **options)
    theirs = measure(Polysemanticity(), [detectors, signed], {"faithful": text()}, **options)
    # Where the run has a baseline of that name it is the one, and is not measured twice.
    assert theirs.row("token_selectivity", variant="neurons", seed=0)["value"] == pytest.approx(
        ours.row("token_selectivity", variant="neurons")["value"]
    )
    assert theirs.row("token_selectivity", variant="neurons")["n"] == 1
    difference = theirs.row("token_selectivity_difference", seed=0, condition="minus neurons")
    assert difference["value"] > 0.1
    assert "yes." in (theirs.folder / "artifacts/reading.txt").read_text()


def test_special_tokens_do_not_count(plant: Callable[..., Any], measure: Callable[..., Any]) -> None:
    # BOS's activation is a hundred times that of the others; the latents read it as well as a token each.
    encoder = np.eye(VOCAB)
    encoder[BOS] = 1.0
    result = measure(Polysemanticity(), [plant(encoder)], {"faithful": text()})
    assert result.row("token_selectivity", seed=0)["value"] == pytest.approx(1)


def test_the_text_can_be_another_than_the_sources_own(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    # In the other text only 13 tokens occur.
    rows = np.random.default_rng(1).integers(3, 16, (120, 31))
    held_out = {"faithful": text(), "code": TokenSet.from_rows(rows)}
    result = measure(Polysemanticity(dataset="code"), [plant(np.eye(VOCAB))], held_out)
    assert result.row("token_r2", seed=0)["n"] == 13
    assert {row["dataset"] for row in result.rows} == {"code"}
    with pytest.raises(UsageError, match="unknown dataset 'news'; there are: faithful, code"):
        measure(Polysemanticity(dataset="news"), [plant(np.eye(VOCAB))], held_out)


def test_neurons_can_be_left_out(plant: Callable[..., Any], measure: Callable[..., Any]) -> None:
    result = measure(Polysemanticity(neurons=None), [plant(np.eye(VOCAB))], {"faithful": text()})
    assert {row["variant"] for row in result.rows} == {"main"}
    assert "No neurons were measured" in (result.folder / "artifacts/reading.txt").read_text()


def test_a_variant_with_the_neurons_name_is_refused(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    sae = plant(np.eye(VOCAB), variant="neurons")
    with pytest.raises(UsageError, match="a variant is called 'neurons'"):
        measure(Polysemanticity(), [sae], {"faithful": text()})
    assert measure(Polysemanticity(neurons=None), [sae], {"faithful": text()}).rows


# Halves


def test_halves_are_of_whole_documents_and_about_equal() -> None:
    documents = np.sort(np.random.default_rng(0).integers(0, 30, (50, 20)).ravel()).reshape(50, 20)
    ids = np.random.default_rng(1).integers(3, 40, (50, 20))
    halves = Halves(TokenSet.from_rows(ids, documents), 10_000, [0, 1, 2], seed=0)
    for document in range(30):
        assert len(set(halves.halves[documents == document].tolist())) == 1
    assert 400 < halves.halves.sum() < 600
    again = Halves(TokenSet.from_rows(ids, documents), 10_000, [0, 1, 2], seed=1)
    assert (again.halves != halves.halves).any()
    # Every token occurs often enough to be in both.
    assert halves.n_types == 37
    assert (halves.types == ids - 3).all()


@pytest.mark.parametrize("sizes", [(1, 19), (19, 1), (3, 16, 1)])
def test_of_documents_of_any_size_each_half_has_one(sizes: tuple[int, ...]) -> None:
    documents = np.repeat(np.arange(len(sizes)), sizes)[None]
    for seed in range(6):
        halves = Halves(TokenSet.from_rows(np.full((1, 20), 5), documents), 20, [0], seed)
        assert set(halves.halves.ravel().tolist()) == {0, 1}


def test_tokens_of_one_half_alone_are_not_kept_apart() -> None:
    rows = np.array([[0, 5, 6, 7], [0, 6, 7, 8]])
    halves = Halves(TokenSet.from_rows(rows), 8, [0], seed=0)
    # Special ones are not, either.
    assert halves.n_types == 2
    assert halves.types.tolist() == [[2, 2, 0, 1], [2, 0, 1, 2]]


def test_one_document_has_no_two_halves(plant: Callable[..., Any], measure: Callable[..., Any]) -> None:
    rows = np.random.default_rng(0).integers(3, VOCAB, (60, 31))
    tokens = TokenSet.from_rows(rows, np.zeros_like(rows))
    result = measure(Polysemanticity(), [plant(np.eye(VOCAB))], {"faithful": tokens})
    assert result.row("token_selectivity", seed=0)["reason"] == "no latent has a value"
    condition = "token_selectivity: active in one half of the text only"
    assert result.row("unmeasured", seed=0, condition=condition)["value"] == 61


# Options, and a whole run


@pytest.mark.parametrize("option", ["n_tokens", "n_features", "min_count"])
def test_options_that_make_no_sense_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} 0 is not positive"):
        Polysemanticity(**{option: 0})
    evaluators = load_plugins().registrations("evaluator")
    assert evaluators["polysemanticity"].offered is Polysemanticity


def shown(folder: Any) -> tuple[list[dict[str, Any]], str]:
    rows = [json.loads(line) for line in folder.results_file.read_text().splitlines()]
    report = (folder.results_file.parent / "report.md").read_text()
    return [row for row in rows if row["evaluator"] == "polysemanticity"], report


def small(config: dict[str, Any], **changes: Any) -> ExperimentConfig:
    return ExperimentConfig.from_dict(
        {
            **config,
            "evaluators": [{"polysemanticity": {"n_features": 30, "min_count": 1}}],
            "baselines": ["random", {"pca": {"sign": "signed"}}],
            **changes,
        }
    )


def test_a_whole_run_of_several_hooks(tiny_config: dict[str, Any]) -> None:
    hooks = ["model.layers.0", "model.layers.1"]
    rows, report = shown(run(small(tiny_config, hook_names=hooks)))
    places = {(row["hook"], row["condition"]) for row in rows if row["metric"] == "token_r2_difference"}
    names = ("minus neurons", "minus random", "minus pca")
    assert places == {(hook, name) for hook in hooks for name in names}
    assert len(re.findall("more monosemantic than the neuron basis", report)) == 2
    # Orthonormal directions, and both sides of random ones as one.
    capacity = {row["variant"]: row["value"] for row in rows if row["metric"] == "capacity"}
    assert capacity["pca"] == pytest.approx(1, abs=1e-5)
    assert 0.4 < capacity["random"] < 0.6


def test_a_whole_run_of_a_hooked_transformer(
    tiny_config: dict[str, Any], tiny_hooked: Any, tmp_path: Path
) -> None:
    hook = "blocks.0.hook_resid_post"
    config = small(
        tiny_config,
        model_name="tiny",
        model_class_name="HookedTransformer",
        hook_name=hook,
        hook_names=[hook],
    )
    rows, report = shown(run(config, override_model=tiny_hooked))
    assert {row["variant"] for row in rows if row["metric"] == "token_selectivity"} == {
        "base", "neurons", "random", "pca",
    }  # fmt: skip
    assert "more monosemantic than the neuron basis" in report
