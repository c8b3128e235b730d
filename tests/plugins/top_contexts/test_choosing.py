"""Which latents are shown, by columns planted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sae_faithful import UsageError
from sae_faithful_plugins.top_contexts import TopContexts

from .conftest import latents, text

NAN, INF = np.nan, np.inf
TEXT = {"faithful": text({5: 5, 6: 6, 7: 7}, {9: 8, 12: 9})}
# Latent i fires on token 5 + i, each 1 stronger than the one before; the last on a token the text does not have.
FIVE = latents({5: 1.0}, {6: 2.0}, {7: 3.0}, {8: 4.0}, {50: 9.0})


def why(sae: dict[str, Any]) -> dict[int, list[str]]:
    """The latents in order, and why."""
    return {one["latent"]: one["why"] for one in sae["latents"]}


@pytest.fixture
def one(plant: Callable[..., Any], show: Callable[..., Any]) -> Callable[..., dict[int, list[str]]]:
    """What is shown of one SAE with the five latents."""

    def go(columns: dict[str, list[dict[str, Any]]] | None = None, **options: Any) -> dict[int, list[str]]:
        evaluator = TopContexts(**{"n_latents": 2, **options})
        (sae,) = show(evaluator, [plant(FIVE)], TEXT, columns)["saes"]
        return why(sae)

    return go


def test_with_nothing_to_choose_by_it_is_the_largest_activations(one: Callable[..., Any]) -> None:
    assert one() == {3: ["most_active"], 2: ["most_active"]}
    # The fifth would be the strongest, but never fires here.
    assert list(one(n_latents=50)) == [3, 2, 1, 0]


def test_columns_without_any_number_are_nothing_to_choose_by(one: Callable[..., Any]) -> None:
    empty = {"probing": [{"f_statistic.sst2": [NAN] * 5}], "shared_features": [{}]}
    assert one(empty, n_latents=1) == {3: ["most_active"]}


def test_the_most_fake_are_furthest_above_both_bounds(one: Callable[..., Any]) -> None:
    columns = {
        # .5 - max(.1, 2·.2) = .1; .22 - max(.1, 2·.01) = .12; .15 - .1 = .05; .9 - 2·.5 = -.1; the last is dead.
        "rate_random": [0.5, 0.22, 0.15, 0.9, 0.99],
        "rate_own": [0.2, 0.01, 0.0, 0.5, 0.0],
    }
    assert one({"fake_features": [columns]}) == {1: ["fakest"], 0: ["fakest"]}


def test_most_stable_go_by_stability_then_cosine_and_orphans_by_cosine_alone(
    one: Callable[..., Any],
) -> None:
    columns = {"stability": [1.0, 0.5, 1.0, 0.0, 1.0], "mean_matched_cosine": [0.8, 0.9, 0.95, 0.1, 0.99]}
    assert one({"shared_features": [columns]}) == {
        2: ["most_stable"], 0: ["most_stable", "orphans"], 3: ["orphans"],
    }  # fmt: skip
    # Latent 3 has the lowest cosine, latent 4 would be the most stable and is dead.


def test_latents_without_a_number_have_no_reason(one: Callable[..., Any]) -> None:
    columns = {"stability": [NAN, 0.5, NAN, 0.0, 1.0], "mean_matched_cosine": [NAN, 0.9, 0.95, 0.1, 0.99]}
    # 2 has a cosine alone; the last is dead.
    assert one({"shared_features": [columns]}, n_latents=5) == {
        1: ["most_stable", "orphans"], 3: ["most_stable", "orphans"], 2: ["orphans"],
    }  # fmt: skip


def test_each_task_has_its_best_and_one_latent_may_have_several_reasons(one: Callable[..., Any]) -> None:
    columns = {"f_statistic.sst2": [1.0, INF, 7.0, NAN, INF], "f_statistic.a.b": [9.0, 8.0, 0.0, 0.0, 0.0]}
    assert one({"probing": [columns]}) == {
        1: ["best_probing.sst2", "best_probing.a.b"], 2: ["best_probing.sst2"], 0: ["best_probing.a.b"],
    }  # fmt: skip


def test_what_is_asked_for_is_shown_first_dead_or_not(one: Callable[..., Any]) -> None:
    assert one(latents=[4, 3, 4]) == {4: ["asked"], 3: ["asked", "most_active"], 2: ["most_active"]}
    assert one(latents=[1], n_latents=0) == {1: ["asked"]}


def test_matches_in_other_seeds_are_shown_and_theirs_are_not(
    plant: Callable[..., Any], show: Callable[..., Any]
) -> None:
    places = [{"seed": 0}, {"seed": 1}, {"seed": 1, "variant": "wide"}, {"seed": 1, "source": "web"}]
    handles = [plant(FIVE, **place) for place in places]
    probing = {"f_statistic.t": [9.0, 8.0, 1.0, 0.0, 0.0]}
    # Of seed 0, latents 0 and 1 are chosen: 0 is the other's dead latent 4, 1 has no partner. Seed 1 chooses the
    # same, and its latent 0 is latent 2 of seed 0; that one's own match 3 is not shown.
    matches = [
        {"match.seed1": [4, NAN, 3, 1, 0], "match.seed7": [3, 3, 3, 3, 3]},
        {"match.seed0": [2, NAN, NAN, NAN, 0]},
        # Of SAEs that there are not: seed 0 has no wide one, and none of the other source.
        {"match.seed0": [3, 3, 3, 3, 3]}, {"match.seed0": [3, 3, 3, 3, 3]},
    ]  # fmt: skip
    content = show(
        TopContexts(n_latents=2),
        handles,
        {**TEXT, "web": text({5: 5})},
        {"shared_features": matches, "probing": [probing, probing, {}, {}]},
    )
    first, second, wide, web = content["saes"]
    assert why(first) == {0: ["best_probing.t"], 1: ["best_probing.t"], 2: ["match"]}
    assert why(second) == {0: ["best_probing.t"], 1: ["best_probing.t"], 4: ["match"]}
    # A link to it leads somewhere, and says that there is nothing.
    assert (second["latents"][2]["maximum"], second["latents"][2]["contexts"]) == (0, [])
    # Others have no part in it; without columns of their own they show what is most active on their own text.
    assert why(wide) == {3: ["most_active"], 2: ["most_active"]}
    assert why(web) == {0: ["most_active"]}


def test_baselines_are_shown_where_they_are_asked_for(
    plant: Callable[..., Any], show: Callable[..., Any]
) -> None:
    baseline = plant(FIVE, variant="pca")
    baseline.kind = "baseline"
    handles = [plant(FIVE), baseline]
    for asked, variants in ((False, ["main"]), (True, ["main", "pca"])):
        content = show(TopContexts(baselines=asked), handles, TEXT)
        assert [sae["variant"] for sae in content["saes"]] == variants


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n_latents": -1}, "n_latents -1 is below 0"),
        ({"window": -2}, "window -2 is below 0"),
        ({"n_contexts": 0}, "n_contexts 0 is not positive"),
        ({"latents": [3, -4]}, "latents: -4 is below 0"),
        ({"n_latents": 0}, "n_latents is 0 and latents is empty"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TopContexts(**options)


def test_a_latent_that_an_sae_does_not_have_is_refused_before_the_pass(
    plant: Callable[..., Any], show: Callable[..., Any], one_hot_model: Any
) -> None:
    says = "latents: faithful, model.layers.0, main, seed 0 has no latent 5; it has 5"
    with pytest.raises(UsageError, match=says):
        show(TopContexts(latents=[5]), [plant(FIVE)], TEXT)
    assert one_hot_model.passes == []
