"""A client of OpenAI-compatible servers: concurrent, patient, within a rate, and never asking twice."""

from __future__ import annotations

import http.client
import json
import logging
import math
import os
import random
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sae_faithful import Progress, RunError
from sae_faithful_plugins.autointerp.assistants import MALFORMED, REJECTED, SERVER_ERROR, TIME_OUT
from sae_faithful_plugins.autointerp.replies import (
    as_text,
    content,
    echoed,
    is_chat,
    is_completion,
    is_echo,
    likely_at,
)
from sae_faithful_plugins.autointerp.scoring import Missing

if TYPE_CHECKING:
    import email.message
    from collections.abc import Callable, Mapping, Sequence

    from sae_faithful_plugins.autointerp.assistants import Cloze, Question, Weights
    from sae_faithful_plugins.autointerp.cache import ReplyCache

log = logging.getLogger("sae_faithful.autointerp")

URL_VARIABLE, KEY_VARIABLE = "OPENAI_BASE_URL", "OPENAI_API_KEY"
DEFAULT_URL = "https://api.openai.com/v1"
LIKELY_TOKENS = 15
"""Log-probabilities asked for at every token, as in the paper."""
LONGEST_PAUSE = 300.0
"""Seconds; a server that asks for a longer pause is asked again after these."""
HOPELESS = {401: "unauthorised", 403: "forbidden", 404: "not found"}
NOBODY = "no server"
"""A failure that ends the run if nothing else comes of it: it is in no row."""
PASSING = {408, 409, 425, 429}
"""Client errors that may pass, besides all of the server's own (5xx)."""


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


@dataclass
class Usage:
    """What was asked and used so far."""

    requests: int = 0
    """Sent, new tries included."""
    from_cache: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0


@dataclass(eq=False)
class Client:
    """A model behind a server; base URL and key come from the environment and are written nowhere."""

    name: str
    cache: ReplyCache
    manners: Manners = field(default_factory=Manners)

    def __post_init__(self) -> None:
        self.usage = Usage()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._pace = Pace(self.manners.requests_per_minute, self._stop)
        self._heard = -math.inf  # when the server last said anything
        # A redirection would carry the key to another host.
        self._opener = urllib.request.build_opener(_NoRedirection())

    def answer(self, questions: Sequence[Question]) -> list[str | Missing]:
        """See `Assistant`."""
        bodies = [
            {
                "model": self.name,
                "messages": [message._asdict() for message in one.messages],
                "max_tokens": one.max_tokens,
                "temperature": 0 if one.attempt == 0 else 1,
                "seed": one.attempt,
            }
            for one in questions
        ]
        return [
            reply if isinstance(reply, Missing) else content(reply)
            for reply in self._all("chat/completions", bodies, is_chat)
        ]

    def highest_number(self) -> int | None:
        """See `Assistant`: the server is tried once, with a short prompt."""
        return self._highest_number

    @cached_property
    def _highest_number(self) -> int | None:
        body = self._echo_body("a\t10\nb\tunknown\n")
        # A reply without log-probabilities answers the question too: it is kept, and nobody is asked again.
        (reply,) = self._all("completions", [body], is_completion, hopeless=False)
        if isinstance(reply, Missing) or not is_echo(reply):
            return None
        given = echoed(reply)
        if likely_at(given, 7) is None:
            return None
        return 10 if (2, "10") in zip(given["text_offset"], given["tokens"], strict=False) else 9

    def weigh(self, clozes: Sequence[Cloze]) -> list[Weights | Missing]:
        """See `Assistant`: by completions that repeat their prompt with log-probabilities."""
        prompts = [as_text(one.messages) for one in clozes]
        bodies = [self._echo_body(prompt + one.answer) for prompt, one in zip(prompts, clozes, strict=True)]
        found: list[Weights | Missing] = []
        for one, prompt, reply in zip(
            clozes, prompts, self._all("completions", bodies, is_echo), strict=True
        ):
            if isinstance(reply, Missing):
                found.append(reply)
                continue
            weights = [likely_at(echoed(reply), len(prompt) + place) for place in one.places]
            whole = [place for place in weights if place is not None]
            found.append(whole if len(whole) == len(weights) else Missing(MALFORMED))
        return found

    def _echo_body(self, prompt: str) -> dict[str, Any]:
        return {
            "model": self.name, "prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": True,
            "logprobs": LIKELY_TOKENS,
        }  # fmt: skip

    def _all(
        self,
        path: str,
        bodies: Sequence[dict[str, Any]],
        fits: Callable[[Any], bool],
        *,
        hopeless: bool = True,
    ) -> list[dict[str, Any] | Missing]:
        """Replies to all bodies, each different one asked once, from the cache where it has them."""
        keys = [self.cache.key([path, body]) for body in bodies]
        different = dict(zip(keys, bodies, strict=True))
        found: dict[str, dict[str, Any] | Missing] = {}
        for key, body in different.items():
            kept = self.cache.get([path, body])
            if fits(kept):
                found[key] = kept
                self.usage.from_cache += 1
        waiting = {key: body for key, body in different.items() if key not in found}
        pool = ThreadPoolExecutor(self.manners.concurrency, thread_name_prefix="autointerp")
        try:
            futures = {
                pool.submit(self._ask, path, body, fits, hopeless): key for key, body in waiting.items()
            }
            with Progress("autointerp: asking", len(futures), "replies") as progress:
                for future in as_completed(futures):
                    found[futures[future]] = future.result()
                    progress.update()
        except BaseException:
            self._stop.set()  # threads that wait for their turn give up
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._stop.clear()
        return [found[key] for key in keys]

    def _ask(
        self, path: str, body: dict[str, Any], fits: Callable[[Any], bool], hopeless: bool
    ) -> dict[str, Any] | Missing:
        """One reply, kept on disk as soon as it is there; tried again after what may pass.

        Raises:
            RunError: the server is not there, or does not know key or model: with `hopeless`.
        """
        failure, why = SERVER_ERROR, None
        alone: float | None = None  # since when no try has found a server
        for attempt in range(self.manners.retries + 1):
            self._pace.wait()
            if self._stop.is_set():
                break
            pause = min(60.0, self.manners.backoff * 2**attempt) * random.uniform(0.5, 1)
            started = time.monotonic()
            try:
                reply = self._send(path, body)
            except urllib.error.HTTPError as error:
                self._heard = time.monotonic()
                error.close()
                if hopeless and error.code in HOPELESS:
                    # Without the server's words: some repeat the key in them.
                    raise RunError(
                        f"autointerp: the server at ${URL_VARIABLE} answers {error.code} "
                        f"({HOPELESS[error.code]}) for the model '{self.name}': check {URL_VARIABLE}, "
                        f"{KEY_VARIABLE} and the model's name"
                    ) from None
                if error.code not in PASSING and error.code < 500:
                    return Missing(REJECTED)
                failure = SERVER_ERROR
                if (asked := _retry_after(error.headers)) is not None:
                    self._pace.hold(pause := asked)
            except TimeoutError:
                failure = TIME_OUT
            except (OSError, http.client.HTTPException) as error:
                failure, why = _failure(error), getattr(error, "reason", error)
            else:
                self._heard = time.monotonic()
                if fits(reply):
                    self._count(reply)
                    self.cache.put([path, body], reply)
                    return reply
                failure = MALFORMED
            alone = (alone or started) if failure == NOBODY else None
            if attempt < self.manners.retries:
                self._stop.wait(pause)
        if hopeless and alone and self._heard < alone and not self._stop.is_set():
            # Every other question would wait as long, for nothing.
            raise RunError(
                f"autointerp: no server is there at ${URL_VARIABLE} ({getattr(why, 'strerror', None) or why}; "
                f"{self.manners.retries + 1} tries for the model '{self.name}'); replies that came are kept, so that "
                "a rerun asks for the others only"
            )
        return Missing(SERVER_ERROR if failure == NOBODY else failure)

    def _send(self, path: str, body: dict[str, Any]) -> Any:
        """One request; what it says as JSON, or None if it is none."""
        with self._lock:
            self.usage.requests += 1
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        url = (os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
        request = urllib.request.Request(f"{url}/{path}", json.dumps(body).encode(), headers)
        deadline = time.monotonic() + self.manners.timeout
        parts: list[bytes] = []
        with self._opener.open(request, timeout=self.manners.timeout) as response:
            # The socket's timeout is for each piece: a server that sends byte by byte would never end.
            while part := response.read1(65_536):
                parts.append(part)
                if time.monotonic() > deadline:
                    raise TimeoutError
        try:
            return json.loads(b"".join(parts))
        except ValueError:
            return None

    def _count(self, reply: Mapping[str, Any]) -> None:
        used = reply.get("usage") or {}
        with self._lock:
            self.usage.prompt_tokens += int(used.get("prompt_tokens") or 0)
            self.usage.reply_tokens += int(used.get("completion_tokens") or 0)


def _failure(error: Exception) -> str:
    """What a connection that did not hold is called."""
    if isinstance(getattr(error, "reason", None), TimeoutError):
        return TIME_OUT
    # Only what fails before a request is sent stands in a URLError; who hangs up later was there.
    return NOBODY if isinstance(error, urllib.error.URLError) else SERVER_ERROR


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _retry_after(headers: email.message.Message) -> float | None:
    try:
        seconds = float(headers.get("Retry-After", ""))
    except ValueError:
        return None
    return min(max(seconds, 0.0), LONGEST_PAUSE)
