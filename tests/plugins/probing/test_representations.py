"""Pooled vectors by hand, and that neighbours in a batch change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from sae_faithful import EvalContext
from sae_faithful_plugins.probing import representations
from sae_faithful_plugins.probing.representations import (
    PooledTexts,
    RandomTopK,
    batches,
    pool_texts,
    tokenize,
)

VOCAB, BOS = 64, 0
HOOK = "model.layers.0"


def context(model: Any, handles: list[Any]) -> EvalContext:
    return EvalContext(handles=handles, held_out={}, sources=["faithful"], language_model=model, seed=7)


@pytest.fixture
def pool(one_hot_model: Any, plant: Callable[..., Any]) -> Callable[..., PooledTexts]:
    def go(ids: list[list[int]], handles: list[Any] | None = None, how: Any = "mean") -> PooledTexts:
        handles = handles or [plant(np.eye(VOCAB, 8, k=-5))]
        return pool_texts(context(one_hot_model, handles), ids, how)

    return go


def test_a_text_is_the_mean_of_its_tokens_without_bos(pool: Callable[..., PooledTexts]) -> None:
    raw = pool([[5, 5, 6, 7]]).matrix(("raw", HOOK))
    expected = np.zeros((1, VOCAB))
    expected[0, [5, 6, 7]] = [0.5, 0.25, 0.25]
    # BOS would be 100 long.
    np.testing.assert_allclose(raw, expected)


def test_flaw_pools_the_last_positions_under_right_padding(pool: Callable[..., PooledTexts]) -> None:
    """Reference flaw: of a short text beside a long one, padding is pooled."""
    raw: Any = pool([[8], [5, 6, 7, 9, 10, 11]]).matrix(("raw", HOOK))
    assert raw[0].nonzero()[0].tolist() == [8]
    assert raw[0, 8] == 1
    np.testing.assert_allclose(raw[1][[5, 6, 7, 9, 10, 11]], 1 / 6)


def test_flaw_no_attention_mask(llama: Any) -> None:
    """Reference flaw: padding is attended to. Here it comes after the text, and changes nothing before it."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, VOCAB, size=length).tolist() for length in (2, 9, 5, 14, 5)]
    together = list(batches(ids, BOS))
    assert len(together) == 1
    one = together[0]
    hooks = ["model.layers.1"]
    activations = llama.activations(torch.from_numpy(one.tokens), hooks)[hooks[0]]
    other = one.tokens.copy()
    other[np.arange(other.shape[1]) > one.lengths[:, None]] = 2  # PAD itself as padding
    others = llama.activations(torch.from_numpy(other), hooks)[hooks[0]]
    for i, row in enumerate(one.rows):
        alone = llama.activations(torch.tensor([[BOS, *ids[row]]]), hooks)[hooks[0]][0]
        for found in (activations, others):
            torch.testing.assert_close(found[i, : len(alone)], alone, atol=1e-5, rtol=1e-4)


def test_batch_composition_changes_nothing(
    llama: Any, plant: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    handle = plant(rng.standard_normal((VOCAB, 24)), rng.standard_normal((24, VOCAB)))
    ids = [rng.integers(3, VOCAB, size=length).tolist() for length in (1, 7, 3, 12, 7, 2)]
    whole = pool_texts(context(llama, [handle]), ids, "mean")
    monkeypatch.setattr(representations, "LATENTS_PER_CHUNK", 48)  # two tokens a chunk
    for row, text in enumerate(ids):
        alone = pool_texts(context(llama, [handle]), [text], "mean")
        for name, key in whole.keys(handle).items():
            if name == "random_sae":
                key = next(one for one in whole.parts if one[0] == name)
                if key not in alone.parts:
                    continue  # k follows the first texts
            found: Any = (dense(whole.matrix(key))[row], dense(alone.matrix(key))[0])
            np.testing.assert_allclose(*found, atol=1e-4, err_msg=name)


def dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sparse.issparse(matrix) else matrix


def test_flaw_train_and_test_pool_different_lengths(pool: Callable[..., PooledTexts]) -> None:
    """Reference flaw: one text is two vectors, depending on the part it is in. Here each text stands twice."""
    part = [[5, 6], [7], [8, 9, 10, 11, 12, 13]]
    raw: Any = pool([*part, *part[::-1]]).matrix(("raw", HOOK))
    np.testing.assert_array_equal(raw[:3], raw[3:][::-1])
    # In a part with a text ten times as long, too.
    beside: Any = pool([*part, [14] * 60]).matrix(("raw", HOOK))
    np.testing.assert_array_equal(beside[:3], raw[:3])


def test_encoding_is_by_token_and_then_pooled(
    pool: Callable[..., PooledTexts], plant: Callable[..., Any]
) -> None:
    # Latent 0 fires on w5 with 3, latent 1 on w6 with 1; each decodes into unit vectors 5 and 6.
    encoder, decoder = np.zeros((VOCAB, 2)), np.zeros((2, VOCAB))
    encoder[5, 0], encoder[6, 1] = 3, 1
    decoder[0, 5], decoder[1, 6] = 0.2, 1
    handle = plant(encoder, decoder)
    pooled = pool([[5, 7], [5, 6, 6, 6]], [handle])
    latents = pooled.matrix(("latents", *handle.key))
    assert sparse.isspmatrix_csr(latents)
    np.testing.assert_allclose(latents.toarray(), [[1.5, 0], [0.75, 0.75]])
    reconstruction: Any = pooled.matrix(("reconstruction", *handle.key))
    np.testing.assert_allclose(reconstruction[:, [5, 6, 7]], [[0.3, 0, 0], [0.15, 0.75, 0]], atol=1e-7)
    residual: Any = pooled.matrix(("residual", *handle.key))
    np.testing.assert_allclose(residual[:, [5, 6, 7]], [[0.2, 0, 0.5], [0.1, 0, 0]], atol=1e-7)


def test_pooling_the_last_token(pool: Callable[..., PooledTexts]) -> None:
    raw: Any = pool([[5, 6], [7], [8, 9, 10]], how="last").matrix(("raw", HOOK))
    assert [row.nonzero()[0].tolist() for row in raw] == [[6], [7], [10]]


def test_one_forward_serves_all_saes_and_representations(
    one_hot_model: Any, plant: Callable[..., Any], pool: Callable[..., PooledTexts]
) -> None:
    handles = [
        plant(np.eye(VOCAB, 8), source=source, hook=hook, seed=seed)
        for source in ("faithful", "news")
        for hook in ("a", "b")
        for seed in (0, 1)
    ]
    pool([[5, 6], [7], [8, 9]], handles)
    assert one_hot_model.passes == [(("a", "b"), 3)]


def test_texts_come_back_in_their_order_and_batches_hold_similar_lengths() -> None:
    ids = [[5] * length for length in (9, 1, 4, 1, 8)]
    found = list(batches(ids, BOS, tokens_per_forward=20))
    # Lengths 1, 1, 4 with BOS: 3 · 5 = 15 tokens; 8 would make 36. Then 8 and 9: 20.
    assert [sorted(batch.lengths.tolist()) for batch in found] == [[1, 1, 4], [8, 9]]
    assert [batch.rows.tolist() for batch in found] == [[1, 3, 2], [4, 0]]
    assert all((batch.tokens[:, 0] == BOS).all() for batch in found)


def test_texts_are_cut_at_max_tokens_and_at_what_the_model_takes(llama: Any) -> None:
    text = " ".join(f"w{i}" for i in range(4, 34))
    assert tokenize(llama, [text], 10) == [list(range(4, 14))]
    # The tiny Llama takes 64 with BOS.
    long = " ".join(["w5"] * 100)
    assert len(tokenize(llama, [long], 1_000)[0]) == 63


def test_a_text_without_tokens_is_zero(pool: Callable[..., PooledTexts]) -> None:
    raw: Any = pool([[], [5]]).matrix(("raw", HOOK))
    assert raw[0].any() == np.False_
    assert raw[1, 5] == 1


def test_the_random_sae_has_the_shape_and_the_sparsity_of_the_real_one(
    pool: Callable[..., PooledTexts], plant: Callable[..., Any]
) -> None:
    encoder = np.zeros((VOCAB, 10))
    encoder[5:20, :3] = 1.0  # three of ten latents fire on every token used here
    handle, other = plant(encoder), plant(encoder, source="news")
    pooled = pool([[5, 6, 7], [8]], [handle, other])
    random = pooled.random[handle.key]
    assert (random.d_sae, random.k) == (10, 3)
    # One of both sources, so that it is encoded and fitted once.
    assert pooled.keys(handle)["random_sae"] == pooled.keys(other)["random_sae"]
    latents = RandomTopK(64, 500, 7, seed=0).encode(torch.randn(20, 64))
    assert ((latents > 0).sum(dim=-1) <= 7).all()
    assert ((latents > 0).sum(dim=-1) > 0).all()
    assert torch.equal(latents, latents.clamp(min=0))
