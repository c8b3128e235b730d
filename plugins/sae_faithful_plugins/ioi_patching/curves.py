"""One decomposition from codes to curves: candidates, orders of removal, nested sets on the pairs measured."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import derive_seed
from sae_faithful_plugins.ioi_patching.patching import (
    Changes,
    PatchedModel,
    Prompts,
    divergence,
    predictions,
)
from sae_faithful_plugins.ioi_patching.results import Series
from sae_faithful_plugins.ioi_patching.selection import Pruned, prune, set_sizes, strongest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float

    from sae_faithful import EvalContext
    from sae_faithful_plugins.ioi_patching import IOIPatching
    from sae_faithful_plugins.ioi_patching.patching import Coder
    from sae_faithful_plugins.ioi_patching.prompts import TokenPair


class Experiment:
    """The pairs through the model, and through any number of decompositions.

    Args:
        options: the evaluator.
        context: with model, SAEs and seed.
        choosing: pairs that choose features.
        measured: pairs that are measured; the same object if they choose, too.
    """

    def __init__(
        self,
        options: IOIPatching,
        context: EvalContext,
        choosing: Sequence[TokenPair],
        measured: Sequence[TokenPair],
    ) -> None:
        self.options, self.context = options, context
        self.pairs = measured
        bos = context.language_model.bos_token_id if _with_bos(context) else None
        self.measured = Prompts.of(measured, bos)
        self.choosing = self.measured if choosing is measured else Prompts.of(choosing, bos)
        self._patched: dict[tuple[int, str], PatchedModel] = {}

    @cached_property
    def _predictions(self) -> dict[int, tuple[Any, Any]]:
        model = self.context.language_model
        return {id(one): predictions(model, one) for one in (self.measured, self.choosing)}

    @cached_property
    def unpatched(self) -> Float[np.ndarray, " pairs"]:
        """KL(base ‖ target) of the model itself, of the measured pairs."""
        return divergence(*self._predictions[id(self.measured)]).double().cpu().numpy()

    def differences(self) -> Float[np.ndarray, " pairs"]:
        """Logit of the answer minus that of the distractor after base, of measured pairs that name them."""
        base = self._predictions[id(self.measured)][0]
        # Log-probabilities differ from logits by what is the same for all tokens.
        return np.array(
            [
                float(base[i, pair.answer] - base[i, pair.distractor])
                for i, pair in enumerate(self.pairs)
                if pair.answer is not None and pair.distractor is not None
            ],
            np.float64,
        )

    def patched(self, prompts: Prompts, hook: str) -> PatchedModel:
        """The model on some pairs, patched at a hook."""
        key = (id(prompts), hook)
        if key not in self._patched:
            target = self._predictions[id(prompts)][1]
            self._patched[key] = PatchedModel(self.context.language_model, hook, prompts, target)
        return self._patched[key]

    def measure(
        self, coder: Coder, hook: str, n_features: int, where: Mapping[str, Any]
    ) -> tuple[Series, dict[str, np.ndarray]]:
        """Choose, order and measure.

        Args:
            coder: an SAE.
            hook: where it is.
            n_features: how many it has.
            where: source, hook, variant and seed.

        Returns:
            The curves, and columns for its features: `effect`, the first-order change of KL when it is patched
            (0 where its code does not change), and `rank`, its place in the order, mean over orders, 1 being the
            last to be removed (NaN for those that were no candidates).
        """
        choosing, options = self.patched(self.choosing, hook), self.options
        changes = Changes.of(coder, choosing.base, choosing.target)
        effects = first_order_effects(choosing, changes)
        columns = strongest(effects, options.candidates)
        prunings = [self._prune(choosing, changes, columns, where, order) for order in range(options.orders)]
        candidates = changes.features[columns]
        series = self._curves(coder, hook, candidates, prunings, where)
        series.n_changed = len(changes.features)
        effect, rank = np.zeros(n_features), np.full(n_features, np.nan)
        effect[changes.features] = effects
        rank[candidates] = np.mean([np.argsort(one.order) + 1 for one in prunings], axis=0)
        return series, {"effect": effect, "rank": rank}

    def _prune(
        self,
        choosing: PatchedModel,
        changes: Changes,
        columns: np.ndarray,
        where: Mapping[str, Any],
        order: int,
    ) -> Pruned:
        rng = np.random.default_rng(
            derive_seed(self.context.seed, "ioi_patching", "order", *where.values(), order)
        )
        return prune(
            lambda inside: float(choosing.kl(changes.edit(columns[inside])).mean()),
            len(columns), self.options.thresholds, rng,
        )  # fmt: skip

    def _curves(
        self,
        coder: Coder,
        hook: str,
        candidates: np.ndarray,
        prunings: Sequence[Pruned],
        where: Mapping[str, Any],
    ) -> Series:
        measured, prompts = self.patched(self.measured, hook), self.measured
        changes = Changes.of(coder, measured.base, measured.target, candidates)
        sizes = set_sizes(len(candidates), self.options.area_features)
        shape = (len(prunings), len(sizes), len(prompts.lengths))
        kl, edits = np.zeros(shape), np.zeros(shape)
        known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        for i, pruning in enumerate(prunings):
            for j, size in enumerate(sizes):
                # In one order of columns, so that a set is the same sum however it came about.
                chosen = np.sort(pruning.order[:size])
                if chosen.tobytes() not in known:
                    edit = changes.edit(chosen)
                    level = measured.kl(edit) if size else self.unpatched
                    known[chosen.tobytes()] = (level, prompts.edit_sizes(edit))
                kl[i, j], edits[i, j] = known[chosen.tobytes()]
        return Series(
            where=dict(where),
            sizes=sizes,
            lengths=prompts.lengths.astype(np.float64),
            kl=kl,
            edits=edits,
            kl_all=measured.kl(changes.whole),
            edits_all=prompts.edit_sizes(changes.whole),
            area_features=self.options.area_features,
            n_changed=0,
            orders=[[int(candidates[i]) for i in pruning.order] for pruning in prunings],
            thresholds=[
                [
                    {"threshold": threshold, "features": n, "kl": level}
                    for threshold, n, level in zip(
                        self.options.thresholds, pruning.kept, pruning.kl, strict=True
                    )
                ]
                for pruning in prunings
            ],
        )


def first_order_effects(patched: PatchedModel, changes: Changes) -> Float[np.ndarray, " features"]:
    """What patching each feature does to KL, mean over pairs, by gradient · Δc f.

    The gradient is the mean over four points on the way from no patch to that of all features (as integrated
    gradients do: Marks et al. 2024, arXiv 2403.19647), because far from the target KL is anything but linear. Their
    sum is about the KL that the patch of these features removes.
    """
    everything = changes.edit(np.arange(len(changes.features)))
    gradients = patched.gradients(everything).to(changes.codes.device)
    each = ((gradients @ changes.directions.T) * changes.codes).sum(dim=0)
    return each.double().cpu().numpy() / len(patched.prompts.lengths)


def _with_bos(context: EvalContext) -> bool:
    """As the SAEs' training rows; SAEs that do not say had one, as SAELens's default is."""
    said = (handle.prepend_bos for handle in context.handles)
    return next((one for one in said if one is not None), True)
