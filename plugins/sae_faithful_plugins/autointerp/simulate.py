"""Predictions of activations from an explanation: by log-probabilities (Bills et al. 2023), or as JSON."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_faithful_plugins.autointerp.assistants import MALFORMED, UNKNOWN, Cloze, Message, Question, ask
from sae_faithful_plugins.autointerp.explain import HIGHEST, visible
from sae_faithful_plugins.autointerp.scoring import Missing, Prediction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float

    from sae_faithful_plugins.autointerp.assistants import Assistant

Mode = Literal["logprobs", "json"]
REPLY_TOKENS_PER_TOKEN, REPLY_TOKENS_SPARE = 16, 64

SYSTEM = (
    "A neuron inside a language model responds to one thing in a text. You are told what it responds to and get a "
    "text as a sequence of tokens. Predict for every token how strongly the neuron responds to it: a whole number "
    "from 0 (not at all) to {highest} (as strongly as it can). Most tokens get 0."
)
AS_LINES = " Give one token a line, then a tab, then the number."
AS_JSON = (
    ' Answer with one JSON object and nothing else: {"responses": [{"token": TOKEN, "number": NUMBER}, ...]}, with '
    "every token of the text once, in order."
)
EXAMPLES: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = (
    (
        "words about cooking",
        (
            ("Stir", 0.8),
            (" the", 0.0),
            (" soup", 1.0),
            (" and", 0.0),
            (" call", 0.0),
            (" me", 0.0),
            (".", 0.0),
        ),
    ),
    (
        "numbers written as digits",
        (("In", 0.0), (" ", 0.1), ("1912", 1.0), (" it", 0.0), (" cost", 0.2), (" £", 0.3), ("40", 0.9)),
    ),
)
"""An invented neuron, and its responses as shares of the highest."""


def simulate(
    assistant: Assistant, mode: Mode, asked: Sequence[tuple[str, Sequence[str]]]
) -> list[Prediction]:
    """Predicted activations, on a scale of their own, for each explanation and the tokens of a fragment."""
    if mode == "json":
        questions = [json_question(explanation, tokens) for explanation, tokens in asked]
        return ask(assistant, questions, [partial(read_json, n=len(tokens)) for _, tokens in asked])
    highest = assistant.highest_number()
    assert highest is not None
    found = assistant.weigh([cloze(explanation, tokens, highest) for explanation, tokens in asked])
    return [one if isinstance(one, Missing) else expectations(one, highest) for one in found]


def cloze(explanation: str, tokens: Sequence[str], highest: int) -> Cloze:
    """All tokens at once, each followed by `UNKNOWN` in place of its number."""
    messages = [Message("system", SYSTEM.format(highest=highest) + AS_LINES)]
    for what, responses in EXAMPLES:
        lines = "\n".join(f"{token}\t{_number(share, highest)}" for token, share in responses)
        messages += [
            Message("user", _told(what, [token for token, _ in responses])),
            Message("assistant", lines),
        ]
    messages.append(Message("user", _told(explanation, tokens)))
    answer, places = "", []
    for token in tokens:
        answer += f"{visible(token)}\t"
        places.append(len(answer))
        answer += f"{UNKNOWN}\n"
    return Cloze(tuple(messages), answer, tuple(places))


def expectations(weights: Sequence[Mapping[str, float]], highest: int) -> Prediction:
    """Σ n·p(n) / Σ p(n) over the numbers 0 ... highest, at every place.

    A place where no number is among the likely tokens says nothing about its token: then there is no prediction.
    """
    numbers = {str(number): number for number in range(highest + 1)}
    predicted = np.zeros(len(weights))
    for i, place in enumerate(weights):
        mass = np.zeros(highest + 1)
        for token, log_probability in place.items():
            number = numbers.get(token.strip())
            if number is not None:
                mass[number] += np.exp(log_probability)
        if not mass.sum() > 0:
            return Missing(MALFORMED)
        predicted[i] = (mass @ np.arange(highest + 1)) / mass.sum()
    return predicted


def json_question(explanation: str, tokens: Sequence[str]) -> Question:
    """The same as one JSON object, for models whose log-probabilities nobody gives."""
    messages = [Message("system", SYSTEM.format(highest=HIGHEST) + AS_JSON)]
    for what, responses in EXAMPLES:
        reply = [{"token": token, "number": _number(share, HIGHEST)} for token, share in responses]
        messages += [
            Message("user", _as_json(what, [token for token, _ in responses])),
            Message("assistant", json.dumps({"responses": reply}, ensure_ascii=False)),
        ]
    messages.append(Message("user", _as_json(explanation, tokens)))
    return Question(tuple(messages), REPLY_TOKENS_PER_TOKEN * len(tokens) + REPLY_TOKENS_SPARE)


def read_json(reply: str, n: int) -> Float[np.ndarray, " tokens"] | None:
    """The numbers of a reply; None unless there are exactly `n`, all within the scale."""
    content = json_in(reply)
    responses = content.get("responses") if isinstance(content, dict) else content
    if not isinstance(responses, list) or len(responses) != n:
        return None
    values: list[float] = []
    for one in responses:
        number: Any = one.get("number") if isinstance(one, dict) else one
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= HIGHEST:
            return None
        values.append(float(number))
    return np.asarray(values)


def json_in(reply: str) -> Any:
    """The JSON object or list in a reply that may say something around it; None where there is none."""
    for found in (reply, *(match[0] for match in re.finditer(r"\{.*\}|\[.*\]", reply, re.DOTALL))):
        try:
            return json.loads(found)
        except (ValueError, RecursionError):
            continue
    return None


def _told(explanation: str, tokens: Sequence[str]) -> str:
    text = "".join(visible(token) for token in tokens)
    return f"The neuron responds to: {explanation}\nText: {text}"


def _as_json(explanation: str, tokens: Sequence[str]) -> str:
    return json.dumps({"responds to": explanation, "tokens": list(tokens)}, ensure_ascii=False)


def _number(share: float, highest: int) -> int:
    return round(share * highest)
