"""Counts do not depend on the order in which token sets pass, and random SAEs are made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful import EvalContext, TokenSet
from sae_faithful.evaluation import observe
from sae_faithful_plugins.fake_features import FakeFeatures
from sae_faithful_plugins.fake_features.counting import Meaningless, OwnText, RandomSAE, random_counterparts

VOCAB, BOS = 64, 0


def context_of(model: Any, *handles: Any) -> EvalContext:
    rows = np.random.default_rng(0).integers(3, VOCAB, (60, 11))
    rows[:, 0] = BOS
    held_out = {source: TokenSet.from_rows(rows) for source in ("faithful", "news")}
    return EvalContext(
        handles=handles, held_out=held_out, sources=list(held_out), language_model=model, seed=7
    )


def uneven(n: int = 30) -> np.ndarray:
    """Latents that fire on half of the tokens, with activations of all sizes."""
    return np.random.default_rng(1).normal(0, 1, (VOCAB, n))


def relative_counts(context: EvalContext, *, own_first: bool) -> np.ndarray:
    evaluator = FakeFeatures(500, baselines=False, n_contexts=0)
    observers = evaluator.observers(context)
    observe(observers if own_first else observers[::-1], context, batch_rows=7)
    (random,) = [one for one in observers if isinstance(one, Meaningless)]
    return random.relative.counts.sums


def test_relative_counts_are_the_same_whichever_token_set_passes_first(
    plant: Callable[..., Any], one_hot_model: Any
) -> None:
    context = context_of(one_hot_model, plant(uneven()))
    first = relative_counts(context, own_first=True)
    assert first.sum() > 0
    np.testing.assert_array_equal(first, relative_counts(context, own_first=False))


def test_own_text_passes_before_the_rest_so_that_nothing_need_wait(
    plant: Callable[..., Any], one_hot_model: Any
) -> None:
    context = context_of(one_hot_model, plant(uneven()), plant(uneven(), source="news"))
    observers = FakeFeatures(500).observers(context)
    kinds = [isinstance(one, OwnText) for one in observers]
    assert kinds == sorted(kinds, reverse=True)


def test_relative_counts_are_those_of_exact_medians_up_to_the_stated_error(
    plant: Callable[..., Any], one_hot_model: Any
) -> None:
    encoder = uneven()
    context = context_of(one_hot_model, plant(encoder))
    evaluator = FakeFeatures(500, baselines=False, n_contexts=0)
    own, random = evaluator.observers(context)
    observe([own, random], context, batch_rows=7)
    assert isinstance(random, Meaningless)
    on_text, on_random = (
        torch.from_numpy(encoder)[one.tokens.rows()[:, 1:]].numpy() for one in (own, random)
    )
    for j in range(encoder.shape[1]):
        values = on_text[..., j][on_text[..., j] > 0]
        median = np.quantile(values, 0.5, method="inverted_cdf")
        most, least = ((on_random[..., j] > bound).sum() for bound in (median, median * 17 / 16))
        assert least <= random.relative.counts.total[j] <= most


# Random SAEs


def test_saes_of_one_shape_share_a_random_sae_and_each_source_has_its_own_text(
    plant: Callable[..., Any], one_hot_model: Any
) -> None:
    handles = [
        plant(uneven(), source=source, seed=seed) for source in ("faithful", "news") for seed in (0, 1)
    ]
    one, other = random_counterparts(context_of(one_hot_model, *handles))
    assert (one.handle.source, other.handle.source) == ("faithful", "news")
    assert one.encoder is other.encoder
    wider = plant(uneven(40), variant="wide")
    assert (
        len({own.encoder for own in random_counterparts(context_of(one_hot_model, handles[0], wider))}) == 2
    )


def test_an_sae_without_k_has_its_active_latents_counted(
    plant: Callable[..., Any], one_hot_model: Any
) -> None:
    # Four latents fire on every ordinary token; 30 on BOS, which does not count.
    encoder = np.zeros((VOCAB, 30))
    encoder[3:, :4] = 1.0
    encoder[BOS] = 1.0
    (own,) = random_counterparts(context_of(one_hot_model, plant(encoder)))
    assert isinstance(own.encoder, RandomSAE)
    assert own.encoder.sae.k == 4


def test_a_topk_sae_lends_its_k(one_hot_model: Any) -> None:
    from sae_lens import TopKSAE, TopKSAEConfig

    from sae_faithful import SAEHandle

    handle = SAEHandle(
        source="news", hook="model.layers.0", variant="main", seed=0,
        load=lambda: TopKSAE(TopKSAEConfig(d_in=VOCAB, d_sae=96, k=7)),
    )  # fmt: skip
    (own,) = random_counterparts(context_of(one_hot_model, handle))
    assert isinstance(own.encoder, RandomSAE)
    assert (own.encoder.sae.k, own.encoder.d_sae) == (7, 96)


def test_a_random_sae_encodes_a_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen:
        def __init__(self) -> None:
            self.activations = torch.randn(2, 3, 8)

    from sae_faithful.metrics.random_sae import RandomTopK

    sae = RandomTopK(8, 20, 3, seed=0)
    encoder = RandomSAE("hook", sae)
    batches: list[Any] = [Seen(), Seen()]
    first = encoder.latents(batches[0])
    assert encoder.latents(batches[0]) is first
    torch.testing.assert_close(encoder.latents(batches[1]), sae.encode(batches[1].activations))
