"""The client against a real server that fails in every way: nothing is lost, nothing is asked for twice."""

from __future__ import annotations

import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_faithful import JsonClient, Manners, RunError
from sae_faithful_plugins.autointerp.assistants import (
    MALFORMED,
    REFUSAL,
    REJECTED,
    SERVER_ERROR,
    TIME_OUT,
    Cloze,
    Message,
    Question,
)
from sae_faithful_plugins.autointerp.cache import ReplyCache
from sae_faithful_plugins.autointerp.client import Client
from sae_faithful_plugins.autointerp.scoring import Missing
from sae_faithful_plugins.autointerp.simulate import expectations


def questions(n: int) -> list[Question]:
    return [Question((Message("user", f"say {i}"),), 5) for i in range(n)]


def said(body: dict[str, Any]) -> int:
    return int(body["messages"][-1]["content"].split()[1])


@pytest.fixture
def repeats(server: Any, chat_reply: Callable[..., Any]) -> Any:
    """The server, saying the number that it is asked to."""
    server.answer = lambda path, body: chat_reply(str(said(body)))
    return server


@pytest.fixture
def make_client(tmp_path: Path) -> Callable[..., Client]:
    def make(**manners: Any) -> Client:
        options = {"backoff": 0.01, "timeout": 5.0, **manners}
        return Client("model-x", ReplyCache(tmp_path / "replies"), Manners(**options))

    return make


def test_replies_come_in_order_and_concurrently(repeats: Any, make_client: Callable[..., Client]) -> None:
    repeats.answer = lambda path, body, answer=repeats.answer: time.sleep(0.05) or answer(path, body)
    assert make_client(concurrency=4).answer(questions(12)) == [str(i) for i in range(12)]
    assert 2 <= repeats.busiest <= 4


def test_nothing_is_lost_and_nothing_asked_twice_whatever_the_server_does(
    repeats: Any, make_client: Callable[..., Client], make_fault: Any
) -> None:
    faults = [
        make_fault(status=429, headers={"Retry-After": "0.02"}, body=b"{}"), make_fault(status=500, body=b"oops"),
        make_fault(status=503, body=b"{}"), make_fault(cut=True), make_fault(body=b"<html>"),
        make_fault(delay=2.5), make_fault(drip=0.1), make_fault(body=b'{"choices": []}'), make_fault(body=b"[3]"),
        make_fault(status=408, body=b"{}"),
    ]  # fmt: skip
    # Question i meets fault i at the first try, and the next one at the second.
    repeats.fault = lambda path, body, seen: faults[(said(body) + seen) % 10] if seen < 2 else None
    client = make_client(timeout=2.0, concurrency=10)
    assert client.answer(questions(20)) == [str(i) for i in range(20)]
    counts = Counter(repeats.answered)
    # Twenty whole answers, one for each.
    assert len(counts) == 20
    assert set(counts.values()) == {1}
    assert len(repeats.requests) == 60
    # Again, by another client: all from the disk.
    again = make_client()
    assert again.answer(questions(20)) == [str(i) for i in range(20)]
    assert (len(repeats.requests), again.usage.from_cache, again.usage.requests) == (60, 20, 0)


@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [
        ({"status": 500, "body": b"oops"}, SERVER_ERROR, 3),
        ({"status": 429, "body": b"{}"}, SERVER_ERROR, 3),
        ({"delay": 1.0}, TIME_OUT, 3),
        ({"drip": 0.1}, TIME_OUT, 3),
        ({"body": b"<html>"}, MALFORMED, 3),
        ({"cut": True}, MALFORMED, 3),
        ({"status": 400, "body": b"{}"}, REJECTED, 1),
        ({"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}, "body": b"{}"}, REJECTED, 1),
    ],
)
def test_what_never_passes_is_no_reply_says_why_and_is_not_kept(
    fault: dict[str, Any], reason: str, tries: int, repeats: Any, make_client: Callable[..., Client],
    make_fault: Any,
) -> None:  # fmt: skip
    repeats.fault = lambda path, body, seen: make_fault(**fault) if said(body) == 1 else None
    client = make_client(timeout=0.5, retries=2)
    assert client.answer(questions(3)) == ["0", Missing(reason), "2"]
    assert sum(said(body) == 1 for _, body, *_ in repeats.requests) == tries
    # When the server has recovered, only the missing one is asked for.
    repeats.fault = lambda path, body, seen: None
    repeats.requests.clear()
    assert make_client().answer(questions(3)) == ["0", "1", "2"]
    assert [said(body) for _, body, *_ in repeats.requests] == [1]


NOWHERE = "http://127.0.0.1:9/v1"


def test_a_server_that_is_not_there_ends_all_and_says_so(
    make_client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, repeats: Any
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", NOWHERE)
    client = make_client(retries=1, concurrency=1)
    with pytest.raises(
        RunError, match=r"no server is there at \$OPENAI_BASE_URL \(Connection refused; 2 tries"
    ):
        client.answer(questions(50))
    # The others are not tried, each as long (but one may begin before all is stopped).
    assert client.usage.requests <= 4
    monkeypatch.setenv("OPENAI_BASE_URL", repeats.url)
    assert client.answer(questions(2)) == ["0", "1"]


def test_a_server_that_dies_midway_ends_all_and_a_rerun_asks_for_the_rest_only(
    repeats: Any, make_client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(path: str, body: dict[str, Any], answer: Any = repeats.answer) -> Any:
        if len(repeats.answered) == 3:
            monkeypatch.setenv("OPENAI_BASE_URL", NOWHERE)
        return answer(path, body)

    repeats.answer = dies
    with pytest.raises(RunError, match="replies that came are kept"):
        make_client(retries=2, concurrency=1).answer(questions(6))
    assert [said(body) for _, body, *_ in repeats.requests] == [0, 1, 2]
    monkeypatch.setenv("OPENAI_BASE_URL", repeats.url)
    assert make_client(concurrency=1).answer(questions(6)) == [str(i) for i in range(6)]
    assert [said(body) for _, body, *_ in repeats.requests] == list(range(6))


def test_a_server_that_comes_back_is_waited_for(
    repeats: Any, make_client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", NOWHERE)
    back = threading.Timer(0.2, lambda: monkeypatch.setenv("OPENAI_BASE_URL", repeats.url))
    back.start()
    assert make_client(backoff=0.1, concurrency=2).answer(questions(4)) == ["0", "1", "2", "3"]
    back.join()
    assert len(repeats.requests) == 4


def test_a_server_that_is_there_and_never_in_time_is_a_time_out_and_not_the_end(
    repeats: Any, make_client: Callable[..., Client], make_fault: Any
) -> None:
    repeats.fault = lambda path, body, seen: make_fault(delay=0.6)
    assert make_client(timeout=0.2, retries=1).answer(questions(1)) == [Missing(TIME_OUT)]


def test_one_question_without_connection_is_missing_where_others_are_answered(
    repeats: Any, make_client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    send = JsonClient.send

    def refused(self: JsonClient, path: str, body: dict[str, Any]) -> Any:
        if said(body) != 1:
            return send(self, path, body)
        while len(repeats.answered) < 2:
            time.sleep(0.01)
        time.sleep(0.2)  # until those two are read, which was after this try began
        raise urllib.error.URLError(ConnectionRefusedError())

    monkeypatch.setattr(JsonClient, "send", refused)
    assert make_client(retries=0).answer(questions(3)) == ["0", Missing(SERVER_ERROR), "2"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_ends_all_and_the_key_is_not_shown(
    status: int, repeats: Any, make_client: Callable[..., Client], make_fault: Any
) -> None:
    repeats.fault = lambda path, body, seen: make_fault(status=status, body=b"bad key sk-secret")
    with pytest.raises(RunError, match="check OPENAI_BASE_URL, OPENAI_API_KEY") as caught:
        make_client(concurrency=2).answer(questions(50))
    assert "sk-secret" not in str(caught.value)
    # The others are not tried.
    assert len(repeats.requests) < 10


def test_identical_questions_are_asked_once(repeats: Any, make_client: Callable[..., Client]) -> None:
    assert make_client().answer([*questions(2), *questions(2)]) == ["0", "1", "0", "1"]
    assert len(repeats.requests) == 2


def test_another_try_another_model_and_another_length_are_other_questions(
    repeats: Any, make_client: Callable[..., Client]
) -> None:
    (one,) = questions(1)
    client = make_client()
    client.answer([one, Question(one.messages, 5, attempt=1), Question(one.messages, 6)])
    client.name = "model-y"
    client.answer([one])
    assert len(repeats.requests) == 4
    assert sorted(body["temperature"] for _, body, *_ in repeats.requests) == [0, 0, 0, 1]


def test_key_goes_to_the_server_and_nowhere_else(
    repeats: Any, make_client: Callable[..., Client], tmp_path: Path
) -> None:
    make_client().answer(questions(2))
    assert {headers["Authorization"] for *_, headers in repeats.requests} == {"Bearer sk-secret"}
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 2
    assert not any("sk-secret" in one or "127.0.0.1" in one for one in written)


def test_without_a_key_none_is_sent(
    repeats: Any, make_client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    make_client().answer(questions(1))
    assert "Authorization" not in repeats.requests[0][3]


def test_no_faster_than_the_rate(repeats: Any, make_client: Callable[..., Client]) -> None:
    begun = time.monotonic()
    make_client(requests_per_minute=1_200, concurrency=8).answer(questions(6))
    # 20 a second: the last of six is asked five intervals of .05 after the first, however busy the machine is.
    assert max(at for _, _, at, _ in repeats.requests) - begun > 0.25


def test_retry_after_holds_all_requests(
    repeats: Any, make_client: Callable[..., Client], make_fault: Any
) -> None:
    wait = make_fault(status=429, headers={"Retry-After": "0.4"}, body=b"{}")
    repeats.fault = lambda path, body, seen: wait if said(body) == 0 and not seen else None
    assert make_client(concurrency=1).answer(questions(3)) == ["0", "1", "2"]
    starts = [at for _, _, at, _ in repeats.requests]
    assert starts[1] - starts[0] > 0.35


def test_a_damaged_file_of_the_cache_is_asked_for_again(
    repeats: Any, make_client: Callable[..., Client], tmp_path: Path
) -> None:
    make_client().answer(questions(1))
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    for content in ("", '{"reply": {"choices": []}}', "[]"):
        file.write_text(content)
        assert make_client().answer(questions(1)) == ["0"]
    assert len(repeats.requests) == 4


def test_refusals_are_told_apart(server: Any, make_client: Callable[..., Client], chat_reply: Any) -> None:
    filtered = chat_reply("x")
    filtered["choices"][0]["finish_reason"] = "content_filter"
    replies = [chat_reply(None, refusal="No."), filtered, chat_reply(None)]
    server.answer = lambda path, body: replies[said(body)]
    # Nothing at all is an empty reply, which nobody can read.
    assert make_client().answer(questions(3)) == [Missing(REFUSAL), Missing(REFUSAL), ""]


def echo(prompt: str, pieces: list[str], likely: dict[str, float]) -> dict[str, Any]:
    """A completion that repeats its prompt, cut at `pieces`."""
    tokens, offsets, at = [], [], 0
    while at < len(prompt):
        piece = next((one for one in pieces if prompt.startswith(one, at)), prompt[at])
        tokens.append(piece)
        offsets.append(at)
        at += len(piece)
    top = [None, *({**likely, "#": -0.5} for _ in tokens[1:])]
    logprobs = {
        "tokens": [*tokens, "more"],
        "text_offset": [*offsets, at],
        "top_logprobs": [*top, {"more": 0.0}],
    }
    return {"choices": [{"text": prompt + "more", "logprobs": logprobs}]}


CLOZE = Cloze((Message("user", "Rate."),), "a\tunknown\nb\tunknown\n", (2, 12))


def test_log_probabilities_are_read_at_their_places(server: Any, make_client: Callable[..., Client]) -> None:
    server.answer = lambda path, body: echo(body["prompt"], ["10", "unknown"], {"3": -1.0})
    client = make_client()
    assert client.highest_number() == 10
    assert client.weigh([CLOZE]) == [[{"3": -1.0, "#": -0.5}] * 2]
    assert {path for path, *_ in server.requests} == {"completions"}
    # A tokenizer that cuts the word, and numbers into digits.
    server.answer = lambda path, body: echo(body["prompt"], ["unk", "nown"], {"3": -1.0})
    client = make_client()
    client.name = "model-y"
    assert client.highest_number() == 9
    assert client.weigh([CLOZE]) == [[{"3": -1.0, "#": -0.5}] * 2]


def test_log_probabilities_that_are_whole_numbers_of_any_size_are_numbers_or_refused(
    server: Any, make_client: Callable[..., Client]
) -> None:
    server.answer = lambda path, body: echo(body["prompt"], ["10", "unknown"], {"3": -1, "10": -(2**63) - 1})
    client = make_client()
    assert client.highest_number() == 10
    (weights,) = client.weigh([CLOZE])
    assert not isinstance(weights, Missing)
    # The other number weighs nothing.
    assert expectations(weights, 10) == pytest.approx([3.0, 3.0])
    server.answer = lambda path, body: echo(body["prompt"], ["10", "unknown"], {"3": -(10**400)})
    client = make_client(retries=0)
    client.name = "model-y"
    assert client.highest_number() is None


def test_a_tokenizer_that_joins_tab_and_number_gives_no_places(
    server: Any, make_client: Callable[..., Client]
) -> None:
    server.answer = lambda path, body: echo(body["prompt"], ["\tunknown"], {"3": -1.0})
    assert make_client().highest_number() is None
    assert make_client().weigh([CLOZE]) == [Missing(MALFORMED)]


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_server_that_repeats_no_prompt_says_so(
    status: int, server: Any, make_client: Callable[..., Client], make_fault: Any
) -> None:
    server.fault = lambda path, asked, seen: make_fault(status=status, body=b"{}")
    assert make_client(retries=1).highest_number() is None


@pytest.mark.parametrize("logprobs", [{"logprobs": None}, {}])
def test_a_server_without_log_probabilities_is_asked_once_and_never_again(
    logprobs: dict[str, Any], server: Any, make_client: Callable[..., Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    server.answer = lambda path, body: {"choices": [{"text": "a", **logprobs}]}
    assert make_client().highest_number() is None
    assert len(server.requests) == 1
    # The same is known without it, and what it may know is not waited for to the end.
    monkeypatch.setenv("OPENAI_BASE_URL", NOWHERE)
    client = make_client()
    assert client.highest_number() is None
    assert client.usage.requests == 0
    client = make_client(retries=0)
    client.name = "model-y"
    assert client.highest_number() is None
