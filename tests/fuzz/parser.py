"""What the fuzzer knows of a parser."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Read = Callable[[bytes], object]


@dataclass(frozen=True)
class Parser:
    """One reader."""

    name: str
    kind: str
    """Of the input, for mutations: json, lines, text or binary."""
    examples: Sequence[bytes]
    read: Read
    share: float = 1.0
    """Of the inputs, beside the other readers'; less for slow ones."""
    module: str = ""
    """The module whose error branches it is to reach; several with blanks between."""


def with_file(path: Path, read: Callable[[], object]) -> Read:
    """`read` where the file at `path` is the input; afterwards it is as it was."""
    before = path.read_bytes() if path.exists() else None

    def with_input(data: bytes) -> None:
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
        finally:
            if before is not None:
                path.write_bytes(before)

    return with_input
