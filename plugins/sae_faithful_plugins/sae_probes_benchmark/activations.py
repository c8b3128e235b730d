"""The one vector that sae-probes reads a text by: the activation at its last token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_faithful import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from jaxtyping import Float

    from sae_faithful import LanguageModel

TOKENS_PER_FORWARD = 4_096
TEXTS_PER_CALL = 1_000


def last_token_activations(
    model: LanguageModel, texts: Sequence[str], hooks: Sequence[str], max_tokens: int
) -> dict[str, Float[torch.Tensor, "texts d_in"]]:
    """Activations at the last token of BOS and each text's last `max_tokens` ids, on the CPU in float32.

    A text that is too long for that, or for the model, loses its beginning, as in sae-probes. An empty one is BOS.
    Texts of similar length share a forward pass, padded on the right, where a causal model cannot see it.
    """
    import torch

    ids = _tokenize(model, texts, min(max_tokens, (model.context_limit or max_tokens + 1) - 1))
    lengths = np.array([len(one) for one in ids])
    order = np.argsort(lengths, kind="stable")
    found: dict[str, list[torch.Tensor]] = {hook: [] for hook in hooks}
    start = 0
    with Progress("sae-probes: texts", len(order), "texts") as progress:
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (lengths[order[stop]] + 1) * (stop + 1 - start) <= TOKENS_PER_FORWARD:
                stop += 1
            rows = order[start:stop]
            # Any id will do for padding; BOS also begins every text.
            tokens = torch.full((len(rows), int(lengths[rows[-1]]) + 1), model.bos_token_id)
            for i, row in enumerate(rows):
                tokens[i, 1 : lengths[row] + 1] = torch.tensor(ids[row], dtype=torch.long)
            last = torch.from_numpy(lengths[rows])
            for hook, activations in model.activations(tokens, hooks).items():
                at_last = activations[torch.arange(len(rows)), last.to(activations.device)]
                found[hook].append(at_last.float().cpu())
            progress.update(len(rows))
            start = stop
    back = torch.from_numpy(np.argsort(order, kind="stable"))
    return {hook: torch.cat(parts)[back] for hook, parts in found.items()}


def _tokenize(model: LanguageModel, texts: Sequence[str], longest: int) -> list[list[int]]:
    """Each text's last ids. A text may spell a special token: it is text, not the token."""
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    ids: list[list[int]] = []
    for start in range(0, len(texts), TEXTS_PER_CALL):
        ids += model.tokenizer(list(texts[start : start + TEXTS_PER_CALL]), **options)["input_ids"]
    return [one[max(0, len(one) - longest) :] for one in ids]
