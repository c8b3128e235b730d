"""The environment that sae-probes has to itself: where it is, what it holds, and questions to the worker in it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_faithful import RunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger("sae_faithful.sae_probes_benchmark")

VARIABLE = "SAE_FAITHFUL_SAE_PROBES_PYTHON"
"""Names the interpreter. No option does: where it lies on one machine is no part of an experiment."""
VERSION = "0.4.2"
"""Of sae-probes: the one whose cache of activations and whose results are read here."""
SETUP = (
    "python -m venv sae_probes_env",
    f"sae_probes_env/bin/pip install torch sae-probes=={VERSION}",
    f"export {VARIABLE}=$PWD/sae_probes_env/bin/python",
)
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Environment:
    """An interpreter that has sae-probes."""

    python: Path
    versions: Mapping[str, str]
    datasets: Sequence[str]
    """The benchmark's own order."""

    @classmethod
    def find(cls) -> Environment:
        """The one that `SAE_FAITHFUL_SAE_PROBES_PYTHON` names.

        Raises:
            UsageError: there is none, or another version of sae-probes is in it; how to make one.
        """
        remedy = f"set one up: {' && '.join(SETUP)}"
        named = os.environ.get(VARIABLE)
        if not named:
            raise UsageError(f"sae-probes needs an environment of its own; {remedy}")
        # Not resolved: the interpreter of a virtual environment is a link to another one.
        python = Path(named).expanduser().absolute()
        try:
            found = ask(python, "describe", {})
        except (OSError, RunError) as error:
            raise UsageError(f"{VARIABLE}={named} does not run ({error}); {remedy}") from error
        version = found["versions"].get("sae-probes")
        if version != VERSION:
            has = f"has sae-probes {version}, not {VERSION}" if version else "has no sae-probes"
            raise UsageError(f"{VARIABLE}={named} {has}; {remedy}")
        return cls(python, found["versions"], found["datasets"])

    def texts(self, datasets: Sequence[str]) -> dict[str, list[str]]:
        """All texts of these datasets, in the order in which sae-probes expects their activations."""
        return ask(self.python, "texts", {"datasets": list(datasets)})

    def score(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows that sae-probes wrote; those of an SAE hold its place in `request["saes"]` as `sae`."""
        return ask(self.python, "score", request)


def ask(python: Path, action: str, request: Mapping[str, Any]) -> Any:
    """Run the worker and return its answer.

    Raises:
        OSError: `python` cannot be executed.
        RunError: the worker failed; its last line says why, and its whole output is kept.
    """
    with tempfile.TemporaryDirectory(prefix="sae_probes_benchmark-") as name:
        folder = Path(name)
        request_file, answer_file, output = (
            folder / file for file in ("request.json", "answer.json", "output.log")
        )
        request_file.write_text(json.dumps(request), "utf-8")
        log.info("sae-probes: %s; its output: %s", action, output)
        with output.open("wb") as sink:
            done = subprocess.run(
                # Isolated (-I): this environment's PYTHONPATH is not for that one.
                [python, "-I", "-u", WORKER, action, request_file, answer_file],
                cwd=folder,
                # What it needs is on disk: a miss must fail, not look for a model on the hub.
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode != 0 or not answer_file.exists():
            kept = Path(tempfile.mkdtemp(prefix="sae_probes_benchmark-failed-")) / output.name
            shutil.copyfile(output, kept)
            raise RunError(f"sae-probes failed at {action}: {_last_line(kept)}; its whole output: {kept}")
        return json.loads(answer_file.read_text("utf-8"))


def _last_line(path: Path) -> str:
    # Progress bars end lines with \r; `splitlines` knows.
    lines = [line for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
