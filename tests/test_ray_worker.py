"""A worker without Ray: what it holds between two units, and what its log says."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sae_faithful.ray_worker import Done, Setup, Worker, _Lines
from sae_faithful.units import MakePiece, TrainSource


def worker(shared: Path, experiment: Any) -> Worker:
    """One that has begun, on that experiment."""
    made = Worker(
        "worker-1",
        Setup(jobs=[], shared=shared, token="", folder=shared, environment={}, level=0, versions={}),
    )
    made._experiment = (0, experiment, contextlib.ExitStack())
    return made


@dataclass
class Drawn:
    """What a text's source draws with."""

    open: bool = True

    def missing(self) -> Sequence[str]:
        return ()

    def make(self, piece: str) -> None:
        assert self.open

    def close(self) -> None:
        self.open = False


def test_the_model_that_drew_shards_is_gone_before_another_unit_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker makes the text of those shards, so that only the next unit can tell this one."""
    pieces = Drawn()
    seen: list[bool] = []

    def train(unit: TrainSource, experiment: Any, *, spread: bool = False) -> Sequence[Any]:
        seen.append(pieces.open)
        return ()

    monkeypatch.setattr(TrainSource, "do", train)
    one = worker(tmp_path, SimpleNamespace(pieces={"faithful": pieces}))
    assert isinstance(one.do(0, MakePiece("faithful", "shard 1")), Done)
    assert isinstance(one.do(0, MakePiece("faithful", "shard 3")), Done)
    assert pieces.open
    assert isinstance(one.do(0, TrainSource("faithful")), Done)
    assert seen == [False]


def test_a_worker_s_log_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays in the run folder where the driver is killed."""
    monkeypatch.setenv("MY_SERVICE_PASSWORD", secret := 'ab"cd\\efgh')
    record = logging.LogRecord("x", logging.INFO, "", 0, "bad: %s, %r", (secret, secret), None)
    _Lines(tmp_path / "worker-1.log").emit(record)
    line = json.loads((tmp_path / "worker-1.log").read_text())
    assert (line["level"], line["message"]) == (logging.INFO, "bad: (hidden), '(hidden)'")
