"""`transformers serve`: an OpenAI-compatible server that is easily had, for the tests of those who ask servers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

LACKING = [name for name in ("fastapi", "openai", "uvicorn") if find_spec(name) is None]
START_S = 300.0
"""Seconds that the server has to start."""


class Served:
    """`transformers serve` in a process group of its own."""

    def __init__(self, shop: Path, name: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        self.log = shop / "server.log"
        self._health = f"http://127.0.0.1:{port}/health"
        command = [
            str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1", "--port", str(port),
            "--device", "cpu", name,
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=shop, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip

    def wait(self) -> None:
        """Until it answers; a failure shows what it said."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with opener.open(self._health, timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        pytest.fail(f"the server did not start:\n{self.log.read_text()[-2_000:]}")

    def requests(self) -> int:
        """Answered so far."""
        return len(re.findall(r'"POST /v1/\S+ HTTP/1.1" 200', self.log.read_text()))

    def stop(self) -> None:
        """End it and all that it started."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, how)
                self._process.wait(timeout=10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
