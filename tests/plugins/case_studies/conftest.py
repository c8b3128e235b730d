"""A model that is a table and a readout, so that every effect is known, and SAEs with given weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful import LanguageModel

VOCAB, WIDTH = 64, 16
HOOK = "model.layers.0"


class Linear(LanguageModel):
    """At the hook a token is `embedding[token]`; logits are that, edited or not, times `readout`."""

    vocab_size = VOCAB
    bos_token_id = 0
    context_limit = 32

    def __init__(self, embedding: torch.Tensor, readout: torch.Tensor, tokenizer: Any) -> None:
        super().__init__("linear")
        self.embedding, self.readout, self.tokenizer = embedding, readout, tokenizer
        self.special_token_ids = [0, 1, 2]
        self.edited: list[torch.Tensor] = []
        """Activations after the edit, one a forward."""
        self.unembeddings = 0
        """How often the output matrix was made."""
        self.batches: list[int] = []

    def activations(self, tokens: Any, hooks: Any) -> dict[str, torch.Tensor]:
        self.batches.append(len(tokens))
        return dict.fromkeys(hooks, self.embedding[tokens])

    def logits(self, tokens: Any) -> torch.Tensor:
        return self.embedding[tokens] @ self.readout

    def logits_with_edit(
        self, tokens: Any, hook: str, edit: Callable[[Any], Any], *, grad: bool = False
    ) -> torch.Tensor:
        self.edited.append(edit(self.embedding[tokens]))
        return self.edited[-1] @ self.readout

    def unembedding(self) -> torch.Tensor | None:
        self.unembeddings += 1
        return self.readout.T


@pytest.fixture
def linear(tokenizer: Any) -> Linear:
    """Random embedding and readout."""
    rng = np.random.default_rng(0)
    embedding, readout = (
        torch.from_numpy(rng.normal(size=shape)).float() for shape in ((VOCAB, WIDTH), (WIDTH, VOCAB))
    )
    return Linear(embedding, readout, tokenizer)


@pytest.fixture
def sae_of() -> Callable[..., Any]:
    """A handle of a SAELens SAE; tied unless `encoder` [d_sae, d_in] is given."""

    def make(
        decoder: torch.Tensor,
        encoder: torch.Tensor | None = None,
        bias: torch.Tensor | float = 0.0,
        k: int | None = None,
        **options: Any,
    ) -> Any:
        from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

        from sae_faithful import SAEHandle

        place = {
            name: options.pop(name)
            for name in ("source", "variant", "hook", "seed", "kind")
            if name in options
        }
        shape: dict[str, Any] = {"d_in": decoder.shape[1], "d_sae": len(decoder), **options}

        def load() -> Any:
            sae = (
                StandardSAE(StandardSAEConfig(**shape)) if k is None else TopKSAE(TopKSAEConfig(k=k, **shape))
            )
            with torch.no_grad():
                sae.W_dec.copy_(decoder)
                sae.W_enc.copy_((decoder if encoder is None else encoder).T)
                sae.b_enc.copy_(torch.as_tensor(bias).expand(len(decoder)))
                sae.b_dec.zero_()
            return sae

        return SAEHandle(
            **{"source": "faithful", "hook": HOOK, "variant": "main", "seed": 0, **place}, load=load
        )

    return make


@pytest.fixture
def rows() -> np.ndarray:
    """Sixty rows of BOS and fifteen words."""
    ids = np.random.default_rng(3).integers(4, VOCAB, size=(60, 16))
    ids[:, 0] = 0
    return ids
