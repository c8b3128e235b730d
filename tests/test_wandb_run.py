"""Our W&B runs: a host that is not there, does not answer or is lost costs one line, and never the work."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_faithful import WandbRun, open_wandb_run
from sae_faithful.redaction import hidden
from sae_faithful.wandb_names import LONGEST, artifact_name
from sae_faithful.wandb_run import group_of, one_experiment

from .wandb_files import logged_runs

KEY = "0123456789" * 4
CONFIG: dict[str, Any] = {
    "model_name": "models/tiny",
    "sae": {"architecture": "topk"},
    "logger": {"wandb_project": "p", "wandb_entity": None, "wandb_id": None, "run_name": "name"},
}


@pytest.fixture
def online(wandb_home: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A user who is logged in and wants W&B online; hosts have two seconds."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("sae_faithful.wandb_run.INIT_SECONDS", 2.0)
    return monkeypatch


@pytest.fixture
def silent_host() -> Iterator[str]:
    """The address of a host that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in records if record.name.startswith("sae_faithful")]


def assert_one_offline_run(run: WandbRun, home: Path) -> None:
    run.log({"a": 1.0})
    run.finish()
    found = [one for one in logged_runs(home) if one.exit_code is not None]
    assert [(one.run.display_name, one.logged["a"]) for one in found] == [("name", 1.0)]


def test_an_unreachable_host_is_one_line_and_an_offline_run(
    online: pytest.MonkeyPatch, wandb_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    online.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    run = open_wandb_run(CONFIG, job_type="train")
    (line,) = warnings(caplog)
    assert line.startswith("W&B at http://127.0.0.1:9: ")
    # In W&B's words, which differ by its version and by whether it came to ask twice.
    assert re.search("connection refused|giving up after", line)
    (folder,) = wandb_home.glob("wandb/offline-run-*")
    assert line.endswith(f"; logging offline (`wandb sync {folder}` uploads it)")
    assert "\n" not in line
    assert_one_offline_run(run, wandb_home)


def test_a_host_that_never_answers_is_waited_for_once_an_experiment(
    online: pytest.MonkeyPatch, wandb_home: Path, silent_host: str, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    asked: list[str] = []
    init = wandb.init
    online.setenv("WANDB_BASE_URL", silent_host)
    online.setattr(
        wandb, "init", lambda **options: (asked.append(options.get("mode", "online")), init(**options))[1]
    )
    with one_experiment():
        open_wandb_run(CONFIG, job_type="train").finish()
        run = open_wandb_run({**CONFIG, "seed": 1}, job_type="train")
    assert asked == ["online", "offline", "offline"]
    (line,) = warnings(caplog)
    assert line.startswith(f"W&B at {silent_host}: ")
    assert not run.online
    run.finish()
    # Another experiment asks again.
    open_wandb_run(CONFIG, job_type="train").finish()
    assert asked[3:] == ["online", "offline"]


def test_the_wait_for_a_host_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    from sae_faithful import wandb_run

    monkeypatch.delenv("WANDB_INIT_TIMEOUT", raising=False)
    assert wandb.Settings(**wandb_run._settings(wandb.Settings)).init_timeout == wandb_run.INIT_SECONDS <= 30
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "99")
    assert "init_timeout" not in wandb_run._settings(wandb.Settings)


def test_nobody_logged_in_is_one_line_and_no_question(
    wandb_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from wandb.errors import term

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:10")
    # At a terminal W&B would ask for an account.
    monkeypatch.setattr(term, "terminput", lambda *_, **__: pytest.fail("it asks"))
    monkeypatch.setattr(term, "can_use_terminput", lambda: True)
    run = open_wandb_run(CONFIG, job_type="train")
    (line,) = warnings(caplog)
    assert line.startswith(
        "W&B at http://127.0.0.1:10: not logged in (`wandb login` does that); logging offline"
    )
    assert_one_offline_run(run, wandb_home)


def test_a_key_that_cannot_be_one_is_one_line_too(
    online: pytest.MonkeyPatch, wandb_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    online.setenv("WANDB_BASE_URL", "http://127.0.0.1:11")
    online.setenv("WANDB_API_KEY", "short")
    run = open_wandb_run(CONFIG, job_type="train")
    (line,) = warnings(caplog)
    assert "logging offline" in line
    assert "short" not in line.partition("; ")[0].replace("too short", "")
    assert_one_offline_run(run, wandb_home)


def test_offline_by_choice_says_nothing_and_disabled_leaves_nothing(
    wandb_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    assert_one_offline_run(open_wandb_run(CONFIG, job_type="train"), wandb_home)
    assert warnings(caplog) == []
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = open_wandb_run(CONFIG, job_type="train")
    run.log({"a": 1.0})
    run.log_files("n", "t", [Path(__file__)], {})
    run.finish()
    assert len(logged_runs(wandb_home)) == 1


def test_a_run_of_the_users_own_stays_open(wandb_home: Path) -> None:
    import wandb

    with wandb.init(project="theirs") as theirs:
        run = open_wandb_run(CONFIG, job_type="train")
        run.log({"ours": 1.0})
        run.finish()
        assert wandb.run is theirs
        wandb.log({"theirs": 2.0})
    found = {one.run.project: {key for key in one.logged if key[0] != "_"} for one in logged_runs(wandb_home)}
    assert found == {"theirs": {"theirs"}, "p": {"ours"}}


def test_a_run_finished_by_others_costs_one_line(wandb_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    import wandb

    run = open_wandb_run(CONFIG, job_type="train")
    run.log({"a": 1.0})
    wandb.finish()
    for _ in range(3):
        run.log({"a": 2.0})
        run.log_files("name", "type", [Path(__file__)], {})
    run.finish()
    (line,) = warnings(caplog)
    assert line.startswith("W&B run name: ")
    assert line.endswith("; going on without")
    assert logged_runs(wandb_home)[0].logged["a"] == 1.0


class Lost:
    """A run whose host is gone: every call raises, or does not come back."""

    offline = False

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any, **__: Any) -> None:
            time.sleep(self.seconds)
            raise ConnectionError("the network is\ngone")

        return call


def test_a_lost_host_costs_one_line_whatever_is_logged(
    wandb_home: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    run = WandbRun(Lost(), "name", tmp_path)
    run.log({"a": 1.0}, step=3)
    run.log_files("n", "t", [Path(__file__)], {})
    run.use_files("n", "t", [Path(__file__)], {})
    assert not run.use("n")
    run.finish()
    assert warnings(caplog) == ["W&B run name: the network is; going on without"]


def test_a_link_that_does_not_come_back_is_given_up(
    wandb_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sae_faithful.wandb_run.LINK_SECONDS", 0.05)
    assert not WandbRun(Lost(seconds=1.0), "name").use("n")
    assert warnings(caplog) == ["W&B run name: no answer in 0.05 s; going on without"]


def test_an_interruption_is_not_swallowed() -> None:
    def interrupted(run: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        WandbRun(object()).attempt(interrupted)


def test_secrets_are_not_sent(wandb_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "xyzzy-plugh-42")
    config = {
        "sequence_separator_token": "bos", "n_tokens": 3, "token": "abc",
        "nested": [{"api_key": "k", "empty_secret": None}],
        "url": "https://user:xyzzy-plugh-42@host", "hf_token": True, "d": {"PASSWORD": "p"},
    }  # fmt: skip
    assert hidden(config) == {
        "sequence_separator_token": "bos", "n_tokens": 3, "token": "(hidden)",
        "nested": [{"api_key": "(hidden)", "empty_secret": None}], "url": "(hidden)", "hf_token": True,
        "d": {"PASSWORD": "(hidden)"},
    }  # fmt: skip
    open_wandb_run({**CONFIG, "where": "xyzzy-plugh-42", "token": "abcdef"}, job_type="train").finish()
    for path in wandb_home.glob("wandb/**/*.wandb"):
        assert b"xyzzy-plugh-42" not in path.read_bytes()
        assert b"abcdef" not in path.read_bytes()
    assert logged_runs(wandb_home)[0].config["where"] == "(hidden)"


def test_artifact_names_are_ones_that_w_and_b_takes() -> None:
    assert artifact_name("g", "a/b:c d", "seed0") == "g-a_b_c_d-seed0"
    long = artifact_name("g", "x" * 300), artifact_name("g", "x" * 300 + "y")
    assert [len(name) for name in long] == [LONGEST, LONGEST]
    assert long[0] != long[1]


def test_folders_of_one_name_are_several_groups(tmp_path: Path) -> None:
    one, other = tmp_path / "a" / "run", tmp_path / "b" / "run"
    one.mkdir(parents=True)
    other.mkdir(parents=True)
    assert group_of(one) == group_of(one) != group_of(other)
    assert group_of(one).startswith("run-")
