"""What is worth keeping of a run on a machine that will be gone: small files, and text that was costly to draw.

Used by faithfulsae_smollm2.py. Weights are not kept; nothing here is larger than what a part may be.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PARTIAL = ".partial-"
NOT_KEPT = {"saes", "baselines", "checkpoints", "step.json"}
"""Weights; and what would make a copy look like a run whose steps are finished."""
LARGEST = 4_000_000
"""Bytes of a kept file; what is larger (columns of all latents, as a rule) is named in `left_out.json`."""
PART = 15_000_000
"""Bytes of a packed part, about."""
SHARDS_PER_PART = 2 * PART
"""Bytes of shards that make a part: token ids pack to less than half."""


def keep_run(run: Path, kept: Path) -> None:
    """Copy a run folder without weights and tokens, in the place of an older copy; whole or not at all."""
    partial = kept.with_name(PARTIAL + kept.name)
    shutil.rmtree(partial, ignore_errors=True)
    left_out: dict[str, int] = {}
    for path in sorted(run.rglob("*")):
        relative = path.relative_to(run)
        hidden = any(part in NOT_KEPT or part.startswith(".") for part in relative.parts)
        if hidden or not path.is_file() or path.suffix == ".arrow":
            continue
        if path.stat().st_size > LARGEST:
            left_out[str(relative)] = path.stat().st_size
            continue
        (partial / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, partial / relative)
    if left_out:
        write_json(partial / "left_out.json", left_out)
    shutil.rmtree(kept, ignore_errors=True)
    partial.rename(kept)


def keep_timings(run: Path, stage: str, kept: Path) -> None:
    """Add to `kept` a line for each step of a run that was done since the last look, in the stage of this name.

    A run's own timings.json has the last time of each step only: what a later stage does again, or does for more
    seeds, takes the place of what the stage before took.
    """
    timings = run / "timings.json"
    if not timings.exists():
        return
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    known = {(row["run"], row["step"]): row["seconds"] for row in map(json.loads, lines)}
    found = [
        {
            "run": run.name,
            "stage": stage,
            **{key: row[key] for key in ("step", "seconds", "expected_seconds")},
        }
        for row in json.loads(timings.read_text(encoding="utf-8"))["steps"]
        # To the millisecond what it was: it was not done again.
        if known.get((run.name, row["step"])) != row["seconds"]
    ]
    text = "".join(json.dumps(row) + "\n" for row in found)
    _write(kept, ("".join(line + "\n" for line in lines) + text).encode())


def link_texts(made: Path, run: Path) -> None:
    """Give a new run folder the texts that another one has made: finished steps, which the run checks as its own."""
    for name in ("data", "references"):
        if (made / name).exists() and not (run / name).exists():
            ignored = shutil.ignore_patterns(PARTIAL + "*")
            shutil.copytree(made / name, run / name, copy_function=os.link, ignore=ignored)


def keep_shards(cache: Path, kept: Path) -> None:
    """Pack shards of generated text that are not kept yet, whole shards a part: what is kept is not written again."""
    for folder in sorted((cache / "self_generated").glob("*/")):
        there = {int(path.stem.removeprefix("shard-")): path for path in folder.glob("shard-*.sha256")}
        missing = sorted(set(there) - _kept_shards(kept / folder.name))
        part: list[int] = []
        size = 0
        for index in missing:
            part.append(index)
            size += there[index].with_suffix(".arrow").stat().st_size
            if size >= SHARDS_PER_PART or index == missing[-1]:
                _pack_shards(folder, part, kept / folder.name)
                part, size = [], 0


def restore_shards(kept: Path, cache: Path) -> None:
    """Put kept shards where this machine has none of that name."""
    for packed in sorted(kept.glob("*/*.tar.xz")):
        folder = cache / "self_generated" / packed.parent.name
        if all((folder / f"shard-{index:06d}.sha256").exists() for index in _shards_of(packed)):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")


def keep_folder(folder: Path, kept: Path) -> None:
    """Pack a folder of files, cut into parts `kept.00`, `kept.01`, ...; nothing where that has been done."""
    if kept.with_name(f"{kept.name}.00").exists():
        return
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz", preset=1) as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    packed = content.getvalue()
    starts = range(0, len(packed), PART)
    # The first part last: it says that the others are there.
    for number, start in reversed(list(enumerate(starts))):
        _write(kept.with_name(f"{kept.name}.{number:02d}"), packed[start : start + PART])


def restore_folder(kept: Path, folder: Path) -> None:
    """Unpack what `keep_folder` packed, unless the folder is there."""
    if folder.exists() or not kept.with_name(f"{kept.name}.00").exists():
        return
    parts = sorted(kept.parent.glob(f"{kept.name}.[0-9][0-9]"))
    partial = folder.with_name(PARTIAL + folder.name)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    packed = b"".join(path.read_bytes() for path in parts)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(partial, filter="data")
    partial.rename(folder)


def write_json(path: Path, value: object) -> None:
    """Whole or not at all."""
    _write(path, (json.dumps(value, indent=2) + "\n").encode())


def _kept_shards(folder: Path) -> set[int]:
    return {index for packed in folder.glob("*.tar.xz") for index in _shards_of(packed)}


def _shards_of(packed: Path) -> range:
    """A part's name says which it holds."""
    first, _, last = packed.name.removesuffix(".tar.xz").partition("-")
    return range(int(first), int(last) + 1)


def _pack_shards(folder: Path, indices: list[int], kept: Path) -> None:
    """One part for each stretch without a gap."""
    stretches: list[list[int]] = []
    for index in indices:
        if stretches and index == stretches[-1][-1] + 1:
            stretches[-1].append(index)
        else:
            stretches.append([index])
    for stretch in stretches:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:xz", preset=1) as archive:
            for path in (folder / "settings.json", *sorted(folder.glob("engine-*.json"))):
                if path.exists():
                    archive.add(path, path.name)
            for index in stretch:
                for ending in ("arrow", "sha256"):
                    name = f"shard-{index:06d}.{ending}"
                    archive.add(folder / name, name)
        _write(kept / f"{stretch[0]:06d}-{stretch[-1]:06d}.tar.xz", content.getvalue())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(PARTIAL + path.name)
    partial.write_bytes(content)
    partial.replace(path)
