"""How fast this machine is at what a run does most: a few seconds of it, with this model and these sizes."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful.monitors import random_state_kept
from sae_faithful.optimizer import prepare_adam
from sae_faithful.progress import silenced
from sae_faithful.saelens_output import misleading_warnings_silenced
from sae_faithful.training import initialise

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    import torch

    from sae_faithful.config import ExperimentConfig
    from sae_faithful.interfaces import Trial
    from sae_faithful.language_model import LanguageModel
    from sae_faithful.plan import PlannedSAE

LONGEST = 8.0
"""Seconds after which nothing new is begun; what was not reached is scaled from what was, by its size."""
LONG_ENOUGH = 0.4
"""Seconds that a measurement should take: shorter ones measure how busy the machine was just then."""
WHOLE_FORWARD_TOKENS = 1_024
"""As many as the measurements of a run show the whole model at once."""
ENCODED_TOKENS = 2_048


@dataclass
class Rates:
    """Seconds a token; empty or None where it was not measured."""

    forward: float | None = None
    """Of the model up to the last hook."""
    logits: float | None = None
    """Of the whole model, with log-probabilities and their entropy."""
    encode: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    """Of one SAE, by hook and variant: latents, and their count by token and latent."""
    train: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    """Of one SAE, by hook and variant: forward, backward and Adam."""
    trials: dict[int, float] = field(default_factory=dict[int, float])
    """Seconds of each trial that was run, by its `id`."""
    seconds: float = 0.0
    """What the measurement took."""

    def facts(self) -> dict[str, Any]:
        """As plain JSON, tokens a second."""

        def by_name(rates: dict[tuple[str, str], float]) -> dict[str, float]:
            return {f"{hook}/{variant}": round(1 / rate, 1) for (hook, variant), rate in rates.items()}

        return {
            "forward_tokens_per_s": None if self.forward is None else round(1 / self.forward, 1),
            "logit_tokens_per_s": None if self.logits is None else round(1 / self.logits, 1),
            "encode_tokens_per_s": by_name(self.encode),
            "train_tokens_per_s": by_name(self.train),
            "seconds": round(self.seconds, 1),
        }


def measure(
    model: LanguageModel,
    config: ExperimentConfig,
    saes: Sequence[PlannedSAE],
    trials: Sequence[Trial],
    *,
    training: bool,
    logits: bool,
) -> Rates:
    """Do a little of everything that a run will do, on random tokens and random activations.

    The random state is as it was afterwards, and nothing of it is kept but the time it took.

    Args:
        model: with its weights.
        config: batches are as large as it says, or as large as takes `LONG_ENOUGH`.
        saes: of which one of each hook and variant is measured, newly made.
        trials: of evaluators and sources.
        training: whether training is measured, too.
        logits: whether whole forwards are.
    """
    begun = time.monotonic()
    rates = Rates()
    with random_state_kept(), silenced(), misleading_warnings_silenced(), _collected():
        _ = model.model  # loaded before a clock runs
        begun = time.monotonic()
        rng = np.random.default_rng(0)
        rates.forward = (
            _growing(
                lambda rows: model.activations(_rows(model, rows, config, rng), list(config.hook_names)),
                config.store_batch_size_prompts,
                model.device,
            )
            / config.context_size
        )
        if logits:
            most = max(1, WHOLE_FORWARD_TOKENS // config.context_size)
            rates.logits = (
                _growing(lambda rows: _log_probs(model, _rows(model, rows, config, rng)), most, model.device)
                / config.context_size
            )
        sizes = {(sae.hook, sae.variant): sae for sae in saes}
        for key, sae in sorted(sizes.items(), key=lambda item: _parameters(item[1])):
            done = time.monotonic() - begun > LONGEST
            if done and rates.encode:
                _scale(rates, key, sae, sizes)
                continue
            _measure_sae(rates, key, sae, config, training=training)
        for trial in trials:
            if time.monotonic() - begun > LONGEST:
                break
            rates.trials[id(trial)] = _seconds(trial.run, model.device)
    rates.seconds = time.monotonic() - begun
    return rates


def _measure_sae(
    rates: Rates, key: tuple[str, str], sae: PlannedSAE, config: ExperimentConfig, *, training: bool
) -> None:
    import torch

    (module,) = initialise([sae]).values()
    module.to(config.device)
    x = torch.randn(
        max(ENCODED_TOKENS, config.train_batch_size_tokens), sae.config.d_in, device=config.device
    )
    x = x.to(module.dtype)

    def encode(n: int) -> None:
        with torch.no_grad():
            latents = module.encode(x[:n])
            latents = latents.to_dense() if latents.is_sparse else latents
            (latents > 0).sum(dim=0)

    rates.encode[key] = _growing(encode, ENCODED_TOKENS, config.device, first=64)
    if training:
        rates.train[key] = _training_rate(module, x[: config.train_batch_size_tokens], config)


def _training_rate(module: Any, x: torch.Tensor, config: ExperimentConfig) -> float:
    """Seconds a token of a whole step; where steps are long, by what a small batch costs and each token more."""
    from sae_lens.training.sae_trainer import SAETrainer

    # SAELens's own step, made for coordinators like this one.
    trainer: Any = SAETrainer(cfg=config.to_sae_trainer_config(), sae=module, data_provider=iter(()))
    prepare_adam(trainer.optimizer, fused=config.fused_adam)

    def step(n: int) -> None:
        trainer.step(x[:n])

    whole, part = len(x), max(1, len(x) // 8)
    step(part)  # makes Adam's averages
    of_part = _seconds(lambda: step(part), config.device)
    if of_part > LONG_ENOUGH:
        larger = min(whole, 2 * part)
        each = max(0.0, _seconds(lambda: step(larger), config.device) - of_part) / max(1, larger - part)
        return (of_part + each * (whole - part)) / whole
    return min(_seconds(lambda: step(whole), config.device) for _ in range(2)) / whole


def _log_probs(model: LanguageModel, tokens: torch.Tensor) -> None:
    import torch

    log_p = torch.log_softmax(model.logits(tokens).float(), dim=-1)
    (log_p.exp() * log_p).sum(dim=-1)


def _rows(model: LanguageModel, n: int, config: ExperimentConfig, rng: np.random.Generator) -> torch.Tensor:
    import torch

    return torch.from_numpy(rng.integers(0, model.vocab_size, size=(n, config.context_size)))


def _growing(run: Callable[[int], object], most: int, device: str, first: int = 1) -> float:
    """Seconds one part of `run(n)` takes, at the largest n that was tried: up to `most`, or what is long enough."""
    n = min(first, most)
    run(n)  # the first call pays for what is set up once
    seconds = _seconds(lambda: run(n), device)
    while n < most and seconds < LONG_ENOUGH:
        n = min(most, 4 * n if seconds < LONG_ENOUGH / 4 else 2 * n)
        seconds = _seconds(lambda n=n: run(n), device)
    return seconds / n


def _seconds(run: Callable[[], object], device: str) -> float:
    import torch

    on_gpu = torch.device(device).type == "cuda"
    started = time.perf_counter()
    run()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _parameters(sae: PlannedSAE) -> int:
    return int(sae.config.d_in) * int(sae.config.d_sae)


def _scale(
    rates: Rates, key: tuple[str, str], sae: PlannedSAE, sizes: dict[tuple[str, str], PlannedSAE]
) -> None:
    """From the largest SAE that there was time for."""
    known = max(rates.encode, key=lambda one: _parameters(sizes[one]))
    share = _parameters(sae) / _parameters(sizes[known])
    for table in (rates.encode, rates.train):
        if known in table:
            table[key] = share * table[known]


@contextlib.contextmanager
def _collected() -> Generator[None]:
    """What was made to be measured is given back at once: memory that the run will need."""
    import gc

    import torch

    try:
        yield
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
