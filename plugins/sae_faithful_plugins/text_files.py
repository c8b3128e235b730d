"""Source `text_files`: local text and source code, JSON lines, CSV and Parquet."""

from __future__ import annotations

import fnmatch
import glob
import random
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_faithful import UsageError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sae_faithful import SourceRequest, TokenSet

TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
PACKAGE_PREFIX = "package/"
LONGEST_REASON = 200


@hookimpl
def register_sources(register: Callable[[str, type], None]) -> None:
    register("text_files", TextFiles)


@dataclass
class TextFiles:
    """Local files: .txt, .py and the like are a document each; .jsonl, .csv and .parquet one a row.

    Tables may be compressed (.gz, .zst, .xz, .bz2).
    """

    path: str | list[str]
    """Files or patterns (`**` for any depth), one or a list; `package/DISTRIBUTION/PATTERN` for files that an
    installed package carries."""
    column: str = "text"
    """The column with the text, in tables."""
    where: dict[str, str | int | float | bool] = field(default_factory=dict[str, "str | int | float | bool"])
    """Only rows of tables whose columns have these values, `{label: 1}` say."""
    shuffle: bool = True
    """Shuffle files, and rows of tables through a buffer, with the experiment's seed."""
    shuffle_buffer: int = 10_000
    """Rows of tables that are held in memory while they are shuffled. With fewer than there are, rows of a table stay
    near one another, and the held-out part, which is the last, may be of other tables than the rest."""
    encoding: str = "utf-8"
    """Of plain text; bytes that do not fit are replaced."""
    n_tokens: int | None = None
    """Distinct tokens to take; default: as the experiment's other sources."""

    def __post_init__(self) -> None:
        if self.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer {self.shuffle_buffer} is not positive")
        for pattern in [self.path] if isinstance(self.path, str) else self.path:
            files = find_files(pattern)
            if not files:
                raise ValueError(f"no file matches '{pattern}'")
            packed = next(
                (path for path in files if path.suffix in COMPRESSIONS and _table_kind(path) is None), None
            )
            if packed is not None:
                raise ValueError(f"'{packed}' is compressed text; only tables may be compressed")

    def load(self, request: SourceRequest) -> TokenSet:
        """Read files until they fill the request."""
        patterns = [self.path] if isinstance(self.path, str) else self.path
        files = sorted({path for pattern in patterns for path in find_files(pattern)})
        if self.shuffle:
            random.Random(request.seed).shuffle(files)
        texts = (text for text in self._texts(files, request.seed) if text.strip())
        return request.pack(request.tokenize(texts), card={"files": len(files)})

    def _texts(self, files: list[Path], seed: int) -> Iterator[str]:
        tables: dict[str, list[str]] = {}
        for path in files:
            kind = _table_kind(path)
            if kind is None:
                try:
                    text = path.read_text(encoding=self.encoding, errors="replace")
                except OSError as error:
                    raise _unreadable([str(path)], error) from error
                yield text
            else:
                tables.setdefault(kind, []).append(str(path))
        for kind, paths in tables.items():
            yield from self._rows(kind, paths, seed)

    def _rows(self, kind: str, paths: list[str], seed: int) -> Iterator[str]:
        from datasets import load_dataset

        try:
            rows: Any = load_dataset(kind, data_files=paths, split="train", streaming=True)
        except Exception as error:
            raise _unreadable(paths, error) from error
        if self.shuffle:
            rows = rows.shuffle(seed=seed % 2**32, buffer_size=self.shuffle_buffer)
        for row in _readable(rows, paths):
            for column in (self.column, *self.where):
                if column not in row:
                    raise UsageError(f"{paths[0]} has no column '{column}'; it has: {', '.join(row)}")
            if row[self.column] is not None and all(row[name] == value for name, value in self.where.items()):
                # Half of a pair of surrogates, which JSON can say, is no text that can be tokenised.
                yield str(row[self.column]).encode(errors="replace").decode()


def _readable(rows: Iterable[dict[str, Any]], paths: list[str]) -> Iterator[dict[str, Any]]:
    """Rows, as long as the files hold any.

    Raises:
        UsageError: whatever `datasets`, pyarrow, pandas or what unpacks the file find wrong with it.
    """
    reader = iter(rows)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except Exception as error:
            raise _unreadable(paths, error) from error
        yield row


def _unreadable(paths: list[str], error: Exception) -> UsageError:
    others = f" (or one of {len(paths) - 1} other tables)" if len(paths) > 1 else ""
    reason = " ".join((str(error) or type(error).__name__).split())[:LONGEST_REASON]
    return UsageError(f"{paths[0]}{others} cannot be read: {reason}")


def _table_kind(path: Path) -> str | None:
    """Which reader of `datasets` a table needs; None for plain text."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    return TABLES.get(suffixes[-1]) if suffixes else None


def find_files(pattern: str) -> list[Path]:
    """Files that a pattern names, sorted."""
    if pattern.startswith(PACKAGE_PREFIX):
        distribution, _, rest = pattern.removeprefix(PACKAGE_PREFIX).partition("/")
        try:
            carried = metadata.files(distribution) or []
        except metadata.PackageNotFoundError:
            raise ValueError(
                f"the package '{distribution}' is not installed; pip install {distribution}"
            ) from None
        return sorted(Path(str(file.locate())) for file in carried if fnmatch.fnmatch(str(file), rest))
    # Path.glob takes no absolute pattern.
    found = glob.glob(str(Path(pattern).expanduser()), recursive=True)  # noqa: PTH207
    return sorted(path for path in map(Path, found) if path.is_file())
