"""Explanations of features, after Bills et al. (2023): their structure, our words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_faithful_plugins.autointerp.assistants import Message, Question, refuses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sae_faithful_plugins.autointerp.fragments import Record

HIGHEST = 10
MAX_TOKENS = 60
SPARSE = 0.2
"""Where fewer of the tokens than this are not 0, they are shown once more without the zeros."""

SYSTEM = (
    "A neuron inside a language model responds to one thing in a text. You get short texts in which it responds, "
    "one token a line, then a tab, then the strength of its response: a whole number from 0 (none) to 10 "
    "(strongest). Say what the neuron responds to. Answer with one short sentence. Name what the strong tokens "
    "or their surroundings have in common; give no list of words."
)
RESPONSES, WITHOUT_ZEROS = "Responses:", "The same without zeros:"
START, END = "<start>", "<end>"
OPENING = "In one sentence, this neuron responds to"

EXAMPLES: tuple[tuple[tuple[tuple[tuple[str, int], ...], ...], str], ...] = (
    (
        (
            (("We", 0), (" sailed", 2), (" the", 0), (" sea", 10), (" at", 0), (" dawn", 0)),
            (("Waves", 9), (" broke", 1), (" on", 0), (" the", 0), (" harbour", 7), (" wall", 0)),
        ),
        "the sea, and places at its shore.",
    ),
    (
        (
            (("def", 0), (" area", 0), ("(", 10), ("r", 1), ("):", 0), (" return", 0), (" 3", 0)),
            (("print", 0), ("(", 9), ("x", 0), (")", 0), (" #", 0), (" so", 0)),
        ),
        "opening brackets in program code.",
    ),
    (
        (
            (("She", 0), (" would", 0), (" rather", 1), (" stay", 8), (" than", 0), (" leave", 10)),
            (("They", 0), (" hoped", 0), (" to", 0), (" return", 9), (" by", 0), (" May", 0)),
        ),
        "verbs of staying and going, after a wish.",
    ),
)
"""Texts with responses, and the explanation: invented neurons."""


def numbers(records: Sequence[Record], highest: int = HIGHEST) -> list[list[int]]:
    """Activations as whole numbers: min(highest, ⌊highest · max(a, 0) / largest of all records⌋)."""
    largest = max((float(record.activations.max(initial=0)) for record in records), default=0.0)
    if largest <= 0:
        return [[0] * len(record.activations) for record in records]
    return [
        [min(highest, int(np.floor(highest * max(float(a), 0.0) / largest))) for a in record.activations]
        for record in records
    ]


def question(records: Sequence[Record], decode: Callable[[int], str]) -> Question:
    """What an explainer is asked about a feature, by the fragments it may see."""
    shown = [
        [(visible(decode(int(token))), number) for token, number in zip(record.ids, row, strict=True)]
        for record, row in zip(records, numbers(records), strict=True)
    ]
    messages = [Message("system", SYSTEM)]
    for i, (texts, explanation) in enumerate(EXAMPLES):
        messages += [Message("user", _asked(i + 1, texts)), Message("assistant", explanation)]
    return Question((*messages, Message("user", _asked(len(EXAMPLES) + 1, shown))), MAX_TOKENS)


def read(reply: str) -> str | None:
    """The first line that says something, without the opening; None where there is none, or a refusal.

    Small models begin by going on with the question: its own lines say nothing.
    """
    if refuses(reply):
        return None
    for line in reply.splitlines():
        if "\t" in line.strip() or line.strip().startswith((RESPONSES, WITHOUT_ZEROS, START, END, "Neuron ")):
            continue
        text = line.strip().removeprefix(OPENING).strip(" \t\"'*")
        if any(character.isalnum() for character in text):
            return text
    return None


def visible(token: str) -> str:
    """A token on one line and without a tab, which the format uses."""
    for character, name in (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        token = token.replace(character, name)
    return token


def _asked(number: int, texts: Iterable[Sequence[tuple[str, int]]]) -> str:
    texts = list(texts)
    values = [value for text in texts for _, value in text]
    lines = [f"Neuron {number}", RESPONSES, *(_lines(text) for text in texts)]
    if values and np.count_nonzero(values) < SPARSE * len(values):
        lines += [WITHOUT_ZEROS]
        lines += [_lines([pair for pair in text if pair[1]]) for text in texts]
    return "\n".join([*lines, OPENING])


def _lines(text: Sequence[tuple[str, int]]) -> str:
    return "\n".join([START, *(f"{token}\t{value}" for token, value in text), END])
