"""Rows, columns and the table of features."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import Artifact, EvalResult, FeatureTable, marked, name_of_sae
from sae_faithful.metrics.intervals import mean_interval
from sae_faithful_plugins.autointerp.differences import Differences, Kind, Sample
from sae_faithful_plugins.autointerp.reading import reading
from sae_faithful_plugins.autointerp.scoring import (
    NONE_SCORED,
    SUBSETS,
    Missing,
    feature_interval,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sae_faithful import Detokenizer, SAEHandle
    from sae_faithful_plugins.autointerp.fragments import Record
    from sae_faithful_plugins.autointerp.scoring import Scored
    from sae_faithful_plugins.autointerp.splits import Split

HEADLINES = (
    "token_set_score",
    "autointerp_score",
    "detection_balanced_accuracy",
    "fuzzing_balanced_accuracy",
)
A_COUNT = "a count, not an estimate"
FEATURES_IN_TEXT = 10
CONTEXTS = 3
Document = dict[str, Any]


@dataclass(frozen=True)
class Tried:
    """The features of one SAE that were chosen, and those that could be split."""

    handle: SAEHandle
    n_fragments: int
    n_active: np.ndarray
    """For every latent, in how many fragments it is active; empty where there are no fragments."""
    chosen: Sequence[int]
    splits: Sequence[Split]


@dataclass
class Results:
    """Makes rows of SAEs, and from them those of sources."""

    dataset: str | None
    detokenizer: Detokenizer
    _of_saes: dict[tuple[str, ...], list[EvalResult]] = field(
        default_factory=dict[tuple[str, ...], list[EvalResult]]
    )
    _table: list[Document] = field(default_factory=list[Document])

    def __post_init__(self) -> None:
        self._differences = Differences(self.dataset)

    def of_sae(self, tried: Tried, scored: Sequence[Scored]) -> Iterator[EvalResult | FeatureTable]:
        """What is known of one SAE."""
        yield self._count(
            "skipped", len(tried.chosen) - len(tried.splits), len(tried.chosen), None, tried.handle
        )
        for one in scored:
            yield from self._rows(one, len(tried.splits))
        yield FeatureTable(handle=tried.handle, columns=_columns(tried, scored))
        self._table.append(self._document(tried, scored))

    def of_sources(self) -> Iterator[EvalResult | Artifact]:
        """Means over SAEs, differences from baselines, and the table of features."""
        for (source, hook, variant, metric, condition), rows in self._of_saes.items():
            values = [row.value for row in rows if row.value is not None]
            low, high, reason = mean_interval(values) if values else (None, None, NONE_SCORED)
            yield EvalResult(
                metric=metric, value=float(np.mean(values)) if values else None, unit=rows[0].unit, n=len(values),
                ci_low=low, ci_high=high, reason=reason, source=source, hook=hook, variant=variant,
                dataset=self.dataset, condition=condition or None,
                headline=metric in HEADLINES and not condition.startswith(("top_only", "random_only")),
            )  # fmt: skip
        differences = list(self._differences.found())
        yield from (one.row for one in differences)
        if differences:
            yield Artifact(name="reading", kind="text", content=reading(differences))
        yield Artifact(name="features", kind="json", content={"saes": self._table})
        yield Artifact(name="features", kind="text", content="\n".join(map(_text, self._table)))

    def _rows(self, scored: Scored, n_features: int) -> Iterator[EvalResult]:
        subsets = list(SUBSETS) if scored.unit == "correlation" else [""]
        for subset in subsets:
            found = [scores[subset] for scores in scored.scores.values()]
            values = [one for one in found if not isinstance(one, Missing)]
            low, high, reason = feature_interval(values)
            condition = ", ".join(part for part in (subset, scored.by) if part)
            row = EvalResult(
                metric=scored.metric, value=float(np.mean(values)) if values else None, unit=scored.unit,
                n=len(values), ci_low=low, ci_high=high, reason=reason, dataset=self.dataset,
                condition=condition or None, **scored.handle.identity,
            )  # fmt: skip
            handle = scored.handle
            key = (handle.source, handle.hook, handle.variant, scored.metric, condition)
            self._of_saes.setdefault(key, []).append(row)
            yield row
            if not scored.metric.endswith("_shuffled"):
                kind = Kind(scored.metric, scored.unit, subset, scored.by)
                self._differences.add(kind, Sample(handle, values))
            why = Counter(one.reason for one in found if isinstance(one, Missing))
            what = ", ".join(part for part in (scored.metric, condition) if part)
            yield self._count("unscored", sum(why.values()), n_features, what, handle)
            for reason, count in sorted(why.items()):
                yield self._count("unscored", count, n_features, f"{what}: {reason}", handle)

    def _count(self, metric: str, count: int, n: int, condition: str | None, handle: SAEHandle) -> EvalResult:
        return EvalResult(
            metric=metric, value=float(count), unit="features", n=n, reason=A_COUNT, dataset=self.dataset,
            condition=condition, **handle.identity,
        )  # fmt: skip

    def _document(self, tried: Tried, scored: Sequence[Scored]) -> Document:
        return {
            **tried.handle.identity,
            "n_fragments": tried.n_fragments,
            "n_alive": int((tried.n_active > 0).sum()),
            "n_chosen": len(tried.chosen),
            "skipped": [
                latent for latent in tried.chosen if latent not in {one.latent for one in tried.splits}
            ],
            "features": [
                {
                    "latent": split.latent,
                    "active_fragments": split.n_active,
                    "scores": [_scores(one, split.latent) for one in scored],
                    "contexts": [self._context(record) for record in split.train[:CONTEXTS]],
                }
                for split in tried.splits
            ],
        }

    def _context(self, record: Record) -> Document:
        peak = int(record.activations.argmax())
        return {"activation": float(record.activations[peak]), **self.detokenizer.around(record.ids, peak)}


def _scores(scored: Scored, latent: int) -> Document:
    found: Mapping[str, Any] = scored.scores[latent]
    return {
        "metric": scored.metric,
        "by": scored.by,
        "explanation": scored.explanations.get(latent),
        "scores": {subset: None if isinstance(s, Missing) else s for subset, s in found.items()},
        "unscored": {subset: s.reason for subset, s in found.items() if isinstance(s, Missing)},
    }


def _columns(tried: Tried, scored: Sequence[Scored]) -> dict[str, np.ndarray]:
    """Scores by latent, empty where there is none, and in how many fragments each is active."""
    d_sae = tried.handle.d_sae
    active = tried.n_active if len(tried.n_active) else np.zeros(d_sae)
    columns: dict[str, np.ndarray] = {"active_fragments": active.astype(np.float32)}
    for one in scored:
        for latent, scores in one.scores.items():
            for subset, score in scores.items():
                name = f"{one.metric}.{subset}" if subset else one.metric
                column = columns.setdefault(name, np.full(d_sae, np.nan, np.float32))
                if not isinstance(score, Missing):
                    column[latent] = score
    return columns


def _text(sae: Document) -> str:
    """The first features of an SAE, which are a random sample of it, as in the paper's Table 1."""
    lines = [
        f"Features of {name_of_sae(sae)}: {sae['n_chosen']} of {sae['n_alive']} alive, "
        f"{len(sae['skipped'])} skipped, {sae['n_fragments']} fragments",
        "",
    ]
    for feature in sae["features"][:FEATURES_IN_TEXT]:
        context = feature["contexts"][0]
        lines.append(f"- {feature['latent']}: {context['activation']:.2f} at `{marked(context)}`")
        for one in feature["scores"]:
            if not one["metric"].endswith("_shuffled"):
                first = next(iter(one["scores"]))
                value = one["scores"][first]
                score = one["unscored"][first] if value is None else f"{value:.2f}"
                lines.append(f"  - {one['metric']} {score}: {one['explanation'] or 'no explanation'}")
    return "\n".join([*lines, ""])
