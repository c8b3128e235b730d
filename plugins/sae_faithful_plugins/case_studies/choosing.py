"""Which features: named ones, the top of a column, those most active on a probe sentence, or token detectors."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sae_faithful import UsageError
from sae_faithful.metrics.firing import Firings
from sae_faithful_plugins.case_studies.observing import Study

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Bool, Float, Int

    from sae_faithful import ActivationBatch, EvalContext, LanguageModel, SAEHandle, TokenSet
    from sae_faithful_plugins.case_studies import CaseStudies

log = logging.getLogger(__name__)
ALIVE = 10
"""A latent with at most so many active tokens is not chosen for its selectivity: any few tokens are alike."""


class Watched:
    """One SAE on the text: how often each latent is active, and on which tokens.

    Memory is a number for each pair of a latent and a token that it was active on.

    Args:
        handle: the SAE.
        tokens: the text.
        counts: whether to count at all; without, only which tokens count in a measurement is noted.
        by_token: whether to sum activations by token. That is then done for the first half of the rows alone: what
            features are chosen by is not measured on them, or it would look larger than it is.
    """

    def __init__(self, handle: SAEHandle, tokens: TokenSet, *, counts: bool, by_token: bool) -> None:
        self.handle, self.hook, self.tokens = handle, handle.hook, tokens
        self.counts, self.by_token = counts, by_token
        self.n_choosing = len(tokens) // 2 or len(tokens) if by_token else len(tokens)
        """Rows that are counted."""
        self.mask: Bool[np.ndarray, "rows context"] = np.zeros((len(tokens), tokens.context_size), bool)
        """Where a token counts."""
        self.n_active: Int[np.ndarray, " d_sae"] = np.zeros(handle.d_sae if counts else 0, np.int64)
        self._pairs: Int[np.ndarray, " pairs"] = np.zeros(0, np.int64)
        self._sums: Float[np.ndarray, " pairs"] = np.zeros(0)

    def update(self, batch: ActivationBatch) -> None:
        """Take in one batch."""
        self.mask[batch.first_row : batch.first_row + len(batch.tokens)] = batch.mask.cpu().numpy()
        if not self.counts or batch.first_row >= self.n_choosing:
            return
        rows = torch.arange(batch.first_row, batch.first_row + len(batch.tokens), device=batch.mask.device)
        mask = batch.mask & (rows < self.n_choosing)[:, None]
        found = Firings.find(batch.latents(self.handle), mask)
        latents = found.latents.cpu().numpy()
        self.n_active += np.bincount(latents, minlength=len(self.n_active))
        if self.by_token:
            tokens = batch.tokens.to(found.rows.device)[found.rows, found.positions].cpu().numpy()
            pairs = np.concatenate([self._pairs, (latents << 32) | tokens])
            sums = np.concatenate([self._sums, found.values.double().cpu().numpy()])
            self._pairs, place = np.unique(pairs, return_inverse=True)
            self._sums = np.bincount(place, sums, minlength=len(self._pairs))

    def may_be_chosen(self, max_rate: float) -> Bool[np.ndarray, " d_sae"]:
        """Latents that are not active on too many tokens."""
        return self.n_active <= max_rate * self.mask[: self.n_choosing].sum()

    def study(self, why: Mapping[int, str]) -> Study:
        """Of the features that were chosen, on the rows that chose none."""
        start = self.n_choosing if self.by_token and self.n_choosing < len(self.tokens) else 0
        return Study(self.handle, self.tokens, self.mask[start:], why, start)

    def largest_share(self) -> Float[np.ndarray, " d_sae"]:
        """The share of each latent's activation that is on the token with most of it; 0 where it never fires."""
        latents = self._pairs >> 32
        totals = np.bincount(latents, self._sums, minlength=len(self.n_active))
        largest = np.zeros(len(self.n_active))
        np.maximum.at(largest, latents, self._sums)
        return np.divide(largest, totals, out=np.zeros_like(totals), where=totals > 0)


def studied(options: CaseStudies, context: EvalContext) -> list[SAEHandle]:
    """The SAEs whose features are studied, in the order of the context's.

    Raises:
        UsageError: an entry of `features` that fits none, a latent that an SAE does not have, or `hooks` or
            `variants` with one that there is not.
    """
    context.handles_at(options.hooks, options.variants)
    if not options.features:
        return _pool(options, context, {})
    chosen: dict[int, SAEHandle] = {}
    for entry in options.features:
        found = _fitting(options, context, entry)
        for handle in found:
            if entry["latent"] >= handle.d_sae:
                raise UsageError(
                    f"case_studies: features: {handle} has no latent {entry['latent']}; it has {handle.d_sae}"
                )
        chosen |= {id(handle): handle for handle in found}
    return [handle for handle in context.handles if id(handle) in chosen]


def _fitting(options: CaseStudies, context: EvalContext, entry: Mapping[str, Any]) -> list[SAEHandle]:
    where = {key: value for key, value in entry.items() if key != "latent"}
    found = [
        handle
        for handle in _pool(options, context, where)
        if all(handle.identity[key] == value for key, value in where.items())
    ]
    if not found:
        places = "; ".join(map(str, context.handles))
        raise UsageError(f"case_studies: features: no SAE is {where}; there are: {places}")
    return found


def _pool(options: CaseStudies, context: EvalContext, named: Mapping[str, Any]) -> list[SAEHandle]:
    """Which may be studied: baselines and further seeds are where they are asked for, or named."""
    hooks = [named["hook"]] if "hook" in named else options.hooks
    variants = [named["variant"]] if "variant" in named else options.variants
    pool = [
        handle
        for handle in context.handles
        if (not hooks or handle.hook in hooks)
        and (handle.variant in variants if variants else options.baselines or handle.kind != "baseline")
    ]
    if options.seeds == "all" or "seed" in named:
        return pool
    first: dict[tuple[str, str, str], SAEHandle] = {}
    for handle in pool:
        first.setdefault((handle.source, handle.hook, handle.variant), handle)
    return list(first.values())


def choose(options: CaseStudies, context: EvalContext, watched: Sequence[Watched]) -> list[Study]:
    """The features of every SAE.

    Raises:
        UsageError: features.parquet has no such column, or one that is no number.
    """
    studies: list[Study] = []
    for one in watched:
        if options.features:
            entries = [entry for entry in options.features if one.handle in _fitting(options, context, entry)]
            latents = list(dict.fromkeys(int(entry["latent"]) for entry in entries))
            why = dict.fromkeys(latents, "named")
        elif options.column is not None:
            why = _by_column(options, context, one.handle)
        elif options.probe is not None:
            why = _by_probe(options, context, one)
        else:
            why = _most_selective(options, one)
        if not why:
            log.warning("case_studies: no feature of %s can be chosen", one.handle)
        studies.append(one.study(why))
    return studies


def _by_column(options: CaseStudies, context: EvalContext, handle: SAEHandle) -> dict[int, str]:
    import pandas as pd

    name, table = str(options.column), context.features
    there = [] if table is None else [str(each) for each in table.columns if "." in str(each)]
    if table is None or name not in there:
        raise UsageError(
            f"case_studies: features.parquet has no column '{name}'; there are: {', '.join(there) or 'none'}"
        )
    if not pd.api.types.is_numeric_dtype(table[name]):
        raise UsageError(f"case_studies: column '{name}' holds no numbers")
    own = table
    for key, value in handle.identity.items():
        own = own[own[key] == value]
    values = own[name].to_numpy(np.float64)
    latents = own["latent"].to_numpy()
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(-values[known] if options.largest else values[known], kind="stable")]
    return {int(latents[i]): f"{name} {values[i]:.3g}" for i in order[: options.n_features]}


def _by_probe(options: CaseStudies, context: EvalContext, one: Watched) -> dict[int, str]:
    assert options.probe is not None
    model, handle = context.language_model, one.handle
    ids = probe_tokens(options.probe, model)
    # As the rows that the SAE was trained on; SAEs that do not say had one, as SAELens's default is.
    start = [] if handle.prepend_bos is False else [model.bos_token_id]
    activations = model.activations(torch.tensor([[*start, *ids]]), [handle.hook])[handle.hook]
    codes = handle.encode(activations)[0, -1].float().cpu().numpy()
    codes = np.where(one.may_be_chosen(options.max_rate), codes, 0)
    order = np.argsort(-codes, kind="stable")[: options.n_features]
    return {int(j): f"{codes[j]:.3g} at the end of the probe" for j in order if codes[j] > 0}


def probe_tokens(probe: str, model: LanguageModel) -> list[int]:
    """Its ids.

    Raises:
        UsageError: it has none, or too many, or there is no tokenizer.
    """
    if model.tokenizer is None:
        raise UsageError(f"case_studies: probe '{probe}': {model.name} came without a tokenizer")
    ids = [int(each) for each in model.tokenizer(probe, add_special_tokens=False)["input_ids"]]
    if not ids:
        raise UsageError(f"case_studies: probe '{probe}' has no tokens")
    if model.context_limit is not None and len(ids) >= model.context_limit:
        raise UsageError(
            f"case_studies: the probe has {len(ids)} tokens; {model.name} takes {model.context_limit}"
        )
    return ids


def _most_selective(options: CaseStudies, one: Watched) -> dict[int, str]:
    """Those with most of their activation on one token; of equal ones those active more often."""
    share = one.largest_share()
    (among,) = np.nonzero(one.may_be_chosen(options.max_rate) & (one.n_active > ALIVE))
    order = among[np.lexsort((among, -one.n_active[among], -share[among]))]
    return {int(j): f"{share[j]:.0%} of its activation on one token" for j in order[: options.n_features]}
