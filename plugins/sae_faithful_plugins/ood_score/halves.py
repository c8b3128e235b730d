"""Each text in two random halves, and activations at random tokens of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_faithful import RunError, derive_seed, special_token_mask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sae_faithful import ActivationBatch, LanguageModel, TokenSet

NO_DOCUMENT = -1
LOOKED_AT = 1_000_000
"""Of a text with more tokens than this, and than eight times what is wanted of a half, the first ones are split: what
is known of every token, 20 bytes, does not grow with the text."""


class Halves:
    """One text with its documents split at random in two: the first half to refer to, the second to compare.

    Where the whole text is one document, rows are split instead. The split depends on the seed and the number
    of documents alone, so that one text under two names is split in one way.

    Args:
        name: the text's.
        tokens: its held-out part.
        model: whose special tokens do not count.
        seed: of the split.
        wanted: most tokens that anyone asks of a half.
    """

    def __init__(self, name: str, tokens: TokenSet, model: LanguageModel, seed: int, wanted: int = 0) -> None:
        self.name = name
        self.tokens = tokens
        self.seed = seed
        self.special = list(model.special_token_ids)
        seen = tokens.head(-(-max(LOOKED_AT, 8 * wanted) // max(tokens.context_size, 1)))
        ids, owners = seen.arrays()
        rows = np.broadcast_to(np.arange(len(ids), dtype=np.int32)[:, None], ids.shape).reshape(-1)
        self.ids, owners = ids.reshape(-1), owners.reshape(-1)
        ordinary = special_token_mask(self.ids, self.special) & (owners != NO_DOCUMENT)
        numbers = np.unique(owners[owners != NO_DOCUMENT])
        by_document = len(numbers) >= 2
        self.units = np.searchsorted(numbers, owners).astype(np.int32) if by_document else rows
        """The document (or row) of each token."""
        order = np.random.default_rng(seed).permutation(len(numbers) if by_document else len(ids))
        # A lone unit is there to be compared.
        self._order = {"second": order[::2], "first": order[1::2]}
        second = np.zeros(len(order), bool)
        second[order[::2]] = True
        of_second = second[self.units]
        self._positions = {
            "first": np.flatnonzero(ordinary & ~of_second).astype(np.int32),
            "second": np.flatnonzero(ordinary & of_second).astype(np.int32),
        }
        bos = model.bos_token_id
        self._documents = list(seen.documents(bos)) if by_document else _with_bos(ids, bos)
        # Held-out text may begin in the middle of a document, which its BOS then does not precede.
        self._cut = by_document and bool(owners[0] == NO_DOCUMENT or self.ids[0] != bos)

    def size(self, half: str) -> int:
        """Ordinary tokens in a half."""
        return len(self._positions[half])

    def sample(self, half: str, n: int) -> np.ndarray:
        """Where `n` ordinary tokens of a half stand in the text, drawn at random, in order."""
        rng = np.random.default_rng(derive_seed(self.seed, half, n))
        return np.sort(rng.choice(self._positions[half], size=n, replace=False))

    def documents(self, half: str) -> list[np.ndarray]:
        """Whole documents of a half in random order, each from its BOS, that go beyond the prompt."""
        chosen = (self._documents[i] for i in self._order[half] if not (self._cut and i == 0))
        return [document for document in chosen if len(document) > self.tokens.prompt_length]

    def sequences(self, half: str) -> list[np.ndarray]:
        """The beginning of each document: as many tokens as a row has, so that all are predicted from as much."""
        return [document[: self.tokens.context_size] for document in self.documents(half)]

    def scored(self, sequence: np.ndarray) -> np.ndarray:
        """Which tokens of a sequence count: ordinary ones after the prompt."""
        counts = special_token_mask(sequence, self.special)
        counts[: self.tokens.prompt_length] = False
        return counts


def _with_bos(rows: np.ndarray, bos: int) -> list[np.ndarray]:
    """Rows as documents, each beginning with BOS."""
    return [row if row[0] == bos else np.concatenate([np.array([bos], row.dtype), row]) for row in rows]


def common_size(texts: Mapping[str, Halves], reference: str, at_most: int) -> int:
    """How many tokens every text can give: the same number of each."""
    sizes = {name: text.size("second") for name, text in texts.items()}
    sizes[reference] = min(sizes[reference], texts[reference].size("first"))
    name = min(sizes, key=lambda name: sizes[name])
    if sizes[name] == 0:
        raise RunError(
            f"ood_score: '{name}' is too little text to compare: a half of it has no token; give more"
        )
    return min(at_most, sizes[name])


class Vectors:
    """Activations of one text at one hook, at tokens fixed beforehand."""

    def __init__(self, hook: str, text: Halves, n: int, is_reference: bool) -> None:
        self.hook = hook
        self.text = text
        self.tokens = text.tokens
        halves = ("first", "second") if is_reference else ("second",)
        self._of_half = {half: text.sample(half, n) for half in halves}
        self._wanted = np.sort(np.concatenate(list(self._of_half.values())))
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []

    def update(self, batch: ActivationBatch) -> None:
        """Keep the activations at the wanted tokens of one batch."""
        import torch

        first = batch.first_row * self.tokens.context_size
        start, stop = np.searchsorted(self._wanted, [first, first + batch.tokens.numel()])
        local = torch.from_numpy(self._wanted[start:stop] - first).to(batch.mask.device)
        # The host leaves out positions that the SAEs were not trained on.
        local = local[batch.mask.flatten()[local]]
        kept = batch.activations.flatten(0, 1)[local.to(batch.activations.device)]
        self._seen.append((local.cpu().numpy() + first, kept.float().cpu().numpy()))

    def of_half(self, half: str) -> Sample:
        """The vectors of one half, in reading order."""
        where = np.concatenate([positions for positions, _ in self._seen])
        vectors = np.concatenate([kept for _, kept in self._seen])
        mine = np.isin(where, self._of_half[half])
        return Sample(vectors[mine], self.text.units[where[mine]])


@dataclass(frozen=True)
class Sample:
    """Vectors [n, d], and the document that each one's token stands in."""

    vectors: np.ndarray
    units: np.ndarray

    def drawn(self, n: int, seed: int) -> Sample:
        """`n` of them at random, in order."""
        if n == len(self.units):
            return self
        kept = np.sort(np.random.default_rng(seed).choice(len(self.units), size=n, replace=False))
        return Sample(self.vectors[kept], self.units[kept])


@dataclass(frozen=True)
class Samples:
    """At one hook, as many vectors of the reference's first half as of each text's second half."""

    reference: Sample
    texts: Mapping[str, Sample]

    @property
    def n(self) -> int:
        """Vectors of each."""
        return len(self.reference.units)


def equal_samples(vectors: Mapping[str, Vectors], reference: str) -> Samples:
    """As many vectors of every text at one hook: as many as the one with the fewest has."""
    samples = {name: one.of_half("second") for name, one in vectors.items()}
    referred = vectors[reference].of_half("first")
    n = min(len(one.units) for one in [referred, *samples.values()])
    seed = vectors[reference].text.seed
    return Samples(referred.drawn(n, seed), {name: sample.drawn(n, seed) for name, sample in samples.items()})
