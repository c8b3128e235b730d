"""Every metric's unit, its rows with the null beside them, and its line of the reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_faithful import EvalResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sae_faithful.metrics.intervals import Interval

UNITS = {
    "nll": "nats/token",
    "nll_auroc": "AUC",
    "nll_fpr95": "share of sequences",
    "entropy": "nats/token",
    "entropy_auroc": "AUC",
    "entropy_fpr95": "share of sequences",
    "first_token_excess": "nats",
    "unigram_js": "nats",
    "unigram_js_excess": "nats",
    "coverage": "share of vocabulary",
    "knn_distance": "1 − cosine",
    "classifier_auc": "AUC",
    "mahalanobis": "squared distance/d",
    "fvu_excess": "share",
    "firing_shift": "nats/token",
}
WITHOUT_NULL = {"nll", "entropy", "unigram_js_excess"}
"""Of one text alone, or with the null taken off already."""


@dataclass(frozen=True)
class Value:
    """A number with its interval, and how many things it is made from."""

    value: float | None
    interval: Interval
    n: int


@dataclass(frozen=True)
class Measurement:
    """One metric, by text."""

    metric: str
    values: Mapping[str, Value]


def rows(measured: Measurement, reference: str, place: Mapping[str, Any]) -> Iterator[EvalResult]:
    """A row for every text, and the null: what the reference's own second half scores."""
    named = [(measured.metric, name, value) for name, value in measured.values.items()]
    if measured.metric not in WITHOUT_NULL:
        named.append((f"{measured.metric}_null", reference, measured.values[reference]))
    for metric, dataset, value in named:
        low, high, reason = value.interval
        yield EvalResult(
            metric=metric, value=value.value, unit=UNITS[measured.metric], n=value.n, ci_low=low, ci_high=high,
            reason=reason, dataset=dataset, **place,
        )  # fmt: skip


def line(measured: Measurement, reference: str, where: str) -> str:
    """One metric of all texts."""
    cells: list[str] = []
    for name, one in measured.values.items():
        label = f"{name} (null)" if name == reference and measured.metric not in WITHOUT_NULL else name
        value = "none" if one.value is None else f"{one.value:.4g}"
        low, high, _ = one.interval
        bounds = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
        cells.append(f"{label} {value}{bounds}")
    return f"{measured.metric}{where} ({UNITS[measured.metric]}): {'; '.join(cells)}"
