"""SAEs that do not fit into memory together are trained in groups, each in a pass of its own over the same data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_faithful.memory import device_memory, training_bytes, weights_of
from sae_faithful.progress import size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful.config import ExperimentConfig
    from sae_faithful.language_model import LanguageModel
    from sae_faithful.plan import PlannedSAE

RESERVE = 0.1
"""Share of the memory that is left alone: allocators do not use all of it."""
PROCESS = 1_000_000_000
"""Bytes that Python, PyTorch and the libraries take of a machine's memory. A fixed number, so that a run that is
repeated has the same groups."""


@dataclass(frozen=True)
class Groups:
    """How the SAEs of one source are trained."""

    groups: Sequence[Sequence[PlannedSAE]]
    """Each trained in one pass of the model, in this order."""
    asked: int | None
    """`saes_at_once`, if it was given."""
    needed: int
    """Bytes for all SAEs at once, beside the model and what the process takes."""
    largest: int
    """Bytes for the largest of the groups."""
    free: int
    """Bytes there are for them."""

    @property
    def lines(self) -> list[str]:
        """What a reader of the plan has to know; nothing where all SAEs are trained together and fit."""
        lines: list[str] = []
        n = sum(map(len, self.groups))
        of_memory = f"({size(self.needed)} of {size(self.free)})"
        if len(self.groups) > 1:
            sizes = [str(len(group)) for group in self.groups]
            why = (
                f"{n} SAEs, {self.asked} at once"
                if self.asked is not None
                else f"{n} SAEs do not fit beside the model {of_memory}"
            )
            lines.append(
                f"{why}: {len(sizes)} groups of {', '.join(sizes[:-1])} and {sizes[-1]} over identical data, "
                f"the model runs {times(len(sizes))}"
            )
        if self.largest > self.free:
            most = max(map(len, self.groups))
            lines.append(
                f"{'one SAE' if most == 1 else f'{most} SAEs'} in training may not fit beside the model "
                f"({size(self.largest)} of {size(self.free)})"
            )
        return lines


def groups_of(saes: Sequence[PlannedSAE], config: ExperimentConfig, model: LanguageModel) -> Groups:
    """As few groups as fit, each as large as fits, in the plan's order.

    What fits depends on the config and the machine alone: not on what else runs, or what was done before. When the
    first groups are done, what is left gives the groups that it was in: their checkpoints are found again.
    """
    free = _free(config, model)
    groups: list[list[PlannedSAE]] = []
    for sae in saes:
        larger = [*groups[-1], sae] if groups else []
        fits = (
            len(larger) <= config.saes_at_once
            if config.saes_at_once is not None
            else training_bytes(larger, config) <= free
        )
        if groups and fits:
            groups[-1] = larger
        else:
            groups.append([sae])
    return Groups(
        groups,
        config.saes_at_once,
        needed=training_bytes(saes, config),
        largest=max((training_bytes(group, config) for group in groups), default=0),
        free=max(free, 0),
    )


def times(n: int) -> str:
    """`once`, `twice`, `3 times`."""
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


def _free(config: ExperimentConfig, model: LanguageModel) -> int:
    """Bytes for SAEs in training on their device."""
    import torch

    room = (1 - RESERVE) * device_memory(str(config.device))
    if torch.device(config.device).type == "cpu":
        room -= PROCESS
    if torch.device(config.llm_device or config.device) == torch.device(config.device):
        room -= weights_of(model)
    return int(room)
