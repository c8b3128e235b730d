"""Fragments of documents, and what is kept of them for every latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sae_faithful import TokenSet, UsageError
from sae_faithful.evaluation import observe
from sae_faithful.interfaces import EvalContext
from sae_faithful_plugins.autointerp.fragments import Fragments, Kept, collect, draw_fragments

VOCAB, BOS, EOS = 64, 0, 1


def documents(*lengths: int, context: int = 16) -> TokenSet:
    """Documents whose tokens are 3, 4, 5, ... from an offset of their own, packed as a source packs them."""
    made = [3 + (np.arange(length) + 7 * i) % 60 for i, length in enumerate(lengths)]
    return TokenSet.from_documents(
        made, n_tokens=10**6, context_size=context, bos_token_id=BOS, begin_rows_with_bos=True
    )


def draw(tokens: TokenSet, model: Any, **changes: Any) -> np.ndarray | None:
    options = {"n": 1_000, "size": 8, "per_document": 1, "with_bos": False, "seed": 5, **changes}
    found = draw_fragments(tokens, model, **options)
    return None if found is None else found.rows()


def test_one_fragment_a_document_of_the_length_asked_for_across_rows(one_hot_model: Any) -> None:
    # The last partial row is lost, with it the end of the last document.
    rows = draw(documents(*[40] * 30), one_hot_model)
    assert rows is not None
    assert rows.shape == (30, 8)
    # Neighbours in the document, whatever BOS packing put between them.
    assert ((np.diff(rows, axis=1) - 1) % 60 == 0).all()


def test_short_documents_give_none_and_are_never_joined(one_hot_model: Any) -> None:
    assert draw(documents(*[7] * 30), one_hot_model) is None
    rows = draw(documents(7, 30, 7, 30, 7, 30), one_hot_model)
    assert rows is not None
    assert len(rows) == 3


def test_of_a_long_text_the_beginning_is_cut_up(one_hot_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_faithful_plugins.autointerp.fragments.CUT_FROM", 400)
    # Rows of ten tokens, each a document: 40 of them, or for 3 fragments of 8, 48.
    text = TokenSet.from_rows(np.tile(np.arange(3, 13), (600, 1)))
    for n, cut in ((1, 40), (3, 48)):
        seen: list[int] = []
        monkeypatch.setattr(
            "sae_faithful_plugins.autointerp.fragments._documents",
            lambda tokens, _, seen=seen: seen.append(len(tokens)) or list(tokens.rows()),
        )
        rows = draw(text, one_hot_model, n=n)
        assert rows is not None
        assert (len(rows), seen) == (n, [cut])


def test_starts_are_uniform(one_hot_model: Any) -> None:
    # 600 documents of ten tokens: three places for a fragment.
    rows = draw(TokenSet.from_rows(np.tile(np.arange(3, 13), (600, 1))), one_hot_model)
    assert rows is not None
    counts = np.bincount(rows[:, 0] - 3, minlength=3)
    # 200 each, standard deviation 11.5.
    assert (np.abs(counts - 200) < 46).all()


def test_several_of_one_document_do_not_overlap(one_hot_model: Any) -> None:
    tokens = TokenSet.from_rows(np.arange(3, 33)[None, :])
    for seed in range(20):
        rows = draw(tokens, one_hot_model, per_document=5, seed=seed)
        assert rows is not None
        # 30 tokens hold three of 8.
        assert len(rows) == 3
        assert len(np.unique(rows)) == 24


def test_at_most_so_many_in_random_order_with_bos_before_them(one_hot_model: Any) -> None:
    tokens = documents(*[40] * 30)
    rows = draw(tokens, one_hot_model, n=10, with_bos=True)
    assert rows is not None
    assert rows.shape == (10, 9)
    assert (rows[:, 0] == BOS).all()
    every = draw(tokens, one_hot_model)
    assert every is not None
    assert np.array_equal(rows[:, 1:], every[:10])
    again = draw(tokens, one_hot_model)
    other = draw(tokens, one_hot_model, seed=6)
    assert np.array_equal(every, again)
    assert not np.array_equal(every, other)


def test_fragments_that_cut_a_character_are_dropped(one_hot_model: Any) -> None:
    class Cuts:
        def decode(self, ids: list[int]) -> str:
            return "\ufffd" if 9 in ids else "whole"

    one_hot_model.tokenizer = Cuts()
    rows = draw(TokenSet.from_rows(np.array([[3] * 8, [9] * 8, [4] * 8])), one_hot_model)
    assert rows is not None
    assert sorted(rows[:, 0]) == [3, 4]


def test_fragments_longer_than_the_context_are_refused(llama: Any) -> None:
    with pytest.raises(UsageError, match="fragment_tokens 64 is more than"):
        draw(documents(200), llama, size=64, with_bos=True)


def test_kept_are_the_largest_and_of_equal_ones_the_first() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 9, (50, 6)).astype(np.float32)
    values[:, 5] = -np.inf
    values[7, 5] = 1
    kept = Kept(6, 4)
    for start in range(0, 50, 7):
        kept.add(start, values[start : start + 7])
    for latent in range(5):
        expected = np.lexsort((np.arange(50), -values[:, latent]))[:4]
        assert kept.of(latent).tolist() == expected.tolist()
    assert kept.of(5).tolist() == [7]


@pytest.fixture
def seen(plant: Callable[..., Any], one_hot_model: Any) -> Callable[..., Fragments]:
    """The first pass over rows, for latents that are each token's activation in `encoder`."""

    def go(encoder: np.ndarray, rows: np.ndarray, batch_rows: int = 1_000, **slices: Any) -> Fragments:
        handle = plant(encoder)
        tokens = TokenSet.from_rows(rows)
        observer = Fragments(handle, tokens, seed=11)
        context = EvalContext(
            handles=[handle], held_out={"faithful": tokens}, sources=["faithful"],
            language_model=one_hot_model, seed=7,
        )  # fmt: skip
        observe([observer], context, batch_rows, **slices)
        return observer

    return go


def rows_with(counts: dict[int, int], n_rows: int = 100) -> np.ndarray:
    """Rows of BOS and 8 times w40, in which token t stands once in the first counts[t] rows."""
    rows = np.full((n_rows, 9), 40)
    rows[:, 0] = BOS
    for place, (token, count) in enumerate(counts.items()):
        rows[:count, 1 + place] = token
    return rows


def detectors(*tokens: int) -> np.ndarray:
    encoder = np.zeros((VOCAB, len(tokens)))
    encoder[list(tokens), range(len(tokens))] = 2.0
    return encoder


def test_active_fragments_are_counted_and_random_ones_are_none_of_the_top(
    seen: Callable[..., Fragments],
) -> None:
    one = seen(detectors(5, 6, 7), rows_with({5: 19, 6: 45, 7: 100}))
    assert one.n_active.tolist() == [19, 45, 100]
    for latent, active in enumerate((19, 45, 100)):
        top, random, inactive = one.rows_of(latent)
        assert (len(top), len(random)) == (min(active, 20), min(max(active - 20, 0), 20))
        assert set(top) | set(random) <= set(range(active))
        assert not set(top) & set(random)
        assert set(inactive) <= set(range(active, 100))
        assert len(inactive) == min(10, 100 - active)


def test_random_fragments_are_uniform_among_the_others(seen: Callable[..., Fragments]) -> None:
    # Of 100 active fragments the first 20 are the top ones, being equally strong.
    one = seen(np.tile(detectors(7), 300), rows_with({7: 100}))
    drawn = np.concatenate([one.rows_of(latent)[1] for latent in range(300)])
    counts = np.bincount(drawn, minlength=100)[20:]
    # 300 latents draw 20 of 80: 75 each, standard deviation 7.5.
    assert counts.sum() == 6_000
    assert (np.abs(counts - 75) < 5 * 7.5).all()


def test_batches_make_no_difference(seen: Callable[..., Fragments]) -> None:
    rng = np.random.default_rng(0)
    encoder, rows = rng.normal(size=(VOCAB, 12)), rng.integers(3, VOCAB, (90, 9))
    whole, parts = seen(encoder, rows), seen(encoder, rows, batch_rows=7)
    for latent in range(12):
        for one, other in zip(whole.rows_of(latent), parts.rows_of(latent), strict=True):
            assert one.tolist() == other.tolist()


def test_the_second_pass_gives_all_activations_and_bos_is_no_token(
    seen: Callable[..., Fragments], one_hot_model: Any
) -> None:
    encoder = detectors(5, 40)
    encoder[BOS, :] = 3.0  # BOS is 100 times as long: it would be every fragment's strongest token
    one = seen(encoder, rows_with({5: 30}))
    for step in (1, 2**20):
        (first, second) = collect({one: [0, 1]}, one_hot_model, latents_per_batch=step)[one]
        assert (first.latent, first.n_active, second.n_active) == (0, 30, 100)
        assert [len(first.top), len(first.random), len(first.inactive)] == [20, 10, 10]
        for record in (*first.top, *first.random):
            assert record.ids.tolist() == [5] + [40] * 7
            assert record.activations.tolist() == [2.0] + [0.0] * 7
        assert all(record.activations.tolist() == [0.0] * 8 for record in first.inactive)


def test_positions_that_the_saes_never_saw_do_not_count(
    seen: Callable[..., Fragments], one_hot_model: Any
) -> None:
    one = seen(detectors(5, 6), rows_with({5: 30, 6: 40}), seqpos_slice=(2, None))
    # w5 stands at position 1, w6 at position 2.
    assert one.n_active.tolist() == [0, 40]
    (found,) = collect({one: [1]}, one_hot_model)[one]
    assert found.top[0].ids.tolist() == [6] + [40] * 6


def test_a_signed_code_is_active_wherever_it_is_not_0(
    seen: Callable[..., Fragments], one_hot_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from sae_faithful import SAEHandle

    monkeypatch.setattr(SAEHandle, "encode", lambda self, x: x @ torch.as_tensor(signed, dtype=x.dtype))
    signed = np.zeros((VOCAB, 1))
    signed[40], signed[5] = -1.0, 2.0
    one = seen(signed, rows_with({5: 30}))
    assert one.n_active.tolist() == [100]
    (found,) = collect({one: [0]}, one_hot_model)[one]
    assert found.top[0].activations.tolist() == [2.0] + [-1.0] * 7
