"""What a run leaves on disk, made comparable with what another run of the same config leaves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# What may differ between two runs of one config: SAELens's record of its runner says which SAEs were trained
# together, and after a kill those already in their place are not trained again; and how long everything took.
UNCOMPARED = {".lock", "runner_cfg.json", "timings.json"}


def comparable_files(folder: Path) -> dict[str, bytes]:
    """The files of a run by name: bytes, but for what says the same in other bytes.

    That is the run's own folder, SAELens's JSON, whose keys come in the order of a set, and checkpoints, which end
    with the training.
    """
    contents = {
        path.relative_to(folder).as_posix(): path.read_bytes().replace(str(folder).encode(), b"RUN")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in UNCOMPARED and "checkpoints" not in path.parts
    }
    for name, content in contents.items():
        if name.startswith("saes/") and name.endswith(".json"):
            value = json.loads(content)
            if name.endswith("/step.json"):
                del value["files"]  # the checksums of those
            contents[name] = json.dumps(value, sort_keys=True).encode()
    return contents


def first_difference(expected: dict[str, bytes], found: dict[str, bytes]) -> str | None:
    """The first file that one has and the other has not, or not so."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is too many"
        if expected[name] != found[name]:
            return f"{name} differs"
    return None
