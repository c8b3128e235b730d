"""The evaluator from end to end: which features, on planted SAEs and from configs on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful import ExperimentConfig, TokenSet, UsageError, run
from sae_faithful_plugins.case_studies import CaseStudies, observing

TOKENS = {7: 0, 9: 1, 11: 2}
"""Which token each planted detector is for."""


@pytest.fixture
def detectors(linear: Any, sae_of: Callable[..., Any]) -> Callable[..., Any]:
    """An SAE with three features that fire on one token each, one that fires on everything, one that never does.

    The readout adds 5 to the logit of w50 for each unit of the first.
    """
    linear.embedding[:, :6] = 0
    for token, i in TOKENS.items():
        linear.embedding[token, i] = 1.0 + i
    linear.embedding[3:, 3] = torch.linspace(0.5, 1.5, 61)
    linear.readout[:6] = 0
    linear.readout[0, 50] = 5.0
    encoder = torch.zeros(6, 16)
    for i in range(4):
        encoder[i, i] = 1.0
    # Two tokens, one of them twice as strong.
    encoder[4, 0], encoder[4, 1] = 2.0, 0.5
    return lambda **place: sae_of(torch.eye(16)[:6], encoder, bias=torch.tensor([0.0] * 5 + [-1.0]), **place)


@pytest.fixture
def text(rows: np.ndarray) -> TokenSet:
    """120 rows; w7 comes more often than w9, and w9 than w11."""
    rng = np.random.default_rng(5)
    ids = np.concatenate([rows, rows])
    ids[np.isin(ids, list(TOKENS))] = 20
    for token, n in ((7, 3), (9, 2), (11, 1)):
        for row in ids:
            row[rng.choice(np.arange(1, 15), n)] = token
    return TokenSet.from_rows(ids)


def cases(measured: Any) -> list[dict[str, Any]]:
    return json.loads((measured.folder / "artifacts" / "cases.json").read_text())["saes"]


def chosen(measured: Any) -> list[list[int]]:
    return [[feature["latent"] for feature in sae["features"]] for sae in cases(measured)]


def words(measured: Any) -> str:
    return (measured.folder / "artifacts" / "cases.txt").read_text()


def measured_by(measure: Any, linear: Any, text: TokenSet, handles: Any, **options: Any) -> Any:
    options = {"tree_contexts": 0, **options}
    return measure(CaseStudies(**options), handles, {"faithful": text}, language_model=linear)


def test_a_planted_token_feature_has_its_whole_case_right(
    measure: Any, linear: Any, text: TokenSet, detectors: Callable[..., Any]
) -> None:
    measured = measured_by(measure, linear, text, [detectors()], features=[{"latent": 0}])
    (sae,) = cases(measured)
    (case,) = sae["features"]
    n = int((text.rows() == 7).sum())
    assert case["n_active"] == n
    assert case["maximum"] == pytest.approx(1.0)
    assert (case["top_token"]["token"], case["top_token"]["share_of_activation"]) == ("w7", 1.0)
    first, others = case["histogram"]["series"]
    assert (first["token"], first["counts"]) == ("w7", [0] * 9 + [n])
    assert (others["token"], others["counts"]) == (None, [0] * 10)
    # It is a neuron, here.
    assert (case["neuron"]["index"], case["neuron"]["side"]) == (0, "above 0")
    assert case["neuron"]["similarity"] == pytest.approx(1)
    assert len(case["contexts"]) == 5
    assert all(one["token"] == "w7" and one["activation"] == pytest.approx(1) for one in case["contexts"])
    row, position = case["contexts"][0]["row"], case["contexts"][0]["position"]
    assert text.rows()[row, position] == 7
    ablation = case["ablation"]
    assert (ablation["n_contexts"], ablation["n_down"], ablation["n_up"]) == (20, 1, 0)
    (down,) = ablation["suppressed"]
    assert down["token"] == "w50"
    assert [down["effect"], down["ci_low"], down["ci_high"]] == pytest.approx([-5.0] * 3, abs=1e-4)
    assert ablation["own_code_left"] == 0
    assert ablation["next_token"]["change"] == pytest.approx(0, abs=3)
    assert case["unembedding"]["raised"][0] == {"token": "w50", "id": 50, "score": 5.0}
    assert case["unembedding"]["pearson"] == pytest.approx(1)
    shown = words(measured)
    for part in ("Latent 0", "`w7`", "most falls `w50` -5.00", "raises most `w50`", "others"):
        assert part in shown


def test_rows_and_columns_are_of_the_studied_features(
    measure: Any, linear: Any, text: TokenSet, detectors: Callable[..., Any]
) -> None:
    features = [{"latent": 4}, {"latent": 0}]
    measured = measured_by(measure, linear, text, [detectors()], features=features)
    ids = text.rows()
    # The fifth feature has 2 on w7 and .5 · 2 on w9.
    sevens, nines = 2.0 * (ids == 7), 1.0 * (ids == 9)
    share = sevens.sum() / (sevens.sum() + nines.sum())
    assert 0.5 < share < 1
    row = measured.row("top_token_share", seed=0)
    assert row["value"] == pytest.approx((1 + share) / 2)
    assert row["ci_low"] < row["value"] < row["ci_high"] <= 1
    assert (row["n"], row["unit"]) == (2, "share of activation")
    # Both have the first neuron, all of which is on w7.
    assert measured.row("neuron_top_token_share", seed=0)["value"] == pytest.approx(1)
    difference = measured.row("top_token_share_difference", seed=0)
    assert difference["value"] == pytest.approx((share - 1) / 2)
    # Neurons give no error here: it is the features' own.
    assert difference["ci_high"] - difference["ci_low"] == pytest.approx(row["ci_high"] - row["ci_low"])
    assert measured.row("top_token_share")["value"] == row["value"]
    assert measured.row("top_token_share")["reason"] == "one SAE says nothing about the spread between SAEs"
    table = measured.features.set_index("latent")
    assert table["it.top_token_share"].dropna().to_dict() == pytest.approx({0: 1.0, 4: share})
    assert table["it.top_token"].dropna().to_dict() == {0: 7, 4: 7}
    assert table["it.rate"][0] == pytest.approx((ids == 7).mean() * 16 / 15)
    assert table["it.neuron"].dropna().to_dict() == {0: 0, 4: 0}
    assert table["it.unembedding_pearson"][0] == pytest.approx(1)


def test_a_feature_that_never_fires_says_so_and_has_nothing_else(
    measure: Any, linear: Any, text: TokenSet, detectors: Callable[..., Any]
) -> None:
    measured = measured_by(measure, linear, text, [detectors()], features=[{"latent": 5}])
    ((case,),) = [sae["features"] for sae in cases(measured)]
    assert (case["n_active"], case["neuron"], case["ablation"], case["top_token"]) == (0, None, None, None)
    assert case["contexts"] == []
    for row in measured.rows:
        assert (row["value"], row["reason"]) == (None, "no studied feature is active on the text")
    assert "is never active on this text" in words(measured)
    assert not linear.edited


def test_by_default_token_detectors_are_chosen_on_one_half_and_measured_on_the_other(
    measure: Any, linear: Any, text: TokenSet, detectors: Callable[..., Any]
) -> None:
    measured = measured_by(measure, linear, text, [detectors()], max_rate=0.5)
    # The one that is active everywhere is not among them; of equal shares the more active first.
    assert chosen(measured) == [[0, 1, 2]]
    (sae,) = cases(measured)
    assert sae["n_rows"] == 60
    assert sae["features"][0]["n_active"] == (text.rows()[60:] == 7).sum()
    assert all(60 <= one["row"] < 120 for one in sae["features"][0]["contexts"])
    # w7 is on more of the tokens than that, w9 on fewer.
    half = text.rows()[:60, 1:]
    between = float(((half == 7).mean() + (half == 9).mean()) / 2)
    rare = measured_by(measure, linear, text, [detectors()], max_rate=between, n_features=2)
    assert chosen(rare) == [[1, 2]]
    few = measured_by(measure, linear, text, [detectors()], n_tokens=64)
    assert chosen(few) == [[]]
    assert "None can be chosen" in words(few)


def test_a_chance_preference_is_not_carried_into_the_share(
    measure: Any, linear: Any, sae_of: Callable[..., Any], text: TokenSet
) -> None:
    # Forty features that are active on about fourteen tokens of each half, at random.
    rng = np.random.default_rng(9)
    ids = rng.integers(4, 64, size=(120, 16))

    def noise(activations: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(rng.random((*activations.shape[:-1], 40)) > 0.985).float()

    handle = sae_of(torch.eye(40, 16))
    handle.encode = noise
    measured = measured_by(measure, linear, TokenSet.from_rows(ids), [handle], n_contexts=0, n_features=5)
    (sae,) = cases(measured)
    claimed = [float(feature["why"].split("%")[0]) / 100 for feature in sae["features"]]
    found = measured.row("top_token_share", seed=0)["value"]
    # The best of forty in the first half; in the second they are like any other.
    assert found < 0.75 * np.mean(claimed)


@pytest.mark.parametrize(
    ("options", "expected"), [({}, [2, 0]), ({"largest": False}, [1, 0]), ({"n_features": 9}, [2, 0, 1])]
)
def test_the_top_of_a_column_is_chosen_and_nan_never(
    linear: Any, text: TokenSet, detectors: Callable[..., Any], options: Any, expected: list[int]
) -> None:
    import pandas as pd

    from sae_faithful.interfaces import EvalContext

    handle = detectors()
    evaluator = CaseStudies(column="other.score", **{"n_features": 2, "tree_contexts": 0, **options})
    table = pd.DataFrame(
        {**handle.identity, "latent": range(6), "other.score": [0.2, 0.1, 0.9, *[np.nan] * 3]}
    )
    elsewhere = table.assign(variant="other", **{"other.score": 5.0})
    context = EvalContext(
        handles=[handle], held_out={"faithful": text}, sources=["faithful"], language_model=linear, seed=7,
        features=pd.concat([elsewhere, table]),
    )  # fmt: skip
    assert evaluator.reads == ["other"]
    assert column_choice(evaluator, context) == expected
    for features, there in ((context.features, "other.score"), (None, "none")):
        evaluator = CaseStudies(column="other.rate")
        with pytest.raises(UsageError, match=f"no column 'other.rate'; there are: {there}$"):
            column_choice(evaluator, replace_features(context, features))


def column_choice(evaluator: CaseStudies, context: Any) -> list[int]:
    from sae_faithful_plugins.case_studies.choosing import choose

    (study,) = choose(evaluator, context, evaluator.observers(context))
    return study.latents


def replace_features(context: Any, features: Any) -> Any:
    from dataclasses import replace

    return replace(context, features=features)


def test_the_features_most_active_at_the_end_of_a_probe_are_chosen(
    measure: Any, linear: Any, text: TokenSet, detectors: Callable[..., Any]
) -> None:
    # At w7 the fifth is at 2, the first at 1, and the one that is active everywhere, which is skipped.
    measured = measured_by(measure, linear, text, [detectors()], probe="w9 w11 w7", max_rate=0.6)
    assert chosen(measured) == [[4, 0]]
    assert "most active at the last token of 'w9 w11 w7'" in words(measured)
    # Not with its other words.
    assert chosen(measured_by(measure, linear, text, [detectors()], probe="w7 w7 w11")) == [[2]]
    assert chosen(measured_by(measure, linear, text, [detectors()], probe="w7 w20")) == [[]]


def test_saes_of_the_first_seed_are_studied_and_baselines_only_where_asked_for(
    measure: Any, linear: Any, text: TokenSet, detectors: Callable[..., Any]
) -> None:
    places = [{}, {"seed": 1}, {"variant": "pca", "kind": "baseline"}, {"hook": "model.layers.1", "seed": 1}]
    handles = [detectors(**place) for place in places]

    def where(**options: Any) -> list[tuple[str, str, int]]:
        found = cases(measured_by(measure, linear, text, handles, n_contexts=0, **options))
        return [(sae["hook"][-1], sae["variant"], sae["seed"]) for sae in found]

    assert where() == [("0", "main", 0), ("1", "main", 1)]
    assert where(seeds="all") == [("0", "main", 0), ("0", "main", 1), ("1", "main", 1)]
    assert where(baselines=True) == [("0", "main", 0), ("0", "pca", 0), ("1", "main", 1)]
    assert where(variants=["pca"]) == [("0", "pca", 0)]
    assert where(variants=["main"], baselines=True) == where()
    assert where(hooks=["model.layers.1"]) == [("1", "main", 1)]
    assert where(features=[{"latent": 1}], variants=["pca"]) == [("0", "pca", 0)]
    assert where(features=[{"latent": 1}]) == [("0", "main", 0), ("1", "main", 1)]
    assert where(features=[{"latent": 1, "seed": 1}]) == [("0", "main", 1), ("1", "main", 1)]
    assert where(features=[{"latent": 1, "variant": "pca"}]) == [("0", "pca", 0)]
    several = [{"latent": 2, "hook": "model.layers.0"}, {"latent": 1}]
    measured = measured_by(measure, linear, text, handles, n_contexts=0, features=several)
    assert chosen(measured) == [[2, 1], [1]]


def test_what_is_one_for_all_saes_is_made_once(
    measure: Any,
    linear: Any,
    text: TokenSet,
    detectors: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut: list[TokenSet] = []

    def beginning(*args: Any) -> TokenSet:
        cut.append(original(*args))
        return cut[-1]

    original = observing.beginning
    monkeypatch.setattr(observing, "beginning", beginning)
    handles = [detectors(seed=seed) for seed in range(3)]
    measured = measured_by(measure, linear, text, handles, features=[{"latent": 0}], seeds="all")
    assert (chosen(measured), len(cut), linear.unembeddings) == ([[0]] * 3, 1, 1)


def test_a_source_is_the_mean_over_its_saes(
    measure: Any, linear: Any, text: TokenSet, detectors: Callable[..., Any], sae_of: Callable[..., Any]
) -> None:
    handles = [detectors(), sae_of(torch.eye(16)[6:12], seed=1)]
    measured = measured_by(
        measure, linear, text, handles, features=[{"latent": 0}], seeds="all", n_contexts=0
    )
    values = [measured.row("top_token_share", seed=seed)["value"] for seed in (0, 1)]
    row = measured.row("top_token_share")
    assert (row["value"], row["n"], row["headline"]) == (pytest.approx(np.mean(values)), 2, True)
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert not measured.row("neuron_top_token_share")["headline"]


def test_the_same_seed_gives_the_same_cases(
    measure: Any, linear: Any, text: TokenSet, detectors: Callable[..., Any]
) -> None:
    one, again = (
        measured_by(measure, linear, text, [detectors()], features=[{"latent": 3}], n_contexts=5)
        for _ in range(2)
    )
    assert cases(one) == cases(again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": [{"latent": 1}], "probe": "x"}, "features and probe both say which features; give one"),
        ({"column": "a.b", "probe": "x"}, "column and probe both say which features; give one"),
        ({"features": [{"latent": 1, "layer": 2}]}, "unknown key 'layer'; there are: latent, source, hook"),
        ({"features": [{"hook": "x"}]}, "features: {'hook': 'x'} names no latent"),
        ({"features": [{"latent": -1}]}, "names no latent"),
        ({"features": [{"latent": True}]}, "names no latent"),
        ({"column": "score"}, "column 'score' is not EVALUATOR.COLUMN"),
        ({"n_features": 0}, "n_features 0 is not positive"),
        ({"n_tokens": 0}, "n_tokens 0 is not positive"),
        ({"n_contexts": -1}, "n_contexts -1 is below 0"),
        ({"max_rate": 0.0}, r"max_rate 0.0 is not a share in \(0, 1\]"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaseStudies(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": [{"latent": 6}]}, "faithful, model.layers.0, main, seed 0 has no latent 6; it has 6$"),
        (
            {"features": [{"latent": 1, "hook": "nowhere"}]},
            "no SAE is {'hook': 'nowhere'}; there are: faithful, model.layers.0, main, seed 0$",
        ),
        ({"probe": " "}, "probe ' ' has no tokens"),
        ({"variants": ["tied"]}, "variants 'tied': there is none in this run; choices: main$"),
        ({"probe": "w7 " * 40}, "the probe has 40 tokens; linear takes 32"),
    ],
)
def test_what_there_is_not_is_said_before_anything_is_measured(
    measure: Any, linear: Any, text: TokenSet, detectors: Callable[..., Any], options: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        measured_by(measure, linear, text, [detectors()], **options)
    assert not linear.batches


def test_without_a_tokenizer_ids_stand_for_words_and_a_probe_is_refused(
    measure: Any, linear: Any, text: TokenSet, detectors: Callable[..., Any]
) -> None:
    linear.tokenizer = None
    measured = measured_by(measure, linear, text, [detectors()], features=[{"latent": 0}])
    assert "` 7`" in words(measured)
    with pytest.raises(UsageError, match="probe 'w7': linear came without a tokenizer"):
        measured_by(measure, linear, text, [detectors()], probe="w7")


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("AutoModelForCausalLM", "features"),
        ("AutoModelForCausalLM", "column"),
        ("HookedTransformer", "probe"),
    ],
)
def test_from_a_config_on_a_tiny_model(
    tiny_config: dict[str, Any], tiny_hooked: Any, kind: str, way: str
) -> None:
    hooks = [f"model.layers.{i}" for i in (0, 1)]
    if kind == "HookedTransformer":
        hooks = [f"blocks.{i}.hook_resid_post" for i in (0, 1)]
    which: dict[str, Any] = {
        "features": {"features": [{"latent": 3, "hook": hooks[1]}, {"latent": 5}]},
        "column": {"column": "fake_features.rate_own", "n_features": 2},
        "probe": {"probe": "w20 w30 w40", "n_features": 2, "max_rate": 1.0, "ablation": "resolve"},
    }[way]
    options = {**which, "n_contexts": 3, "tree_contexts": 3, "tree_candidates": 4}
    config = ExperimentConfig.from_dict(
        {
            **tiny_config,
            "sae_seeds": [0],
            "model_class_name": kind,
            "hook_name": hooks[0],
            "hook_names": hooks,
            # What it reads stands after it: the host sees to the order.
            "evaluators": [
                {"case_studies": options},
                {"fake_features": {"n_tokens": 300, "baselines": False}},
            ],
        }
    )
    folder = run(config, **({"override_model": tiny_hooked} if kind == "HookedTransformer" else {}))
    where = folder.result_dir("case_studies") / "artifacts"
    saes = json.loads((where / "cases.json").read_text())["saes"]
    assert [(sae["hook"], sae["seed"]) for sae in saes] == [(hooks[0], 0), (hooks[1], 0)]
    if way == "features":
        assert [[case["latent"] for case in sae["features"]] for sae in saes] == [[5], [3, 5]]
    if way == "column":
        import pandas as pd

        table = pd.read_parquet(folder.features_file)
        own = table[(table["hook"] == hooks[1]) & (table["seed"] == 0)].set_index("latent")
        two = own["fake_features.rate_own"].nlargest(2)
        found = [case["latent"] for case in saes[1]["features"]]
        assert sorted(own["fake_features.rate_own"][found]) == sorted(two)
    alive = [case for sae in saes for case in sae["features"] if case["n_active"]]
    assert alive
    for case in alive:
        assert case["ablation"]["n_positions"] + case["ablation"]["n_unresolved"] > 0
        assert -1 <= case["unembedding"]["spearman"] <= 1
        assert np.isfinite(case["ablation"]["suppressed"][0]["effect"])
        counts = sum(sum(one["counts"]) for one in case["histogram"]["series"])
        assert counts == case["n_active"]
    # There is something for features of the second hook to come from, and nothing for those of the first.
    assert all(case["tree"] is None for case in saes[0]["features"])
    assert all(case["tree"]["latent"] == case["latent"] for case in saes[1]["features"])
    assert "it comes from" in (where / "cases.txt").read_text()
    rows = [json.loads(line) for line in folder.results_file.read_text().splitlines()]
    rows = [row for row in rows if row["evaluator"] == "case_studies"]
    assert {row["metric"] for row in rows} == {
        "top_token_share", "neuron_top_token_share", "top_token_share_difference",
    }  # fmt: skip
    assert "Latent" in (folder.root / "report.md").read_text()
