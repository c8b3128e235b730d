from __future__ import annotations

import dataclasses
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from sae_faithful.source_request import SourceRequest
from sae_faithful.tokens import NO_DOCUMENT

if TYPE_CHECKING:
    from collections.abc import Iterator

BOS, EOS = 0, 99


class RecordingTokenizer:
    """Gives the lengths of a text's words as ids, and as a tokenizer does unless told otherwise, BOS before
    them and special ids for words that spell special tokens. It notes its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(
        self,
        texts: list[str],
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        **others: Any,
    ) -> dict[str, list[list[int]]]:
        self.batches.append(len(texts))
        start = [BOS] if add_special_tokens else []
        return {"input_ids": [start + [self._id(w, split_special_tokens) for w in t.split()] for t in texts]}

    def _id(self, word: str, split_special_tokens: bool) -> int:
        return EOS if word == "<eos>" and not split_special_tokens else len(word)


@pytest.fixture
def words() -> RecordingTokenizer:
    return RecordingTokenizer()


def request(
    words: Any, *, n_tokens: int = 8, context_size: int = 4, prepend_bos: bool = True
) -> SourceRequest:
    model: Any = SimpleNamespace(tokenizer=words, bos_token_id=BOS)
    return SourceRequest(
        name="news", n_tokens=n_tokens, context_size=context_size, prepend_bos=prepend_bos, seed=0,
        cache_dir=Path("unused"), language_model=model,
    )  # fmt: skip


def test_tokenize_gives_the_ids_of_each_text_in_order(words: RecordingTokenizer) -> None:
    assert list(request(words).tokenize(["one three", "", "a bb ccc"])) == [[3, 5], [], [1, 2, 3]]


def test_tokenize_asks_for_64_texts_at_once_and_loses_none(words: RecordingTokenizer) -> None:
    texts = ["x" * number for number in range(1, 131)]
    assert list(request(words).tokenize(texts)) == [[number] for number in range(1, 131)]
    # 130 = 64 + 64 + 2.
    assert words.batches == [64, 64, 2]


def test_tokenize_reads_no_further_than_the_batch_it_needs(words: RecordingTokenizer) -> None:
    read: list[int] = []

    def endless() -> Iterator[str]:
        for number in count():
            read.append(number)
            yield "text"

    assert next(request(words).tokenize(endless())) == [4]
    assert len(read) == 64


def test_tokenize_adds_no_special_tokens(words: RecordingTokenizer) -> None:
    # BOS is left to packing.
    assert words(["one"])["input_ids"] == [[BOS, 3]]
    assert list(request(words).tokenize(["one"])) == [[3]]


def test_text_that_spells_a_special_token_is_text(words: RecordingTokenizer) -> None:
    assert words(["a <eos>"])["input_ids"] == [[BOS, 1, EOS]]
    assert list(request(words).tokenize(["a <eos>"])) == [[1, 5]]


def test_pack_gives_the_tokens_asked_for_and_no_more(words: RecordingTokenizer) -> None:
    tokens = request(words, n_tokens=8).pack([[5, 6], [7], [8, 9, 10], [11, 12, 13, 14]])
    # 0 5 6 0 | (0) 7 0 8 | ...: the third row is not needed; (0) stands for nobody's BOS.
    assert tokens.rows().tolist() == [[0, 5, 6, 0], [0, 7, 0, 8]]
    assert tokens.arrays()[1].tolist() == [[0, 0, 0, 1], [NO_DOCUMENT, 1, 2, 2]]


def test_pack_stops_reading_documents_when_it_has_enough(words: RecordingTokenizer) -> None:
    read: list[int] = []

    def endless() -> Iterator[list[int]]:
        for number in count(5):
            read.append(number)
            yield [number, number, number]

    assert len(request(words, n_tokens=12).pack(endless())) == 3
    assert read == [5, 6, 7]


def test_pack_rounds_the_tokens_down_to_whole_rows(words: RecordingTokenizer) -> None:
    assert request(words, n_tokens=11).pack([[number] * 3 for number in range(5, 15)]).n_tokens == 8


def test_pack_follows_prepend_bos(words: RecordingTokenizer) -> None:
    tokens = request(words, prepend_bos=False).pack([[5, 6], [7], [8, 9, 10]])
    # 0 5 6 0 | 7 0 8 9: no BOS where a row starts inside a document.
    assert tokens.rows().tolist() == [[0, 5, 6, 0], [7, 0, 8, 9]]


def test_pack_keeps_the_card_and_the_prompt_length(words: RecordingTokenizer) -> None:
    tokens = request(words).pack([[5, 6, 7], [5, 6, 7], [8, 9, 10]], card={"path": "x"}, prompt_length=2)
    assert tokens.prompt_length == 2
    assert tokens.card == {"path": "x", "documents": 2, "repeated_documents_dropped": 1, "repeats": [[0, 1]]}


def test_a_source_may_pack_twice_into_the_same_scratch_folder(
    words: RecordingTokenizer, tmp_path: Path
) -> None:
    asked = dataclasses.replace(request(words), scratch=tmp_path)
    first = asked.pack([[5, 6, 7], [8, 9, 10]])
    second = asked.pack([[11, 12, 13], [14, 15, 16]])
    assert first.rows().tolist() == [[0, 5, 6, 7], [0, 8, 9, 10]]
    assert second.rows().tolist() == [[0, 11, 12, 13], [0, 14, 15, 16]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows-0.arrow", "rows-1.arrow"]


def test_pack_of_nothing_is_empty(words: RecordingTokenizer) -> None:
    assert len(request(words).pack([])) == 0
