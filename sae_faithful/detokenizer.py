"""Token ids as text, one by one or in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np

TOKENS_AROUND = 10


class Detokenizer:
    """What tokens say; their ids where a model came without a tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer, or None.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def token(self, token: int) -> str:
        """One token, with the space that it has in front inside a text."""
        if token not in self._known:
            self._known[token] = self._one(int(token))
        return self._known[token]

    def text(self, tokens: Iterable[int]) -> str:
        """Neighbours in a text."""
        ids = [int(token) for token in tokens]
        return " ".join(map(str, ids)) if self._tokenizer is None else str(self._tokenizer.decode(ids))

    def around(self, tokens: Sequence[int] | np.ndarray, position: int) -> dict[str, str]:
        """A place in a text: the token there as `token`, ten tokens `before` it and ten `after`."""
        start = max(0, position - TOKENS_AROUND)
        return {
            "before": self.text(tokens[start:position]),
            "token": self.token(int(tokens[position])),
            "after": self.text(tokens[position + 1 : position + 1 + TOKENS_AROUND]),
        }

    def _one(self, token: int) -> str:
        if self._tokenizer is None:
            return f" {token}"
        text = str(self._tokenizer.decode([token]))
        # SentencePiece's tokenizers drop the space in front of a text's first word.
        spaced = str(self._tokenizer.convert_ids_to_tokens(token)).startswith("\u2581")
        return f" {text}" if spaced and not text.startswith(" ") else text


def marked(place: Mapping[str, Any]) -> str:
    """What `Detokenizer.around` gave, on one line that Markdown takes as code: before «token» after."""
    text = f"{place['before']}«{place['token']}»{place['after']}"
    return " ".join(text.split()).replace("`", "'")
