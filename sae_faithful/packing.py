"""Documents into rows: each different document once, one after another, cut into rows, written as they fill."""

from __future__ import annotations

import errno
import hashlib
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import interruption

if TYPE_CHECKING:
    import types
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from jaxtyping import Int

NO_DOCUMENT = -1
"""The `document` of a BOS that packing put at the start of a row: nobody's token."""

ROWS_PER_BATCH = 1_000
"""Rows of one record batch of a file: as many are held while it is written or read."""
SEEN_CACHE_KB = 16 * 1024
"""Of the database of documents that were seen; what is beyond it is on disk."""


class SeenDocuments:
    """Which documents have come before, however many: digests of 16 bytes in a database on disk.

    A set in memory would take about 200 bytes a document: 15 GB for 10 billion tokens in documents of 128.
    To be used in one `with` block; the file is removed at its end.
    """

    def __init__(self, file: Path | None = None) -> None:
        """`file`: where the digests go; None: a file of SQLite's own, in the system's folder for such files."""
        import sqlite3

        self.repeats: list[tuple[int, int]] = []
        """Of `distinct`: the number of each document that came again, and how many had come before that."""
        if file is not None:
            # Of a process that was killed and had the same number.
            file.unlink(missing_ok=True)
        self._file = file
        self._n = 0
        self._error: type[sqlite3.Error] = sqlite3.Error
        self._database = sqlite3.connect(
            "" if file is None else str(file), isolation_level=None, check_same_thread=False
        )
        # Nobody reads it after a crash: no journal, no waiting for the disk.
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{SEEN_CACHE_KB}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute(
            "CREATE TABLE seen (digest BLOB PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def __enter__(self) -> SeenDocuments:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._database.close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def __len__(self) -> int:
        """Different documents so far."""
        return self._n

    def number(self, document: np.ndarray) -> int | None:
        """Its number if it came before, counted from 0 over different ones; from now on it has one.

        Raises:
            OSError: the disk is full.
        """
        digest = hashlib.blake2b(np.asarray(document, np.int32).tobytes(), digest_size=16).digest()
        try:
            added = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, self._n))
            if added.rowcount:
                self._n += 1
                return None
            return self._database.execute("SELECT number FROM seen WHERE digest = ?", (digest,)).fetchone()[0]
        except self._error as error:
            raise OSError(
                errno.ENOSPC, f"digests of documents cannot be written: {error}", self._file
            ) from error

    def distinct(self, documents: Iterable[Sequence[int] | np.ndarray]) -> Iterator[np.ndarray]:
        """Documents (token ids, int32) without empty ones and without those that came before.

        Raises:
            KeyboardInterrupt: between two of them, for a Ctrl-C whose own exception was lost.
        """
        for document in documents:
            interruption.check()
            array = np.asarray(document, np.int32)
            if len(array) == 0:
                continue
            number = self.number(array)
            if number is None:
                yield array
            else:
                self.repeats.append((number, len(self)))


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


def in_blocks(
    rows: Iterator[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[Int[np.ndarray, "rows context"], Int[np.ndarray, "rows context"]]]:
    """Rows as `pack` yields them, so many together as stand in one record batch."""
    while block := list(islice(rows, ROWS_PER_BATCH)):
        ids, owners = zip(*block, strict=True)
        yield np.stack(ids), np.stack(owners)


def write_rows(path: Path, blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write rows and their documents into an Arrow stream file, block by block; equal rows give equal bytes.

    Args:
        path: the file.
        blocks: ids and documents [rows, context], int32; `ROWS_PER_BATCH` rows each but for the last.
    """
    import pyarrow as pa

    of_ids = pa.list_(pa.int32())
    schema = pa.schema([("input_ids", of_ids), ("document", of_ids)])
    with path.open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for ids, documents in blocks:
            for batch in table_of(ids, documents).to_batches():
                writer.write_batch(batch)


def table_of(ids: Int[np.ndarray, "rows context"], documents: Int[np.ndarray, "rows context"]) -> Any:
    """Both as columns of an Arrow table, lists of int32."""
    import pyarrow as pa

    offsets = np.arange(0, ids.size + 1, ids.shape[1] or 1, dtype=np.int32)
    columns = {
        name: pa.ListArray.from_arrays(offsets, np.ascontiguousarray(array, np.int32).reshape(-1))
        for name, array in (("input_ids", ids), ("document", documents))
    }
    return pa.table(columns)
