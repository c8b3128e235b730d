"""Fragments of text, and for every latent its strongest, some random and some silent ones, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_faithful import TokenSet, UsageError, row_batches, special_token_mask
from sae_faithful.metrics.top_activations import keep_largest
from sae_faithful_plugins.autointerp.splits import N_INACTIVE, N_RANDOM, N_TOP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Bool, Float, Int

    from sae_faithful import ActivationBatch, LanguageModel, SAEHandle

CUT_FROM = 2_000_000
"""Of a text with more tokens than this, and than twenty times those of all fragments, the first ones are cut up:
memory does not grow with the text."""
REPLACEMENT = "\ufffd"
"""What a decoder writes for a character that was cut in two."""


def draw_fragments(
    tokens: TokenSet,
    model: LanguageModel,
    *,
    n: int,
    size: int,
    per_document: int,
    with_bos: bool,
    seed: int,
) -> TokenSet | None:
    """Random fragments of documents, each to be run alone.

    Args:
        tokens: the text.
        model: whose tokenizer and special tokens they are.
        n: at most so many, in random order.
        size: ordinary tokens of a fragment; shorter documents give none.
        per_document: at most so many of one document, none overlapping another.
        with_bos: whether each begins with BOS.
        seed: of all that is random.

    Returns:
        Rows of `size` tokens, or one more with BOS; None where no document is long enough. Fragments that begin
        or end within a character are left out, as in the paper.

    Raises:
        UsageError: a fragment is longer than the model's context.
    """
    if model.context_limit is not None and size + with_bos > model.context_limit:
        raise UsageError(
            f"autointerp: fragment_tokens {size} is more than {model.name} takes ({model.context_limit})"
        )
    rng = np.random.default_rng(seed)
    drawn: list[np.ndarray] = []
    cut = tokens.head(-(-max(CUT_FROM, 20 * n * size) // max(tokens.context_size, 1)))
    for document in _documents(cut, model):
        count = min(per_document, len(document) // size)
        slack = len(document) - count * size
        starts = np.sort(rng.integers(0, slack + 1, count)) + size * np.arange(count)
        drawn += [document[start : start + size] for start in starts]
    kept = [drawn[i] for i in rng.permutation(len(drawn)) if _whole(drawn[i], model)][:n]
    if not kept:
        return None
    rows = np.stack(kept)
    if with_bos:
        rows = np.concatenate([np.full((len(rows), 1), model.bos_token_id), rows], axis=1)
    return TokenSet.from_rows(rows)


def _documents(tokens: TokenSet, model: LanguageModel) -> list[np.ndarray]:
    """The ordinary tokens of every document."""
    ids, owners = (array.reshape(-1) for array in tokens.arrays())
    ordinary = special_token_mask(ids, model.special_token_ids)
    ids, owners = ids[ordinary], owners[ordinary]
    return np.split(ids, np.flatnonzero(np.diff(owners)) + 1) if len(ids) else []


def _whole(fragment: np.ndarray, model: LanguageModel) -> bool:
    return model.tokenizer is None or REPLACEMENT not in model.tokenizer.decode(fragment.tolist())


class Kept:
    """For every latent the `m` rows with the largest values; of equal ones the first seen."""

    def __init__(self, d_sae: int, m: int) -> None:
        self.values: Float[np.ndarray, "d_sae m"] = np.full((d_sae, m), -np.inf, np.float32)
        """Largest first."""
        self.rows: Int[np.ndarray, "d_sae m"] = np.full((d_sae, m), -1, np.int64)

    def add(self, first_row: int, values: Float[np.ndarray, "rows d_sae"]) -> None:
        """Take in rows that were not seen before; −∞ is no candidate."""
        (changed,) = np.nonzero(values.max(axis=0) > self.values[:, -1])
        new = values[:, changed].T
        rows = np.broadcast_to(first_row + np.arange(len(values)), new.shape)
        keep_largest((self.values, self.rows), changed, (new, rows))

    def of(self, latent: int) -> Int[np.ndarray, " rows"]:
        """A latent's rows, largest value first."""
        return self.rows[latent][np.isfinite(self.values[latent])]


class Fragments:
    """The first pass over the fragments: which of them each latent of an SAE is judged by.

    Memory is 80 values and rows a latent, whatever the number of fragments. A fragment is active for a latent
    whose largest activation in it is not 0 (for signed codes it may be below). Random ones are those with the
    largest of keys that depend on seed, fragment and latent alone, so that batches make no difference.
    """

    def __init__(self, handle: SAEHandle, tokens: TokenSet, seed: int) -> None:
        self.hook, self.tokens, self.handle, self.seed = handle.hook, tokens, handle, seed
        self.top = Kept(handle.d_sae, N_TOP)
        # The random ones are to be others than the top ones, which are among these until all text has passed.
        self.active = Kept(handle.d_sae, N_TOP + N_RANDOM)
        self.inactive = Kept(handle.d_sae, N_INACTIVE)
        self.n_active: Int[np.ndarray, " d_sae"] = np.zeros(handle.d_sae, np.int64)
        self.positions: Bool[np.ndarray, " context"] = np.zeros(tokens.context_size, bool)
        """Which tokens of a fragment count: not its BOS, nor those outside the SAEs' `seqpos_slice`."""

    def update(self, batch: ActivationBatch) -> None:
        """Take in the largest activation of every latent in each fragment."""
        # Fragments hold no special tokens but their BOS: the same places count in each.
        mask = batch.mask[0]
        self.positions = mask.cpu().numpy()
        if not self.positions.any():
            return
        latents = batch.latents(self.handle)
        maxima = latents[:, mask.to(latents.device)].amax(dim=1).float().cpu().numpy()
        active = maxima != 0
        self.n_active += active.sum(axis=0)
        keys = np.stack(
            [
                np.random.default_rng([self.seed, batch.first_row + i]).random(maxima.shape[1], np.float32)
                for i in range(len(maxima))
            ]
        )
        for kept, values, among in (
            (self.top, maxima, active),
            (self.active, keys, active),
            (self.inactive, keys, ~active),
        ):
            kept.add(batch.first_row, np.where(among, values, -np.inf).astype(np.float32))

    def rows_of(self, latent: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The latent's top fragments, random ones among the other active ones, and random inactive ones."""
        top = self.top.of(latent)
        others = self.active.of(latent)
        return top, others[~np.isin(others, top)][:N_RANDOM], self.inactive.of(latent)


@dataclass(frozen=True, eq=False)
class Record:
    """One fragment and a latent's activations in it, at the tokens that count."""

    row: int
    ids: Int[np.ndarray, " tokens"]
    activations: Float[np.ndarray, " tokens"]


@dataclass(frozen=True)
class FeatureRecords:
    """What a feature is explained and judged by."""

    latent: int
    n_active: int
    """In how many fragments it is active."""
    top: Sequence[Record]
    random: Sequence[Record]
    inactive: Sequence[Record]


def collect(
    chosen: Mapping[Fragments, Sequence[int]], model: LanguageModel, latents_per_batch: int = 2**24
) -> dict[Fragments, list[FeatureRecords]]:
    """The second pass: every activation of the chosen latents in the fragments that were kept for them.

    One forward of the model for all SAEs that need a fragment.
    """
    import torch

    wanted = {one: {latent: one.rows_of(latent) for latent in latents} for one, latents in chosen.items()}
    found = {
        one: {latent: _Gathered(np.concatenate(rows), one.positions) for latent, rows in latents.items()}
        for one, latents in wanted.items()
    }
    texts = {id(one.tokens): one.tokens for one in chosen}
    ids_of = {key: text.rows() for key, text in texts.items()}
    for key, text in texts.items():
        here = [one for one in chosen if one.tokens is text and found[one]]
        if not here:
            continue
        union = np.unique(np.concatenate([each.rows for one in here for each in found[one].values()]))
        widest = max(one.handle.d_sae for one in here)
        for part in row_batches(len(union), text.context_size, latents_per_batch // widest):
            rows = union[part]
            batch = torch.from_numpy(ids_of[key][rows])
            activations = model.activations(batch, list(dict.fromkeys(one.hook for one in here)))
            for one in here:
                mine = found[one]
                latents = one.handle.encode(activations[one.hook])[:, :, list(mine)].float().cpu().numpy()
                for i, gathered in enumerate(mine.values()):
                    gathered.take(rows, latents[:, :, i])
    return {
        one: [
            FeatureRecords(
                latent,
                int(one.n_active[latent]),
                *(found[one][latent].records(rows, ids_of[id(one.tokens)]) for rows in kinds),
            )
            for latent, kinds in latents.items()
        ]
        for one, latents in wanted.items()
    }


class _Gathered:
    """One latent's activations in its fragments."""

    def __init__(self, rows: np.ndarray, positions: np.ndarray) -> None:
        self.rows, self.positions = rows, positions
        self.activations = np.zeros((len(rows), int(positions.sum())), np.float32)

    def take(self, rows: np.ndarray, latent: Float[np.ndarray, "rows context"]) -> None:
        """Pick those of one batch; `rows` ascend."""
        (mine,) = np.nonzero(np.isin(self.rows, rows))
        if len(mine):
            self.activations[mine] = latent[np.searchsorted(rows, self.rows[mine])][:, self.positions]

    def records(self, rows: np.ndarray, ids: Int[np.ndarray, "fragments context"]) -> list[Record]:
        """Those of some rows, in their order."""
        place = {int(row): i for i, row in enumerate(self.rows)}
        return [Record(int(row), ids[row][self.positions], self.activations[place[int(row)]]) for row in rows]
