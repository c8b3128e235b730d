"""The activation at a text's last token."""

from __future__ import annotations

from typing import Any

import pytest

from sae_faithful_plugins.sae_probes_benchmark import activations
from sae_faithful_plugins.sae_probes_benchmark.activations import last_token_activations

HOOKS = ("model.layers.0", "model.layers.1")


def one_by_one(llama: Any, texts: list[list[int]]) -> dict[str, Any]:
    """Every text alone, unpadded, after BOS (0)."""
    import torch

    alone = [llama.activations(torch.tensor([[0, *ids]]), HOOKS) for ids in texts]
    return {hook: torch.stack([one[hook][0, -1] for one in alone]) for hook in HOOKS}


@pytest.mark.parametrize("tokens_per_forward", [1, 12, 10_000])
def test_batches_change_nothing(llama: Any, tokens_per_forward: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(activations, "TOKENS_PER_FORWARD", tokens_per_forward)
    ids = [[20, 21, 22, 23, 24, 25, 26], [30], [], [40, 41, 42], [31], [50, 51, 52, 53]]
    texts = [" ".join(f"w{i}" for i in one) for one in ids]
    found = last_token_activations(llama, texts, HOOKS, 100)
    expected = one_by_one(llama, ids)
    for hook in HOOKS:
        assert found[hook].shape == (6, 64)
        torch.testing.assert_close(found[hook], expected[hook], atol=1e-5, rtol=1e-4)


def test_a_long_text_loses_its_beginning(llama: Any) -> None:
    import torch

    texts = ["w20 w21 w22 w23 w24", " ".join(f"w{4 + i % 60}" for i in range(100))]
    found = last_token_activations(llama, texts, HOOKS, 3)
    expected = one_by_one(llama, [[22, 23, 24], [41, 42, 43]])
    torch.testing.assert_close(found[HOOKS[1]], expected[HOOKS[1]], atol=1e-5, rtol=1e-4)
    # The model takes 64 tokens: BOS and the last 63 of 100, which are 37 ... 99.
    whole = last_token_activations(llama, texts[1:], HOOKS, 1_000)
    expected = one_by_one(llama, [[4 + i % 60 for i in range(37, 100)]])
    torch.testing.assert_close(whole[HOOKS[1]], expected[HOOKS[1]], atol=1e-5, rtol=1e-4)


def test_a_special_token_spelled_out_is_text(llama: Any) -> None:
    import torch

    # As text, `<eos>w21` is one unknown word, <pad> (2); parsed, it would be the tokens 1 and 21.
    found = last_token_activations(llama, ["w20 <eos>w21"], HOOKS, 100)
    torch.testing.assert_close(found[HOOKS[1]], one_by_one(llama, [[20, 2]])[HOOKS[1]], atol=1e-5, rtol=1e-4)
