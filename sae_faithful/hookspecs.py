"""The whole extension surface: one function a hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from sae_faithful.interfaces import Baseline, Evaluator, Source

hookspec = HookspecMarker("sae_faithful")
hookimpl = HookimplMarker("sae_faithful")


@hookspec
def register_sources(register: Callable[[str, type[Source]], None]) -> None:
    """Offer where tokens come from: call `register(name, cls)` for each source."""


@hookspec
def register_evaluators(register: Callable[[str, type[Evaluator]], None]) -> None:
    """Offer what is measured: call `register(name, cls)` for each evaluator."""


@hookspec
def register_architectures(register: Callable[[str, Callable[[], tuple[Any, Any]], str], None]) -> None:
    """Offer SAE architectures: `register(name, load, summary)`; `load()` returns (TrainingSAE, its config class)."""


@hookspec
def register_baselines(register: Callable[[str, type[Baseline]], None]) -> None:
    """Offer directions that are fitted and not trained: call `register(name, cls)` for each baseline."""


@hookspec
def publish(run_folder: Path) -> None:
    """Observe a finished run: everything in `run_folder` is final when this is called."""
