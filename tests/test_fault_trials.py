"""Each fault of docs/experiments.md once, at a random moment (`make faults`: twenty times)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(1_200)
def test_each_fault_is_one_clear_line_and_loses_nothing() -> None:
    # In a process of its own: it forks, which a process with threads should not.
    done = subprocess.run(
        [sys.executable, "-m", "tests.fault_trials", "--times", "1", "--processes", "1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
