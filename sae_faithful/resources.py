"""What the workers on a cluster are given."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from sae_faithful.interfaces import UsageError


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What workers on a cluster are given: the config's `ray`. No part of any hash: results do not depend on it."""

    workers: int | None = None
    """How many processes; default: as many as the cluster has room for."""
    cpus_per_worker: float | None = None
    """Cores that Ray reserves for each; default: `threads`, or 1."""
    gpus_per_worker: float | None = None
    """GPUs that Ray reserves for each, parts of one allowed; default: 1 where `device` is CUDA, else 0."""
    max_retries: int = 3
    """A unit whose worker dies is given to another so many times; a worker that cannot start is replaced as often."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"ray.workers {self.workers} is not positive")
        for name in ("cpus_per_worker", "gpus_per_worker", "max_retries"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"ray.{name} {value} is not 0 or more")

    def of(self, threads: int | None, device: str) -> Resources:
        """With the defaults filled in."""
        cuda = device.partition(":")[0] == "cuda"
        cpus = self.cpus_per_worker
        gpus = self.gpus_per_worker
        return dataclasses.replace(
            self,
            cpus_per_worker=float(threads or 1) if cpus is None else cpus,
            gpus_per_worker=float(cuda) if gpus is None else gpus,
        )
