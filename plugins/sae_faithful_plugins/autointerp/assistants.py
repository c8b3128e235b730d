"""What is asked of a language model that explains or simulates, whoever runs it, and what it may answer."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar

from sae_faithful_plugins.autointerp.scoring import Missing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

REFUSAL = "refusal"
MALFORMED = "malformed reply"
TIME_OUT = "time-out"
SERVER_ERROR = "server error"
REJECTED = "request rejected"
TOO_LONG = "prompt longer than the model's context"
ASK_AGAIN = 2
"""A reply that cannot be read is asked for so many times more, at temperature 1: at 0 it would be the same."""
UNKNOWN = "unknown"
"""What stands in a cloze where a number is to be predicted."""

_REFUSES = re.compile(
    r"^\W*(i['’]m sorry|i am sorry|sorry,|i can(?:not|['’]t)|i['’]m (?:not able|unable)|i am (?:not able|unable)"
    r"|i won['’]t|as an ai\b)",
    re.IGNORECASE,
)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Question:
    """A conversation that ends with the user, to be answered."""

    messages: tuple[Message, ...]
    max_tokens: int
    attempt: int = 0
    """How often it was asked before: the first time at temperature 0."""

    @property
    def n_characters(self) -> int:
        """Of all messages."""
        return sum(len(message.content) for message in self.messages)


@dataclass(frozen=True)
class Cloze:
    """A conversation with the beginning of its answer, which holds `UNKNOWN` where numbers are to be predicted."""

    messages: tuple[Message, ...]
    answer: str
    places: tuple[int, ...]
    """Where in `answer` each `UNKNOWN` begins."""

    @property
    def n_characters(self) -> int:
        """Of all messages and the answer."""
        return sum(len(message.content) for message in self.messages) + len(self.answer)


Weights = list[dict[str, float]]
"""For every place of a cloze, the log-probability of each likely token there."""


class Assistant(Protocol):
    """A language model that answers. A failure is a `Missing` in its place; only what ends all is raised."""

    name: str

    def answer(self, questions: Sequence[Question]) -> list[str | Missing]:
        """One reply for each question, in order."""
        ...

    def highest_number(self) -> int | None:
        """The highest number that is one token in a cloze: 10 or 9; None if it gives no log-probabilities."""
        ...

    def weigh(self, clozes: Sequence[Cloze]) -> list[Weights | Missing]:
        """Log-probabilities at the places of each cloze, in order."""
        ...


def ask(
    assistant: Assistant, questions: Sequence[Question], read: Sequence[Callable[[str], T | None]]
) -> list[T | Missing]:
    """Answers that could be read; those that could not are asked for again.

    Args:
        assistant: who is asked.
        questions: what.
        read: for each question, what makes something of its reply, or None of one that is malformed.
    """
    found: list[T | Missing] = [Missing(MALFORMED)] * len(questions)
    open_ = list(range(len(questions)))
    for attempt in range(ASK_AGAIN + 1):
        replies = assistant.answer([replace(questions[i], attempt=attempt) for i in open_])
        again: list[int] = []
        for i, reply in zip(open_, replies, strict=True):
            if isinstance(reply, Missing):
                found[i] = reply
                continue
            value = read[i](reply)
            if value is not None:
                found[i] = value
            elif refuses(reply):
                found[i] = Missing(REFUSAL)
            else:
                again.append(i)
        open_ = again
    return found


def refuses(reply: str) -> bool:
    """Whether a reply begins as refusals do."""
    return _REFUSES.match(reply) is not None
