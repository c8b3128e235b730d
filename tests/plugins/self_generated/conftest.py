"""A server that speaks vLLM's schema: the tiny Llama behind HTTP, with faults and lies on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ...faulty_server import Fault, FaultyHandler, serving  # noqa: TID252 - tests are no package

Body = dict[str, Any]
SIGNATURES = json.loads((Path(__file__).parent / "vllm_signatures.json").read_text())
"""Names and defaults of a real vLLM's calls, by `vllm_signatures.py`."""


@dataclass
class VllmServer:
    """What was asked, and what is answered."""

    model: Any
    url: str = ""
    key: str | None = None
    """Without it in the header: 401."""
    cards: list[Body] = field(default_factory=list)
    fault: Callable[[Body, int], Fault | None] = lambda body, seen: None
    """By a completion's body, and how often that very body came before."""
    change: Callable[[Body, Body], Any] = lambda body, reply: reply
    """A completion as it is sent."""
    spoil: Callable[[Any], Any] = lambda logits: logits
    """What a server does to the logits behind its users' backs."""
    asked: list[tuple[str, Body | None, dict[str, str]]] = field(default_factory=list)
    busiest: int = 0
    lock: Any = field(default_factory=threading.Lock)
    drawing: Any = field(default_factory=threading.Lock)
    drawn: dict[str, list[int]] = field(default_factory=dict)

    @property
    def completions(self) -> list[Body]:
        """Bodies of requests for samples; the probe asks for one token."""
        return [body for path, body, _ in self.asked if path == "/v1/completions" and body is not None]

    def draw(self, body: Body) -> list[int]:
        """As the model would: one token after another, under the request's own generator."""
        key = json.dumps(body)
        with self.drawing:  # one at a time: there is one core
            if key not in self.drawn:
                self.drawn[key] = self._draw(body)
            return list(self.drawn[key])

    def _draw(self, body: Body) -> list[int]:
        import torch

        inner = self.model.model.model
        generator = torch.Generator().manual_seed(body["seed"])
        ids = list(body["prompt"])
        drawn: list[int] = []
        with torch.no_grad():
            while len(drawn) < body["max_tokens"]:
                logits = inner(torch.tensor([ids + drawn])).logits[0, -1] / body["temperature"]
                p = torch.softmax(self.spoil(logits), dim=-1)
                drawn.append(int(torch.multinomial(p, 1, generator=generator)))
                if drawn[-1] in body["stop_token_ids"]:
                    break
        return drawn

    def complete(self, body: Body) -> Body:
        """vLLM's reply, with what its schema has of it."""
        drawn = self.draw(body)
        ended = drawn[-1] in body["stop_token_ids"]
        choice = {
            "index": 0, "text": "", "logprobs": None, "finish_reason": "stop" if ended else "length",
            "stop_reason": drawn[-1] if ended else None, "token_ids": drawn, "prompt_logprobs": None,
            "prompt_token_ids": list(body["prompt"]),
        }  # fmt: skip
        return {
            "id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"],
            "choices": [choice], "system_fingerprint": "vllm-test",
            "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(drawn)},
        }  # fmt: skip


def handler(state: VllmServer) -> type[FaultyHandler]:
    busy = 0

    class Handler(FaultyHandler):
        def do_GET(self) -> None:
            with state.lock:
                state.asked.append((self.path, None, dict(self.headers)))
            said = {"/v1/models": {"object": "list", "data": state.cards}, "/version": {"version": "0.33.0"}}
            known = self.path in said
            status = 200 if known else 404
            if known and self.path != "/version" and self.refused():
                status = 401
            self.reply(Fault(status), json.dumps(said.get(self.path, {})).encode())

        def refused(self) -> bool:
            return state.key is not None and self.headers.get("Authorization") != f"Bearer {state.key}"

        def do_POST(self) -> None:
            nonlocal busy
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                busy += 1
                state.busiest = max(state.busiest, busy)
                seen = state.completions.count(body)
                state.asked.append((self.path, body, dict(self.headers)))
            if self.refused():
                fault: Fault | None = Fault(401, b'{"error": "bad key"}')
            elif unknown := set(body) - set(SIGNATURES["CompletionRequest"]):
                fault = Fault(422, json.dumps(sorted(unknown)).encode())
            else:
                fault = state.fault(body, seen)
                if fault is None and body["model"] not in [card["id"] for card in state.cards]:
                    fault = Fault(404, b'{"error": "no such model"}')
            given = fault or Fault()
            plain = fault is None or given.cut
            data = (
                json.dumps(state.change(body, state.complete(body))).encode()
                if plain
                else given.body or b"{}"
            )
            time.sleep(given.delay)
            with state.lock:
                busy -= 1
            # A whole reply with half a JSON in it; a connection that breaks is the other server's fault.
            self.reply(replace(given, cut=False), data[: len(data) // 2] if given.cut else data)

    return Handler


@pytest.fixture
def vllm_server(llama: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmServer]:
    """vLLM serving the tiny Llama, under the name that it was loaded by."""
    state = VllmServer(llama)
    state.cards = [
        {"id": llama.name, "object": "model", "owned_by": "vllm", "root": llama.name, "max_model_len": 64}
    ]
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(handler(state)) as state.url:
        yield state


@pytest.fixture
def make_fault() -> type[Fault]:
    return Fault
