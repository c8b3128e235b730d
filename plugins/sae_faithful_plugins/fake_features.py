"""Evaluator `fake_features`: latents that fire on random tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import EvalResult, FeatureTable, TokenSet, derive_seed, hookimpl
from sae_faithful.metrics.firing import Exceedances, fake_ratio, fires_more_than_on_text, fires_often
from sae_faithful.metrics.intervals import mean_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sae_faithful import ActivationBatch, EvalContext, SAEHandle


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("fake_features", FakeFeatures)


@dataclass
class FakeFeatures:
    """Fake Feature Ratio: the share of latents that are active on uniformly random tokens (Cho et al. 2025).

    `ffr` is the paper's (activation above 1.0), `ffr_fire` counts any firing, `ffr_contrast` asks besides that
    the latent fires more often than on real text.
    """

    n_tokens: int = 100_000
    """Random tokens; every row starts with BOS, which does not count."""
    taus: list[float] = field(default_factory=lambda: [0.1])
    """A latent is fake if it is active on more than this share of random tokens."""
    activation: float = 1.0
    """`ffr` counts activations above this (the paper's 1.0)."""
    ratio: float = 2.0
    """`ffr_contrast` asks for more than so many times the latent's rate on its SAE's own held-out text."""

    def __post_init__(self) -> None:
        for tau in self.taus:
            if not 0 <= tau < 1:
                raise ValueError(f"taus: {tau} is not a share in [0, 1)")

    def observers(self, context: EvalContext) -> list[Firings]:
        """For each SAE, its firings on random tokens and on its own held-out text."""
        random = random_tokens(context, self.n_tokens)
        return [
            observer
            for handle in context.handles
            for observer in (
                Firings(handle, random, self.activation),
                Firings(handle, context.held_out[handle.source], self.activation),
            )
        ]

    def evaluate(
        self, context: EvalContext, observers: Sequence[Firings]
    ) -> Iterator[EvalResult | FeatureTable]:
        """The ratios of every SAE, their means over SAEs, and every latent's rates."""
        values: dict[tuple[str, ...], list[float]] = {}
        for random, own in zip(observers[::2], observers[1::2], strict=True):
            handle = random.handle
            for row in self._rows_of_sae(context, random, own):
                yield row
                key = (
                    handle.source,
                    handle.hook,
                    handle.variant,
                    row.metric,
                    row.subset,
                    row.condition or "",
                )
                if row.value is not None:
                    values.setdefault(key, []).append(row.value)
            yield FeatureTable(
                handle=handle,
                columns={
                    "rate_random": random.any.rates.astype(np.float32),
                    "rate_random_above": random.above.rates.astype(np.float32),
                    "rate_own": own.any.rates.astype(np.float32),
                },
            )
        for (source, hook, variant, metric, subset, condition), shares in values.items():
            low, high, reason = mean_interval(shares)
            yield EvalResult(
                metric=metric, value=float(np.mean(shares)), unit="share of latents", n=len(shares),
                ci_low=low, ci_high=high, reason=reason, source=source, hook=hook, variant=variant,
                subset=subset, condition=condition,
            )  # fmt: skip

    def _rows_of_sae(self, context: EvalContext, random: Firings, own: Firings) -> Iterator[EvalResult]:
        handle = random.handle
        alive = own.any.counts.total > 0
        for tau in self.taus:
            for metric, counts, text, condition in (
                ("ffr", random.above, None, fires_often(tau)),
                ("ffr_fire", random.any, None, fires_often(tau)),
                ("ffr_contrast", random.any, own.any, fires_more_than_on_text(tau, self.ratio)),
            ):
                for subset, among in (("all", np.ones_like(alive)), ("alive", alive)):
                    common: dict[str, Any] = {
                        "metric": metric,
                        "unit": "share of latents",
                        "n": counts.n_tokens,
                        "subset": subset,
                        "condition": f"rate>{tau:g}",
                        **handle.identity,
                    }
                    if not among.any():
                        yield EvalResult(value=None, reason="no latent is alive", **common)
                        continue
                    rng = np.random.default_rng(
                        derive_seed(context.seed, "fake_features", *handle.key, metric, tau)
                    )
                    value, (low, high, reason) = fake_ratio(counts, text, condition, among, rng)
                    yield EvalResult(value=value, ci_low=low, ci_high=high, reason=reason, **common)


class Firings:
    """Counts one SAE's activations above zero and above a threshold on one token set."""

    def __init__(self, handle: SAEHandle, tokens: TokenSet, threshold: float) -> None:
        self.hook = handle.hook
        self.tokens = tokens
        self.handle = handle
        self.any = Exceedances(len(tokens), handle.d_sae, 0.0)
        self.above = Exceedances(len(tokens), handle.d_sae, threshold)

    def update(self, batch: ActivationBatch) -> None:
        """Count one batch."""
        latents = batch.latents(self.handle)
        self.any.add(batch.first_row, latents, batch.mask)
        self.above.add(batch.first_row, latents, batch.mask)


def random_tokens(context: EvalContext, n_tokens: int) -> TokenSet:
    """Rows of BOS and uniformly random ordinary tokens: at least `n_tokens` of them, BOS not counted.

    Rows are as long as those the SAEs were trained on.
    """
    context_size = next(iter(context.held_out.values())).context_size
    rng = np.random.default_rng(derive_seed(context.seed, "fake_features", "tokens"))
    n_rows = -(-n_tokens // (context_size - 1))
    return TokenSet.from_rows(context.language_model.random_rows(n_rows, context_size, rng))
