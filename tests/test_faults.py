"""Faults of the machine in one line each; errors of the program keep their tracebacks."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from sae_faithful.faults import fault, is_out_of_memory, out_of_memory_named
from sae_faithful.interfaces import RunError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/run/train.arrow")


def wrapped(inner: BaseException) -> BaseException:
    """As a library would raise it."""
    try:
        try:
            raise inner
        except type(inner) as error:
            raise ValueError("could not write") from error
    except ValueError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FULL, "no space left on the disk (/data/run/train.arrow): make room"),
        (wrapped(FULL), "no space left on the disk (/data/run/train.arrow)"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "no space left on the disk: make room"),
        # What safetensors, Arrow and torch raise.
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "no space"),
        (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"), "no space"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "no space"),
        (OSError(errno.EROFS, "Read-only file system", "/mnt/run"), "no permission for /mnt/run: Read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "/c"), "as --output and, for the cache, in SAE_F"),
        (OSError(errno.EIO, "Input/output error", "/mnt/run/x"), "the disk fails (/mnt/run/x): Input/output error"),
        (MemoryError(), "out of memory; what was finished is kept"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory"),
    ],
)  # fmt: skip
def test_a_fault_is_told_in_one_line(error: BaseException, line: str) -> None:
    told = fault(error)
    assert told is not None
    assert line in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such column"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
        RuntimeError("shape mismatch"),
        ValueError("file write failed"),  # torch's words, from somebody else
        wrapped(KeyError("position")),
    ],
)
def test_an_error_of_the_program_is_none(error: BaseException) -> None:
    assert fault(error) is None
    assert not is_out_of_memory(error)


def test_a_real_allocation_that_fails_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_a_cycle_of_causes_ends() -> None:
    one, other = ValueError("a"), ValueError("b")
    one.__cause__, other.__cause__ = other, one
    assert fault(one) is None


def test_running_out_of_memory_says_where_and_what_to_do() -> None:
    with (
        pytest.raises(RunError, match=r"out of memory while training; what was finished is kept: lower lr"),
        out_of_memory_named("training", "lower lr"),
    ):
        raise wrapped(MemoryError())
    with pytest.raises(ValueError, match="something else"), out_of_memory_named("training", "lower lr"):
        raise ValueError("something else")
