"""Packing, and what it needs to know of documents that were packed already."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sae_faithful.packing import NO_DOCUMENT, SeenDocuments, pack

if TYPE_CHECKING:
    from pathlib import Path

BOS = 0


def packed(
    documents: list[list[int]], context_size: int, *, begin_rows_with_bos: bool = True
) -> tuple[list[list[int]], list[list[int]]]:
    rows = list(
        pack(documents, context_size=context_size, bos_token_id=BOS, begin_rows_with_bos=begin_rows_with_bos)
    )
    return [ids.tolist() for ids, _ in rows], [owners.tolist() for _, owners in rows]


def test_a_row_that_starts_inside_a_document_gets_a_bos_that_is_nobodys() -> None:
    # The stream 0 5 6 0 7 0 8 9 10 …: the second row starts inside document 1.
    ids, owners = packed([[5, 6], [7], [8, 9, 10], [11]], 4)
    assert ids == [[0, 5, 6, 0], [0, 7, 0, 8], [0, 9, 10, 0]]
    assert owners == [[0, 0, 0, 1], [NO_DOCUMENT, 1, 2, 2], [NO_DOCUMENT, 2, 2, 3]]


def test_a_row_that_starts_with_a_document_has_that_documents_bos_alone() -> None:
    ids, owners = packed([[5, 6], [7, 8]], 3)
    assert ids == [[0, 5, 6], [0, 7, 8]]
    assert owners == [[0, 0, 0], [1, 1, 1]]


def test_no_second_separator_follows_an_eos_that_is_bos() -> None:
    # 0 5 0 6 | (0) 7 0 8: the 0 that ends a document also begins the next.
    ids, owners = packed([[5, 0], [6, 7, 0], [8]], 4)
    assert ids == [[0, 5, 0, 6], [0, 7, 0, 8]]
    assert owners == [[0, 0, 0, 1], [NO_DOCUMENT, 1, 1, 2]]


def test_a_document_whose_separator_fell_into_the_row_before_still_sees_a_bos() -> None:
    # Document 0 ends its row with EOS, which is BOS: document 1 has no BOS of its own.
    ids, owners = packed([[5, 0], [6, 7]], 3)
    assert ids == [[0, 5, 0], [0, 6, 7]]
    assert owners == [[0, 0, 0], [NO_DOCUMENT, 1, 1]]


def test_rows_without_begin_rows_with_bos_are_the_plain_stream() -> None:
    ids, owners = packed([[5, 6], [7], [8, 9, 10]], 4, begin_rows_with_bos=False)
    assert ids == [[0, 5, 6, 0], [7, 0, 8, 9]]
    assert owners == [[0, 0, 0, 1], [1, 2, 2, 2]]


def test_a_long_document_runs_over_several_rows() -> None:
    ids, owners = packed([[1, 2, 3, 4, 5, 6, 7, 8]], 3)
    # 0 1 2 | (0) 3 4 | (0) 5 6 | (0) 7 8.
    assert ids == [[0, 1, 2], [0, 3, 4], [0, 5, 6], [0, 7, 8]]
    assert owners == [[0, 0, 0]] + [[NO_DOCUMENT, 0, 0]] * 3


def test_a_last_partial_row_is_lost() -> None:
    assert packed([[5, 6]], 4) == ([], [])
    assert packed([[5, 6, 7, 8, 9]], 4)[0] == [[0, 5, 6, 7]]


def test_rows_once_given_do_not_change() -> None:
    rows = pack([[1, 2], [3, 4]], context_size=3, bos_token_id=BOS, begin_rows_with_bos=True)
    first, _ = next(rows)
    next(rows)
    assert first.tolist() == [0, 1, 2]


def test_a_document_is_new_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 4, size=rng.integers(1, 6)) for _ in range(3_000)]
    numbers: dict[bytes, int] = {}
    with SeenDocuments(tmp_path / "seen") as seen:
        assert (tmp_path / "seen").exists()
        for document in documents:
            key = document.tobytes()
            assert seen.number(document) == numbers.get(key)
            numbers.setdefault(key, len(numbers))
        assert len(seen) == len(numbers)
    assert 500 < len(numbers) < 2_500
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_error_of_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_faithful.packing.SEEN_CACHE_KB", 8)
    with SeenDocuments(tmp_path / "seen") as seen, pytest.raises(OSError, match="digests of") as raised:
        # As a full disk would: no more than 16 pages of 4 kB.
        seen._database.execute("PRAGMA max_page_count = 16")
        for number in range(100_000):
            seen.number(np.array([number]))
    assert raised.value.errno == errno.ENOSPC
