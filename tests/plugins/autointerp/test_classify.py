"""Detection and fuzzing: what is shown, that nothing was seen before, and how answers are scored."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sae_faithful_plugins.autointerp.assistants import Question
from sae_faithful_plugins.autointerp.classify import (
    AT_ONCE,
    EXAMPLES,
    MARKS,
    Sheet,
    agreement,
    classify,
    read,
    sheet,
)
from sae_faithful_plugins.autointerp.fragments import FeatureRecords, Record
from sae_faithful_plugins.autointerp.scoring import FEW_INACTIVE, FEW_RANDOM, Missing
from sae_faithful_plugins.autointerp.splits import Split


def feature(n_random: int = 20, n_inactive: int = 10, size: int = 12) -> Split:
    """Active on w7, which is the third and eighth token: 4 there in top fragments, 1 and .5 in random ones."""

    def record(row: int, strong: float, weak: float) -> Record:
        ids, activations = np.full(size, 50), np.zeros(size)
        if strong:
            ids[[2, 7]] = 7
            activations[[2, 7]] = strong, weak
        # Which fragment it is stands in its first token.
        ids[0] = 100 + row
        return Record(row, ids, activations)

    made = Split.of(
        FeatureRecords(
            0, 40,
            [record(row, 4.0, 4.0) for row in range(20)],
            [record(100 + row, 1.0, 0.5) for row in range(n_random)],
            [record(200 + row, 0.0, 0.0) for row in range(n_inactive)],
        )
    )  # fmt: skip
    assert made is not None
    return made


def decode(token: int) -> str:
    return f" w{token}"


def shown(one: Sheet) -> list[int]:
    """Which fragments are on a sheet."""
    return [int(re.search(r"w(\d{3})", text)[1]) - 100 for text in one.texts]  # type: ignore[index]


@pytest.mark.parametrize("kind", ["detection", "fuzzing"])
def test_windows_shown_to_the_explainer_are_never_tested(kind: Any) -> None:
    split = feature()
    one = sheet(split, kind, decode, seed=1)
    assert isinstance(one, Sheet)
    rows = shown(one)
    assert len(set(rows)) == 20
    assert not set(rows) & {record.row for record in split.train}
    assert [row < 200 for row in rows] == [bool(truth) for truth in one.truth]
    assert sum(one.truth) == 10
    # In an order that says nothing, and the same again.
    assert one.truth != sorted(one.truth, reverse=True)
    assert one == sheet(split, kind, decode, seed=1)


def test_fuzzing_marks_strong_tokens_and_as_many_random_ones() -> None:
    one = sheet(feature(), "fuzzing", decode, seed=1)
    assert isinstance(one, Sheet)
    for row, text in zip(shown(one), one.texts, strict=True):
        marked = re.findall(r"<<(.*?)>>", text)
        n_marked = sum(len(run.split()) for run in marked)
        if row < 100:
            # Both are at .3 · 4 or above.
            assert marked == [" w7", " w7"]
        elif row < 200:
            # Neither is: only the strongest.
            assert marked == [" w7"]
        else:
            # (5 · 2 + 5 · 1) / 10 = 1.5, rounded up.
            assert n_marked == 2
            assert "w7" not in text


def test_runs_of_marked_tokens_have_one_pair_of_marks() -> None:
    split = feature()
    for record in split.valid_top:
        record.activations[3] = 4.0
    one = sheet(split, "fuzzing", decode, seed=1)
    assert isinstance(one, Sheet)
    assert any("<< w7 w50>> w50" in text for text in one.texts)


def test_detection_marks_nothing() -> None:
    one = sheet(feature(), "detection", decode, seed=1)
    assert isinstance(one, Sheet)
    assert not any("<<" in text for text in one.texts)


def test_too_few_fragments_are_no_score() -> None:
    assert sheet(feature(n_random=5), "detection", decode, 1) == Missing(FEW_RANDOM)
    assert sheet(feature(n_inactive=9), "detection", decode, 1) == Missing(FEW_INACTIVE)


def test_balanced_accuracy_and_f1_by_hand() -> None:
    # 3 of 4 true ones found, 1 of 2 false ones left alone.
    assert agreement([1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 0]) == {
        "balanced_accuracy": pytest.approx((3 / 4 + 1 / 2) / 2),
        "f1": pytest.approx(2 * 3 / (4 + 4)),
    }
    assert agreement([0, 0], [1, 0]) == {"balanced_accuracy": 0.5, "f1": 0.0}


@pytest.mark.parametrize(
    "reply", ["", "[1, 0]", "[1, 0, 2]", "[1, 0, true]", '[1, 0, "1"]', '{"a": [1, 0, 1]}']
)
def test_anything_but_as_many_zeros_and_ones_is_unreadable(reply: str) -> None:
    assert read(reply, 3) is None
    assert read("Sure: [1, 0, 1].", 3) == [1, 0, 1]


@pytest.mark.parametrize("kind", ["detection", "fuzzing"])
def test_the_example_has_a_readable_answer_of_the_length_of_a_question(kind: str) -> None:
    texts, reply = EXAMPLES[kind]
    answers = read(reply, AT_ONCE)
    assert answers is not None
    assert len(texts) == AT_ONCE
    assert 0 < sum(answers) < AT_ONCE
    assert all((mark in text) == (kind == "fuzzing") for text in texts for mark in MARKS)


class Reader:
    """Says yes to texts with a word."""

    name = "reader"

    def __init__(self, word: str) -> None:
        self.word = word

    def answer(self, questions: Sequence[Question]) -> list[str | Missing]:
        texts = [one.messages[-1].content.splitlines()[1:] for one in questions]
        assert all(len(page) <= 5 for page in texts)
        if self.word == "silent":
            return [Missing("time-out") if i == 1 else "[1, 1, 1, 1, 1]" for i in range(len(texts))]
        return [json.dumps([int(self.word in text) for text in page]) for page in texts]


@pytest.mark.parametrize(
    ("word", "kind", "accuracy"),
    [
        ("w7", "detection", 1.0),
        ("<< w7>>", "fuzzing", 1.0),
        ("w9999", "detection", 0.5),
        ("w", "detection", 0.5),
    ],
)
def test_a_reader_who_knows_the_feature_is_right_and_others_are_at_one_half(
    word: str, kind: Any, accuracy: float
) -> None:
    one = sheet(feature(), kind, decode, seed=1)
    assert isinstance(one, Sheet)
    (found,) = classify(Reader(word), kind, [("w7", one)])  # type: ignore[arg-type]
    assert found["balanced_accuracy"] == accuracy


def test_one_missing_page_leaves_the_feature_without_a_score() -> None:
    one = sheet(feature(), "detection", decode, seed=1)
    assert isinstance(one, Sheet)
    found = classify(Reader("silent"), "detection", [("w7", one)])  # type: ignore[arg-type]
    assert found == [{"balanced_accuracy": Missing("time-out"), "f1": Missing("time-out")}]
