"""Real Ray workers on this machine: what comes out is what one process makes, also where a worker is killed.

The longer form, with four workers: `make ray-tests`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sae_faithful import ExperimentConfig, RunError, UsageError, run, run_models
from sae_faithful.resources import Resources
from sae_faithful.several_models import configs_of_models

from .run_files import comparable_files, first_difference
from .small_run import SMALL_RUN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("ray")

WORKERS = [int(number) for number in os.environ.get("RAY_WORKERS", "1").split(",")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One instance of Ray for all tests; `--ray local` finds it."""
    from sae_faithful.ray_cluster import connected

    with connected("local", Resources(workers=max(4, *WORKERS), cpus_per_worker=1)):
        yield


@pytest.fixture(scope="module")
def content(tiny_llama: str) -> dict[str, Any]:
    return {
        **SMALL_RUN,
        "model_name": tiny_llama,
        "training_tokens": 6_000,
        "sources": {
            "faithful": {"plugin": "self_generated", "n_tokens": 3_200, "batch_size": 32},
            "cooler": {"plugin": "self_generated", "temperature": 0.8, "batch_size": 32},
        },
        "baselines": ["pca"],
        "evaluators": ["shared_features", "reconstruction"],
        "typicality_tokens": 400,
    }


def made(content: dict[str, Any], folder: Path, **options: Any) -> dict[str, bytes]:
    """Every file of a run with an empty cache of its own, as it can be compared: shards as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_FAITHFUL_CACHE", str(folder / "cache"))
        root = run(ExperimentConfig.from_dict(content), output=folder / "run", **options).root
    shards = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("shard-*")
        if path.is_file()
    }
    return {**comparable_files(root), **shards}


@pytest.fixture(scope="module")
def alone(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes, without Ray."""
    return made(content, tmp_path_factory.mktemp("alone"))


def assert_same(contents: dict[str, bytes], expected: dict[str, bytes]) -> None:
    # Several workers may have drawn shards beyond what was needed in the end.
    found = {name: content for name, content in contents.items() if name in expected or "/shard-" not in name}
    assert first_difference(expected, found) is None


class Listener(logging.Handler):
    """Hears every line of a run, and acts on it at once: the driver waits meanwhile."""

    def __init__(self, act: Callable[[str], None] = lambda line: None) -> None:
        super().__init__(logging.DEBUG)
        self.act = act
        self.lines: list[str] = []
        self.processes: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        self.lines.append(line)
        if found := re.match(r"(worker \d+): process (\d+) on ", line):
            self.processes[found[1]] = int(found[2])
        self.act(line)


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    logger = logging.getLogger("sae_faithful")
    handlers: list[Listener] = []

    def attach(act: Callable[[str], None] = lambda line: None) -> Listener:
        handlers.append(Listener(act))
        logger.addHandler(handlers[-1])
        logger.setLevel(logging.DEBUG)
        return handlers[-1]

    yield attach
    for handler in handlers:
        logger.removeHandler(handler)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", WORKERS)
def test_workers_make_what_one_process_makes(
    workers: int, content: dict[str, Any], alone: dict[str, bytes], cluster: None, tmp_path: Path,
    listen: Callable[..., Listener],
) -> None:  # fmt: skip
    heard = listen()
    contents = made({**content, "ray": {"workers": workers}}, tmp_path, ray="local")
    assert_same(contents, alone)
    # One that starts slowly may find nothing left to do.
    assert 1 <= len(heard.processes) <= workers
    # Every worker has done something, and said so.
    for name in heard.processes:
        assert any(line.startswith(f"[{name} on ") for line in heard.lines)
    assert not list(tmp_path.rglob(".partial-*"))
    seconds = {row["step"]: row for row in json.loads((tmp_path / "run/timings.json").read_text())["steps"]}
    assert {"data/cooler", "saes/faithful", "results/reconstruction"} <= seconds.keys()


@pytest.mark.timeout(600)
def test_killed_workers_cost_their_unit_and_change_nothing(
    content: dict[str, Any], alone: dict[str, bytes], cluster: None, tmp_path: Path,
    listen: Callable[..., Listener],
) -> None:  # fmt: skip
    """Two workers; the one that draws a certain shard is killed, then the one that trains a certain source."""
    killed: dict[str, str] = {}
    moments = {
        "shard": r"(worker \d+) on .*: data/faithful: shard 3",
        "saes": r"\[(worker \d+) on .* training 2 SAEs",
    }

    def kill(line: str) -> None:
        for what, moment in moments.items():
            if what not in killed and (found := re.match(moment, line)):
                killed[what] = found[1]
                os.kill(heard.processes[found[1]], signal.SIGKILL)

    heard = listen(kill)
    contents = made({**content, "ray": {"workers": 2}}, tmp_path, ray="local")
    assert set(killed) == {"shard", "saes"}
    # Both killed, and who took their work over: one or two, since one that starts slowly may find nothing left.
    assert 3 <= len(heard.processes) <= 4
    assert sum("is given to another" in line for line in heard.lines) == 2
    assert_same(contents, alone)


@pytest.mark.timeout(600)
def test_several_models_share_the_workers(
    content: dict[str, Any], cluster: None, tmp_path: Path, cache: Path, listen: Callable[..., Listener]
) -> None:
    fields = {"evaluators": ["shared_features"], "baselines": [], "ray": {"workers": 1}}
    models = {"low": {}, "high": {"hook_name": "model.layers.1"}}
    configs = configs_of_models({**content, **fields, "models": models})
    here = run_models(configs, output=tmp_path / "here")
    heard = listen()
    there = run_models(configs, output=tmp_path / "there", ray="local")
    assert len(heard.processes) == 1
    for name in models:
        expected, found = comparable_files(here[name].root), comparable_files(there[name].root)
        assert first_difference(expected, found) is None
    assert (tmp_path / "there" / "comparison.html").read_bytes() == (
        tmp_path / "here" / "comparison.html"
    ).read_bytes()


@pytest.mark.timeout(300)
def test_a_unit_whose_workers_keep_dying_ends_the_run_in_one_line(
    content: dict[str, Any], cluster: None, tmp_path: Path, cache: Path, listen: Callable[..., Listener]
) -> None:
    def kill(line: str) -> None:
        if found := re.match(r"(worker \d+) on .*: data/faithful$", line):
            # Only what has begun counts.
            said = tmp_path / "run/.partial-workers" / f"{found[1].replace(' ', '-')}.log"
            while not said.exists() or '"begun": "data/faithful"' not in said.read_text():
                time.sleep(0.001)
            os.kill(heard.processes[found[1]], signal.SIGKILL)

    heard = listen(kill)
    config = ExperimentConfig.from_dict({**content, "ray": {"workers": 1, "max_retries": 0}})
    with pytest.raises(
        RunError, match=r"^data/faithful: its worker died 1 times, last worker 1 on "
    ) as error:
        run(config, output=tmp_path / "run", until="data", ray="local")
    assert "\n" not in str(error.value)
    assert "ray.max_retries: 0" in str(error.value)
    assert not list((tmp_path / "run").rglob(".partial-workers"))


@pytest.mark.timeout(300)
def test_an_error_in_a_worker_is_the_error_of_one_process(
    content: dict[str, Any], cluster: None, tmp_path: Path, cache: Path
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("w5 w6 w7")
    sources = {"short": {"plugin": "text_files", "path": str(text), "n_tokens": 3_200}}
    config = ExperimentConfig.from_dict({**content, "sources": sources, "ray": {"workers": 1}})
    with pytest.raises(RunError) as here:
        run(config, output=tmp_path / "here", until="data")
    with pytest.raises(RunError) as there:
        run(config, output=tmp_path / "there", until="data", ray="local")
    assert str(there.value) == str(here.value)


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        ({"cpus_per_worker": 1000}, "a worker needs 1000 CPUs and 0 GPUs on one machine"),
        ({"gpus_per_worker": 1}, "a worker needs 1 CPUs and 1 GPUs on one machine"),
    ],
)
def test_a_cluster_without_room_is_a_usage_error_before_anything_is_written(
    resources: dict[str, Any], says: str, content: dict[str, Any], cluster: None, tmp_path: Path
) -> None:
    config = ExperimentConfig.from_dict({**content, "ray": resources})
    with pytest.raises(UsageError, match=says):
        run(config, output=tmp_path / "run", ray="local")
    assert not (tmp_path / "run").exists()


def test_plugins_and_models_made_in_code_stay_in_their_process(
    content: dict[str, Any], tmp_path: Path
) -> None:
    from sae_faithful import load_plugins

    with pytest.raises(UsageError, match="workers find plugins and models by name"):
        run(ExperimentConfig.from_dict(content), output=tmp_path / "run", plugins=load_plugins(), ray="local")
