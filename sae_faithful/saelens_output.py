"""What SAELens shows while it trains: its bars follow our rules, and warnings that mislead are left out."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any
from unittest import mock

from sae_faithful.progress import Progress

if TYPE_CHECKING:
    import logging
    from collections.abc import Generator, Iterable


@contextlib.contextmanager
def bars_as_ours(what: str) -> Generator[None]:
    """SAELens's bars of training follow our rules: lines in a log file, nothing when silenced, every step counted.

    Theirs move once in 100 steps, and write into a log file as they do on a terminal.
    """
    from sae_lens.training import activation_scaler, activations_store, multi_sae_trainer, sae_trainer

    def bar(total: int, initial: int = 0, **_: Any) -> Progress:
        return Progress(what, total, "tokens", done=initial)

    def loop(batches: Iterable[Any], **_: Any) -> Generator[Any]:
        batches = list(batches)
        with Progress(f"{what}: estimating the norm", len(batches), "batches") as progress:
            for batch in batches:
                yield batch
                progress.update()

    def moved(trainer: Any, outputs: Any, pbar: Progress, update_interval: int = 100) -> None:
        pbar.update(trainer.n_training_samples - pbar.done)
        # To read a loss waits for the device.
        if pbar.draws and trainer.n_training_steps % update_interval == 0:
            losses = [
                one.loss.item() for one in (outputs.values() if isinstance(outputs, dict) else [outputs])
            ]
            pbar.note(f"loss {sum(losses) / len(losses):.4g}")

    with contextlib.ExitStack() as stack:
        for module, of_module in (
            (sae_trainer, bar), (multi_sae_trainer, bar), (activations_store, bar), (activation_scaler, loop),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(module, "tqdm", of_module))
        for trainer in (sae_trainer.SAETrainer, multi_sae_trainer.MultiSAETrainer):
            stack.enter_context(mock.patch.object(trainer, "_update_pbar", moved))
        yield


@contextlib.contextmanager
def misleading_warnings_silenced() -> Generator[None]:
    """SAELens warns that an overriding dataset or model is not in its config; it is in ours.

    Its store also warns of several epochs by comparing rows with tokens, and of a copy of its own.
    """
    from sae_lens import logger

    def is_other(record: logging.LogRecord) -> bool:
        return "reproducible" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"sae_lens\.training\.activations_store")
            yield
    finally:
        logger.removeFilter(is_other)
