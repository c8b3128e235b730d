"""Verdicts: each claim of FaithfulSAE as a paired difference between sources, from the rows of results alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from sae_faithful.metrics.paired import (
    MOST_SEEDS,
    sampling_to_decide,
    seeds_to_decide,
    spread_over_seeds,
)
from sae_faithful.report.differences import Paired, cells_of, paired
from sae_faithful.report.tables import difference_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Row = dict[str, Any]
Index = dict[tuple[str, str, str, str], list[Row]]
"""Rows by metric, source, hook and variant."""
Finding = Literal["supported", "contradicted", "undecided"]

NOT_OWN_AND_OTHER = "they compare SAEs on the model's own text with SAEs on other text, and this run "


@dataclass(frozen=True)
class Claim:
    """What Cho et al. (2025, arXiv 2506.17673) say of SAEs trained on the model's own text."""

    name: str
    metric: str
    subset: str
    condition: str | None
    higher: bool
    """Whether the number is claimed to be higher for the model's own text, or lower."""
    label: str
    primary: bool = True
    """Whether the claim is judged by this number; one number a claim is."""
    sampled: str = "tokens"
    """What a row's `n` counts where the row is of one SAE."""
    of: str = "texts"
    """What its `dataset`s are."""

    @property
    def of_pairs(self) -> bool:
        """Whether it is a number of pairs of SAEs."""
        return self.metric == "sfr"


CLAIMS = (
    Claim("sfr", "sfr", "alive", "cosine>0.7", True, "SFR of alive latents (cosine > 0.7)"),
    Claim("sfr", "sfr", "all", "cosine>0.7", True, "SFR of all latents (cosine > 0.7)", primary=False),
    Claim("ffr", "ffr_contrast", "alive", "rate>0.1", False, "contrast FFR of alive latents (rate > 0.1)"),
    Claim("ffr", "ffr", "all", "rate>0.1", False, "FFR of all latents (rate > 0.1)", primary=False),
    Claim(
        "probing", "probe_accuracy", "all", "latents", True, "probe accuracy of latents",
        sampled="test texts", of="tasks",
    ),
    Claim("ce_difference", "ce_difference", "all", None, False, "CE difference"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One claim about one pair of sources: one row of `verdicts.jsonl`."""

    claim: str
    statement: str
    """What is claimed."""
    sentence: str
    """What is claimed, and what came out."""
    metric: str
    subset: str
    condition: str | None
    dataset: str | None
    """None: the mean over all that both sources were measured on, or a number that has none."""
    hook: str
    variant: str
    source: str
    """Trained on the model's own text."""
    other: str
    value: float | None
    other_value: float | None
    """Of `source` and of `other`: means over the seeds (or pairs of seeds) that both have."""
    difference: float | None
    """`source` − `other`, mean over the seeds (or pairs of seeds) that both have."""
    ci_low: float | None
    ci_high: float | None
    """Bounds of its 95 % interval over SAE seeds."""
    unit: str
    n_seeds: int
    reason: str | None
    """Why there is no interval, or no difference."""
    verdict: Finding
    would_decide: str | None
    """Of an undecided one: how many seeds, or tokens, would decide it if the difference is as found."""
    primary: bool


@dataclass(frozen=True)
class Comparison:
    """Two sources at one hook and variant."""

    source: str
    other: str
    hook: str
    variant: str
    only_place: bool
    """Whether the run has no other hook or variant."""


def judge(rows: Sequence[Row], manifest: Mapping[str, Any]) -> list[Verdict]:
    """Each claim for each pair of a source of the model's own text with another, at each hook and variant.

    Args:
        rows: of `results.jsonl`.
        manifest: its `sources`; `own_text`: which of them the model itself wrote; and the names of its `baselines`,
            which are not judged.

    Returns:
        Claims in the papers' order; none where `remark` says why. A claim that was not measured has none.
    """
    compared, index = comparisons(rows, manifest)
    return [verdict for claim, one in product(CLAIMS, compared) for verdict in _judge_one(claim, one, index)]


def comparisons(rows: Sequence[Row], manifest: Mapping[str, Any]) -> tuple[list[Comparison], Index]:
    """Who is compared with whom, as `judge` does, and the rows of SAEs."""
    own = manifest.get("own_text", [])
    sources: Sequence[str] = manifest["sources"]
    index = rows_of_saes(rows, manifest)
    places = list(dict.fromkeys((hook, variant) for _, _, hook, variant in index))
    compared = [
        Comparison(source, other, hook, variant, len(places) == 1)
        for source, other, (hook, variant) in product(sources, sources, places)
        if source in own and other not in own
    ]
    return compared, index


def rows_of_saes(rows: Sequence[Row], manifest: Mapping[str, Any]) -> Index:
    """The rows of sources' SAEs; those of baselines left out: the claims are about SAEs."""
    # Older runs have no baselines.
    sources, baselines = manifest["sources"], manifest.get("baselines", ())
    index: Index = {}
    for row in rows:
        if row["source"] in sources and row["hook"] is not None and row["variant"] not in baselines:
            index.setdefault((row["metric"], row["source"], row["hook"], row["variant"]), []).append(row)
    return index


def remark(verdicts: Sequence[Verdict], manifest: Mapping[str, Any]) -> str:
    """What a reader of the verdicts should know, or why there are none."""
    sources, own = manifest["sources"], manifest.get("own_text")
    if own is None:
        return f"No verdicts: {NOT_OWN_AND_OTHER}does not say whose text its sources are."
    if not own:
        return f"No verdicts: {NOT_OWN_AND_OTHER}has no source of the model's own text."
    if len(own) == len(sources):
        return f"No verdicts: {NOT_OWN_AND_OTHER}has no other source."
    judged = {verdict.claim for verdict in verdicts}
    missing = [claim.label for claim in CLAIMS if claim.primary and claim.name not in judged]
    not_measured = f"Not measured: {'; '.join(missing)}." if missing else ""
    if not verdicts:
        return f"No verdicts. {not_measured}"
    by_chance = (
        f"Verdicts at 95 % each, {len(verdicts)} in all, {sum(one.primary for one in verdicts)} primary: were "
        "there no differences at all, about 1 in 20 would come out supported or contradicted by chance. "
        "Intervals are over SAE seeds, texts and test sets as they are."
    )
    return f"{by_chance} {not_measured}".strip()


def _judge_one(claim: Claim, compared: Comparison, index: Index) -> Iterator[Verdict]:
    """The claim's verdict, over all texts and on each; none where it was not measured for both sources."""
    rows = [
        index.get((claim.metric, source, compared.hook, compared.variant), [])
        for source in (compared.source, compared.other)
    ]
    one, two = (
        cells_of(of_source, subset=claim.subset, condition=claim.condition, of_pairs=claim.of_pairs)
        for of_source in rows
    )
    datasets = [dataset for dataset in one if dataset in two]
    if datasets:
        unit = str(next(iter(one[datasets[0]].values()))["unit"])
        yield _verdict(claim, compared, paired(one, two, datasets), unit, datasets)
        for dataset in datasets if len(datasets) > 1 else ():
            part = replace(claim, primary=False)
            yield _verdict(part, compared, paired(one, two, [dataset]), unit, [dataset])
        return
    # An evaluator that had no value said why.
    said = next((row for of_source in rows for row in of_source if row["value"] is None), None)
    if all(rows) and said is not None:
        yield _verdict(claim, compared, str(said["reason"]), said["unit"], [None])


def _verdict(
    claim: Claim, compared: Comparison, found: Paired | str, unit: str, datasets: Sequence[str | None]
) -> Verdict:
    """The row of a difference, or of the reason why there is none."""
    difference = found if isinstance(found, Paired) else None
    low, high, reason = difference.interval if difference else (None, None, str(found))
    verdict = finding(low, high, higher=claim.higher)
    would_decide = _what_would_decide(claim, difference) if verdict == "undecided" else None
    outcome = f"{difference_text(difference.mean, low, high)}, {verdict}" if difference else verdict
    if reason is not None:
        outcome += f" ({reason}); an interval takes {would_decide}"
    elif would_decide is not None:
        outcome += f" at this budget; {would_decide} would decide it if the difference is as found"
    statement = _claim_text(claim, compared, datasets)
    return Verdict(
        claim=claim.name,
        statement=statement,
        sentence=f"{statement}: {outcome}.",
        metric=claim.metric,
        subset=claim.subset,
        condition=claim.condition,
        dataset=datasets[0] if len(datasets) == 1 else None,
        hook=compared.hook,
        variant=compared.variant,
        source=compared.source,
        other=compared.other,
        value=difference.value if difference else None,
        other_value=difference.other_value if difference else None,
        difference=difference.mean if difference else None,
        ci_low=low,
        ci_high=high,
        unit=unit,
        n_seeds=difference.n_seeds if difference else 0,
        reason=reason,
        verdict=verdict,
        would_decide=would_decide,
        primary=claim.primary,
    )


def _claim_text(claim: Claim, compared: Comparison, datasets: Sequence[str | None]) -> str:
    subject = claim.label[0].upper() + claim.label[1:]
    if len(datasets) > 1:
        subject += f", mean over {len(datasets)} {claim.of},"
    elif datasets[0] is not None:
        subject += f" on {datasets[0]}"
    direction = "higher" if claim.higher else "lower"
    where = "" if compared.only_place else f" ({compared.hook}, {compared.variant})"
    return f"{subject} is {direction} for SAEs on {compared.source} than on {compared.other}{where}"


def finding(low: float | None, high: float | None, *, higher: bool) -> Finding:
    """An interval on one side of zero decides; `higher`: which side is claimed."""
    if low is None or high is None or low <= 0 <= high:
        return "undecided"
    return "supported" if (low > 0) == higher else "contradicted"


def _what_would_decide(claim: Claim, found: Paired | None) -> str:
    """Seeds, or tokens where sampling them makes most of the spread; where there is no interval, seeds for one."""
    if found is None or found.interval.low is None:
        more = found.n_seeds + 1 if found else 0
        return f"at least {max(3 if claim.of_pairs else 2, more)} seeds of both sources"
    spread = spread_over_seeds(found.mean, found.interval.low, found.n_seeds)
    seeds = seeds_to_decide(found.mean, spread)
    if seeds is None:
        return f"more than {MOST_SEEDS:,} seeds"
    answer = f"about {seeds:,} seeds"
    if found.sampling is None:
        return answer
    times = sampling_to_decide(found.mean, spread, found.n_seeds, found.sampling)
    if times is None:
        return answer
    # Two figures: more would look as if it were known.
    tokens = float(f"{times * found.n_sampled:.1e}")
    return f"{answer}, or perhaps {tokens:,.0f} {claim.sampled} instead of {found.n_sampled:,},"
