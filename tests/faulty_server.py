"""A server for tests, on this machine, that replies badly where it is told to."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Fault:
    """What the server does in place of an answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds before anything is sent."""
    drip: float = 0.0
    """Seconds between single bytes."""
    cut: bool = False
    """Send half of the answer and hang up."""


class FaultyHandler(BaseHTTPRequestHandler):
    """Sends what it is given as a `Fault` says."""

    wbufsize = -1  # headers and body in one piece: the second would wait for the first one's receipt

    def reply(self, given: Fault, data: bytes) -> None:
        """`data` as the reply's body."""
        try:
            self.send_response(given.status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in given.headers.items():
                self.send_header(name, value)
            self.end_headers()
            for i in range(0, len(data), 1) if given.drip else ():
                self.wfile.write(data[i : i + 1])
                self.wfile.flush()
                time.sleep(given.drip)
            if not given.drip:
                self.wfile.write(data[: len(data) // 2] if given.cut else data)
        except OSError:
            pass  # the client hung up

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def serving(handler: type[FaultyHandler]) -> Generator[str]:
    """The address, up to `/v1`, of a server that runs as long as the block."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}/v1"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
