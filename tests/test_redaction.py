"""Secrets of the environment reach no file, no log and no error; what a config holds of them is refused."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sae_faithful import ExperimentConfig, RunError, UsageError, load_plugins
from sae_faithful.config import apply_overrides
from sae_faithful.redaction import (
    HIDDEN,
    LONGEST_LINE,
    hidden,
    known_secrets,
    one_line,
    secret_in,
    without_secrets,
)
from sae_faithful.run_folder import write_json

ROOT = Path(__file__).resolve().parents[1]
FAKE = {
    "OPENAI_API_KEY": "fake-openai-7f3a91c2",
    "HF_TOKEN": "fake-hub-55d0e8b1",
    "HUGGING_FACE_HUB_TOKEN": "fake-oldhub-0c9d8e7f",
    "WANDB_API_KEY": "fa4ewandb0123456789abcdef0123456789abcde",
    "AWS_SECRET_ACCESS_KEY": "fake-aws-91b2c3d4",
    "MY_SERVICE_PASSWORD": "fake-password-a1b2c3",
    "GITHUB_TOKEN": "fake-github-e5f6a7",
    "MY_SERVER_AUTH": "fake-server-c4d5e6f7",
}
IN_ADDRESS = "fake-user:fake-proxy-d00dfeed"


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name, value in FAKE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SOME_ADDRESS", f"https://{IN_ADDRESS}@host.invalid/v1")
    return [*FAKE.values(), IN_ADDRESS]


def test_values_of_secret_variables_are_known_by_the_variables_names(
    fakes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("NOT_SO", "an ordinary value")
    known = known_secrets()
    assert set(fakes) <= set(known)
    assert not {"abc", "an ordinary value"} & set(known)


def test_a_secret_is_known_as_json_and_repr_write_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A quote, a backslash, a letter that JSON may escape; and one that is too short, however it is written.
    secrets = ['ab"cd\\efgh', "ab'cd\"ef\nghi", "gräfin-von-x"]
    for number, secret in enumerate(secrets):
        monkeypatch.setenv(f"SOME_{number}_PASSWORD", secret)
    monkeypatch.setenv("SHORT_PASSWORD", 'a"b"c\\')
    for secret in secrets:
        for written in (repr(secret), json.dumps(secret), json.dumps(secret, ensure_ascii=False)):
            assert without_secrets(f"it was {written}.")[8:-2] == HIDDEN
        write_json(tmp_path / "a.json", {"said": secret})
        assert json.loads((tmp_path / "a.json").read_text()) == {"said": HIDDEN}
    assert without_secrets(json.dumps('a"b"c\\')) == json.dumps('a"b"c\\')


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://me:p4ss@host/x failed", f"GET https://{HIDDEN}@host/x failed"),
        ("Authorization: Bearer abcdefgh.ijkl", f"Authorization: Bearer {HIDDEN}"),
        ("token hf_abcdefghijklmnopqrstuvwxyz12 refused", f"token {HIDDEN} refused"),
        ("key sk-proj-abcdefghijklmnopqrstuv.", f"key {HIDDEN}."),
        ("https://host/a@b and a@b.org", "https://host/a@b and a@b.org"),
        ("sk-learn, hf_model, model@abc#12", "sk-learn, hf_model, model@abc#12"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_an_error_is_one_line_without_what_a_terminal_obeys(fakes: list[str]) -> None:
    for kind in (UsageError, RunError):
        said = str(kind(f"it\nwas {fakes[0]}\x1b[2J\u202eabc\0" + "x" * 10_000))
        assert said.startswith(f"it was {HIDDEN}\\x1b[2J\\u202eabc\\x00xxx")
        assert len(said) <= LONGEST_LINE + 5
    assert one_line("Grüße, 模型: k=3") == "Grüße, 模型: k=3"


def test_files_hold_no_secret_of_the_environment(fakes: list[str], tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"said": [f"key {fakes[0]}", "https://a:b@c is a text that is measured"]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"said": [f"key {HIDDEN}", "https://a:b@c is a text that is measured"]}


def test_settings_for_others_hold_none_either(fakes: list[str]) -> None:
    told = hidden({"a": [{"api_key": "anything", "x": f"a {fakes[1]} b"}], "k": 3, "token": None})
    assert told == {"a": [{"api_key": HIDDEN, "x": HIDDEN}], "k": 3, "token": None}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (
            {"model_from_pretrained_kwargs": {"token": "anything-at-all"}},
            "model_from_pretrained_kwargs.token",
        ),
        ({"model_from_pretrained_kwargs": {"proxies": {"https": "http://me:pw@proxy"}}}, "proxies.https"),
        ({"sources": {"a": {"plugin": "hub_dataset", "path": "https://me:pw@host/x"}}}, "sources.a.path"),
        ({"evaluators": [{"autointerp": {"explainer": "hf_abcdefghijklmnopqrstuvwxyz12"}}]}, "explainer"),
        ({"logger": {"wandb_project": FAKE["WANDB_API_KEY"]}}, "logger.wandb_project"),
        ({"model_name": f"x{FAKE['HF_TOKEN']}"}, "model_name"),
    ],
)
def test_a_config_with_a_secret_is_refused_and_not_repeated(
    change: dict[str, Any], where: str, tiny_config: dict[str, Any], fakes: list[str]
) -> None:
    with pytest.raises(UsageError, match="would be written into configs and W&B") as caught:
        ExperimentConfig.from_dict({**tiny_config, **change})
    assert where in str(caught.value)
    for text in ("anything-at-all", "me:pw", "hf_abc", *fakes):
        assert text not in str(caught.value)


def test_so_is_one_on_the_command_line_and_in_options_of_a_plugin(
    tiny_config: dict[str, Any], fakes: list[str]
) -> None:
    given = apply_overrides(tiny_config, [f"sources.faithful.prompt={FAKE['OPENAI_API_KEY']}"])
    with pytest.raises(UsageError, match=r"sources\.faithful\.prompt would be written"):
        ExperimentConfig.from_dict(given)
    with pytest.raises(UsageError, match="would be written") as caught:
        load_plugins().create("source", "hub_dataset", {"path": "a", "revision": FAKE["HF_TOKEN"]})
    assert FAKE["HF_TOKEN"] not in str(caught.value)


def test_names_and_numbers_that_say_token_are_no_secrets(tiny_config: dict[str, Any]) -> None:
    assert secret_in(tiny_config) is None
    assert secret_in(ExperimentConfig.from_dict(tiny_config).to_dict()) is None
    assert secret_in({"training_tokens": 3, "sequence_separator_token": "bos", "token": True}) is None


class Echo(BaseHTTPRequestHandler):
    """A server that fails and repeats what it was sent, as some do."""

    def do_POST(self) -> None:
        said = json.dumps({"error": {"message": f"bad key: {self.headers['Authorization']}"}}).encode()
        self.send_response(401, f"no {self.headers['Authorization']}")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


def test_no_secret_comes_out_of_a_run(tiny_config: dict[str, Any], tmp_path: Path, echo: str) -> None:
    """The command line with W&B offline: everything that was written or said is searched."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        **os.environ,
        **FAKE,
        "HOME": str(home),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(home),
        "OPENAI_BASE_URL": echo,
        "HTTPS_PROXY": f"http://{IN_ADDRESS}@127.0.0.1:1",
        "no_proxy": "127.0.0.1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")]),
    }
    config = {
        **tiny_config,
        "logger": {"log_to_wandb": True, "wandb_project": "p"},
        "sae_seeds": [0],
        "evaluators": ["ood_score"],
        "training_tokens": 1_440,
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    main = "from sae_faithful.cli import main; main()"
    command = [sys.executable, "-c", main, "--debug", "run", str(file), "--output", str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3_000:]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 40
    assert list(home.rglob("*.wandb"))
    for secret in (*FAKE.values(), IN_ADDRESS, IN_ADDRESS.partition(":")[2]):
        assert secret not in said
        found = [path for path in files if secret.encode() in path.read_bytes()]
        assert found == []


def test_a_server_that_repeats_the_key_is_not_quoted(
    fakes: list[str], echo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_faithful_plugins.autointerp.assistants import Message, Question
    from sae_faithful_plugins.autointerp.cache import ReplyCache
    from sae_faithful_plugins.autointerp.client import Client

    monkeypatch.setenv("OPENAI_BASE_URL", echo)
    with pytest.raises(RunError, match="answers 401") as caught:
        Client("some-model", ReplyCache(tmp_path)).answer([Question((Message("user", "What?"),), 10)])
    assert FAKE["OPENAI_API_KEY"] not in str(caught.value)
    assert not any(
        FAKE["OPENAI_API_KEY"] in path.read_text() for path in tmp_path.rglob("*") if path.is_file()
    )


def test_a_library_that_logs_a_password_has_it_hidden(fakes: list[str]) -> None:
    from sae_faithful.cli import _WithoutSecrets

    record = logging.LogRecord("x", logging.INFO, "", 0, "going to https://%s@host", (IN_ADDRESS,), None)
    assert _WithoutSecrets("%(message)s").format(record) == f"going to https://{HIDDEN}@host"
