"""Ten times the tokens take no more memory than a tenth more: packing, and the generator of documents."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "benchmarks/memory_growth.py"


def test_texts_are_made_in_memory_that_does_not_grow_with_them(tmp_path: Path) -> None:
    """Held in memory, rows alone would be 8 bytes a token: 14 MB more, of some 70."""
    done = subprocess.run(
        [
            sys.executable, str(SCRIPT), "--only", "packing", "generation", "--tokens", "200000",
            "--json", str(tmp_path / "growth.json"),
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "growth.json").read_text())
    assert [row["step"] for row in rows] == ["packing", "generation"]
    for row in rows:
        assert row["few"]["tokens"] * 10 == row["many"]["tokens"] == 2_000_000
        # Where each document begins takes 9 bytes: a tenth of a byte a token.
        assert row["bytes_per_token"] < 4, row
        assert 30e6 < row["few"]["anonymous"] < 400e6, row
