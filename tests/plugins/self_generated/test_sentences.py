"""Sentences in another order: the same ids, from the same shards, and no longer the model's own text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sae_faithful import LanguageModel, RunError, UsageError
from sae_faithful.data import claims_to_be_own
from sae_faithful_plugins.self_generated import SelfGenerated
from sae_faithful_plugins.self_generated.engines.transformers import TransformersSampler as Sampler
from sae_faithful_plugins.self_generated.sentences import SentenceShuffler

BOS, EOS = 0, 1
WORDS = ["<bos>", "<eos>", "<pad>", ".", "?", '"', ' "', "\n", " One", " two", " Three", " four", "Five", ")", '."',
         ".5", "3", " e", "\n\n", "!"]  # fmt: skip
ID = {word: i for i, word in enumerate(WORDS)}


@pytest.fixture(scope="session")
def spaced_llama(tmp_path_factory: pytest.TempPathFactory, tiny_llama: str) -> str:
    """The tiny Llama with a tokenizer whose tokens carry their spaces, as a byte-level one's do."""
    import shutil

    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("spaced_llama")
    shutil.copytree(tiny_llama, folder, dirs_exist_ok=True)
    vocabulary = ID | {f" w{i}": i for i in range(len(WORDS), 60)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    raw.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


@pytest.fixture
def make_shuffler(spaced_llama: str) -> Callable[..., SentenceShuffler]:
    def make(seed: int = 7, prompt_ids: tuple[int, ...] = (BOS,)) -> SentenceShuffler:
        return SentenceShuffler(Sampler(LanguageModel(spaced_llama), prompt_ids, 20, 1.0, 1.0), seed)

    return make


def ids(*words: str) -> np.ndarray:
    return np.array([ID[word] for word in words], np.int32)


def one(shuffler: SentenceShuffler, *words: str) -> list[str]:
    (document,) = shuffler.shuffled([ids(*words)])
    return [WORDS[i] for i in document]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([" One", " two", "."], [" Three", " four", "?"]),
        # A quote that closes belongs to the sentence, one that opens to the next.
        ([" One", " two", ".", '"'], [" Three", "."]),
        ([" One", " two", "?", '"', ")"], [" Three", "."]),
        ([" One", " two", '."'], [' "', "Five", "!"]),
        # A line ends one with or without a mark, and empty lines go with it.
        ([" One", " two", "\n"], ["Five", "."]),
        ([" One", ".", "\n\n", "\n"], ["Five", "."]),
    ],
)
def test_two_sentences_change_places(
    make_shuffler: Callable[..., SentenceShuffler], first: list[str], second: list[str]
) -> None:
    assert one(make_shuffler(), *first, *second) == [*second, *first]


@pytest.mark.parametrize(
    "words",
    [
        [" One", " two", " Three", "."],
        # No space behind the point: a number, or a word that goes on.
        ["3", ".5", " e"],
        [" One", ".", "Five"],
        # A space before the quote: it opens nothing that has ended.
        [" One", ' "', "Five", " two"],
    ],
)
def test_one_sentence_stays_as_it_is(
    make_shuffler: Callable[..., SentenceShuffler], words: list[str]
) -> None:
    shuffler = make_shuffler()
    assert one(shuffler, *words) == words
    assert (shuffler.documents, shuffler.sentences, shuffler.changed) == (1, 1, 0)


def test_prompt_and_stop_token_stay_in_their_places(make_shuffler: Callable[..., SentenceShuffler]) -> None:
    shuffler = make_shuffler(prompt_ids=(BOS, ID[" four"], ID["."]))
    words = [" four", ".", " One", ".", " two", ".", "<eos>"]
    assert one(shuffler, *words) == [" four", ".", " two", ".", " One", ".", "<eos>"]


def test_what_is_shorter_than_a_prompt_and_a_sentence_passes(
    make_shuffler: Callable[..., SentenceShuffler],
) -> None:
    for words in ([], ["<eos>"], [" One"], ["."]):
        assert one(make_shuffler(), *words) == words


def test_every_order_but_the_first_comes_and_a_seed_gives_the_same_ones(
    make_shuffler: Callable[..., SentenceShuffler],
) -> None:
    document = ids(" One", ".", " two", ".", " Three", ".")
    orders = [tuple(d.tolist()) for d in make_shuffler().shuffled([document] * 60)]
    # 3! less the one it came in.
    assert len(set(orders)) == 5
    assert tuple(document.tolist()) not in orders
    assert [tuple(d.tolist()) for d in make_shuffler().shuffled([document] * 60)] == orders
    assert [tuple(d.tolist()) for d in make_shuffler(seed=8).shuffled([document] * 60)] != orders


def test_the_card_says_how_much_was_changed(make_shuffler: Callable[..., SentenceShuffler]) -> None:
    shuffler = make_shuffler()
    documents = [
        ids(" One", ".", " two", ".", " Three"),
        ids(" One", " two"),
        ids(" four", "."),
        ids("3", "!"),
    ]
    list(shuffler.shuffled(documents))
    # 3 + 1 + 1 + 1 sentences of four documents, one changed.
    assert shuffler.card == {"documents_changed": 0.25, "sentences_per_document": 1.5}


def test_a_tokenizer_without_ends_of_sentences_is_refused(tiny_llama: str) -> None:
    with pytest.raises(UsageError, match=r"no token of .* ends a sentence"):
        SentenceShuffler(Sampler(LanguageModel(tiny_llama), (BOS,), 20, 1.0, 1.0), 7)


def test_samples_of_single_sentences_are_refused(make_shuffler: Callable[..., SentenceShuffler]) -> None:
    shuffler = make_shuffler()
    list(shuffler.shuffled([ids(" One", " two", "."), ids(" two")]))
    with pytest.raises(RunError, match=r"none of 2 samples of .* has two sentences"):
        _ = shuffler.card


def test_samples_of_one_token_have_no_sentences() -> None:
    with pytest.raises(ValueError, match="max_new_tokens 1"):
        SelfGenerated(shuffle_sentences=True, max_new_tokens=1)


def test_the_source_shuffles_the_shards_of_the_one_that_does_not(
    spaced_llama: str, make_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(language_model=LanguageModel(spaced_llama), n_tokens=800)
    own = SelfGenerated(batch_size=64).load(request)

    def refuse(self: Sampler, n: int, seed: int) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(Sampler, "sample", refuse)
    shuffled = SelfGenerated(batch_size=64, shuffle_sentences=True).load(request)
    pairs = list(zip(own.documents(BOS)[:-1], shuffled.documents(BOS)[:-1], strict=True))
    assert all(sorted(a.tolist()) == sorted(b.tolist()) for a, b in pairs)
    changed = sum(a.tolist() != b.tolist() for a, b in pairs)
    assert changed > 10
    assert shuffled.card["shuffled_sentences"]["documents_changed"] == pytest.approx(
        changed / len(pairs), abs=0.05
    )
    assert own.card["own_text"]
    assert not shuffled.card["own_text"]
    assert claims_to_be_own(own.card)
    assert not claims_to_be_own(shuffled.card)
