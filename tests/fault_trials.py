"""Faults at random moments against the real command: a clear line, nothing lost, the same end after a rerun.

`python -m tests.fault_trials --times 20` (`make faults`) does each fault so often; tests/test_fault_trials.py does each
once. Every trial is the command line's own `main` in a process of its own, forked from one that has done the imports:
they take longer than the run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .fault_making import (
    can_mount,
    damage,
    mounted,
    nan_from,
    raise_at,
    reach_for_hub,
    remount,
    unreliable_server,
)  # fmt: skip
from .forked import be_the_command, import_everything
from .run_files import comparable_files, first_difference
from .small_run import SMALL_RUN

EXIT_FINE, EXIT_RUN, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
LONGEST = 300.0
"""Seconds after which a run counts as hung."""
LARGE_ENOUGH = "64m"


class TrialFailed(AssertionError):
    """What a fault left behind is not as it should be."""


@dataclass
class Ended:
    """A run of the command."""

    code: int
    text: str

    def clear(self, code: int, pattern: str) -> None:
        """It ended with `code`, with one line of error that matches, and without a traceback."""
        lines = [line for line in self.text.splitlines() if line.startswith("error: ")]
        if (
            self.code != code
            or len(lines) != 1
            or not re.search(pattern, lines[0])
            or "Traceback" in self.text
        ):
            raise TrialFailed(f"exit {self.code}, expected {code} and {pattern!r}:\n{self.text[-3_000:]}")

    def fine(self) -> None:
        """It ended as it should."""
        if self.code != EXIT_FINE or "Traceback" in self.text:
            raise TrialFailed(f"exit {self.code}:\n{self.text[-3_000:]}")


@dataclass
class Running:
    """A run of the command that may still be going on."""

    pid: int
    output: Path
    _ended: Ended | None = None

    def wait(self, seconds: float = LONGEST) -> Ended | None:
        """Its end, or None after so many seconds."""
        deadline = time.monotonic() + seconds
        while self._ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                text = self.output.read_text(encoding="utf-8", errors="replace")
                self._ended = Ended(os.waitstatus_to_exitcode(status), text)
            elif time.monotonic() > deadline:
                return None
            else:
                time.sleep(0.01)
        return self._ended

    def end(self) -> Ended:
        """Its end; killed if it hangs."""
        ended = self.wait()
        if ended is None:
            os.kill(self.pid, signal.SIGKILL)
            raise TrialFailed(f"the run hung:\n{self.output.read_text(errors='replace')[-2_000:]}")
        return ended

    def signal_at(self, seconds: float, number: int) -> Ended:
        """Its end, by the signal if it is still there after so long."""
        ended = self.wait(seconds)
        if ended is None:
            os.kill(self.pid, number)
            ended = self.end()
        return ended


@dataclass
class Trial:
    """One fault, one time: a run folder and a cache of its own, and what an undisturbed run of it leaves."""

    folder: Path
    config: dict[str, Any]
    expected: dict[str, bytes]
    duration: float
    random: random.Random
    _runs: int = field(default=0)

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "place" / "run"

    @property
    def cache(self) -> Path:
        """The cache, on the same disk."""
        return self.folder / "place" / "cache"

    def moment(self) -> float:
        """Seconds into a run, anywhere in it."""
        return self.random.uniform(0, self.duration)

    def start(
        self, inject: Callable[[], object] | None = None, environment: dict[str, str] | None = None, **changes: Any
    ) -> Running:  # fmt: skip
        """The command on this trial's folder; `inject` is called in its process before it begins."""
        self._runs += 1
        file = self.folder / f"config{self._runs}.json"
        file.write_text(json.dumps({**self.config, **changes}))
        output = self.folder / f"output{self._runs}.txt"
        pid = os.fork()
        if pid == 0:
            be_the_command(["run", str(file), "--output", str(self.run)], output, inject, {
                "SAE_FAITHFUL_CACHE": str(self.cache), **(environment or {}),
            })  # fmt: skip
        return Running(pid, output)

    def killed(self) -> Ended:
        """A run that is killed at a random moment."""
        return self.start().signal_at(self.moment(), signal.SIGKILL)

    def finish(self) -> Ended:
        """A last, undisturbed run; what it leaves must be what an undisturbed run leaves.

        Raises:
            TrialFailed: it is not.
        """
        ended = self.start().end()
        ended.fine()
        difference = first_difference(self.expected, comparable_files(self.run))
        if difference is not None:
            raise TrialFailed(f"after the last run {difference}:\n{ended.text[-2_000:]}")
        return ended


# The faults. Each gets a trial whose folder nothing has touched, disturbs one or more runs and checks what they said.


def sigkill(trial: Trial) -> str:
    """Killed three times, anywhere."""
    ends = [trial.killed().code for _ in range(3)]
    trial.finish()
    return "killed" if -signal.SIGKILL in ends else "had ended"


def ctrl_c(trial: Trial) -> str:
    """SIGINT or SIGTERM, as Ctrl-C or a cluster's scheduler sends it."""
    ended = trial.start().signal_at(trial.moment(), trial.random.choice([signal.SIGINT, signal.SIGTERM]))
    if ended.code == EXIT_INTERRUPTED and "run the same command again" not in ended.text:
        raise TrialFailed(ended.text)
    if ended.code not in (EXIT_FINE, EXIT_INTERRUPTED, -signal.SIGTERM) or "Traceback" in ended.text:
        raise TrialFailed(f"exit {ended.code}: {ended.text}")
    trial.finish()
    return "had ended" if ended.code == EXIT_FINE else "interrupted"


def full_disk(trial: Trial) -> str:
    """The disk of run folder and cache is full after a random number of bytes, then made larger."""
    needed = sum(len(content) for content in trial.expected.values())
    size = int(trial.random.uniform(0.02, 0.95) * needed)
    with mounted(trial.folder / "place", f"size={size // 4096 * 4096 or 4096}"):
        ended = trial.start().end()
        if ended.code != EXIT_FINE:
            ended.clear(EXIT_RUN, "no space left on the disk.*what was finished is kept")
        remount(trial.folder / "place", f"size={LARGE_ENOUGH}")
        trial.finish()
    return "had room" if ended.code == EXIT_FINE else "full"


def read_only(trial: Trial) -> str:
    """Killed anywhere; then the disk can only be read; then written again."""
    with mounted(trial.folder / "place", f"size={LARGE_ENOUGH}"):
        trial.killed()
        remount(trial.folder / "place", "ro")
        trial.start().end().clear(EXIT_RUN, "no permission for .*Read-only file system.*--output")
        remount(trial.folder / "place", "rw")
        trial.finish()
    return "refused"


def out_of_memory(trial: Trial) -> str:
    """One allocation fails: in a pass, a training step, a shard, or a score of typicality."""
    place, call = trial.random.choice(ALLOCATING), trial.random.randrange(12)
    ended = trial.start(lambda: raise_at(place, call)).end()
    if ended.code == EXIT_FINE:
        ended.fine()
        went_on = "out of memory" in ended.text
        # Smaller batches may change the last bits of results, and nothing else.
        changed = [
            name
            for name, content in comparable_files(trial.run).items()
            if trial.expected.get(name) != content and name.startswith(("data/", "saes/")) and not went_on
        ]
        if changed:
            raise TrialFailed(f"{changed} changed")
        if went_on:
            for name in ("results", "data"):
                shutil.rmtree(trial.run / name)
        trial.finish()
        return "smaller batches" if went_on else "had ended"
    ended.clear(EXIT_RUN, "out of memory while .*what was finished is kept")
    trial.finish()
    return "one line"


ALLOCATING = (
    "sae_faithful.language_model:LanguageModel.activations",
    "sae_faithful.language_model:LanguageModel.logits",
    "sae_lens.training.sae_trainer:SAETrainer._train_step",
    "transformers:LlamaForCausalLM.generate",
)


def not_finite(trial: Trial) -> str:
    """The model's activations turn NaN from a random forward on."""
    call = trial.random.randrange(60)
    ended = trial.start(lambda: nan_from(call)).end()
    if ended.code != EXIT_FINE:
        ended.clear(EXIT_RUN, "not finite")
    trial.finish()
    return "had ended" if ended.code == EXIT_FINE else "stopped"


def damaged_file(trial: Trial) -> str:
    """A file of a finished step is cut short, changed or lost."""
    trial.start().end().fine()
    name = trial.random.choice(
        sorted(
            name for name in comparable_files(trial.run) if name.startswith(("data/", "saes/", "results/"))
        )
    )
    step = next(str(path) for path in (trial.run / name).parents if (path / "step.json").exists())
    how = damage(trial.run / name, trial.random)
    said = trial.finish().text
    if step not in said or "it will be made again" not in said:
        raise TrialFailed(f"{name} was {how}, and is not named:\n{said[:3_000]}")
    return how


def damaged_shard(trial: Trial) -> str:
    """A shard of generated text is cut short or changed, and the text made of it is gone."""
    trial.start().end().fine()
    shards = sorted(trial.cache.rglob("shard-*"))
    shard = trial.random.choice(shards)
    how = damage(shard, trial.random)
    shutil.rmtree(trial.run / "data" / "faithful")
    said = trial.finish().text
    # A lost shard is drawn again as one that never was.
    if how != "lost" and "does not match its checksum; it is drawn again" not in said:
        raise TrialFailed(f"{shard.name} was {how}, and is not named:\n{said[:3_000]}")
    return how


def damaged_checkpoint(trial: Trial) -> str:
    """Killed in training, and a file of a checkpoint is damaged."""
    running = trial.start()
    checkpoints = trial.run / "checkpoints"
    while running.wait(0.005) is None:
        if len(list(checkpoints.rglob("checkpoint.json"))) > trial.random.randrange(2):
            break
    running.signal_at(trial.random.uniform(0, 0.3), signal.SIGKILL)
    files = [path for path in checkpoints.rglob("*") if path.is_file() and not path.name.startswith(".")]
    if not files:
        trial.finish()
        return "had ended"
    file = trial.random.choice(sorted(files))
    how = damage(file, trial.random)
    said = trial.finish().text
    if "saes/faithful: reused" not in said and "is left out: " not in said:
        raise TrialFailed(f"{file.relative_to(trial.run)} was {how}, and is not named:\n{said[:3_000]}")
    return how


def two_at_once(trial: Trial) -> str:
    """A second process wants the folder while the first is at work."""
    first = trial.start()
    while not (trial.run / ".lock").exists() and first.wait(0.01) is None:
        pass
    first.wait(trial.random.uniform(0, 0.8 * trial.duration))
    second = trial.start().end()
    if second.code != EXIT_FINE:
        second.clear(EXIT_USAGE, f"is in use by process {first.pid} on .*, since ")
    first.end().fine()
    trial.finish()
    return "had ended" if second.code == EXIT_FINE else "refused"


def wandb_unreachable(trial: Trial) -> str:
    """W&B's server does not answer, answers with errors, or goes away."""
    with unreliable_server(trial.random) as (address, kind):
        ended = trial.start(
            environment={
                "WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": address,
                "WANDB_DIR": str(trial.folder), "WANDB_CONFIG_DIR": str(trial.folder),
                "WANDB_CACHE_DIR": str(trial.folder), "WANDB_DATA_DIR": str(trial.folder),
            },
            logger={"log_to_wandb": True, "wandb_project": "faults"},
        ).end()  # fmt: skip
    ended.fine()
    if "offline" not in ended.text:
        raise TrialFailed(f"W&B said nothing:\n{ended.text[-3_000:]}")
    # The same weights and results as without W&B; this says which of its runs belong together.
    (trial.run / "wandb.json").unlink()
    trial.finish()
    return kind


def hub_unreachable(trial: Trial) -> str:
    """A dataset is on a hub that does not answer, answers with errors, or goes away."""
    with unreliable_server(trial.random) as (address, kind):
        ended = trial.start(
            lambda: reach_for_hub(address),
            datasets={"web": {"plugin": "hub_dataset", "path": "nobody/texts", "n_tokens": 320}},
        ).end()
    ended.clear(ended.code or EXIT_RUN, "nobody/texts")
    if ended.code not in (EXIT_RUN, EXIT_USAGE):
        raise TrialFailed(f"exit {ended.code}")
    trial.finish()
    return kind


FAULTS: dict[str, Callable[[Trial], str]] = {
    fault.__name__: fault
    for fault in (
        sigkill, ctrl_c, full_disk, read_only, out_of_memory, not_finite, damaged_file, damaged_shard,
        damaged_checkpoint, two_at_once, wandb_unreachable, hub_unreachable,
    )
}  # fmt: skip
NEED_MOUNT = {"full_disk", "read_only"}


# The trials.


def make_model(folder: Path) -> None:
    """A random two-layer Llama of 64 tokens, with its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<bos>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, 64)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w2"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def config_of(model: Path) -> dict[str, Any]:
    """A few seconds of work, with every kind of step."""
    return {
        **SMALL_RUN,
        "model_name": str(model),
        "training_tokens": 12_800,
        "n_checkpoints": 4,
        "sources": {"faithful": {"plugin": "self_generated", "n_tokens": 4_800, "batch_size": 32}},
        "evaluators": ["shared_features", {"fake_features": {"n_tokens": 3_200}}, "reconstruction"],
        "typicality_tokens": 600,
    }


def do_trials(
    faults: list[str], times: int, seed: int, scratch: Path
) -> Iterator[tuple[str, int, str, str | None]]:
    """Each fault so often: its name, the trial's number, what happened, and what was wrong."""
    import_everything()
    model = scratch / "model"
    make_model(model)
    whole = Trial(scratch / "undisturbed", config_of(model), {}, 0.0, random.Random(seed))
    whole.folder.mkdir(parents=True)
    begun = time.monotonic()
    whole.start().end().fine()
    duration, expected = time.monotonic() - begun, comparable_files(whole.run)
    for name in faults:
        for number in range(times):
            trial = Trial(
                scratch / f"{name}{number}", config_of(model), expected, duration,
                random.Random(f"{seed} {name} {number}"),
            )  # fmt: skip
            trial.folder.mkdir()
            try:
                yield name, number, FAULTS[name](trial), None
            except Exception as error:
                kept = "" if isinstance(error, TrialFailed) else traceback.format_exc()
                yield name, number, "failed", f"{error}\n{kept}"
            else:
                shutil.rmtree(trial.folder, ignore_errors=True)


def _share(arguments: tuple[list[str], int, int]) -> list[tuple[str, int, str, str | None]]:
    faults, times, seed = arguments
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        found: list[tuple[str, int, str, str | None]] = []
        for one in do_trials(faults, times, seed, Path(scratch)):
            found.append(one)
            sys.stderr.write(f"{one[0]} {one[1]}: {one[2]}\n")
        return found


def main() -> int:
    """Print how each fault went; 1 where one was not borne."""
    parser = argparse.ArgumentParser(description="Faults at random moments against the real command.")
    parser.add_argument("--times", type=int, default=20, help="Trials of each fault.")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="Of the moments.")
    parser.add_argument("--only", nargs="*", choices=list(FAULTS), default=list(FAULTS), metavar="FAULT")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    faults = [name for name in options.only if name not in NEED_MOUNT or can_mount()]
    for name in sorted(set(options.only) - set(faults)):
        sys.stdout.write(f"{name}: not done, only root can mount a disk\n")
    shares = [(faults[i :: options.processes], options.times, options.seed) for i in range(options.processes)]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        done = [one for share in pool.map(_share, [s for s in shares if s[0]], chunksize=1) for one in share]
    sys.stdout.write(f"seed {options.seed}\n")
    for name in faults:
        kinds = Counter(kind for fault, _, kind, _ in done if fault == name)
        sys.stdout.write(
            f"{name:20} {kinds.total():4} {', '.join(f'{k}: {n}' for k, n in sorted(kinds.items()))}\n"
        )
    for name, number, _, wrong in done:
        if wrong is not None:
            sys.stdout.write(f"\n{name} {number}: {wrong}\n")
    return int(any(wrong for *_, wrong in done))


if __name__ == "__main__":
    sys.exit(main())
