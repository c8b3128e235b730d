"""What is shown or written: on one line where it is one, with nothing invisible in it, and without secrets."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

HIDDEN = "(hidden)"
LONGEST_LINE = 2_000
SHORTEST_SECRET = 8
"""Characters. Of shorter values of such variables any text might hold one."""

SECRET_KEYS = re.compile(
    r"((hf|hub|access|auth|bearer|use_auth)_)?token|.*(api_?key|secret|password|authorization).*",
    re.IGNORECASE,
)
SECRET_VARIABLES = re.compile(
    r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS|AUTH)S?$", re.IGNORECASE
)
IN_URL = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)")
"""`user:password` in `https://user:password@host`."""
IN_HEADER = re.compile(r"(?<=bearer )\S{8,}|(?<=basic )[A-Za-z0-9+/=]{8,}", re.IGNORECASE)
BY_SHAPE = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|wandb_v1_[A-Za-z0-9_]{20,}|gh[pousr]_[A-Za-z0-9]{20,})"
)
"""Tokens of the hub, of OpenAI, of W&B and of GitHub."""
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
"""What a terminal would obey or not show."""


def without_secrets(text: str) -> str:
    """`text` without the values of environment variables that are secrets, and without what looks like one."""
    for value in known_secrets():
        text = text.replace(value, HIDDEN)
    for pattern in (IN_URL, IN_HEADER, BY_SHAPE):
        text = pattern.sub(HIDDEN, text)
    return text


def without_known_secrets(text: str) -> str:
    """The same without secrets of the environment alone: what only looks like one may be a text that is measured."""
    for value in known_secrets():
        text = text.replace(value, HIDDEN)
    return text


def one_line(text: str) -> str:
    """A message as a terminal may show it: no secret, no line break, nothing that a terminal obeys, not endless."""
    text = " ".join(without_secrets(text).split())
    text = UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)
    half = LONGEST_LINE // 2
    return text if len(text) <= LONGEST_LINE else f"{text[:half]} ... {text[-half:]}"


def known_secrets() -> list[str]:
    """Values of environment variables that are secrets by name, or a password in an address; longest first.

    Each also as JSON and as Python's `repr` write it, where that is another text.
    """
    found: set[str] = set()
    for name, value in os.environ.items():
        if SECRET_VARIABLES.search(name):
            found.add(value.strip())
        found.update(IN_URL.findall(value))
    forms = {form for value in found if len(value) >= SHORTEST_SECRET for form in _forms(value)}
    return sorted(forms, key=lambda one: (-len(one), one))


def _forms(value: str) -> tuple[str, ...]:
    return value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]


def secret_in(value: Any) -> str | None:
    """Where in settings a secret stands, as `key.key`; None where there is none. The secret itself is not named."""
    known = known_secrets()
    for where, key, text in _texts(value, ""):
        # `token: auto` and the like are short.
        if SECRET_KEYS.fullmatch(key) and len(text) >= SHORTEST_SECRET:
            return where
        if IN_URL.search(text) or BY_SHAPE.search(text) or any(one in text for one in known):
            return where
    return None


def hidden(value: Any) -> Any:
    """Plain JSON without what its key calls a secret, and without secrets of the environment."""
    if isinstance(value, dict):
        return {
            key: HIDDEN if one and isinstance(one, str) and SECRET_KEYS.fullmatch(str(key)) else hidden(one)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [hidden(one) for one in value]
    return HIDDEN if isinstance(value, str) and without_secrets(value) != value else value


def _texts(value: Any, where: str, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Every text in nested settings: where it is, the key it has, and it."""
    if isinstance(value, str):
        yield where, key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, f"{where}.{name}" if where else str(name), str(name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{where}[{number}]", key)
