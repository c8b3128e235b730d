"""The connection to a Ray cluster, and what there is in it. The only module that imports Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import logging
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from sae_faithful.interfaces import UsageError

if TYPE_CHECKING:
    from collections.abc import Generator

    from sae_faithful.resources import Resources

LOCAL = "local"
OBJECT_STORE = 80 * 2**20
"""Bytes; next to nothing goes through Ray."""


@contextlib.contextmanager
def connected(address: str, wanted: Resources) -> Generator[tuple[Any, Resources]]:
    """Connect to a cluster, or start one of this machine's cores that ends with the block: the module, what it gives.

    A connection that this process has already is used, and kept.

    Raises:
        UsageError: Ray is not installed, there is no cluster at `address`, or it has no room for a worker.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--ray needs Ray: pip install sae-faithful[ray]")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = importlib.import_module("ray")
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address, wanted)
    try:
        yield ray, _sized(ray, wanted)
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, address: str, wanted: Resources) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == LOCAL:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Ray counts cores but does not bind to them: more workers than cores take turns.
        cpus = max(cores, int((wanted.workers or 1) * (wanted.cpus_per_worker or 1)))
        ray.init(
            address=LOCAL, num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet
        )
        return
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray {address}: Ray's client connection is not supported; run this on a machine of the cluster, with "
            "--ray auto or HOST:PORT"
        )
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"--ray {address}: no cluster can be reached there ({reason}); choices: local, auto, HOST:PORT"
        ) from None


def _sized(ray: Any, wanted: Resources) -> Resources:
    """With as many workers as the cluster has room for, where the config does not say.

    Raises:
        UsageError: not even one fits.
    """
    cpus, gpus = wanted.cpus_per_worker or 0.0, wanted.gpus_per_worker or 0.0
    room, most = 0, Counter[str]()
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        most |= Counter({key: int(has.get(key, 0)) for key in ("CPU", "GPU")})
        fits = [has.get(key, 0.0) // each for key, each in (("CPU", cpus), ("GPU", gpus)) if each]
        room += int(min(fits)) if fits else 1
    if room < 1:
        raise UsageError(
            f"ray: a worker needs {cpus:g} CPUs and {gpus:g} GPUs on one machine (ray.cpus_per_worker, "
            f"ray.gpus_per_worker); the largest here has {most['CPU']} CPUs and {most['GPU']} GPUs"
        )
    return dataclasses.replace(wanted, workers=wanted.workers or room)


def numeric_threads() -> dict[str, str]:
    """As many threads for NumPy's libraries as in this process: like PyTorch's, they can change a last bit.

    Ray would set one a reserved core.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores))}
