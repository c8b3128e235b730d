"""The command, killed at any moment and run again, ends where an undisturbed run of the real command ends.

The runs that are killed are processes forked from one that has done the imports, which take longer than a run.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from .forked import be_the_command
from .run_files import comparable_files, first_difference
from .small_run import SMALL_RUN

KILLS = int(os.environ.get("KILLS", "4"))
COMMAND = Path(sys.executable).with_name("sae-faithful")
LONGEST = 300
"""Seconds after which a run counts as hung."""
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.preloaded"])


@pytest.fixture(scope="module")
def config_file(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config: dict[str, Any] = {
        **SMALL_RUN,
        "model_name": tiny_llama,
        "training_tokens": 20_000,
        "sources": {"faithful": {"plugin": "self_generated", "n_tokens": 6_400, "batch_size": 32}},
        "evaluators": ["shared_features", {"fake_features": {"n_tokens": 4_000}}, "reconstruction"],
        "typicality_tokens": 1_000,
    }
    path = tmp_path_factory.mktemp("config") / "experiment.json"
    path.write_text(json.dumps(config))
    return path


def start(config: Path, workplace: Path, killer: partial[None] | None = None) -> BaseProcess:
    """The command on the run folder and the cache of `workplace`; what it prints goes there too."""
    process = FORKED.Process(
        target=be_the_command,
        args=(
            ["run", str(config), "--output", str(workplace / "run")],
            workplace / "output",
            killer,
            {"SAE_FAITHFUL_CACHE": str(workplace / "cache")},
        ),
    )
    process.start()
    return process


def finish(config: Path, workplace: Path) -> None:
    process = start(config, workplace)
    process.join(LONGEST)
    assert process.exitcode == 0, (workplace / "output").read_text()[-2_000:]


@pytest.fixture(scope="module")
def undisturbed(
    config_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], float]:
    """Files of a run of the real command, and how long one takes without the imports."""
    folder = tmp_path_factory.mktemp("undisturbed")
    environment = {
        **os.environ, "SAE_FAITHFUL_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [COMMAND, "run", config_file, "--output", folder / "run"],
        env=environment, capture_output=True, text=True, check=False, timeout=2 * LONGEST,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    (folder / "again").mkdir()
    began = time.monotonic()
    finish(config_file, folder / "again")
    duration = time.monotonic() - began
    files = comparable_files(folder / "run")
    assert_same(files, folder / "again" / "run")
    return files, duration


def assert_same(undisturbed: dict[str, bytes], run: Path) -> None:
    assert first_difference(undisturbed, comparable_files(run)) is None


@pytest.mark.timeout(1_800)
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(
    undisturbed: tuple[dict[str, bytes], float], config_file: Path, tmp_path: Path
) -> None:
    """One run, killed again and again at moments drawn over the whole duration, then left to end."""
    expected, duration = undisturbed
    draw = random.Random(time.time_ns())
    for _ in range(KILLS):
        process = start(config_file, tmp_path)
        process.join(draw.uniform(0, duration))
        process.kill()
        process.join()
    finish(config_file, tmp_path)
    assert_same(expected, tmp_path / "run")


# One kill inside each kind of write, in the order in which a run comes to them: `before` the call, `after` it,
# or `torn`: the file that it was given to write is cut in half.
WRITES = (
    ("sae_faithful_plugins.self_generated.shards:_write_shard", "torn"),
    ("sae_faithful_plugins.self_generated.shards:_write_shard", "after"),
    ("sae_faithful.tokens:TokenSet.save", "torn"),
    ("sae_faithful.run_folder:_sync", "torn"),  # JSON and text, aside
    ("sae_faithful.run_folder:RunFolder.put", "before"),
    ("sae_lens.saes.sae:TrainingSAE.save_inference_model", "torn"),
    ("sae_faithful.run_folder:RunFolder.put", "before"),  # now of the first SAE
    ("sae_faithful.run_folder:RunFolder.put", "after"),  # one of two SAEs in its place
    ("pandas.core.frame:DataFrame.to_parquet", "torn"),
    ("sae_faithful.run_folder:RunFolder.put", "after"),  # one of three evaluators done
    ("sae_faithful.experiment:merge_features", "after"),
    ("sae_faithful.report.writing:render", "after"),
)


def kill_in(place: str, when: str) -> None:
    """Let the named function kill the process that calls it."""
    module, _, path = place.partition(":")
    *parents, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    raw = owner.__dict__[name]
    inner = raw.__func__ if isinstance(raw, staticmethod) else raw

    def killed(*args: Any, **kwargs: Any) -> None:
        if when != "before":
            inner(*args, **kwargs)
        if when == "torn":
            written = next(Path(arg) for arg in args if isinstance(arg, str | Path))
            for file in written.rglob("*") if written.is_dir() else [written]:
                os.truncate(file, file.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, staticmethod(killed) if isinstance(raw, staticmethod) else killed)


@pytest.mark.timeout(600)
def test_killed_inside_each_kind_of_write_it_resumes_to_the_same_bytes(
    undisturbed: tuple[dict[str, bytes], float], config_file: Path, tmp_path: Path
) -> None:
    for place, when in WRITES:
        process = start(config_file, tmp_path, partial(kill_in, place, when))
        process.join(LONGEST)
        said = (tmp_path / "output").read_text()
        assert process.exitcode == -signal.SIGKILL, (place, when, said[-2_000:])
    finish(config_file, tmp_path)
    assert_same(undisturbed[0], tmp_path / "run")


def test_a_killed_generation_loses_at_most_one_shard(config_file: Path, tmp_path: Path) -> None:
    """Every whole shard that was on disk when the process died is used again, not drawn again."""
    process = start(config_file, tmp_path)
    shards = tmp_path / "cache" / "self_generated"
    while len(list(shards.rglob("shard-*.sha256"))) < 3 and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    finished = [path.with_suffix(".arrow") for path in shards.rglob("shard-*.sha256")]
    before = {path: path.stat().st_mtime_ns for path in finished}
    assert len(before) >= 3
    finish(config_file, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
