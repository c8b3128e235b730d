"""What a W&B run left on disk: its `.wandb` file is a LevelDB log of protobuf records."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32768
HEADER = struct.Struct("<IHB")
"""Of a chunk: checksum, length, and its place in the record: whole (1), first (2), middle (3) or last (4)."""


@dataclass
class LoggedRun:
    """The records of one run, by kind."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    logged: dict[str, Any] = field(default_factory=dict[str, Any])
    """The last value under every key of the history."""
    summary: dict[str, Any] = field(default_factory=dict[str, Any])
    artifacts: list[Any] = field(default_factory=list[Any])
    exit_code: int | None = None

    @property
    def files(self) -> dict[str, tuple[str, set[str]]]:
        """Type and files of each artifact but the copies that W&B makes of tables."""
        return {
            one.name: (one.type, {entry.path for entry in one.manifest.contents})
            for one in self.artifacts
            if one.type != "run_table"
        }


def logged_runs(folder: Path) -> list[LoggedRun]:
    """Every offline run below `folder/wandb`, in the order that they were opened in; those still open are closed."""
    import wandb

    # W&B's service writes the last records some time after a run is finished.
    wandb.teardown()
    paths = folder.glob("wandb/offline-run-*/*.wandb")
    runs = [read_run(path) for path in paths]
    return sorted(
        (run for run in runs if run.run is not None), key=lambda run: run.run.start_time.ToNanoseconds()
    )


def read_run(path: Path) -> LoggedRun:
    """One `.wandb` file."""
    from wandb.proto import wandb_internal_pb2 as pb

    found = LoggedRun()
    for data in records(path.read_bytes()):
        record = pb.Record.FromString(data)
        match record.WhichOneof("record_type"):
            case "run":
                found.run = record.run
                update(found.config, record.run.config.update)
            case "config":
                update(found.config, record.config.update)
            case "history":
                update(found.logged, record.history.item)
            case "summary":
                update(found.summary, record.summary.update)
            case "artifact":
                found.artifacts.append(record.artifact)
            case "request" if record.request.WhichOneof("request_type") == "log_artifact":
                found.artifacts.append(record.request.log_artifact.artifact)
            case "exit":
                found.exit_code = record.exit.exit_code
            case _:
                pass
    return found


def update(values: dict[str, Any], items: Any) -> None:
    """Take in items, whose keys may reach into a value."""
    for item in items:
        first, *inner = [item.key] if item.key else item.nested_key
        value = json.loads(item.value_json)
        if inner:
            values.setdefault(first, {})[".".join(inner)] = value
        else:
            values[first] = value


def records(content: bytes) -> list[bytes]:
    """The records of a log: chunks never cross a block, and a block's last six bytes or fewer are unused."""
    found: list[bytes] = []
    parts = b""
    at = 7  # the file's own header
    while at + HEADER.size <= len(content):
        if BLOCK - at % BLOCK < HEADER.size:
            at += BLOCK - at % BLOCK
            continue
        _, length, place = HEADER.unpack_from(content, at)
        at += HEADER.size
        if place == 0:
            break
        parts += content[at : at + length]
        at += length
        if place in (1, 4):
            found.append(parts)
            parts = b""
    return found
