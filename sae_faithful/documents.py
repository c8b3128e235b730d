"""Documents of packed rows, put together again one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from sae_faithful.packing import NO_DOCUMENT, ROWS_PER_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sae_faithful.tokens import TokenSet

DOCUMENTS_AT_ONCE = 256


class Documents(Sequence[np.ndarray]):
    """The documents of a token set, each starting with BOS; the last may be cut short.

    Nothing is held but where each begins, 9 bytes a document; its tokens are read when it is asked for.
    """

    def __init__(self, tokens: TokenSet, bos_token_id: int, repeats: Sequence[tuple[int, int]] = ()) -> None:
        """`repeats`: a document's number, and how many must be here for it to follow after the last once more."""
        self._tokens = tokens
        self._bos = bos_token_id
        self._starts, self._after_bos = _starts(tokens, bos_token_id)
        self._n = len(self._starts)
        pairs = np.array(repeats, np.int64).reshape(-1, 2)
        self._also = pairs[pairs[:, 1] <= self._n, 0]
        self._starts = np.append(self._starts, tokens.n_tokens)

    def __len__(self) -> int:
        return self._n + len(self._also)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        number = int(index) % len(self)
        if number >= self._n:
            number = int(self._also[number - self._n])
        return self._read(number, number + 1)[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        for first in range(0, self._n, DOCUMENTS_AT_ONCE):
            yield from self._read(first, min(first + DOCUMENTS_AT_ONCE, self._n))
        for number in self._also:
            yield self[int(number)]

    def _read(self, first: int, stop: int) -> list[np.ndarray]:
        """Documents `first` to `stop`, from one read of the rows that hold them."""
        context = self._tokens.context_size
        start, end = int(self._starts[first]), int(self._starts[stop])
        skipped = start // context
        ids, owners = (
            part.reshape(-1)[start - skipped * context : end - skipped * context]
            for part in self._tokens.arrays(skipped, -(-end // context))
        )
        kept = owners != NO_DOCUMENT
        # Positions among the kept tokens of this read.
        places = np.concatenate([[0], np.cumsum(kept)])[self._starts[first + 1 : stop] - start]
        parts = np.split(ids[kept], places)
        return [self._with_bos(part, first + i) for i, part in enumerate(parts)]

    def _with_bos(self, part: np.ndarray, number: int) -> np.ndarray:
        # Where EOS is BOS, one token ends a document and begins the next: give it to the next as well, even where
        # that next document is a lone EOS.
        shared = self._after_bos[number] and (part[0] != self._bos or len(part) == 1)
        if shared or part[0] != self._bos:
            return np.concatenate([np.array([self._bos], np.int32), part])
        return part


def _starts(tokens: TokenSet, bos_token_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each document begins in the stream of rows, and whether the last token of the one before is BOS."""
    starts: list[np.ndarray] = []
    after_bos: list[np.ndarray] = []
    owner, token = NO_DOCUMENT, -1
    for first in range(0, len(tokens), ROWS_PER_BATCH):
        ids, owners = (part.reshape(-1) for part in tokens.arrays(first, first + ROWS_PER_BATCH))
        kept = np.flatnonzero(owners != NO_DOCUMENT)
        if len(kept) == 0:
            continue
        ids, owners = ids[kept], owners[kept]
        begins = np.flatnonzero(np.diff(owners, prepend=owner))
        starts.append(first * tokens.context_size + kept[begins])
        after_bos.append(np.append(token, ids)[begins] == bos_token_id)
        owner, token = int(owners[-1]), int(ids[-1])
    if not starts:
        return np.zeros(0, np.int64), np.zeros(0, bool)
    return np.concatenate(starts), np.concatenate(after_bos)
