"""Samples are the model's own: nothing stands between its logits and the draw."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sae_faithful import LanguageModel, UsageError
from sae_faithful_plugins.self_generated import SelfGenerated
from sae_faithful_plugins.self_generated.engines.transformers import TransformersSampler as Sampler
from sae_faithful_plugins.self_generated.sampling import build_prompt

VOCAB, BOS, EOS = 64, 0, 1
DRAWS = 6_000
# With a correct sampler, a p-value is below this once in a thousand seeds; seeds are fixed.
IMPLAUSIBLE = 1e-3


@pytest.fixture(scope="session")
def hooked(tiny_hooked: Any) -> LanguageModel:
    """The tiny HookedTransformer behind the adapter."""
    return LanguageModel(
        "tiny", class_name="HookedTransformer", hooks=("blocks.0.hook_resid_post",), given=tiny_hooked
    )


@pytest.fixture(params=["llama", "hooked"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    """Both kinds of model that SAELens loads."""
    return request.getfixturevalue(request.param)


def make_llama(folder: Path, tokenizer: Any, *, seed: int, vocab_size: int = VOCAB) -> str:
    """Folder of another random Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=BOS,
        eos_token_id=EOS, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def next_token_p(model: LanguageModel, prompt: tuple[int, ...], temperature: float = 1.0) -> np.ndarray:
    """The model's own next-token probabilities after `prompt`, float64."""
    import torch

    logits = model.logits(torch.tensor([prompt]))[0, -1].double() / temperature
    return torch.softmax(logits, dim=-1).numpy()


def first_tokens(sampler: Sampler, seed: int = 0) -> np.ndarray:
    """How often each token was drawn first after the prompt."""
    given = len(sampler.prompt_ids) - 1
    drawn = [document[given] for document in sampler.sample(DRAWS, seed)]
    return np.bincount(drawn, minlength=VOCAB)


def chi_square_p(counts: np.ndarray, p: np.ndarray) -> float:
    """p-value of the counts under `p`; tokens expected fewer than 5 times are taken together."""
    rare = p * counts.sum() < 5
    observed, expected = counts[~rare], p[~rare] * counts.sum()
    if rare.any():
        observed = np.append(observed, counts[rare].sum())
        expected = np.append(expected, p[rare].sum() * counts.sum())
    return float(stats.chisquare(observed, expected).pvalue)


def sampler_of(model: LanguageModel, **changes: Any) -> Sampler:
    return dataclasses.replace(Sampler(model, (BOS,), 1, 1.0, 1.0), **changes)


# The distribution


def test_first_tokens_come_from_the_softmax_after_bos(model: LanguageModel) -> None:
    assert chi_square_p(first_tokens(sampler_of(model)), next_token_p(model, (BOS,))) > IMPLAUSIBLE


def test_the_chi_square_would_notice_a_slightly_wrong_temperature(model: LanguageModel) -> None:
    counts = first_tokens(sampler_of(model, temperature=1.25))
    assert chi_square_p(counts, next_token_p(model, (BOS,))) < 1e-6


def test_flaw_the_models_own_generation_config_does_not_change_the_distribution(llama: LanguageModel) -> None:
    """Reference flaw: top_k, a temperature and a repetition penalty in generation_config spoil the samples."""
    import torch

    inner: Any = llama.model.model
    own = inner.generation_config
    assert (own.top_k, own.temperature, own.repetition_penalty) == (2, 0.3, 1.8)
    # What the config would do to plain `generate`: with top_k 2, two of the 64 tokens are left.
    spoilt = inner.generate(torch.full((500, 1), BOS), max_new_tokens=1)[:, -1]
    assert len(spoilt.unique()) <= 2
    # The penalty of 1.8 would show in the prompt's own tokens: the most probable one is made one of them.
    likely = int(next_token_p(llama, (BOS,)).argmax())
    prompt = (BOS, likely, likely)
    counts = first_tokens(sampler_of(llama, prompt_ids=prompt))
    assert chi_square_p(counts, next_token_p(llama, prompt)) > IMPLAUSIBLE


@pytest.mark.parametrize(
    "own",
    [
        {"top_p": 0.3}, {"min_p": 0.3}, {"typical_p": 0.3}, {"epsilon_cutoff": 0.04},
        {"no_repeat_ngram_size": 1}, {"suppress_tokens": [20, 21, 22, 23]}, {"min_new_tokens": 12},
    ],
    ids=lambda own: next(iter(own)),
)  # fmt: skip
def test_flaw_nothing_is_taken_from_the_models_own_generation_config(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, own: dict[str, Any]
) -> None:
    """Reference flaw: whatever else stands in a generation_config changes the distribution too."""
    import torch
    from transformers import GenerationConfig

    inner: Any = llama.model.model
    plain = {"do_sample": True, "top_k": 0, "eos_token_id": EOS, "pad_token_id": EOS, "max_new_tokens": 12}
    sampler = sampler_of(llama, max_new_tokens=12)

    def drawn(config: dict[str, Any]) -> list[Any]:
        """What plain `generate` draws, and what the sampler draws, under a config of the model's own."""
        monkeypatch.setattr(inner, "generation_config", GenerationConfig(**config))
        torch.manual_seed(3)
        return [
            inner.generate(torch.full((64, 1), BOS)).tolist(),
            [document.tolist() for document in sampler.sample(64, 3)],
        ]

    (plain_before, before), (plain_after, after) = drawn(plain), drawn(plain | own)
    assert plain_after != plain_before
    assert after == before


def test_the_models_own_generation_config_is_restored(llama: LanguageModel) -> None:
    inner: Any = llama.model.model
    own = inner.generation_config
    before = own.to_dict()
    sampler_of(llama, max_new_tokens=3).sample(2, 0)
    assert inner.generation_config is own
    assert own.to_dict() == before


def test_the_models_own_generation_config_is_restored_after_a_failure(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: Any = llama.model.model
    own = inner.generation_config

    def fail(*args: Any, **kwargs: Any) -> None:
        assert inner.generation_config is not own
        raise MemoryError

    monkeypatch.setattr(inner, "generate", fail)
    with pytest.raises(MemoryError):
        sampler_of(llama).sample(2, 0)
    assert inner.generation_config is own


def test_temperature_divides_the_logits(model: LanguageModel) -> None:
    counts = first_tokens(sampler_of(model, temperature=2.0))
    assert chi_square_p(counts, next_token_p(model, (BOS,), temperature=2.0)) > IMPLAUSIBLE


def test_top_p_keeps_the_smallest_set_with_that_probability(model: LanguageModel) -> None:
    p = next_token_p(model, (BOS,))
    order = np.argsort(-p)
    # Tokens are kept until their sum reaches 0.5, the one that reaches it included.
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), 0.5)) + 1]
    nucleus = np.zeros(VOCAB)
    nucleus[kept] = p[kept] / p[kept].sum()
    counts = first_tokens(sampler_of(model, top_p=0.5))
    assert set(np.flatnonzero(counts)) <= set(kept)
    assert chi_square_p(counts[kept], nucleus[kept]) > IMPLAUSIBLE


def test_a_seed_determines_the_samples_and_leaves_the_global_generator_alone(model: LanguageModel) -> None:
    import torch

    sampler = sampler_of(model, max_new_tokens=6)
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    first, again, other = (sampler.sample(8, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.rand(3), expected)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


# Documents


def test_eos_stays_as_sampled_and_nothing_follows_it(model: LanguageModel) -> None:
    documents = sampler_of(model, max_new_tokens=20).sample(300, 0)
    ended = [document for document in documents if EOS in document]
    assert ended
    assert len(ended) < len(documents)
    assert all((document == EOS).sum() == 1 and document[-1] == EOS for document in ended)
    # The others were cut by max_new_tokens and by nothing else.
    assert {len(document) for document in documents if EOS not in document} == {20}


def test_documents_are_what_generate_drew(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = sampler_of(llama, prompt_ids=(BOS, 7), max_new_tokens=10)
    drawn: list[Any] = []
    generate = Sampler._generate

    def watched(self: Sampler, prompt: Any) -> Any:
        drawn.append(generate(self, prompt))
        return drawn[-1]

    monkeypatch.setattr(Sampler, "_generate", watched)
    documents = sampler.sample(200, 3)
    for document, row in zip(documents, drawn[0].numpy(), strict=True):
        assert row[0] == BOS
        # Without BOS, which packing puts back.
        assert np.array_equal(document, row[1 : len(document) + 1])
        # What `generate` filled up after EOS is left out: nothing but its padding.
        assert len(document) == 11 or (document[-1] == EOS and set(row[len(document) + 1 :]) <= {EOS})


def test_a_sample_that_draws_bos_or_pad_keeps_them(llama: LanguageModel) -> None:
    """They would be lost on the way through text."""
    drawn = np.concatenate(sampler_of(llama, max_new_tokens=10).sample(200, 0))
    assert (drawn == BOS).any()
    assert (drawn == 2).any()


def test_the_models_own_stop_ids_end_a_sample(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    import copy

    inner: Any = llama.model.model
    config = copy.deepcopy(inner.generation_config)
    config.eos_token_id = [EOS, 9]
    monkeypatch.setattr(inner, "generation_config", config)
    sampler = sampler_of(llama, max_new_tokens=20)
    assert sampler.stop_ids == (EOS, 9)
    documents = sampler.sample(100, 0)
    stops = [document for document in documents if document[-1] == 9]
    assert stops
    assert all(np.isin(document[:-1], (EOS, 9)).sum() == 0 for document in documents)


# Prompts


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("bos", (0,)),
        # The template renders "<bos>user MESSAGE<eos>": cut before MESSAGE, "<bos>user" is 0, 3.
        ("chat_user", (0, 3)),
        ("w5 w6", (0, 5, 6)),
        ("<bos>w5", (0, 5)),
        ([7, 8], (0, 7, 8)),
        ([0, 7], (0, 7)),
        ([], (0,)),
    ],
)
def test_prompts_become_ids_with_one_bos_first(
    llama: LanguageModel, prompt: str | list[int], ids: tuple[int, ...]
) -> None:
    assert build_prompt(prompt, llama) == ids


def test_samples_continue_the_prompt(llama: LanguageModel, make_request: Callable[..., Any]) -> None:
    sampler = Sampler.from_options(SelfGenerated(prompt="chat_user"), make_request(context_size=16))
    # 16 tokens a row, two of them given.
    assert (sampler.prompt_ids, sampler.max_new_tokens) == ((0, 3), 14)
    documents = sampler.sample(20, 0)
    assert all(document[0] == 3 for document in documents)
    assert max(len(document) for document in documents) == 1 + 14


@pytest.mark.parametrize("outside", [64, -1])
def test_prompt_ids_outside_the_vocabulary_are_refused(llama: LanguageModel, outside: int) -> None:
    with pytest.raises(UsageError, match=rf"prompt id {outside} is outside the vocabulary of 64"):
        build_prompt([5, outside], llama)


def test_chat_user_without_a_chat_template_is_refused(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.tokenizer, "chat_template", None)
    with pytest.raises(UsageError, match=r"prompt chat_user, but the tokenizer of .* has no chat template"):
        build_prompt("chat_user", llama)


def test_a_sample_longer_than_the_model_takes_is_refused(make_request: Callable[..., Any]) -> None:
    options = SelfGenerated(prompt=[5, 6], max_new_tokens=62)
    # BOS and two ids given, 62 drawn: 65 of the 64 that the model takes.
    with pytest.raises(UsageError, match="prompt of 3 tokens and max_new_tokens 62 exceed the 64 tokens"):
        Sampler.from_options(options, make_request())


# Other models, other weights


def test_a_generator_with_the_same_vocabulary_writes_by_its_own_distribution(
    llama: LanguageModel, tokenizer: Any, tmp_path: Path, make_request: Callable[..., Any]
) -> None:
    other = make_llama(tmp_path / "other", tokenizer, seed=5)
    sampler = Sampler.from_options(SelfGenerated(generator=other, max_new_tokens=1), make_request())
    counts = first_tokens(sampler)
    assert chi_square_p(counts, next_token_p(LanguageModel(other), (BOS,))) > IMPLAUSIBLE
    assert chi_square_p(counts, next_token_p(llama, (BOS,))) < 1e-6
    assert sampler.settings["model"].startswith(other)


def test_a_generator_with_another_vocabulary_is_refused(
    tokenizer: Any, tmp_path: Path, make_request: Callable[..., Any]
) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path / "copy")
    larger = AutoTokenizer.from_pretrained(tmp_path / "copy")
    larger.add_tokens(["w64"])
    other = make_llama(tmp_path / "larger", larger, seed=5, vocab_size=VOCAB + 1)
    with pytest.raises(UsageError, match=r"generator '.*larger' has another vocabulary than"):
        Sampler.from_options(SelfGenerated(generator=other), make_request())


def test_a_missing_generator_is_refused(tmp_path: Path, make_request: Callable[..., Any]) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(UsageError, match=f"'{missing}' cannot be read"):
        Sampler.from_options(SelfGenerated(generator=missing), make_request())


def test_dtype_is_that_of_the_sampled_weights_alone(
    model: LanguageModel, make_request: Callable[..., Any]
) -> None:
    import torch

    request = make_request(language_model=model)
    plain = Sampler.from_options(SelfGenerated(), request)
    half = Sampler.from_options(SelfGenerated(dtype="bfloat16"), request)
    assert plain.model is model
    assert {p.dtype for p in half.model.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.model.parameters()} == {torch.float32}
    # Other weights give other samples, so their shards must not be taken for each other's.
    assert half.settings["model"] != plain.settings["model"]
    assert all(0 <= token < VOCAB for document in half.sample(4, 0) for token in document)


def test_equal_weights_in_another_folder_are_another_model_only_by_name(
    tiny_llama: str, tmp_path: Path, make_request: Callable[..., Any]
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "copy")
    copy = Sampler.from_options(SelfGenerated(generator=str(tmp_path / "copy")), make_request())
    own = Sampler.from_options(SelfGenerated(), make_request())
    assert copy.settings["model"].partition("@")[2] == own.settings["model"].partition("@")[2]
    same = zip(own.sample(8, 0), copy.sample(8, 0), strict=True)
    assert all(np.array_equal(a, b) for a, b in same)
