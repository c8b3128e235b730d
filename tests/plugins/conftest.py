"""A model whose activations are known by hand, SAEs with planted latents, and requests for tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_faithful import LanguageModel

VOCAB, BOS, SPECIAL = 64, 0, [0, 1, 2]
HOOK = "model.layers.0"


@pytest.fixture(scope="session")
def llama(tiny_llama: str) -> LanguageModel:
    """The tiny Llama behind the adapter, with both layers' outputs as hooks."""
    return LanguageModel(tiny_llama, hooks=("model.layers.0", "model.layers.1"))


@pytest.fixture
def make_request(llama: Any, tmp_path: Path) -> Callable[..., Any]:
    """A request for tokens of the tiny Llama, with a cache of the test's own."""
    from sae_faithful import SourceRequest

    def make(**changes: Any) -> Any:
        fields: dict[str, Any] = {
            "name": "faithful",
            "n_tokens": 800,
            "context_size": 16,
            "prepend_bos": True,
            "seed": 7,
            "cache_dir": tmp_path / "shards",
            "language_model": llama,
        }
        return SourceRequest(**{**fields, **changes})

    return make


class OneHotModel(LanguageModel):
    """A model whose activation at every hook is the one-hot vector of the token, BOS's a hundred times longer.

    So a latent's activation on token t is row t of its SAE's encoder (times 100 for BOS). The next token is
    w5 or w6, each with the same probability, wherever the activation was left as it is.
    """

    vocab_size = VOCAB
    bos_token_id = BOS
    special_token_ids = SPECIAL

    def __init__(self) -> None:
        super().__init__("one-hot")
        self.passes: list[tuple[tuple[str, ...], int]] = []

    def activations(self, tokens: Any, hooks: Sequence[str]) -> dict[str, Any]:
        self.passes.append((tuple(hooks), len(tokens)))
        return {hook: self._embed(tokens) for hook in hooks}

    def logits(self, tokens: Any) -> Any:
        return self._unembed(self._embed(tokens))

    def logits_with_edit(self, tokens: Any, hook: str, edit: Callable[[Any], Any]) -> Any:
        return self._unembed(edit(self._embed(tokens)))

    def _embed(self, tokens: Any) -> Any:
        import torch

        vectors = torch.nn.functional.one_hot(tokens, VOCAB).float()
        vectors[tokens == BOS] *= 100
        return vectors

    def _unembed(self, activations: Any) -> Any:
        import torch

        scores = torch.zeros(VOCAB, VOCAB)
        scores[:, 5:7] = 4.0
        return activations @ scores


@pytest.fixture
def one_hot_model() -> OneHotModel:
    return OneHotModel()


@pytest.fixture
def plant() -> Callable[..., Any]:
    """A handle of a SAELens StandardSAE with hand-made weights.

    `encoder` [64, d_sae] holds each latent's activation on each token of the one-hot model; `decoder`
    [d_sae, 64] the directions, by default the first unit vectors.
    """

    def make(
        encoder: np.ndarray | None = None,
        decoder: np.ndarray | None = None,
        *,
        source: str = "faithful",
        hook: str = HOOK,
        variant: str = "main",
        seed: int = 0,
    ) -> Any:
        import torch
        from sae_lens import StandardSAE, StandardSAEConfig

        from sae_faithful import SAEHandle

        if encoder is None:
            assert decoder is not None
            encoder = np.zeros((VOCAB, len(decoder)))
        if decoder is None:
            decoder = np.eye(encoder.shape[1], VOCAB)

        def load() -> Any:
            sae = StandardSAE(StandardSAEConfig(d_in=VOCAB, d_sae=len(decoder)))
            with torch.no_grad():
                sae.W_enc.copy_(torch.as_tensor(encoder))
                sae.W_dec.copy_(torch.as_tensor(decoder))
                sae.b_enc.zero_()
                sae.b_dec.zero_()
            return sae

        return SAEHandle(source=source, hook=hook, variant=variant, seed=seed, load=load)

    return make


@dataclass
class Measured:
    """What an evaluator wrote."""

    rows: list[dict[str, Any]]
    features: Any
    folder: Path

    def row(self, metric: str, **wanted: Any) -> dict[str, Any]:
        """The one row of that metric with those fields; per-source unless a seed is named."""
        wanted = {"seed": None, "other_seed": None, **wanted}
        found = [
            row
            for row in self.rows
            if row["metric"] == metric and all(row[key] == value for key, value in wanted.items())
        ]
        assert len(found) == 1, f"{len(found)} rows of {metric} with {wanted}"
        return found[0]


@pytest.fixture
def measure(tmp_path: Path, one_hot_model: OneHotModel) -> Callable[..., Measured]:
    """Run one evaluator as a run does: one pass for its observers, results to disk, and read back."""
    runs = 0

    def go(
        evaluator: Any,
        handles: Sequence[Any],
        held_out: Mapping[str, Any],
        *,
        language_model: Any = one_hot_model,
        seed: int = 7,
        batch_rows: int = 1_000,
    ) -> Measured:
        import pandas as pd

        from sae_faithful.evaluation import FEATURES_FILE, evaluate, read_rows
        from sae_faithful.interfaces import EvalContext
        from sae_faithful.plan import PlannedEvaluator
        from sae_faithful.run_folder import RunFolder

        nonlocal runs
        runs += 1
        folder = RunFolder(tmp_path / f"measured{runs}")
        context = EvalContext(
            handles=handles,
            held_out=held_out,
            sources=list(dict.fromkeys(handle.source for handle in handles)),
            language_model=language_model,
            seed=seed,
        )
        evaluate([PlannedEvaluator("it", evaluator, {})], context, folder, {}, batch_rows)
        where = folder.result_dir("it")
        table = where / FEATURES_FILE
        return Measured(read_rows(where), pd.read_parquet(table) if table.exists() else None, where)

    return go
