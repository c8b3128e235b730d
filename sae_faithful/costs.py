"""Seconds of a step, from what it does and how fast this machine is at it; None where that is not known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_faithful.monitors import SHARE_OF_TRAINING
from sae_faithful.steps import estimates_norm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sae_faithful.config import ExperimentConfig
    from sae_faithful.interfaces import Work
    from sae_faithful.measured_rates import Rates
    from sae_faithful.plan import PlannedSAE


def training(
    groups: Sequence[Sequence[PlannedSAE]], config: ExperimentConfig, *, monitors: bool
) -> Callable[[Rates], float | None]:
    """Reading activations once for each group, those that only estimate a norm too, and a step of each SAE."""
    saes = [sae for group in groups for sae in group]
    norm = any(estimates_norm(sae) for sae in saes)
    extra = config.n_batches_for_norm_estimate * config.train_batch_size_tokens if norm else 0

    def cost(rates: Rates) -> float | None:
        if rates.forward is None or not rates.train:
            return None
        steps = config.training_tokens * sum(rates.train[sae.hook, sae.variant] for sae in saes)
        seconds = rates.forward * (config.training_tokens + extra) * len(groups) + steps
        return seconds * (1 + SHARE_OF_TRAINING) if monitors else seconds

    return cost


def of_model(rates: Rates, forward: float, logits: float) -> float | None:
    """So many tokens up to the last hook, and so many of whole forwards."""
    if rates.forward is None or rates.logits is None:
        return None
    return rates.forward * forward + rates.logits * logits


def encoding(rates: Rates, encoded: Mapping[tuple[str, str], float]) -> float | None:
    """So many tokens encoded by SAEs, by hook and variant."""
    if not rates.encode:
        return None
    # Baselines are not measured: as the SAEs are, on average.
    usual = sum(rates.encode.values()) / len(rates.encode)
    return sum(rates.encode.get(place, usual) * tokens for place, tokens in encoded.items())


def of_work(rates: Rates, work: Work) -> float | None:
    """What a plugin said it does, but for what it shares with others."""
    forwards = of_model(rates, work.forward_tokens, work.logit_tokens)
    if forwards is None:
        return None
    tried = sum(rates.trials.get(id(one), 0.0) * one.times for one in work.trials)
    return forwards + tried + work.seconds


def together(*parts: float | None) -> float | None:
    """The sum, where all are known."""
    return None if any(part is None for part in parts) else sum(part for part in parts if part is not None)
