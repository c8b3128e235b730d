"""What is said and kept of the steps of a run."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from sae_faithful.timings import Timings, begins, kept, timed

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_step_states_its_memory_before_it_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = {"data/news": 700_000_000, "saes/own": 3_100_000_000, "report": 900_000_000}
    timings = Timings(tmp_path / "timings.json", memory=memory, more_memory={"data/news"})
    with caplog.at_level(logging.INFO, "sae_faithful.timings"), kept(timings):
        begins("data/news")
        begins("saes/own", "training 6 SAEs on 150,000 tokens")
        begins("report")
        begins("results/probing")
        begins("data/own", "20 tokens")
    begins("report")  # nobody has estimated anything here
    assert caplog.messages == [
        "data/news: at least 700 MB of memory",
        "saes/own: training 6 SAEs on 150,000 tokens; up to 3.1 GB of memory",
        "report: up to 900 MB of memory",
        "results/probing",
        "data/own: 20 tokens",
    ]


def test_what_was_expected_stands_beside_what_was_taken(tmp_path: Path) -> None:
    timings = Timings(tmp_path / "timings.json", {"a": 2.0}, {"a": 10**15})
    with kept(timings):
        for step in ("a", "b"):
            with timed(step):
                pass
    a, b = json.loads((tmp_path / "timings.json").read_text())["steps"]
    assert (a["expected_seconds"], a["expected_memory_bytes"]) == (2.0, 10**15)
    assert 0 < a["peak_memory_bytes"] < a["expected_memory_bytes"]
    assert (b["expected_seconds"], b["expected_memory_bytes"]) == (None, None)
