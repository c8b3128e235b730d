from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sae_faithful.interfaces import RunError, UsageError
from sae_faithful.run_folder import RunFolder, Step, cache_dir, write_aside, write_json, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOLD_THE_LOCK = """
import sys
from sae_faithful.run_folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""
TRY_THE_LOCK = """
import sys
from sae_faithful.run_folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("locked")
"""
DIE_WHILE_WRITING = """
import os, signal, sys
from sae_faithful.run_folder import RunFolder, Step
with RunFolder(sys.argv[1]).writing(Step("data/news", {"n": 1}, {})) as partial:
    (partial / "train.arrow").write_text("half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def step(path: str = "data/news", settings: object = 1, inputs: object = 1) -> Step:
    return Step(path, {"sources.news.n_tokens": settings}, {"model": inputs})


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@contextlib.contextmanager
def another_owner(folder: RunFolder) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, str(folder.root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process


# Steps


def changed(path: Path, key: str, value: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


def test_a_written_step_stands_whole_in_its_place(folder: RunFolder) -> None:
    with folder.writing(step()) as partial:
        (partial / "train.arrow").write_text("tokens")
        assert not folder.data_dir("news").exists()
    assert (folder.data_dir("news") / "train.arrow").read_text() == "tokens"
    assert files(folder.root) == ["data/news/step.json", "data/news/train.arrow"]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda made: (made / "train.arrow").write_text("token"), "train.arrow does not match its checksum"),
        (lambda made: (made / "deep" / "card.json").unlink(), "deep/card.json is missing"),
        (lambda made: (made / "step.json").write_text('{"hash": '), "step.json is damaged"),
        (lambda made: (made / "step.json").write_text("[]"), "step.json is damaged"),
        (lambda made: (made / "step.json").write_bytes(b"\xff\xfe"), "step.json is damaged"),
        (lambda made: changed(made / "step.json", "hash", "0" * 16), "step.json is damaged"),
        (lambda made: changed(made / "step.json", "settings", {"another": 1}), "step.json is damaged"),
        (lambda made: (made / "step.json").unlink(), "step.json is missing"),
    ],
    ids=[
        "truncated",
        "missing",
        "half a record",
        "another record",
        "no text",
        "hash",
        "setting",
        "no record",
    ],
)
def test_a_damaged_step_is_named_once_and_is_not_finished(
    folder: RunFolder, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], named: str
) -> None:
    def write() -> None:
        with folder.writing(step()) as partial:
            (partial / "train.arrow").write_text("tokens")
            (partial / "deep").mkdir()
            (partial / "deep" / "card.json").write_text("{}")

    write()
    assert RunFolder(folder.root).finished(step())
    damage(folder.data_dir("news"))
    again = RunFolder(folder.root)
    again.check_settings([step()])
    assert not again.finished(step())
    assert not again.finished(step())
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder.data_dir('news')}: {named}; it will be made again"
    ]
    write()
    assert RunFolder(folder.root).finished(step())
    again.check_settings([step()])
    assert again.finished(step())  # whoever made it again


def test_a_step_that_fails_does_not_appear(folder: RunFolder) -> None:
    with pytest.raises(RuntimeError, match="out of text"), folder.writing(step()) as partial:
        (partial / "train.arrow").write_text("half of it")
        raise RuntimeError("out of text")
    assert not folder.data_dir("news").exists()
    assert not folder.finished(step())


def test_a_failed_step_can_be_written_again_and_holds_nothing_of_the_failure(folder: RunFolder) -> None:
    with contextlib.suppress(RuntimeError), folder.writing(step()) as partial:
        (partial / "leftover").write_text("half of it")
        raise RuntimeError
    with folder.writing(step()) as partial:
        (partial / "train.arrow").write_text("tokens")
    assert files(folder.root) == ["data/news/step.json", "data/news/train.arrow"]


def test_a_killed_step_leaves_nothing_behind_once_cleared(folder: RunFolder) -> None:
    killed = subprocess.run([sys.executable, "-c", DIE_WHILE_WRITING, str(folder.root)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not folder.finished(Step("data/news", {"n": 1}, {}))
    assert not folder.data_dir("news").exists()
    # The half-written file is there, under a name that nothing reads.
    assert len(files(folder.root)) == 1
    folder.clear_partial()
    assert files(folder.root) == []


def test_clear_partial_keeps_finished_steps_and_takes_partial_files_at_any_depth(folder: RunFolder) -> None:
    with folder.writing(step("saes/news/h/v/seed0")) as partial:
        (partial / "weights").write_text("w")
    (folder.root / "saes/news/h/v/.partial-seed1/.partial-inner").mkdir(parents=True)
    (folder.root / "saes/news/h/v/.partial-seed1/.partial-inner/weights").write_text("half")
    (folder.root / ".partial-results.jsonl").write_text("half")
    (folder.root / "results.jsonl").write_text("whole")
    folder.clear_partial()
    assert files(folder.root) == [
        "results.jsonl",
        "saes/news/h/v/seed0/step.json",
        "saes/news/h/v/seed0/weights",
    ]
    assert [path.name for path in (folder.root / "saes/news/h/v").iterdir()] == ["seed0"]


def test_a_step_is_finished_for_its_own_settings_and_inputs_only(folder: RunFolder) -> None:
    assert not folder.finished(step())
    with folder.writing(step()):
        pass
    assert folder.finished(step())
    assert not folder.finished(step(settings=2))
    assert not folder.finished(step(inputs=2))
    assert not folder.finished(step(path="data/code"))


def test_a_step_written_again_replaces_the_one_before(folder: RunFolder) -> None:
    with folder.writing(step(inputs=1)) as partial:
        (partial / "old").write_text("old")
    with folder.writing(step(inputs=2)) as partial:
        (partial / "new").write_text("new")
    assert files(folder.root) == ["data/news/new", "data/news/step.json"]
    assert folder.finished(step(inputs=2))
    assert not folder.finished(step(inputs=1))


def test_a_failed_replacement_leaves_the_step_before_as_it_was(folder: RunFolder) -> None:
    with folder.writing(step(inputs=1)) as partial:
        (partial / "old").write_text("old")
    with contextlib.suppress(RuntimeError), folder.writing(step(inputs=2)) as partial:
        (partial / "new").write_text("new")
        raise RuntimeError
    assert files(folder.data_dir("news")) == ["old", "step.json"]
    assert folder.finished(step(inputs=1))


def test_a_sealed_folder_becomes_the_step(folder: RunFolder) -> None:
    made = folder.root / "work" / "seed0"
    made.mkdir(parents=True)
    (made / "weights").write_text("w")
    folder.seal(made, step("saes/news/h/v/seed0"))
    assert not folder.finished(step("saes/news/h/v/seed0"))
    folder.put(made, step("saes/news/h/v/seed0"))
    assert files(folder.root) == ["saes/news/h/v/seed0/step.json", "saes/news/h/v/seed0/weights"]
    assert folder.finished(step("saes/news/h/v/seed0"))


def test_a_folder_has_one_place_for_everything(folder: RunFolder) -> None:
    assert folder.sae_dir("news", "h.3", "wide", 2) == folder.root / "saes/news/h.3/wide/seed2"
    assert folder.result_dir("shared_features") == folder.root / "results/shared_features"
    assert folder.data_dir("news") == folder.root / "data/news"


# Settings


def test_every_setting_that_differs_from_a_finished_step_is_named(folder: RunFolder) -> None:
    with folder.writing(Step("saes/news", {"lr": 1e-3, "k": 32, "seed": 0, "gone": "x"}, {})):
        pass
    changed = Step("saes/news", {"lr": 3e-4, "k": 32, "seed": 1, "added": True}, {})
    with pytest.raises(UsageError) as error:
        folder.check_settings([changed])
    message = str(error.value)
    # Added, gone, lr and seed differ; k does not.
    assert "'saes/news'" in message
    assert str(folder.root) in message
    assert (
        "(added: None there, True now, gone: 'x' there, None now, lr: 0.001 there, 0.0003 now, "
        "seed: 0 there, 1 now)"
    ) in message


def test_every_step_is_checked_not_only_the_first(folder: RunFolder) -> None:
    for path in ("data/news", "data/code"):
        with folder.writing(step(path)):
            pass
    with pytest.raises(UsageError, match="'data/code'"):
        folder.check_settings([step("data/news"), step("data/code", settings=2)])


def test_equal_settings_and_unmade_steps_pass(folder: RunFolder) -> None:
    # Settings are compared as JSON says them: a tuple is a list, a whole number as a key is text.
    with folder.writing(Step("saes/news", {"seeds": (0, 1), "by_size": {1: 2}}, {})):
        pass
    same = Step("saes/news", {"seeds": [0, 1], "by_size": {"1": 2}}, {})
    folder.check_settings([same, step("data/never_made")])
    assert folder.finished(same)


def test_other_inputs_are_no_error_but_make_the_step_due_again(folder: RunFolder) -> None:
    with folder.writing(step(inputs=1)):
        pass
    folder.check_settings([step(inputs=2)])
    assert not folder.finished(step(inputs=2))


# The lock


def test_a_folder_that_another_process_owns_is_refused_and_the_owner_named(folder: RunFolder) -> None:
    with another_owner(folder) as process:
        with pytest.raises(UsageError) as error, folder.locked():
            pass
        owner = f"process {process.pid} on {socket.gethostname()}"
        assert str(error.value).startswith(f"{folder.root} is in use by {owner}, since 20")


def test_another_process_is_refused_a_folder_that_this_one_owns(folder: RunFolder) -> None:
    command = [sys.executable, "-c", TRY_THE_LOCK, str(folder.root)]
    with folder.locked():
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    allowed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert f"is in use by process {os.getpid()} on {socket.gethostname()}" in refused.stderr
    assert (allowed.returncode, allowed.stdout) == (0, "locked\n")


def test_a_killed_owner_loses_the_folder(folder: RunFolder) -> None:
    with another_owner(folder) as process:
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        with folder.locked():
            # The dead owner's name is gone too.
            assert (
                (folder.root / ".lock")
                .read_text()
                .startswith(f"process {os.getpid()} on {socket.gethostname()}, since")
            )


def test_the_lock_is_released_by_an_error_inside(folder: RunFolder) -> None:
    with pytest.raises(RuntimeError, match="inside"), folder.locked():
        raise RuntimeError("inside")
    with folder.locked():
        pass
    assert (folder.root / ".lock").read_text() == ""


def refusing(number: int, operation: int) -> Callable[[int, int], None]:
    """`flock` as a file system has it that answers one kind of lock with this error."""

    def flock(descriptor: int, asked: int) -> None:
        if asked & operation:
            raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("take", ["locked", "joined"])
def test_a_file_system_without_locks_is_named_as_such(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, number: int, take: str
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(number, fcntl.LOCK_SH | fcntl.LOCK_EX))
    with pytest.raises(RunError) as error, getattr(folder, take)():
        pass
    assert str(error.value) == (
        f"{folder.root} cannot be locked ({os.strerror(number)}): its file system has no locks; give another "
        "--output, or have it mounted with them (Lustre: -o flock)"
    )


def test_workers_hold_a_lock_where_a_shared_one_needs_a_file_that_can_be_read(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, which answers EBADF otherwise."""
    flock = fcntl.flock

    def as_nfs(descriptor: int, asked: int) -> None:
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_WRONLY if asked & fcntl.LOCK_SH else os.O_RDONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, asked)

    monkeypatch.setattr(fcntl, "flock", as_nfs)
    with folder.joined(), folder.joined():
        assert not folder.wait_for_workers(0)
    assert folder.wait_for_workers(0)


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_worker_that_gets_no_lock_does_not_go_on_without_one(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(number, fcntl.LOCK_SH))
    with pytest.raises(RunError, match="is being taken over by another process"), folder.joined():
        pass


# Files


def test_json_is_written_for_people_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "card.json"
    write_json(path, {"text": "naïve", "n": 1})
    assert path.read_text(encoding="utf-8") == '{\n  "text": "naïve",\n  "n": 1\n}\n'
    assert json.loads(path.read_text(encoding="utf-8")) == {"text": "naïve", "n": 1}


def test_json_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    write_json(path, {"n": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"n": float("nan")})
    assert json.loads(path.read_text()) == {"n": 1}
    assert files(tmp_path) == ["card.json"]


def test_a_writer_that_fails_halfway_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    write_text(path, "whole")

    def halfway(partial: Path) -> None:
        partial.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_aside(path, halfway)
    assert path.read_text() == "whole"


def test_the_cache_is_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_FAITHFUL_CACHE", str(tmp_path / "elsewhere"))
    assert cache_dir() == tmp_path / "elsewhere"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SAE_FAITHFUL_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("SAE_FAITHFUL_CACHE")
    assert cache_dir() == tmp_path / ".cache" / "sae_faithful"
