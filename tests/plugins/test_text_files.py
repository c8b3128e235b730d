"""Local text, code and tables become documents of token ids."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_faithful import TokenSet, UsageError, load_plugins
from sae_faithful_plugins.text_files import TextFiles, find_files

BOS = 0


@pytest.fixture
def load(make_request: Callable[..., Any]) -> Callable[..., TokenSet]:
    """Load everything the files hold, unshuffled unless a test says otherwise, in rows of 4."""

    def go(path: Any, *, seed: int = 7, n_tokens: int = 400, **options: Any) -> TokenSet:
        source = load_plugins().create(
            "source", "text_files", {"path": _plain(path), "shuffle": False, **options}
        )
        return source.load(make_request(seed=seed, n_tokens=n_tokens, context_size=4))

    return go


def _plain(path: Any) -> str | list[str]:
    return [str(one) for one in path] if isinstance(path, list) else str(path)


def documents(tokens: TokenSet) -> list[list[int]]:
    return [document[1:].tolist() for document in tokens.documents(BOS)]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# Three words and a BOS fill a row of 4 exactly: nothing is cut off, rows are documents.
THREE = [{"text": "w4 w5 w6"}, {"text": "w7 w8 w9"}, {"text": "w10 w11 w12"}]
THREE_IDS = [[4, 5, 6], [7, 8, 9], [10, 11, 12]]


def test_a_plain_text_file_is_one_document(load: Callable[..., TokenSet], tmp_path: Path) -> None:
    tokens = load(write(tmp_path / "a.txt", "w4 w5\nw6 w7 w8 w9\n"))
    # Six ids after BOS in rows of 4 that start with BOS: 0 4 5 6 | 0 7 8 9.
    assert tokens.rows().tolist() == [[0, 4, 5, 6], [0, 7, 8, 9]]
    assert documents(tokens) == [[4, 5, 6, 7, 8, 9]]


@pytest.mark.parametrize("name", ["a.txt", "a.py", "a.md", "README"])
def test_any_file_that_is_no_table_is_text(load: Callable[..., TokenSet], tmp_path: Path, name: str) -> None:
    assert documents(load(write(tmp_path / name, "w4 w5 w6"))) == [[4, 5, 6]]


def test_each_json_line_is_a_document(load: Callable[..., TokenSet], tmp_path: Path) -> None:
    assert documents(load(write(tmp_path / "a.jsonl", jsonl(THREE)))) == THREE_IDS


def test_each_csv_row_is_a_document(load: Callable[..., TokenSet], tmp_path: Path) -> None:
    text = 'text,other\n"w4 w5 w6",1\nw7 w8 w9,2\n"w10 w11\nw12",3\n'
    assert documents(load(write(tmp_path / "a.csv", text))) == THREE_IDS


def test_each_parquet_row_is_a_document(load: Callable[..., TokenSet], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(THREE), tmp_path / "a.parquet")
    assert documents(load(tmp_path / "a.parquet")) == THREE_IDS


def _zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress), (".zst", _zstd)],
)
def test_tables_may_be_compressed(
    load: Callable[..., TokenSet], tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(jsonl(THREE).encode()))
    assert documents(load(path)) == THREE_IDS


def test_the_text_may_be_in_another_column(load: Callable[..., TokenSet], tmp_path: Path) -> None:
    rows = [{"text": "w4 w5 w6", "prompt": "w7 w8 w9"}]
    assert documents(load(write(tmp_path / "a.jsonl", jsonl(rows)), column="prompt")) == [[7, 8, 9]]


def test_where_keeps_only_matching_rows(load: Callable[..., TokenSet], tmp_path: Path) -> None:
    rows = [
        {**row, "label": label, "lang": lang}
        for row, label, lang in zip(THREE, (1, 0, 1), "aab", strict=True)
    ]
    path = write(tmp_path / "a.jsonl", jsonl(rows))
    assert documents(load(path, where={"label": 1})) == [THREE_IDS[0], THREE_IDS[2]]
    assert documents(load(path, where={"label": 1, "lang": "b"})) == [THREE_IDS[2]]
    assert len(load(path, where={"lang": "c"})) == 0


def test_empty_and_missing_texts_are_left_out(load: Callable[..., TokenSet], tmp_path: Path) -> None:
    rows = [{"text": None}, THREE[0], {"text": "  \n"}, {"text": ""}, THREE[1]]
    assert documents(load(write(tmp_path / "a.jsonl", jsonl(rows)))) == THREE_IDS[:2]


def test_repeated_texts_are_dropped_and_counted(load: Callable[..., TokenSet], tmp_path: Path) -> None:
    tokens = load(write(tmp_path / "a.jsonl", jsonl([*THREE, *THREE[:2]])))
    assert documents(tokens) == THREE_IDS
    assert tokens.card["repeated_documents_dropped"] == 2


def test_bytes_that_are_no_utf8_are_replaced(load: Callable[..., TokenSet], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"w4 \xff w6")
    # The replacement character is no word: PAD (2), the tokenizer's unknown token.
    assert documents(load(tmp_path / "a.txt")) == [[4, 2, 6]]


def test_a_file_that_may_not_be_read_is_named(
    load: Callable[..., TokenSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.txt", "one")

    read_text = Path.read_text

    def refused(self: Path, *args: Any, **options: Any) -> str:
        if self.name == "a.txt":
            raise PermissionError(13, "Permission denied", str(self))
        return read_text(self, *args, **options)

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(UsageError, match=r"a\.txt cannot be read: .*Permission denied"):
        load(path)


def test_reading_stops_when_the_request_is_full(load: Callable[..., TokenSet], tmp_path: Path) -> None:
    tokens = load(write(tmp_path / "a.jsonl", jsonl(THREE)), n_tokens=8)
    assert documents(tokens) == THREE_IDS[:2]


# Which files


def test_patterns_find_files_at_any_depth_each_once(load: Callable[..., TokenSet], tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "w4 w5 w6")
    write(tmp_path / "deep" / "er" / "b.txt", "w7 w8 w9")
    write(tmp_path / "deep" / "c.md", "w10 w11 w12")
    assert documents(load(tmp_path / "**" / "*.txt")) == THREE_IDS[:2]
    # Two patterns that both find a.txt.
    tokens = load([tmp_path / "*.txt", tmp_path / "**" / "*.txt", tmp_path / "deep" / "c.md"])
    # By path: a.txt, deep/c.md, deep/er/b.txt.
    assert documents(tokens) == [THREE_IDS[0], THREE_IDS[2], THREE_IDS[1]]
    assert tokens.card["files"] == 3
    assert tokens.card["repeated_documents_dropped"] == 0


def test_a_folder_that_matches_is_no_file(tmp_path: Path) -> None:
    write(tmp_path / "a.txt" / "b.txt", "w4")
    assert find_files(str(tmp_path / "*.txt")) == []


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path / "a.txt", "w4")
    assert find_files("~/a.txt") == [path]


def test_plain_files_and_tables_go_together(load: Callable[..., TokenSet], tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "w4 w5 w6")
    write(tmp_path / "b.jsonl", jsonl(THREE[1:2]))
    write(tmp_path / "c.csv", "text\nw10 w11 w12\n")
    assert documents(load(tmp_path / "*")) == THREE_IDS


def test_files_of_an_installed_package_can_be_named() -> None:
    files = find_files("package/pluggy/pluggy/*.py")
    assert {"__init__.py", "_hooks.py"} <= {path.name for path in files}
    assert all(path.is_file() and path.suffix == ".py" for path in files)
    assert files == sorted(files)


def test_files_of_an_installed_package_can_be_loaded(load: Callable[..., TokenSet]) -> None:
    # Its words are unknown to the tiny tokenizer: PAD (2) after each row's BOS.
    tokens = load("package/pluggy/pluggy/_hooks.py")
    assert set(tokens.rows()[:, 1:].flatten().tolist()) <= {0, 2}
    assert tokens.card["files"] == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/*.txt", r"no file matches 'missing/\*\.txt'"),
        (["a.txt", "gone.txt"], "no file matches 'gone.txt'"),
        ("package/pluggy/nothing/*.txt", r"no file matches 'package/pluggy/nothing/\*\.txt'"),
        ("package/no-such-thing/*.txt", "the package 'no-such-thing' is not installed"),
    ],
)
def test_files_that_do_not_exist_are_an_error_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str | list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt", "w4")
    with pytest.raises(ValueError, match=message):
        TextFiles(path)
    # And so it comes from a config: one line for the user.
    with pytest.raises(UsageError, match=message):
        load_plugins().create("source", "text_files", {"path": path})


def test_a_missing_column_is_an_error_that_lists_the_columns(
    load: Callable[..., TokenSet], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.csv", "title,body\nw4,w5\n")
    with pytest.raises(UsageError, match=r"a\.csv has no column 'text'; it has: title, body"):
        load(path)
    with pytest.raises(UsageError, match=r"a\.csv has no column 'label'; it has: title, body"):
        load(path, column="body", where={"label": 1})


# Order


def test_without_shuffling_files_come_by_name_and_rows_in_order(
    load: Callable[..., TokenSet], tmp_path: Path
) -> None:
    for name, row in zip("cab", THREE, strict=True):
        write(tmp_path / f"{name}.txt", row["text"])
    assert documents(load(tmp_path / "*.txt")) == [THREE_IDS[1], THREE_IDS[2], THREE_IDS[0]]


@pytest.mark.parametrize(("shuffle_buffer", "mixed"), [(400, True), (10, False)])
def test_a_buffer_that_holds_all_rows_mixes_tables(
    load: Callable[..., TokenSet], tmp_path: Path, shuffle_buffer: int, mixed: bool
) -> None:
    # Forty tables of ten texts; the first word says which table it is. `datasets` reads up to ten tables in turns.
    for table in range(4, 44):
        write(tmp_path / f"{table}.jsonl", jsonl([{"text": f"w{table} w{44 + i} w54"} for i in range(10)]))
    found = documents(load(tmp_path / "*", n_tokens=1_600, shuffle=True, shuffle_buffer=shuffle_buffer))
    assert len(found) == 400
    tables = [document[0] for document in found]
    assert (set(tables[-40:]) <= set(tables[:200])) == mixed
    assert bool(set(tables[-40:]) & set(tables[:200])) == mixed


@pytest.mark.parametrize("rows", [0, -1])
def test_a_buffer_without_a_row_is_refused(tmp_path: Path, rows: int) -> None:
    path = str(write(tmp_path / "a.txt", "w4"))
    with pytest.raises(UsageError, match=rf"shuffle_buffer {rows} is not positive"):
        load_plugins().create("source", "text_files", {"path": path, "shuffle_buffer": rows})


def test_the_order_depends_on_the_seed_alone(load: Callable[..., TokenSet], tmp_path: Path) -> None:
    rows = [{"text": f"w{i} w{i + 1} w{i + 2}"} for i in range(4, 44)]
    folders = [tmp_path / "one", tmp_path / "two"]
    # The same files made in another order, half the texts plain and half in a table.
    for folder, order in zip(folders, (range(20), reversed(range(20))), strict=True):
        for i in order:
            write(folder / f"{i:02d}.txt", rows[i]["text"])
        write(folder / "rows.jsonl", jsonl(rows[20:]))
    first, again = (documents(load(folder / "*", shuffle=True)) for folder in folders)
    assert first == again
    other = documents(load(folders[0] / "*", shuffle=True, seed=8))
    unshuffled = documents(load(folders[0] / "*"))
    # Plain files and rows of tables are both shuffled, and nothing is lost.
    for part in (slice(0, 20), slice(20, 40)):
        assert sorted(first[part]) == sorted(other[part]) == sorted(unshuffled[part])
        assert first[part] != other[part]
        assert first[part] != unshuffled[part]
