"""The shapes of an OpenAI-compatible server's replies, and what is read from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_faithful_plugins.autointerp.assistants import REFUSAL, UNKNOWN
from sae_faithful_plugins.autointerp.scoring import Missing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sae_faithful_plugins.autointerp.assistants import Message

MOST_LIKELY = 1.0
"""Log-probabilities are at most 0, but for rounding."""


def is_chat(reply: Any) -> bool:
    """Whether a reply has the shape of a chat completion."""
    try:
        message = reply["choices"][0]["message"]
    except (TypeError, KeyError, IndexError):
        return False
    return (
        isinstance(reply, dict)
        and isinstance(message, dict)
        and isinstance(message.get("content"), str | None)
    )


def content(reply: Mapping[str, Any]) -> str | Missing:
    """What a chat completion says, if it does not refuse."""
    choice = reply["choices"][0]
    if choice["message"].get("refusal") or choice.get("finish_reason") == "content_filter":
        return Missing(REFUSAL)
    return choice["message"].get("content") or ""


def echoed(reply: Mapping[str, Any]) -> dict[str, Any]:
    """The log-probabilities of a completion that repeats its prompt."""
    return reply["choices"][0]["logprobs"]


def is_completion(reply: Any) -> bool:
    """Whether a reply has the shape of a completion."""
    try:
        return isinstance(reply["choices"][0]["text"], str)
    except (TypeError, KeyError, IndexError):
        return False


def is_echo(reply: Any) -> bool:
    """Whether a reply has log-probabilities of its prompt's tokens."""
    try:
        given = echoed(reply)
        tokens, offsets, likely = (given[name] for name in ("tokens", "text_offset", "top_logprobs"))
    except (TypeError, KeyError, IndexError):
        return False
    if not all(isinstance(one, list) for one in (tokens, offsets, likely)):
        return False
    if not len(tokens) == len(offsets) == len(likely) > 1:
        return False
    return all(isinstance(token, str) for token in tokens) and all(map(_is_weights, likely))


def _is_weights(likely: Any) -> bool:
    """Log-probabilities by token; servers give none for a text's first."""
    return likely is None or (isinstance(likely, dict) and all(map(_is_weight, likely.values())))


def _is_weight(value: Any) -> bool:
    """A whole number may be one that no float holds."""
    try:
        return isinstance(value, int | float) and not float(value) > MOST_LIKELY
    except OverflowError:
        return False


def likely_at(given: Mapping[str, Any], offset: int) -> dict[str, float] | None:
    """The likely tokens where an `UNKNOWN` begins; None where no token begins there."""
    for start, token, likely in zip(
        given["text_offset"], given["tokens"], given["top_logprobs"], strict=True
    ):
        if start == offset and token and UNKNOWN.startswith(token) and isinstance(likely, dict):
            return {each: float(value) for each, value in likely.items()}
    return None


def as_text(messages: Sequence[Message]) -> str:
    """A conversation for a model that continues texts, up to where its answer begins."""
    parts = [f"{message.role.capitalize()}:\n{message.content}\n\n" for message in messages]
    return "".join(parts) + "Assistant:\n"
