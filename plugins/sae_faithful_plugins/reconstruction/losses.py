"""Next-token losses of a text: the model's own, with the hook zeroed, and with each SAE in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_faithful import row_batches
from sae_faithful.metrics.clusters import ClusterSums
from sae_faithful.metrics.reconstruction import (
    next_token_divergences,
    next_token_log_probs,
    next_token_losses,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from sae_faithful import ActivationBatch, LanguageModel, SAEHandle

TOKENS_PER_FORWARD = 1_024
LOGITS_PER_FORWARD = 2**26
"""At most so many logits (256 MiB in float32) of one forward are held at a time, if a row has no more."""


class LossSums:
    """Sums of losses over the first rows of a text, for predictions made at the tokens that count.

    They are fewer rows than the whole text, so their clusters are their own.
    """

    def __init__(self, n_rows: int, handles: Sequence[SAEHandle]) -> None:
        self.n_rows = n_rows
        self.predictions, self.clean, self.ablated = (ClusterSums(n_rows, 1) for _ in range(3))
        self.substituted = {handle: ClusterSums(n_rows, 1) for handle in handles}
        self.divergences = {handle: ClusterSums(n_rows, 1) for handle in handles}


def add_losses(
    sums: Mapping[str | None, LossSums],
    masks: Mapping[str | None, torch.Tensor],
    model: LanguageModel,
    hook: str,
    batch: ActivationBatch,
    reconstructions: Mapping[SAEHandle, torch.Tensor],
) -> None:
    """The clean and the ablated forward once for all, then one forward an SAE and condition.

    Args:
        sums: by condition; what is added to.
        masks: by condition: where tokens [rows, context] count, and are replaced.
        model: whose losses they are.
        hook: where activations are replaced.
        batch: rows of the text.
        reconstructions: of its first rows, at least all that the losses are made from.
    """
    n_rows = min(len(batch.tokens), max(one.n_rows for one in sums.values()) - batch.first_row)
    at_once = min(TOKENS_PER_FORWARD, LOGITS_PER_FORWARD // model.vocab_size)
    for rows in row_batches(n_rows, batch.tokens.shape[1], at_once):
        _add_rows(sums, masks, model, hook, batch, reconstructions, rows)


def _add_rows(
    sums: Mapping[str | None, LossSums],
    masks: Mapping[str | None, torch.Tensor],
    model: LanguageModel,
    hook: str,
    batch: ActivationBatch,
    reconstructions: Mapping[SAEHandle, torch.Tensor],
    rows: slice,
) -> None:
    import torch

    tokens, first = batch.tokens[rows], batch.first_row + rows.start
    own = next_token_log_probs(model.logits(tokens))
    clean = next_token_losses(own, tokens)
    zeroed = model.logits_with_edit(tokens, hook, torch.zeros_like)
    ablated = next_token_losses(next_token_log_probs(zeroed), tokens)
    del zeroed  # as large as `own`
    for condition, one in sums.items():
        n = min(len(tokens), one.n_rows - first)
        if n <= 0:
            continue
        mask = masks[condition][rows][:n]
        counted = mask[:, :-1]
        one.predictions.add(first, counted.sum(dim=1, keepdim=True))
        one.clean.add(first, _row_sums(clean[:n], counted))
        one.ablated.add(first, _row_sums(ablated[:n], counted))
        for handle, reconstruction in reconstructions.items():
            edit = _replaced_by(reconstruction[rows][:n], mask)
            substituted = next_token_log_probs(model.logits_with_edit(tokens[:n], hook, edit))
            one.substituted[handle].add(first, _row_sums(next_token_losses(substituted, tokens[:n]), counted))
            one.divergences[handle].add(
                first, _row_sums(next_token_divergences(own[:n], substituted), counted)
            )


def _row_sums(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    return values.double().where(counted.to(values.device), 0).sum(dim=1, keepdim=True)


def _replaced_by(values: torch.Tensor, mask: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Tokens that do not count keep what the model computed."""
    return lambda own: values.to(own.device, own.dtype).where(mask[..., None].to(own.device), own)
