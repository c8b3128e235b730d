"""One process of the fuzzer: inputs for every parser, each from a seed of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import branches
from mutations import mutated
from sandbox import Watch, listing

# More of a core for one input, or of the clock on a machine that may do other work too, is a hang.
LONGEST = ((signal.ITIMER_PROF, 20), (signal.ITIMER_REAL, 120))
MEMORY = 4 * 2**30
"""Bytes that one input may take, beside what the process has when it begins."""

MOST_DRAWS = 20
"""Of an input that is to be a new one."""


class Hang(BaseException):
    """An input took too long. No `Exception`: nobody catches it by the way."""


@dataclass
class Outcome:
    """Of one parser."""

    inputs: int = 0
    accepted: int = 0
    errors: int = 0
    crashes: dict[str, int] = field(default_factory=dict)
    """Kinds of crash, with how many inputs made each."""
    seconds: float = 0.0
    digests: dict[str, None] = field(default_factory=dict)
    """Of each input: to count how many were different, in all processes."""


def work(number: int, examples: Path, folder: Path, inputs: int, seed: int, only: str) -> dict[str, Any]:
    """`inputs` inputs in process `number`, below `folder`; as plain JSON."""
    outer = folder / f"process{number}"
    sandbox = outer / "sandbox"
    sandbox.mkdir(parents=True)
    (outer / "untouched").write_text("untouched")
    for name in ("HOME", "TMPDIR", "HF_HOME", "SAE_FAITHFUL_CACHE", "WANDB_DIR", "XDG_CACHE_HOME"):
        path = sandbox / name.lower()
        path.mkdir()
        os.environ[name] = str(path)
    (sandbox / "here").mkdir()
    os.chdir(sandbox / "here")
    # A parser may warn; ten thousand times is enough to fill a disk.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for alarm in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(alarm, _hang)
    measure = branches.Measure()
    from parsers import parsers

    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None), measure:
        known = [one for one in parsers(examples, sandbox) if only in one.name]
        refused = [one.name for one in known if _try(one, one.examples[0]) is not None]
        # Also so that what is imported on first use is none of an input's doing.
        if refused:
            raise AssertionError(f"these refuse their own examples, so that nothing is tried: {refused}")
        _limit_memory()
        watch = Watch(sandbox)
        before = listing(outer, without=sandbox)
        total = sum(one.share for one in known)
        outcomes: dict[str, Outcome] = {}
        for one in known:
            count = max(1, round(inputs * one.share / total))
            outcomes[one.name] = _fuzz(one, count, number, seed, watch, outer)
    outside = watch.seen + [
        f"{path} appeared or changed"
        for path, state in listing(outer, without=sandbox).items()
        if before.get(path) != state and not path.startswith(str(outer / "crashes"))
    ]
    shutil.rmtree(sandbox, ignore_errors=True)
    return {
        "outcomes": {name: vars(outcome) for name, outcome in outcomes.items()},
        "modules": {one.name: one.module.split() for one in known},
        "lines": measure.lines(),
        "outside": list(dict.fromkeys(outside)),
    }


def _fuzz(parser: Any, count: int, number: int, seed: int, watch: Watch, outer: Path) -> Outcome:
    outcome = Outcome()
    started = time.monotonic()
    for i in range(count):
        data = _input(random.Random(f"{seed}/{number}/{parser.name}/{i}"), parser, outcome.digests)
        watch.on = True
        crash = _try(parser, data)
        watch.on = False
        outcome.inputs += 1
        if crash is None:
            outcome.accepted += 1
        elif not crash:
            outcome.errors += 1
        else:
            kept = outer / "crashes" / parser.name.replace("/", "_")
            if crash not in outcome.crashes:
                kept.mkdir(parents=True, exist_ok=True)
                (kept / f"{len(outcome.crashes)}.input").write_bytes(data)
                (kept / f"{len(outcome.crashes)}.txt").write_text(crash)
            outcome.crashes[crash] = outcome.crashes.get(crash, 0) + 1
    outcome.seconds = time.monotonic() - started
    return outcome


def _input(rng: random.Random, parser: Any, digests: dict[str, None]) -> bytes:
    """One that this process has not tried, unless short files leave none; its digest is added."""
    data, digest = b"", ""
    for _ in range(MOST_DRAWS):
        data = mutated(rng, rng.choice(parser.examples), parser.examples, kind=parser.kind)
        digest = hashlib.blake2b(data, digest_size=8).hexdigest()
        if digest not in digests:
            break
    digests[digest] = None
    return data


def _try(parser: Any, data: bytes) -> str | None:
    """None: accepted; empty: a clear error; else the crash."""
    from sae_faithful import RunError, UsageError

    for timer, seconds in LONGEST:
        signal.setitimer(timer, seconds)
    try:
        parser.read(data)
    except (UsageError, RunError) as error:
        # A line that names something: neither empty nor a page.
        text = str(error)
        return (
            ""
            if text.strip() and "\n" not in text and len(text) < 4_000
            else f"no clear line: {text[:200]!r} ({_place(error)})"
        )
    except (Exception, Hang) as error:
        return f"{type(error).__name__} at {_place(error)}: {str(error)[:150]}".split(": ", 1)[0]
    finally:
        for timer, _ in LONGEST:
            signal.setitimer(timer, 0)
    return None


def _place(error: BaseException) -> str:
    """The last two lines of ours in the traceback."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "sae_faithful" in frame.filename]
    named = [
        f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno}" for frame in ours
    ]
    return " < ".join(reversed(named[-3:])) or "fuzz"


def _limit_memory() -> None:
    """An input that takes gigabytes gets a MemoryError, and not the machine's other processes into trouble."""
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux
        return
    used = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(used) + MEMORY, resource.RLIM_INFINITY))


def _hang(*_: Any) -> None:
    raise Hang("too long")


if __name__ == "__main__":
    number, examples, folder, inputs, seed, only, output = sys.argv[1:]
    result = work(int(number), Path(examples), Path(folder), int(inputs), int(seed), only)
    Path(output).write_text(json.dumps(result))
