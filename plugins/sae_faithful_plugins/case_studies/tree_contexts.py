"""The contexts a causal tree is measured on: where a feature fires at least half as strongly as it ever does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from sae_faithful import derive_seed, row_batches, special_token_mask
from sae_faithful_plugins.case_studies.observing import beginning

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from jaxtyping import Bool, Float, Int

    from sae_faithful import LanguageModel, SAEHandle, TokenSet

TOKENS_PER_FORWARD = 1_024


class Feature(NamedTuple):
    """A latent of the SAE at a hook; which source, variant and seed is said once for a whole tree."""

    hook: str
    latent: int

    def __str__(self) -> str:
        return f"{self.hook}/{self.latent}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Contexts:
    """Beginnings of rows that end where a feature fires; none if it never does."""

    tokens: Int[torch.Tensor, "contexts length"]
    """Padded on the right, where a causal model cannot see it."""
    counted: Bool[torch.Tensor, "contexts length"]
    """Tokens up to the firing one that count in a measurement: BOS and other special tokens do not."""
    rows: Int[np.ndarray, " contexts"]
    """Which rows of the text they begin."""
    positions: Int[np.ndarray, " contexts"]
    """Where the feature fires: each context's last token."""
    activations: Float[np.ndarray, " contexts"]
    """How strongly, when its text was searched."""
    maximum: float
    """The feature's maximum over the whole text; 0 if it never fires."""
    n_in_range: int
    """How many tokens there were to draw from."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class _Strongest:
    """Firings of at least half the maximum, while the maximum is still rising."""

    maximum: float = 0.0
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(
        default_factory=list["tuple[np.ndarray, np.ndarray, np.ndarray]"]
    )

    def add(self, first_row: int, values: Float[np.ndarray, "rows context"]) -> None:
        self.maximum = max(self.maximum, float(values.max()))
        rows, positions = np.nonzero((values > 0) & (values >= self.maximum / 2))
        self.found.append((rows + first_row, positions, values[rows, positions]))

    def in_range(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, positions, values = (np.concatenate(part) for part in zip(*self.found, strict=True))
        kept = values >= self.maximum / 2
        return rows[kept], positions[kept], values[kept]


def find_contexts(
    model: LanguageModel,
    text: TokenSet,
    handles: Mapping[str, SAEHandle],
    features: Collection[Feature],
    *,
    n_tokens: int,
    context_tokens: int,
    n_contexts: int,
    seed: int,
) -> dict[Feature, Contexts]:
    """Each feature's contexts, in one pass of the model over the text for all of them.

    M is a feature's maximum over the tokens that count; contexts are drawn from those where it is in [M/2, M], at
    most one a row, because tokens of one row are no independent samples.

    Args:
        model: whose activations the SAEs take.
        text: rows nothing was trained on.
        handles: by hook.
        features: at those hooks.
        n_tokens: how much of the text is searched, in whole rows, one at the least.
        context_tokens: only so many tokens of every row, from its first, are searched; 0 means all. A context is
            then never longer, and nothing before it is cut off: the feature fires there as it did in the text.
        n_contexts: how many are drawn, if there are as many rows to draw from.
        seed: of the draws. A feature's do not depend on what else is asked for.
    """
    rows = beginning(text, n_tokens, context_tokens).rows()
    counted = {hook: counting(model, handles[hook], rows) for hook in {feature.hook for feature in features}}
    strongest = {feature: _Strongest() for feature in features}
    n_rows, length = rows.shape
    for batch in row_batches(n_rows, length, TOKENS_PER_FORWARD):
        activations = model.activations(torch.from_numpy(rows[batch]), list(counted))
        for hook, mask in counted.items():
            wanted = [feature for feature in features if feature.hook == hook]
            codes = handles[hook].encode(activations[hook])[..., [feature.latent for feature in wanted]]
            values = codes.float().cpu().numpy() * mask[batch, :, None]
            for column, feature in enumerate(wanted):
                strongest[feature].add(batch.start, values[..., column])
    seeds = {each: derive_seed(seed, "tree", *handles[each.hook].key, each.latent) for each in features}
    return {
        feature: _draw(found, rows, counted[feature.hook], n_contexts, seeds[feature])
        for feature, found in strongest.items()
    }


def counting(
    model: LanguageModel, handle: SAEHandle, rows: Int[np.ndarray, "rows context"]
) -> Bool[np.ndarray, "rows context"]:
    """True where an SAE's codes count: not at special tokens, nor where its file says it was not trained."""
    mask = special_token_mask(rows, model.special_token_ids)
    positions = np.zeros(rows.shape[1], bool)
    told = getattr(getattr(handle.sae.cfg, "metadata", None), "seqpos_slice", None)
    positions[slice(*(told or (None,)))] = True
    return mask & positions


def _draw(
    strongest: _Strongest,
    rows: Int[np.ndarray, "rows context"],
    counted: Bool[np.ndarray, "rows context"],
    n_contexts: int,
    seed: int,
) -> Contexts:
    owners, positions, values = strongest.in_range()
    order = np.random.default_rng(seed).permutation(len(owners))
    first_of_row = np.unique(owners[order], return_index=True)[1]
    chosen = np.sort(order[np.sort(first_of_row)[:n_contexts]])
    length = int(positions[chosen].max(initial=-1)) + 1
    inside = np.arange(length) <= positions[chosen, None]
    return Contexts(
        tokens=torch.from_numpy(np.ascontiguousarray(rows[owners[chosen], :length])),
        counted=torch.from_numpy(counted[owners[chosen], :length] & inside),
        rows=owners[chosen],
        positions=positions[chosen],
        activations=values[chosen],
        maximum=strongest.maximum,
        n_in_range=len(owners),
    )
