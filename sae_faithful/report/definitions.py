"""What a claim's conclusion owes to how its number is defined: each claim by many definitions, beside the paper's own.

The paper (Cho et al. 2025, arXiv 2506.17673) takes raw numbers of all latents. What changes when dead latents, latents
that fire seldom, what chance gives, or latents that are merely dense do not count?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_faithful.metrics.intervals import Interval
from sae_faithful.metrics.paired import Estimate, combined
from sae_faithful.report.differences import HIGHER_IS_BETTER, Cells, Paired, cells_of, paired
from sae_faithful.report.verdicts import comparisons, finding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sae_faithful.report.verdicts import Comparison, Finding, Index

Row = dict[str, Any]
Change = Literal["the same", "turned round", "no longer decided", "now decided"]
Texts = Literal["all", "neither"]
INFINITE = float("inf")


@dataclass(frozen=True)
class Definition:
    """One number that a claim could be judged by; that it is better for the model's own text is what is claimed."""

    claim: str
    metric: str
    label: str
    subset: str = "all"
    condition: str | None = None
    less: str | None = None
    """A metric that is taken off: of the same SAE, or, where that has rows of sources only, of the source."""
    texts: Texts = "all"
    """Of numbers measured on several texts: all of them, or those that neither source is."""
    paper: bool = False
    """Whether it is the paper's own."""


def _sfr() -> list[Definition]:
    where = {"all": "all", "alive": "alive", "firing_weighted": "firing-weighted"}
    found = [Definition("sfr", "sfr", "all, cosine > 0.7", condition="cosine>0.7", paper=True)]
    for subset, name in where.items():
        found += [
            Definition("sfr", "sfr", f"{name}, cosine > {threshold}", subset, f"cosine>{threshold}")
            for threshold in (0.5, 0.6, 0.7, 0.8, 0.9)
            if (subset, threshold) != ("all", 0.7)
        ]
        found += [
            Definition(
                "sfr", "sfr", f"{name}, cosine > 0.7, minus the null", subset, "cosine>0.7", "sfr_null"
            ),
            Definition("sfr", "mean_matched_cosine", f"{name}, mean matched cosine", subset),
        ]
    found += [
        Definition("sfr", "encoder_sfr", "alive, encoders, cosine > 0.7", "alive", "cosine>0.7"),
        Definition("sfr", "top1", "alive, nearest neighbour, cosine > 0.7", "alive", "cosine>0.7"),
    ]
    return found


def _ffr() -> list[Definition]:
    names = {
        "ffr": "activation > 1", "ffr_fire": "fires", "ffr_relative": "above its median",
        "ffr_contrast": "contrast with text",
    }  # fmt: skip
    found = [Definition("ffr", "ffr", "activation > 1, all, rate > 0.1", condition="rate>0.1", paper=True)]
    for metric, name in names.items():
        for subset in ("all", "alive"):
            rates = (0.01, 0.05, 0.1, 0.2) if (metric, subset) in TAUS else (0.1,)
            found += [
                Definition("ffr", metric, f"{name}, {subset}, rate > {rate}", subset, f"rate>{rate}")
                for rate in rates
                if (metric, subset, rate) != ("ffr", "all", 0.1)
            ]
            found += [
                Definition(
                    "ffr",
                    metric,
                    f"{name}, {subset}, rate > 0.1, minus {what}",
                    subset,
                    "rate>0.1",
                    metric + end,
                )
                for what, end in (("a random SAE's", "_random_sae"), ("shuffled text's", "_shuffled"))
                if (metric, subset) in TAUS
            ]
    return found


TAUS = (("ffr", "all"), ("ffr_contrast", "alive"))
"""The paper's number and the recommended one: shown at each threshold, and with what chance gives taken off."""
DEFINITIONS: tuple[Definition, ...] = (
    *_sfr(),
    *_ffr(),
    Definition("probing", "probe_accuracy", "accuracy, all latents", condition="latents", paper=True),
    Definition("probing", "probe_macro_f1", "macro-F1, all latents", condition="latents"),
    Definition("probing", "probe_auc", "AUC, all latents", condition="latents"),
    Definition("probing", "probe_mcc", "MCC, all latents", condition="latents"),
    Definition("probing", "probe_accuracy", "accuracy, 16 latents", condition="latents,k=16"),
    Definition("probing", "probe_accuracy", "accuracy, reconstruction", condition="reconstruction"),
    Definition("ce_difference", "ce_difference", "CE difference, all texts", paper=True),
    Definition("ce_difference", "ce_difference", "CE difference, texts that neither was trained on", texts="neither"),
    Definition("ce_difference", "ce_difference", "CE difference with BOS, all texts", condition="with BOS"),
    Definition("ce_difference", "ce_loss_score", "CE-loss score, all texts"),
    Definition("ce_difference", "kl", "KL, all texts"),
    Definition("ce_difference", "explained_variance", "explained variance, all texts"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Redefined:
    """One claim about one pair of sources, by one definition of its number."""

    definition: Definition
    hook: str
    variant: str
    source: str
    """Trained on the model's own text."""
    other: str
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    unit: str
    reason: str | None
    verdict: Finding
    change: Change | None
    """Of the conclusion, from that by the paper's definition; none for that itself, or where it was not measured."""


def redefined(rows: Sequence[Row], manifest: Mapping[str, Any]) -> list[Redefined]:
    """Every definition that was measured, for each claim, pair of sources, hook and variant; the paper's own first."""
    compared, index = comparisons(rows, manifest)
    found: list[Redefined] = []
    for one in compared:
        paper: dict[str, Finding] = {}
        for definition in DEFINITIONS:
            row = _judged(definition, one, index, paper.get(definition.claim))
            if row is not None:
                found.append(row)
                if definition.paper:
                    paper[definition.claim] = row.verdict
    return found


def _judged(
    definition: Definition,
    compared: Comparison,
    index: Index,
    paper: Finding | None,
) -> Redefined | None:
    """None where it was not measured for both sources."""
    one, two = (_cells(definition, source, compared, index) for source in (compared.source, compared.other))
    texts = [text for text in one if text in two]
    if definition.texts == "neither":
        texts = [text for text in texts if text not in (compared.source, compared.other)]
    if not texts:
        return None
    unit = str(next(iter(one[texts[0]].values()))["unit"])
    found = paired(one, two, texts)
    value, interval = _difference(definition, compared, index, found)
    higher = HIGHER_IS_BETTER[definition.metric]
    verdict = finding(interval.low, interval.high, higher=higher)
    return Redefined(
        definition=definition,
        hook=compared.hook,
        variant=compared.variant,
        source=compared.source,
        other=compared.other,
        difference=value,
        ci_low=interval.low,
        ci_high=interval.high,
        unit=unit,
        reason=interval.reason,
        verdict=verdict,
        change=None if definition.paper or paper is None else change(paper, verdict),
    )


def change(before: Finding, after: Finding) -> Change:
    """What another definition does to a conclusion."""
    if before == after:
        return "the same"
    if after == "undecided":
        return "no longer decided"
    return "now decided" if before == "undecided" else "turned round"


def _cells(definition: Definition, source: str, compared: Comparison, index: Index) -> Cells:
    """A source's values by SAE or pair, less what is taken off of the same SAE."""
    rows = index.get((definition.metric, source, compared.hook, compared.variant), [])
    of_pairs = any(row["other_seed"] is not None for row in rows)
    found = cells_of(rows, subset=definition.subset, condition=definition.condition, of_pairs=of_pairs)
    if definition.less is None:
        return found
    chance = index.get((definition.less, source, compared.hook, compared.variant), [])
    if not any(row["seed"] is not None for row in chance):
        return found if _of_source(definition, source, compared, index) else {}
    less = cells_of(chance, subset=definition.subset, condition=definition.condition, of_pairs=of_pairs)
    return {
        text: {
            key: {**row, "value": row["value"] - less[text][key]["value"]}
            for key, row in of_text.items()
            if key in less[text]
        }
        for text, of_text in found.items()
        if text in less
    }


def _difference(
    definition: Definition, compared: Comparison, index: Index, found: Paired | str
) -> tuple[float | None, Interval]:
    """The paired difference, less that of what is taken off of whole sources."""
    if isinstance(found, str):
        return None, Interval(None, None, found)
    nulls = [_of_source(definition, source, compared, index) for source in (compared.source, compared.other)]
    own, other = nulls
    if definition.less is None or own is None or other is None:
        return found.mean, found.interval
    low, high, reason = found.interval
    if low is None or high is None:
        return found.mean - (own.value - other.value), Interval(None, None, reason)
    seeds = Estimate.of(found.mean, low, high, found.n_seeds - 1)
    return combined([(1, seeds), (-1, own), (1, other)])


def _of_source(definition: Definition, source: str, compared: Comparison, index: Index) -> Estimate | None:
    """What chance gives a source, where that is measured once for all its SAEs."""
    rows = index.get((definition.less or "", source, compared.hook, compared.variant), [])
    if any(row["seed"] is not None for row in rows):
        return None
    for row in rows:
        if (row["subset"], row["condition"]) != (definition.subset, definition.condition) or row[
            "value"
        ] is None:
            continue
        if row["ci_low"] is None or row["ci_high"] is None:
            return Estimate(row["value"], 0.0, INFINITE)
        # A null of random dictionaries has Student's t over its draws; of a random SAE, a bootstrap over sequences.
        degrees = row["n"] - 1 if row["metric"].endswith("_null") else INFINITE
        return Estimate.of(row["value"], row["ci_low"], row["ci_high"], degrees)
    return None


def changed(found: Sequence[Redefined]) -> dict[Change, int]:
    """How many conclusions another definition leaves, and how many it changes, and how."""
    kinds: tuple[Change, ...] = ("the same", "now decided", "no longer decided", "turned round")
    return {kind: int(np.sum([one.change == kind for one in found])) for kind in kinds}
