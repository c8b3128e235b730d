"""Probes on matrices with planted columns."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from sae_faithful_plugins.probing.fitting import (
    Fit,
    f_statistics,
    fit_probe,
    fit_probes,
    fit_text_floor,
    majority,
    rank_columns,
)

CS = [1e-4, 1e-2, 1.0]


def noise(n_texts: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_texts, width)).astype(np.float32)


def alternating(n_texts: int) -> np.ndarray:
    return np.arange(n_texts) % 2


def test_k_sparse_probes_rank_latents_on_the_training_texts_alone() -> None:
    train, test, labels = noise(100, 6), noise(100, 6, seed=1), alternating(100)
    train[:, 2] += 3 * labels  # tells the training texts apart
    test[:, 4] += 100 * labels  # tells the test texts apart, and no training text
    probe = fit_probe(train, labels, test, cs=CS, seed=0, reduction="select", k=1)
    assert probe.columns == [2]


def test_k_sparse_probes_rank_within_each_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_faithful_plugins.probing import fitting

    seen: list[int] = []

    def spy(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        seen.append(len(rows))
        return rank_columns(rows, labels)

    monkeypatch.setattr(fitting, "rank_columns", spy)
    fit_probe(noise(100, 6), alternating(100), noise(10, 6), cs=CS, seed=0, reduction="select", k=2)
    # Five folds of 100 texts leave 80 to rank on; the last ranking, for the final probe, takes them all.
    assert seen == [80] * 5 + [100]


def test_f_statistics_by_hand() -> None:
    labels = np.array([0, 0, 1, 1])
    # Means 1 and 4, each value 1 off: between 2·1.5²·2 = 9 with 1 degree, within 4 with 2: F = 9 / 2.
    rows = np.array([[0, 7, 0, 5], [2, 7, 0, 3], [3, 7, 1, 0], [5, 7, 1, 2]])
    for matrix in (rows, sparse.csr_matrix(rows)):
        found = f_statistics(matrix, labels)
        assert found[[0, 3]] == pytest.approx([4.5, 4.5])  # whichever class has more
        assert np.isnan(found[1])
        assert np.isinf(found[2])


def test_columns_are_ranked_by_how_well_they_separate() -> None:
    labels = alternating(100)
    rows = noise(100, 5)
    rows[:, 0] = 7.0  # constant: last
    rows[:, 3] += 5 * labels
    rows[:, 1] += 2 * labels
    for matrix in (rows, sparse.csr_matrix(rows)):
        order = rank_columns(matrix, labels)
        assert order[:2].tolist() == [3, 1]
        assert order[-1] == 0
    # A column that separates perfectly comes first, without a warning.
    rows[:, 4] = labels
    assert rank_columns(rows, labels)[0] == 4
    assert rank_columns(np.zeros((100, 3)), labels).tolist() == [0, 1, 2]


def test_sparse_and_dense_rows_give_one_probe() -> None:
    rows, labels = np.maximum(noise(120, 8), 0), alternating(120)
    rows[:, 0] += labels
    dense, csr = (
        fit_probe(matrix[:80], labels[:80], matrix[80:], cs=[0.1], seed=0).scores
        for matrix in (rows, sparse.csr_matrix(rows))
    )
    np.testing.assert_allclose(dense, csr, atol=2e-3)


@pytest.mark.parametrize("reduction", ["none", "select", "pca"])
def test_flaw_unscaled(reduction: str) -> None:
    """Reference flaw: columns are not scaled, so that the largest one is all that the optimiser sees."""
    rows, labels = noise(150, 6), alternating(150)
    rows[:, 0] += labels
    stretched = rows * np.array([1, 1e4, 1, 1e-3, 1, 1], np.float32)
    scores = [
        fit_probe(one[:100], labels[:100], one[100:], cs=CS, seed=0, reduction=reduction, k=3).scores  # type: ignore[arg-type]
        for one in (rows, stretched)
    ]
    np.testing.assert_allclose(*scores, atol=2e-3)


def test_flaw_unregularised() -> None:
    """Reference flaw: no penalty. More columns than texts and no signal: cross-validation takes the strongest."""
    probe = fit_probe(noise(60, 200), alternating(60), noise(1_000, 200, seed=1), cs=CS, seed=0)
    assert probe.C == 1e-4
    assert np.abs(probe.scores).max() < 0.1


def test_flaw_unseeded() -> None:
    """Reference flaw: nothing is seeded."""
    rows, labels = noise(100, 20), alternating(100)
    rows[:, 0] += labels
    for reduction in ("none", "pca"):
        first, second = (
            fit_probe(rows[:60], labels[:60], rows[60:], cs=CS, seed=3, reduction=reduction, k=2)
            for _ in range(2)
        )
        assert first.C == second.C
        np.testing.assert_array_equal(first.scores, second.scores)


def test_latents_that_never_fire_give_the_share_of_the_classes() -> None:
    labels = np.array([1] * 60 + [0] * 20)
    dead = sparse.csr_matrix((80, 5), dtype=np.float32)
    for reduction in ("none", "select"):
        probe = fit_probe(dead, labels, dead[:3], cs=CS, seed=0, reduction=reduction, k=2)
        # log(60 / 20)
        np.testing.assert_allclose(probe.scores, np.log(3), atol=1e-3)


def test_the_floor_knows_words_and_the_majority_knows_nothing() -> None:
    texts = ["a good film", "a bad film"] * 20
    floor = fit_text_floor(texts, 1 - alternating(40), ["good", "bad", "unheard"], cs=CS, seed=0)
    assert floor.scores[0] > 0 > floor.scores[1]
    assert majority(np.array([1, 1, 0]), 2).scores.tolist() == [1, 1]
    assert majority(np.array([1, 0]), 2).scores.tolist() == [-1, -1]
    # Nothing but punctuation: no words to weigh.
    assert fit_text_floor(["!", "?"] * 5, alternating(10), ["!"], cs=CS, seed=0).scores.tolist() == [-1]


def test_processes_give_the_probes_that_one_gives_in_their_order() -> None:
    rows, labels = noise(90, 8), alternating(60)
    rows[:60, 1] += labels
    matrices = {("raw",): rows, ("latents",): sparse.csr_matrix(np.where(rows > 0, rows, 0))}
    fits = [
        Fit(("raw",), ("raw",)), Fit(("pca",), ("raw",), "pca", 3),
        Fit(("latents",), ("latents",)), Fit(("latents", 2), ("latents",), "select", 2),
    ]  # fmt: skip
    by_itself, by_two = (
        list(fit_probes(fits, matrices.__getitem__, labels, cs=CS, seed=0, processes=n)) for n in (1, 2)
    )
    assert [one.columns is None for one in by_itself] == [True, True, True, False]
    for one, other in zip(by_itself, by_two, strict=True):
        assert (one.C, one.columns) == (other.C, other.columns)
        np.testing.assert_array_equal(one.scores, other.scores)
    alone = fit_probe(rows[:60], labels, rows[60:], cs=CS, seed=0, reduction="pca", k=3)
    np.testing.assert_array_equal(by_two[1].scores, alone.scores)
