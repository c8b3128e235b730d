"""What becomes of a feature when one feature of an earlier hook is taken away, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sae_faithful import RunError, row_batches
from sae_faithful_plugins.case_studies.tree_contexts import TOKENS_PER_FORWARD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float, Int

    from sae_faithful import LanguageModel, SAEHandle
    from sae_faithful_plugins.case_studies.tree_contexts import Contexts


@dataclass(frozen=True, eq=False, kw_only=True)
class Effects:
    """Of the features of one hook on one feature of a later hook."""

    latents: Int[np.ndarray, " run"]
    """Those that were taken away; every other active one was left out by the cap."""
    drops: Float[np.ndarray, "run contexts"]
    """Original minus ablated activation of the later feature; 0 where the earlier one is not active."""
    active_contexts: Int[np.ndarray, " run"]
    """In how many contexts each was active."""
    n_active: int
    """Features of the hook that are active in any context."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Active:
    """Non-zero codes at the tokens that count, sorted by latent."""

    context: Int[torch.Tensor, " entries"]
    position: Int[torch.Tensor, " entries"]
    latent: Int[torch.Tensor, " entries"]
    code: Float[torch.Tensor, " entries"]

    def take(self, which: torch.Tensor) -> _Active:
        return _Active(
            context=self.context[which],
            position=self.position[which],
            latent=self.latent[which],
            code=self.code[which],
        )


class ParentAblation:
    """One feature's contexts, and the features of an earlier hook that are active in them.

    Args:
        model: a causal language model.
        target: the SAE of the later feature.
        latent: which of its features.
        contexts: where it fires.
        parent: the SAE at the earlier hook.
        counted: [contexts, length], where the earlier SAE's codes count. At a BOS, on which SAEs are not trained,
            codes are large and mean nothing, and to take one away would be to damage every later token.
    """

    def __init__(
        self,
        model: LanguageModel,
        target: SAEHandle,
        latent: int,
        contexts: Contexts,
        parent: SAEHandle,
        counted: torch.Tensor,
    ) -> None:
        self.model, self.target, self.latent = model, target, latent
        self.contexts, self.parent = contexts, parent
        self.positions = torch.from_numpy(contexts.positions)
        own: list[torch.Tensor] = []
        before: list[torch.Tensor] = []
        active: list[_Active] = []
        for part in self._parts():
            found = model.activations(contexts.tokens[part], [parent.hook, target.hook])
            own.append(self._target(found[target.hook], self.positions[part]))
            before.append(found[parent.hook])
            codes = parent.encode(found[parent.hook])
            places = ((codes != 0) & counted[part, :, None].to(codes.device)).nonzero(as_tuple=True)
            context, position, latents = (index.cpu() for index in places)
            active.append(
                _Active(
                    context=context + part.start, position=position, latent=latents, code=codes[places].cpu()
                )
            )
        self.original = torch.cat(own).numpy()
        """[contexts]: the later feature's activation with nothing taken away."""
        self._before = torch.cat(before)
        joined = _Active(
            **{
                name: torch.cat([getattr(one, name) for one in active])
                for name in ("context", "position", "latent", "code")
            }
        )
        self._active = joined.take(joined.latent.argsort(stable=True))

    def effects(self, candidates: int) -> Effects:
        """Take away every active feature on its own; one that is active nowhere has no effect and needs no run.

        x' = x − c f at every token that counts and has c ≠ 0, and nothing else is changed: not what the SAE fails to
        reconstruct, nor the other codes.

        Args:
            candidates: only so many are run, those with the largest first-order effect of either sign; 0: all.
        """
        latents = torch.unique(self._active.latent).numpy()
        n_active = len(latents)
        if 0 < candidates < n_active:
            strongest = np.argsort(-np.abs(self.first_order()[latents]), kind="stable")[:candidates]
            latents = np.sort(latents[strongest])
        run = self._active.take(torch.isin(self._active.latent, torch.from_numpy(latents)))
        drops = np.zeros((len(latents), len(self.contexts)))
        active = np.zeros(drops.shape, bool)
        # Only a context in which a feature is active has to be run for it.
        owner = torch.from_numpy(np.searchsorted(latents, run.latent.numpy()))
        pairs, pair_of_entry = torch.unique(
            torch.stack([self.positions[run.context], run.context, owner]), dim=1, return_inverse=True
        )
        run, pair_of_entry = run.take(order := pair_of_entry.argsort(stable=True)), pair_of_entry[order]
        for part in row_batches(pairs.shape[1], self.contexts.tokens.shape[1], TOKENS_PER_FORWARD):
            position, context, row = pairs[:, part]
            bounds = torch.searchsorted(pair_of_entry, torch.tensor([part.start, part.stop]))
            some = torch.arange(int(bounds[0]), int(bounds[1]))
            ablated = self._without(run.take(some), pair_of_entry[some] - part.start, context, position)
            places = (row.numpy(), context.numpy())
            drops[places] = self.original[context.numpy()] - ablated
            active[places] = True
        return Effects(latents=latents, drops=drops, active_contexts=active.sum(axis=1), n_active=n_active)

    def first_order(self) -> Float[np.ndarray, " d_sae"]:
        """What each drop would be if the model and the later SAE were linear, summed over contexts.

        Σ c f · ∂a/∂x over tokens, of the later feature's activation a by the earlier hook's activations x.

        Raises:
            RunError: the later SAE's codes cannot be differentiated.
        """
        total = np.zeros(self.parent.d_sae)
        for part in self._parts():
            gradient = self._gradient(part)
            inside = self._active.take(
                (self._active.context >= part.start) & (self._active.context < part.stop)
            )
            worth = self._worth(self._before[part], gradient)
            places = (inside.context - part.start, inside.position, inside.latent)
            effects = inside.code.double() * worth[places].double()
            total += np.bincount(inside.latent.numpy(), effects.numpy(), minlength=len(total))
        return total

    def _without(
        self, entries: _Active, pair: torch.Tensor, context: torch.Tensor, position: torch.Tensor
    ) -> Float[np.ndarray, " pairs"]:
        """The later feature's activation in each pair of a feature and a context, without the entries' features."""
        length = int(position.max()) + 1
        here = self._before[entries.context, entries.position]
        codes = torch.zeros(
            len(here), self.parent.d_sae, dtype=entries.code.dtype, device=self.parent.sae.device
        )
        codes[torch.arange(len(here)), entries.latent] = entries.code.to(codes.device)
        added = self.parent.contribution(codes, here).float().cpu()

        def take_away(own: torch.Tensor) -> torch.Tensor:
            places = (pair.to(own.device), entries.position.to(own.device))
            return own.float().index_put(places, -added.to(own.device), accumulate=True)

        found = self.model.activations_with_edit(
            self.contexts.tokens[context, :length], self.parent.hook, take_away, [self.target.hook]
        )
        return self._target(found[self.target.hook], position).numpy()

    def _target(
        self, activations: Float[torch.Tensor, "rows length d_in"], positions: Int[torch.Tensor, " rows"]
    ) -> Float[torch.Tensor, " rows"]:
        """The later feature's activation at one token of each row, by its SAE's own encoder."""
        here = activations[torch.arange(len(activations)), positions]
        return self.target.encode(here)[:, self.latent].double().cpu()

    def _gradient(self, part: slice) -> Float[torch.Tensor, "contexts length d_in"]:
        before = self._before[part]
        change = torch.zeros_like(before, dtype=torch.float32, requires_grad=True)
        found = self.model.activations_with_edit(
            self.contexts.tokens[part],
            self.parent.hook,
            lambda own: own.float() + change,
            [self.target.hook],
            grad=True,
        )[self.target.hook]
        sae = self.target.sae
        here = found[torch.arange(len(found)), self.positions[part]]
        codes = sae.encode(here.to(sae.device, sae.dtype))
        codes = codes.to_dense() if codes.is_sparse else codes
        if not codes.requires_grad:
            raise RunError(
                f"case_studies: codes of {self.target.variant} at {self.target.hook} cannot be differentiated, "
                "so that candidates cannot be ranked: set its number of candidates to 0"
            )
        return torch.autograd.grad(codes[:, self.latent].sum(), change, materialize_grads=True)[0]

    def _worth(
        self, activations: Float[torch.Tensor, "contexts length d_in"], gradient: torch.Tensor
    ) -> Float[torch.Tensor, "contexts length d_sae"]:
        """f · gradient of every latent at every token, f being what one unit of its code adds there."""
        sae = self.parent.sae
        codes = torch.zeros(
            *activations.shape[:2], self.parent.d_sae, dtype=sae.dtype, device=sae.device, requires_grad=True
        )
        # Kept by SAEs that normalise each input, until they decode; nothing in others.
        sae.run_time_activation_norm_fn_in(activations.to(sae.device, sae.dtype))
        decoded = sae.decode(codes).float()
        return torch.autograd.grad((decoded * gradient.to(decoded.device)).sum(), codes)[0].float().cpu()

    def _parts(self) -> Iterator[slice]:
        n_rows, length = self.contexts.tokens.shape
        return row_batches(n_rows, length, TOKENS_PER_FORWARD)
