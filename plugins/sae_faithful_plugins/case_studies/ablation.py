"""What a feature does: the logits without it, where it is active and nothing else is changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sae_faithful import row_batches
from sae_faithful.metrics.intervals import Interval, mean_interval

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from sae_faithful import LanguageModel, SAEHandle

TOKENS_PER_FORWARD = 1_024
LOGITS_PER_FORWARD = 2**25
"""At most so many logits (128 MiB in float32) of a forward are held at a time, twice, if a row has no more."""
ONE_CONTEXT = "one context says nothing about the spread between contexts"
LARGEST_MULTIPLE = 64.0
HALVINGS = 30
"""Of the bracket in which the smallest multiple lies that silences a code: to within float32's precision."""


def contexts_of(codes: Float[np.ndarray, "rows context"], n: int, seed: int) -> Int[np.ndarray, " contexts"]:
    """A random sample of the rows in which a feature is active."""
    (active,) = np.nonzero((codes > 0).any(axis=1))
    drawn = np.random.default_rng(seed).permutation(len(active))[:n]
    return np.sort(active[drawn])


@dataclass
class Ablation:
    """Effects, ablated minus original, of one feature in some contexts (rows).

    In each context the effect is the mean over the positions at which the feature was ablated; a context counts once,
    however often the feature is active in it, so that the spread of contexts is that of their mean.
    """

    effects: Float[np.ndarray, "contexts vocab"]
    """On every token's logit, or log-probability; none are left after `forget`."""
    next_token: Float[np.ndarray, " contexts"]
    """On the log-probability of the token that comes next in the text, nats; NaN where none does."""
    n_positions: int
    """Positions that were ablated."""
    n_unresolved: int
    """Positions at which no multiple of the feature silences it: left as they are, and not counted."""
    own_code_left: float
    """The feature's own code after the ablation, as a share of what it was."""

    @classmethod
    def run(
        cls,
        handle: SAEHandle,
        latent: int,
        ids: Int[np.ndarray, "rows context"],
        mask: Bool[np.ndarray, "rows context"],
        contexts: Int[np.ndarray, " contexts"],
        model: LanguageModel,
        *,
        resolve: bool,
        log_probs: bool,
    ) -> Ablation | None:
        """Ablate a latent in `contexts`, which are rows of `ids`; None where it is active in none of them.

        At every position that counts and at which the latent's code is above 0, x becomes x − m · (what the code
        adds to x). Nothing else is edited: the other codes may come out otherwise afterwards.

        Args:
            handle: the SAE.
            latent: which.
            ids: the text.
            mask: where its tokens count.
            contexts: rows.
            model: a causal language model.
            resolve: m is the smallest multiple after which the SAE gives the latent the code 0; else m = 1.
            log_probs: effects on log-probabilities, not logits.
        """
        effects: list[np.ndarray] = []
        next_token: list[np.ndarray] = []
        edits: list[_Edit] = []
        at_once = min(TOKENS_PER_FORWARD, LOGITS_PER_FORWARD // model.vocab_size)
        for part in row_batches(len(contexts), ids.shape[1], at_once):
            rows = contexts[part]
            edit = _Edit(handle, latent, torch.from_numpy(mask[rows]), resolve=resolve)
            tokens = torch.from_numpy(ids[rows])
            ablated = model.logits_with_edit(tokens, handle.hook, edit)
            edits.append(edit)
            row, position = (index.to(ablated.device) for index in edit.places)
            if not len(row):
                continue
            # Only the ablated positions are needed: both sets of logits are not kept whole.
            ablated = ablated[row, position].float()
            original = model.logits(tokens)[row, position].float()
            there = (row.cpu().numpy(), len(rows))
            of_next = _next_token(original, ablated, tokens, row.cpu(), position.cpu())
            if log_probs:
                original, ablated = original.log_softmax(dim=-1), ablated.log_softmax(dim=-1)
            effects.append(_row_means((ablated - original).cpu().numpy(), *there))
            next_token.append(_row_means(of_next[:, None], *there)[:, 0])
        if not effects:
            return None
        counts = np.concatenate(effects), np.concatenate(next_token)
        kept = np.isfinite(counts[0][:, 0])
        codes = np.concatenate([edit.codes for edit in edits])
        left = np.concatenate([edit.codes_left for edit in edits])
        return cls(
            counts[0][kept],
            counts[1][kept],
            n_positions=len(codes),
            n_unresolved=sum(edit.n_unresolved for edit in edits),
            own_code_left=float(left.sum() / codes.sum()),
        )

    @property
    def mean(self) -> Float[np.ndarray, " vocab"]:
        """Mean effect over contexts."""
        return self.effects.mean(axis=0, dtype=np.float64)

    def forget(self) -> None:
        """Give back the memory of the effects, a number for each context and token of the vocabulary."""
        self.effects = self.effects[:, :0].copy()

    def interval(self, token: int) -> Interval:
        """95 % interval of a token's mean effect, over contexts."""
        return over_contexts(self.effects[:, token])

    @property
    def next_token_change(self) -> tuple[float, Interval] | None:
        """Mean over the contexts in which a token comes next, and its interval; None if it does in none."""
        known = self.next_token[np.isfinite(self.next_token)]
        return (float(known.mean()), over_contexts(known)) if len(known) else None


def over_contexts(values: Float[np.ndarray, " contexts"]) -> Interval:
    """Student's t interval of a mean over contexts."""
    if len(values) < 2:
        return Interval(None, None, ONE_CONTEXT)
    return mean_interval(values.astype(np.float64).tolist())


def contribution(
    handle: SAEHandle,
    latent: int,
    vectors: Float[torch.Tensor, "positions d_in"],
    codes: Float[torch.Tensor, "positions d_sae"],
) -> Float[torch.Tensor, "positions d_in"]:
    """What a latent's code adds to each activation: c · f, however the SAE scales it."""
    alone = torch.zeros_like(codes)
    alone[:, latent] = codes[:, latent]
    return handle.contribution(alone, vectors)


class _Edit:
    """The edit of one forward; it keeps what it found there."""

    def __init__(
        self, handle: SAEHandle, latent: int, mask: Bool[torch.Tensor, "rows context"], *, resolve: bool
    ) -> None:
        self.handle, self.latent, self.mask, self.resolve = handle, latent, mask, resolve
        self.places: tuple[torch.Tensor, torch.Tensor] = (torch.zeros(0).long(), torch.zeros(0).long())
        """Row and position of what was ablated."""
        self.codes = self.codes_left = np.zeros(0)
        self.n_unresolved = 0

    def __call__(self, activations: torch.Tensor) -> torch.Tensor:
        if not bool(self.mask.any()):
            return activations
        mask = self.mask.to(activations.device)
        vectors = activations[mask].to(torch.promote_types(activations.dtype, torch.float32))
        codes = self.handle.encode(vectors)
        active = codes[:, self.latent] > 0
        where = active.to(mask.device)
        vectors, codes = vectors[where], codes[active]
        if not len(vectors):
            return activations
        edit = contribution(self.handle, self.latent, vectors, codes).to(vectors)
        if self.resolve:
            multiple = self._silencing(vectors, edit)
            resolved = multiple.isfinite()
            self.n_unresolved = int((~resolved).sum())
            where[where.clone()] = resolved
            vectors, codes = vectors[resolved], codes[resolved.to(codes.device)]
            edit = edit[resolved] * multiple[resolved, None]
        row, position = mask.nonzero(as_tuple=True)
        self.places = (row[where], position[where])
        self.codes = codes[:, self.latent].double().cpu().numpy()
        self.codes_left = self._code(vectors - edit).double().cpu().numpy()
        edited = activations.to(vectors.dtype).clone()
        edited[self.places] = vectors - edit
        return edited

    def _code(self, vectors: Float[torch.Tensor, "positions d_in"]) -> Float[torch.Tensor, " positions"]:
        return self.handle.encode(vectors)[:, self.latent]

    def _silencing(
        self,
        vectors: Float[torch.Tensor, "positions d_in"],
        edit: Float[torch.Tensor, "positions d_in"],
    ) -> Float[torch.Tensor, " positions"]:
        """The smallest multiple of each row of `edit` after which the code is 0, by bisection; ∞ where none up to 64.

        In an SAE with tied unit-norm rows and a ReLU it is 1. Any encoder will do: TopK gives the code 0 as soon as k
        others are larger, a JumpReLU at its threshold.
        """

        def silent(multiple: torch.Tensor) -> torch.Tensor:
            return self._code(vectors - multiple[:, None] * edit).to(vectors.device) <= 0

        low, high = torch.zeros_like(vectors[:, 0]), torch.ones_like(vectors[:, 0])
        found = silent(high)
        while not bool(found.all()) and float(high.max()) < LARGEST_MULTIPLE:
            low, high = torch.where(found, low, high), torch.where(found, high, 2 * high)
            found = silent(high)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            enough = silent(middle)
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        return torch.where(found, high, torch.inf)


def _next_token(
    original: torch.Tensor,
    ablated: torch.Tensor,
    tokens: torch.Tensor,
    row: torch.Tensor,
    position: torch.Tensor,
) -> Float[np.ndarray, " positions"]:
    """Change of the log-probability of what comes next; NaN at the end of a row."""
    last = position == tokens.shape[1] - 1
    following = tokens[row, (position + 1).clamp_max(tokens.shape[1] - 1)].to(original.device)
    before, after = (
        each.log_softmax(dim=-1).gather(1, following[:, None])[:, 0] for each in (original, ablated)
    )
    return torch.where(last.to(before.device), torch.nan, after - before).double().cpu().numpy()


def _row_means(
    values: Float[np.ndarray, "positions any"], row: Int[np.ndarray, " positions"], n_rows: int
) -> Float[np.ndarray, "rows any"]:
    """Mean over the positions of each row that have a value; NaN where there are none."""
    means = np.full((n_rows, values.shape[1]), np.nan, np.float32)
    for i in range(n_rows):
        own = values[row == i]
        own = own[np.isfinite(own[:, 0])]
        if len(own):
            means[i] = own.mean(axis=0, dtype=np.float64)
    return means
