"""`make gpu-wheels HAVE=FILE`: what a machine without a network lacks to run this project, as wheels in parts.

FILE is what `pip list --format=freeze` prints there. PyTorch, Triton and NVIDIA's libraries stay that machine's own; of
the rest it keeps each version that this project admits. How the parts are installed there: docs/performance.md.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from resolved import DATA, OF_TORCH, ROOT, run

FILES_ALONE = (*DATA, "eai-sparsify==1.3.3")
"""Of these only files are read, so they come without what they depend on; the last is for a benchmark."""
FOR_TESTS = ("hypothesis", "pytest", "pytest-timeout")
"""What the kernels' tests need, of the extra `dev`."""

FOR_SCRIPTS = 100_000
"""Bytes of the first part that are kept for what is not a wheel."""
INSTALL = """\
#!/usr/bin/env bash
# With all parts in this folder: joins what is cut, checks and installs. bash install.sh [OPTIONS OF pip install]
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")"
pip() { "${PYTHON:-python3}" -m pip --disable-pip-version-check "$@"; }
for first in *.whl.000; do
    [ ! -e "$first" ] || cat "${first%000}"[0-9][0-9][0-9] > "${first%.000}"
done
sha256sum --check --quiet SHA256SUMS
pip check | sort > before.txt || true
pip install --no-index --no-deps "$@" $(cut -c 67- SHA256SUMS)
pip check | sort > after.txt || true
if comm -13 before.txt after.txt | grep -vE '^(No broken requirements|(FILES_ALONE) )'; then
    echo "pip check did not say the above before" >&2
    exit 1
fi
"""


class Piece(NamedTuple):
    """Bytes `start` to `stop` of a wheel, in a file of this name."""

    name: str
    wheel: Path
    start: int
    stop: int


def main() -> None:
    """Resolve, download, cut into parts, and say what they hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--have", nargs="+", required=True, metavar="FILE|NAME==VERSION", help="what is installed there")
    add("--python", default="3.12", help="the version of Python there")
    add("--machine", default="x86_64", help="what `uname -m` prints there")
    add("--glibc", default="2.28", help="the newest C library that wheels may ask for")
    add("--part-mb", type=int, default=60, help="the largest part, in millions of bytes")
    add("--without", nargs="*", default=[], metavar="NAME", help="packages to leave out")
    add("--output", type=Path, default=ROOT / "build" / "gpu_wheels")
    asked = parser.parse_args()
    texts = [one if "==" in one else Path(one).read_text(encoding="utf-8") for one in asked.have]
    have = versions(line for text in texts for line in text.splitlines())
    if "torch" not in have:
        parser.error("--have names no torch: that machine's own decides what goes with it")
    platform = f"{asked.machine}-manylinux_{asked.glibc.replace('.', '_')}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            there = ("--python-version", asked.python, "--python-platform", platform)
            needed = resolve(folder, have, there)
            wanted = [one for one in lacking(needed, have) if one.partition("==")[0] not in asked.without]
            download(folder, wanted, there)
        except subprocess.CalledProcessError as error:
            sys.exit(error.returncode)  # the tool has said why
        wheels = sorted(folder.glob("*.whl"))
        print(table(wheels, have))
        parts = packed(wheels, asked.part_mb * 1_000_000)
        write(wheels, parts, asked.output)
    print(f"{len(parts)} parts in {asked.output}; there, with all in one folder: bash FOLDER/install.sh")


def versions(lines: Iterable[str]) -> dict[str, str]:
    """By normalised name, without what a build adds to its version (+cu130).

    Raises:
        SystemExit: a line is not NAME==VERSION.
    """
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, lines)):
        name, equal, version = line.partition("==")
        if not equal or " " in line:
            sys.exit(f"not NAME==VERSION, as `pip list --format=freeze` prints it: {line}")
        found[re.sub(r"[-_.]+", "-", name).lower()] = version.partition("+")[0]
    return found


def resolve(folder: Path, have: Mapping[str, str], there: Sequence[str]) -> dict[str, str]:
    """The version of all that is needed there, but for what is PyTorch's: that of `have` where it is admitted."""
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    tests, torch, pins = folder / "tests.in", folder / "torch.txt", folder / "pins.txt"
    tests.write_text("\n".join(one for one in dev if re.split(r"[^\w-]", one)[0] in FOR_TESTS))
    torch.write_text(f"torch=={have['torch']}")
    # uv prefers what its output held before.
    pins.write_text("\n".join(f"{name}=={version}" for name, version in have.items()))
    run(
        beside("uv"), "pip", "compile", "pyproject.toml", "--extra", "quickstart", str(tests), *there,
        "--constraint", str(torch), "--no-annotate", "--no-header", "--quiet", "--output-file", str(pins),
    )  # fmt: skip
    lines = pins.read_text().splitlines()
    return versions([*(line for line in lines if not OF_TORCH.match(line)), *FILES_ALONE])


def beside(tool: str) -> str:
    """A tool of the environment whose Python runs this."""
    return str(Path(sys.executable).with_name(tool))


def lacking(needed: Mapping[str, str], have: Mapping[str, str]) -> list[str]:
    """What is not there in the version that is needed, as NAME==VERSION."""
    return [f"{name}=={version}" for name, version in needed.items() if have.get(name) != version]


def download(folder: Path, wanted: Sequence[str], there: Sequence[str]) -> None:
    """These wheels, those that are made of sources, and this project's own."""
    names, lock = folder / "wanted.in", folder / "pylock.toml"
    names.write_text("\n".join(wanted))
    run(
        beside("uv"), "pip", "compile", str(names), *there, "--no-deps", "--quiet", "--output-file", str(lock),
    )  # fmt: skip
    locked = tomllib.loads(lock.read_text())["packages"]
    sources = [f"{one['name']}=={one['version']}" for one in locked if "wheels" not in one]
    _, python, _, platform = there
    machine, _, glibc = platform.partition("-manylinux_2_")
    # pip goes by exact names.
    older = ["manylinux1", "manylinux2010", "manylinux2014"]
    older += [f"manylinux_2_{minor}" for minor in range(5, int(glibc) + 1)]
    pip = (sys.executable, "-m", "pip")
    run(
        *pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", python,
        *(f"--platform={name}_{machine}" for name in older), "--dest", str(folder),
        *(one for one in wanted if one not in sources),
    )  # fmt: skip
    for one in sources:
        run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), one)
        if not list(folder.glob(f"{one.partition('==')[0].replace('-', '_')}-*-none-any.whl")):
            sys.exit(f"{one} is published as source alone, and what is built of it here is for this machine")
    # By way of a source archive: what an earlier build left in build/ is not in it.
    run(beside("uv"), "build", "--quiet", "--out-dir", str(folder))


def packed(wheels: Iterable[Path], part: int) -> list[list[Piece]]:
    """Parts of at most so many bytes, as few as the largest first gives; what is larger than one is cut."""
    most = part - FOR_SCRIPTS
    pieces: list[Piece] = []
    for wheel in wheels:
        size = wheel.stat().st_size
        cuts = range(0, size, most)
        names = (
            [wheel.name] if len(cuts) == 1 else [f"{wheel.name}.{number:03d}" for number in range(len(cuts))]
        )
        pieces += [
            Piece(name, wheel, start, min(start + most, size))
            for name, start in zip(names, cuts, strict=True)
        ]
    parts: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda one: one.start - one.stop):
        free = (
            one
            for one in parts
            if sum(held.stop - held.start for held in one) + piece.stop - piece.start <= most
        )
        place = next(free, None)
        if place is None:
            parts.append([piece])
        else:
            place.append(piece)
    return parts


def write(wheels: Iterable[Path], parts: Iterable[Iterable[Piece]], output: Path) -> None:
    """Folders 1, 2, … of pieces; the first has `install.sh` and the checksums too."""
    shutil.rmtree(output, ignore_errors=True)
    for number, pieces in enumerate(parts, start=1):
        folder = output / str(number)
        folder.mkdir(parents=True)
        for piece in pieces:
            with piece.wheel.open("rb") as file:
                file.seek(piece.start)
                (folder / piece.name).write_bytes(file.read(piece.stop - piece.start))
    sums = [f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  {wheel.name}\n" for wheel in wheels]
    (output / "1" / "SHA256SUMS").write_text("".join(sums))
    alone = "|".join(versions(FILES_ALONE))
    (output / "1" / "install.sh").write_text(INSTALL.replace("FILES_ALONE", alone))


def table(wheels: Sequence[Path], have: Mapping[str, str]) -> str:
    """Package, version, the version that it replaces there, size; and the totals."""
    rows = [("package", "version", "in place of", "MB")]
    for wheel in wheels:
        ((name, version),) = versions(["==".join(wheel.name.split("-")[:2])]).items()
        rows.append((name, version, have.get(name, ""), f"{wheel.stat().st_size / 1e6:.2f}"))
    first, second, third, last = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [f"{a:{first}}  {b:{second}}  {c:{third}}  {d:>{last}}" for a, b, c, d in rows]
    replaced = sum(bool(old) for _, _, old, _ in rows[1:])
    size = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    return "\n".join([*lines, f"{len(wheels)} wheels, {replaced} in place of another version, {size:.1f} MB"])


if __name__ == "__main__":
    main()
