"""What the studied features and the neurons most like them do on the text: two passes over its beginning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from sae_faithful import TokenSet, row_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from jaxtyping import Bool, Float

    from sae_faithful import LanguageModel, SAEHandle

LATENTS_PER_BATCH = 2**24
"""At most so many latents (64 MiB in float32) of one SAE are held at a time."""
TOKENS_PER_FORWARD = 4_096


@dataclass(frozen=True)
class Neuron:
    """One entry of the activation vector, looked at on one side of 0."""

    index: int
    sign: Literal[1, -1]
    """−1: what it is below 0 counts, since the feature goes with that."""
    similarity: float
    """To the feature; negative where `sign` is."""


@dataclass(eq=False)
class Study:
    """The chosen features of one SAE, and what `observe` saw of them."""

    handle: SAEHandle
    tokens: TokenSet
    mask: Bool[np.ndarray, "rows context"]
    """Where a token counts, of the rows that are measured."""
    why: Mapping[int, str]
    """The features in order, and for what each was chosen."""
    start: int = 0
    """The first row of the text that is measured."""
    codes: Float[np.ndarray, "features rows context"] = field(default_factory=lambda: np.zeros((0, 0, 0)))
    """0 where no token counts."""
    neurons: list[Neuron | None] = field(default_factory=list["Neuron | None"])
    """The most similar one of each; None for a feature that is never active."""
    neuron_values: Float[np.ndarray, "features rows context"] = field(
        default_factory=lambda: np.zeros((0, 0, 0))
    )
    """Of those neurons: how far each is on its side of 0; 0 on the other."""

    def __post_init__(self) -> None:
        shape = (len(self.why), *self.mask.shape)
        self.codes, self.neuron_values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.neurons = [None] * len(self.why)
        self.ids = self.tokens.rows(self.start)

    @property
    def latents(self) -> list[int]:
        """The features."""
        return list(self.why)


def beginning(tokens: TokenSet, n_tokens: int, context_tokens: int) -> TokenSet:
    """The first rows of a text, at least one, each cut to its first `context_tokens` tokens (0: not cut).

    What comes later in a row changes nothing before it, so that a cut row is as the whole one was.
    """
    context = min(context_tokens or tokens.context_size, tokens.context_size)
    n_rows = max(1, min(len(tokens), n_tokens // context))
    return TokenSet.from_rows(tokens.rows(0, n_rows)[:, :context])


def observe(
    studies: Sequence[Study], model: LanguageModel, similarity: Literal["correlation", "cosine"]
) -> None:
    """Fill in codes, most similar neurons and what these do. One forward for all SAEs of a text, twice.

    Memory is a number for each token, studied feature and neuron.

    Args:
        studies: what is studied.
        model: whose activations.
        similarity: which neuron is the most similar one: that with the largest absolute Pearson correlation with the
            feature over the tokens that count, or the one with the largest entry in the feature's decoder row.
    """
    products = {study: _Products(len(study.why)) for study in studies}

    def first(study: Study, rows: slice, vectors: torch.Tensor) -> None:
        mask = study.mask[rows]
        codes = study.handle.encode(vectors)[:, study.latents].float()
        study.codes[:, rows][:, mask] = codes.T.cpu().numpy()
        products[study].add(codes, vectors)

    def second(study: Study, rows: slice, vectors: torch.Tensor) -> None:
        mask = study.mask[rows]
        for i, neuron in enumerate(study.neurons):
            if neuron is not None:
                values = (neuron.sign * vectors[:, neuron.index]).float().clamp_min(0)
                study.neuron_values[i, rows][mask] = values.cpu().numpy()

    _pass(studies, model, first)
    for study in studies:
        close = products[study].correlations() if similarity == "correlation" else _cosines(study)
        study.neurons = [
            _most_similar(close[i]) if (study.codes[i] > 0).any() else None for i in range(len(study.why))
        ]
    _pass(studies, model, second)


def _pass(
    studies: Sequence[Study], model: LanguageModel, see: Callable[[Study, slice, torch.Tensor], None]
) -> None:
    """Show every study the activations [tokens that count, d_in] of some rows at a time."""
    import torch

    texts: dict[int, list[Study]] = {}
    for study in studies:
        if study.why:
            texts.setdefault(id(study.tokens), []).append(study)
    for group in texts.values():
        hooks = list(dict.fromkeys(study.handle.hook for study in group))
        widest = max(study.handle.d_sae for study in group)
        at_once = min(TOKENS_PER_FORWARD, LATENTS_PER_BATCH // widest)
        n_rows, context = group[0].mask.shape
        for rows in row_batches(n_rows, context, at_once):
            found = model.activations(torch.from_numpy(group[0].ids[rows]), hooks)
            for study in group:
                activations = found[study.handle.hook]
                mask = torch.from_numpy(study.mask[rows]).to(activations.device)
                if bool(mask.any()):
                    see(study, rows, activations[mask])


class _Products:
    """Sums that correlations of features with neurons are made from, in double precision."""

    def __init__(self, n_features: int) -> None:
        self.n, self.n_features = 0, n_features
        self.sums: torch.Tensor | None = None
        """Of [1, codes] times [1, codes, activations] and of squared activations: [1 + features, ...]."""
        self.squares: torch.Tensor | None = None

    def add(
        self, codes: Float[torch.Tensor, "tokens features"], vectors: Float[torch.Tensor, "tokens d_in"]
    ) -> None:
        """Take in some tokens."""
        import torch

        ours = torch.cat([torch.ones_like(codes[:, :1]), codes], dim=1).double()
        sums = ours.T @ torch.cat([ours, vectors.double()], dim=1)
        squares = (vectors.double() ** 2).sum(dim=0)
        self.n += len(codes)
        self.sums = sums if self.sums is None else self.sums + sums
        self.squares = squares if self.squares is None else self.squares + squares

    def correlations(self) -> Float[np.ndarray, "features d_in"]:
        """Pearson's; 0 where one of the two is constant."""
        if self.sums is None or self.squares is None:
            return np.zeros((self.n_features, 1))
        k = 1 + self.n_features
        means = (self.sums / self.n).cpu().numpy()
        of_codes, of_neurons = means[0, 1:k], means[0, k:]
        covariance = means[1:, k:] - np.outer(of_codes, of_neurons)
        spread = np.sqrt(np.maximum(np.diagonal(means[1:, 1:k]) - of_codes**2, 0))
        of_squares = self.squares.cpu().numpy() / self.n
        # What rounding leaves of a constant neuron's variance is none.
        variance = of_squares - of_neurons**2
        width = np.sqrt(np.where(variance > 1e-12 * of_squares, variance, 0))
        both = np.outer(spread, width)
        return np.divide(covariance, both, out=np.zeros_like(covariance), where=both > 0)


def _cosines(study: Study) -> Float[np.ndarray, "features d_in"]:
    """Of each feature's decoder row with the neurons' axes."""
    rows = study.handle.W_dec[study.latents].double().cpu().numpy()
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def _most_similar(close: Float[np.ndarray, " d_in"]) -> Neuron:
    index = int(np.abs(close).argmax())
    return Neuron(index, 1 if close[index] >= 0 else -1, float(close[index]))
