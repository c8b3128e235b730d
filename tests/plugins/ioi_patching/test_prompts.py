"""Sentences written here, and pairs read from a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_faithful import UsageError
from sae_faithful_plugins.ioi_patching.prompts import (
    Pair,
    draw_ioi,
    read_pairs,
    single_tokens,
    token_ids,
    tokenize_pairs,
)
from sae_faithful_plugins.ioi_patching.templates import FRAMES, NAMES, PLACES, THINGS

KNOWN = NAMES[:30]
"""Names in the trained tokenizer's text; the others it has to spell."""


class Model:
    """What is asked of a model here."""

    name = "words"
    context_limit = 48

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special_token_ids = [0, 1, 2]


@pytest.fixture(scope="module")
def model() -> Any:
    """A byte-level BPE that was trained on our sentences with some of the names."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = np.random.default_rng(0)
    sentences: list[str] = []
    for _ in range(3_000):
        names = rng.choice(KNOWN, 3, replace=False)
        frame = FRAMES[rng.integers(len(FRAMES))]
        place, thing = rng.choice(PLACES), rng.choice(THINGS)
        sentences.append(
            frame.format(first=names[0], second=names[1], subject=names[2], place=place, thing=thing)
        )
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1_500,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(sentences, trainer)
    return Model(
        PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    )


@pytest.fixture(scope="module")
def drawn(model: Any) -> Any:
    return draw_ioi(model, 80, np.random.default_rng(1))


def test_every_prompt_pair_differs_in_exactly_one_position_and_has_equal_length(drawn: Any) -> None:
    _, tokens = drawn
    assert len(tokens) == 80
    for pair in tokens:
        assert len(pair.base) == len(pair.target)
        assert sum(a != b for a, b in zip(pair.base, pair.target, strict=True)) == 1


def test_the_answer_is_the_name_that_stands_once_and_the_distractor_stands_twice(
    model: Any, drawn: Any
) -> None:
    for pair, tokens in zip(*drawn, strict=True):
        words = pair.base.replace(",", "").replace(".", "").split()
        count = Counter(words)
        assert count[pair.answer.strip()] == 1
        assert count[pair.distractor.strip()] == 2
        assert words[-1] == "to"
        # In the target a third name stands in the answer's place.
        other = set(pair.target.replace(",", "").replace(".", "").split()) - set(words)
        assert len(other) == 1
        assert other < set(NAMES)
        assert model.tokenizer.decode([tokens.answer]) == pair.answer
        assert model.tokenizer.decode([tokens.distractor]) == pair.distractor


def test_names_are_single_tokens_and_others_are_never_drawn(model: Any, drawn: Any) -> None:
    singles = single_tokens(model, NAMES)
    assert set(singles) <= set(KNOWN)
    assert len(singles) > 20
    used = {word for pair in drawn[0] for word in pair.base.replace(",", "").replace(".", "").split()}
    assert not (set(NAMES) - set(singles)) & used


def test_pairs_are_different_seeded_and_as_many_name_the_answer_first(model: Any, drawn: Any) -> None:
    pairs, _ = drawn
    assert len(set(pairs)) == 80
    first = sum(pair.base.index(pair.answer) < pair.base.index(pair.distractor) for pair in pairs)
    assert first == 40
    assert draw_ioi(model, 80, np.random.default_rng(1))[0] == pairs
    assert draw_ioi(model, 80, np.random.default_rng(2))[0] != pairs


def test_frames_are_thirty_sentences_and_no_word_is_twice() -> None:
    assert len(set(FRAMES)) == 15
    for words in (NAMES, PLACES, THINGS):
        assert len(set(words)) == len(words)


def test_a_tokenizer_without_names_is_told_so(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match=r"only 0 names, 0 places, 0 things as single tokens.*FILE\.jsonl"):
        draw_ioi(Model(tokenizer), 4, np.random.default_rng(0))


def test_more_pairs_than_there_are_sentences(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sae_faithful_plugins.ioi_patching.prompts as plugin

    for name, few in (
        ("NAMES", KNOWN[:3]),
        ("PLACES", PLACES[:1]),
        ("THINGS", THINGS[:1]),
        ("FRAMES", FRAMES[:1]),
    ):
        monkeypatch.setattr(plugin, name, few)
    # Three names in any order, two ways round.
    assert len(draw_ioi(model, 12, np.random.default_rng(0))[0]) == 12
    with pytest.raises(UsageError, match="only 12 of 13 sentences"):
        draw_ioi(model, 13, np.random.default_rng(0))


def test_a_special_token_that_a_text_spells_is_text(model: Any) -> None:
    assert not {0, 1, 2} & set(token_ids(model, "a <bos> b"))


GOOD = {"base": "w5 w6", "target": "w5 w7", "answer": " w8", "distractor": " w9"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def go(*lines: Any) -> Path:
        path = tmp_path / "pairs.jsonl"
        path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines) + "\n")
        return path

    return go


def test_a_file_is_read_with_its_line_numbers(write: Callable[..., Path]) -> None:
    path = write(GOOD, "", {"base": "a", "target": "b"})
    assert read_pairs(path) == [(1, Pair(**GOOD)), (3, Pair("a", "b"))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2: not an object"),
        ({"base": "a"}, "line 2: 'target' is not a text"),
        ({"base": "a", "target": 3}, "line 2: 'target' is not a text"),
        ({"base": " ", "target": "b"}, "line 2: 'base' is not a text"),
        ({"base": "a", "target": "a"}, "line 2: base and target are identical"),
        ({**GOOD, "anwser": "x"}, "line 2: unknown field 'anwser'; fields: base, target, answer, distractor"),
        ({"base": "a", "target": "b", "answer": " c"}, "line 2: 'answer' and 'distractor' come together"),
        ({**GOOD, "answer": ""}, "line 2: 'answer' is not a text"),
    ],
)
def test_a_line_that_is_no_pair_is_named(write: Callable[..., Path], line: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_pairs(write(GOOD, line))


def test_no_file_and_too_few_pairs(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="has 1 pairs"):
        read_pairs(write(GOOD))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Pair("w5 w6", "w5 w6 w7"), "line 4: base has 2 tokens and target 3"),
        (Pair("w5  w6", "w5 w6"), "line 4: base and target are the same tokens"),
        (Pair("w5 w6", "w5 w7", " w8 w9", " w9"), "line 4: ' w8 w9' is not one token after base"),
        (Pair("w5 w6", "w5 w7", " w8", " w9 w9"), "line 4: ' w9 w9' is not one token after base"),
        (Pair("w5 " * 48, "w6 " * 48), "line 4: 48 tokens; the model takes 48"),
    ],
)
def test_tokens_that_do_not_correspond_are_refused_with_the_line(
    tokenizer: Any, pair: Pair, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        tokenize_pairs(Model(tokenizer), [(3, Pair(**GOOD)), (4, pair)], Path("pairs.jsonl"))


def test_tokens_of_a_file(tokenizer: Any) -> None:
    (one,) = tokenize_pairs(Model(tokenizer), [(1, Pair(**GOOD))], Path("pairs.jsonl"))
    assert (one.base, one.target, one.answer, one.distractor) == ((5, 6), (5, 7), 8, 9)


def test_a_name_that_the_tokenizer_joins_with_its_neighbour_is_drawn_again() -> None:
    """Words are split at spaces alone: "Mary," is unknown, whoever it is."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<bos>", "Then", *NAMES, *PLACES, *THINGS]
    words += sorted({word for frame in FRAMES for word in frame.split() if "{" not in word} - set(words))
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model = Model(PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<bos>"))
    pairs, tokens = draw_ioi(model, 200, np.random.default_rng(0))
    assert len(pairs) == 200
    for pair in tokens:
        assert sum(a != b for a, b in zip(pair.base, pair.target, strict=True)) == 1
