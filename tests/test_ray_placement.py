"""What the driver tells its workers, and what it does when some of them die: with stand-ins for Ray and its actors."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sae_faithful import RunError, ray_placement
from sae_faithful.config import ExperimentConfig
from sae_faithful.plan import plan_evaluators
from sae_faithful.ray_placement import RayPlacement
from sae_faithful.ray_worker import BEGUN, Done, Hello
from sae_faithful.registry import load_plugins
from sae_faithful.resources import Resources
from sae_faithful.run_folder import RunFolder
from sae_faithful.timings import Timings


def test_with_a_key_goes_the_address_that_it_is_for(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = {
        "OPENAI_API_KEY": "fake-openai-7f3a91c2",
        "OPENAI_BASE_URL": "http://gpu7:8000/v1",
        "OTHER_AUTH": "what server_key_env names",
        "HTTPS_PROXY": "http://proxy:3128",
        "no_proxy": "gpu7",
        "HF_HOME": "/shared/hf",
    }
    for name, value in {**passed, "UNNAMED_AUTH": "another's", "PROXY_HOUSE": "x"}.items():
        monkeypatch.setenv(name, value)
    plugins = load_plugins()
    drawn = plugins.create(
        "source", "self_generated",
        {"n_tokens": 100, "engine": "server", "server_url": "http://gpu7:8000/v1", "server_key_env": "OTHER_AUTH"},
    )  # fmt: skip
    plan = SimpleNamespace(
        texts=[SimpleNamespace(source=drawn)],
        evaluators=plan_evaluators(["reconstruction"], 0, plugins),
        monitors=[],
        baselines=[],
    )
    experiment: Any = SimpleNamespace(
        config=ExperimentConfig.from_dict(tiny_config), folder=RunFolder(tmp_path), threads=1, plan=plan
    )
    monkeypatch.setattr(ray_placement, "hash_of_steps", lambda one: "")
    each = Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0)
    environment = RayPlacement(None, each, [experiment])._prepare().environment
    assert passed.items() <= environment.items()
    assert not {"UNNAMED_AUTH", "PROXY_HOUSE"} & environment.keys()


class Gone(Exception):
    """Ray's error where an actor is no more."""


@dataclass(eq=False)
class Actor:
    """A worker's stand-in. It answers at once, unless it is dead."""

    number: int
    log: Path
    act: Callable[[Actor, str], None]
    """Called with `begin` or with the name of a unit, once it has begun; may set `dead`."""
    dead: bool = False

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *given: Reference(self, method, given))

    def answer(self, method: str, given: Sequence[Any]) -> Any:
        if self.dead:
            raise Gone
        if method == "ping":
            return None
        name = "begin" if method == "begin" else given[1].name
        if method == "do":
            with self.log.open("a") as file:
                file.write(json.dumps({BEGUN: name}) + "\n")
        self.act(self, name)
        if self.dead:
            raise Gone
        return Done() if method == "do" else Hello(host=f"node{self.number}", process=1, gpu=None)


@dataclass(eq=False)
class Reference:
    """What a call of an actor's method gives; asked for its outcome when that is fetched."""

    actor: Actor
    method: str
    given: Sequence[Any]


@dataclass
class FakeRay:
    """Of Ray what the driver calls; `act` is told what each actor begins."""

    folder: Path
    act: Callable[[Actor, str], None]
    actors: list[Actor] = field(default_factory=list["Actor"])
    exceptions: Any = field(default_factory=lambda: SimpleNamespace(RayError=Gone))

    def remote(self, worker: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self.start))

    def start(self, name: str, setup: Any) -> Actor:
        actor = Actor(len(self.actors) + 1, self.folder / f"{name}.log", self.act)
        self.actors.append(actor)
        return actor

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return references[:num_returns], references[num_returns:]

    def get(self, reference: Reference) -> Any:
        return reference.actor.answer(reference.method, reference.given)

    def kill(self, actor: Actor) -> None:
        actor.dead = True


@dataclass(frozen=True)
class Work:
    """A unit that only has a name."""

    name: str
    after: tuple[str, ...] = ()

    def finished(self, experiment: Any) -> bool:
        return False


def do(
    rounds: Sequence[int], folder: Path, act: Callable[[FakeRay, Actor, str], None], retries: int = 3
) -> tuple[list[str], FakeRay]:
    """Do rounds of so many units, named `ROUND.UNIT`, with as many as eight workers: what was begun, in order."""
    begun: list[str] = []

    def seen(actor: Actor, name: str) -> None:
        begun.append(name)
        act(ray, actor, name)

    def units() -> Generator[list[Any]]:
        for number, size in enumerate(rounds):
            yield [Work(f"{number}.{unit}") for unit in range(size)]

    experiment: Any = SimpleNamespace(folder=RunFolder(folder), timings=Timings(None))
    experiment.folder.workers_dir.mkdir(parents=True)
    ray = FakeRay(experiment.folder.workers_dir, seen)
    each = Resources(workers=8, cpus_per_worker=1, gpus_per_worker=0, max_retries=retries)
    placement = RayPlacement(ray, each, [experiment])
    placement._setup = SimpleNamespace()  # pyright: ignore[reportAttributeAccessIssue]
    placement.do([(experiment, units())])
    return [name for name in begun if name != "begin"], ray


@pytest.mark.parametrize("retries", [0, 3])
def test_workers_that_die_while_they_are_idle_cost_nothing(tmp_path: Path, retries: int) -> None:
    """Eight workers; the machine of five is gone before the next round, which has one unit."""

    def act(ray: FakeRay, actor: Actor, name: str) -> None:
        if name == "0.7":
            for other in ray.actors[:5]:
                other.dead = True

    begun, ray = do([8, 1], tmp_path, act, retries)
    assert sorted(begun) == [*(f"0.{unit}" for unit in range(8)), "1.0"]
    assert len(ray.actors) == 8


def test_a_lost_machine_counts_once_for_the_unit_that_was_done_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The idle ones of that machine are found before the unit is given to one of them."""

    def act(ray: FakeRay, actor: Actor, name: str) -> None:
        if name == "1.0" and not any(one.dead for one in ray.actors):
            for other in ray.actors[:5]:
                other.dead = True

    begun, _ray = do([8, 1], tmp_path, act, retries=1)
    assert begun[8:] == ["1.0", "1.0"]
    assert sum(line.endswith("no longer answers") for line in caplog.messages) == 4


def test_a_unit_that_kills_its_workers_still_ends_the_run(tmp_path: Path) -> None:
    def act(ray: FakeRay, actor: Actor, name: str) -> None:
        actor.dead = name == "0.1"

    with pytest.raises(RunError, match=r"^0\.1: its worker died 3 times, last worker \d+ on node\d+ \(ray"):
        do([2], tmp_path, act, retries=2)


def test_workers_that_cannot_start_end_the_run_only_where_no_other_is_left(tmp_path: Path) -> None:
    def all_but_two(ray: FakeRay, actor: Actor, name: str) -> None:
        actor.dead = actor.number not in (3, 6)

    begun, _ray = do([8], tmp_path / "some", all_but_two, retries=1)
    assert sorted(begun) == [f"0.{unit}" for unit in range(8)]

    def every(ray: FakeRay, actor: Actor, name: str) -> None:
        actor.dead = True

    with pytest.raises(RunError, match=r"^a worker could not start \d+ times, last worker \d+ \(ray"):
        do([8], tmp_path / "none", every, retries=1)
