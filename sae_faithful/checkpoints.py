"""SAELens's checkpoints, made safe to go on from: each whole, checked by checksums, and resumed exactly by replay.

SAELens writes checkpoints in place, after a Ctrl-C possibly with some SAEs one step ahead of others, and does not save
its buffer of mixed activations. Here a checkpoint counts once it is sealed by a file that is written last; none is
written in the middle of a step; and resuming draws all batches again that were used, from the start.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from unittest import mock

from sae_faithful import interruption
from sae_faithful.hashing import first_damage, hash_files
from sae_faithful.interfaces import RunError
from sae_faithful.progress import Progress
from sae_faithful.run_folder import remove, write_json
from sae_faithful.steps import ESTIMATED_NORMS
from sae_faithful.stored import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch

log = logging.getLogger(__name__)

SEAL = "checkpoint.json"
"""Written last: what the checkpoint is of, and the checksums of its files."""
FINAL = "final_"
"""How SAELens names a checkpoint after the last step: there is nothing to go on with."""


class Resumable(Protocol):
    """What must go on with the training, beside SAELens's own state."""

    def state(self) -> Any:
        """As plain JSON."""
        ...

    def restore(self, state: Any) -> None:
        """Be as when `state` was taken."""
        ...


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training, in one folder."""

    folder: Path
    of: Mapping[str, Any]
    """What a checkpoint must agree on to be gone on from: the SAEs' hashes by name, threads, versions."""
    exact: bool = True
    """Whether to draw all used batches again; without it SAELens goes on with the next texts and an empty buffer."""
    beside: Resumable | None = None

    def newest(self) -> Path | None:
        """The newest that is whole and of this training; damaged and unfinished ones are removed, and named."""
        found: list[tuple[int, Path]] = []
        for path in sorted(self.folder.iterdir()) if self.folder.exists() else []:
            # Ours are named by tokens; what else may be here is not ours to remove.
            if not path.name.isdigit():
                continue
            seal = _read_seal(path)
            damaged = "it was not finished" if seal is None else first_damage(path, seal["files"])
            if damaged is not None:
                log.warning("checkpoint %s is left out: %s", path, damaged)
                remove(path)
            elif seal is not None and self._is_of(seal):
                found.append((seal["n_training_samples"], path))
            else:
                log.info(
                    "checkpoint %s is of other SAEs, threads or versions, or was reached inexactly", path
                )
        return max(found, default=(0, None))[1]

    def has(self, name: str) -> bool:
        """Whether a finished one of this training is there; what else is there under its name is removed."""
        path = self.folder / name
        seal = _read_seal(path)
        if seal is not None and self._is_of(seal):
            return True
        remove(path)
        return False

    def _is_of(self, seal: Mapping[str, Any]) -> bool:
        """One that was gone on with inexactly is of another training than an exact one."""
        of_these = seal["of"] == json.loads(json.dumps(dict(self.of)))
        return of_these and not (self.exact and seal.get("inexact", False))


class CheckpointedTraining:
    """One of SAELens's runners, for one SAE or several, with `Checkpoints`.

    Args:
        runner: before its `run()`.
        checkpoints: where they go and what they are of; None: none is written or used.
        skipped_batches: that are drawn before the first step, and used for nothing.
        check: raises where the SAEs are not worth saving; called before each checkpoint and after the last step.
    """

    def __init__(
        self,
        runner: Any,
        checkpoints: Checkpoints | None,
        skipped_batches: int = 0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        from sae_lens import MultiSAETrainingRunner

        self.checkpoints = checkpoints
        self.resumed_at: list[int] = []
        """Tokens after which this training was gone on with, from checkpoints."""
        self._runner = runner
        self._skipped = skipped_batches
        self._check = check
        self._multi = isinstance(runner, MultiSAETrainingRunner)
        self._trainers: Sequence[Any] = ()
        self._estimates_norm = False
        self._batch: torch.Tensor | None = None
        self._amid_step = self._asked_to_stop = self._saving = False
        self._seal: Mapping[str, Any] | None = None
        if checkpoints is not None:
            self._write_and_resume(checkpoints)
        name = "_run_with_interruption_handling" if self._multi else "run_trainer_with_interruption_handling"
        self._train: Callable[[Any], Any] = getattr(runner, name)
        setattr(runner, name, self._train_in_whole_steps)

    def _write_and_resume(self, checkpoints: Checkpoints) -> None:
        runner = self._runner
        name = "_save_runner_checkpoint_files" if self._multi else "save_checkpoint"
        self._save_files: Callable[[Any], None] = getattr(runner, name)
        setattr(runner, name, self._save_runner_files)
        newest = checkpoints.newest()
        if newest is None:
            return
        self._seal = _read_seal(newest)
        runner.cfg.resume_from_checkpoint = str(newest)
        if checkpoints.exact:
            # All texts are read again, from the first: nothing to go forward to.
            runner.activations_store.load_from_checkpoint = _stay

    def _train_in_whole_steps(self, trainer: Any) -> Any:
        """SAELens's last call before the first step, after it has loaded a checkpoint."""
        self._trainers = list(trainer.trainers.values()) if self._multi else [trainer]
        self._estimates_norm = any(
            one.sae.cfg.normalize_activations in ESTIMATED_NORMS for one in self._trainers
        )
        if self._seal is not None:
            self._go_on(trainer, self._seal)
        else:
            for _ in range(self._skipped):
                next(trainer.data_provider)
        self._watch_steps()
        with contextlib.ExitStack() as stack:
            if self.checkpoints is not None:
                trainer.save_checkpoint = functools.partial(self._save, trainer, trainer.save_checkpoint)
                stack.enter_context(self._stopping_between_steps())
            trained = self._train(trainer)
        self._check()
        return trained

    def _go_on(self, trainer: Any, seal: Mapping[str, Any]) -> None:
        """Be where an undisturbed training was after as many tokens."""
        assert self.checkpoints is not None
        cfg, n_samples = self._runner.cfg, seal["n_training_samples"]
        log.info("going on after %s tokens, from %s", f"{n_samples:,}", cfg.resume_from_checkpoint)
        cfg.resume_from_checkpoint = None
        self.resumed_at = [*seal["resumed_at"], n_samples]
        # SAELens counts a step after it has written the checkpoint.
        n_steps = n_samples // cfg.train_batch_size_tokens
        for one in {id(each): each for each in (trainer, *self._trainers)}.values():
            one.n_training_steps = n_steps
        thresholds = trainer.checkpoint_thresholds
        while thresholds and n_samples > thresholds[0]:
            thresholds.pop(0)
        if self.checkpoints.beside is not None:
            self.checkpoints.beside.restore(seal["beside"])
        if self.checkpoints.exact:
            self._replay(trainer.data_provider, n_steps + seal["n_batches_before"], seal["last_batch"])

    def _replay(self, batches: Iterator[Any], n: int, last_batch: str) -> None:
        """Draw the `n` batches that were used, as they were drawn then."""
        batch: Any = None
        with Progress("reading what was trained on again", n, unit="batches") as progress:
            for _ in range(n):
                batch = next(batches)
                progress.update()
        if self._multi:
            batch = batch[self._runner.cfg.hook_names_per_sae[next(iter(self._runner.saes))]]
        if _hash_of(batch) != last_batch:
            assert self.checkpoints is not None
            raise RunError(
                "training cannot go on exactly: the activations come out differently than before the interruption "
                f"(another processor or device?); delete {self.checkpoints.folder} to train again from the start, "
                "or set exact_resume: false"
            )

    def _watch_steps(self) -> None:
        """Know whether a step is going on; hear a Ctrl-C before each, where all SAEs are equally far."""
        first, last = self._trainers[0], self._trainers[-1]
        begin = first.step

        def step(batch: torch.Tensor) -> Any:
            if self._asked_to_stop:
                _stop()
            interruption.check()
            self._amid_step = True
            self._batch = batch
            return begin(batch)

        first.step = step
        end = last.step

        def last_step(batch: torch.Tensor) -> Any:
            output = end(batch)
            self._amid_step = False
            return output

        last.step = last_step

    @contextlib.contextmanager
    def _stopping_between_steps(self) -> Generator[None]:
        """SAELens's handler raises wherever the program is; here it waits for the end of the step."""
        import sae_lens.llm_sae_training_runner as single_module
        import sae_lens.multi_sae_training_runner as multi_module

        def handler(*_: Any) -> None:
            if not self._amid_step or self._asked_to_stop:
                _stop()
            self._asked_to_stop = True
            log.warning("stopping after this step, to write a checkpoint; once more stops at once")

        module = multi_module if self._multi else single_module
        with mock.patch.object(module, "interrupt_callback", handler):
            yield

    def _save(self, trainer: Any, save: Callable[..., None], checkpoint_name: str, **options: Any) -> None:
        """SAELens's `save_checkpoint`, where it would be a whole one."""
        assert self.checkpoints is not None
        if self._amid_step:
            log.warning("no checkpoint was written: a step was interrupted")
            return
        n_samples = self._trainers[0].n_training_samples
        # Interrupted just after a step, SAELens's count for all of them is behind.
        trainer.n_training_samples = n_samples
        is_final = checkpoint_name.startswith(FINAL)
        name = checkpoint_name if is_final else str(n_samples)
        # After its last step SAELens folds an estimated norm into the weights: none could go on with those.
        folded = self._estimates_norm and n_samples >= trainer.cfg.total_training_samples
        if not is_final and (n_samples == 0 or folded or self.checkpoints.has(name)):
            return
        if is_final:
            # Else SAELens writes into what is there, a link perhaps.
            remove(self.checkpoints.folder / name)
        self._check()
        self._saving = True
        try:
            save(checkpoint_name=name, **options)
        finally:
            self._saving = False

    def _save_runner_files(self, checkpoint_path: Path | None) -> None:
        """What SAELens writes last into a checkpoint, and the seal."""
        if checkpoint_path is None:
            return
        if not self._saving:
            # Interrupted, SAELens's runner of one SAE calls this alone, which would save no weights.
            self._trainers[0].save_checkpoint(checkpoint_name=checkpoint_path.name)
            return
        self._save_files(checkpoint_path)
        if not checkpoint_path.name.startswith(FINAL):
            self._write_seal(checkpoint_path)

    def _write_seal(self, path: Path) -> None:
        assert self.checkpoints is not None
        beside = self.checkpoints.beside
        seal = {
            "of": dict(self.checkpoints.of),
            "n_training_samples": self._trainers[0].n_training_samples,
            "n_batches_before": self._n_batches_before(),
            "last_batch": _hash_of(self._batch),
            "resumed_at": self.resumed_at,
            "inexact": bool(self.resumed_at) and not self.checkpoints.exact,
            "beside": None if beside is None else beside.state(),
            "files": hash_files(path, leave_out=SEAL),
        }
        write_json(path / SEAL, seal)

    def _n_batches_before(self) -> int:
        """Batches that were drawn before the first step: an estimate of a norm takes some."""
        return self._runner.cfg.n_batches_for_norm_estimate if self._estimates_norm else self._skipped


def _stay(*_: Any) -> None:
    """In place of a store's `load_from_checkpoint`."""


def _stop() -> None:
    from sae_lens.training._interruption import InterruptedException

    raise InterruptedException


def _read_seal(path: Path) -> dict[str, Any] | None:
    """None where there is no seal, or one that is damaged itself."""
    try:
        seal = read_json(path / SEAL)
    except RunError:
        return None
    kinds = {
        "of": dict,
        "n_training_samples": int,
        "n_batches_before": int,
        "last_batch": str,
        "resumed_at": list,
    }
    fits = isinstance(seal, dict) and all(isinstance(seal.get(name), kind) for name, kind in kinds.items())
    files = seal.get("files") if fits else None
    if not isinstance(files, dict) or not all(isinstance(one, str) for one in files.values()):
        return None
    return seal


def _hash_of(batch: torch.Tensor | None) -> str:
    assert batch is not None
    import torch

    content = batch.detach().cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(content.tobytes()).hexdigest()
