"""Stability and distance: how SFR and FFR go with how far a source's text is from the model, over the sources of a run.

FaithfulSAE's central hypothesis (Cho et al. 2025, arXiv 2506.17673): the farther the text that SAEs are trained on is
from the model, the less stable they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful.metrics.correlation import (
    DECIDING_SOURCES,
    MIN_SOURCES,
    MOST_SOURCES,
    Correlation,
    pearson,
    sources_to_decide,
    spearman,
)
from sae_faithful.report.differences import cells_of
from sae_faithful.report.verdicts import rows_of_saes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sae_faithful.metrics.paired import Key
    from sae_faithful.report.verdicts import Finding, Index

Row = dict[str, Any]
LEVEL = 0.05
"""A p-value below this decides."""
HOW_TO_READ = (
    "Over the sources of a run: Spearman's correlation of a number of their SAEs with the distance of their text. Its "
    "interval is over SAE seeds: what other seeds of these sources would change. p is over sources: how often "
    "sources in an order of chance would correlate so strongly, in either direction; it alone decides. Sources were "
    "chosen, not drawn, and differ in more than their distance: a correlation is no cause."
)


@dataclass(frozen=True)
class Score:
    """How far a text is from the model, or from the reference text."""

    metric: str
    label: str
    distance: Callable[[float], float] = float
    """The score as a distance: 0, or its least, where text is the model's own."""


@dataclass(frozen=True)
class Measure:
    """A number of the SAEs of a source."""

    metric: str
    subset: str
    condition: str
    falls: bool
    """Whether it is claimed to be lower the farther the text is, or higher."""
    label: str
    less: str | None = None
    """A number of the source that is taken off: what chance gives."""
    primary: bool = False


def _from_half(auc: float) -> float:
    return abs(auc - 0.5)


SCORES = (
    Score("typicality_gap", "|typicality gap|", abs),
    Score("first_token_excess", "|first-token excess|", abs),
    Score("nll_auroc", "|AUROC of NLL - 0.5|", _from_half),
    Score("unigram_js_excess", "unigram JS - null"),
    Score("knn_distance", "k-NN distance"),
    Score("classifier_auc", "classifier AUC"),
    Score("mahalanobis", "Mahalanobis distance"),
)
"""The first one is primary: it needs no reference text, and is 0 in expectation for the model's own."""
MEASURES = (
    Measure("sfr", "alive", "cosine>0.7", True, "SFR of alive latents", primary=True),
    Measure("sfr", "alive", "cosine>0.7", True, "SFR of alive latents - null", less="sfr_null"),
    Measure("sfr", "firing_weighted", "cosine>0.7", True, "firing-weighted SFR"),
    Measure("sfr", "all", "cosine>0.7", True, "SFR of all latents"),
    Measure("ffr_contrast", "alive", "rate>0.1", False, "contrast FFR of alive latents", primary=True),
    Measure("ffr", "all", "rate>0.1", False, "FFR of all latents"),
)


@dataclass(frozen=True, kw_only=True)
class Trend:
    """One number against one score over the sources of a run: one row of `distance.jsonl`."""

    statement: str
    """What is claimed."""
    sentence: str
    """What is claimed, and what came out."""
    metric: str
    subset: str
    condition: str
    less: str | None
    """The metric whose value was taken off each source's."""
    score: str
    hook: str
    variant: str
    sources: list[str]
    """Those that have both, in the order of the config."""
    distances: list[float]
    """Their scores, as distances."""
    values: list[float]
    """Their means over the SAE seeds that all of them have; without a correlation over all they have."""
    spearman: float | None
    spearman_low: float | None
    spearman_high: float | None
    """What other seeds of the same sources would change, 95 %."""
    spearman_p: float | None
    """How often sources in an order of chance would correlate so strongly."""
    pearson: float | None
    pearson_low: float | None
    pearson_high: float | None
    pearson_p: float | None
    sources_low: float | None
    sources_high: float | None
    """Of Pearson's correlation, what other sources would change, were they and these a sample of normal ones, 95 %."""
    reason: str | None
    """Why there is no correlation, or no interval over seeds."""
    verdict: Finding
    would_decide: str | None
    primary: bool


def trends(rows: Sequence[Row], manifest: Mapping[str, Any]) -> list[Trend]:
    """Every measure against every score, at each hook and variant; those that were measured for no source left out."""
    index = rows_of_saes(rows, manifest)
    places = list(dict.fromkeys((hook, variant) for _, _, hook, variant in index))
    texts = _texts(rows)
    return [
        trend
        for (hook, variant), measure, score in product(places, MEASURES, SCORES)
        if (trend := _trend(measure, score, hook, variant, manifest["sources"], index, texts)) is not None
    ]


def enough_sources(trends: Sequence[Trend]) -> bool:
    """Whether any of them has a correlation."""
    return any(trend.spearman is not None for trend in trends)


def _texts(rows: Sequence[Row]) -> dict[tuple[str, str, str | None], float]:
    """Scores of texts by metric, text and hook."""
    scores = {score.metric: score for score in SCORES}
    return {
        (row["metric"], row["dataset"], row["hook"]): scores[row["metric"]].distance(row["value"])
        for row in rows
        if row["metric"] in scores and row["source"] is None and row["value"] is not None
    }


def _trend(
    measure: Measure, score: Score, hook: str, variant: str, sources: Sequence[str], index: Index,
    texts: Mapping[tuple[str, str, str | None], float],
) -> Trend | None:  # fmt: skip
    found: dict[str, tuple[float, Mapping[Key, float]]] = {}
    for source in sources:
        distance = next(
            (texts[key] for at in (None, hook) if (key := (score.metric, source, at)) in texts), None
        )
        values = _values(measure, source, hook, variant, index)
        if distance is not None and values:
            found[source] = (distance, values)
    if not found:
        return None
    distances, values = [one for one, _ in found.values()], [each for _, each in found.values()]
    # The same rows give the same draws.
    ranks = spearman(distances, values, np.random.default_rng(0))
    line = pearson(distances, values)
    verdict = _finding(ranks, falls=measure.falls)
    would_decide = _what_would_decide(ranks, len(found)) if verdict == "undecided" else None
    statement = (
        f"{measure.label[0].upper()}{measure.label[1:]} ({measure.condition.replace('>', ' > ')}) "
        f"{'falls' if measure.falls else 'rises'} with the {score.label} of the text trained on"
    )
    keys = set(values[0]).intersection(*values[1:])
    return Trend(
        statement=statement,
        sentence=f"{statement}: {_outcome(ranks, verdict, would_decide, len(found))}.",
        metric=measure.metric,
        subset=measure.subset,
        condition=measure.condition,
        less=measure.less,
        score=score.metric,
        hook=hook,
        variant=variant,
        sources=list(found),
        distances=distances,
        values=[float(np.mean([one[key] for key in keys or one])) for one in values],
        spearman=ranks.value,
        spearman_low=ranks.over_seeds.low,
        spearman_high=ranks.over_seeds.high,
        spearman_p=ranks.p_value,
        pearson=line.value,
        pearson_low=line.over_seeds.low,
        pearson_high=line.over_seeds.high,
        pearson_p=line.p_value,
        sources_low=line.over_sources.low,
        sources_high=line.over_sources.high,
        reason=ranks.reason or ranks.over_seeds.reason,
        verdict=verdict,
        would_decide=would_decide,
        primary=measure.primary and score is SCORES[0],
    )


def _values(measure: Measure, source: str, hook: str, variant: str, index: Index) -> Mapping[Key, float]:
    """By seed, or by pair of seeds."""
    rows = index.get((measure.metric, source, hook, variant), [])
    of_pairs = any(row["other_seed"] is not None for row in rows)
    cells = cells_of(rows, subset=measure.subset, condition=measure.condition, of_pairs=of_pairs).get(
        None, {}
    )
    if measure.less is None:
        return {key: row["value"] for key, row in cells.items()}
    null = next(
        (
            row["value"]
            for row in index.get((measure.less, source, hook, variant), [])
            if (row["subset"], row["condition"]) == (measure.subset, measure.condition)
            and row["value"] is not None
        ),
        None,
    )
    return {} if null is None else {key: row["value"] - null for key, row in cells.items()}


def _finding(found: Correlation, *, falls: bool) -> Finding:
    """An order of sources that chance gives less than once in twenty times decides."""
    if found.value is None or found.p_value is None or found.p_value >= LEVEL:
        return "undecided"
    return "supported" if (found.value < 0) == falls else "contradicted"


def _what_would_decide(found: Correlation, n_sources: int) -> str | None:
    if n_sources < MIN_SOURCES:
        return f"at least {DECIDING_SOURCES} sources"
    if found.value is None:
        return None
    more = sources_to_decide(found.value)
    if more is None:
        return f"more than {MOST_SOURCES} sources"
    return f"about {max(more, n_sources + 1)} sources"


def _outcome(found: Correlation, verdict: Finding, would_decide: str | None, n_sources: int) -> str:
    if found.value is None or found.p_value is None:
        return f"{verdict} ({found.reason})"
    low, high, reason = found.over_seeds
    seeds = f"over seeds {low:+.2f} to {high:+.2f}" if low is not None and high is not None else reason
    text = (
        f"Spearman's correlation over {n_sources} sources {found.value:+.2f} ({seeds}), "
        f"p = {found.p_value:.3f}, {verdict}"
    )
    return text if would_decide is None else f"{text}; {would_decide} would decide it if it is as found"
