"""How long each step of a run took, beside what was expected: in the log, and in `timings.json`."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sae_faithful.progress import about, exactly, size
from sae_faithful.run_folder import write_json
from sae_faithful.stored import blamed_on, read_json

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

PASSES = "passes over texts"
"""The step that all evaluators share: the model's passes over what their observers see."""
REPORT = "report"


@dataclass
class Timings:
    """What is known of the steps of one run; `path` has those of earlier runs into the same folder, too.

    No step's hash has any of it in it.
    """

    path: Path | None
    """None in a worker: the driver writes."""
    expected: Mapping[str, float] = field(default_factory=dict[str, float])
    """Seconds by step, where they were estimated."""
    memory: Mapping[str, int] = field(default_factory=dict[str, int])
    """Bytes by step that the process will have at most, where they were estimated."""
    more_memory: Collection[str] = ()
    """Steps of these that will have more than that, and nobody can say how much."""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the estimate was made from: plain JSON."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Of the steps that are finished."""
    peaks: dict[str, int] = field(default_factory=dict[str, int])
    """Bytes, of steps that were done in another process."""

    def add(self, step: str, seconds: float) -> None:
        """A step has taken so long; a step may come in parts."""
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds

    def write(self) -> None:
        """Put it into `path`; steps that were not done this time keep what stands there."""
        if self.path is None:
            return
        rows = {row["step"]: row for row in read_timings(self.path)}
        peak = peak_memory()
        for step, seconds in self.seconds.items():
            expected = self.expected.get(step)
            rows[step] = {
                "step": step,
                "seconds": round(seconds, 3),
                "expected_seconds": None if expected is None else round(expected, 3),
                "expected_memory_bytes": self.memory.get(step),
                "peak_memory_bytes": rows[step].get("peak_memory_bytes")
                if self._told(rows, step)
                else self.peaks.get(step, peak),
            }
        write_json(self.path, {"steps": list(rows.values()), "measured": dict(self.facts)})

    def _told(self, rows: Mapping[str, Any], step: str) -> bool:
        """Whether the row of this step was written in this run already."""
        return step in rows and rows[step]["seconds"] == round(self.seconds[step], 3)


_current: Timings | None = None


@contextlib.contextmanager
def kept(timings: Timings) -> Generator[None]:
    """Let `timed` and `took` fill `timings` in this block."""
    global _current
    before, _current = _current, timings
    try:
        yield
    finally:
        _current = before


def begins(step: str, what: str = "") -> None:
    """Say that a step begins, what it will do, and, where that was estimated, with how much memory."""
    memory = None if _current is None else _current.memory.get(step)
    how = "at least" if _current is not None and step in _current.more_memory else "up to"
    said = "; ".join(filter(None, [what, f"{how} {size(memory)} of memory" if memory else ""]))
    log.info("%s%s", step, f": {said}" if said else "")


@contextlib.contextmanager
def timed(step: str) -> Generator[None]:
    """This block is that step; one that fails is no step that was done."""
    started = time.monotonic()
    yield
    took(step, time.monotonic() - started)


def took(step: str, seconds: float) -> None:
    """Say how long a finished step took, and keep it where a run keeps such things."""
    expected = None if _current is None else _current.expected.get(step)
    log.info("%s: took %s%s", step, exactly(seconds), f" (expected {about(expected)})" if expected else "")
    if _current is not None:
        _current.add(step, seconds)
        _current.write()


def read_timings(path: Path) -> list[dict[str, Any]]:
    """Rows of `timings.json`, one a step; none where there is no such file.

    Raises:
        RunError: it is damaged.
    """
    if not path.exists():
        return []
    with blamed_on(path):
        rows = read_json(path)["steps"]
        for row in rows:
            if not isinstance(row["step"], str) or not isinstance(row["seconds"], int | float):
                raise ValueError("a step without its name and seconds")
        return rows


def peak_memory() -> int | None:
    """The most memory that this process has had so far, bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
