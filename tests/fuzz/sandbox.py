"""Seeing what a parser does beside parsing: files written outside, programs and code run, hosts called."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

CHANGES = {
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
}
NEVER = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
    "ftplib.connect",
}


class Watch:
    """What happened outside `sandbox` while it was on. Python's own audit events: an open file is seen at any depth."""

    def __init__(self, sandbox: Path) -> None:
        self.allowed = str(sandbox.resolve())
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = args
            writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
            if (
                writes or (mode is None and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            ) and self._outside(path):
                self.seen.append(f"opens {path!r} to write")
        elif event in CHANGES:
            self.seen += [
                f"{event} {path!r}"
                for path in args[:2]
                if isinstance(path, str | bytes | Path) and self._outside(path)
            ]
        elif event in NEVER:
            self.seen.append(f"{event} {args!r}"[:300])

    def _outside(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a descriptor that is open already
        name = os.path.realpath(os.fsdecode(path))
        return not (name == self.allowed or name.startswith(self.allowed + os.sep) or name == os.devnull)


def listing(folder: Path, *, without: Path) -> dict[str, tuple[int, int]]:
    """Every file below `folder` with its size and time of change, but those below `without`."""
    found: dict[str, tuple[int, int]] = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(root) / name != without]
        for name in [*folders, *files]:
            path = Path(root) / name
            status = path.lstat()
            found[str(path)] = (0, 0) if path.is_dir() else (status.st_size, status.st_mtime_ns)
    return found
