"""The shapes of a completions server's replies (vLLM's), and what is read from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import RunError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def is_completion(reply: Any) -> bool:
    """Whether a reply has the shape of one whole completion; any other may be a passing fault."""
    try:
        (choice,) = reply["choices"]
        return choice["finish_reason"] in ("stop", "length")
    except (TypeError, KeyError, ValueError):
        return False


def is_list(reply: Any) -> bool:
    """Whether a reply has the shape of a list of models."""
    return isinstance(reply, dict) and isinstance(reply.get("data"), list)


def model_of(listed: Any, asked: str | None, names: Collection[str]) -> dict[str, Any] | None:
    """The card of the model to ask, among those that a server lists; None if it lists none.

    Args:
        listed: its reply to `models`, if there was one.
        asked: the name that the user gave, if any.
        names: what the experiment calls its model.
    """
    for card in _cards(listed):
        if card["id"] == asked or (asked is None and (card["id"] in names or card.get("root") in names)):
            return card
    return None


def no_such_model(listed: Any, asked: str | None, name: str) -> str:
    """What a server that lists no such model serves instead."""
    ids = ", ".join(card["id"] for card in _cards(listed)) or "nothing"
    if asked is not None:
        return f"serves {ids}, and no '{asked}' (server_model)"
    return (
        f"serves {ids}, and not the experiment's model '{name}'; if it is one of them under another name, give that as "
        "server_model"
    )


def _cards(listed: Any) -> list[dict[str, Any]]:
    cards = listed["data"] if is_list(listed) else []
    return [card for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str)]


def check_reply(
    reply: Any,
    prompt_ids: Sequence[int],
    max_tokens: int,
    stop_ids: Collection[int],
    vocab_size: int,
    where: str,
    no_token_ids: str,
) -> np.ndarray:
    """The ids of a completion, int32, which are all that the model drew after exactly this prompt.

    Raises:
        RunError: it gives no ids, or they cannot be that.
    """
    choice = reply["choices"][0]
    drawn, given = choice.get("token_ids"), choice.get("prompt_token_ids")
    if not _are_ids(drawn) or not _are_ids(given):
        raise RunError(f"{where} returns no token ids (return_token_ids), and {no_token_ids}")
    if list(given) != list(prompt_ids):
        raise RunError(
            f"{where} read the prompt {list(prompt_ids)} as {given[:8]}: the samples would be of another prompt"
        )
    outside = [token for token in drawn if not 0 <= token < vocab_size]
    if outside:
        raise RunError(
            f"{where} drew the token {outside[0]}, outside the model's vocabulary of {vocab_size}: it serves another "
            "model"
        )
    if choice["finish_reason"] == "length" and len(drawn) != max_tokens:
        raise RunError(
            f"{where} cut a sample at {len(drawn)} tokens, where max_tokens {max_tokens} was asked for: it has a limit "
            "of its own"
        )
    if len(drawn) > max_tokens or (
        choice["finish_reason"] == "stop" and drawn[-1:] not in [[i] for i in stop_ids]
    ):
        raise RunError(
            f"{where} ended a sample after {drawn[-1:]}, which is none of the model's stop ids {sorted(stop_ids)}: ids "
            "are missing, or it stops at something else"
        )
    return np.array(drawn, np.int32)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, int) and not isinstance(one, bool) for one in value
    )
