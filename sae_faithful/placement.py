"""Where the units of a run are done: in this process, or wherever another `Placement` puts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from sae_faithful.timings import kept

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from sae_faithful.units import Experiment, Unit

    Rounds = Generator[Sequence[Unit]]
    """Units of one run: those of a round may be done in any order that their `after` allows; the code between two
    rounds is the driver's own work, and finds the outcome of all rounds before."""


class Placement(Protocol):
    """Gets the units of runs done. What they leave behind is the same wherever and in whatever order they are done."""

    apart: bool
    """Whether units are done at the same time, so that it pays to have more and smaller ones."""

    def do(self, runs: Sequence[tuple[Experiment, Rounds]]) -> None:
        """Do every round of every run.

        Raises:
            UsageError, RunError: what the first unit that fails raises.
        """
        ...

    def facts(self) -> Mapping[str, Any]:
        """What the manifest should say of the machines in place of what is so in this process."""
        ...


class Here:
    """In this process, one after the other, as they come."""

    apart = False

    def do(self, runs: Sequence[tuple[Experiment, Rounds]]) -> None:
        for experiment, rounds in runs:
            with kept(experiment.timings):
                for units in rounds:
                    for unit in units:
                        unit.do(experiment)
            # The next run's model has its memory to itself.
            experiment.model.unload()

    def facts(self) -> Mapping[str, Any]:
        return {}
