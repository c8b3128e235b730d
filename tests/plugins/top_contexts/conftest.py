"""Planted columns in the place of the evaluators that are read, and the document that is made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_faithful import FeatureTable, TokenSet

VOCAB, BOS = 64, 0


@dataclass
class Planted:
    """Gives columns by hand, as an evaluator of any name: one mapping for each SAE."""

    columns: list[Mapping[str, Any]] = field(default_factory=list)

    def observers(self, context: Any) -> list[Any]:
        return []

    def evaluate(self, context: Any, observers: Any) -> Any:
        for handle, columns in zip(context.handles, self.columns, strict=True):
            if columns:
                arrays = {name: np.array(column, np.float64) for name, column in columns.items()}
                yield FeatureTable(handle=handle, columns=arrays)


def latents(*given: Mapping[int, float]) -> np.ndarray:
    """An encoder for the one-hot model: for each latent its activation by token."""
    encoder = np.zeros((VOCAB, len(given)))
    for column, latent in enumerate(given):
        for token, activation in latent.items():
            encoder[token, column] = activation
    return encoder


def text(*rows: Mapping[int, int], context: int = 30) -> TokenSet:
    """Rows of BOS and w40, but for these tokens by position."""
    ids = np.full((len(rows), context), 40)
    ids[:, 0] = BOS
    for row, there in zip(ids, rows, strict=True):
        for position, token in there.items():
            row[position] = token
    return TokenSet.from_rows(ids)


@pytest.fixture
def show(one_hot_model: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The document of these SAEs, with planted columns `{EVALUATOR: [columns of each SAE]}` to choose by."""

    def go(
        evaluator: Any,
        handles: Sequence[Any],
        held_out: Mapping[str, TokenSet],
        columns: Mapping[str, list[Mapping[str, Any]]] | None = None,
        *,
        tokenizer: Any = None,
        unembedding: Any = None,
        batch_rows: int = 1_000,
        seqpos_slice: tuple[int | None, ...] = (None,),
    ) -> dict[str, Any]:
        from sae_faithful.evaluation import evaluate
        from sae_faithful.interfaces import EvalContext
        from sae_faithful.plan import PlannedEvaluator
        from sae_faithful.run_folder import RunFolder

        one_hot_model.tokenizer = tokenizer
        one_hot_model.unembedding = lambda: unembedding
        folder = RunFolder(tmp_path / f"shown{len(list(tmp_path.iterdir()))}")
        context = EvalContext(
            handles=handles, held_out=held_out, sources=list(held_out), language_model=one_hot_model, seed=7
        )
        planned = [PlannedEvaluator("top_contexts", evaluator, {})]
        planned += [PlannedEvaluator(name, Planted(given), {}) for name, given in (columns or {}).items()]
        evaluate(planned, context, folder, {}, batch_rows, seqpos_slice)
        path = folder.result_dir("top_contexts") / "artifacts/contexts.json"
        return json.loads(path.read_text(encoding="utf-8"))

    return go
