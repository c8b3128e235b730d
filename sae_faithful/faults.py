"""Faults of the machine, not of the program: a full disk, no permission, no memory; in one line each."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from sae_faithful.interfaces import RunError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

FULL = ("no space left on device", "disk quota exceeded", "not enough space")
# torch says no more of a write that failed.
FULL_SAYS_TORCH = ("pytorchstreamwriter failed", "file write failed", "unexpected pos")
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "alloc_failed", "bad_alloc")


def fault(error: BaseException) -> str | None:
    """What a stranger should read of `error`; None where it is an error of the program, whose traceback matters.

    Libraries wrap what the system told them, or pass on its text alone.
    """
    for cause in _causes(error):
        named = cause.filename if isinstance(cause, OSError) else None
        where = f" ({named})" if named else ""
        text = str(cause).lower()
        if _is_any(text, FULL) or (isinstance(cause, RuntimeError) and _is_any(text, FULL_SAYS_TORCH)):
            return (
                f"no space left on the disk{where}: make room and run the same command again; "
                "what was finished is kept"
            )
        if isinstance(cause, OSError) and cause.errno in REFUSED:
            return (
                f"no permission for {named or 'a file'}: {cause.strerror}; give folders that can "
                "be written, as --output and, for the cache, in SAE_FAITHFUL_CACHE"
            )
        if isinstance(cause, OSError) and cause.errno == errno.EIO:
            return f"the disk fails{where}: {cause.strerror}; what was finished is kept"
    if is_out_of_memory(error):
        return "out of memory; what was finished is kept: run the same command again with more, or with smaller batches"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device."""
    return any(
        isinstance(cause, MemoryError)
        or (isinstance(cause, RuntimeError) and _is_any(str(cause).lower(), NO_MEMORY))
        for cause in _causes(error)
    )


@contextlib.contextmanager
def out_of_memory_named(doing: str, advice: str) -> Generator[None]:
    """Where the outcome depends on the batch, running out of memory in this block is an error that says what to do."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"out of memory while {doing}; what was finished is kept: {advice}") from error


def _is_any(text: str, phrases: tuple[str, ...]) -> bool:
    return any(phrase in text for phrase in phrases)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
