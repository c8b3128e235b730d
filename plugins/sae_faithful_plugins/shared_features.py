"""Evaluator `shared_features`: which features reappear when only the seed changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import Artifact, EvalResult, FeatureTable, derive_seed, hookimpl
from sae_faithful.metrics.firing import Exceedances
from sae_faithful.metrics.intervals import Interval, jackknife_interval, mean_interval
from sae_faithful.metrics.matching import SUBSETS, Match, Weights, match_directions, random_directions_like

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sae_faithful import ActivationBatch, EvalContext, SAEHandle, TokenSet

HEADLINE = 0.7
"""The threshold of the papers (Paulo & Belrose 2025)."""


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("shared_features", SharedFeatures)


@dataclass
class SharedFeatures:
    """Shared Feature Ratio: the share of features that SAEs of different seeds have in common (Cho et al. 2025)."""

    thresholds: list[float] = field(default_factory=lambda: [0.5, 0.6, HEADLINE, 0.8, 0.9])
    """A matched pair is shared if its cosine is above this."""
    null_draws: int = 5
    """How many pairs of random dictionaries, with the decoders' own covariance, make the null."""

    def __post_init__(self) -> None:
        for threshold in self.thresholds:
            if not -1 <= threshold < 1:
                raise ValueError(f"thresholds: {threshold} is not a cosine in [-1, 1)")
        if self.null_draws < 2:
            raise ValueError(f"null_draws {self.null_draws}: an interval needs at least 2")

    def observers(self, context: EvalContext) -> list[OwnFirings]:
        """Each SAE's firings on its own held-out text: which latents are alive, and how often they fire."""
        return [OwnFirings(handle, context.held_out[handle.source]) for handle in context.handles]

    def evaluate(
        self, context: EvalContext, observers: Sequence[OwnFirings]
    ) -> Iterator[EvalResult | FeatureTable | Artifact]:
        """Every pair of seeds of a source, hook and variant; means over pairs; the null; each latent's stability."""
        groups: dict[tuple[str, str, str], list[OwnFirings]] = {}
        for observer in observers:
            handle = observer.handle
            groups.setdefault((handle.source, handle.hook, handle.variant), []).append(observer)
        sentences: list[str] = []
        for group, members in groups.items():
            yield from self._rows_of_group(context, group, members, sentences)
        yield Artifact(name="reading", kind="text", content="\n\n".join(sentences))

    def _rows_of_group(
        self,
        context: EvalContext,
        group: tuple[str, str, str],
        members: Sequence[OwnFirings],
        sentences: list[str],
    ) -> Iterator[EvalResult | FeatureTable]:
        place: dict[str, Any] = dict(zip(("source", "hook", "variant"), group, strict=True))
        where = "/".join(group)
        yield from _alive_rows(members, place)
        if len(members) < 2:
            reason = f"{where} has one seed; sharing needs at least two"
            yield EvalResult(metric="sfr", value=None, unit="share of latents", reason=reason, **place)
            sentences.append(f"{where}: not measured, one seed.")
            return
        weights = [Weights(member.counts.rates) for member in members]
        directions = [member.handle.W_dec.float().cpu().numpy() for member in members]
        matches = {
            (i, j): match_directions(directions[i], directions[j])
            for i, j in combinations(range(len(members)), 2)
        }
        null = list(self._null(context, group, directions, weights))
        for subset in SUBSETS:
            for metric, condition, statistic in self._statistics(subset):
                values = {
                    pair: statistic(match, weights[pair[0]], weights[pair[1]])
                    for pair, match in matches.items()
                }
                yield from _pair_rows(metric, condition, subset, values, matches, members, place)
                row = _mean_row(metric, condition, subset, values, len(members), place)
                yield row
                draws = [statistic(*drawn) for drawn in null]
                null_row = _null_row(metric, condition, subset, draws, place)
                yield null_row
                if metric == "sfr" and subset == "alive" and condition == f"cosine>{HEADLINE:g}":
                    sentences.append(_sentence(where, row, null_row))
        yield from _tables(matches, members)

    def _statistics(
        self, subset: str
    ) -> Iterator[tuple[str, str | None, Callable[[Match, Weights, Weights], float]]]:
        for threshold in self.thresholds:
            yield (
                "sfr",
                f"cosine>{threshold:g}",
                lambda match, a, b, threshold=threshold: match.shared_ratio(a, b, threshold, subset),
            )
        yield "mean_matched_cosine", None, lambda match, a, b: match.mean_cosine(a, b, subset)

    def _null(
        self,
        context: EvalContext,
        group: tuple[str, str, str],
        directions: Sequence[np.ndarray],
        weights: Sequence[Weights],
    ) -> Iterator[tuple[Match, Weights, Weights]]:
        """Matches of random dictionaries of the same sizes and covariances, over the pairs of seeds in turn."""
        rng = np.random.default_rng(derive_seed(context.seed, "shared_features", "null", *group))
        pairs = list(combinations(range(len(directions)), 2))
        for draw in range(self.null_draws):
            i, j = pairs[draw % len(pairs)]
            random = (random_directions_like(directions[i], rng), random_directions_like(directions[j], rng))
            yield match_directions(*random), weights[i], weights[j]


class OwnFirings:
    """Counts one SAE's firings on its own held-out text."""

    def __init__(self, handle: SAEHandle, tokens: TokenSet) -> None:
        self.hook = handle.hook
        self.tokens = tokens
        self.handle = handle
        self.counts = Exceedances(len(tokens), handle.d_sae, 0.0)

    def update(self, batch: ActivationBatch) -> None:
        """Count one batch."""
        self.counts.add(batch.first_row, batch.latents(self.handle), batch.mask)


def _alive_rows(members: Sequence[OwnFirings], place: dict[str, Any]) -> Iterator[EvalResult]:
    """How many latents are alive, and on how many tokens that was found out."""
    shares: list[float] = []
    for member in members:
        shares.append(float((member.counts.rates > 0).mean()))
        yield EvalResult(
            metric="alive", value=shares[-1], unit="share of latents", n=member.counts.n_tokens,
            reason="whether a latent has fired on these tokens is no estimate", seed=member.handle.seed, **place,
        )  # fmt: skip
    yield _row("alive", None, "all", float(np.mean(shares)), mean_interval(shares), len(shares), place)


def _pair_rows(
    metric: str, condition: str | None, subset: str, values: dict[tuple[int, int], float],
    matches: dict[tuple[int, int], Match], members: Sequence[OwnFirings], place: dict[str, Any],
) -> Iterator[EvalResult]:  # fmt: skip
    for (i, j), value in values.items():
        reason = "one pair of SAEs; the interval over SAEs is in the source's row"
        if not matches[i, j].certified:
            reason += f"; the matching is not certified: the best total cosine may be {matches[i, j].gap:.2g} larger"
        yield EvalResult(
            metric=metric, value=value, unit=_unit(metric), n=min(members[i].handle.d_sae, members[j].handle.d_sae),
            reason=reason, subset=subset, condition=condition, seed=members[i].handle.seed,
            other_seed=members[j].handle.seed, **place,
        )  # fmt: skip


def _mean_row(
    metric: str,
    condition: str | None,
    subset: str,
    values: dict[tuple[int, int], float],
    n: int,
    place: dict[str, Any],
) -> EvalResult:
    """Mean over pairs, its interval by the jackknife over SAEs."""
    mean = float(np.mean(list(values.values())))
    left_out = [
        float(np.mean(rest)) for i in range(n) if (rest := [v for pair, v in values.items() if i not in pair])
    ]
    return _row(metric, condition, subset, mean, jackknife_interval(mean, left_out), len(values), place)


def _null_row(
    metric: str, condition: str | None, subset: str, draws: Sequence[float], place: dict[str, Any]
) -> EvalResult:
    interval = mean_interval(draws)
    return _row(f"{metric}_null", condition, subset, float(np.mean(draws)), interval, len(draws), place)


def _row(
    metric: str,
    condition: str | None,
    subset: str,
    value: float,
    interval: Interval,
    n: int,
    place: dict[str, Any],
) -> EvalResult:
    return EvalResult(
        metric=metric, value=value, unit=_unit(metric), n=n, ci_low=interval.low, ci_high=interval.high,
        reason=interval.reason, subset=subset, condition=condition, **place,
        headline=condition in (f"cosine>{HEADLINE:g}", None) and subset != "firing_weighted",
    )  # fmt: skip


def _tables(matches: dict[tuple[int, int], Match], members: Sequence[OwnFirings]) -> Iterator[FeatureTable]:
    """Each latent's stability (share of the other seeds in which it reappears) and its mean matched cosine."""
    for index, member in enumerate(members):
        cosines = [
            match.cosine_of(0 if pair[0] == index else 1) for pair, match in matches.items() if index in pair
        ]
        stacked = np.stack(cosines)
        yield FeatureTable(
            handle=member.handle,
            columns={
                "stability": (stacked > HEADLINE).mean(axis=0).astype(np.float32),
                "mean_matched_cosine": stacked.mean(axis=0).astype(np.float32),
            },
        )


def _sentence(where: str, row: EvalResult, null: EvalResult) -> str:
    """Whether the alive SFR stands above its null, with separated intervals."""
    line = f"{where}: alive SFR (cosine > {HEADLINE:g}) {row.value:.3f}"
    if row.ci_low is None or row.ci_high is None or null.ci_high is None:
        return f"{line} against a null of {null.value:.3f}; undecided: {row.reason or null.reason}."
    line += f" [{row.ci_low:.3f}, {row.ci_high:.3f}] against a null of {null.value:.3f}"
    line += f" [{null.ci_low:.3f}, {null.ci_high:.3f}]"
    if row.ci_low > null.ci_high:
        return f"{line}: above it, intervals separated."
    return f"{line}: the intervals overlap, so this budget does not tell sharing from chance."


def _unit(metric: str) -> str:
    return "cosine" if metric.startswith("mean_matched_cosine") else "share of latents"
