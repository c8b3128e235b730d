"""Evaluator `shared_features`: which features reappear when only the seed, or only the training text, changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sae_faithful import Artifact, EvalResult, FeatureTable, Work, derive_seed, hookimpl, own_texts
from sae_faithful.metrics.firing import Exceedances
from sae_faithful.metrics.intervals import mean_interval
from sae_faithful.metrics.matching import Weights
from sae_faithful_plugins.shared_features.cosines import cosine_counts
from sae_faithful_plugins.shared_features.pairs import Comparison, Dictionary, matching_trial
from sae_faithful_plugins.shared_features.rows import (
    HEADLINE,
    cross_stability,
    matched_statistics,
    reading,
    rows_of,
    stability,
    top1_statistics,
)
from sae_faithful_plugins.shared_features.sizes import mmcs_rows, next_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sae_faithful import ActivationBatch, EvalContext, SAEHandle, TokenSet

TOO_FEW_SEEDS = "fewer than two SAE seeds in common: SAEs of one seed began with the same weights"


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("shared_features", SharedFeatures)


@dataclass
class SharedFeatures:
    """Shared Feature Ratio: the share of features that SAEs of different seeds have in common (Cho et al. 2025)."""

    monitor_budget: ClassVar[dict[str, Any]] = {
        "thresholds": [HEADLINE],
        "null_draws": 0,
        "encoder": False,
        "top1": False,
        "cross_source": False,
    }
    """Options of the small version inside training: one matching a pair of seeds."""

    thresholds: list[float] = field(default_factory=lambda: [0.5, 0.6, HEADLINE, 0.8, 0.9])
    """A pair of directions is shared if its cosine is above this."""
    null_draws: int = 5
    """How many pairs of random dictionaries, with the SAEs' own covariance, make each null; 0: no nulls."""
    encoder: bool = True
    """Whether encoder directions are matched too, apart from the decoder's."""
    top1: bool = True
    """Whether nearest neighbours (`top1`, `mmcs`, `mmcs_larger`) are measured too, both ways, not one to one.
    """
    cross_source: bool = True
    """Whether SAEs of different sources are matched too."""

    def __post_init__(self) -> None:
        if not self.thresholds:
            raise ValueError("thresholds: at least one is needed")
        for threshold in self.thresholds:
            if not -1 <= threshold < 1:
                raise ValueError(f"thresholds: {threshold} is not a cosine in [-1, 1)")
            if self.thresholds.count(threshold) > 1:
                raise ValueError(f"thresholds: {threshold} is given twice")
        if self.null_draws < 0 or self.null_draws == 1:
            raise ValueError(f"null_draws {self.null_draws}: an interval needs at least 2 (0 for no nulls)")

    def work(self, context: EvalContext) -> Work:
        """Each SAE on its own text; and matchings of seeds and nulls, as fast as one of random directions."""
        places: dict[tuple[str, str], dict[str, list[SAEHandle]]] = {}
        for handle in context.handles:
            places.setdefault((handle.hook, handle.variant), {}).setdefault(handle.source, []).append(handle)
        matchings: dict[tuple[int, int], int] = {}
        for sources in places.values():
            shape = (next(iter(sources.values()))[0].sae.cfg.d_in, next(iter(sources.values()))[0].d_sae)
            seeds = [len(members) for members in sources.values()]
            kinds = 2 if self.encoder else 1
            pairs = sum(kinds * (n * (n - 1) // 2 + self.null_draws) for n in seeds if n > 1)
            if self.cross_source:
                pairs += sum(
                    min(a, b) * (min(a, b) - 1) + self.null_draws
                    for a, b in combinations(seeds, 2)
                    if min(a, b) > 1
                )
            matchings[shape] = matchings.get(shape, 0) + pairs
        trials = [matching_trial(*shape, n) for shape, n in matchings.items() if n]
        return Work(passes=own_texts(context), trials=trials)

    def observers(self, context: EvalContext) -> list[OwnFirings]:
        """Each SAE's firings on its own held-out text: which latents are alive, and how often they fire."""
        return [OwnFirings(handle, context.held_out[handle.source]) for handle in context.handles]

    def evaluate(
        self, context: EvalContext, observers: Sequence[OwnFirings]
    ) -> Iterator[EvalResult | FeatureTable | Artifact]:
        """Pairs of seeds of each source, then of two sources: rows, means, nulls; each latent's stability."""
        groups: dict[tuple[str, str], dict[str, list[OwnFirings]]] = {}
        for observer in observers:
            handle = observer.handle
            sources = groups.setdefault((handle.hook, handle.variant), {})
            sources.setdefault(handle.source, []).append(observer)
        sentences: list[str] = []
        matched: dict[tuple[str, str, str], Comparison] = {}
        for (hook, variant), sources in groups.items():
            for source, members in sources.items():
                place = {"source": source, "hook": hook, "variant": variant}
                yield from self._within(context, place, members, sentences, matched)
            for source, other in combinations(sources, 2) if self.cross_source else ():
                if _fitted_once(sources[source]) or _fitted_once(sources[other]):
                    continue
                place = {"source": source, "hook": hook, "variant": variant}
                yield from self._across(context, place, sources[source], sources[other], sentences)
        if self.top1:
            yield from self._in_larger(context, groups)
        if sentences:
            yield Artifact(name="reading", kind="text", content="\n\n".join(sentences))
        if matched:
            yield Artifact(
                name="matched_cosines", kind="json", content=lambda: cosine_counts(matched, self.thresholds)
            )

    def _within(
        self,
        context: EvalContext,
        place: dict[str, Any],
        members: Sequence[OwnFirings],
        sentences: list[str],
        matched: dict[tuple[str, str, str], Comparison],
    ) -> Iterator[EvalResult | FeatureTable]:
        """Every pair of seeds of one source."""
        where = "/".join(place.values())
        yield from _alive_rows(members, place)
        if _fitted_once(members):
            return
        if len(members) < 2:
            reason = f"{where} has one seed; sharing needs at least two"
            yield _not_measured("sfr", reason, place)
            sentences.append(f"{where}: not measured, one seed.")
            return
        pairs = list(combinations([member.decoder() for member in members], 2))
        decoder = self._compare(context, pairs, *place.values(), top1=self.top1)
        matched[place["source"], place["hook"], place["variant"]] = decoder
        rows = list(rows_of(decoder, matched_statistics(self.thresholds), place))
        yield from rows
        sentences += reading(where, "alive SFR", "sfr", rows, len(members))
        if self.top1:
            yield from rows_of(decoder, top1_statistics(self.thresholds), place)
        if self.encoder:
            pairs = list(combinations([member.encoder() for member in members], 2))
            encoder = self._compare(context, pairs, *place.values(), "encoder")
            yield from rows_of(encoder, matched_statistics(self.thresholds, "encoder_"), place)
        for member in members:
            yield stability(decoder, member.handle)

    def _across(
        self,
        context: EvalContext,
        place: dict[str, Any],
        ours: Sequence[OwnFirings],
        theirs: Sequence[OwnFirings],
        sentences: list[str],
    ) -> Iterator[EvalResult | FeatureTable]:
        """SAEs of two sources, every pair of different seeds that both sources have.

        SAEs of one seed begin with the same weights, whatever they are trained on: what they share says as much
        about those as about the texts. Different seeds make it the same comparison as within a source.
        """
        source, other = place["source"], theirs[0].handle.source
        where = f"{source} and {other} at {place['hook']}/{place['variant']}"
        seeds = {member.handle.seed for member in ours} & {member.handle.seed for member in theirs}
        if len(seeds) < 2:
            yield _not_measured("cross_sfr", TOO_FEW_SEEDS, place, f"in SAEs of {other}")
            sentences.append(f"{where}: not measured, {TOO_FEW_SEEDS}.")
            return
        of_seed = [
            {member.handle.seed: member for member in side if member.handle.seed in seeds}
            for side in (ours, theirs)
        ]
        first, second = ({seed: one.decoder() for seed, one in side.items()} for side in of_seed)
        pairs = [(first[i], second[j]) for i, j in permutations(sorted(seeds), 2)]
        cross = self._compare(context, pairs, *place.values(), "cross", other)
        rows = list(
            rows_of(cross, matched_statistics(self.thresholds, "cross_", f"in SAEs of {other}"), place)
        )
        yield from rows
        sentences += reading(where, "alive cross-source SFR", "cross_sfr", rows, len(seeds))
        for side, name in enumerate((other, source)):
            for member in of_seed[side].values():
                yield cross_stability(cross, member.handle, side, name)

    def _in_larger(
        self, context: EvalContext, groups: Mapping[tuple[str, str], Mapping[str, list[OwnFirings]]]
    ) -> Iterator[EvalResult]:
        """Variants of different size; baselines are no sizes of one dictionary."""
        variants = {
            (source, hook, variant): [member.decoder() for member in members]
            for (hook, variant), sources in groups.items()
            for source, members in sources.items()
            if members[0].handle.kind != "baseline"
        }
        for sizes in next_sizes(variants):
            name = ("larger", *sizes.place.values(), sizes.variant)
            rng = np.random.default_rng(derive_seed(context.seed, "shared_features", "null", *name))
            yield from mmcs_rows(sizes, self.null_draws, rng)

    def _compare(
        self,
        context: EvalContext,
        pairs: Sequence[tuple[Dictionary, Dictionary]],
        *name: str,
        top1: bool = False,
    ) -> Comparison:
        """Match them, and as many random ones as asked for, drawn from a stream with that name."""
        rng = np.random.default_rng(derive_seed(context.seed, "shared_features", "null", *name))
        return Comparison.of(pairs, self.null_draws, rng, top1=top1)


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

    def decoder(self) -> Dictionary:
        """The SAE's decoder directions."""
        return Dictionary(self.handle.seed, self.handle.W_dec.float(), Weights(self.counts.rates))

    def encoder(self) -> Dictionary:
        """The SAE's encoder directions."""
        return Dictionary(self.handle.seed, self.handle.W_enc.float(), Weights(self.counts.rates))


def _fitted_once(members: Sequence[OwnFirings]) -> bool:
    """Whether they are one fit of a baseline, of which no other seed can be missing."""
    return len(members) == 1 and members[0].handle.kind == "baseline"


def _not_measured(
    metric: str, reason: str, place: Mapping[str, Any], condition: str | None = None
) -> EvalResult:
    return EvalResult(
        metric=metric, value=None, unit="share of latents", reason=reason, condition=condition, **place
    )  # fmt: skip


def _alive_rows(members: Sequence[OwnFirings], place: Mapping[str, Any]) -> Iterator[EvalResult]:
    """How many latents are alive, and on how many tokens that was found out."""
    shares: list[float] = []
    for member in members:
        shares.append(float((member.counts.rates > 0).mean()))
        yield EvalResult(
            metric="alive", value=shares[-1], unit="share of latents", n=member.counts.n_tokens,
            reason="whether a latent has fired on these tokens is no estimate", seed=member.handle.seed, **place,
        )  # fmt: skip
    low, high, reason = mean_interval(shares)
    yield EvalResult(
        metric="alive", value=float(np.mean(shares)), unit="share of latents", n=len(shares), ci_low=low,
        ci_high=high, reason=reason, headline=True, **place,
    )  # fmt: skip
