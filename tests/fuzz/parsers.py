"""Every reader of a file, or of a reply, that somebody else may have written; each with valid examples of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from parser import Parser
from parsers_configs import of_config, of_saes
from parsers_runs import of_runs, of_steps
from parsers_texts import of_replies, of_texts


def parsers(examples: Path, sandbox: Path) -> list[Parser]:
    """All of them; they write into `sandbox` only."""
    run = sandbox / "run"
    shutil.copytree(examples / "run", run)
    return [
        *of_config(examples, sandbox),
        *of_saes(examples, sandbox),
        *of_runs(run),
        *of_steps(run),
        *of_texts(examples, sandbox),
        *of_replies(sandbox),
    ]
