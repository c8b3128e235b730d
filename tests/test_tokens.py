from __future__ import annotations

import os
import signal
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from datasets.table import MemoryMappedTable

from sae_faithful import interruption
from sae_faithful.interfaces import RunError
from sae_faithful.packing import NO_DOCUMENT
from sae_faithful.tokens import TokenSet, row_batches, special_token_mask

BOS = 0


# Building


def test_empty_documents_and_repeats_are_dropped_and_repeats_counted() -> None:
    documents = [[5], [], [6], [5], [5], [7], [6]]
    tokens = TokenSet.from_documents(documents, n_tokens=100, context_size=2, bos_token_id=BOS, card={"x": 1})
    # Left are 5, 6, 7: 0 5 | 0 6 | 0 7; dropped are two of 5 and one of 6.
    assert tokens.rows().tolist() == [[0, 5], [0, 6], [0, 7]]
    # 5 came again when 5 and 6 had come, twice; 6 again when all three had.
    repeats = [[0, 2], [0, 2], [1, 3]]
    assert tokens.card == {"x": 1, "documents": 3, "repeated_documents_dropped": 3, "repeats": repeats}


def test_a_document_that_only_begins_like_another_is_kept() -> None:
    tokens = TokenSet.from_documents([[5], [5, 6]], n_tokens=100, context_size=5, bos_token_id=BOS)
    assert tokens.rows().tolist() == [[0, 5, 0, 5, 6]]


@pytest.mark.parametrize(("n_tokens", "rows"), [(3, 0), (4, 1), (7, 1), (8, 2), (40, 10)])
def test_an_endless_source_is_read_to_whole_rows_within_the_tokens_asked_for(
    n_tokens: int, rows: int
) -> None:
    endless = ([number, number, number] for number in count(5) if number < 1_000)
    tokens = TokenSet.from_documents(endless, n_tokens=n_tokens, context_size=4, bos_token_id=BOS)
    assert (len(tokens), tokens.n_tokens) == (rows, 4 * rows)


def test_a_source_that_runs_dry_gives_the_rows_it_fills() -> None:
    tokens = TokenSet.from_documents([[5, 6, 7], [8]], n_tokens=4_000, context_size=4, bos_token_id=BOS)
    assert tokens.rows().tolist() == [[0, 5, 6, 7]]


def test_no_documents_make_an_empty_set() -> None:
    tokens = TokenSet.from_documents([], n_tokens=100, context_size=4, bos_token_id=BOS)
    assert (len(tokens), tokens.context_size, tokens.n_tokens) == (0, 0, 0)
    assert list(tokens.documents(BOS)) == []
    with pytest.raises(RunError, match=r"^'news' gave fewer tokens than one row of 4$"):
        tokens.check("'news'", context_size=4, vocab_size=64)


def test_rows_without_documents_are_documents_of_their_own() -> None:
    tokens = TokenSet.from_rows(np.array([[0, 5, 6], [0, 7, 8]]))
    assert tokens.dataset["document"][:] == [[0, 0, 0], [1, 1, 1]]
    assert tokens.arrays()[0].dtype == np.int32


def test_rows_on_disk_are_those_in_memory() -> None:
    ids = np.arange(2_100 * 3).reshape(-1, 3)
    made = TokenSet.on_disk(ids[start : start + 1_000] for start in range(0, 2_100, 1_000))
    assert isinstance(made.dataset.data, MemoryMappedTable)
    held = TokenSet.from_rows(ids)
    for part in (slice(0, None), slice(998, 2_003)):
        for one, other in zip(made.arrays(), held.arrays(), strict=True):
            np.testing.assert_array_equal(one[part], other[part])
    assert made.head(1_500).rows(1_499).tolist() == [[4_497, 4_498, 4_499]]
    # The file has no name any more.
    assert not Path(made.dataset.cache_files[0]["filename"]).exists()


def test_a_dataset_without_documents_has_one_a_row() -> None:
    tokens = TokenSet.from_dataset(Dataset.from_dict({"input_ids": [[0, 5, 6], [0, 7, 8]]}))
    assert tokens.arrays()[1].tolist() == [[0, 0, 0], [1, 1, 1]]


def test_a_dataset_with_documents_keeps_them() -> None:
    dataset = Dataset.from_dict({"input_ids": [[0, 5], [6, 7]], "document": [[3, 3], [3, 4]]})
    assert TokenSet.from_dataset(dataset).arrays()[1].tolist() == [[3, 3], [3, 4]]


def test_rows_and_head_give_the_rows_named() -> None:
    tokens = TokenSet.from_rows(np.arange(12).reshape(4, 3), card={"x": 1}, prompt_length=2)
    assert tokens.rows(1, 3).tolist() == [[3, 4, 5], [6, 7, 8]]
    assert tokens.rows(3, 9).tolist() == [[9, 10, 11]]
    assert tokens.rows(2).tolist() == [[6, 7, 8], [9, 10, 11]]
    assert tokens.rows(4).shape == (0, 3)
    assert tokens.head(2).rows().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(tokens.head(9)) == 4
    assert (tokens.head(2).prompt_length, tokens.head(2).card) == (2, {"x": 1})


def test_rows_at_are_in_the_order_asked_for() -> None:
    tokens = TokenSet.from_rows(np.arange(30).reshape(10, 3))
    _, held_out = tokens.split(0.3)
    assert held_out.rows_at(np.array([2, 0, 2])).tolist() == [[27, 28, 29], [21, 22, 23], [27, 28, 29]]
    assert held_out.rows_at(np.array([1])).dtype == np.int64


def test_rows_of_a_part_are_the_parts_own() -> None:
    # A part is a view of the whole with an index: reading must follow the index.
    tokens = TokenSet.from_rows(np.arange(30).reshape(10, 3))
    _, held_out = tokens.split(0.3)
    assert held_out.rows(1, 3).tolist() == [[24, 25, 26], [27, 28, 29]]


# The split


def test_rows_that_continue_a_trained_document_are_on_neither_side() -> None:
    # Ten rows, 30 % held out: rows 7, 8, 9; row 7 still holds document 6, which row 6 trains on.
    owners = np.repeat(np.arange(10), 4).reshape(10, 4)
    owners[7] = [6, 6, 7, 7]
    owners[8] = [NO_DOCUMENT, 7, 7, 7]
    tokens = TokenSet.from_rows(np.arange(40).reshape(10, 4), owners)
    train, held_out = tokens.split(0.3)
    assert train.rows().tolist() == np.arange(28).reshape(7, 4).tolist()
    assert held_out.rows().tolist() == np.arange(32, 40).reshape(2, 4).tolist()


@pytest.mark.parametrize("eos", [1, BOS])
def test_sources_of_one_size_train_on_equal_rows_and_share_no_text_with_the_held_out(eos: int) -> None:
    rng = np.random.default_rng(1)
    for n_rows in (40, 41, 57, 70, 99):
        sizes: set[int] = set()
        for shortest in (2, 12):
            # Every document is made of one number of its own, so that tokens tell documents apart.
            documents = [
                [number] * int(rng.integers(shortest, 2 * shortest)) + [eos] for number in range(2, 1_000)
            ]
            tokens = TokenSet.from_documents(documents, n_tokens=8 * n_rows, context_size=8, bos_token_id=BOS)
            assert len(tokens) == n_rows
            train, held_out = tokens.split()
            sizes.add(len(train))
            assert not set(train.rows().flat) & set(held_out.rows().flat) - {BOS, eos}
            assert 0 < len(held_out) <= n_rows - len(train)
        # ⌊0.9 · rows⌋, in whole numbers.
        assert sizes == {9 * n_rows // 10}


def test_the_parts_keep_card_and_prompt_length() -> None:
    tokens = TokenSet.from_rows(np.zeros((10, 4), np.int64), card={"x": 1}, prompt_length=3)
    for part in tokens.split():
        assert (part.prompt_length, part.card) == (3, {"x": 1})


@pytest.mark.parametrize(
    "owners",
    [
        pytest.param(np.zeros((20, 4), np.int64), id="one document through everything"),
        pytest.param(
            np.minimum(np.arange(80).reshape(20, 4), 60), id="one document through the held-out rows"
        ),
        pytest.param(np.zeros((1, 4), np.int64), id="one row"),
    ],
)
def test_a_set_that_cannot_be_split_says_so(owners: np.ndarray) -> None:
    tokens = TokenSet.from_rows(np.zeros_like(owners), owners)
    with pytest.raises(RunError, match=rf"cannot hold out 10% of {len(owners)} rows at a document boundary"):
        tokens.split()


# Files


def test_equal_sets_give_equal_bytes_however_they_were_made(tmp_path: Path) -> None:
    documents = [[n, n + 1, n + 2] for n in range(2, 62)]
    made = TokenSet.from_documents(documents, n_tokens=2_000, context_size=5, bos_token_id=BOS)
    ids, owners = made.arrays()
    ways = {
        "made": made,
        "arrays": TokenSet.from_rows(ids.astype(np.int64), owners.astype(np.int64)),
        "lists": TokenSet.from_dataset(
            Dataset.from_dict({"input_ids": ids.tolist(), "document": owners.tolist()})
        ),
        "part": TokenSet.from_rows(np.vstack([ids, ids]), np.vstack([owners, owners])).head(len(made)),
    }
    for name, tokens in ways.items():
        tokens.save(tmp_path / name)
    reference = (tmp_path / "made").read_bytes()
    assert {name: (tmp_path / name).read_bytes() == reference for name in ways} == dict.fromkeys(ways, True)


def test_rows_written_as_they_fill_are_the_rows_held_in_memory(tmp_path: Path) -> None:
    # 2,400 rows: three record batches, the last of them not full.
    rng = np.random.default_rng(0)
    documents = [[*rng.integers(2, 6, size=rng.integers(0, 9)).tolist()] for _ in range(4_000)]
    options: dict[str, Any] = {"n_tokens": 12_000, "context_size": 5, "bos_token_id": BOS, "prompt_length": 2}
    held = TokenSet.from_documents(documents, **options, card={"x": 1})
    written = TokenSet.from_documents(documents, **options, card={"x": 1}, path=tmp_path / "rows.arrow")
    assert len(held) == 2_400
    assert held.card["repeats"]
    assert (dict(written.card), written.prompt_length) == (dict(held.card), held.prompt_length)
    held.save(tmp_path / "held")
    assert (tmp_path / "rows.arrow").read_bytes() == (tmp_path / "held").read_bytes()
    # The digests of what was seen are gone.
    assert {path.name for path in tmp_path.iterdir()} == {"rows.arrow", "held"}
    parts = [tokens.split() for tokens in (held, written)]
    for one, other in zip(*parts, strict=True):
        np.testing.assert_array_equal(one.arrays(), other.arrays())


def test_a_file_is_the_one_that_arrow_would_write_of_all_rows_at_once(tmp_path: Path) -> None:
    tokens = TokenSet.from_rows(np.arange(2_345 * 3).reshape(-1, 3))
    tokens.save(tmp_path / "ours")
    table = tokens.dataset.with_format("arrow")[:].replace_schema_metadata(None)
    with (tmp_path / "arrow").open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=1_000)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "arrow").read_bytes()


def test_different_sets_give_different_bytes(tmp_path: Path) -> None:
    ids = np.arange(12).reshape(3, 4)
    TokenSet.from_rows(ids).save(tmp_path / "own")
    TokenSet.from_rows(ids, np.zeros_like(ids)).save(tmp_path / "one")
    assert (tmp_path / "own").read_bytes() != (tmp_path / "one").read_bytes()


def test_a_saved_set_opens_memory_mapped_and_equal(tmp_path: Path) -> None:
    # More rows than are written at once (1,000).
    rng = np.random.default_rng(0)
    ids, owners = rng.integers(0, 64, (2_345, 7)), np.sort(rng.integers(0, 99, 2_345 * 7)).reshape(-1, 7)
    path = tmp_path / "train.arrow"
    TokenSet.from_rows(ids, owners).save(path)
    opened = TokenSet.open(path, prompt_length=3)
    assert isinstance(opened.dataset.data, MemoryMappedTable)
    assert opened.dataset.cache_files == [{"filename": str(path)}]
    assert opened.prompt_length == 3
    np.testing.assert_array_equal(opened.arrays()[0], ids)
    np.testing.assert_array_equal(opened.arrays()[1], owners)
    np.testing.assert_array_equal(opened.rows(998, 1_003), ids[998:1_003])


@pytest.mark.parametrize("which", [0, 1])
def test_a_file_whose_names_are_no_text_is_refused(tmp_path: Path, which: int) -> None:
    path = tmp_path / "train.arrow"
    TokenSet.from_rows(np.arange(12).reshape(3, 4)).save(path)
    # The items of the lists of either column.
    parts = path.read_bytes().split(b"item\0")
    assert len(parts) == 3
    between = [b"item\0", b"item\0"]
    between[which] = b"i\xf4em\0"
    path.write_bytes(parts[0] + between[0] + parts[1] + between[1] + parts[2])
    with pytest.raises(RunError, match=r"train\.arrow cannot be read: .*utf-8"):
        TokenSet.open(path)


# For SAELens


def test_saelens_gets_ids_alone_and_cannot_change_the_original() -> None:
    tokens = TokenSet(TokenSet.from_rows(np.arange(6).reshape(2, 3)).dataset.with_format("numpy"))
    copy = tokens.for_saelens()
    assert copy.column_names == ["input_ids"]
    assert copy[:]["input_ids"] == [[0, 1, 2], [3, 4, 5]]
    copy.set_format(type="torch", columns=["input_ids"])
    assert tokens.dataset.format["type"] == "numpy"
    assert tokens.dataset.column_names == ["input_ids", "document"]


# Checks


def test_a_good_set_passes_the_check() -> None:
    ids = np.array([[0, 63, 5], [0, 1, 2]])
    owners = np.array([[4, 4, 4], [NO_DOCUMENT, 4, 7]])
    TokenSet.from_rows(ids, owners).check("'news'", context_size=3, vocab_size=64)


def test_the_check_names_the_row_of_the_wrong_length() -> None:
    dataset = Dataset.from_dict({"input_ids": [[0, 5, 6], [0, 7], [0]], "document": [[0, 0, 0], [1, 1], [2]]})
    with pytest.raises(RunError, match=r"^source 'news': row 1 has 2 tokens, expected 3$"):
        TokenSet(dataset).check("source 'news'", context_size=3, vocab_size=64)


def test_the_check_names_the_row_with_too_few_document_numbers() -> None:
    dataset = Dataset.from_dict({"input_ids": [[0, 5], [0, 7]], "document": [[0, 0], [1]]})
    with pytest.raises(RunError, match=r"^source 'news': row 1 has 1 document numbers, expected 2$"):
        TokenSet(dataset).check("source 'news'", context_size=2, vocab_size=64)


@pytest.mark.parametrize("bad", [64, -1])
def test_the_check_names_the_first_row_with_an_id_the_model_does_not_have(bad: int) -> None:
    ids = np.full((5, 3), 7)
    ids[2, 1] = bad
    ids[4, 0] = 99
    message = rf"^source 'news': row 2 has the token id {bad}, outside the vocabulary of 64$"
    with pytest.raises(RunError, match=message):
        TokenSet.from_rows(ids).check("source 'news'", context_size=3, vocab_size=64)


@pytest.mark.parametrize(
    "owners", [[[0, 1, 0], [2, 2, 2]], [[5, 5, 5], [4, 4, 4]], [[3, 3, 3], [NO_DOCUMENT, 2, 3]]]
)
def test_the_check_refuses_document_numbers_that_decrease(owners: list[list[int]]) -> None:
    tokens = TokenSet.from_rows(np.full((2, 3), 7), np.array(owners))
    with pytest.raises(RunError, match="source 'news': document numbers decrease"):
        tokens.check("source 'news'", context_size=3, vocab_size=64)


def test_special_tokens_do_not_count() -> None:
    mask = special_token_mask(np.array([[0, 5, 1], [2, 0, 7]]), [0, 1])
    assert mask.tolist() == [[False, True, False], [True, False, True]]
    assert special_token_mask(np.array([[0, 5]]), []).all()
    assert special_token_mask(np.array([0, 5, 1]), [0, 1]).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("n_rows", "tokens_per_row", "tokens_per_batch", "expected"),
    [
        (7, 10, 39, [(0, 3), (3, 6), (6, 7)]),
        (6, 10, 30, [(0, 3), (3, 6)]),
        (2, 10, 9, [(0, 1), (1, 2)]),  # a row that is too long is a batch all the same
        (2, 10, 1_000, [(0, 2)]),
        (3, 0, 2, [(0, 2), (2, 3)]),
        (0, 10, 30, []),
    ],
)
def test_rows_are_cut_into_batches_that_hold_so_many_tokens(
    n_rows: int, tokens_per_row: int, tokens_per_batch: int, expected: list[tuple[int, int]]
) -> None:
    batches = row_batches(n_rows, tokens_per_row, tokens_per_batch)
    assert [(rows.start, rows.stop) for rows in batches] == expected


def test_a_ctrl_c_whose_exception_was_lost_is_heard_between_two_batches() -> None:
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with interruption.recorded():
            batches = row_batches(4, 1, 1)
            assert next(batches) == slice(0, 1)
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                next(batches)
    finally:
        signal.signal(signal.SIGINT, before)
