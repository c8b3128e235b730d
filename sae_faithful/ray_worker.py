"""One worker on a cluster: a process with one model loaded, that does units of runs as it would do them alone.

Imports nothing heavy before `begin` has set the environment; knows nothing of Ray.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import socket
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sae_faithful.units import Experiment, Unit

TOKEN_FILE = "token"
BEGUN = "begun"
"""Key of the line in a worker's log that says which unit it begins."""
COMPARED = ("sae-faithful", "sae-lens", "transformer-lens", "torch", "transformers", "numpy")
"""Packages whose versions can change results: workers must have the driver's."""


@dataclass(frozen=True)
class Job:
    """A run, as the driver describes it."""

    config: str
    """The config as JSON: what its classes need may be imported only when the environment is set."""
    root: Path
    threads: int
    steps: str
    """Hash of all steps as the driver planned them."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a worker must know to work as the driver would."""

    jobs: Sequence[Job]
    shared: Path
    """A folder that driver and workers share: the token, and a log for each worker."""
    token: str
    folder: Path
    """The driver's working directory: paths in a config are relative to it."""
    environment: Mapping[str, str]
    level: int
    """What of its log the driver wants."""
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Hello:
    """Who a worker is."""

    host: str
    process: int
    gpu: str | None


@dataclass(frozen=True, kw_only=True)
class Done:
    """What came of a unit."""

    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    """By finished step."""
    peak_memory: int | None = None
    first: Sequence[Unit] = ()
    """What has to be done before it: then it is not done."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An error, in a form that every process can read."""

    kind: str
    """`UsageError`, `RunError`, or another's name."""
    message: str
    trace: str
    host: str


class Worker:
    """Does one unit at a time. What it returns is plain: errors too, lest Ray wrap them."""

    def __init__(self, name: str, setup: Setup) -> None:
        self.name = name
        self.setup = setup
        self._log_file = setup.shared / f"{name}.log"
        self._experiment: tuple[int, Experiment, contextlib.ExitStack] | None = None

    def begin(self) -> Hello | Failed:
        """Be as the driver: environment, working directory, versions; and see the same files."""
        try:
            return self._begin()
        except Exception as error:
            return self._failed(error)

    def ping(self) -> None:
        """Answer, as only a living worker does."""

    def do(self, job: int, unit: Unit) -> Done | Failed:
        """Do one unit of one run."""
        try:
            # Seen by the driver even if this process dies in the next moment.
            _append(self._log_file, {BEGUN: unit.name})
            return self._do(job, unit)
        except Exception as error:
            return self._failed(error)

    def _begin(self) -> Hello:
        setup, host = self.setup, socket.gethostname()
        os.environ.update(setup.environment)
        try:
            os.chdir(setup.folder)
            seen = (setup.shared / TOKEN_FILE).read_text(encoding="utf-8")
        except OSError:
            seen = ""
        from sae_faithful.interfaces import UsageError

        if seen != setup.token:
            raise UsageError(
                f"the worker on {host} does not see {setup.shared.parent}: run folder, cache and working directory "
                "must be on a file system that all machines of the cluster share"
            )
        self._log_to(self._log_file)
        from importlib import metadata

        for package, version in setup.versions.items():
            there = metadata.version(package)
            if there != version:
                raise UsageError(f"the worker on {host} has {package} {there}, the driver {version}")
        # What is loaded once is no part of the first unit.
        self._experiment_of(0)
        import torch

        # What was imported stays, a million objects: looking through them after each unit would take half a second.
        gc.collect()
        gc.freeze()
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        return Hello(host=host, process=os.getpid(), gpu=gpu)

    def _do(self, job: int, unit: Unit) -> Done:
        from sae_faithful.progress import libraries_as_well
        from sae_faithful.timings import Timings, kept, peak_memory
        from sae_faithful.units import MakePiece, MakeText, close_pieces
        from sae_faithful.wandb_run import one_experiment

        experiment = self._experiment_of(job)
        if not isinstance(unit, MakePiece | MakeText):
            # Another worker may have made the text of the pieces that were drawn here.
            close_pieces(experiment)
        timings = Timings(None)
        with libraries_as_well(), one_experiment(), kept(timings):
            first = unit.do(experiment, spread=True)
        _free()
        return Done(seconds=timings.seconds, peak_memory=peak_memory(), first=tuple(first))

    def _experiment_of(self, job: int) -> Experiment:
        """That run; the model of the one before goes, unless it is the same."""
        if self._experiment is not None and self._experiment[0] == job:
            return self._experiment[1]
        from sae_faithful.architectures import register_architectures
        from sae_faithful.config import ExperimentConfig
        from sae_faithful.interfaces import RunError
        from sae_faithful.registry import load_plugins
        from sae_faithful.units import Experiment, close_pieces, hash_of_steps

        before = None
        if self._experiment is not None:
            _, before, lock = self._experiment
            close_pieces(before)
            lock.close()
            self._experiment = None
        wanted = self.setup.jobs[job]
        plugins = load_plugins()
        register_architectures(plugins)
        experiment = Experiment.planned(
            ExperimentConfig.from_dict(json.loads(wanted.config)), wanted.root, plugins
        )
        if hash_of_steps(experiment) != wanted.steps:
            raise RunError(
                f"the worker on {socket.gethostname()} plans other steps than the driver: the same plugins and the "
                "same model files must be there"
            )
        if before is not None and before.model.loads_as(experiment.model):
            experiment.model = before.model
        elif before is not None:
            before.model.unload()
            del before
            _free()
        experiment.threads = wanted.threads
        experiment.set_threads()
        lock = contextlib.ExitStack()
        lock.enter_context(experiment.folder.joined())
        self._experiment = (job, experiment, lock)
        return experiment

    def _failed(self, error: Exception) -> Failed:
        from sae_faithful.faults import fault
        from sae_faithful.interfaces import RunError, UsageError

        # The driver cannot tell a full disk by an error's class alone.
        line = None if isinstance(error, UsageError | RunError) else fault(error)
        return Failed(
            kind=type(error).__name__ if line is None else RunError.__name__,
            message=str(error) if line is None else line,
            trace=traceback.format_exc(),
            host=socket.gethostname(),
        )

    def _log_to(self, path: Path) -> None:
        """Every line of ours into a file that the driver reads: on the way to it Ray would add to them."""
        handler = _Lines(path)
        logger = logging.getLogger("sae_faithful")
        logger.handlers = [handler]
        logger.setLevel(self.setup.level)
        logger.propagate = False
        logging.getLogger("sae_lens").setLevel(logging.ERROR)


class _Lines(logging.Handler):
    """A JSON object a line: when, how loud, what."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        from sae_faithful.redaction import without_secrets

        # The file stays where the driver is killed.
        message = without_secrets(record.getMessage())
        line = {"time": time.time(), "level": record.levelno, "message": message}
        _append(self.path, line)


def _append(path: Path, line: Mapping[str, Any]) -> None:
    # Opened anew for each: on a shared file system a file is seen by others when it is closed.
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Of what results depend on, in this process."""
    from importlib import metadata

    return {name: metadata.version(name) for name in COMPARED}


def error_of(failed: Failed) -> Exception:
    """The error that the unit raised in the worker, to raise in the driver."""
    from sae_faithful.interfaces import ModelUnreadable, RunError, UsageError

    for kind in (UsageError, RunError, ModelUnreadable):
        if failed.kind == kind.__name__:
            return kind(failed.message)
    error = RuntimeError(f"{failed.kind}: {failed.message}")
    error.add_note(f"in a worker on {failed.host}:\n{failed.trace}")
    return error


def _free() -> None:
    """What a unit left behind must not be in the way of the next."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
