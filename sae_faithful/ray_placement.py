"""Units of runs on a Ray cluster: which worker does what, and what happens when one dies.

Ray places processes and carries messages. Every outcome goes through the run folder and the cache, which driver and
workers share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sae_faithful import interruption
from sae_faithful.interfaces import RunError
from sae_faithful.ray_cluster import connected, numeric_threads
from sae_faithful.ray_worker import (
    BEGUN,
    TOKEN_FILE,
    Done,
    Failed,
    Hello,
    Job,
    Setup,
    Worker,
    error_of,
    versions,
)
from sae_faithful.resources import Resources
from sae_faithful.run_folder import cache_dir, write_text
from sae_faithful.timings import kept
from sae_faithful.units import hash_of_steps

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from sae_faithful.placement import Rounds
    from sae_faithful.plan import Plan
    from sae_faithful.units import Experiment, Unit

log = logging.getLogger(__name__)

PASSED_ON = re.compile(
    r"(SAE_FAITHFUL|HF|HUGGING_?FACE|TRANSFORMERS|TOKENIZERS|WANDB|OPENAI|TORCH|PYTORCH|CUBLAS|MKL|OPENBLAS)_.*"
    r"|.*(TOKEN|KEY|SECRET|PASSWORD)"
    r"|(?i:(HTTP|HTTPS|NO|ALL)_PROXY)"
)
"""Environment variables that workers get from the driver: with a key goes the address that it is for."""
POLL_SECONDS = 0.2
PING_SECONDS = 5.0
"""Within which an idle worker answers, if it is alive."""
PATIENCE = 60.0
"""Seconds without a worker before the user is told what the cluster lacks."""


def key_variables(plan: Plan) -> set[str]:
    """Environment variables that hold keys, as the plugins' options name them: in fields that end in `key_env`."""
    planned = (
        *(text.source for text in plan.texts),
        *(one.evaluator for one in (*plan.evaluators, *plan.monitors)),
        *(one.baseline for one in plan.baselines),
    )
    options: Iterator[tuple[str, Any]] = (
        (entry.name, getattr(one, entry.name))
        for one in planned
        for entry in dataclasses.fields(cast(Any, one))
    )
    return {value for name, value in options if name.endswith("key_env") and isinstance(value, str)}


@contextlib.contextmanager
def on_ray(address: str, experiments: Sequence[Experiment]) -> Generator[RayPlacement]:
    """Workers on the cluster at `address`, for these runs; see `ray_cluster.connected`."""
    first = experiments[0].config
    wanted = Resources(**first.ray).of(first.threads, str(first.llm_device or first.device))
    with connected(address, wanted) as (ray, resources):
        yield RayPlacement(ray, resources, experiments)


@dataclass(eq=False)
class Run:
    """A run on its way: the units of its current round."""

    number: int
    experiment: Experiment
    rounds: Rounds
    waiting: list[Unit] = field(default_factory=list["Unit"])
    running: list[Unit] = field(default_factory=list["Unit"])
    over: bool = False

    def ready(self) -> Unit | None:
        """The next unit that waits for nothing."""
        open_ones = {unit.name for unit in (*self.waiting, *self.running)}
        return next((unit for unit in self.waiting if not open_ones & set(unit.after)), None)

    def advance(self) -> None:
        """While nothing waits or runs: the driver's own work, then the next round's units that are not done."""
        while not (self.over or self.waiting or self.running):
            with kept(self.experiment.timings):
                try:
                    units = list(next(self.rounds))
                except StopIteration:
                    self.over = True
                    return
                for unit in units:
                    if unit.finished(self.experiment):
                        unit.do(self.experiment)  # says so
                    else:
                        self.waiting.append(unit)


@dataclass(eq=False)
class Hand:
    """A worker, as the driver sees it."""

    number: int
    actor: Any
    hello: Hello | None = None
    read: int = 0
    """Bytes of its log."""
    given: int = 0
    """Units that it was given."""
    begun: int = 0
    """Units that it has begun, as its log says."""
    run: Run | None = None
    unit: Unit | None = None
    last: Run | None = None
    """Whose model it has loaded."""

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" on {self.hello.host}" if self.hello else "")


class RayPlacement:
    """One actor a worker; each does one unit at a time, and another is started for one that dies."""

    apart = True

    def __init__(self, ray: Any, resources: Resources, experiments: Sequence[Experiment]) -> None:
        self.ray = ray
        self.resources = resources
        self.experiments = experiments
        self.shared = experiments[0].folder.workers_dir
        self._hands: dict[Any, Hand] = {}
        """By the reference to what each is doing; idle ones apart."""
        self._idle: list[Hand] = []
        self._started = 0
        self._deaths: Counter[tuple[int, str]] = Counter()
        """Workers that died in a unit."""
        self._unstarted = 0
        """Workers that died before they began anything, since the last unit that was finished."""
        self._setup: Setup | None = None
        self._gpus: list[str] = []

    def facts(self) -> Mapping[str, Any]:
        """The workers' GPU."""
        return {"gpu": self._gpus[0]} if self._gpus else {}

    def do(self, runs: Sequence[tuple[Experiment, Rounds]]) -> None:
        """Do every round of every run.

        Raises:
            UsageError, RunError: of the first unit that fails; or a unit's workers died too often.
        """
        known = [Run(number, *run) for number, run in enumerate(runs)]
        try:
            while True:
                for run in known:
                    run.advance()
                if all(run.over for run in known):
                    return
                self._place(known)
                self._wait()
        finally:
            self._stop()

    def _place(self, runs: Sequence[Run]) -> None:
        """Give every idle worker a unit, if there is one: rather of the run whose model it has."""
        ready = sum(len(run.waiting) for run in runs)
        room = (self.resources.workers or 1) - len(self._hands) - len(self._idle)
        starting = sum(hand.hello is None for hand in self._hands.values())
        if self._unstarted > self.resources.max_retries and (self._hands or self._idle):
            room = 0  # the cluster has no more to give: go on with those that are there
        for _ in range(min(room, ready - len(self._idle) - starting)):
            self._start()
        for hand in list(self._idle):
            order = sorted(runs, key=lambda run: (run is not hand.last, run.number))
            for run in order:
                unit = run.ready()
                if unit is not None:
                    self._idle.remove(hand)
                    run.waiting.remove(unit)
                    run.running.append(unit)
                    hand.run, hand.unit, hand.last = run, unit, run
                    hand.given += 1
                    self._hands[hand.actor.do.remote(run.number, unit)] = hand
                    log.debug("%s: %s", hand, unit.name)
                    break

    def _start(self) -> None:
        setup = self._setup or self._prepare()
        self._started += 1
        each = self.resources
        actor = (
            self.ray.remote(Worker)
            .options(
                num_cpus=each.cpus_per_worker,
                num_gpus=each.gpus_per_worker,
                max_restarts=0,
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": numeric_threads()},
            )
            .remote(f"worker-{self._started}", setup)
        )
        hand = Hand(self._started, actor)
        self._hands[actor.begin.remote()] = hand

    def _prepare(self) -> Setup:
        """What all workers need, and the file by which they show that they see the folder."""
        token = secrets.token_hex(16)
        self.shared.mkdir(parents=True, exist_ok=True)
        write_text(self.shared / TOKEN_FILE, token)
        jobs = [
            Job(json.dumps(one.config.to_dict()), one.folder.root, one.threads, hash_of_steps(one))
            for one in self.experiments
        ]
        named = set[str]().union(*(key_variables(one.plan) for one in self.experiments))
        environment = {
            name: value for name, value in os.environ.items() if name in named or PASSED_ON.fullmatch(name)
        }
        environment["SAE_FAITHFUL_CACHE"] = str(cache_dir().absolute())
        self._setup = Setup(
            jobs=jobs,
            shared=self.shared,
            token=token,
            folder=Path.cwd(),
            environment=environment,
            level=log.getEffectiveLevel(),
            versions=versions(),
        )
        each = self.resources
        log.info(
            "ray: up to %d workers, %g CPUs and %g GPUs each",
            each.workers, each.cpus_per_worker, each.gpus_per_worker,
        )  # fmt: skip
        return self._setup

    def _wait(self) -> None:
        """Until something has happened."""
        begun, told = time.monotonic(), False
        while True:
            interruption.check()
            done, _ = self.ray.wait(list(self._hands), num_returns=1, timeout=POLL_SECONDS)
            for hand in (*self._hands.values(), *self._idle):
                self._read_log(hand)
            if done:
                break
            nobody = not self._idle and all(hand.hello is None for hand in self._hands.values())
            if nobody and not told and time.monotonic() - begun > PATIENCE:
                told = True
                free = self.ray.available_resources()
                log.warning(
                    "ray: no worker has started yet; free in the cluster: %g CPUs, %g GPUs",
                    free.get("CPU", 0), free.get("GPU", 0),
                )  # fmt: skip
        for reference in done:
            self._take(reference)

    def _take(self, reference: Any) -> None:
        """What a worker answered, or that it never will."""
        hand = self._hands.pop(reference)
        try:
            answer: Hello | Done | Failed = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self._read_log(hand)
            self._died(hand, error)
            return
        self._read_log(hand)
        self._idle.append(hand)
        if isinstance(answer, Failed):
            raise error_of(answer)
        if isinstance(answer, Hello):
            hand.hello = answer
            self._gpus += [answer.gpu] if answer.gpu else []
            log.info("worker %d: process %d on %s", hand.number, answer.process, answer.host)
        else:
            self._finished(hand, answer)

    def _finished(self, hand: Hand, done: Done) -> None:
        run, unit = hand.run, hand.unit
        assert run is not None and unit is not None
        hand.run = hand.unit = None
        run.running.remove(unit)
        self._unstarted = 0
        if done.first:
            log.info("%s: %d pieces to make first", unit.name, len(done.first))
            names = tuple(piece.name for piece in done.first)
            run.waiting[:0] = [*done.first, dataclasses.replace(unit, after=names)]  # pyright: ignore[reportArgumentType]
            return
        timings = run.experiment.timings
        for step, seconds in done.seconds.items():
            timings.add(step, seconds)
            if done.peak_memory is not None:
                timings.peaks[step] = done.peak_memory
        timings.write()

    def _died(self, hand: Hand, error: Exception) -> None:
        """Its unit goes to another; what it had begun is begun again.

        Raises:
            RunError: that has happened too often.
        """
        self._kill(hand)
        self._drop_silent()
        run, unit = hand.run, hand.unit
        if run is not None and unit is not None:
            run.running.remove(unit)
            run.waiting.insert(0, unit)
        if hand.begun == 0:
            self._did_not_start(hand, error)
        elif run is None or unit is None or hand.begun < hand.given:  # no fault of the unit
            log.warning("%s died while it was idle; its work is given to another", hand)
        else:
            self._deaths[run.number, unit.name] += 1
            times = self._deaths[run.number, unit.name]
            if times > self.resources.max_retries:
                raise self._too_often(f"{unit.name}: its worker died {times} times", hand, error)
            log.warning("%s died; %s is given to another", hand, unit.name)

    def _did_not_start(self, hand: Hand, error: Exception) -> None:
        """Count it; others that are there, or on their way, may still do all the work.

        Raises:
            RunError: there are none, and that has happened too often.
        """
        self._unstarted += 1
        if self._unstarted > self.resources.max_retries and not (self._hands or self._idle):
            raise self._too_often(f"a worker could not start {self._unstarted} times", hand, error)
        log.warning("%s died before it began anything; its work is given to another", hand)

    def _too_often(self, what: str, hand: Hand, error: Exception) -> RunError:
        reason = " ".join(str(error).split())[-300:]
        return RunError(f"{what}, last {hand} (ray.max_retries: {self.resources.max_retries}): {reason}")

    def _drop_silent(self) -> None:
        """Idle workers that no longer answer: where one died, its machine may be gone, and they with it."""
        pings = {hand.actor.ping.remote(): hand for hand in self._idle}
        if not pings:
            return
        done, _ = self.ray.wait(list(pings), num_returns=len(pings), timeout=PING_SECONDS)
        alive: list[Hand] = []
        for reference in done:
            with contextlib.suppress(self.ray.exceptions.RayError):
                self.ray.get(reference)
                alive.append(pings[reference])
        for hand in [hand for hand in self._idle if hand not in alive]:
            log.warning("%s no longer answers", hand)
            self._idle.remove(hand)
            self._kill(hand)

    def _kill(self, hand: Hand) -> None:
        with contextlib.suppress(Exception):
            self.ray.kill(hand.actor)

    def _read_log(self, hand: Hand) -> None:
        """What the worker has said since."""
        path = self.shared / f"worker-{hand.number}.log"
        try:
            with path.open("rb") as file:
                file.seek(hand.read)
                new = file.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        hand.read += len(whole)
        for line in whole.splitlines():
            said = json.loads(line)
            if BEGUN in said:
                hand.begun += 1
                continue
            log.log(said["level"], "[%s] %s", hand, said["message"])

    def _stop(self) -> None:
        """End every worker, and wait for that: nothing may be written once the run folder is given up."""
        for hand in (*self._hands.values(), *self._idle):
            self._kill(hand)
        self._hands, self._idle = {}, []
        if self._setup is None:
            return
        for experiment in self.experiments:
            if not experiment.folder.wait_for_workers(PATIENCE):
                log.warning("%s: workers still work in it", experiment.folder.root)
            else:
                shutil.rmtree(experiment.folder.workers_dir, ignore_errors=True)
