"""Reading what lies on disk and may be damaged, or somebody else's: what is wrong with it is one line that names it."""

from __future__ import annotations

import contextlib
import json
import math
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

from sae_faithful.interfaces import EvalResult, RunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    import pandas as pd

LONGEST_REASON = 200
KEY = ["source", "hook", "variant", "seed", "latent"]
"""Columns of `features.parquet` that say which latent a row is of."""
WHAT_TO_DO = "delete what is damaged and run again, or take it from where it came"
MISSHAPEN = (
    LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, AssertionError, OSError,
)  # fmt: skip
"""What comes of using a document that is not shaped as expected. UsageError is a ValueError, but goes its way."""

_read: ContextVar[list[Path] | None] = ContextVar("read", default=None)
"""Files that were read in the innermost `reading` block."""


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        RunError: it cannot be read or is no JSON; numbers that are none (NaN, Infinity, 1e999) are no JSON either.
    """
    with blamed_on(path):
        return _parsed(path.read_text(encoding="utf-8"))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines.

    Raises:
        RunError: it cannot be read, or a line (which is named) is no JSON object.
    """
    with blamed_on(path):
        # Not splitlines(): JSON may hold other ends of lines in its strings.
        lines = path.read_text(encoding="utf-8").split("\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        with blamed_on(path, f", line {number}"):
            row = _parsed(line)
            if not isinstance(row, dict):
                raise ValueError(f"{type(row).__name__}, not an object")
            rows.append(row)
    return rows


@contextlib.contextmanager
def blamed_on(path: Path, where: str = "") -> Generator[None]:
    """What fails in this block, which does nothing but read it, fails because of the file at `path`.

    Raises:
        RunError: naming it and `where` in it.
    """
    if (read := _read.get()) is not None and path not in read:
        read.append(path)
    try:
        yield
    except (UsageError, RunError):
        raise
    except Exception as error:  # of whichever library reads it; a damaged length runs out of memory
        raise RunError(f"{path}{where} cannot be read: {reason_of(error)}; {WHAT_TO_DO}") from error


@contextlib.contextmanager
def reading(what: str) -> Generator[None]:
    """What fails in this block fails because of the files that are read in it.

    For documents with too many shapes to check each before it is used. `--debug` shows where it failed.

    Raises:
        RunError: naming the files, or `what` where none was read.
    """
    token = _read.set([])
    try:
        yield
    except (UsageError, RunError):
        raise
    except MISSHAPEN as error:
        files = [str(path) for path in _read.get() or []]
        named = ", ".join(files[-3:]) + (f" (or one of {len(files) - 3} others)" if len(files) > 3 else "")
        raise RunError(
            f"{named or what} is not as sae-faithful writes it: {reason_of(error)}; {WHAT_TO_DO}"
        ) from error
    finally:
        _read.reset(token)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Rows that evaluators wrote, each with every field of `EvalResult`.

    Raises:
        RunError: it cannot be read, or a line (which is named) is no such row.
    """
    adapter = _rows_adapter()
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(read_json_lines(path), start=1):
        with blamed_on(path, f", row {number}"):
            rows.append(vars(adapter.validate_json(json.dumps(row))))
    return rows


def read_features(path: Path) -> pd.DataFrame:
    """Columns of one number a latent.

    Raises:
        RunError: it cannot be read, lacks a column that says which latent it is, or has one that is no number.
    """
    import pandas as pd

    with blamed_on(path):
        table = pd.read_parquet(path)
        for name in KEY:
            if name not in table.columns or table[name].isna().any():
                raise ValueError(f"not every row has a value in the column '{name}'")
        if not table.columns.is_unique:
            raise ValueError("a column is there twice")
        for name in table.columns:
            if name in KEY[:3] and not table[name].map(lambda one: isinstance(one, str)).all():
                raise ValueError(f"the column '{name}' holds other things than names")
            if name in KEY[3:]:
                table[name] = table[name].astype(int)
            elif name not in KEY:
                table[name].astype(float)
        return table


@cache
def _rows_adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(EvalResult)


def reason_of(error: BaseException) -> str:
    """An error in a few words, on one line."""
    from pydantic import ValidationError

    text = str(error)
    if isinstance(error, ValidationError):
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
        text = "; ".join(
            ": ".join(filter(None, [".".join(map(str, one["loc"])), one["msg"]])) for one in wrong
        )
    text = " ".join(text.split())[:LONGEST_REASON]
    # A KeyError's text is the key alone.
    return text if text and not isinstance(error, LookupError) else f"{type(error).__name__} {text}".strip()


def _parsed(text: str) -> Any:
    return json.loads(text, parse_constant=_no_number, parse_float=_finite)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")
