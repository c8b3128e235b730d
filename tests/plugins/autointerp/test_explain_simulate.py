"""What explainer and simulator are shown, and what is read from their replies."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sae_faithful_plugins.autointerp import explain
from sae_faithful_plugins.autointerp.assistants import (
    ASK_AGAIN,
    MALFORMED,
    REFUSAL,
    UNKNOWN,
    Cloze,
    Question,
    ask,
)
from sae_faithful_plugins.autointerp.fragments import Record
from sae_faithful_plugins.autointerp.scoring import Missing
from sae_faithful_plugins.autointerp.simulate import cloze, expectations, json_question, read_json, simulate


def decode(token: int) -> str:
    return f" w{token}"


def record(*activations: float) -> Record:
    return Record(0, np.arange(5, 5 + len(activations)), np.asarray(activations))


def test_activations_become_whole_numbers_from_0_to_10() -> None:
    # Of the largest in all records, rounded down; negative ones are 0.
    assert explain.numbers([record(0.0, 4.0, 3.99, -8.0), record(0.39, 0.4, 2.0)]) == [
        [0, 10, 9, 0],
        [0, 1, 5],
    ]
    assert explain.numbers([record(-1.0, 0.0)]) == [[0, 0]]


def test_the_explainer_sees_tokens_with_numbers_and_once_more_those_that_are_not_0() -> None:
    asked = (
        explain.question([record(0, 4, 0, 0, 0, 0), record(0, 0, 2, 0, 0, 0)], decode).messages[-1].content
    )
    # 2 of 12 are not 0: fewer than a fifth.
    assert "<start>\n w5\t0\n w6\t10\n w7\t0\n" in asked
    assert "without zeros:\n<start>\n w6\t10\n<end>\n<start>\n w7\t5\n<end>\n" in asked
    assert asked.endswith(explain.OPENING)
    dense = explain.question([record(0, 4, 0, 1)], decode).messages[-1].content
    assert "without zeros" not in dense


def test_the_question_has_three_examples_and_starts_with_what_is_asked() -> None:
    found = explain.question([record(0, 1)], decode)
    assert [one.role for one in found.messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert found.max_tokens == 60


def test_tokens_cannot_break_lines() -> None:
    shown = explain.question([record(1, 0)], lambda token: "a\tb\n\\").messages[-1].content
    assert "<start>\na\\tb\\n\\\\\t10\n" in shown


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (" names of rivers.\nMore.", "names of rivers."),
        ('\n\n"rivers"', "rivers"),
        ("In one sentence, this neuron responds to rivers.", "rivers."),
        ("The same without zeros:\n<start>\n a\t10\n<end>\nNeuron 5\nResponses:\nrivers", "rivers"),
        ("The same without zeros:", None),
        ("", None),
        (" \n...\n", None),
        ("I'm sorry, but I can't help with that.", None),
    ],
)
def test_an_explanation_is_the_first_line_that_says_something(reply: str, expected: str | None) -> None:
    assert explain.read(reply) == expected


class Says:
    """Answers from a list of replies a question, one a try."""

    name = "says"

    def __init__(self, *replies: Sequence[str | Missing], highest: int | None = None) -> None:
        self.replies, self.highest = replies, highest
        self.asked: list[list[Question]] = []

    def answer(self, questions: Sequence[Question]) -> list[str | Missing]:
        self.asked.append(list(questions))
        numbers = [int(one.messages[0].content) for one in questions]
        return [self.replies[n][one.attempt] for n, one in zip(numbers, questions, strict=True)]

    def highest_number(self) -> int | None:
        return self.highest

    def weigh(self, clozes: Sequence[Cloze]) -> list[Any]:
        raise NotImplementedError


def test_only_unreadable_replies_are_asked_for_again_and_at_most_twice() -> None:
    from sae_faithful_plugins.autointerp.assistants import Message

    bad = "x"
    says = Says(["7"], [bad, "8"], [bad, bad, "9"], [bad, bad, bad], ["I cannot say."], [Missing("time-out")])
    questions = [Question((Message("user", str(n)),), 9) for n in range(6)]
    found = ask(says, questions, [lambda reply: int(reply) if reply.isdigit() else None] * 6)
    assert found == [7, 8, 9, Missing(MALFORMED), Missing(REFUSAL), Missing("time-out")]
    assert [[one.messages[0].content for one in batch] for batch in says.asked] == [
        ["0", "1", "2", "3", "4", "5"], ["1", "2", "3"], ["2", "3"],
    ]  # fmt: skip
    assert [batch[0].attempt for batch in says.asked] == list(range(ASK_AGAIN + 1))


def test_a_cloze_asks_for_all_tokens_at_once() -> None:
    found = cloze("rivers", [" the", " Rh\tine"], highest=9)
    assert found.answer == " the\tunknown\n Rh\\tine\tunknown\n"
    assert [found.answer[place:].startswith(UNKNOWN) for place in found.places] == [True, True]
    assert "from 0 (not at all) to 9" in found.messages[0].content
    # No example goes beyond the scale.
    examples = "\n".join(one.content for one in found.messages[1:-1])
    assert "\t9\n" in examples
    assert "\t10" not in examples
    assert "responds to: rivers" in found.messages[-1].content


def test_expected_numbers_by_hand() -> None:
    places = [
        {"0": math.log(0.3), "10": math.log(0.1), "the": math.log(0.6)},
        {" 4": math.log(0.2), "4": math.log(0.1), "unknown": math.log(0.5), "5": math.log(0.1)},
    ]
    found = expectations(places, 10)
    # 1 / .4, and (4 · .3 + 5 · .1) / .4.
    assert not isinstance(found, Missing)
    assert found == pytest.approx([2.5, 4.25])
    # 10 is no number of a scale to 9; neither are 04, -1, ٣, and one of more digits than Python reads.
    others = ("10", "04", "-1", "٣", "1" * 5_000)
    assert expectations([{"0": 0.0, **dict.fromkeys(others, 0.0)}], 9) == pytest.approx([0])
    assert expectations([{"0": 0.0}, {"none": 0.0}], 10) == Missing(MALFORMED)


def test_json_replies() -> None:
    good = [{"token": "a", "number": 3}, {"token": "b", "number": 0.5}]
    for reply in (json.dumps({"responses": good}), f"Here:\n```json\n{json.dumps(good)}\n```", "[3, 0.5]"):
        found = read_json(reply, 2)
        assert found is not None
        assert found.tolist() == [3, 0.5]
    bad = [
        "",
        "none",
        "[3]",
        "[3, 0, 1]",
        "[3, 11]",
        "[3, -1]",
        '[3, "1"]',
        "[3, true]",
        "[3, null]",
        "[3, NaN]",
    ]
    bad += [json.dumps({"responses": good})[:-5], '{"responses": 3}', "3"]
    assert [read_json(reply, 2) for reply in bad] == [None] * len(bad)


def test_json_simulation_asks_once_a_fragment_and_says_which_failed() -> None:
    class Echoes(Says):
        def answer(self, questions: Sequence[Question]) -> list[str | Missing]:
            asked = [json.loads(one.messages[-1].content) for one in questions]
            return [
                Missing("time-out")
                if one["responds to"] == "slow"
                else json.dumps([len(t) for t in one["tokens"]])
                for one in asked
            ]

    first, second = simulate(Echoes(), "json", [("long words", ["a", "abc"]), ("slow", ["a"])])
    assert not isinstance(first, Missing)
    assert first.tolist() == [1, 3]
    assert second == Missing("time-out")
    assert json_question("x", ["a"] * 64).max_tokens > 64 * 12
