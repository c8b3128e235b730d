"""Token sets: rows of ids, the document each id belongs to, packing and the held-out split."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import interruption
from sae_faithful.documents import Documents
from sae_faithful.interfaces import RunError
from sae_faithful.packing import (
    NO_DOCUMENT,
    ROWS_PER_BATCH,
    SeenDocuments,
    in_blocks,
    pack,
    table_of,
    write_rows,
)
from sae_faithful.stored import blamed_on

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from datasets import Dataset
    from jaxtyping import Bool, Int


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
        path: Path | None = None,
    ) -> TokenSet:
        """Pack documents into rows; see `pack`. Documents come without BOS; each is given one.

        Returns as many whole rows as the documents fill, at most ⌊n_tokens / context_size⌋.

        Args:
            documents: token ids of each; read only as far as needed.
            n_tokens: how many tokens are wanted.
            context_size: tokens a row.
            bos_token_id: what every document is given to start with.
            begin_rows_with_bos: whether a row that starts inside a document gets a BOS of its own.
            card: what a reader of the data should know about it.
            prompt_length: leading tokens of every document, BOS included, that were given and not drawn.
            path: a new file that the rows go into as they fill, and are then mapped from; None: all rows are
                held in memory.
        """
        with SeenDocuments(path and path.with_suffix(".seen")) as seen:
            rows = pack(
                seen.distinct(documents),
                context_size=context_size,
                bos_token_id=bos_token_id,
                begin_rows_with_bos=begin_rows_with_bos,
            )
            blocks = in_blocks(islice(rows, n_tokens // context_size))
            if path is None:
                tokens = cls.from_rows(*_together(blocks, context_size), prompt_length=prompt_length)
            else:
                write_rows(path, blocks)
                tokens = cls.open(path, prompt_length=prompt_length)
            counts = {
                "documents": len(seen),
                "repeated_documents_dropped": len(seen.repeats),
                "repeats": [list(pair) for pair in seen.repeats],
            }
        return replace(tokens, card={**(card or {}), **counts})

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
        return cls(Dataset(table_of(rows, documents)), prompt_length, dict(card or {}))

    @classmethod
    def on_disk(cls, blocks: Iterable[Int[np.ndarray, "rows context"]]) -> TokenSet:
        """From token ids as they are made, in a file of the system's that is gone with the process.

        Every row is a document of its own, as in `from_rows`; what is held does not grow with the rows.
        """
        import tempfile
        from pathlib import Path

        def numbered() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            first = 0
            for ids in blocks:
                numbers = np.arange(first, first + len(ids), dtype=np.int32)[:, None]
                yield ids, np.broadcast_to(numbers, ids.shape)
                first += len(ids)

        with tempfile.TemporaryDirectory(prefix="sae-faithful-") as folder:
            write_rows(Path(folder) / "rows.arrow", numbered())
            # The file's name goes, what is mapped stays.
            return cls.open(Path(folder) / "rows.arrow")

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> TokenSet:
        """From any dataset with a column `input_ids`; without a column `document`, a row is a document."""
        if "document" not in dataset.column_names:
            lengths = [len(row) for row in dataset["input_ids"]]
            dataset = dataset.add_column("document", [[i] * n for i, n in enumerate(lengths)])  # pyright: ignore[reportCallIssue]
        return cls(dataset)

    @classmethod
    def open(cls, path: Path, *, prompt_length: int = 1, card: Mapping[str, Any] | None = None) -> TokenSet:
        """Memory-map a file that `save` wrote; it holds neither of the others.

        Raises:
            RunError: it is no such file, or a damaged one.
        """
        import pyarrow as pa
        from datasets import Dataset

        with blamed_on(path):
            dataset = Dataset.from_file(str(path))
            for name in ("input_ids", "document"):
                kind = dataset.data.schema.field(name).type
                if kind != pa.list_(pa.int32()):
                    raise ValueError(f"its column '{name}' holds no lists of int32")
                # That is said whatever bytes name a list's items; decoded they are only here.
                _ = kind.value_field.name
            # Where lists end is checked: pyarrow would read beyond the file.
            dataset.data.validate(full=True)
        return cls(dataset, prompt_length, dict(card or {}))

    def save(self, path: Path) -> None:
        """Write an Arrow stream file; equal token sets give equal bytes."""
        write_rows(path, self.blocks())

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

    def rows_at(self, numbers: Int[np.ndarray, " rows"]) -> Int[np.ndarray, "rows context"]:
        """Token ids of the rows with these numbers, in their order, int64."""
        table: Any = self.dataset.with_format("arrow")[np.asarray(numbers, np.int64)]
        return _flat(table["input_ids"]).astype(np.int64).reshape(len(numbers), -1)

    def arrays(
        self, start: int = 0, stop: int | None = None
    ) -> tuple[Int[np.ndarray, "rows context"], Int[np.ndarray, "rows context"]]:
        """Token ids and documents of rows `start` to `stop`, int32."""
        return self._column("input_ids", start, stop), self._column("document", start, stop)

    def blocks(self) -> Iterator[tuple[Int[np.ndarray, "rows context"], Int[np.ndarray, "rows context"]]]:
        """`arrays` of all rows, 1,000 at a time: what is held does not grow with the rows."""
        for start in range(0, len(self), ROWS_PER_BATCH):
            yield self.arrays(start, start + ROWS_PER_BATCH)

    def head(self, n_rows: int) -> TokenSet:
        """The first `n_rows` rows, or all there are."""
        return TokenSet(
            self.dataset.select(range(min(n_rows, len(self)))), self.prompt_length, dict(self.card)
        )

    def documents(self, bos_token_id: int) -> Documents:
        """Every document put together again, each starting with BOS; the last may be cut short.

        Only for token sets that start at the start of a document (the training part does).
        """
        return Documents(self, bos_token_id)

    def documents_as_given(self, bos_token_id: int) -> Documents:
        """`documents`, each as often as the source gave it before it gave a document that is not among them.

        A document that comes twice is trained on once, but it is a likely one: without its repeats a text is not
        quite a sample of what it came from.
        """
        return Documents(self, bos_token_id, self.card.get("repeats", ()))

    def split(self, held_out: float = 0.1) -> tuple[TokenSet, TokenSet]:
        """The training rows and the held-out ones: the last ⌈`held_out` of the rows⌉, cut at a document boundary.

        Rows that hold part of a document that is also trained on are dropped from the held-out part, so
        that no text is on both sides. The training part has ⌊(1 − held_out) · rows⌋ rows whatever the
        text, so that sources of one size train on exactly equal numbers of tokens.

        Raises:
            RunError: a document runs through the whole held-out part.
        """
        n_train = len(self) - math.ceil(len(self) * held_out)
        first_free = self._first_row_after(n_train)
        if n_train == 0 or first_free is None:
            raise RunError(
                f"cannot hold out {held_out:.0%} of {len(self)} rows at a document boundary: "
                "ask for more tokens, or give text in shorter documents"
            )
        parts = (range(n_train), range(first_free, len(self)))
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
        last = NO_DOCUMENT
        for start in range(0, len(self), ROWS_PER_BATCH):
            self._check_lengths(owner, start, context_size)
            ids, documents = self.arrays(start, start + ROWS_PER_BATCH)
            outside = (ids < 0) | (ids >= vocab_size)
            for number in np.flatnonzero(outside.any(axis=1))[:1]:
                worst = ids[number][outside[number]][0]
                raise RunError(
                    f"{owner}: row {start + number} has the token id {worst}, outside the vocabulary of {vocab_size}"
                )
            stream = np.append(last, documents[documents != NO_DOCUMENT])
            if (np.diff(stream) < 0).any():
                raise RunError(
                    f"{owner}: document numbers decrease; each document's tokens must stand together"
                )
            last = int(stream[-1])

    def _check_lengths(self, owner: str, start: int, context_size: int) -> None:
        """Of the lists in one block of rows."""
        table: Any = self.dataset.with_format("arrow")[start : start + ROWS_PER_BATCH]
        lengths = {
            what: table[column].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
            for column, what in (("input_ids", "tokens"), ("document", "document numbers"))
        }
        wrong = np.flatnonzero(np.any([found != context_size for found in lengths.values()], axis=0))
        for number in wrong[:1]:
            what = next(what for what, found in lengths.items() if found[number] != context_size)
            found = lengths[what][number]
            raise RunError(f"{owner}: row {start + number} has {found} {what}, expected {context_size}")

    def _first_row_after(self, n_train: int) -> int | None:
        """The first row from `n_train` on with nothing of a document that stands in a row before `n_train`."""
        last_trained = NO_DOCUMENT
        for start in range(0, n_train, ROWS_PER_BATCH):
            documents = self._column("document", start, min(start + ROWS_PER_BATCH, n_train))
            last_trained = max(last_trained, int(documents.max()))
        for start in range(n_train, len(self), ROWS_PER_BATCH):
            documents = self._column("document", start, start + ROWS_PER_BATCH)
            first_of_row = np.where(documents == NO_DOCUMENT, np.iinfo(np.int32).max, documents).min(axis=1)
            for free in np.flatnonzero(first_of_row > last_trained)[:1]:
                return start + int(free)
        return None

    def _column(self, column: str, start: int, stop: int | None) -> np.ndarray:
        stop = len(self) if stop is None else min(stop, len(self))
        if stop <= start:
            return np.zeros((0, self.context_size), np.int32)
        table: Any = self.dataset.with_format("arrow")[start:stop]
        return _flat(table[column]).reshape(stop - start, -1)


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


def _flat(column: Any) -> Int[np.ndarray, " n"]:
    """The values of a column of lists, int32."""
    return np.asarray(column.combine_chunks().flatten().to_numpy(zero_copy_only=False), np.int32)


def _together(
    blocks: Iterator[tuple[np.ndarray, np.ndarray]], context_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """All blocks as one."""
    empty = np.zeros((0, context_size), np.int32)
    ids, documents = zip((empty, empty), *blocks, strict=True)
    return np.concatenate(ids), np.concatenate(documents)
