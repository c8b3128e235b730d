"""A Ctrl-C that is heard even where the exception it raised was lost."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

_arrived: socket.socket | None = None
"""Gives a byte for every signal that arrived since `recorded` began."""


@contextlib.contextmanager
def recorded() -> Generator[None]:
    """Let `check` know of every SIGINT and SIGTERM in this block, whoever handles them.

    A handler's exception is raised wherever the program is; in what C code calls, or under `except Exception`
    (SAELens's handler raises no KeyboardInterrupt), it is swallowed, and the Ctrl-C would have no effect.
    Where Python itself swallows it (in a finaliser, say) it prints a traceback, which is kept back: `check` will
    raise.
    """
    global _arrived
    if _arrived is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    report = sys.unraisablehook

    def report_errors(unraisable: Any) -> None:
        if not _of_interruption(unraisable.exc_type):
            report(unraisable)

    sys.unraisablehook = report_errors
    _arrived = reader
    try:
        yield
    finally:
        sys.unraisablehook = report
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


def _of_interruption(exception: type[BaseException] | None) -> bool:
    """Whether it is Python's KeyboardInterrupt or what SAELens's handler raises in its place (a plain Exception)."""
    return exception is not None and (
        issubclass(exception, KeyboardInterrupt)
        or (exception.__module__, exception.__name__)
        == ("sae_lens.training._interruption", "InterruptedException")
    )
