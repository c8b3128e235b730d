"""Which latents are worth a look, by what other evaluators found of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    from jaxtyping import Float

    from sae_faithful import SAEHandle
    from sae_faithful_plugins.top_contexts import TopContexts
    from sae_faithful_plugins.top_contexts.strongest import Strongest

    Column = Float[np.ndarray, " d_sae"]
    Chosen = dict[int, list[str]]

TAU, RATIO = 0.1, 2.0
"""Where fake_features draws its line by default: fake is what fires on more than this share of random tokens, and on
more than so many times its share of real ones."""
MATCH = "shared_features.match.seed"
PROBING = "probing.f_statistic."


def choose(
    options: TopContexts, observed: Sequence[Strongest], features: pd.DataFrame | None
) -> dict[Strongest, Chosen]:
    """The latents of every SAE that are shown, in that order, and why: those asked for, those with a reason, and what
    the matching across seeds gave these for partners in SAEs of the same source, hook and variant."""
    columns = {one: _columns(one.handle, features) for one in observed}
    chosen: dict[Strongest, Chosen] = {one: {} for one in observed}
    for one, why in chosen.items():
        for latent in options.latents:
            _add(why, latent, "asked")
        for reason, order in _rankings(one, columns[one]):
            for latent in order[: options.n_latents]:
                _add(why, int(latent), reason)
    by_key = {one.handle.key: one for one in observed}
    # Taken down first: a match is no reason to show its own matches.
    own = {one: list(why) for one, why in chosen.items()}
    for one, latents in own.items():
        for name, partners in columns[one].items():
            if not name.startswith(MATCH):
                continue
            other = by_key.get((*one.handle.key[:3], int(name.removeprefix(MATCH))))
            for latent in latents if other is not None else ():
                if other is not None and not np.isnan(partners[latent]):
                    _add(chosen[other], int(partners[latent]), "match")
    return chosen


def _rankings(one: Strongest, columns: Mapping[str, Column]) -> Iterator[tuple[str, np.ndarray]]:
    """Each reason with all latents that may be chosen for it, best first."""
    found = False
    random, own = (columns.get(f"fake_features.rate_{name}") for name in ("random", "own"))
    if random is not None and own is not None:
        yield "fakest", _largest(one, random - np.maximum(TAU, RATIO * own))
        found = True
    stability, cosine = (
        columns.get(f"shared_features.{name}") for name in ("stability", "mean_matched_cosine")
    )
    if stability is not None and cosine is not None:
        yield "most_stable", _largest(one, stability, cosine)
        yield "orphans", _largest(one, -cosine)
        found = True
    for name, statistic in columns.items():
        if name.startswith(PROBING):
            yield f"best_probing.{name.removeprefix(PROBING)}", _largest(one, statistic)
            found = True
    if not found:
        yield "most_active", _largest(one, one.top.values[:, 0])


def _largest(one: Strongest, *keys: Column) -> np.ndarray:
    """Alive latents that have these numbers, largest first; a later key decides between equal ones."""
    (known,) = np.nonzero(one.alive & ~np.isnan(np.stack(keys)).any(axis=0))
    # Equal in all: the lower index first.
    return known[np.lexsort([known, *(-key[known] for key in reversed(keys))])]


def _columns(handle: SAEHandle, features: pd.DataFrame | None) -> dict[str, Column]:
    """The SAE's columns in which it has any number."""
    if features is None:
        return {}
    own = features
    for key, value in handle.identity.items():
        own = own[own[key] == value]
    latents = own["latent"].to_numpy()
    found: dict[str, Column] = {}
    for name in own.columns:
        if "." in name and own[name].notna().any():
            found[name] = np.full(handle.d_sae, np.nan)
            found[name][latents] = own[name].to_numpy(np.float64)
    return found


def _add(chosen: Chosen, latent: int, why: str) -> None:
    reasons = chosen.setdefault(latent, [])
    if why not in reasons:
        reasons.append(why)
