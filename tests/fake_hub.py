"""A hub on this machine: as much of the Hugging Face hub's HTTP interface as pushing and loading a model takes.

What is pushed to it goes through the whole of `huggingface_hub`, and what SAELens loads comes out of it again.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    import pytest

TOKEN = "hf_of_a_user"
COMMIT = "0" * 40


class FakeHub(ThreadingHTTPServer):
    """Repositories by name; each a mapping of paths to contents."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[str] = []
        self.refuse_commits = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def fake_hub(patch: pytest.MonkeyPatch, cache: Path) -> Generator[FakeHub]:
    """Everything in this process that asks the hub asks this one, logged in as `user`."""
    from huggingface_hub import constants, hf_api

    hub = FakeHub()
    patch.setattr(constants, "ENDPOINT", hub.address)
    patch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(hf_api.api, "endpoint", hub.address)
    patch.setenv("HF_TOKEN", TOKEN)
    thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "whoami-v2"]:
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            self.answer(200 if known else 401, {"name": "user", "type": "user", "orgs": []})
        elif parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            if name not in self.server.files:
                self.missing("RepoNotFound")
            else:
                self.answer(
                    200, {"id": name, "private": self.server.private[name], "siblings": [], "tags": []}
                )
        else:
            self.send_file("/".join(parts[:2]), "/".join(parts[4:]))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.read_body()
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization', 'user')}/{asked['name']}"
            if name in self.server.files:
                self.answer(409, {"error": "there", "url": f"{self.server.address}/{name}"})
                return
            self.server.files[name] = {}
            self.server.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.answer(200, {"url": f"{self.server.address}/{name}"})
        elif parts[-1] == "validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "preupload" in parts:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif "commit" in parts:
            self.commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])
        else:
            self.missing("NoSuchPlace")

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        if self.server.refuse_commits:
            self.answer(403, {"error": "You have no right to write there."})
            return
        for line in lines:
            if line["key"] == "header":
                self.server.commits.append(line["value"]["summary"])
            else:
                assert line["key"] == "file"
                value = line["value"]
                self.server.files[name][value["path"]] = base64.b64decode(value["content"])
        url = f"{self.server.address}/{name}/commit/{COMMIT}"
        self.answer(200, {"commitUrl": url, "commitOid": COMMIT, "hookOutput": ""})

    def send_file(self, name: str, path: str) -> None:
        if path not in self.server.files.get(name, {}):
            self.missing("EntryNotFound" if name in self.server.files else "RepoNotFound")
            return
        content = self.server.files[name][path]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_body(content)

    def missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_body(b"{}")

    def answer(self, status: int, value: dict[str, Any]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_body(json.dumps(value).encode())

    def send_body(self, content: bytes) -> None:
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def read_body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)
