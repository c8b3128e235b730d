from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sae_faithful import LanguageModel, SourceRequest, TokenSet
from sae_faithful.data import measure_typicality
from sae_faithful.metrics.typicality import typicality_gap
from sae_faithful_plugins.self_generated import SelfGenerated
from sae_faithful_plugins.self_generated.engines.transformers import TransformersSampler as Sampler

VOCAB, TEXTS, LENGTH = 20, 200, 400


def test_gap_and_z_by_hand() -> None:
    # Differences 0, 1, 1: gap 2/3; ΣV = 4, z = 2/√4 = 1.
    found = typicality_gap(
        np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0]), np.array([7, 7, 9])
    )
    assert (found.gap, found.z) == pytest.approx((2 / 3, 1))
    assert (found.n_tokens, found.n_documents) == (3, 2)
    # Of the document 7, differences 0 and 1; of 9, 1.
    assert (found.document_gaps.tolist(), found.document_tokens.tolist()) == ([0.5, 1.0], [2, 1])
    assert found.interval == (None, None, "2 sequences; an interval needs at least 50")


def test_documents_are_the_clusters_of_the_interval() -> None:
    # 50 documents of two tokens with the sums 0 and 4 in turn: gap 1, residuals ∓2, Σr² = 200;
    # SE = √(50/49 · 200)/100 = 1/7, t with 49 degrees 2.009575. The tokens of one document stand apart.
    difference = np.tile(np.repeat([0.0, 2.0], 1), 50)
    document = np.tile(np.arange(50), 2)
    found = typicality_gap(difference + 1.5, np.full(100, 1.5), np.ones(100), document)
    assert found.n_documents == 50
    assert found.interval[:2] == pytest.approx((1 - 2.009575 / 7, 1 + 2.009575 / 7), abs=1e-6)


@pytest.mark.parametrize(("ones", "z"), [(0, -10 / 3), (10, 0), (50, 40 / 3), (100, 30)])
def test_z_of_a_coin_by_hand(ones: int, z: float) -> None:
    # p = (.9, .1), L = ln 9: nll − H is −.1L for the likely side, .9L for the other; V = .09L².
    # 100 tokens of which k are unlikely: z = (.9k − .1(100 − k))L / √(9L²) = (k − 10)/3.
    p = np.array([0.9, 0.1])
    tokens = np.arange(100) < ones
    surprise = -np.log(p)[tokens.astype(int)]
    entropy = -(p * np.log(p)).sum()
    variance = (p * np.log(p) ** 2).sum() - entropy**2
    found = typicality_gap(surprise, np.full(100, entropy), np.full(100, variance), np.zeros(100))
    assert found.z == pytest.approx(z, abs=1e-9)


def test_certain_text_has_no_gap_and_no_nan() -> None:
    zeros = np.zeros(10)
    found = typicality_gap(zeros, zeros, zeros, zeros)
    assert (found.gap, found.z) == (0, 0)


def test_no_tokens_are_refused() -> None:
    nothing = np.zeros(0)
    with pytest.raises(ValueError, match="no tokens to score"):
        typicality_gap(nothing, nothing, nothing, nothing)


def sample(transitions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Texts of a Markov chain, from state 0."""
    cumulative = transitions.cumsum(axis=1)
    state = np.zeros(TEXTS, np.int64)
    texts = np.zeros((TEXTS, LENGTH), np.int64)
    for position in range(LENGTH):
        drawn = rng.random(TEXTS)[:, None]
        state = np.minimum((cumulative[state] < drawn).sum(axis=1), VOCAB - 1)
        texts[:, position] = state
    return texts


def scores(texts: np.ndarray, model: np.ndarray) -> np.ndarray:
    """z of each text under a model, exactly as a language model would be read off."""
    log_p = np.log(model)
    entropy = -(model * log_p).sum(axis=1)
    variance = (model * log_p**2).sum(axis=1) - entropy**2
    before = np.concatenate([np.zeros((TEXTS, 1), np.int64), texts[:, :-1]], axis=1)
    return np.array(
        [
            typicality_gap(-log_p[past, text], entropy[past], variance[past], np.zeros(LENGTH)).z
            for past, text in zip(before, texts, strict=True)
        ]
    )


@pytest.fixture(scope="module")
def model() -> np.ndarray:
    # Predictions as uneven as a language model's: entropies between .5 and 2.5 nats.
    return np.random.default_rng(0).dirichlet(np.full(VOCAB, 0.3), size=VOCAB) * 0.99 + 0.01 / VOCAB


def test_a_models_own_samples_are_standard_normal(model: np.ndarray) -> None:
    z = scores(sample(model, np.random.default_rng(1)), model)
    # Of 200 standard normal values the mean has the standard error 1/√200 = .071 and the SD 1/√400 = .05:
    # four of each. The Kolmogorov–Smirnov distance of 200 stays under .115 in 99 % of cases.
    assert abs(z.mean()) < 0.283
    assert abs(z.std(ddof=1) - 1) < 0.2
    assert stats.kstest(z, "norm").statistic < 0.115


@pytest.mark.parametrize("power", [1.5, 3.0])
def test_too_predictable_text_is_below_zero(model: np.ndarray, power: float) -> None:
    # A temperature of 1/power.
    sharper = model**power / (model**power).sum(axis=1, keepdims=True)
    z = scores(sample(sharper, np.random.default_rng(1)), model)
    assert (z < -1.96).mean() > 0.95


def test_truncated_sampling_is_below_zero(model: np.ndarray) -> None:
    # Only the tokens of probability above .1, as top-p would leave.
    truncated = np.where(model > 0.1, model, 0)
    truncated /= truncated.sum(axis=1, keepdims=True)
    z = scores(sample(truncated, np.random.default_rng(1)), model)
    assert (z < -1.96).mean() > 0.95


def test_uniform_tokens_are_above_zero(model: np.ndarray) -> None:
    uniform = np.full((VOCAB, VOCAB), 1 / VOCAB)
    z = scores(sample(uniform, np.random.default_rng(1)), model)
    assert z.min() > 10


# A language model's own text, from the draw to the score


@pytest.fixture(scope="module")
def llama(tiny_llama: str) -> LanguageModel:
    return LanguageModel(tiny_llama)


def z_of_data_set(llama: LanguageModel, cache: Path, seed: int, **options: Any) -> float:
    """z of 1,440 tokens, made and scored as a run does: drawn, packed, saved, split, put together, scored."""
    request = SourceRequest(
        name="faithful", n_tokens=1_600, context_size=16, prepend_bos=True, seed=seed, cache_dir=cache,
        language_model=llama,
    )  # fmt: skip
    tokens = SelfGenerated(batch_size=128, **options).load(request)
    tokens.split()[0].save(cache / "train.arrow")
    documents = TokenSet.open(cache / "train.arrow").documents(llama.bos_token_id)
    return measure_typicality(documents, tokens.prompt_length, llama, 2_000, seed).z


def test_z_of_50_own_data_sets_is_standard_normal(llama: LanguageModel, tmp_path: Path) -> None:
    z = np.array([z_of_data_set(llama, tmp_path, seed) for seed in range(50)])
    # The mean of 50 has the standard error 1/√50; three of them. 49 s² has the distribution χ²(49).
    assert abs(z.mean()) < 3 / 50**0.5
    assert stats.chi2.ppf(0.001, 49) < 49 * z.var(ddof=1) < stats.chi2.ppf(0.999, 49)


def test_data_sets_of_another_temperature_are_told_apart(llama: LanguageModel, tmp_path: Path) -> None:
    # Four data sets: their mean would have the standard error 1/√4 if they were the model's own; three of them.
    for temperature, sign in ((0.7, -1), (1.5, 1)):
        z = [z_of_data_set(llama, tmp_path, seed, temperature=temperature) for seed in range(4)]
        assert sign * np.mean(z) > 3 * 4**-0.5


def test_cutting_documents_anywhere_does_not_move_the_mean(llama: LanguageModel) -> None:
    # Samples of one seed, scored to 4, 8 and 15 tokens: where a document is cut depends on nothing after the cut.
    drawn = Sampler(llama, (llama.bos_token_id,), 15, 1.0, 1.0).sample(800, 3)
    documents = [np.concatenate([[llama.bos_token_id], document]).astype(np.int32) for document in drawn]
    for length in (4, 8, 15):
        cut = [document[: length + 1] for document in documents]
        found = measure_typicality(cut, 1, llama, 10**6, seed=0)
        # Above this once in 2,000 seeds; seeds are fixed.
        assert abs(found.z) < 3.5
        assert found.n_tokens == sum(len(document) - 1 for document in cut)
