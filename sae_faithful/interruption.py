"""A Ctrl-C that is heard even where the exception it raised was lost."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

_arrived: socket.socket | None = None
"""Gives a byte for every signal that arrived since `recorded` began."""


@contextlib.contextmanager
def recorded() -> Generator[None]:
    """Let `check` know of every SIGINT and SIGTERM in this block, whoever handles them.

    A handler's exception is raised wherever the program is; in what C code calls, or under `except Exception`
    (SAELens's handler raises no KeyboardInterrupt), it is swallowed, and the Ctrl-C would have no effect.
    """
    global _arrived
    if _arrived is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    _arrived = reader
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        _arrived = None
        reader.close()
        writer.close()


def check() -> None:
    """Raise KeyboardInterrupt for a signal that has arrived; called once a step, batch and document."""
    if _arrived is None:
        return
    try:
        signals = _arrived.recv(64)
    except BlockingIOError:
        return
    if {signal.SIGINT, signal.SIGTERM} & set(signals):
        raise KeyboardInterrupt
