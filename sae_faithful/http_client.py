"""A patient client of a server that speaks JSON: new tries, whole replies in time, a rate, and no redirections."""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import email.message
    from collections.abc import Callable, Sequence

T = TypeVar("T")

LONGEST_PAUSE = 300.0
"""Seconds; a server that asks for a longer pause is asked again after these."""
PASSING = {408, 409, 425, 429}
"""Client errors that may pass, besides all of the server's own (5xx)."""
REFUSED, NOBODY = "refused", "no server"
SERVER_ERROR, TIME_OUT, MALFORMED = "server error", "time-out", "malformed reply"


@dataclass(frozen=True)
class Manners:
    """How a server is asked."""

    concurrency: int = 8
    requests_per_minute: float = 0
    """0: as fast as `concurrency` allows."""
    timeout: float = 120.0
    """Seconds for one whole reply."""
    retries: int = 6
    backoff: float = 1.0
    """Seconds before the first new try; doubled each time, at most a minute, with jitter."""


@dataclass(frozen=True)
class HttpFailure:
    """Why there is no reply. The server's own words are left out: some repeat the key in them."""

    kind: Literal["refused", "no server", "server error", "time-out", "malformed reply"]
    """`refused`: a status that no new try would change. `no server`: none was found at all, at any try."""
    status: int | None = None
    why: str = ""
    """Of `no server`: what the system says."""


class Pace:
    """Lets requests start no faster than a rate, and none while a server wants a pause."""

    def __init__(self, per_minute: float, stop: threading.Event) -> None:
        self._interval = 60 / per_minute if per_minute > 0 else 0.0
        self._stop = stop
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        """Return when one more request may start."""
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + self._interval
        self._stop.wait(max(0.0, start - time.monotonic()))

    def hold(self, seconds: float) -> None:
        """Start none for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class JsonClient:
    """Asks one server. The key is read from the environment at every request, and is kept nowhere.

    Args:
        url: gives the server's base URL; called at every request.
        key_variable: name of the environment variable with the key; without the variable no key is sent.
        manners: how it is asked.
    """

    def __init__(self, url: Callable[[], str], key_variable: str, manners: Manners) -> None:
        self.manners = manners
        self.sent = 0
        """Requests, new tries included."""
        self._url, self._key_variable = url, key_variable
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._pace = Pace(manners.requests_per_minute, self._stop)
        self._heard = -math.inf  # when the server last said anything
        # A redirection would carry the key to another host.
        self._opener = urllib.request.build_opener(_NoRedirection())

    def together(self, jobs: Sequence[Callable[[], T]], done: Callable[[], object] = lambda: None) -> list[T]:
        """What each job gives, in their order; `concurrency` at once, `done` called after each.

        The first error ends all: jobs that wait for their turn, or to try again, give up.
        """
        pool = ThreadPoolExecutor(self.manners.concurrency, thread_name_prefix="http")
        found: dict[int, T] = {}
        try:
            futures = {pool.submit(job): place for place, job in enumerate(jobs)}
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                done()
        except BaseException:
            self._stop.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._stop.clear()
        return [found[place] for place in range(len(jobs))]

    def ask(self, path: str, body: dict[str, Any] | None, fits: Callable[[Any], bool]) -> Any | HttpFailure:
        """One reply that `fits`, tried again after what may pass; without a body it is a GET."""
        failure: Any = HttpFailure(SERVER_ERROR)
        alone: float | None = None  # since when no try has found a server
        for attempt in range(self.manners.retries + 1):
            self._pace.wait()
            if self._stop.is_set():
                break
            pause = min(60.0, self.manners.backoff * 2**attempt) * random.uniform(0.5, 1)
            started = time.monotonic()
            try:
                reply = self.send(path, body)
            except urllib.error.HTTPError as error:
                self._heard = time.monotonic()
                error.close()
                if error.code not in PASSING and error.code < 500:
                    return HttpFailure(REFUSED, error.code)
                failure = HttpFailure(SERVER_ERROR, error.code)
                if (asked := _retry_after(error.headers)) is not None:
                    self._pace.hold(pause := asked)
            except TimeoutError:
                failure = HttpFailure(TIME_OUT)
            except (OSError, http.client.HTTPException) as error:
                failure = _failure(error)
            else:
                self._heard = time.monotonic()
                if fits(reply):
                    return reply
                failure = HttpFailure(MALFORMED)
            alone = (alone or started) if failure.kind == NOBODY else None
            if attempt < self.manners.retries:
                self._stop.wait(pause)
        if failure.kind == NOBODY and (alone is None or self._heard >= alone or self._stop.is_set()):
            # Others were answered meanwhile: it is there.
            return HttpFailure(SERVER_ERROR)
        return failure

    def send(self, path: str, body: dict[str, Any] | None) -> Any:
        """One request; what it says as JSON, or None if it is none."""
        with self._lock:
            self.sent += 1
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._key_variable):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url().rstrip('/')}/{path}", data, headers)
        deadline = time.monotonic() + self.manners.timeout
        parts: list[bytes] = []
        with self._opener.open(request, timeout=self.manners.timeout) as response:
            # The socket's timeout is for each piece: a server that sends byte by byte would never end.
            while part := response.read1(65_536):
                parts.append(part)
                if time.monotonic() > deadline:
                    raise TimeoutError
        try:
            reply = json.loads(b"".join(parts))
            json.dumps(reply, ensure_ascii=False).encode()  # half of a surrogate pair could not be written
        except (ValueError, RecursionError):
            return None
        return reply


def _failure(error: Exception) -> HttpFailure:
    """What a connection that did not hold is called."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return HttpFailure(TIME_OUT)
    # Only what fails before a request is sent stands in a URLError; who hangs up later was there.
    if isinstance(error, urllib.error.URLError):
        return HttpFailure(NOBODY, why=str(getattr(reason, "strerror", None) or reason))
    return HttpFailure(SERVER_ERROR)


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _retry_after(headers: email.message.Message) -> float | None:
    try:
        seconds = float(headers.get("Retry-After", ""))
    except ValueError:
        return None
    return min(max(seconds, 0.0), LONGEST_PAUSE)
