"""Directions of the bundled baselines, against numpy and planted sources."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful import Directions, UsageError, load_plugins
from sae_faithful.directions_sae import as_sae
from sae_faithful_plugins.baselines import ICA, PCA, Neurons, RandomDirections, TopKICA, TopKPCA

N, D = 4_000, 6


def laplace(n: int = N, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Activations mixed from independent Laplace sources, off centre, and the mixing rows [sources, d]."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(D, D)) * np.arange(1, D + 1)
    return torch.from_numpy(rng.laplace(size=(n, D)) @ mixing + 3).float(), mixing


def gaussian(n: int = N, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, D))).float()


def cosines(a: Any, b: Any) -> np.ndarray:
    """Absolute cosines of every row of one with every row of the other."""
    a, b = (np.asarray(one, np.float64) for one in (a, b))
    return np.abs(
        (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    )


def latents(directions: Directions, activations: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return as_sae(directions, {}).encode(activations)


# PCA


def test_pca_is_orthonormal_and_numpy_s_svd_up_to_sign() -> None:
    activations, _ = laplace()
    found = PCA().fit(activations, seed=0)
    torch.testing.assert_close(found.read @ found.read.T, torch.eye(D), atol=1e-6, rtol=0)
    centred = activations.double().numpy()
    centred = centred - centred.mean(axis=0)
    _, lengths, rows = np.linalg.svd(centred, full_matrices=False)
    # Sorted alike: the i-th component is the i-th right singular vector.
    assert np.diag(cosines(found.read, rows)) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.mean, activations.double().mean(0), atol=1e-6)
    assert torch.equal(found.read, found.write)
    fewer = PCA(n_components=2).fit(activations, seed=0)
    assert torch.equal(fewer.read, found.read[:2])
    assert fewer.card["variance_share"] == pytest.approx((lengths[:2] ** 2).sum() / (lengths**2).sum())


def test_pca_of_a_line_by_hand() -> None:
    # Points 0, 1, 5 along (3, 4)/5 from (10, 20): mean 2 along it, the longer tail towards 5.
    along = torch.tensor([0.0, 1.0, 5.0])[:, None] * torch.tensor([0.6, 0.8])
    found = PCA(n_components=1, sign="signed").fit(along + torch.tensor([10.0, 20.0]), seed=0)
    torch.testing.assert_close(found.read, torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(found.mean, torch.tensor([11.2, 21.6]))
    codes = latents(found, along + torch.tensor([10.0, 20.0]))
    torch.testing.assert_close(codes, torch.tensor([[-2.0], [-1.0], [3.0]]), atol=1e-5, rtol=0)


def test_components_turn_their_longer_tail_above_zero() -> None:
    activations, _ = laplace()
    skewed = -(activations - activations.mean(0)).abs()
    for found in (PCA().fit(skewed, 0), ICA(dims=None).fit(skewed, 0)):
        codes = (skewed - found.mean) @ found.read.T
        assert (codes.pow(3).mean(0) > 0).all()


def test_fewer_activations_than_dimensions_have_fewer_components() -> None:
    activations = gaussian(4)
    found = PCA().fit(activations, seed=0)
    assert len(found.read) == found.card["components"] == 3
    sae = as_sae(found, {})
    torch.testing.assert_close(sae(activations), activations, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="at least 2 are needed"):
        PCA().fit(activations[:1], seed=0)


def test_blocks_of_activations_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_faithful_plugins.baselines import pca

    activations, _ = laplace(1_001)
    whole = PCA().fit(activations, seed=0)
    monkeypatch.setattr(pca, "ROWS_AT_ONCE", 100)
    torch.testing.assert_close(PCA().fit(activations, seed=0).read, whole.read, atol=1e-6, rtol=0)


# Signs


@pytest.mark.parametrize("baseline", [Neurons(), PCA(), ICA(dims=None)], ids=lambda one: type(one).__name__)
def test_split_doubles_the_rows_and_reconstructs_exactly(baseline: Any) -> None:
    activations, _ = laplace()
    found = baseline.fit(activations, 0)
    sae = as_sae(found, {})
    codes = latents(found, activations)
    assert codes.shape == (N, 2 * D)
    assert (codes >= 0).all()
    # A direction and its opposite are never both active.
    assert ((codes[:, :D] > 0) & (codes[:, D:] > 0)).sum() == 0
    torch.testing.assert_close(sae.decode(codes), activations, atol=1e-4, rtol=1e-5)


def test_each_sign_by_hand() -> None:
    activations = torch.tensor([[2.0, -3.0]])
    expected = {"split": [2, 0, 0, 3], "relu": [2, 0], "signed": [2, -3]}
    for sign, codes in expected.items():
        found = Neurons(sign=sign).fit(activations, 0)  # pyright: ignore[reportArgumentType]
        assert latents(found, activations).tolist() == [codes]


def test_neurons_and_random_directions_are_not_centred() -> None:
    activations, _ = laplace()
    for baseline in (Neurons(), RandomDirections()):
        assert not baseline.fit(activations, 0).mean.any()


# Top-K


@pytest.mark.parametrize("baseline", [TopKPCA(k=3), TopKICA(k=3, dims=None)], ids=["pca", "ica"])
def test_top_k_has_at_most_k_active_none_below_zero_and_they_are_the_largest(baseline: Any) -> None:
    activations, _ = laplace()
    found = baseline.fit(activations, 0)
    codes = latents(found, activations)
    assert codes.shape == (N, 2 * D)
    assert (codes >= 0).all()
    assert (codes > 0).sum(dim=1).tolist() == [3] * N
    scores = (activations - found.mean) @ found.read.T
    both = torch.cat([scores, -scores], dim=1)
    # Of ± a code one is above 0, so the 3 largest of both are the 3 largest in absolute value.
    threshold = scores.abs().sort(dim=1, descending=True).values[:, 2:3]
    torch.testing.assert_close(codes, both.where(both >= threshold, 0), atol=1e-4, rtol=1e-5)


def test_top_k_pca_of_all_components_reconstructs_exactly() -> None:
    activations, _ = laplace()
    sae = as_sae(TopKPCA(k=D).fit(activations, 0), {})
    torch.testing.assert_close(sae(activations), activations, atol=1e-4, rtol=1e-5)


# ICA


def test_ica_recovers_planted_sources_up_to_sign_and_order() -> None:
    activations, mixing = laplace(20_000)
    found = ICA(dims=None).fit(activations, seed=3)
    assert found.card["converged"] is True
    match = cosines(found.write, mixing)
    assert sorted(match.argmax(axis=1)) == list(range(D))
    assert match.max(axis=1).min() > 0.99
    # PCA does not, or the test would show nothing.
    assert cosines(PCA().fit(activations, 0).write, mixing).max(axis=1).min() < 0.95


def test_ica_reads_in_activation_space_what_it_writes() -> None:
    activations, mixing = laplace(20_000)
    found = ICA(dims=None).fit(activations, seed=3)
    # Reading is the inverse of writing, not along it: sources are not orthogonal here.
    torch.testing.assert_close(found.read @ found.write.T, torch.eye(D), atol=1e-4, rtol=0)
    assert np.diag(cosines(found.read, found.write)).min() < 0.95
    unmixing = np.linalg.inv(mixing).T
    assert cosines(found.read, unmixing).max(axis=1).min() > 0.99
    assert found.write.norm(dim=1).numpy() == pytest.approx(1, abs=1e-6)
    # Codes along unit rows are in units of the activations, those of largest variance first.
    variances = ((activations - found.mean) @ found.read.T).var(dim=0)
    assert variances.diff().max() < 0
    # A Laplace source has variance 2.
    expected = sorted(2 * np.linalg.norm(mixing, axis=1) ** 2, reverse=True)
    assert variances.numpy() == pytest.approx(expected, rel=0.1)


def test_ica_is_stable_on_planted_sources_and_not_on_gaussian_ones() -> None:
    planted, _ = laplace(20_000)

    def agreement(activations: torch.Tensor) -> float:
        """Of all pairs of seeds: on Gaussian data, too, two may end at one optimum of the sample."""
        fits = [ICA(dims=None).fit(activations, seed).write for seed in range(4)]
        return min(float(cosines(*pair).max(axis=1).min()) for pair in combinations(fits, 2))

    assert agreement(planted) > 0.999
    assert agreement(gaussian(20_000)) < 0.9


def test_ica_says_that_it_did_not_converge_and_prints_nothing(recwarn: pytest.WarningsRecorder) -> None:
    found = ICA(dims=None, max_iter=2).fit(gaussian(), seed=0)
    assert found.card["converged"] is False
    assert found.card["n_iter"] == 2
    assert not list(recwarn)


def test_ica_unmixes_the_largest_components_and_leaves_out_what_does_not_vary() -> None:
    activations, _ = laplace()
    flat = torch.cat([activations, torch.ones(N, 2)], dim=1)
    assert ICA(dims=None).fit(flat, 0).read.shape == (D, D + 2)
    few = ICA(dims=2).fit(activations, 0)
    plane = PCA(n_components=2).fit(activations, 0).read
    assert few.card["components"] == 2
    torch.testing.assert_close(few.write @ plane.T @ plane, few.write, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="do not vary"):
        ICA().fit(torch.ones(10, 3), 0)


# Random directions


def test_random_directions_are_unit_and_seeded() -> None:
    activations = gaussian()
    one, again, other = (RandomDirections(n=50).fit(activations, seed) for seed in (5, 5, 6))
    assert one.read.shape == (50, D)
    assert one.read.norm(dim=1).numpy() == pytest.approx(1, abs=1e-6)
    assert torch.equal(one.read, again.read)
    assert cosines(one.read, other.read).diagonal().max() < 0.999
    assert RandomDirections().fit(activations, 5).read.shape == (D, D)
    # All directions are alike: the mean of many is near 0.
    assert RandomDirections(n=20_000).fit(activations, 5).read.mean(dim=0).abs().max() < 0.02


def test_fits_are_the_same_under_the_same_seed_and_leave_what_they_are_given() -> None:
    activations, _ = laplace()
    before = activations.clone()
    for baseline in (Neurons(), RandomDirections(), PCA(), ICA(dims=None), TopKPCA(k=2), TopKICA(k=2)):
        one, again = (baseline.fit(activations, 2**62 + 11) for _ in range(2))
        assert torch.equal(one.read, again.read)
        assert torch.equal(one.write, again.write)
    assert torch.equal(activations, before)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pca", {"sign": "both"}, "baseline 'pca', sign = 'both'.*'split', 'relu' or 'signed'"),
        ("pca", {"components": 3}, "unknown option 'components' .*n_components"),
        ("pca", {"n_components": 0}, "n_components 0 is not positive"),
        ("topk_pca", {}, "baseline 'topk_pca' needs the option 'k'"),
        ("topk_ica", {"k": 0}, "k 0 is not positive"),
        ("ica", {"tol": 0}, "tol 0.0 is not positive"),
        ("ica", {"dims": -1}, "dims -1 is not positive"),
        ("ica", {"max_iter": 0}, "max_iter 0 is not positive"),
        ("random", {"n": 0}, "n 0 is not positive"),
        ("nmf", {}, "unknown baseline 'nmf'.*installed: ica, neurons, pca"),
    ],
)
def test_wrong_options_are_refused_in_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        load_plugins().create("baseline", name, options)
    assert "\n" not in str(error.value)
