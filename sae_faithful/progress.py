"""How far a long step has come: a bar on a terminal, a plain line every 30 s in a log file, nothing when silenced."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from sae_faithful import interruption

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0

_silenced = 0
"""How many `silenced` blocks this is inside of."""


class Progress:
    """Counts a long step's parts and shows them: `with Progress("probing: texts", 400, "texts") as progress: ...`.

    On a terminal (stderr) and in a notebook it is tqdm's bar, gone when the step is. Elsewhere it is a line through
    `logging` every 30 s, the first after 30 s, so that a short step says nothing.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "rows", *, done: int = 0) -> None:
        """Args:
        what: what is being done.
        total: how many parts there are; None where nobody knows.
        unit: what the parts are called.
        done: parts that were done before; they do not count as fast.
        """
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self._done_before = done
        self._started = time.monotonic()
        self._next_line = self._started + SECONDS_BETWEEN_LINES
        self._silenced = bool(_silenced)
        self._bar: Any = None
        if draws_bars():
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, desc=what, unit=f" {unit}", leave=False, initial=done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """So many more parts are done. A Ctrl-C that came meanwhile is raised here."""
        interruption.check()
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
        elif not self._silenced and (now := time.monotonic()) >= self._next_line:
            self._next_line = now + SECONDS_BETWEEN_LINES
            log.info("%s", self._line(now - self._started))

    @property
    def draws(self) -> bool:
        """Whether there is a bar, so that a `note` is worth making."""
        return self._bar is not None

    def note(self, text: str) -> None:
        """Show something beside the bar; lines of a log file have no room for it."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, seconds: float) -> str:
        of = "" if self.total is None else f" of {self.total:,}"
        rate = (self.done - self._done_before) / seconds
        shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        line = f"{self.what}: {self.done:,}{of} {self.unit}, {shown} {self.unit}/s"
        if self.total is None or rate <= 0 or self.done > self.total:
            return line
        return f"{line}, {about((self.total - self.done) / rate)} left"


@contextlib.contextmanager
def silenced() -> Generator[None]:
    """No bars and no lines of progress in this block."""
    global _silenced
    _silenced += 1
    try:
        yield
    finally:
        _silenced -= 1


def draws_bars() -> bool:
    """Whether there is somebody to watch a bar move."""
    # A notebook's stderr is no terminal, but tqdm draws a widget there.
    return not _silenced and (sys.stderr.isatty() or _in_notebook())


def _in_notebook() -> bool:
    """Whether this process is a notebook's kernel; one that only starts kernels has imported the same modules."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


@contextlib.contextmanager
def libraries_as_well() -> Generator[None]:
    """Let datasets, transformers and the hub's client draw their bars only where ours are drawn."""
    if draws_bars():
        yield
        return
    from datasets import utils as of_datasets
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as of_transformers

    switches = (
        (not of_datasets.are_progress_bars_disabled(), of_datasets.disable_progress_bars,
         of_datasets.enable_progress_bars),
        # After transformers, whose switches turn the hub's as well.
        (of_transformers.is_progress_bar_enabled(), of_transformers.disable_progress_bar,
         of_transformers.enable_progress_bar),
        (not are_progress_bars_disabled(), disable_progress_bars, enable_progress_bars),
    )  # fmt: skip
    for _, turn_off, _ in switches:
        turn_off()
    try:
        yield
    finally:
        for was_on, turn_off, turn_on in switches:
            (turn_on if was_on else turn_off)()


def size(n_bytes: float) -> str:
    """Two digits: `1.2 GB`, `850 MB`."""
    value, unit = n_bytes, "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}" if value < 10 and unit != "bytes" else f"{value:,.0f} {unit}"


def about(seconds: float) -> str:
    """A time that nobody knows exactly, with no more digits than that allows: `40 s`, `4 min`, `2.5 h`, `3 days`."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 10:
        return f"{seconds:.0f} s"
    if seconds < 90:
        return f"{5 * round(seconds / 5)} s"
    minutes = seconds / 60
    if minutes < 20:
        return f"{minutes:.0f} min"
    if minutes < 90:
        return f"{5 * round(minutes / 5)} min"
    hours = minutes / 60
    if hours < 10:
        return f"{round(2 * hours) / 2:g} h"
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"


def exactly(seconds: float) -> str:
    """A time that was measured: `3.2 s`, `41 s`, `4 min 5 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
