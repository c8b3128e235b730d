"""The one-hot model with a context and no tokenizer, and a server that answers as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from ...faulty_server import Fault, FaultyHandler, serving  # noqa: TID252 - tests are no package


@pytest.fixture
def one_hot_model(one_hot_model: Any) -> Any:
    class Bounded(type(one_hot_model)):
        context_limit = 4_096
        tokenizer = None

    one_hot_model.__class__ = Bounded
    return one_hot_model


@dataclass
class Server:
    """Counts what arrives; `answer` makes a reply of a request's body, `fault` may stand in its place."""

    url: str = ""
    answer: Callable[[str, dict[str, Any]], Any] = lambda path, body: {}
    fault: Callable[[str, dict[str, Any], int], Fault | None] = lambda path, body, seen: None
    requests: list[tuple[str, dict[str, Any], float, dict[str, str]]] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    """Requests that were given a whole and true answer."""
    busiest: int = 0
    lock: Any = field(default_factory=threading.Lock)


def chat(text: str | None, **more: Any) -> dict[str, Any]:
    """A chat completion."""
    message = {"role": "assistant", "content": text, **more}
    usage = {"prompt_tokens": 10, "completion_tokens": 3}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()
    busy = 0

    class Handler(FaultyHandler):
        def do_POST(self) -> None:
            nonlocal busy
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            path = self.path.removeprefix("/v1/")
            key = json.dumps([path, body], sort_keys=True)
            with state.lock:
                busy += 1
                state.busiest = max(state.busiest, busy)
                seen = sum(json.dumps(one[:2], sort_keys=True) == key for one in state.requests)
                state.requests.append((path, body, time.monotonic(), dict(self.headers)))
            fault = state.fault(path, body, seen)
            if fault is None:
                state.answered.append(key)
            given = fault or Fault()
            data = given.body or json.dumps(state.answer(path, body)).encode()
            time.sleep(given.delay)
            with state.lock:
                busy -= 1  # before the client can know that this one is done
            self.reply(given, data)

    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Handler) as state.url:
        monkeypatch.setenv("OPENAI_BASE_URL", state.url)
        yield state


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Folder of a random Llama whose tokens are bytes, save for what `merges` joins."""

    def save(merges: list[tuple[str, str]], context: int = 4_096) -> str:
        import torch
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        folder = str(tmp_path_factory.mktemp("byte_llama"))
        tokens = [
            "<bos>",
            "<eos>",
            *sorted(pre_tokenizers.ByteLevel.alphabet()),
            *("".join(m) for m in merges),
        ]
        raw = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>")
        fast.save_pretrained(folder)
        torch.manual_seed(0)
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokens), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context, bos_token_id=0,
                eos_token_id=1, initializer_range=0.2,
            )
        ).save_pretrained(folder)  # fmt: skip
        return folder

    return save


@pytest.fixture
def chat_reply() -> Callable[..., dict[str, Any]]:
    return chat


@pytest.fixture
def make_fault() -> type[Fault]:
    return Fault
