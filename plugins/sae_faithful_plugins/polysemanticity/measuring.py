"""From sums and weights to numbers: one value a latent, or a neuron, for each metric."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import SAEHandle, derive_seed
from sae_faithful.metrics.selectivity import SILENT, Scores, token_r2, token_selectivity

if TYPE_CHECKING:
    from jaxtyping import Float64

    from sae_faithful_plugins.polysemanticity.observing import TokensOfLatents

Metric = tuple[str, str]
"""Its name and subset."""
ALIVE, ALL = "alive", "all"
SELECTIVITY, R2, CAPACITY = "token_selectivity", "token_r2", "capacity"


@dataclass(frozen=True, eq=False)
class Measured:
    """What was found of one SAE, one baseline, or the neurons of one hook."""

    latents: Any
    """The `SAEHandle`, or `Neurons`."""
    values: dict[Metric, Float64[np.ndarray, " values"]]
    """Of every latent, or neuron, that has one."""
    reasons: dict[str, list[str]]
    """Of token metrics: why sampled latents have no value."""
    n_sampled: int
    columns: dict[str, Float64[np.ndarray, " d_sae"]] = field(default_factory=dict[str, "np.ndarray"])

    @property
    def handle(self) -> SAEHandle | None:
        """The SAE; None for neurons."""
        return self.latents if isinstance(self.latents, SAEHandle) else None

    @property
    def is_sae(self) -> bool:
        """Whether it is no baseline."""
        return self.handle is not None and self.handle.kind != "baseline"

    def mean(self, metric: Metric) -> float | None:
        """Over latents, or neurons; None where none has a value."""
        values = self.values.get(metric, np.zeros(0))
        return float(values.mean()) if len(values) else None


def measure(one: TokensOfLatents, min_count: int, seed: int) -> Measured:
    """Every number of one SAE, or of neurons.

    Args:
        one: what was seen.
        min_count: of a token in each half.
        seed: the experiment's; random directions are drawn under it.
    """
    values: dict[Metric, np.ndarray] = {}
    reasons: dict[str, list[str]] = {}
    columns: dict[str, np.ndarray] = {}
    sides = [side for side in (one.above, one.below) if side is not None]
    for metric in (SELECTIVITY, R2):
        scores = [
            token_selectivity(side, min_count) if metric == SELECTIVITY else token_r2(side) for side in sides
        ]
        sampled, reasons[metric] = of_latents(scores)
        values[metric, ALIVE] = _known(sampled)
        columns[metric] = np.full(len(one.alive), np.nan)
        columns[metric][one.chosen] = sampled
    if isinstance(one.latents, SAEHandle):
        columns[CAPACITY] = _of_weights(one.latents, one.alive, seed, values)
    else:
        # The standard basis: each is orthogonal to all others.
        values[CAPACITY, ALIVE] = np.ones(int(one.alive.sum()))
    return Measured(one.latents, values, reasons, len(one.chosen), columns)


def of_latents(sides: list[Scores]) -> tuple[Float64[np.ndarray, " sampled"], list[str]]:
    """Each latent's mean over those of its sides that have a value, and why the others have none.

    Two sides of a latent are not two independent values: the interval is over latents.
    """
    if not sides:
        return np.zeros(0), []
    values = np.stack([scores.values for scores in sides])
    known = ~np.isnan(values)
    mean = np.where(known, values, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
    reasons: list[str] = []
    for latent in np.flatnonzero(~known.any(axis=0)):
        found = [str(scores.reasons[latent]) for scores in sides]
        # That one side is silent explains nothing if the other is not.
        reasons.append(next((reason for reason in found if reason != SILENT), SILENT))
    return mean, reasons


def _of_weights(
    handle: SAEHandle, alive: np.ndarray, seed: int, values: dict[Metric, np.ndarray]
) -> Float64[np.ndarray, " d_sae"]:
    """Put what the decoder says into `values`; the capacity of each alive latent among the alive ones."""
    import torch

    from sae_faithful.metrics.capacity import capacities, distinct, features_per_neuron, random_rows

    rows = handle.W_dec
    values[CAPACITY, ALL] = _known(capacities(rows))
    column = np.full(len(rows), np.nan)
    if not alive.any():
        return column
    living = rows[torch.from_numpy(np.flatnonzero(alive)).to(rows.device)]
    column[alive] = capacities(living)
    values[CAPACITY, ALIVE] = _known(column)
    values["features_per_neuron", ALIVE] = _known(features_per_neuron(living))
    if handle.kind != "baseline":
        n = int(distinct(living).sum())
        drawn = random_rows(n, rows.shape[1], derive_seed(seed, "polysemanticity", "null", *handle.key))
        values["capacity_null", ALIVE] = _known(capacities(drawn))
        values["features_per_neuron_null", ALIVE] = _known(features_per_neuron(drawn))
    return column


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]
