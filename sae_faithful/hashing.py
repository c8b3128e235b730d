"""Stable hashes of settings and files, and the seeds derived from them."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def hash_settings(settings: object) -> str:
    """First 16 hex digits of the SHA-256 of `settings` written as canonical JSON.

    Raises:
        TypeError, ValueError: `settings` holds something JSON cannot say, which could not be compared across runs.
    """
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """First 16 hex digits of the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def hash_files(folder: Path, leave_out: str) -> dict[str, str]:
    """`hash_file` of every file below `folder`, by its path there, but of those named `leave_out`."""
    return {
        file.relative_to(folder).as_posix(): hash_file(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != leave_out
    }


def first_damage(folder: Path, hashes: Mapping[str, str]) -> str | None:
    """What is wrong with the first file that is not as it was when `hash_files` gave these."""
    for name, hash_then in hashes.items():
        file = folder / name
        # Unlike Path.is_file it takes any name, one that is too long for the disk too.
        if not os.path.isfile(file):  # noqa: PTH113
            return f"{name} is missing"
        if hash_file(file) != hash_then:
            return f"{name} does not match its checksum"
    return None


def derive_seed(*parts: Any) -> int:
    """A seed in [0, 2**63) that depends on all `parts` and on nothing else.

    Neighbouring experiment seeds thus give unrelated streams, and every use of randomness has its own:
    `derive_seed(config.seed, "generation", shard)`.
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
