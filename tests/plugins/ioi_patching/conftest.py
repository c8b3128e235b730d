"""A planted circuit: a model whose prediction is read from known features of the prompt, and SAEs of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful import LanguageModel, TokenSet

VOCAB, WIDTH = 64, 16
CAUSAL = [1, 4, 6, 9, 13]
"""Features that are read; the other eleven change as well and are not."""
HOOK = "model.layers.0"


class Circuit(LanguageModel):
    """At the hook a token is `embedding[token]`; logits are `unembed` of the sum over the prompt so far.

    It can be patched, and differentiated, at the hook. Nothing of it depends on what comes later.
    """

    vocab_size = VOCAB
    bos_token_id = 0
    context_limit = 32

    def __init__(self, embedding: torch.Tensor, unembed: torch.Tensor, tokenizer: Any) -> None:
        super().__init__("circuit")
        self.embedding, self.unembed = embedding, unembed
        self.vocab_size = unembed.shape[1]
        self.special_token_ids = [0, 1, 2]
        self.tokenizer = tokenizer
        self.edits: list[torch.Tensor] = []
        """What was added at the hook, one a forward."""

    def activations(self, tokens: Any, hooks: Any) -> dict[str, torch.Tensor]:
        return dict.fromkeys(hooks, self.embedding[tokens])

    def logits(self, tokens: Any) -> torch.Tensor:
        return self.embedding[tokens].cumsum(dim=1) @ self.unembed

    def logits_with_edit(
        self, tokens: Any, hook: str, edit: Callable[[Any], Any], *, grad: bool = False
    ) -> torch.Tensor:
        own = self.embedding[tokens]
        with torch.set_grad_enabled(grad):
            edited = edit(own)
            self.edits.append((edited - own).detach())
            return edited.cumsum(dim=1) @ self.unembed


@pytest.fixture
def circuit(tokenizer: Any) -> Circuit:
    """Tokens have codes of 0 to 2 along orthonormal directions; five are read, each by a token of its own."""
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.uniform(0, 2, (VOCAB, WIDTH)) * (rng.random((VOCAB, WIDTH)) < 0.7)).float()
    unembed = torch.zeros(WIDTH, VOCAB)
    unembed[CAUSAL, torch.arange(10, 15)] = 2.0
    return Circuit(codes @ directions(), directions().T @ unembed, tokenizer)


def directions() -> torch.Tensor:
    """The planted features, orthonormal and not along the axes."""
    return torch.linalg.qr(torch.from_numpy(np.random.default_rng(1).normal(size=(WIDTH, WIDTH))).float())[0]


@pytest.fixture
def sae_of() -> Callable[..., Any]:
    """A handle of a SAELens SAE with given decoder directions, reading along them; `[D; −D]` loses nothing."""

    def make(rows: torch.Tensor, *, seed: int = 0, **options: Any) -> Any:
        from sae_lens import StandardSAE, StandardSAEConfig

        from sae_faithful import SAEHandle

        place = {name: options.pop(name) for name in ("source", "variant", "hook") if name in options}

        def load() -> Any:
            sae = StandardSAE(StandardSAEConfig(d_in=rows.shape[1], d_sae=len(rows), **options))
            with torch.no_grad():
                sae.W_dec.copy_(rows)
                sae.W_enc.copy_(rows.T)
                sae.b_enc.zero_()
                sae.b_dec.zero_()
            return sae

        return SAEHandle(
            **{"source": "faithful", "hook": HOOK, "variant": "main", **place}, seed=seed, load=load
        )

    return make


@pytest.fixture
def planted(sae_of: Callable[..., Any]) -> Any:
    """The SAE that has the planted features."""
    return sae_of(directions())


@pytest.fixture
def lines() -> list[dict[str, str]]:
    """Sixty pairs that differ in one token, of different lengths."""
    return planted_lines()


def planted_lines(n: int = 60) -> list[dict[str, str]]:
    rng = np.random.default_rng(2)
    found: list[dict[str, str]] = []
    for _ in range(n):
        length = int(rng.integers(4, 8))
        words = rng.integers(20, VOCAB, size=length)
        place = int(rng.integers(0, length))
        other = words.copy()
        other[place] = 20 + (words[place] - 20 + 1 + rng.integers(0, 40)) % 44
        base, target = (" ".join(f"w{word}" for word in some) for some in (words, other))
        found.append({"base": base, "target": target})
    return found


@pytest.fixture
def text() -> TokenSet:
    """Random words, for principal components."""
    rows = np.random.default_rng(3).integers(20, VOCAB, size=(60, 16))
    rows[:, 0] = 0
    return TokenSet.from_rows(rows)
