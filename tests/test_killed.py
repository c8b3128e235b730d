"""The real command, killed at any moment and run again, ends where an undisturbed run ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .run_files import comparable_files, first_difference
from .small_run import SMALL_RUN

KILLS = int(os.environ.get("KILLS", "4"))
COMMAND = Path(sys.executable).with_name("sae-faithful")


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


def environment(cache: Path, **extra: str) -> dict[str, str]:
    return {**os.environ, "SAE_FAITHFUL_CACHE": str(cache), "HF_HUB_OFFLINE": "1", **extra}


def start(config: Path, output: Path, cache: Path, **extra: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [COMMAND, "run", config, "--output", output],
        env=environment(cache, **extra),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(config: Path, output: Path, cache: Path) -> None:
    process = start(config, output, cache)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()[-2_000:]


@pytest.fixture(scope="module")
def undisturbed(
    config_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], float]:
    """Files of a run that nobody disturbed, and how long it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    finish(config_file, folder / "run", folder / "cache")
    return comparable_files(folder / "run"), time.monotonic() - began


def assert_same(undisturbed: dict[str, bytes], run: Path) -> None:
    assert first_difference(undisturbed, comparable_files(run)) is None


def test_two_undisturbed_runs_agree_in_every_byte(
    undisturbed: tuple[dict[str, bytes], float], config_file: Path, tmp_path: Path
) -> None:
    finish(config_file, tmp_path / "run", tmp_path / "cache")
    assert_same(undisturbed[0], tmp_path / "run")


@pytest.mark.timeout(1_800)
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(
    undisturbed: tuple[dict[str, bytes], float], config_file: Path, tmp_path: Path
) -> None:
    """One run, killed again and again at moments drawn over the whole duration, then left to end."""
    expected, duration = undisturbed
    draw = random.Random(time.time_ns())
    for _ in range(KILLS):
        process = start(config_file, tmp_path / "run", tmp_path / "cache")
        moment = draw.uniform(0, duration)
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    finish(config_file, tmp_path / "run", tmp_path / "cache")
    assert_same(expected, tmp_path / "run")


# One kill inside each kind of write, in the order in which a run comes to them: `before` the call, `after` it,
# or `torn`: the file that it was given to write is cut in half.
WRITES = (
    ("sae_faithful_plugins.self_generated.shards:_write_shard", "torn"),
    ("sae_faithful_plugins.self_generated.shards:_write_shard", "after"),
    ("sae_faithful.tokens:TokenSet.save", "torn"),
    ("sae_faithful.run_folder:_sync", "torn"),  # JSON and text, aside
    ("sae_faithful.run_folder:RunFolder.replace", "before"),
    ("sae_lens.saes.sae:TrainingSAE.save_inference_model", "torn"),
    ("sae_faithful.run_folder:RunFolder.replace", "before"),  # now of the first SAE
    ("sae_faithful.run_folder:RunFolder.replace", "after"),  # one of two SAEs in its place
    ("pandas.core.frame:DataFrame.to_parquet", "torn"),
    ("sae_faithful.run_folder:RunFolder.replace", "after"),  # one of three evaluators done
    ("sae_faithful.experiment:merge_features", "after"),
    ("sae_faithful.report.markdown:render", "after"),
)

SITECUSTOMIZE = '''
import importlib.util, os, pathlib, signal, sys

module_name, _, path = os.environ["KILL_IN"].partition(":")
when = os.environ["KILL_WHEN"]


class Patch:
    """Wraps the named function once its module has been imported."""

    def find_spec(self, name, path_=None, target_=None):
        if name != module_name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader_exec = spec.loader.exec_module

        def exec_module(module):
            loader_exec(module)
            wrap(module)

        spec.loader.exec_module = exec_module
        return spec


def wrap(module):
    *parents, name = path.split(".")
    owner = module
    for parent in parents:
        owner = getattr(owner, parent)
    raw = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
    inner = raw.__func__ if isinstance(raw, staticmethod) else raw

    def killed(*args, **kwargs):
        if when != "before":
            inner(*args, **kwargs)
        if when == "torn":
            written = [pathlib.Path(arg) for arg in args if isinstance(arg, str | pathlib.Path)][0]
            for file in written.rglob("*") if written.is_dir() else [written]:
                os.truncate(file, file.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, staticmethod(killed) if isinstance(raw, staticmethod) else killed)


sys.meta_path.insert(0, Patch())
'''


@pytest.mark.timeout(600)
def test_killed_inside_each_kind_of_write_it_resumes_to_the_same_bytes(
    undisturbed: tuple[dict[str, bytes], float], config_file: Path, tmp_path: Path
) -> None:
    hook = tmp_path / "site"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(SITECUSTOMIZE)
    for write, when in WRITES:
        killers = {"PYTHONPATH": str(hook), "KILL_IN": write, "KILL_WHEN": when}
        process = start(config_file, tmp_path / "run", tmp_path / "cache", **killers)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, (write, when, errors.decode()[-2_000:])
    finish(config_file, tmp_path / "run", tmp_path / "cache")
    assert_same(undisturbed[0], tmp_path / "run")


def test_a_killed_generation_loses_at_most_one_shard(config_file: Path, tmp_path: Path) -> None:
    """Every whole shard that was on disk when the process died is used again, not drawn again."""
    process = start(config_file, tmp_path / "run", tmp_path / "cache")
    shards = tmp_path / "cache" / "self_generated"
    while len(list(shards.rglob("shard-*.sha256"))) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = [path.with_suffix(".arrow") for path in shards.rglob("shard-*.sha256")]
    before = {path: path.stat().st_mtime_ns for path in finished}
    assert len(before) >= 3
    finish(config_file, tmp_path / "run", tmp_path / "cache")
    assert {path: path.stat().st_mtime_ns for path in before} == before
