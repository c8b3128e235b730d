"""Step 2: one source's SAEs, trained together by SAELens's own runners. The only caller of SAELens's training."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import shutil
import signal
from typing import TYPE_CHECKING, Any

from sae_faithful import interruption
from sae_faithful.checkpoints import CheckpointedTraining, Checkpoints
from sae_faithful.faults import out_of_memory_named
from sae_faithful.groups import groups_of
from sae_faithful.hashing import hash_settings
from sae_faithful.interfaces import RunError
from sae_faithful.monitors import Monitors
from sae_faithful.optimizer import choose_adam
from sae_faithful.run_folder import PARTIAL_PREFIX, write_json
from sae_faithful.saelens_output import bars_as_ours, misleading_warnings_silenced
from sae_faithful.saelens_wandb import logging_to
from sae_faithful.steps import estimates_norm
from sae_faithful.stored import read_json
from sae_faithful.timings import begins, timed
from sae_faithful.trust import weights_only
from sae_faithful.wandb_run import open_wandb_run

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from pathlib import Path

    import torch

    from sae_faithful.config import ExperimentConfig
    from sae_faithful.language_model import LanguageModel
    from sae_faithful.monitors import Watch
    from sae_faithful.plan import PlannedSAE
    from sae_faithful.run_folder import RunFolder
    from sae_faithful.tokens import TokenSet

log = logging.getLogger(__name__)

RESUMED_FILE = "resumed.json"
"""Beside an SAE whose training was gone on with inexactly: where."""
NAN_CHECK_INTERVAL = 50
"""Steps between looks at the device for a bad loss; each look waits for the device."""
LESS_MEMORY = (
    "train fewer SAEs at once (--set saes_at_once=1), which changes no weight; what is trained depends on the batches, "
    "so they are not made smaller on the way: to lower train_batch_size_tokens, store_batch_size_prompts or "
    "n_batches_in_buffer makes other SAEs"
)


def train_source(
    source: str,
    saes: Sequence[PlannedSAE],
    config: ExperimentConfig,
    model: LanguageModel,
    folder: RunFolder,
    inputs: Mapping[str, Any],
    tokens: TokenSet | None,
    dataset_path: str,
    watch: Watch | None = None,
) -> None:
    """Train those of `saes` that are not on disk yet, on identical batches: in one pass of the model if they fit.

    Args:
        source: the source's name, which becomes the first part of the SAEs' paths.
        saes: all SAEs of the source.
        config: the experiment's.
        model: whose activations are trained on.
        folder: where the SAEs go.
        inputs: what determines the data, for the steps' hashes.
        tokens: the rows to train on, or None where SAELens loads `dataset_path` itself.
        dataset_path: what the SAEs' metadata say they were trained on.
        watch: what monitors look at; None where SAELens's own evaluation is left in place.

    Raises:
        RunError: an SAE's loss is not finite (the SAE and the step are named); see also `choose_adam`.
    """
    missing = [sae for sae in saes if not folder.finished(sae.step(source, inputs))]
    if not missing:
        log.info("saes/%s: reused", source)
        return
    groups = groups_of(missing, config, model)
    for line in groups.lines:
        log.info("saes/%s: %s", source, line)
    task = _Task(source, config, model, folder, inputs, tokens, dataset_path, watch)
    for group in groups.groups:
        # Named by what is in it: after an interruption there are fewer groups, and a checkpoint must be found again.
        names = [sae.name for sae in group]
        part = source if len(group) == len(saes) else f"{source}-group-{hash_settings({'saes': names})[:8]}"
        task.train(group, part)
        # SAELens's objects refer to each other: without this the next group would come on top of them.
        gc.collect()


@dataclasses.dataclass(frozen=True)
class _Task:
    """What the groups of one source's SAEs have in common: the arguments of `train_source`."""

    source: str
    config: ExperimentConfig
    model: LanguageModel
    folder: RunFolder
    inputs: Mapping[str, Any]
    tokens: TokenSet | None
    dataset_path: str
    watch: Watch | None

    def train(self, saes: Sequence[PlannedSAE], part: str) -> None:
        """Train `saes` together; `part` names them in W&B and among the checkpoints."""
        source, config = self.source, self.config
        begins(f"saes/{source}", f"training {len(saes)} SAEs on {config.training_tokens:,} tokens")
        partial = self.folder.root / "saes" / source / f"{PARTIAL_PREFIX}training"
        self.folder.check_inside(partial)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with misleading_warnings_silenced():
            modules = initialise(saes)
            runner = self._runner(saes, modules, partial)
            trained = _trained(runner, saes)
            for module in trained.values():
                mark_random_init(module, self.model)
            checks = [guard_against_nan(module, f"{source}/{name}") for name, module in trained.items()]
            _name_run(runner.cfg, part, config, self.folder)
            choose_adam(runner, fused=config.fused_adam)
            monitors = (
                None if self.watch is None else Monitors(self.watch, source, {sae.name: sae for sae in saes})
            )
            training = CheckpointedTraining(
                runner,
                self._checkpoints(saes, part, monitors) if config.n_checkpoints else None,
                # As where one SAE of the plan estimates a norm from the first batches that all share.
                skipped_batches=config.n_batches_for_norm_estimate
                if self.inputs.get("estimates_norm") and not any(estimates_norm(sae) for sae in saes)
                else 0,
                check=lambda: call_each(checks),
            )
            with contextlib.ExitStack() as stack:
                if config.logger.log_to_wandb:
                    stack.enter_context(_logged(runner, source, part, trained, self.folder))
                if monitors is not None:
                    stack.enter_context(monitors.attached_to(runner))
                stack.enter_context(bars_as_ours(f"training {source}"))
                stack.enter_context(timed(f"saes/{source}"))
                stack.enter_context(out_of_memory_named(f"training SAEs on {source}", LESS_MEMORY))
                run_seeded(runner, config.seed)
        try:
            if monitors is not None:
                monitors.report_cost()
                monitors.write(self.folder.monitors_dir)
        finally:
            # Whatever becomes of the monitors' files: these took longer.
            self._keep(partial, saes, [] if config.exact_resume else training.resumed_at)

    def _runner(self, saes: Sequence[PlannedSAE], modules: dict[str, Any], output: Path) -> Any:
        """SAELens's, for one SAE or for several."""
        dataset = self.tokens.for_saelens() if self.tokens is not None else None
        made = (self.config, self.model, dataset, output, self.dataset_path)
        if len(saes) == 1:
            return _single_runner(saes[0], modules[saes[0].name], *made)
        return _multi_runner(saes, modules, *made)

    def _checkpoints(self, saes: Sequence[PlannedSAE], part: str, monitors: Monitors | None) -> Checkpoints:
        """Those of these SAEs, trained as they would be now."""
        import torch
        from sae_lens import __version__ as sae_lens_version

        made_with = {
            "saes": {sae.name: sae.step(self.source, self.inputs).hash for sae in saes},
            "threads": torch.get_num_threads(),
            "device": str(self.config.device),
            "torch": torch.__version__,
            "sae-lens": sae_lens_version,
        }
        folder = self.folder.checkpoints_dir / part
        self.folder.check_inside(folder)
        return Checkpoints(folder, made_with, exact=self.config.exact_resume, beside=monitors)

    def _keep(self, partial: Path, saes: Sequence[PlannedSAE], resumed_at: Sequence[int]) -> None:
        """Move every trained SAE to its place; each move is whole, and all that takes time comes before the first:
        checkpoints are of all these SAEs together."""
        shared = partial / "runner_cfg.json"
        steps = [(partial / sae.name, sae.step(self.source, self.inputs)) for sae in saes]
        for trained, step in steps:
            if shared.exists():
                shutil.copy(shared, trained)
            if resumed_at:
                write_json(trained / RESUMED_FILE, {"exact": False, "after_tokens": list(resumed_at)})
            self.folder.seal(trained, step)
        for trained, step in steps:
            self.folder.put(trained, step)
        shutil.rmtree(partial)


def resumed_inexactly(folder: RunFolder) -> dict[str, list[int]]:
    """SAEs of a run, by their path in it, that went on from a checkpoint without replay: after how many tokens each."""
    found = {path.parent: read_json(path) for path in folder.root.glob(f"saes/*/*/*/*/{RESUMED_FILE}")}
    return {path.relative_to(folder.root).as_posix(): found[path]["after_tokens"] for path in sorted(found)}


def initialise(saes: Sequence[PlannedSAE]) -> dict[str, Any]:
    """Fresh SAELens training SAEs by name, each drawn under its own seed."""
    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.util import temporary_seed

    modules: dict[str, Any] = {}
    for sae in saes:
        with temporary_seed(sae.seed):
            modules[sae.name] = TrainingSAE.from_dict(sae.config.to_dict())
    return modules


def run_seeded(runner: Any, seed: int) -> Any:
    """`runner.run()` with the data order (SAELens's mixing buffer) drawn under `seed`."""
    from sae_lens.training._interruption import InterruptedException
    from sae_lens.util import temporary_seed

    try:
        with (
            _signal_handlers_kept(),
            interruption.recorded(),
            misleading_warnings_silenced(),
            temporary_seed(seed),
            weights_only(),
        ):
            return runner.run()
    except InterruptedException:
        # SAELens's SIGTERM; to everyone else an interruption is KeyboardInterrupt.
        raise KeyboardInterrupt from None


def mark_random_init(sae: Any, model: LanguageModel) -> None:
    """Let the SAE's metadata say which random weights it is for, lest it be measured on the trained ones."""
    sae.cfg.metadata.random_init_seed = model.random_init_seed


def call_each(checks: Sequence[Callable[[], None]]) -> None:
    """One after the other."""
    for check in checks:
        check()


def guard_against_nan(sae: Any, name: str) -> Callable[[], None]:
    """Make `sae`'s training stop with a clear error when a loss was not finite: on a CPU at once, on a GPU soon after.

    Returns:
        Looks whether one was, and raises the error: for where the weights are to be kept.
    """
    import torch

    forward = sae.training_forward_pass
    # Kept on the loss's device: to look at every step would make every step wait for it.
    first_bad, bad_input = torch.tensor(-1), torch.tensor(False)

    def note(loss: torch.Tensor, activations: torch.Tensor, step: int) -> None:
        nonlocal first_bad, bad_input
        first_bad, bad_input = first_bad.to(loss.device), bad_input.to(loss.device)
        is_first = ~torch.isfinite(loss.detach()) & (first_bad < 0)
        bad_input = torch.where(is_first, ~torch.isfinite(activations.sum()), bad_input)
        first_bad = torch.where(is_first, step, first_bad)
        if is_looked_at(loss, step):
            check()

    def check() -> None:
        if int(first_bad) >= 0:
            raise RunError(
                f"the model's activations are not finite at training step {int(first_bad)} of SAE {name}; "
                "load the model in another dtype (model_from_pretrained_kwargs)"
                if bool(bad_input)
                else f"the loss of SAE {name} is not finite at training step {int(first_bad)}; lower lr"
            )

    # SAELens's compile_sae compiles what is set here; this stays outside the graph.
    note_uncompiled = torch.compiler.disable(note)

    def checked_forward(step_input: Any) -> Any:
        output = forward(step_input)
        note_uncompiled(output.loss, step_input.sae_in, step_input.n_training_steps)  # pyright: ignore[reportCallIssue]
        return output

    sae.training_forward_pass = checked_forward
    return check


def is_looked_at(loss: torch.Tensor, step: int) -> bool:
    """Whether now is a time to look at the loss's device: always on a CPU, which nobody waits for."""
    return loss.device.type == "cpu" or step % NAN_CHECK_INTERVAL == 0


def _single_runner(
    sae: PlannedSAE, module: Any, config: ExperimentConfig, model: LanguageModel, dataset: Any,
    output: Path, dataset_path: str,
) -> Any:  # fmt: skip
    from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner

    fields: dict[str, Any] = {
        **_shared_fields(LanguageModelSAERunnerConfig, config),
        "sae": sae.config,
        "hook_name": sae.hook,
        "dataset_path": dataset_path,
        "output_path": str(output / sae.name),
    }
    return LanguageModelSAETrainingRunner(
        LanguageModelSAERunnerConfig(**fields),
        override_dataset=dataset,
        override_model=model.model,
        override_sae=None if config.from_pretrained_path else module,
    )


def _multi_runner(
    saes: Sequence[PlannedSAE], modules: dict[str, Any], config: ExperimentConfig, model: LanguageModel,
    dataset: Any, output: Path, dataset_path: str,
) -> Any:  # fmt: skip
    from sae_lens import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig

    fields: dict[str, Any] = {
        **_shared_fields(MultiSAETrainingRunnerConfig, config),
        "saes": {sae.name: modules[sae.name].cfg for sae in saes},
        "hook_names": {sae.name: sae.hook for sae in saes},
        "hook_head_indices": config.hook_head_index,
        "dataset_path": dataset_path,
        "output_path": str(output),
    }
    return MultiSAETrainingRunner(
        MultiSAETrainingRunnerConfig(**fields),
        override_dataset=dataset,
        override_model=model.model,
        override_saes=modules,
    )


def _shared_fields(runner_config: Any, config: ExperimentConfig) -> dict[str, Any]:
    """The config's values for the fields that SAELens's runner config has under the same name."""
    names = [entry.name for entry in dataclasses.fields(runner_config) if entry.init]
    shared = {name: getattr(config, name) for name in names if hasattr(config, name)}
    # A copy: naming one source's run must not name the others'.
    return {**shared, "logger": dataclasses.replace(config.logger)}


def _trained(runner: Any, saes: Sequence[PlannedSAE]) -> dict[str, Any]:
    """What a runner trains, by name; SAELens makes an SAE of its own of `from_pretrained_path`."""
    return {saes[0].name: runner.sae} if len(saes) == 1 else dict(runner.saes)


@contextlib.contextmanager
def _logged(
    runner: Any, source: str, part: str, modules: Mapping[str, Any], folder: RunFolder
) -> Generator[None]:
    """A W&B run for one source or group: the source's card goes in, SAELens's numbers and SAEs come out."""
    config = read_json(folder.config_file)
    run = open_wandb_run(config, job_type="train", part=part, folder=folder.root)
    run.log_card(source)
    names = {id(module): run.artifact_name(source, *name.split("/")) for name, module in modules.items()}
    with logging_to(run, runner, name_of=lambda sae: names[id(sae)]):
        yield


def _name_run(cfg: Any, part: str, config: ExperimentConfig, folder: RunFolder) -> None:
    """Give this source's run, or this group's, its own name in W&B and its own place for checkpoints."""
    logger = cfg.logger
    logger.run_name = f"{config.logger.run_name}-{part}"
    if logger.wandb_id is not None:
        logger.wandb_id = f"{logger.wandb_id}-{part}"
    # SAELens appended a random id; without checkpoints to write, an interruption must not write one either.
    cfg.checkpoint_path = str(folder.checkpoints_dir / part) if config.n_checkpoints else None


@contextlib.contextmanager
def _signal_handlers_kept() -> Generator[None]:
    """SAELens sets handlers for SIGINT and SIGTERM and leaves them."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
