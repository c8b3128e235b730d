"""Who a latent was matched with in each other seed, and how the matched cosines are spread; by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sae_faithful import TokenSet
from sae_faithful.interfaces import Artifact
from sae_faithful_plugins.shared_features import SharedFeatures

D = 64
TEXT = {"faithful": TokenSet.from_rows(np.tile([0, 5, 6, 7, 8], (20, 1)))}


def at(*cosines: tuple[int, float]) -> np.ndarray:
    """A decoder whose row i has that cosine with that unit vector, and none with those below 32 besides."""
    rows = np.zeros((len(cosines), D))
    for i, (axis, cosine) in enumerate(cosines):
        rows[i, axis], rows[i, 32 + axis] = cosine, np.sqrt(1 - cosine**2)
    return rows


def alive(*latents: int, n: int) -> np.ndarray:
    """An encoder of n latents of which these fire."""
    encoder = np.zeros((64, n))
    encoder[5, list(latents)] = 1.0
    return encoder


@pytest.fixture
def three(plant: Callable[..., Any]) -> list[Any]:
    """Three seeds: axes 0 to 2 in other orders; seed 1 at cosines .65 and 0, seed 2 with one latent more, untrained."""
    decoders = [
        at((0, 1.0), (1, 1.0), (2, 1.0)),
        at((2, 1.0), (0, 0.65), (9, 1.0)),
        np.concatenate([at((1, 1.0), (2, 1.0), (0, 1.0)), np.zeros((1, D))]),
    ]
    fire = [alive(0, 1, 2, n=3), alive(0, 1, n=3), alive(0, 1, 2, n=4)]
    return [
        plant(encoder, decoder, seed=seed)
        for seed, (encoder, decoder) in enumerate(zip(fire, decoders, strict=True))
    ]


def test_each_latent_is_told_its_partner_in_every_other_seed(
    three: list[Any], measure: Callable[..., Any]
) -> None:
    table = measure(SharedFeatures(null_draws=0), three, TEXT).features.set_index(["seed", "latent"])
    expected = {
        (0, 1): [1, 2, 0], (0, 2): [2, 0, 1], (1, 0): [2, 0, 1], (1, 2): [1, 2, 0],
        # Seed 2's last latent has no direction, and no partner.
        (2, 0): [1, 2, 0, None], (2, 1): [2, 0, 1, None],
    }  # fmt: skip
    for (seed, other), partners in expected.items():
        found = table.loc[seed][f"it.match.seed{other}"]
        assert [None if np.isnan(each) else int(each) for each in found] == partners
    assert table.loc[0]["it.matched_cosine.seed1"].tolist() == pytest.approx([0.65, 0, 1], abs=1e-6)
    cosines = table.loc[2]["it.matched_cosine.seed0"]
    assert cosines[:3].tolist() == pytest.approx([1, 1, 1])
    assert np.isnan(cosines[3])
    # Nobody is matched with itself, and the mean over seeds is as before.
    assert table.loc[0]["it.match.seed0"].isna().all()
    assert table.loc[0]["it.mean_matched_cosine"].tolist() == pytest.approx([0.825, 0.5, 1], abs=1e-6)


def test_the_histogram_counts_pairs_of_all_and_of_alive_latents_and_of_the_null(
    three: list[Any], measure: Callable[..., Any]
) -> None:
    measured = measure(SharedFeatures(thresholds=[0.7], null_draws=2), three, TEXT)
    content = json.loads((measured.folder / "artifacts/matched_cosines.json").read_text())
    assert content["thresholds"] == [0.7]
    (group,) = content["groups"]
    assert (group["source"], group["hook"], group["variant"]) == ("faithful", "model.layers.0", "main")
    edges = group["edges"]
    assert (len(edges), edges[0], edges[85], edges[-1]) == (101, -1, 0.7, 1)
    counts = {name: {edges[i]: n for i, n in enumerate(group[name]) if n} for name in ("all", "alive")}
    # Three pairs of seeds with three latents: those of seeds 0 and 2 are at 1, those with seed 1 at 1, .65 and 0.
    assert counts["all"] == {0.98: 5, 0.64: 2, 0: 2}
    # Seed 1's latent 2 never fires.
    assert counts["alive"] == {0.98: 5, 0.64: 2}
    assert (group["n_pairs"], group["n_null_pairs"]) == (3, 2)
    # Pairs of seeds 0 and 1, then 0 and 2, three latents each; of the first two are alive on both sides.
    assert sum(group["null"]) == 6
    assert sum(group["null_alive"]) <= 6


def test_every_source_and_variant_with_two_seeds_has_a_histogram(
    plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    decoder, encoder = at((0, 1.0), (1, 1.0)), alive(0, 1, n=2)
    places = [("faithful", "main", 0), ("faithful", "main", 1), ("web", "main", 0), ("web", "main", 1)]
    places += [("faithful", "wide", 0)]
    handles = [plant(encoder, decoder, source=s, variant=v, seed=seed) for s, v, seed in places]
    texts = {**TEXT, "web": TEXT["faithful"]}
    measured = measure(SharedFeatures(null_draws=0), handles, texts)
    content = json.loads((measured.folder / "artifacts/matched_cosines.json").read_text())
    assert [(group["source"], group["variant"]) for group in content["groups"]] == [
        ("faithful", "main"), ("web", "main"),
    ]  # fmt: skip
    assert all((sum(group["all"]), group["null"]) == (2, None) for group in content["groups"])


def test_one_seed_has_no_histogram(plant: Callable[..., Any], measure: Callable[..., Any]) -> None:
    measured = measure(SharedFeatures(), [plant(alive(0, n=1), at((0, 1.0)))], TEXT)
    assert not (measured.folder / "artifacts/matched_cosines.json").exists()


def test_nothing_is_counted_until_the_histogram_is_written(
    three: list[Any], monkeypatch: pytest.MonkeyPatch, one_hot_model: Any
) -> None:
    import sae_faithful_plugins.shared_features as plugin
    from sae_faithful.interfaces import EvalContext

    counted: list[int] = []
    monkeypatch.setattr(plugin, "cosine_counts", lambda *_: counted.append(1) or {})
    context = EvalContext(
        handles=three, held_out=TEXT, sources=["faithful"], language_model=one_hot_model, seed=0
    )
    evaluator = SharedFeatures(**SharedFeatures.monitor_budget)
    results = list(evaluator.evaluate(context, evaluator.observers(context)))
    (artifact,) = [one for one in results if isinstance(one, Artifact) and one.name == "matched_cosines"]
    assert counted == []
    artifact.content()
    assert counted == [1]
