"""The shapes of an OpenAI-compatible server's replies, and what is read from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_faithful_plugins.autointerp.assistants import REFUSAL, UNKNOWN
from sae_faithful_plugins.autointerp.scoring import Missing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sae_faithful_plugins.autointerp.assistants import Message


def is_chat(reply: Any) -> bool:
    """Whether a reply has the shape of a chat completion."""
    try:
        message = reply["choices"][0]["message"]
    except (TypeError, KeyError, IndexError):
        return False
    return isinstance(message, dict) and isinstance(message.get("content"), str | None)


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
        sizes = [len(given[name]) for name in ("tokens", "text_offset", "top_logprobs")]
    except (TypeError, KeyError, IndexError):
        return False
    return min(sizes) == max(sizes) > 1


def likely_at(given: Mapping[str, Any], offset: int) -> dict[str, float] | None:
    """The likely tokens where an `UNKNOWN` begins; None where no token begins there."""
    for start, token, likely in zip(
        given["text_offset"], given["tokens"], given["top_logprobs"], strict=True
    ):
        if start == offset and token and UNKNOWN.startswith(token) and isinstance(likely, dict):
            return likely
    return None


def as_text(messages: Sequence[Message]) -> str:
    """A conversation for a model that continues texts, up to where its answer begins."""
    parts = [f"{message.role.capitalize()}:\n{message.content}\n\n" for message in messages]
    return "".join(parts) + "Assistant:\n"
