"""Runs written by hand, a number at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import pytest

from sae_faithful import EvalResult
from sae_faithful.report.figures import Figure, figures
from sae_faithful.report.run_data import RunData
from sae_faithful.run_folder import RunFolder, write_json

if TYPE_CHECKING:
    from pathlib import Path

HOOK = "model.layers.3"
Row = dict[str, Any]


def result(evaluator: str, metric: str, value: float | None, unit: str = "share", **fields: Any) -> Row:
    """A row as `results.jsonl` has it."""
    return asdict(EvalResult(evaluator=evaluator, metric=metric, value=value, unit=unit, **fields))


def of_source(
    evaluator: str, metric: str, value: float | None, source: str = "faithful", **fields: Any
) -> Row:
    """A row of a source, at `HOOK` and of the variant `base` unless it says otherwise."""
    return result(evaluator, metric, value, **{"source": source, "hook": HOOK, "variant": "base", **fields})


@pytest.fixture
def row() -> Callable[..., Row]:
    return of_source


@pytest.fixture
def free_row() -> Callable[..., Row]:
    return result


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunData]:
    """A run of these rows; `files` by their path in its folder, `features` as `features.parquet`."""

    def make(
        rows: Sequence[Row], *, label: str = "", files: dict[str, Any] | None = None, features: Any = None,
        sources: Sequence[str] = ("faithful", "news"), baselines: Sequence[str] = (),
        config: dict[str, Any] | None = None,
    ) -> RunData:  # fmt: skip
        folder = RunFolder(tmp_path / (label or "run"))
        folder.root.mkdir(parents=True)
        for path, content in (files or {}).items():
            target = folder.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.endswith(".jsonl"):
                target.write_text("".join(json.dumps(line) + "\n" for line in content))
            else:
                write_json(target, content)
        if features is not None:
            features.to_parquet(folder.features_file)
        manifest = {"sources": list(sources), "baselines": {name: {"plugin": name} for name in baselines}}
        return RunData(folder, label, list(rows), manifest, config or {})

    return make


@pytest.fixture
def draw() -> Callable[..., dict[str, Figure]]:
    """All figures of some runs by id, each checked to be what plotly takes and what JSON can hold."""

    def figures_of(*runs: RunData) -> dict[str, Figure]:
        found = figures(runs)
        for figure in found:
            assert json.loads(json.dumps(figure.plotly, allow_nan=False)) == figure.plotly
            go.Figure(figure.plotly)
            assert figure.plotly["data"]
            assert figure.caption
            assert figure.title
        by_id = {figure.id: figure for figure in found}
        assert len(by_id) == len(found)
        return by_id

    return figures_of
