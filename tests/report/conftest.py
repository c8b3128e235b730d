"""Run folders written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sae_faithful import EvalResult
from sae_faithful.run_folder import RunFolder, write_json

HOOK = "model.layers.3"
Row = dict[str, Any]


@pytest.fixture
def number() -> Callable[..., Row]:
    """One row of `results.jsonl`; of a source at `HOOK` and of the variant `base` unless it says otherwise."""

    def make(evaluator: str, metric: str, value: float | None, source: str | None, **fields: Any) -> Row:
        where = {"hook": HOOK, "variant": "base"} if source is not None else {}
        fields = {"unit": "share", "source": source, **where, **fields}
        return asdict(EvalResult(evaluator=evaluator, metric=metric, value=value, **fields))

    return make


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """A finished run of these rows; `files`, JSON or text, by their path; `features` becomes `features.parquet`."""

    def make(
        rows: Sequence[Row], *, name: str = "run", files: dict[str, Any] | None = None, features: Any = None,
        **manifest: Any,
    ) -> RunFolder:  # fmt: skip
        folder = RunFolder(tmp_path / name)
        folder.root.mkdir(parents=True)
        folder.results_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for path, content in (files or {}).items():
            target = folder.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                target.write_text(content, encoding="utf-8")
            else:
                write_json(target, content)
        if features is not None:
            features.to_parquet(folder.features_file)
        write_json(
            folder.manifest_file,
            {
                "model": "org/model@abc#12", "versions": {"sae-lens": "6.54.12"}, "device": "cpu", "threads": 2,
                "summary": "topk, 4 latents; seeds 0, 1, 2", "sources": ["faithful", "news"],
                "evaluators": [], **manifest,
            },
        )  # fmt: skip
        return folder

    return make
