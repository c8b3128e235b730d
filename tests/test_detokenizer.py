from __future__ import annotations

import numpy as np

from sae_faithful import Detokenizer, marked


class SentencePiece:
    """Says "word" for every token; 5 has a space in front inside a text."""

    def decode(self, ids: list[int]) -> str:
        return " ".join("word" for _ in ids)

    def convert_ids_to_tokens(self, token: int) -> str:
        return "\u2581word" if token == 5 else "word"


def test_tokens_keep_the_space_that_sentencepiece_drops() -> None:
    detokenizer = Detokenizer(SentencePiece())
    assert [detokenizer.token(token) for token in (5, 6, 5)] == [" word", "word", " word"]
    assert detokenizer.text([5, 6]) == "word word"


def test_without_a_tokenizer_there_are_ids() -> None:
    detokenizer = Detokenizer(None)
    assert (detokenizer.token(7), detokenizer.text(np.array([7, 8]))) == (" 7", "7 8")


def test_a_place_has_ten_tokens_on_either_side_or_as_many_as_there_are() -> None:
    place = Detokenizer(None).around(np.arange(100), 50)
    assert place["before"].split() == [str(i) for i in range(40, 50)]
    assert (place["token"], place["after"].split()) == (" 50", [str(i) for i in range(51, 61)])
    assert Detokenizer(None).around([3, 4], 0) == {"before": "", "token": " 3", "after": "4"}


def test_a_place_is_one_line_of_code() -> None:
    assert marked({"before": "a\n`b", "token": " c", "after": " d"}) == "a 'b« c» d"
