"""The run folder: where everything is, atomic writes, the lock, and which steps are already done."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_faithful.hashing import first_damage, hash_files, hash_settings
from sae_faithful.interfaces import RunError, UsageError
from sae_faithful.names import check_name
from sae_faithful.redaction import without_known_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

log = logging.getLogger(__name__)

STEP_FILE = "step.json"
PARTIAL_PREFIX = ".partial-"
SECONDS_FOR_WORKERS = 60.0
"""Workers end when they notice that the process which started them is gone."""


def cache_dir() -> Path:
    """Where costly things are kept for every run: `$SAE_FAITHFUL_CACHE`, else `~/.cache/sae_faithful`."""
    return Path(os.environ.get("SAE_FAITHFUL_CACHE") or Path.home() / ".cache" / "sae_faithful").expanduser()


@dataclass(frozen=True)
class Step:
    """One step of a run: a folder that appears whole or not at all."""

    path: str
    """Relative to the run folder, `/` between parts."""
    settings: Mapping[str, Any]
    """What the user chose for it, by config key: a finished step with other settings is an error."""
    inputs: Mapping[str, Any]
    """What came before it: a finished step with other inputs is done again."""

    @property
    def hash(self) -> str:
        """Of settings and inputs: what determines the step's outcome."""
        return hash_settings({"settings": dict(self.settings), "inputs": dict(self.inputs)})


class RunFolder:
    """Paths of a run, and the only writer into it."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().absolute()
        self._damage: dict[tuple[str, int], str | None] = {}
        """What is wrong with steps whose files have been looked at, by path and when they were made."""

    @property
    def config_file(self) -> Path:
        """The resolved config."""
        return self.root / "config.json"

    @property
    def manifest_file(self) -> Path:
        """Versions, machine and options of the run, written once for all results."""
        return self.root / "manifest.json"

    @property
    def timings_file(self) -> Path:
        """How long each step took, and how long it was expected to take."""
        return self.root / "timings.json"

    @property
    def results_file(self) -> Path:
        """Every evaluator's rows."""
        return self.root / "results.jsonl"

    @property
    def features_file(self) -> Path:
        """Every evaluator's per-latent columns, one row a latent."""
        return self.root / "features.parquet"

    @property
    def verdicts_file(self) -> Path:
        """One row for each claim about two sources."""
        return self.root / "verdicts.jsonl"

    @property
    def distance_file(self) -> Path:
        """One row for each number of SAEs against each score of the texts they were trained on."""
        return self.root / "distance.jsonl"

    @property
    def report_file(self) -> Path:
        """The report for terminals and pull requests."""
        return self.root / "report.md"

    @property
    def html_file(self) -> Path:
        """The report for browsers: one page that needs nothing but itself."""
        return self.root / "report.html"

    @property
    def comparison_file(self) -> Path:
        """The page of this run and others side by side, where `report` was asked for one."""
        return self.root / "comparison.html"

    @property
    def checkpoints_dir(self) -> Path:
        """SAELens's checkpoints, by source."""
        return self.root / "checkpoints"

    @property
    def monitors_dir(self) -> Path:
        """What monitors measured inside training, and what they cost, by source."""
        return self.root / "monitors"

    def data_dir(self, name: str) -> Path:
        """`train.arrow`, `held_out.arrow` and `card.json` of one source or dataset."""
        return self.root / data_path(name)

    def sae_dir(self, source: str, hook: str, variant: str, seed: int) -> Path:
        """One SAE as SAELens saves it."""
        return self.root / sae_path(source, hook, variant, seed)

    def baseline_dir(self, source: str, hook: str, name: str, seed: int) -> Path:
        """One fit of a baseline."""
        return self.root / baseline_path(source, hook, name, seed)

    def result_dir(self, evaluator: str) -> Path:
        """One evaluator's rows, feature table and artifacts."""
        return self.root / result_path(evaluator)

    def finished(self, step: Step) -> bool:
        """Whether the step is done, with the same settings and inputs, and its files are as they were written."""
        record = self._record(step)
        return (
            record is not None and record["hash"] == step.hash and self._is_whole(step.path, record["files"])
        )

    def check_settings(self, steps: list[Step]) -> None:
        """Refuse to go on where a finished step was made with other settings.

        Raises:
            UsageError: naming the step and every config key that differs.
        """
        for step in steps:
            record = self._record(step)
            if record is None:
                continue
            made, wanted = record["settings"], json.loads(json.dumps(dict(step.settings)))
            keys = [key for key in sorted({*made, *wanted}) if made.get(key) != wanted.get(key)]
            if keys:
                changes = ", ".join(
                    f"{key}: {made.get(key)!r} there, {wanted.get(key)!r} now" for key in keys
                )
                raise UsageError(
                    f"{self.root} holds a finished step '{step.path}' made with other settings ({changes}); "
                    "give another --output, restore the setting, or delete that folder"
                )

    @contextlib.contextmanager
    def writing(self, step: Step) -> Generator[Path]:
        """A folder to write the step's files into; it takes its place when the block ends without error."""
        target = self.root / step.path
        self.check_inside(target)
        partial = target.with_name(PARTIAL_PREFIX + target.name)
        remove(partial)
        partial.mkdir(parents=True)
        try:
            yield partial
            self.seal(partial, step)
            self.put(partial, step)
        except BaseException:
            # A full disk needs the room; what a killed process leaves goes when the next one begins.
            with contextlib.suppress(OSError):
                remove(partial)
            raise

    @staticmethod
    def seal(folder: Path, step: Step) -> None:
        """Write beside the files in `folder` what they are of and their checksums; all of it is on the disk then."""
        record = {
            "hash": step.hash,
            "settings": dict(step.settings),
            "inputs": dict(step.inputs),
            "files": hash_files(folder, leave_out=STEP_FILE),
        }
        write_json(folder / STEP_FILE, record)
        _sync_files(folder)

    def put(self, folder: Path, step: Step) -> None:
        """Make `folder`, sealed inside the run folder, the step's outcome."""
        target = self.root / step.path
        self.check_inside(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            # A folder cannot be replaced in one call: the old one goes aside first, and is not missed,
            # since its step has to be done again anyway.
            old = target.with_name(PARTIAL_PREFIX + target.name + "-old")
            remove(old)
            target.rename(old)
            folder.rename(target)
            remove(old)
        else:
            folder.rename(target)
        self._damage[step.path, self._made_at(step.path)] = None

    def check_inside(self, path: Path) -> None:
        """Refuse a path that a link takes out of the run folder. The run folder itself may be one.

        Raises:
            RunError: it does.
        """
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise RunError(
                f"{path} is outside the run folder, by a link to {path.resolve()}; make the run folder a link instead"
            )

    def clear_partial(self) -> None:
        """Remove what a killed run left behind. Only for the owner of the lock."""
        for path in sorted(self.root.rglob(PARTIAL_PREFIX + "*")):
            remove(path)

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Own the run folder; a dead owner's lock is taken over.

        Raises:
            UsageError: another process owns it (its machine, process id and start are named).
            RunError: its file system has no locks.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / ".lock"
        with contextlib.ExitStack() as stack:
            if path.is_symlink():
                raise UsageError(f"{path} is a link to another file, which a lock would empty; delete it")
            file = stack.enter_context(path.open("a+"))
            if not self._try_lock(file.fileno()):
                file.seek(0)
                raise UsageError(f"{self.root} is in use by {file.read().strip() or 'another process'}")
            file.seek(0)
            file.truncate()
            file.write(
                f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
            )
            file.flush()
            if not self.wait_for_workers(SECONDS_FOR_WORKERS):
                raise UsageError(f"{self.root} is in use by workers of a run whose own process is gone")
            try:
                yield
            finally:
                file.seek(0)
                file.truncate()

    @property
    def workers_dir(self) -> Path:
        """What the driver of a run and its workers tell each other while it lasts."""
        return self.root / f"{PARTIAL_PREFIX}workers"

    @contextlib.contextmanager
    def joined(self) -> Generator[None]:
        """Work in the folder for the process that owns it; several may at once.

        Raises:
            RunError: another process is taking the folder over, or its file system has no locks.
        """
        self.workers_dir.mkdir(parents=True, exist_ok=True)
        # NFS gives a shared lock only to a file that is open for reading.
        with (self.workers_dir / "alive").open("a+") as file:
            if not self._try_lock(file.fileno(), shared=True):
                raise RunError(f"{self.root} is being taken over by another process; this worker is too late")
            yield

    def wait_for_workers(self, seconds: float) -> bool:
        """Whether nobody works in the folder any more: a dead owner's workers live a little longer than it."""
        path = self.workers_dir / "alive"
        deadline = time.monotonic() + seconds
        while path.exists():
            with path.open("a") as file:
                if self._try_lock(file.fileno()):
                    return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)
        return True

    def _try_lock(self, descriptor: int, *, shared: bool = False) -> bool:
        # The operating system releases the lock when its owner dies, however it dies.
        import fcntl

        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                return False
            raise RunError(
                f"{self.root} cannot be locked ({error.strerror}): its file system has no locks; give another "
                "--output, or have it mounted with them (Lustre: -o flock)"
            ) from error
        return True

    def _record(self, step: Step) -> dict[str, Any] | None:
        """What `seal` wrote; None where the step has not been done, or no longer says what it is."""
        try:
            record = json.loads((self.root / step.path / STEP_FILE).read_text(encoding="utf-8"))
            kinds = {"hash": str, "settings": dict, "inputs": dict, "files": dict}
            if all(isinstance(record[key], kind) for key, kind in kinds.items()):
                said = Step(step.path, record["settings"], record["inputs"])
                # A changed setting in it would be refused as the user's.
                if said.hash == record["hash"]:
                    return record
        except FileNotFoundError:
            if (self.root / step.path).exists():
                self._note_damage(step.path, f"{STEP_FILE} is missing")
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        self._note_damage(step.path, f"{STEP_FILE} is damaged")
        return None

    def _is_whole(self, path: str, files: Mapping[str, str]) -> bool:
        """Looked at once a process: all of a run's data are read for it."""
        if (path, self._made_at(path)) not in self._damage:
            self._note_damage(path, first_damage(self.root / path, files))
        return self._damage[path, self._made_at(path)] is None

    def _note_damage(self, path: str, damage: str | None) -> None:
        key = path, self._made_at(path)
        if damage is not None and key not in self._damage:
            log.warning("%s: %s; it will be made again", self.root / path, damage)
        self._damage[key] = damage

    def _made_at(self, path: str) -> int:
        record = self.root / path / STEP_FILE
        return record.stat().st_mtime_ns if record.exists() else 0


def data_path(name: str) -> str:
    """Where a source's or dataset's tokens are, in the run folder."""
    return f"data/{_part(name)}"


def sae_path(source: str, hook: str, variant: str, seed: int) -> str:
    """Where an SAE is, in the run folder."""
    return f"saes/{_part(source)}/{_part(hook)}/{_part(variant)}/seed{int(seed)}"


def baseline_path(source: str, hook: str, name: str, seed: int) -> str:
    """Where a baseline's fit is, in the run folder."""
    return f"baselines/{_part(source)}/{_part(hook)}/{_part(name)}/seed{int(seed)}"


def result_path(evaluator: str) -> str:
    """Where an evaluator's results are, in the run folder."""
    return f"results/{_part(evaluator)}"


def _part(name: str) -> str:
    """A part of a path that names one folder, whoever gave the name."""
    check_name(name)
    return name


def write_text(path: Path, text: str) -> None:
    """Write a file whole, without secrets of the environment: aside, then renamed."""
    text = without_known_secrets(text)
    # Half of a surrogate pair, which JSON can say and UTF-8 cannot, stays what it is in JSON: an escape.
    write_aside(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, value: object) -> None:
    """Write JSON for people and programs, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PARTIAL_PREFIX}{path.name}")
    # A link of that name would have another file written.
    partial.unlink(missing_ok=True)
    write(partial)
    _sync(partial)
    partial.replace(path)


def _sync_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Remove a file, a folder and what is in it, or a link and nothing of what it leads to; none may be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
