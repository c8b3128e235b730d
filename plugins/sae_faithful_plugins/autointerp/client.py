"""A client of OpenAI-compatible servers: concurrent, patient, within a rate, and never asking twice."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from sae_faithful import HttpFailure, JsonClient, Manners, Progress, RunError
from sae_faithful_plugins.autointerp.assistants import MALFORMED, REJECTED, SERVER_ERROR
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
    from collections.abc import Callable, Mapping, Sequence

    from sae_faithful_plugins.autointerp.assistants import Cloze, Question, Weights
    from sae_faithful_plugins.autointerp.cache import ReplyCache

log = logging.getLogger("sae_faithful.autointerp")

URL_VARIABLE, KEY_VARIABLE = "OPENAI_BASE_URL", "OPENAI_API_KEY"
DEFAULT_URL = "https://api.openai.com/v1"
LIKELY_TOKENS = 15
"""Log-probabilities asked for at every token, as in the paper."""
HOPELESS = {401: "unauthorised", 403: "forbidden", 404: "not found"}


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
        self._lock = threading.Lock()
        self._http = JsonClient(
            lambda: os.environ.get(URL_VARIABLE) or DEFAULT_URL, KEY_VARIABLE, self.manners
        )

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
        jobs = [partial(self._ask, path, body, fits, hopeless) for body in waiting.values()]
        with Progress("autointerp: asking", len(jobs), "replies") as progress:
            found.update(zip(waiting, self._http.together(jobs, progress.update), strict=True))
        return [found[key] for key in keys]

    def _ask(
        self, path: str, body: dict[str, Any], fits: Callable[[Any], bool], hopeless: bool
    ) -> dict[str, Any] | Missing:
        """One reply, kept on disk as soon as it is there.

        Raises:
            RunError: the server is not there, or does not know key or model: with `hopeless`.
        """
        reply = self._http.ask(path, body, fits)
        self.usage.requests = self._http.sent
        if not isinstance(reply, HttpFailure):
            self._count(reply)
            self.cache.put([path, body], reply)
            return reply
        if hopeless and reply.kind == "refused" and reply.status in HOPELESS:
            raise RunError(
                f"autointerp: the server at ${URL_VARIABLE} answers {reply.status} "
                f"({HOPELESS[reply.status]}) for the model '{self.name}': check {URL_VARIABLE}, "
                f"{KEY_VARIABLE} and the model's name"
            )
        if hopeless and reply.kind == "no server":
            # Every other question would wait as long, for nothing.
            raise RunError(
                f"autointerp: no server is there at ${URL_VARIABLE} ({reply.why}; {self.manners.retries + 1} tries "
                f"for the model '{self.name}'); replies that came are kept, so that a rerun asks for the others only"
            )
        return Missing({"refused": REJECTED, "no server": SERVER_ERROR}.get(reply.kind, reply.kind))

    def _count(self, reply: Mapping[str, Any]) -> None:
        used = reply.get("usage")
        given = used if isinstance(used, dict) else {}
        prompt, answer = (given.get(name) for name in ("prompt_tokens", "completion_tokens"))
        with self._lock:
            self.usage.prompt_tokens += prompt if isinstance(prompt, int) else 0
            self.usage.reply_tokens += answer if isinstance(answer, int) else 0
