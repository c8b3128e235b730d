"""Token sets: rows of ids, the document each id belongs to, packing and the held-out split."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import interruption
from sae_faithful.interfaces import RunError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from datasets import Dataset
    from jaxtyping import Bool, Int

NO_DOCUMENT = -1
"""The `document` of a BOS that packing put at the start of a row: nobody's token."""


@dataclass(frozen=True)
class TokenSet:
    """Rows of exactly `context_size` token ids, and for each token the document it belongs to.

    `dataset` has the columns `input_ids` and `document`, both lists of int32. Document numbers never
    decrease along the stream of rows; `NO_DOCUMENT` marks a BOS put in by packing.
    """

    dataset: Dataset
    prompt_length: int = 1
    """Leading tokens of every document, BOS included, that were given to the model and not drawn."""
    card: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What a reader of the data should know about how it was made."""

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Sequence[int] | np.ndarray],
        *,
        n_tokens: int,
        context_size: int,
        bos_token_id: int,
        begin_rows_with_bos: bool = True,
        card: Mapping[str, Any] | None = None,
        prompt_length: int = 1,
    ) -> TokenSet:
        """Pack documents into rows; see `pack`. Documents come without BOS; each is given one.

        Returns as many whole rows as the documents fill, at most ⌊n_tokens / context_size⌋.
        """
        numbers: dict[bytes, int] = {}
        repeats: list[tuple[int, int]] = []
        rows: list[np.ndarray] = []
        owners: list[np.ndarray] = []
        stream = pack(
            _distinct(documents, numbers, repeats),
            context_size=context_size,
            bos_token_id=bos_token_id,
            begin_rows_with_bos=begin_rows_with_bos,
        )
        for row, owner in islice(stream, n_tokens // context_size):
            rows.append(row)
            owners.append(owner)
        shape = (len(rows), context_size)
        ids = np.stack(rows) if rows else np.zeros(shape, np.int32)
        owner_ids = np.stack(owners) if owners else np.zeros(shape, np.int32)
        counts = {
            "documents": len(numbers),
            "repeated_documents_dropped": len(repeats),
            "repeats": [list(pair) for pair in repeats],
        }
        return cls.from_rows(ids, owner_ids, card={**(card or {}), **counts}, prompt_length=prompt_length)

    @classmethod
    def from_rows(
        cls,
        rows: Int[np.ndarray, "rows context"],
        documents: Int[np.ndarray, "rows context"] | None = None,
        *,
        card: Mapping[str, Any] | None = None,
        prompt_length: int = 1,
    ) -> TokenSet:
        """From arrays; without `documents`, every row is a document of its own."""
        from datasets import Dataset

        if documents is None:
            documents = np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)
        return cls(Dataset(_table(rows, documents)), prompt_length, dict(card or {}))

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> TokenSet:
        """From any dataset with a column `input_ids`; without a column `document`, a row is a document."""
        if "document" not in dataset.column_names:
            lengths = [len(row) for row in dataset["input_ids"]]
            dataset = dataset.add_column("document", [[i] * n for i, n in enumerate(lengths)])  # pyright: ignore[reportCallIssue]
        return cls(dataset)

    @classmethod
    def open(cls, path: Path, *, prompt_length: int = 1, card: Mapping[str, Any] | None = None) -> TokenSet:
        """Memory-map a file that `save` wrote; it holds neither of the others."""
        from datasets import Dataset

        return cls(Dataset.from_file(str(path)), prompt_length, dict(card or {}))

    def save(self, path: Path) -> None:
        """Write an Arrow stream file; equal token sets give equal bytes."""
        import pyarrow as pa

        ids, documents = self.arrays()
        table = _table(ids, documents)
        with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=1_000)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def context_size(self) -> int:
        """Tokens a row; 0 when there are no rows."""
        return len(self.dataset[0]["input_ids"]) if len(self.dataset) else 0

    @property
    def n_tokens(self) -> int:
        """Tokens in all rows."""
        return len(self) * self.context_size

    def rows(self, start: int = 0, stop: int | None = None) -> Int[np.ndarray, "rows context"]:
        """Token ids of rows `start` to `stop`, int64."""
        return self._column("input_ids", start, stop).astype(np.int64)

    def arrays(self) -> tuple[Int[np.ndarray, "rows context"], Int[np.ndarray, "rows context"]]:
        """Token ids and documents of every row, int32."""
        return self._column("input_ids", 0, None), self._column("document", 0, None)

    def head(self, n_rows: int) -> TokenSet:
        """The first `n_rows` rows, or all there are."""
        return TokenSet(
            self.dataset.select(range(min(n_rows, len(self)))), self.prompt_length, dict(self.card)
        )

    def documents(self, bos_token_id: int) -> list[np.ndarray]:
        """Every document put together again, each starting with BOS; the last may be cut short.

        Only for token sets that start at the start of a document (the training part does).
        """
        ids, owners = (array.reshape(-1) for array in self.arrays())
        kept = owners != NO_DOCUMENT
        ids, owners = ids[kept], owners[kept]
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        parts = np.split(ids, starts[1:]) if len(ids) else []
        bos = np.array([bos_token_id], np.int32)
        whole: list[np.ndarray] = []
        previous = -1
        for part in parts:
            # Where EOS is BOS, one token ends a document and begins the next: give it to the next as well, even
            # where that next document is a lone EOS.
            shared = previous == bos_token_id and (part[0] != bos_token_id or len(part) == 1)
            whole.append(np.concatenate([bos, part]) if shared or part[0] != bos_token_id else part)
            previous = int(part[-1])
        return whole

    def documents_as_given(self, bos_token_id: int) -> list[np.ndarray]:
        """`documents`, each as often as the source gave it before it gave a document that is not among them.

        A document that comes twice is trained on once, but it is a likely one: without its repeats a text is not
        quite a sample of what it came from.
        """
        whole = self.documents(bos_token_id)
        repeats: Sequence[tuple[int, int]] = self.card.get("repeats", ())
        return whole + [whole[number] for number, given_before in repeats if given_before <= len(whole)]

    def split(self, held_out: float = 0.1) -> tuple[TokenSet, TokenSet]:
        """The training rows and the held-out ones: the last ⌈`held_out` of the rows⌉, cut at a document boundary.

        Rows that hold part of a document that is also trained on are dropped from the held-out part, so
        that no text is on both sides. The training part has ⌊(1 − held_out) · rows⌋ rows whatever the
        text, so that sources of one size train on exactly equal numbers of tokens.

        Raises:
            RunError: a document runs through the whole held-out part.
        """
        n_train = len(self) - math.ceil(len(self) * held_out)
        _, documents = self.arrays()
        last_trained = documents[:n_train].max(initial=NO_DOCUMENT)
        first_of_row = np.where(documents == NO_DOCUMENT, np.iinfo(np.int32).max, documents).min(axis=1)
        free = np.flatnonzero(first_of_row[n_train:] > last_trained)
        if n_train == 0 or len(free) == 0:
            raise RunError(
                f"cannot hold out {held_out:.0%} of {len(self)} rows at a document boundary: "
                "ask for more tokens, or give text in shorter documents"
            )
        parts = (range(n_train), range(n_train + int(free[0]), len(self)))
        train, rest = (
            TokenSet(self.dataset.select(part), self.prompt_length, dict(self.card)) for part in parts
        )
        return train, rest

    def for_saelens(self) -> Dataset:
        """A copy with `input_ids` alone, as SAELens's `override_dataset` takes it (it changes its format)."""
        return self.dataset.select_columns(["input_ids"]).with_format(None)

    def check(self, owner: str, *, context_size: int, vocab_size: int) -> None:
        """Refuse rows of the wrong length and ids that the model does not have.

        Raises:
            RunError: naming `owner` and the first bad row.
        """
        if len(self) == 0:
            raise RunError(f"{owner} gave fewer tokens than one row of {context_size}")
        for number, (row, owners) in enumerate(
            zip(*(self._lists(c) for c in ("input_ids", "document")), strict=True)
        ):
            for found, what in ((len(row), "tokens"), (len(owners), "document numbers")):
                if found != context_size:
                    raise RunError(f"{owner}: row {number} has {found} {what}, expected {context_size}")
        ids, documents = self.arrays()
        for number in np.flatnonzero((ids < 0).any(axis=1) | (ids >= vocab_size).any(axis=1))[:1]:
            worst = ids[number][(ids[number] < 0) | (ids[number] >= vocab_size)][0]
            raise RunError(
                f"{owner}: row {number} has the token id {worst}, outside the vocabulary of {vocab_size}"
            )
        stream = documents[documents != NO_DOCUMENT]
        if (np.diff(stream) < 0).any():
            raise RunError(f"{owner}: document numbers decrease; each document's tokens must stand together")

    def _lists(self, column: str) -> Iterator[Sequence[int]]:
        for batch in self.dataset.with_format("arrow").iter(1_000):
            yield from batch[column].to_pylist()  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType]

    def _column(self, column: str, start: int, stop: int | None) -> np.ndarray:
        stop = len(self) if stop is None else min(stop, len(self))
        if stop <= start:
            return np.zeros((0, self.context_size), np.int32)
        table: Any = self.dataset.with_format("arrow")[start:stop]
        flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat, np.int32).reshape(stop - start, -1)


def pack(
    documents: Iterable[Sequence[int] | np.ndarray],
    *,
    context_size: int,
    bos_token_id: int,
    begin_rows_with_bos: bool,
) -> Iterator[tuple[Int[np.ndarray, " context"], Int[np.ndarray, " context"]]]:
    """Yield full rows (ids, document numbers) of documents set one after another; a last partial row is lost.

    Every document starts with BOS, save where the token before it is BOS already: a document that ended
    with EOS, in models where EOS is BOS. A row that starts inside a document is given a BOS of its own
    when `begin_rows_with_bos` (as SAELens's `prepend_bos` does); it belongs to `NO_DOCUMENT`.
    """
    ids = np.zeros(context_size, np.int32)
    owners = np.zeros(context_size, np.int32)
    filled, previous = 0, -1
    for number, document in enumerate(documents):
        body = np.asarray(document, np.int32)
        if previous != bos_token_id:
            body = np.concatenate([np.array([bos_token_id], np.int32), body])
        position = 0
        while position < len(body):
            if filled == 0 and begin_rows_with_bos and body[position] != bos_token_id:
                ids[0], owners[0], filled = bos_token_id, NO_DOCUMENT, 1
            taken = min(context_size - filled, len(body) - position)
            ids[filled : filled + taken] = body[position : position + taken]
            owners[filled : filled + taken] = number
            filled += taken
            position += taken
            if filled == context_size:
                yield ids.copy(), owners.copy()
                filled = 0
        previous = int(body[-1]) if len(body) else previous


def special_token_mask(
    tokens: Int[np.ndarray, "*shape"], special_ids: Sequence[int]
) -> Bool[np.ndarray, "*shape"]:
    """True where a token counts in a measurement: everywhere but at special tokens. Of rows, or of any shape."""
    return ~np.isin(tokens, np.asarray(special_ids, np.int64))


def row_batches(n_rows: int, tokens_per_row: int, tokens_per_batch: int) -> Iterator[slice]:
    """Cut rows into batches of as many as fit into `tokens_per_batch` tokens, at least one; the last may be smaller.

    Raises:
        KeyboardInterrupt: between two batches, for a Ctrl-C whose own exception was lost.
    """
    step = max(1, tokens_per_batch // max(1, tokens_per_row))
    for start in range(0, n_rows, step):
        interruption.check()
        yield slice(start, min(start + step, n_rows))


def _distinct(
    documents: Iterable[Sequence[int] | np.ndarray], numbers: dict[bytes, int], repeats: list[tuple[int, int]]
) -> Iterator[np.ndarray]:
    """Documents without empty ones and without repeats.

    Args:
        documents: token ids of each.
        numbers: filled with the number of each different document, by a digest of it.
        repeats: filled with the number of each document that came again and how many had come before that.
    """
    for document in documents:
        interruption.check()
        array = np.asarray(document, np.int32)
        if len(array) == 0:
            continue
        digest = hashlib.blake2b(array.tobytes(), digest_size=16).digest()
        if digest in numbers:
            repeats.append((numbers[digest], len(numbers)))
            continue
        numbers[digest] = len(numbers)
        yield array


def _table(ids: np.ndarray, documents: np.ndarray) -> Any:
    import pyarrow as pa

    offsets = np.arange(0, ids.size + 1, ids.shape[1] or 1, dtype=np.int32)
    columns = {
        name: pa.ListArray.from_arrays(offsets, np.ascontiguousarray(array, np.int32).reshape(-1))
        for name, array in (("input_ids", ids), ("document", documents))
    }
    return pa.table(columns)
