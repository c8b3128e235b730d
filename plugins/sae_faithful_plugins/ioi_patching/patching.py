"""The patch: what each feature does to an activation, and what the model then says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from sae_faithful import row_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Bool, Float, Int

    from sae_faithful import LanguageModel
    from sae_faithful_plugins.ioi_patching.prompts import TokenPair

TOKENS_PER_FORWARD = 1_024
LOGITS_PER_FORWARD = 2**26
"""At most so many logits (256 MiB in float32) of one forward are held at a time, if a prompt has no more."""
FEATURES_AT_ONCE = 1_024
PATH_POINTS = (0.125, 0.375, 0.625, 0.875)
"""Where on the way from the base to the whole patch gradients are taken: midpoints of four equal parts."""


class Coder(Protocol):
    """What is asked of an SAE: codes of activations, and what codes stand for (affine in them)."""

    def encode(self, activations: torch.Tensor) -> torch.Tensor: ...

    def decode(self, latents: torch.Tensor, activations: torch.Tensor) -> torch.Tensor: ...


class Changes(NamedTuple):
    """What a coder makes of the difference between the target's activations and the base's."""

    features: Int[np.ndarray, " features"]
    """Those whose code changes at any position."""
    codes: Float[torch.Tensor, "positions features"]
    """Δc: target minus base, in units of what a code of 1 adds at the first position."""
    directions: Float[torch.Tensor, "features d_in"]
    """f: that."""
    whole: Float[torch.Tensor, "positions d_in"]
    """Reconstruction of the target minus that of the base: the patch of all features."""

    def edit(
        self, columns: Int[np.ndarray, " some"] | Bool[np.ndarray, " features"]
    ) -> Float[torch.Tensor, "positions d_in"]:
        """Σ Δc f over these columns of `codes`."""
        chosen = torch.from_numpy(columns).to(self.codes.device)
        return self.codes[:, chosen] @ self.directions[chosen]

    @classmethod
    def of(
        cls,
        coder: Coder,
        base: Float[torch.Tensor, "positions d_in"],
        target: Float[torch.Tensor, "positions d_in"],
        features: Int[np.ndarray, " features"] | None = None,
    ) -> Changes:
        """Of activations at corresponding positions.

        SAEs that normalise each input give it its norm back after decoding, so that a code is worth more at one
        position than at another: codes are compared as what they add to the activation. The mean that some take
        off and add back belongs to no feature; it is in `whole` alone.

        Args:
            coder: an SAE.
            base: activations.
            target: activations.
            features: which; default: those whose codes change anywhere.
        """
        first = base[:1]
        (of_base, base_codes), (of_target, target_codes) = (_worth(coder, x, first) for x in (base, target))
        change = target_codes - base_codes
        if features is None:
            features = np.flatnonzero((change != 0).any(dim=0).cpu().numpy())
        codes = change[:, torch.from_numpy(features).to(change.device)]
        return cls(features, codes, _directions(coder, features, first), of_target - of_base)


def _worth(
    coder: Coder, activations: Float[torch.Tensor, "positions d_in"], first: Float[torch.Tensor, "1 d_in"]
) -> tuple[Float[torch.Tensor, "positions d_in"], Float[torch.Tensor, "positions d_sae"]]:
    """The reconstructions, and the codes in units of what they add at `first`."""
    codes = coder.encode(activations)
    nothing = torch.zeros_like(codes)
    at_first = first.expand_as(activations)
    reconstruction = coder.decode(codes, activations)
    own = (reconstruction - coder.decode(nothing, activations)).float()
    there = (coder.decode(codes, at_first) - coder.decode(nothing, at_first)).float()
    length = (there * there).sum(dim=-1)
    # Equal to the last bit, and the factor 1, in SAEs that do not normalise each input.
    factor = torch.where(length > 0, (own * there).sum(dim=-1) / length.clamp_min(1e-30), 1.0)
    return reconstruction.float(), codes.float() * factor[:, None]


def _directions(
    coder: Coder, features: Int[np.ndarray, " features"], first: Float[torch.Tensor, "1 d_in"]
) -> Float[torch.Tensor, "features d_in"]:
    """What one unit of each code adds at `first`: the decoder's row, however an SAE scales it."""
    codes = coder.encode(first)
    nothing = coder.decode(torch.zeros_like(codes), first).float()
    parts = [nothing[:0]]
    for start in range(0, len(features), FEATURES_AT_ONCE):
        some = torch.from_numpy(features[start : start + FEATURES_AT_ONCE]).to(codes.device)
        units = codes.new_zeros(len(some), codes.shape[1])
        units[torch.arange(len(some), device=codes.device), some] = 1
        parts.append(coder.decode(units, first.expand(len(some), -1)).float() - nothing)
    return torch.cat(parts)


@dataclass(frozen=True)
class Prompts:
    """Pairs as padded rows, and which positions the two prompts of a pair may differ at."""

    base: Int[torch.Tensor, "pairs context"]
    target: Int[torch.Tensor, "pairs context"]
    last: Int[torch.Tensor, " pairs"]
    """Where the model goes on from."""
    lengths: Int[np.ndarray, " pairs"]
    """Tokens of a prompt, BOS not counted."""
    changed: Bool[torch.Tensor, "pairs context"]
    """From the first different token to the last token: a causal model is the same before, and after is padding."""

    @classmethod
    def of(cls, pairs: Sequence[TokenPair], bos: int | None) -> Prompts:
        """Rows padded on the right, where a causal model cannot see it.

        Args:
            pairs: token ids.
            bos: put before every prompt, unless None.
        """
        start = [] if bos is None else [bos]
        longest = len(start) + max(len(pair.base) for pair in pairs)
        # Any id will do: nothing is read from padding, nor can anything before it see it.
        base, target = (torch.zeros(len(pairs), longest, dtype=torch.long) for _ in range(2))
        for row, pair in enumerate(pairs):
            n = len(start) + len(pair.base)
            base[row, :n] = torch.tensor([*start, *pair.base])
            target[row, :n] = torch.tensor([*start, *pair.target])
        lengths = np.array([len(pair.base) for pair in pairs])
        last = torch.from_numpy(lengths) + len(start) - 1
        differs = (base != target).cumsum(dim=1) > 0
        return cls(base, target, last, lengths, differs & (torch.arange(longest) <= last[:, None]))

    @property
    def pair_of_position(self) -> Int[np.ndarray, " positions"]:
        """Which pair each changed position belongs to."""
        return self.changed.nonzero()[:, 0].numpy()

    def per_pair(self, values: Float[torch.Tensor, " positions"]) -> Float[np.ndarray, " pairs"]:
        """Sums over the positions of each pair."""
        weights = values.double().cpu().numpy()
        return np.bincount(self.pair_of_position, weights, minlength=len(self.base))

    def edit_sizes(self, edit: Float[torch.Tensor, "positions d_in"]) -> Float[np.ndarray, " pairs"]:
        """Sum over a prompt's tokens of ‖x − x'‖₂; tokens before the first changed one add 0."""
        return self.per_pair(edit.float().norm(dim=-1))


class PatchedModel:
    """The model on the pairs' base prompts, with something added at one hook.

    Args:
        model: a causal language model.
        hook: where.
        prompts: pairs.
        target_log_probs: [pairs, vocab] of the model's own predictions after the target prompts.
    """

    def __init__(
        self,
        model: LanguageModel,
        hook: str,
        prompts: Prompts,
        target_log_probs: Float[torch.Tensor, "pairs vocab"],
    ) -> None:
        self.model, self.hook, self.prompts, self.target_log_probs = model, hook, prompts, target_log_probs
        # The same batches for both: what is equal is then equal to the last bit.
        self.base, self.target = (
            torch.cat(
                [
                    model.activations(tokens[rows], [hook])[hook].detach().float()[prompts.changed[rows]]
                    for rows in _batches(prompts, model.vocab_size)
                ]
            )
            for tokens in (prompts.base, prompts.target)
        )
        """Activations [positions, d_in] at the positions of `prompts.changed`."""

    def kl(self, edit: Float[torch.Tensor, "positions d_in"] | None = None) -> Float[np.ndarray, " pairs"]:
        """KL(patched ‖ target) of the predictions after the last token, nats.

        Args:
            edit: added at `prompts.changed`; whatever an SAE does not reconstruct of the base stays as it is.
        """
        parts = [self._kl(edit, rows) for rows in _batches(self.prompts, self.model.vocab_size)]
        return torch.cat(parts).double().cpu().numpy()

    def gradients(self, edit: Float[torch.Tensor, "positions d_in"]) -> Float[torch.Tensor, "positions d_in"]:
        """Of each pair's KL by its activations, mean over points on the way from no edit to this one."""
        total = torch.zeros_like(edit)
        for share in PATH_POINTS:
            for rows in _batches(self.prompts, self.model.vocab_size):
                leaf = (share * edit).requires_grad_()
                kl = self._kl(leaf, rows, grad=True)
                total += torch.autograd.grad(kl.sum(), leaf)[0] / len(PATH_POINTS)
        return total

    def _kl(self, edit: torch.Tensor | None, rows: slice, *, grad: bool = False) -> torch.Tensor:
        mask = self.prompts.changed[rows]
        logits = (
            self.model.logits(self.prompts.base[rows])
            if edit is None
            else self.model.logits_with_edit(
                self.prompts.base[rows], self.hook, _added(edit[self._positions(rows)], mask), grad=grad
            )
        )
        patched = log_probs_at(logits, self.prompts.last[rows])
        return divergence(patched, self.target_log_probs[rows].to(patched.device))

    def _positions(self, rows: slice) -> slice:
        counts = self.prompts.changed.sum(dim=1)
        start = int(counts[: rows.start].sum())
        return slice(start, start + int(counts[rows].sum()))


def _added(
    edit: Float[torch.Tensor, "positions d_in"], mask: Bool[torch.Tensor, "rows context"]
) -> Callable[[torch.Tensor], torch.Tensor]:
    def add(own: torch.Tensor) -> torch.Tensor:
        places = mask.nonzero(as_tuple=True)
        places = tuple(index.to(own.device) for index in places)
        return own.float().index_put(places, edit.to(own.device), accumulate=True)

    return add


def divergence(
    of: Float[torch.Tensor, "pairs vocab"], against: Float[torch.Tensor, "pairs vocab"]
) -> Float[torch.Tensor, " pairs"]:
    """KL(of ‖ against) = Σ p (log p − log q), nats, of predictions given as log-probabilities."""
    return (of.exp() * (of - against)).sum(dim=-1)


def log_probs_at(
    logits: Float[torch.Tensor, "rows context vocab"], last: Int[torch.Tensor, " rows"]
) -> Float[torch.Tensor, "rows vocab"]:
    """Log-probabilities of what comes after a position of each row."""
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, last.to(logits.device)].float().log_softmax(dim=-1)


def predictions(
    model: LanguageModel, prompts: Prompts
) -> tuple[Float[torch.Tensor, "pairs vocab"], Float[torch.Tensor, "pairs vocab"]]:
    """The model's own log-probabilities after the base prompts and after the target prompts."""
    base, target = (
        torch.cat(
            [
                log_probs_at(model.logits(tokens[rows]), prompts.last[rows])
                for rows in _batches(prompts, model.vocab_size)
            ]
        )
        for tokens in (prompts.base, prompts.target)
    )
    return base, target


def _batches(prompts: Prompts, vocab_size: int) -> Iterator[slice]:
    n_rows, context = prompts.base.shape
    return row_batches(n_rows, context, min(TOKENS_PER_FORWARD, LOGITS_PER_FORWARD // vocab_size))
