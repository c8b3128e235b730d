"""What SAELens logs to W&B, into a run that we opened: nothing of it can end the training."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from sae_faithful.wandb_run import WandbRun


class StandIn:
    """What SAELens finds under the name `wandb` while it trains: the module, but for what needs a run."""

    def __init__(self, run: WandbRun) -> None:
        self.log = run.log
        self._run = run

    def init(self, **_: Any) -> None:
        """The run is open: with the whole config, where SAELens would give its own part of it."""

    def finish(self, exit_code: int = 0) -> None:
        """Close our run."""
        self._run.finish(exit_code)

    def log_artifact(self, artifact: Any, aliases: list[str] | None = None) -> None:
        """An SAE of our run."""
        self._run.attempt(lambda run: run.log_artifact(artifact, aliases=aliases))

    @staticmethod
    def Histogram(values: Any) -> Any:
        """Of norms, say, which numpy refuses where they are all but equal."""
        import numpy as np
        import wandb

        array: Any = np.asarray(values, dtype=np.float64)
        try:
            return wandb.Histogram(array)
        except ValueError:
            middle = float(array.mean())
            counts = np.histogram(array, bins=64, range=(middle - 0.5, middle + 0.5))
            return wandb.Histogram(np_histogram=counts)

    def __getattr__(self, name: str) -> Any:
        import wandb

        return getattr(wandb, name)


@contextlib.contextmanager
def logging_to(run: WandbRun, runner: Any, name_of: Callable[[Any], str]) -> Generator[None]:
    """Let a SAELens runner log into `run`, which is closed when the block ends: as failed, where it fails.

    SAELens evaluates only where it logs: it is told that it does, also where `run` goes nowhere.

    Args:
        run: where to.
        runner: `LanguageModelSAETrainingRunner` or `MultiSAETrainingRunner`.
        name_of: the name of an SAE's artifact: SAELens has one name for all seeds and sources.
    """
    import wandb

    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("sae_lens.") and getattr(module, "wandb", None) is wandb
    ]
    logger = runner.cfg.logger
    runner.cfg.logger = _artifact_logger(logger, run, name_of)
    try:
        with contextlib.ExitStack() as stack:
            for module in modules:
                stack.enter_context(mock.patch.object(module, "wandb", StandIn(run)))
            yield
    except BaseException:
        run.finish(exit_code=1)
        raise
    finally:
        runner.cfg.logger = logger
    run.finish()


@contextlib.contextmanager
def without_histograms(saes: Mapping[str, Any]) -> Generator[None]:
    """Where nobody would see them, SAELens does not compute them."""
    for sae in saes.values():
        sae.log_histograms = dict
    try:
        yield
    finally:
        for sae in saes.values():
            del sae.log_histograms


def _artifact_logger(logger: Any, run: WandbRun, name_of: Callable[[Any], str]) -> Any:
    """`logger`, switched on, whose artifacts have names of their own and cannot fail."""
    from sae_lens.config import LoggingConfig

    class ArtifactLogger(LoggingConfig):
        def log(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            # W&B copies the files of an artifact even where it logs nowhere.
            named = SimpleNamespace(
                sae=SimpleNamespace(get_name=lambda: name_of(trainer.sae)), cfg=trainer.cfg
            )
            run.attempt(lambda _: super(ArtifactLogger, self).log(named, *args, **kwargs))

    return ArtifactLogger(**asdict(replace(logger, log_to_wandb=True)))
