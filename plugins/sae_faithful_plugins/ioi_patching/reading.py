"""The curves as one document, and what they say in words."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful_plugins.ioi_patching.results import ratio

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sae_faithful import EvalResult
    from sae_faithful_plugins.ioi_patching import IOIPatching
    from sae_faithful_plugins.ioi_patching.curves import Experiment
    from sae_faithful_plugins.ioi_patching.prompts import Pair
    from sae_faithful_plugins.ioi_patching.results import Series


def curves(series: Sequence[Series], experiment: Experiment, texts: Sequence[Pair]) -> dict[str, Any]:
    """Every curve with its intervals, the sets, and the pairs."""
    n_choosing = len(texts) - len(experiment.pairs)
    return {
        "pairs": [
            {**asdict(pair), "measured": i >= n_choosing, "chooses": i < n_choosing or n_choosing == 0}
            for i, pair in enumerate(texts)
        ],
        "kl_unpatched": float(experiment.unpatched.mean()),
        "curves": [_curve(one) for one in series],
    }


def _curve(one: Series) -> dict[str, Any]:
    kl, edits = one.kl.mean(axis=0), one.edits.mean(axis=0)
    return {
        **one.where,
        "comparison": one.comparison,
        "features_changed": one.n_changed,
        "points": [
            _point(size, kl[i], edits[i], one.lengths) | {"kl_by_order": one.kl[:, i].mean(axis=1).tolist()}
            for i, size in enumerate(one.sizes)
        ],
        "all": _point(None, one.kl_all, one.edits_all, one.lengths),
        "orders": one.orders,
        "thresholds": one.thresholds,
    }


def _point(size: int | None, kl: np.ndarray, edits: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """One point of both curves: KL against the number of features, and against the size of the edit."""
    found: dict[str, Any] = {"features": size}
    for name, sums, over in (("kl", kl, np.ones_like(kl)), ("edit", edits, lengths)):
        low, high, _ = ratio(sums, over)
        found |= {
            name: float(sums.sum() / over.sum()),
            f"{name}_ci_low": low,
            f"{name}_ci_high": high,
        }
    return found


def reading(rows: Sequence[EvalResult], options: IOIPatching) -> str:
    """Whether the model does the task; then a sentence for every source and comparison."""
    return "\n".join([task_sentence(rows), *_places(rows, options)]) + "\n"


def task_sentence(rows: Sequence[EvalResult]) -> str:
    """What `task_accuracy` says: the model does the task if its interval lies above a half."""
    accuracy = next(row for row in rows if row.metric == "task_accuracy")
    if accuracy.value is None or accuracy.ci_low is None or accuracy.n is None:
        return "Whether the model does the task is not known: the pairs name no answer and distractor."
    seen = (
        f"{round(accuracy.value * accuracy.n)} of {accuracy.n} pairs have the answer above the distractor "
        f"({accuracy.value:.2f}, 95 % interval {accuracy.ci_low:.2f} to {accuracy.ci_high:.2f})"
    )
    if accuracy.ci_low > 0.5:
        return f"The model does the task: {seen}."
    return f"It is not shown that the model does the task: {seen}. The curves are then of something else."


def _places(rows: Sequence[EvalResult], options: IOIPatching) -> Iterator[str]:
    for row in rows:
        if not row.headline or row.metric not in ("features_to_half", "area_difference"):
            continue
        place = f"{row.source}, {row.hook}, {row.variant}"
        interval = "" if row.ci_low is None else f", 95 % interval {row.ci_low:.3g} to {row.ci_high:.3g}"
        if row.value is None:
            yield f"{place}: {row.reason} (at most {options.candidates} candidates)."
        elif row.metric == "features_to_half":
            yield f"{place}: {row.value:.3g} features bring KL to half{interval}."
        else:
            yield f"{place}: area under the curve, {row.condition}: {row.value:+.3g}{interval}."
