"""One run in W&B, which never ends or delays the work that it reports on."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import secrets
import threading
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_faithful.redaction import hidden, without_secrets
from sae_faithful.run_folder import data_path, write_json
from sae_faithful.stored import blamed_on, read_json
from sae_faithful.wandb_names import artifact_name

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

log = logging.getLogger(__name__)

INIT_SECONDS = 15.0
"""W&B's host must have answered by then, or the run goes on offline; `$WANDB_INIT_TIMEOUT` is preferred."""
FINISH_SECONDS = 600.0
"""What is not uploaded so long after a run's end stays on disk; `$WANDB_FINISH_TIMEOUT` is preferred."""
LINK_SECONDS = 60.0
"""A link between artifacts, and a card that it needs uploaded, may take so long."""

GROUP_FILE = "wandb.json"

_OFFLINE: ContextVar[list[str] | None] = ContextVar("offline", default=None)
"""In an experiment: why its runs go offline, where they do."""


class WandbRun:
    """A run of W&B whose failures are one warning; `WandbRun(None)` logs nowhere."""

    def __init__(self, run: Any, name: str = "", folder: Path | None = None) -> None:
        self.run = run
        """`wandb.Run`, or None."""
        self.name = name
        self.folder = folder
        """The experiment's."""
        self._warned = False
        self._finished = run is None

    @property
    def online(self) -> bool:
        """Whether what is logged goes to a host."""
        return self.run is not None and not self.run.offline

    def attempt(self, call: Callable[[Any], Any]) -> Any:
        """`call(run)`, or None where that fails: said once for the run, since much of what follows will too."""
        if self.run is None:
            return None
        try:
            return call(self.run)
        except Exception as error:  # W&B's own errors, and whatever its network, disk and service raise
            if not self._warned:
                self._warned = True
                log.warning("W&B run %s: %s; going on without", self.name, first_line(error))
            return None

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, tables and figures, at a step of training."""
        self.attempt(lambda run: run.log(dict(values), step=step))

    def artifact_name(self, *parts: str) -> str:
        """An artifact's name, which begins with the experiment's group: projects hold many experiments."""
        return artifact_name(*([] if self.folder is None else [group_of(self.folder)]), *parts)

    def log_card(self, name: str) -> None:
        """Make the card of one of the experiment's texts an input of this run, where it has one."""
        card = None if self.folder is None else self.folder / data_path(name) / "card.json"
        if card is not None and card.exists():
            content = read_json(card)
            self.use_files(self.artifact_name("data", name), "dataset", [card], content)

    def log_files(self, name: str, kind: str, files: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """Log those of `files` that exist as one artifact."""
        self.attempt(lambda run: run.log_artifact(_artifact(name, kind, files, metadata)))

    def use_files(self, name: str, kind: str, files: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """The same for an input of this run. Offline W&B knows no inputs: there it is logged."""
        if self.online:
            self.attempt(
                lambda run: _in_time(lambda: run.use_artifact(_artifact(name, kind, files, metadata)))
            )
        else:
            self.log_files(name, kind, files, metadata)

    def use(self, name: str) -> bool:
        """Make the newest version of an artifact, logged by another run, an input; whether that was done."""
        if not self.online:
            return False
        return self.attempt(lambda run: _in_time(lambda: run.use_artifact(f"{name}:latest"))) is not None

    def finish(self, exit_code: int = 0) -> None:
        """Close the run; once."""
        if not self._finished:
            self._finished = True
            self.attempt(lambda run: run.finish(exit_code=exit_code))


@contextlib.contextmanager
def one_experiment() -> Generator[None]:
    """Where W&B could not be reached once, it is not asked again before the block ends."""
    token = _OFFLINE.set([])
    try:
        yield
    finally:
        _OFFLINE.reset(token)


def open_wandb_run(
    config: Mapping[str, Any], *, job_type: str, part: str | None = None, folder: Path | None = None
) -> WandbRun:
    """A run as `config`'s `logger` wants it; offline, with one line that says why, where W&B cannot be reached.

    Args:
        config: the resolved config; what looks like a secret in it is not sent.
        job_type: `train` or `results`.
        part: of the experiment: it follows the run's name.
        folder: the experiment's, whose runs are one group.
    """
    import wandb

    mode = wandb.setup().settings.mode
    logger = config["logger"]
    name = "-".join(filter(None, [logger["run_name"], part]))
    if mode == "disabled":
        return WandbRun(None, name, folder)
    public = hidden(config)
    wanted: dict[str, Any] = {
        "project": logger["wandb_project"],
        "entity": logger["wandb_entity"],
        "id": "-".join(filter(None, [logger["wandb_id"], part])) if logger["wandb_id"] else None,
        "name": name,
        "group": None if folder is None else group_of(folder),
        "job_type": job_type,
        "tags": _tags(config),
        "config": public if part is None else {**public, "part": part},
        "settings": wandb.Settings(**_settings(wandb.Settings)),
        # A run of the user's own stays as it is; notebooks would end it.
        "reinit": "default" if wandb.run is None else "create_new",
    }
    if mode in ("offline", "dryrun"):
        return _offline(wanted, folder)
    known = _OFFLINE.get()
    if not known:
        try:
            _check_login()
            run = WandbRun(wandb.init(**wanted), name, folder)
        except Exception as error:  # not logged in, unreachable, a host that refuses: all end here
            reason = first_line(error)
        else:
            log.info("W&B run %s: %s", name, run.run.url)
            return run
        run = _offline(wanted, folder)
        log.warning(
            "W&B at %s: %s; logging offline (`wandb sync %s` uploads it)",
            wandb.setup().settings.base_url, reason, _directory(run),
        )  # fmt: skip
        if known is not None:
            known.append(reason)
        return run
    return _offline(wanted, folder)


def group_of(folder: Path) -> str:
    """The name that all runs of an experiment share, kept in its folder: folders of one name are several groups."""
    path = folder / GROUP_FILE
    if not path.exists():
        write_json(path, {"group": artifact_name(folder.name, secrets.token_hex(3))})
    with blamed_on(path):
        group = read_json(path)["group"]
        if not isinstance(group, str) or not group:
            raise ValueError("no group")
        return group


def first_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    return without_secrets(next(iter(str(error).strip().splitlines()), "") or type(error).__name__)


def _settings(known: Any) -> dict[str, Any]:
    """What is asked of W&B itself: its lines are not repeated, and waiting ends."""
    wanted: dict[str, Any] = {"quiet": True}
    if "WANDB_INIT_TIMEOUT" not in os.environ:
        wanted["init_timeout"] = INIT_SECONDS
    # Older versions wait without end.
    if "WANDB_FINISH_TIMEOUT" not in os.environ and "finish_timeout" in known.model_fields:
        wanted["finish_timeout"] = FINISH_SECONDS
    return wanted


def _tags(config: Mapping[str, Any]) -> list[str]:
    """What one looks for: the architecture and the model's last name. W&B takes 64 characters."""
    model = str(config["model_name"]).rstrip("/").rpartition("/")[2]
    return [tag[:64] for tag in ("sae-faithful", config["sae"]["architecture"], model) if tag]


def _check_login() -> None:
    """An error where nobody is logged in; W&B would ask a terminal, and wait.

    Raises:
        RuntimeError: there are no credentials. W&B's own error: they cannot be.
    """
    import wandb

    if wandb.run is not None or "prompt" not in inspect.signature(wandb.login).parameters:
        return
    settings = wandb.setup().settings
    silent = settings.silent
    # W&B would look up the user's name, for ten seconds where the host does not answer.
    settings.silent = True
    try:
        if not wandb.login(prompt=False, verify=False):
            raise RuntimeError("not logged in (`wandb login` does that)")
    finally:
        settings.silent = silent


def _offline(wanted: Mapping[str, Any], folder: Path | None) -> WandbRun:
    import wandb

    name = wanted["name"]
    try:
        # It would say in three lines what is said below in one.
        wanted["settings"].silent = True
        run = WandbRun(wandb.init(**wanted, mode="offline"), name, folder)
    except Exception as error:  # a disk without space, a service that does not start
        log.warning("W&B run %s: %s; not logged at all", name, first_line(error))
        return WandbRun(None, name, folder)
    log.info("W&B run %s: offline in %s", name, _directory(run))
    return run


def _directory(run: WandbRun) -> str:
    return "" if run.run is None else str(Path(run.run.dir).parent)


def _artifact(name: str, kind: str, files: Sequence[Path], metadata: Mapping[str, Any]) -> Any:
    import wandb

    artifact = wandb.Artifact(name, type=kind, metadata=hidden(dict(metadata)))
    for path in files:
        if path.exists():
            artifact.add_file(str(path))
    return artifact


def _in_time(call: Callable[[], Any]) -> Any:
    """What `call` returns, within `LINK_SECONDS`: W&B itself waits for a lost host without end.

    Raises:
        TimeoutError: it takes longer.
    """
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LINK_SECONDS)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no answer in {LINK_SECONDS:g} s")
    return outcome[0]
