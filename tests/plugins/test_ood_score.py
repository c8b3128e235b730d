"""OOD scores by hand on the one-hot model, and on text that the tiny Llama wrote itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sae_faithful import EvalContext, LanguageModel, RunError, TokenSet, UsageError, load_plugins
from sae_faithful.evaluation import observe
from sae_faithful_plugins import ood_score
from sae_faithful_plugins.ood_score import Halves, OODScore, Vectors

VOCAB, BOS, EOS, PAD = 64, 0, 1, 2
HOOK = "model.layers.0"
# The one-hot model after an ordinary token: logits 4 for w5 and w6, 0 for the 62 others. After BOS: w5 or w6.
LOG_Z = math.log(2 * math.exp(4) + 62)
ENTROPY = LOG_Z - 4 * 2 * math.exp(4) / math.exp(LOG_Z)
COMPARED = ["nll_auroc", "nll_fpr95", "entropy_auroc", "entropy_fpr95", "first_token_excess", "unigram_js",
            "coverage", "knn_distance", "classifier_auc", "mahalanobis"]  # fmt: skip
EVERYTHING: list[Any] = ["surprise", "first_token", "unigram", "knn", "classifier", "mahalanobis", "sae"]


def rows_of(*tokens: int, n_rows: int = 120) -> TokenSet:
    """Rows that are documents, all alike: 60 in each half."""
    return TokenSet.from_rows(np.tile(tokens, (n_rows, 1)))


def varied(seed: int, first: int, last: int, n_rows: int = 120, length: int = 12) -> TokenSet:
    """Rows of BOS and tokens between two ids."""
    rows = np.random.default_rng(seed).integers(first, last, size=(n_rows, length))
    rows[:, 0] = BOS
    return TokenSet.from_rows(rows)


def keeps(*tokens: int) -> np.ndarray:
    encoder = np.zeros((VOCAB, VOCAB))
    encoder[list(tokens), list(tokens)] = 1.0
    return encoder


@pytest.fixture
def score(plant: Callable[..., Any], measure: Callable[..., Any]) -> Callable[..., Any]:
    """Measure texts with one SAE, which reconstructs w5 alone, and some of the scores."""

    def go(texts: dict[str, TokenSet], *scores: Any, **options: Any) -> Any:
        handles = [plant(keeps(5), np.eye(VOCAB), source=next(iter(texts)))]
        own = {key: options.pop(key) for key in ("language_model", "batch_rows") if key in options}
        return measure(OODScore(scores=list(scores or EVERYTHING), **options), handles, texts, **own)

    return go


def test_nll_entropy_and_auroc_by_hand(score: Callable[..., Any]) -> None:
    found = score({"own": rows_of(BOS, 5, 6, 5), "far": rows_of(BOS, 5, 7, 7)}, "surprise")
    # Three predictions each: w5 after BOS costs ln 2; then two at ln Z − 4 on one text, ln Z on the other.
    assert found.row("nll", dataset="own")["value"] == pytest.approx((math.log(2) + 2 * (LOG_Z - 4)) / 3)
    assert found.row("nll", dataset="far")["value"] == pytest.approx((math.log(2) + 2 * LOG_Z) / 3)
    assert found.row("entropy", dataset="far")["value"] == pytest.approx((math.log(2) + 2 * ENTROPY) / 3)
    assert found.row("nll", dataset="far")["n"] == 60 * 3
    # All of far is more surprising than all of own; the entropies are equal, ties count half.
    row = found.row("nll_auroc", dataset="far")
    assert (row["value"], row["n"], row["condition"]) == (1, 60, "reference=own")
    assert row["reason"] == "every resample gives the same value: it shows no spread"
    assert found.row("nll_fpr95", dataset="far")["value"] == 0
    assert found.row("nll_auroc_null")["value"] == 0.5
    assert found.row("entropy_auroc", dataset="far")["value"] == 0.5


def test_special_tokens_are_no_targets(score: Callable[..., Any]) -> None:
    found = score({"own": rows_of(BOS, 5, EOS, PAD)}, "surprise")
    row = found.row("nll", dataset="own")
    assert (row["value"], row["n"]) == (pytest.approx(math.log(2)), 60)


def test_first_token_excess_by_hand(score: Callable[..., Any]) -> None:
    # p_BOS is a half each for w5 and w6, e⁻⁴⁰⁰ of that for any other; H = ln 2.
    texts = {
        "own": rows_of(BOS, 6, 9),
        "mixed": TokenSet.from_rows(np.array([[BOS, 5, 9], [BOS, 7, 9]] * 60)),
    }
    found = score(texts, "first_token")
    assert found.row("first_token_excess", dataset="own")["value"] == pytest.approx(0, abs=1e-9)
    assert found.row("first_token_excess_null", dataset="own")["value"] == pytest.approx(0, abs=1e-9)
    row = found.row("first_token_excess", dataset="mixed")
    assert row["n"] == 60
    # Each first token that is w7 costs 400 more; about half of the second half begin so.
    assert 100 < row["value"] < 300
    assert row["value"] % (400 / 60) == pytest.approx(0, abs=1e-6) or row["value"] % (400 / 60) > 6.6
    assert row["ci_low"] < 200 < row["ci_high"]


def test_unigram_scores_by_hand(score: Callable[..., Any]) -> None:
    found = score({"own": rows_of(BOS, 5, 5, 6), "far": rows_of(BOS, 7, 8, 9)}, "unigram")
    assert found.row("unigram_js", dataset="far")["value"] == pytest.approx(math.log(2))
    assert found.row("unigram_js_null")["value"] == pytest.approx(0, abs=1e-12)
    assert found.row("unigram_js_excess", dataset="far")["value"] == pytest.approx(math.log(2))
    assert found.row("unigram_js_excess", dataset="own")["reason"] == "the reference is its own null"
    # Two and three of 61 ordinary ids, from 60 documents of three tokens.
    assert found.row("coverage", dataset="own")["value"] == pytest.approx(2 / 61)
    assert found.row("coverage", dataset="far")["value"] == pytest.approx(3 / 61)
    assert {row["n"] for row in found.rows} == {180}


def test_activation_scores_by_hand(score: Callable[..., Any]) -> None:
    texts = {"own": rows_of(BOS, 5, 5, 6), "far": rows_of(BOS, 7, 8, 5)}
    found = score(texts, "knn", "classifier")
    # w5 and w6 are among the references many times; w7 and w8 are orthogonal to all: 0, 0 and 1, 1, 0.
    assert found.row("knn_distance_null", hook=HOOK)["value"] == pytest.approx(0, abs=1e-6)
    row = found.row("knn_distance", dataset="far", hook=HOOK)
    # 60 documents of three tokens: BOS is not among them.
    assert (row["value"], row["n"]) == (pytest.approx(2 / 3, abs=1e-6), 180)
    # Two thirds of far, w7 and w8, score above all of own. w5, the last third, ties with the two thirds of own that
    # are w5 (½), and scores above the third that is w6, since w6 is in own alone: 2/3 + 1/3 · (½ · 2/3 + 1/3).
    assert found.row("classifier_auc", dataset="far")["value"] == pytest.approx(2 / 3 + (1 / 3 + 1 / 3) / 3)
    assert found.row("classifier_auc_null")["value"] == pytest.approx(0.5)


def test_sae_scores_by_hand(plant: Callable[..., Any], measure: Callable[..., Any]) -> None:
    handles = [plant(keeps(5), np.eye(VOCAB), source="own", seed=seed) for seed in range(3)]
    texts = {"own": rows_of(BOS, 5, 5, 5, 6), "far": rows_of(BOS, 7, 7, 7, 8)}
    found = measure(OODScore(scores=["sae"]), handles, texts)
    # Errors of 1/4 a token against a variance of 1 − (9/16 + 1/16) = 3/8; of 1 against the same on far.
    excess = found.row("fvu_excess", dataset="far", seed=1)
    assert (excess["value"], excess["n"]) == (pytest.approx(8 / 3 - 2 / 3), 240)
    assert found.row("fvu_excess_null", dataset="own", seed=1)["value"] == 0
    # Latent 5 fires on 180 of own's 240 tokens, on none of far's.
    p, q = 0.5 / 241, 180.5 / 241
    shift = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert found.row("firing_shift", dataset="far", seed=1)["value"] == pytest.approx(shift)
    assert found.row("firing_shift", dataset="own", seed=1)["value"] == 0
    assert found.row("firing_shift_null", dataset="own", seed=1)["value"] == 0
    # Three SAEs all alike.
    mean = found.row("firing_shift", dataset="far", source="own")
    assert (mean["value"], mean["n"]) == (pytest.approx(shift), 3)
    assert mean["ci_low"] == pytest.approx(mean["ci_high"])
    assert {row["condition"] for row in found.rows} == {"reference=own"}


def test_a_text_compared_with_itself_scores_the_null(score: Callable[..., Any]) -> None:
    found = score({"own": varied(0, 3, 40), "copy": varied(0, 3, 40), "far": varied(1, 20, 64)})
    for metric in COMPARED:
        null = found.row(f"{metric}_null")
        for name in ("own", "copy"):
            same = found.row(metric, dataset=name)
            assert (same["value"], same["ci_low"], same["ci_high"]) == (
                null["value"], null["ci_low"], null["ci_high"],
            ), metric  # fmt: skip
    for metric in ("fvu_excess", "firing_shift"):
        null = found.row(f"{metric}_null", seed=0)
        assert found.row(metric, dataset="copy", seed=0)["value"] == null["value"]
    assert found.row("unigram_js_excess", dataset="copy")["value"] == 0
    # And the null is that of nothing: AUCs have an SD of about .023 here.
    assert found.row("classifier_auc_null")["value"] == pytest.approx(0.5, abs=0.07)
    assert found.row("nll_auroc_null")["ci_low"] < 0.5 < found.row("nll_auroc_null")["ci_high"]
    far = found.row("unigram_js_excess", dataset="far")
    assert far["ci_low"] > 0
    assert found.row("classifier_auc", dataset="far")["ci_low"] > 0.5


def test_every_text_gives_the_same_number_of_tokens(score: Callable[..., Any]) -> None:
    found = score(
        {"own": varied(0, 3, 40, n_rows=200), "few": varied(1, 3, 40, n_rows=120)}, "unigram", "knn"
    )
    assert {row["n"] for row in found.rows} == {60 * 11}
    found = score(
        {"own": varied(0, 3, 40)}, "surprise", "unigram", "knn", n_tokens=50, n_vectors=40, n_unigrams=30
    )
    counted = {row["metric"]: row["n"] for row in found.rows}
    # 50 tokens: four sequences of eleven and six tokens of a fifth.
    assert counted == {
        "nll": 50, "entropy": 50, "nll_auroc": 5, "nll_fpr95": 5, "entropy_auroc": 5, "entropy_fpr95": 5,
        "nll_auroc_null": 5, "nll_fpr95_null": 5, "entropy_auroc_null": 5, "entropy_fpr95_null": 5,
        "unigram_js": 30, "unigram_js_null": 30, "unigram_js_excess": 30, "coverage": 30, "coverage_null": 30,
        "knn_distance": 40, "knn_distance_null": 40,
    }  # fmt: skip
    assert found.row("nll", dataset="own")["reason"] == "5 sequences; an interval needs at least 50"


def test_flaw_coverage_does_not_grow_with_the_text(score: Callable[..., Any]) -> None:
    """Reference flaw: the more text, the more of the vocabulary it covers."""
    # Uniform over 61 ids. Six rows of eleven tokens in a half of the short text, 600 in a half of the long one.
    texts = {"own": varied(0, 3, 64, n_rows=1_200), "short": varied(1, 3, 64, n_rows=12)}
    found = score(texts, "unigram")
    long, short = (found.row("coverage", dataset=name) for name in texts)
    assert long["n"] == short["n"] == 6 * 11
    # 66 draws leave out each id with probability (60/61)^66 = .336; the SD of a coverage is below .04.
    assert (long["value"], short["value"]) == pytest.approx((1 - 0.336, 1 - 0.336), abs=4 * 0.04)


def test_results_do_not_depend_on_how_rows_are_batched(score: Callable[..., Any]) -> None:
    texts = {"own": varied(0, 3, 40), "far": varied(1, 20, 64)}
    results = [score(texts, batch_rows=size, n_vectors=200).rows for size in (7, 1_000)]
    assert results[0] == results[1]


def test_the_reference_may_be_any_text_and_is_named(score: Callable[..., Any]) -> None:
    texts = {"own": rows_of(BOS, 5, 5, 6), "far": rows_of(BOS, 7, 8, 9)}
    found = score(texts, "unigram", "sae", reference="far")
    assert {row["condition"] for row in found.rows} == {"reference=far"}
    assert found.row("unigram_js_null", dataset="far")["value"] == pytest.approx(0, abs=1e-12)
    assert found.row("unigram_js", dataset="own")["value"] == pytest.approx(math.log(2))
    reading = (found.folder / "artifacts/reading.txt").read_text()
    assert reading.startswith("Compared with the first half of far;")
    assert "unigram_js (nats): own 0.6931; far (null) 0" in reading
    with pytest.raises(UsageError, match="unknown reference 'fra'; choices: own, far"):
        score(texts, reference="fra")


def test_latents_alone_cost_no_whole_forward(
    score: Callable[..., Any], one_hot_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_hot_model, "logits", None)
    found = score({"own": rows_of(BOS, 5, 5, 6)}, "sae")
    assert {row["metric"] for row in found.rows} == {
        "fvu_excess", "fvu_excess_null", "firing_shift", "firing_shift_null",
    }  # fmt: skip
    assert one_hot_model.passes == [((HOOK,), 120)]


def test_too_little_text_has_reasons(score: Callable[..., Any]) -> None:
    found = score({"own": rows_of(BOS, 5, 6, n_rows=6)}, k=7)
    assert found.row("knn_distance", dataset="own")["reason"] == "fewer reference vectors than k"
    reason = "fewer than 5 documents in a half: not enough for the folds"
    assert found.row("classifier_auc", dataset="own")["reason"] == reason
    assert found.row("classifier_auc_null")["value"] is None
    with pytest.raises(RunError, match="'own' is too little text to compare"):
        score({"own": rows_of(BOS, 5, 6, n_rows=1)})
    # Documents that are only begun have no first token.
    found = score({"own": rows_of(BOS, n_rows=1), "b": rows_of(BOS, n_rows=4)}, "first_token")
    assert (
        found.row("first_token_excess", dataset="b")["reason"] == "no document begins in a half of some text"
    )


def test_documents_are_not_split_between_halves(one_hot_model: LanguageModel) -> None:
    # 40 documents, each over three rows.
    rows = np.full((120, 5), 7)
    halves = Halves(
        "a", TokenSet.from_rows(rows, np.repeat(np.arange(40), 3)[:, None] + 0 * rows), one_hot_model, 3
    )
    first, second = (np.unique(halves.units[halves.sample(half, 300)]) for half in ("first", "second"))
    assert (len(first), len(second)) == (20, 20)
    assert not set(first) & set(second)
    # They are drawn at random, not the beginning against the end.
    assert min(second) < 10 < 30 < max(second)


def test_of_a_long_text_the_beginning_is_split(one_hot_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_faithful_plugins.ood_score.halves.LOOKED_AT", 30)
    text = varied(0, 3, 40)
    context = text.context_size
    whole = Halves("own", text, one_hot_model, 3, wanted=10_000)
    for wanted, n_tokens in ((0, 30), (10, 80)):
        halves = Halves("own", text, one_hot_model, 3, wanted=wanted)
        assert len(halves.ids) == -(-n_tokens // context) * context < len(whole.ids)
        assert halves.tokens is text
        assert halves.size("first") + halves.size("second") < n_tokens + context
    np.testing.assert_array_equal(whole.ids, text.arrays()[0].reshape(-1))


def test_a_text_of_one_document_is_split_by_rows(one_hot_model: LanguageModel) -> None:
    rows = np.full((10, 5), 7)
    halves = Halves("a", TokenSet.from_rows(rows, 0 * rows), one_hot_model, 3)
    assert [halves.size(half) for half in ("first", "second")] == [25, 25]
    assert len(halves.documents("first")) == 5
    assert halves.documents("first")[0].tolist() == [BOS, *[7] * 5]


def test_a_document_whose_beginning_is_missing_is_no_sequence(one_hot_model: LanguageModel) -> None:
    # The first row goes on with document 4: its BOS was put in by packing.
    rows = np.array([[BOS, 7, 7, 7]] + [[BOS, 8, 8, 8]] * 5)
    owners = np.array([[-1, 4, 4, 4]] + [[number] * 4 for number in range(5, 10)])
    halves = Halves("a", TokenSet.from_rows(rows, owners), one_hot_model, 3)
    found = [*halves.sequences("first"), *halves.sequences("second")]
    assert [one.tolist() for one in found] == [[BOS, 8, 8, 8]] * 5
    # Its tokens count where no beginning is needed.
    assert halves.size("first") + halves.size("second") == 18


def test_flaw_vectors_come_from_every_document_and_none_comes_twice(
    plant: Callable[..., Any], one_hot_model: LanguageModel
) -> None:
    """Reference flaw: a cosine plot of one document, repeated."""
    # 60 documents, each of ten times a word of its own: which one a vector comes from can be read off it.
    words = np.arange(3, 63)
    rows = np.repeat(words[:, None], 11, axis=1)
    rows[:, 0] = BOS
    texts = {"own": TokenSet.from_rows(rows)}
    context = EvalContext(
        handles=[plant(keeps(5), np.eye(VOCAB))], held_out=texts, sources=["own"],
        language_model=one_hot_model, seed=7,
    )  # fmt: skip
    (observer,) = OODScore(scores=["knn"]).observers(context)
    observe([observer], context, batch_rows=7)
    found = {half: observer.of_half(half).vectors.argmax(axis=1) for half in ("first", "second")}
    for drawn in found.values():
        # 30 documents of each half, every token of each once.
        assert np.unique(drawn, return_counts=True)[1].tolist() == [10] * 30
    assert set(found["first"]) | set(found["second"]) == set(words)


def test_positions_that_the_host_leaves_out_give_no_vectors(one_hot_model: LanguageModel) -> None:
    import torch

    text = Halves("own", varied(0, 3, 40), one_hot_model, 3)
    observer = Vectors(HOOK, text, 500, is_reference=True)

    class OnlyTheLast:
        first_row = 0
        tokens = torch.from_numpy(text.tokens.rows())
        mask = torch.arange(12).expand(120, 12) == 11
        activations = torch.nn.functional.one_hot(tokens, VOCAB).float()

        def latents(self, handle: Any) -> Any: ...

    observer.update(OnlyTheLast())
    first, second = observer.of_half("first"), observer.of_half("second")
    # At most one a document, each at the last position.
    assert len(np.unique(first.units)) == len(first.units) > 20
    assert not set(first.units) & set(second.units)
    last = text.tokens.rows()[:, 11]
    assert first.vectors.argmax(axis=1).tolist() == last[first.units].tolist()


def test_text_of_the_models_own_is_typical_and_random_tokens_are_far(
    llama: LanguageModel,
    make_request: Callable[..., Any],
    measure: Callable[..., Any],
    plant: Callable[..., Any],
) -> None:
    from sae_faithful_plugins.self_generated import SelfGenerated

    own = SelfGenerated(batch_size=64).load(make_request(n_tokens=16 * 300))
    random = TokenSet.from_rows(llama.random_rows(300, 16, np.random.default_rng(0)))
    found = measure(
        OODScore(scores=["surprise", "first_token", "unigram", "knn", "classifier"]),
        [plant(keeps(5), np.eye(VOCAB))],
        {"faithful": own, "random": random},
        language_model=llama,
    )
    # The model's own second half against its first: nothing.
    for metric, nothing in (("nll_auroc", 0.5), ("first_token_excess", 0), ("classifier_auc", 0.5)):
        null = found.row(f"{metric}_null")
        assert null["ci_low"] < nothing < null["ci_high"], metric
    for metric in ("nll_auroc", "unigram_js", "classifier_auc"):
        far, null = found.row(metric, dataset="random"), found.row(f"{metric}_null")
        assert far["ci_low"] > null["ci_high"], metric
    # Hardly any random text passes for the model's own.
    assert found.row("nll_fpr95", dataset="random")["value"] < 0.1
    assert found.row("nll_fpr95_null")["ci_low"] < 0.95 < found.row("nll_fpr95_null")["ci_high"]
    assert found.row("first_token_excess", dataset="random")["ci_low"] > 0
    assert found.row("unigram_js_excess", dataset="random")["ci_low"] > 0


def test_its_options_are_checked_by_name() -> None:
    manager = load_plugins()
    if not manager.is_registered(ood_score):
        manager.register(ood_score)
    assert manager.create("evaluator", "ood_score", {"scores": ["sae"], "k": 3}) == OODScore(
        scores=["sae"], k=3
    )
    for options, message in (
        ({"k": 0}, "k: 0 is not a positive number"),
        ({"scores": []}, "scores: none asked for"),
        ({"scores": ["knm"]}, "knm"),
        ({"n_token": 5}, "n_token"),
    ):
        with pytest.raises(UsageError, match=message):
            manager.create("evaluator", "ood_score", options)


def test_the_first_source_is_the_reference(one_hot_model: LanguageModel) -> None:
    texts = {"data": rows_of(BOS, 5), "own": rows_of(BOS, 6)}
    context = EvalContext(handles=[], held_out=texts, sources=["own"], language_model=one_hot_model, seed=0)
    rows = list(OODScore(scores=["unigram"]).evaluate(context, []))
    assert {getattr(row, "condition", "reference=own") for row in rows} == {"reference=own"}
