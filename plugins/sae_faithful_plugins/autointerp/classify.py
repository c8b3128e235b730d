"""Detection and fuzzing scores, as in EleutherAI's delphi: is the feature in this text; are these its tokens?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_faithful_plugins.autointerp.assistants import Message, Question, ask
from sae_faithful_plugins.autointerp.scoring import FEW_INACTIVE, FEW_RANDOM, Missing, Score
from sae_faithful_plugins.autointerp.simulate import json_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sae_faithful_plugins.autointerp.assistants import Assistant
    from sae_faithful_plugins.autointerp.fragments import Record
    from sae_faithful_plugins.autointerp.splits import Split

Kind = Literal["detection", "fuzzing"]
AT_ONCE = 5
"""Texts shown in one question."""
STRONG = 0.3
"""Tokens at least so strong as this share of the feature's strongest are marked."""
MARKS = ("<<", ">>")
REPLY_TOKENS_PER_TEXT, REPLY_TOKENS_SPARE = 8, 32

DETECTION = (
    "A feature of a language model is found in some texts and not in others. You are told what it stands for and get "
    "numbered texts. For each decide whether the feature is in it."
)
FUZZING = (
    "A feature of a language model is active on some tokens of a text. You are told what it stands for and get "
    "numbered texts in which some tokens are marked, << like >> this. For each decide whether the marked tokens are "
    "ones on which the feature would be active."
)
FORM = " Answer with one JSON list and nothing else: 1 for yes and 0 for no, one number a text, in order."
EXAMPLE = "names of animals"
EXAMPLES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "detection": (
        (
            " The fox ran into the wood.", " Prices fell in March.", " He fed the horse and left.",
            " We read in the garden.", " Two swans came by.",
        ),
        "[1, 0, 1, 0, 1]",
    ),
    "fuzzing": (
        (
            " The<< fox>> ran into the wood.", " Prices<< fell>> in March.", " He<< fed>> the horse and left.",
            " We read in the<< garden>>.", " Two<< swans>> came by.",
        ),
        "[1, 0, 0, 0, 1]",
    ),
}  # fmt: skip
"""As many texts as a question has: small models answer as many as they are shown."""


@dataclass(frozen=True)
class Sheet:
    """The texts that a feature is judged by, in the order in which they are shown."""

    texts: Sequence[str]
    truth: Sequence[int]


def sheet(split: Split, kind: Kind, decode: Callable[[int], str], seed: int) -> Sheet | Missing:
    """The validation fragments (in none of which the explainer was shown anything) and as many inactive ones.

    In fuzzing active ones have their strong tokens marked, inactive ones as many random tokens as active ones have
    in the mean, rounded up.
    """
    active, inactive = split.valid, split.inactive[: len(split.valid)]
    if not split.valid_random:
        return Missing(FEW_RANDOM)
    if len(inactive) < len(active):
        return Missing(FEW_INACTIVE)
    rng = np.random.default_rng(seed)
    largest = max(float(record.activations.max()) for record in (*split.train, *active))
    strong = [record.activations >= STRONG * largest for record in active]
    # A weak fragment has none above the threshold: its strongest token then.
    for record, marked in zip(active, strong, strict=True):
        marked[int(record.activations.argmax())] = True
    n_marked = int(np.ceil(np.mean([marked.sum() for marked in strong])))
    texts: list[str] = []
    for i, record in enumerate((*active, *inactive)):
        marked = np.zeros(len(record.ids), bool)
        if kind == "fuzzing" and i < len(active):
            marked = strong[i]
        elif kind == "fuzzing":
            marked[rng.choice(len(marked), min(n_marked, len(marked)), replace=False)] = True
        texts.append(_text(record, marked, decode))
    order = rng.permutation(len(texts))
    return Sheet([texts[i] for i in order], [int(i < len(active)) for i in order])


def classify(assistant: Assistant, kind: Kind, asked: Sequence[tuple[str, Sheet]]) -> list[dict[str, Score]]:
    """Balanced accuracy and F1 of each explanation on its sheet; one unreadable reply leaves it without a score."""
    questions: list[Question] = []
    owners: list[int] = []
    sizes: list[int] = []
    for i, (explanation, one) in enumerate(asked):
        mine = questions_about(kind, explanation, one)
        questions += mine
        owners += [i] * len(mine)
        sizes += [len(texts) for texts in _pages(one)]
    replies = ask(assistant, questions, [partial(read, n=n) for n in sizes])
    scores: list[dict[str, Score]] = []
    for i, (_, one) in enumerate(asked):
        mine = [reply for owner, reply in zip(owners, replies, strict=True) if owner == i]
        missing = [reply for reply in mine if isinstance(reply, Missing)]
        given = [answer for reply in mine if not isinstance(reply, Missing) for answer in reply]
        scores.append(
            dict.fromkeys(("balanced_accuracy", "f1"), missing[0]) if missing else agreement(given, one.truth)
        )
    return scores


def agreement(given: Sequence[int], truth: Sequence[int]) -> dict[str, Score]:
    """Balanced accuracy, (true positive rate + true negative rate) / 2, and F1 (0 where nothing true was found)."""
    yes, true = np.asarray(given, bool), np.asarray(truth, bool)
    hits = int((yes & true).sum())
    rates = (hits / true.sum(), (~yes & ~true).sum() / (~true).sum())
    return {"balanced_accuracy": float(np.mean(rates)), "f1": 2 * hits / int(yes.sum() + true.sum())}


def read(reply: str, n: int) -> list[int] | None:
    """`n` zeros and ones; None for anything else."""
    content: Any = json_in(reply)
    if not isinstance(content, list) or len(content) != n:
        return None
    if any(isinstance(one, bool) or one not in (0, 1) for one in content):
        return None
    return [int(one) for one in content]


def questions_about(kind: Kind, explanation: str, one: Sheet) -> list[Question]:
    """One question for every few texts."""
    return [_question(kind, explanation, texts) for texts in _pages(one)]


def _pages(one: Sheet) -> list[Sequence[str]]:
    return [one.texts[start : start + AT_ONCE] for start in range(0, len(one.texts), AT_ONCE)]


def _question(kind: Kind, explanation: str, texts: Sequence[str]) -> Question:
    shown, reply = EXAMPLES[kind]
    system = (DETECTION if kind == "detection" else FUZZING) + FORM
    messages = (
        Message("system", system),
        Message("user", _asked(EXAMPLE, shown)),
        Message("assistant", reply),
        Message("user", _asked(explanation, texts)),
    )
    return Question(messages, REPLY_TOKENS_PER_TEXT * len(texts) + REPLY_TOKENS_SPARE)


def _asked(explanation: str, texts: Sequence[str]) -> str:
    lines = [f"{i + 1}. {' '.join(text.split())}" for i, text in enumerate(texts)]
    return "\n".join([f"The feature stands for: {explanation}", *lines])


def _text(record: Record, marked: np.ndarray, decode: Callable[[int], str]) -> str:
    """Tokens as text, runs of marked ones between marks."""
    parts: list[str] = []
    for i, token in enumerate(record.ids):
        if marked[i] and (i == 0 or not marked[i - 1]):
            parts.append(MARKS[0])
        parts.append(decode(int(token)))
        if marked[i] and (i + 1 == len(marked) or not marked[i + 1]):
            parts.append(MARKS[1])
    return "".join(parts)
