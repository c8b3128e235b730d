"""The source: ids kept end to end, repeats dropped, and proof that the text is the model's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_faithful import LanguageModel, TokenSet, UsageError, load_plugins
from sae_faithful.data import measure_typicality
from sae_faithful_plugins.self_generated import SelfGenerated
from sae_faithful_plugins.self_generated import shards as shards_module
from sae_faithful_plugins.self_generated.engines.transformers import TransformersSampler as Sampler
from sae_faithful_plugins.self_generated.shards import ShardCache

VOCAB, BOS, EOS = 64, 0, 1


def load(request: Any, **options: Any) -> TokenSet:
    return SelfGenerated(**{"batch_size": 16, **options}).load(request)


def with_bos(documents: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.concatenate([[BOS], document]).astype(np.int32) for document in documents]


def drawn_shards(request: Any, **options: Any) -> ShardCache:
    """The shards that a request's tokens came from."""
    source = SelfGenerated(**{"batch_size": 16, **options})
    return ShardCache(Sampler.from_options(source, request), 16, request.seed, request.cache_dir)


# Tokens


def test_rows_are_as_long_as_asked_and_their_number_is_what_fits(make_request: Callable[..., Any]) -> None:
    tokens = load(make_request(n_tokens=810, context_size=16))
    # 810 = 50 · 16 + 10.
    assert (len(tokens), tokens.context_size) == (50, 16)
    assert (tokens.rows()[:, 0] == BOS).all()


def test_flaw_no_text_stands_between_the_sampler_and_the_rows(
    tiny_llama: str, make_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference flaw: generated ids are decoded to text and tokenised again."""
    model = LanguageModel(tiny_llama, hooks=("model.layers.0",))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("ids became text, or text ids")

    for name in ("decode", "batch_decode", "encode", "__call__", "convert_ids_to_tokens", "_decode"):
        monkeypatch.setattr(type(model.tokenizer), name, refuse)
    request = make_request(language_model=model)
    tokens = load(request)
    # Put together again, the rows give the sampler's documents, id for id.
    sampled = with_bos([d for i in range(8) for d in drawn_shards(request).shard(i)])
    found = tokens.documents(BOS)
    distinct = list({document.tobytes(): document for document in sampled}.values())
    assert len(found) > 40
    for ours, theirs in zip(found[:-1], distinct, strict=False):
        assert ours.tolist() == theirs.tolist()
    # The last may be cut where the request was filled.
    last = distinct[len(found) - 1]
    assert found[-1].tolist() == last[: len(found[-1])].tolist()


def test_flaw_no_row_is_stored_twice(make_request: Callable[..., Any]) -> None:
    """Reference flaw: a buffer that is never cleared pushes rows again and again."""
    request = make_request(n_tokens=1_600)
    tokens = load(request)
    assert len(tokens) == 100
    assert len({row.tobytes() for row in tokens.rows()}) == 100
    documents = tokens.documents(BOS)
    assert len({document.tobytes() for document in documents}) == len(documents)
    assert tokens.card["documents"] == len(documents)


def test_repeated_documents_are_dropped_and_counted(make_request: Callable[..., Any]) -> None:
    # One token drawn a document: only 64 different ones exist, so 40 rows of 2 need many draws.
    request = make_request(n_tokens=80, context_size=2)
    tokens = load(request, max_new_tokens=1)
    documents = tokens.documents(BOS)
    assert len(documents) == len({document.tobytes() for document in documents}) == 40
    # The stream up to the 40th different document, counted by hand.
    seen: set[bytes] = set()
    read = 0
    for document in drawn_shards(request, max_new_tokens=1).documents(80):
        read += 1
        seen.add(document.tobytes())
        if len(seen) == 40:
            break
    assert read > 40
    assert tokens.card["documents"] == 40
    assert tokens.card["repeated_documents_dropped"] == read - 40


def test_a_model_that_has_fewer_documents_than_asked_gives_what_there_is(
    make_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "MOST_REPEATS", 32)
    tokens = load(make_request(n_tokens=1_000, context_size=2), temperature=1e-4, max_new_tokens=1)
    assert (len(tokens), tokens.card["documents"]) == (1, 1)


def test_where_eos_is_bos_one_token_separates_documents(
    tiny_llama: str, make_request: Callable[..., Any]
) -> None:
    model = LanguageModel(tiny_llama, hooks=("model.layers.0",))
    model.tokenizer.bos_token = None
    assert model.bos_token_id == EOS
    request = make_request(language_model=model)
    tokens = load(request, max_new_tokens=10)
    documents = [
        document for i in range(10) for document in drawn_shards(request, max_new_tokens=10).shard(i)
    ]
    distinct = list({document.tobytes(): document for document in documents}.values())
    # BOS (= EOS) first; then after a document that ended with EOS nothing is put in, after another one BOS is.
    stream = [EOS]
    for document in distinct:
        stream += document.tolist()
        stream += [] if document[-1] == EOS else [EOS]
    assert any(document[-1] == EOS for document in distinct[:20])
    rows = [row[owners >= 0] for row, owners in zip(*tokens.arrays(), strict=True)]
    flat = np.concatenate(rows).tolist()
    assert flat == stream[: len(flat)]


def test_the_card_says_how_the_text_was_made(make_request: Callable[..., Any], llama: Any) -> None:
    tokens = load(make_request(), temperature=0.9, prompt=[5, 6])
    card = tokens.card
    assert (card["temperature"], card["top_p"], card["prompt_ids"]) == (0.9, 1.0, [BOS, 5, 6])
    assert (card["batch_size"], card["resolved_options"]) == (16, {"batch_size": 16})
    # A row of 16 takes the three given tokens and 13 more.
    assert card["max_new_tokens"] == 13
    assert card["model"] == llama.identity
    assert card["documents"] >= 50
    assert {"torch", "transformers"} <= set(card["versions"])
    assert tokens.prompt_length == 3


def test_the_card_records_the_batch_size_that_auto_picked(
    make_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "_measure", lambda sizes, sampler: {16: 1.0, 32: 9.0})
    tokens = load(make_request(), batch_size="auto")
    assert tokens.card["resolved_options"] == {"batch_size": 32}
    assert tokens.card["batch_size"] == 32


# The same data again


def saved(tokens: TokenSet, path: Path) -> bytes:
    tokens.save(path)
    return path.read_bytes()


def test_the_same_request_gives_the_same_bytes_in_a_fresh_cache(
    make_request: Callable[..., Any], tmp_path: Path
) -> None:
    first, again = (load(make_request(cache_dir=tmp_path / name)) for name in ("a", "b"))
    assert saved(first, tmp_path / "1") == saved(again, tmp_path / "2")
    other = load(make_request(seed=8))
    assert saved(other, tmp_path / "3") != saved(first, tmp_path / "1")


def test_interrupted_generation_ends_with_the_same_bytes(
    make_request: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = load(make_request(cache_dir=tmp_path / "a"))
    sample = Sampler.sample
    left = 2

    def interrupt(self: Sampler, n: int, seed: int) -> list[np.ndarray]:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return sample(self, n, seed)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "sample", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(make_request(cache_dir=tmp_path / "b"))
    resumed = load(make_request(cache_dir=tmp_path / "b"))
    assert saved(resumed, tmp_path / "1") == saved(undisturbed, tmp_path / "2")


def test_more_tokens_extend_the_same_shards(make_request: Callable[..., Any]) -> None:
    few = load(make_request(n_tokens=400))
    folder = drawn_shards(make_request()).folder
    before = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    many = load(make_request(n_tokens=1_600))
    after = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    assert len(after) > len(before)
    assert {name: after[name] for name in before} == before
    assert (many.rows()[: len(few)] == few.rows()).all()


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature 0.0 is not above 0"),
        ({"top_p": 0}, r"top_p 0.0 is not in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p 1.1 is not in \(0, 1\]"),
        ({"n_tokens": 0}, "n_tokens 0 is not positive"),
        ({"max_new_tokens": -1}, "max_new_tokens -1 is not positive"),
        ({"batch_size": 0}, "batch_size 0 is not positive"),
        ({"batch_size": "fast"}, "batch_size.*'fast'"),
        ({"dtype": "float8"}, "dtype.*'float8'.*'float32', 'bfloat16' or 'float16'"),
        ({"top_k": 5}, "unknown option 'top_k'.*top_p"),
    ],
)
def test_bad_options_are_refused_by_name_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_plugins().create("source", "self_generated", options)


def test_a_hooked_transformer_writes_its_own_data_too(
    tiny_hooked: Any, make_request: Callable[..., Any]
) -> None:
    model = LanguageModel("tiny", class_name="HookedTransformer", given=tiny_hooked)
    tokens = load(make_request(language_model=model))
    gap = measure_typicality(tokens.documents(BOS), 1, model, 700, seed=0)
    assert len(tokens) == 50
    assert abs(gap.z) < 3


# Proof


def typicality_z(documents: Sequence[np.ndarray], model: Any, prompt_length: int = 1) -> float:
    return measure_typicality(documents, prompt_length, model, 2_000, seed=0).z


def test_the_z_of_own_samples_is_standard_normal(llama: Any) -> None:
    """A hundred data sets: mean 0 with standard error 1/√100 = 0.1, SD 1 with standard error 1/√198 = 0.071."""
    sampler = Sampler(llama, (BOS,), 15, 1.0, 1.0)
    z = [typicality_z(with_bos(sampler.sample(64, seed)), llama) for seed in range(100)]
    assert abs(np.mean(z)) < 3 * 0.1
    assert abs(np.std(z, ddof=1) - 1) < 3 * 0.071


def test_too_hot_samples_are_too_surprising(llama: Any) -> None:
    sampler = Sampler(llama, (BOS,), 15, 1.5, 1.0)
    assert typicality_z(with_bos(sampler.sample(128, 0)), llama) > 5


def test_truncated_samples_are_too_predictable(llama: Any) -> None:
    sampler = Sampler(llama, (BOS,), 15, 1.0, 0.6)
    assert typicality_z(with_bos(sampler.sample(128, 0)), llama) < -5


def test_uniform_random_tokens_are_far_from_typical(llama: Any) -> None:
    tokens = np.random.default_rng(0).integers(3, VOCAB, size=(128, 15))
    assert typicality_z(with_bos(list(tokens)), llama) > 10


def test_given_tokens_are_not_scored_for_typicality(llama: Any, make_request: Callable[..., Any]) -> None:
    # Eight tokens that the model did not choose, drawn tokens behind them.
    prompt = [int(token) for token in np.random.default_rng(1).integers(3, VOCAB, size=8)]
    tokens = load(make_request(n_tokens=3_200), prompt=prompt)
    documents = tokens.documents(BOS)
    assert tokens.prompt_length == 9
    # Each document's drawn part is at most 7 tokens long.
    whole = measure_typicality(documents, tokens.prompt_length, llama, 100_000, seed=0)
    assert abs(whole.z) < 3
    assert whole.n_tokens == sum(max(0, len(document) - 9) for document in documents)


def test_text_of_another_model_is_not_typical_and_its_own_is(
    llama: Any, tokenizer: Any, tmp_path: Path, make_request: Callable[..., Any]
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=BOS,
        eos_token_id=EOS, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    other = str(tmp_path / "other")
    documents = load(make_request(n_tokens=1_600), generator=other).documents(BOS)
    assert typicality_z(documents, llama) > 5
    assert abs(typicality_z(documents, LanguageModel(other))) < 3
