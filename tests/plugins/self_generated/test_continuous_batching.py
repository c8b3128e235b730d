"""Continuous batching draws from the model's own distribution, the same for a seed; here on the CPU, where it runs too.

On a GPU, where it is used, it has not been run by these tests.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sae_faithful import LanguageModel, RunError
from sae_faithful.data import measure_typicality
from sae_faithful_plugins.self_generated import SelfGenerated
from sae_faithful_plugins.self_generated.engines import continuous_batching
from sae_faithful_plugins.self_generated.engines.transformers import TransformersSampler

BOS, EOS = 0, 1


@pytest.fixture
def sampler(llama: LanguageModel) -> TransformersSampler:
    return TransformersSampler(llama, (BOS,), 15, 1.0, 1.0, continuous=True)


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_samples_are_the_models_own_and_end_with_their_stop_token(
    sampler: TransformersSampler, llama: LanguageModel
) -> None:
    documents = sampler.sample(300, seed=5)
    with_bos = [np.concatenate([[BOS], one]).astype(np.int32) for one in documents]
    assert abs(measure_typicality(with_bos, 1, llama, 10_000, seed=0).z) < 3
    ended = [one for one in documents if one[-1] == EOS]
    assert 0 < len(ended) < len(documents)
    assert {len(one) for one in documents if one[-1] != EOS} == {15}


def test_temperature_and_top_p_are_applied(llama: LanguageModel) -> None:
    def gap(**changes: Any) -> float:
        hot = TransformersSampler(
            llama, (BOS,), 15, **{"temperature": 1.0, "top_p": 1.0, **changes}, continuous=True
        )
        documents = [np.concatenate([[BOS], one]).astype(np.int32) for one in hot.sample(128, 0)]
        return measure_typicality(documents, 1, llama, 5_000, seed=0).z

    assert gap(temperature=1.5) > 5
    assert gap(top_p=0.6) < -5


def test_a_seed_determines_the_samples_also_where_they_wait_for_a_place(
    sampler: TransformersSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    # 40 samples for 16 places: who follows whom is a matter of who ends first, and of nothing else.
    monkeypatch.setattr(continuous_batching, "IN_FLIGHT", 16)
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    first, again, other = (sampler.sample(40, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.rand(3), expected)
    assert same(first, again)
    assert not same(first, other)


def test_the_model_is_left_as_it_was(sampler: TransformersSampler, llama: LanguageModel) -> None:
    inner: Any = llama.model.model
    before = (inner.config._attn_implementation, inner.generation_config.to_dict())
    sampler.sample(3, 0)
    assert (inner.config._attn_implementation, inner.generation_config.to_dict()) == before


def test_it_is_used_on_cuda_only_and_where_the_model_admits_it(
    make_request: Callable[..., Any], llama: LanguageModel, tiny_hooked: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="sae_faithful")
    plain = TransformersSampler.of(SelfGenerated(), make_request())
    # On a CPU nothing changes, the name of the cache's folder least of all.
    assert not plain.continuous
    assert "continuous_batching" not in plain.settings
    cuda = make_request(language_model=dataclasses.replace(llama, device="cuda"))
    one = TransformersSampler.of(SelfGenerated(), cuda)
    assert one.continuous
    assert one.settings["continuous_batching"] == continuous_batching.FIXED
    assert one.engine["continuous_batching"] is True
    assert not TransformersSampler.of(SelfGenerated(continuous_batching=False), cuda).continuous
    assert caplog.messages == []
    hooked = LanguageModel("tiny", class_name="HookedTransformer", given=tiny_hooked, device="cuda")
    assert not TransformersSampler.of(SelfGenerated(), make_request(language_model=hooked)).continuous
    (line,) = caplog.messages
    assert line.startswith("continuous batching is left out: tiny is no model of transformers")


def test_layers_of_other_kinds_are_left_to_plain_generate(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert continuous_batching.why_not(llama) is None
    config = llama.skeleton.model.config.get_text_config()
    monkeypatch.setattr(config, "layer_types", ["full_attention", "sliding_attention"], raising=False)
    assert "other than full attention (full_attention, sliding_attention)" in str(
        continuous_batching.why_not(llama)
    )


def test_an_older_transformers_is_named_before_anything_is_drawn(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclasses.dataclass
    class Before518:
        block_size: int = 256

    monkeypatch.setattr("transformers.generation.ContinuousBatchingConfig", Before518)
    assert "transformers has no pages in ContinuousBatchingConfig: it is older than 5.18" in str(
        continuous_batching.why_not(llama)
    )


def test_a_failure_says_how_to_do_without(
    sampler: TransformersSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: Any = sampler.model.model.model

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("no kernel")

    monkeypatch.setattr(inner, "forward", fail)
    with pytest.raises(
        RunError, match=r"failed \(no kernel\); sample without it by `continuous_batching: false`"
    ):
        sampler.sample(3, 0)
    # What batch_size auto takes as "too large" comes through.
    monkeypatch.setattr(inner, "forward", lambda *args, **kwargs: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        sampler.sample(3, 0)
