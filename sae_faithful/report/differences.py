"""Paired differences between two sources, from the rows of results: SAEs of one seed began alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from sae_faithful.metrics.intervals import LEVEL, Interval
from sae_faithful.metrics.paired import Key, difference_interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Row = dict[str, Any]
Cells = dict[str | None, dict[Key, Row]]
"""A source's rows of one number, by the text or task they were measured on, then by seed (or pair of seeds)."""

HIGHER_IS_BETTER = {
    "sfr": True,
    "mean_matched_cosine": True,
    "encoder_sfr": True,
    "encoder_mean_matched_cosine": True,
    "top1": True,
    "mmcs": True,
    "ffr": False,
    "ffr_fire": False,
    "ffr_relative": False,
    "ffr_contrast": False,
    "explained_variance": True,
    "fvu": False,
    "r2_per_dimension": True,
    "l2": False,
    "cosine": True,
    "ce_loss_score": True,
    "ce_difference": False,
    "kl": False,
    "perplexity": False,
    "fvu_excess": False,
    "probe_accuracy": True,
    "probe_macro_f1": True,
    "probe_auc": True,
    "probe_mcc": True,
    "kl_patched": False,
    "area": False,
    "autointerp_score": True,
    "detection_balanced_accuracy": True,
    "detection_f1": True,
    "fuzzing_balanced_accuracy": True,
    "fuzzing_f1": True,
    "benchmark_auc": True,
    "benchmark_accuracy": True,
    "benchmark_f1": True,
}
"""Which value of a metric is better, as docs/evaluators say; of any other metric neither is (`l0` is a cost, `alive`
depends on how much text there was)."""


@dataclass(frozen=True)
class Paired:
    """The differences of SAEs, or of pairs of SAEs, that began alike."""

    value: float
    other_value: float
    """Means of the two sources, over the same seeds."""
    mean: float
    """`value` − `other_value`."""
    interval: Interval
    n_seeds: int
    sampling: float | None
    """Variance that sampling tokens gives one seed's difference; None where rows have no intervals."""
    n_sampled: int
    """Tokens (test texts) of one SAE."""


def cells_of(rows: Iterable[Row], *, subset: str, condition: str | None, of_pairs: bool) -> Cells:
    """The values of one number, of single SAEs or of single pairs, among the rows of its metric and one place.

    A number that is not the same in both orders of a pair is the mean of the two.
    """
    found: dict[str | None, dict[Key, list[Row]]] = {}
    for row in rows:
        if row["subset"] != subset or row["condition"] != condition or row["value"] is None:
            continue
        if row["seed"] is None or (row["other_seed"] is not None) != of_pairs:
            continue
        key = tuple(sorted((row["seed"], row["other_seed"]))) if of_pairs else (row["seed"],)
        found.setdefault(row["dataset"], {}).setdefault(key, []).append(row)
    return {
        dataset: {
            key: {**of_key[0], "value": float(np.mean([row["value"] for row in of_key]))}
            for key, of_key in of_dataset.items()
        }
        for dataset, of_dataset in found.items()
    }


def paired(one: Cells, two: Cells, datasets: Sequence[str | None]) -> Paired | str:
    """The difference, mean over `datasets`, of the SAEs that both sources have; or why there is none."""
    both = [cells[dataset] for dataset in datasets for cells in (one, two)]
    keys = [key for key in both[0] if all(key in rows for rows in both)]
    if not keys:
        return "the two sources have too few SAE seeds in common"
    values, others = (
        {key: float(np.mean([cells[name][key]["value"] for name in datasets])) for key in keys}
        for cells in (one, two)
    )
    differences = {
        key: float(np.mean([one[name][key]["value"] - two[name][key]["value"] for name in datasets]))
        for key in keys
    }
    # The errors of both sides, each a mean over independent texts.
    sampling = [_squared_errors([rows[key] for rows in both]) for key in keys]
    known = [errors / len(datasets) ** 2 for errors in sampling if errors is not None]
    return Paired(
        value=float(np.mean(list(values.values()))),
        other_value=float(np.mean(list(others.values()))),
        mean=float(np.mean(list(differences.values()))),
        interval=difference_interval(differences),
        n_seeds=len({seed for key in keys for seed in key}),
        sampling=float(np.mean(known)) if len(known) == len(keys) else None,
        n_sampled=sum(one[name][keys[0]]["n"] or 0 for name in datasets),
    )


def _squared_errors(rows: Sequence[Row]) -> float | None:
    """Sum of the squared standard errors that rows' own intervals imply."""
    if any(row["ci_low"] is None for row in rows):
        return None
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    return sum(((row["ci_high"] - row["ci_low"]) / (2 * z)) ** 2 for row in rows)
