"""The engine `server` against a server of vLLM's schema, with every fault that may pass and every lie that may not."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_faithful import ExperimentConfig, RunError, run
from sae_faithful.data import measure_typicality
from sae_faithful_plugins.self_generated import SelfGenerated
from sae_faithful_plugins.self_generated.engines import server as server_module
from sae_faithful_plugins.self_generated.engines.server import ServerSampler
from sae_faithful_plugins.self_generated.shards import ShardCache

BOS, EOS, VOCAB = 0, 1, 64
SECRET = "sk-very-secret"


@pytest.fixture
def make_sampler(
    vllm_server: Any, make_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ServerSampler]:
    """The engine as options make it, in more of a hurry."""
    monkeypatch.setattr(server_module, "BACKOFF", 0.01)
    monkeypatch.setattr(server_module, "RETRIES", 3)

    def make(request: Any = None, **changes: Any) -> ServerSampler:
        hurry = {key: changes.pop(key) for key in ("timeout",) if key in changes}
        options = SelfGenerated(**{"engine": "server", "server_url": vllm_server.url, **changes})
        sampler = ServerSampler.of(options, request or make_request())
        return dataclasses.replace(sampler, **{"backoff": 0.01, "timeout": 5.0, **hurry})

    return make


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# What is drawn


def test_samples_are_the_models_own_with_ids_kept_and_stop_tokens_in_them(
    make_sampler: Callable[..., ServerSampler], llama: Any
) -> None:
    documents = make_sampler().sample(60, seed=3)
    with_bos = [np.concatenate([[BOS], one]).astype(np.int32) for one in documents]
    assert abs(measure_typicality(with_bos, 1, llama, 5_000, seed=0).z) < 3
    ended = [one for one in documents if one[-1] == EOS]
    assert 0 < len(ended) < len(documents)
    assert all((one == EOS).sum() == 1 for one in ended)
    assert {len(one) for one in documents if one[-1] != EOS} == {15}
    assert {one.dtype for one in documents} == {np.dtype(np.int32)}


def test_a_request_leaves_nothing_to_the_server(
    make_sampler: Callable[..., ServerSampler], vllm_server: Any
) -> None:
    make_sampler(temperature=0.8, top_p=0.9, prompt=[5, 6]).sample(4, seed=1)
    probe, *bodies = vllm_server.completions
    assert probe["max_tokens"] == 1
    for body in bodies:
        assert body["prompt"] == [BOS, 5, 6]
        assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.8, 0.9, 0, 0.0)
        assert (body["repetition_penalty"], body["presence_penalty"], body["frequency_penalty"]) == (1, 0, 0)
        assert (body["stop_token_ids"], body["max_tokens"], body["n"]) == ([EOS], 13, 1)
        assert (body["return_token_ids"], body["watermarking"]) == (True, False)
    assert len({body["seed"] for body in bodies}) == 4


def test_samples_do_not_depend_on_how_many_are_asked_for_at_once_nor_on_faults(
    make_sampler: Callable[..., ServerSampler], vllm_server: Any, make_fault: Any
) -> None:
    plain = make_sampler(concurrency=1).sample(24, seed=3)
    assert vllm_server.busiest == 1
    faults = [
        make_fault(status=429, headers={"Retry-After": "0.02"}), make_fault(status=500, body=b"oops"),
        make_fault(status=503), make_fault(cut=True), make_fault(body=b"<html>"), make_fault(delay=2.3),
        make_fault(body=b'{"choices": []}'), make_fault(body=b"[3]"),
    ]  # fmt: skip
    # Each sample meets one or another fault first, and is drawn at its second try.
    vllm_server.asked.clear()
    vllm_server.fault = lambda body, seen: faults[body["seed"] % 8] if seen == 0 else None
    assert same(make_sampler(concurrency=8, timeout=2.0).sample(24, seed=3), plain)
    assert len(vllm_server.completions) == 2 * (1 + 24)
    assert 2 <= vllm_server.busiest <= 8
    vllm_server.fault = lambda body, seen: None
    assert not same(make_sampler().sample(24, seed=4), plain)


def test_address_and_haste_are_no_settings(make_sampler: Callable[..., ServerSampler]) -> None:
    one, other = (
        make_sampler(),
        make_sampler(server_url="http://elsewhere:1/v1", concurrency=3, server_key_env="K"),
    )
    assert one.settings == other.settings
    assert make_sampler(server_model="x").settings != one.settings
    assert make_sampler(temperature=2).settings != one.settings


def test_chat_stop_ids_come_from_the_files_without_weights(
    make_sampler: Callable[..., ServerSampler], llama: Any, tmp_path: Path
) -> None:
    import shutil

    from sae_faithful import LanguageModel
    from sae_faithful_plugins.self_generated.sampling import stop_ids_on_disk

    folder = shutil.copytree(llama.name, tmp_path / "model")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [EOS, 9]}))
    (folder / "model.safetensors").unlink()
    assert stop_ids_on_disk(LanguageModel(str(folder))) == (EOS, 9)
    (folder / "generation_config.json").unlink()
    assert stop_ids_on_disk(LanguageModel(str(folder))) == (EOS,)


# The whole way


def load(request: Any, url: str, **options: Any) -> Any:
    return SelfGenerated(engine="server", server_url=url, batch_size=16, **options).load(request)


def test_a_dataset_has_card_shards_and_proof_like_any_other_and_is_read_again_without_the_server(
    vllm_server: Any, make_request: Callable[..., Any], llama: Any
) -> None:
    request = make_request(n_tokens=400)
    tokens = load(request, vllm_server.url)
    assert len(tokens) == 25
    card = tokens.card
    assert (card["own_text"], card["temperature"], card["batch_size"]) == (True, 1.0, 16)
    assert card["engine"]["name"] == "server"
    assert "up to the server" in card["engine"]["not_determined"]
    assert card["engine"]["seen"] == [
        {"model": llama.name, "root": llama.name, "owned_by": "vllm", "version": "0.33.0",
         "system_fingerprint": "vllm-test"}
    ]  # fmt: skip
    assert abs(measure_typicality(tokens.documents(BOS), 1, llama, 400, seed=0).z) < 3
    vllm_server.asked.clear()
    again = load(request, "http://127.0.0.1:9/v1", concurrency=2)
    assert (again.rows() == tokens.rows()).all()
    assert again.card["engine"] == card["engine"]
    assert vllm_server.asked == []


def test_a_server_that_dies_costs_the_shard_that_was_drawn_and_a_rerun_goes_on(
    vllm_server: Any, make_request: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    make_fault: Any,
) -> None:  # fmt: skip
    monkeypatch.setattr(server_module, "RETRIES", 0)
    undisturbed = load(make_request(n_tokens=640, cache_dir=tmp_path / "a"), vllm_server.url)
    request = make_request(n_tokens=640, cache_dir=tmp_path / "b")
    vllm_server.asked.clear()
    # Two shards of 16 with a probe each, and a few of the third.
    vllm_server.fault = lambda body, seen: (
        make_fault(status=500) if len(vllm_server.completions) > 38 else None
    )
    with pytest.raises(RunError, match=r"gave no reply to completions .*finished shards are kept"):
        load(request, vllm_server.url)
    shards = sorted((tmp_path / "b").rglob("shard-*.arrow"))
    assert [path.name for path in shards] == ["shard-000000.arrow", "shard-000001.arrow"]
    before = [path.stat().st_mtime_ns for path in shards]
    vllm_server.fault = lambda body, seen: None
    again = load(request, vllm_server.url)
    assert (again.rows() == undisturbed.rows()).all()
    assert [path.stat().st_mtime_ns for path in shards] == before


def test_a_ctrl_c_stops_at_once(
    make_sampler: Callable[..., ServerSampler],
    vllm_server: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    cache = ShardCache(make_sampler(concurrency=1), 64, 7, tmp_path)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ServerSampler, "document", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.shard(0)
    assert len(vllm_server.completions) < 10
    assert not list(tmp_path.rglob("shard-*"))


def test_a_server_that_truncates_is_found_out_by_the_proof(
    vllm_server: Any, tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    def top_four(logits: Any) -> Any:
        return logits.masked_fill(logits < logits.topk(4).values[-1], -1e9)

    vllm_server.spoil = top_four
    source = {**tiny_config["sources"]["faithful"], "engine": "server", "server_url": vllm_server.url}
    tiny_config |= {"sources": {"faithful": {**source, "batch_size": 32}}, "typicality_tokens": 1_000}
    with pytest.raises(RunError, match=r"not the model's own.* gap is -.*another model on the server"):
        run(ExperimentConfig.from_dict(tiny_config))
    # Another address is no other data: the run goes on with what there is.
    tiny_config["sources"]["faithful"]["server_url"] = "http://127.0.0.1:9/v1"
    run(ExperimentConfig.from_dict({**tiny_config, "typicality_limit": None}), until="data")


# Refusals


def changed(**fields: Any) -> Callable[[Any, Any], Any]:
    def change(body: Any, reply: Any) -> Any:
        reply["choices"][0].update(fields)
        return reply

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(token_ids=None), "returns no token ids.*re-tokenised text is not the model's own tokens.*vLLM server"),
        (changed(prompt_token_ids=None), "returns no token ids"),
        (changed(token_ids=["w5"]), "returns no token ids"),
        (changed(prompt_token_ids=[BOS, BOS]), r"read the prompt \[0\] as \[0, 0\]"),
        (changed(token_ids=[64], finish_reason="length"), "token 64, outside the model's vocabulary of 64"),
        (changed(token_ids=[5, 6, 7], finish_reason="length"), "cut a sample at 3 tokens.*limit of its own"),
        (changed(token_ids=[9], finish_reason="stop"), r"ended a sample after \[9\], which is none.*\[1\]"),
        (changed(token_ids=[], finish_reason="stop"), r"ended a sample after \[\]"),
        (changed(finish_reason="abort"), "answers something else to a prompt of token ids"),
    ],
)  # fmt: skip
def test_replies_that_cannot_be_what_the_model_drew_are_refused(
    change: Any, message: str, make_sampler: Callable[..., ServerSampler], vllm_server: Any
) -> None:
    vllm_server.change = change
    with pytest.raises(RunError, match=message) as refused:
        make_sampler().sample(4, seed=0)
    assert "\n" not in str(refused.value)
    # The first short request says it: no sample was asked for.
    assert {body["max_tokens"] for body in vllm_server.completions} == {1}


def test_a_lie_in_a_later_reply_is_found_too(
    make_sampler: Callable[..., ServerSampler], vllm_server: Any
) -> None:
    lie = changed(token_ids=[3] * 14 + [99])
    vllm_server.change = lambda body, reply: lie(body, reply) if body["max_tokens"] > 1 else reply
    with pytest.raises(RunError, match="the token 99, outside"):
        make_sampler().sample(4, seed=0)


@pytest.mark.parametrize("status", [400, 404, 405, 422])
def test_a_server_that_takes_strings_only_is_refused(
    status: int, make_sampler: Callable[..., ServerSampler], vllm_server: Any, make_fault: Any
) -> None:
    vllm_server.fault = lambda body, seen: make_fault(
        status=status, body=b'{"detail": "prompt must be a string."}'
    )
    with pytest.raises(
        RunError,
        match=rf"answers {status} to a prompt of token ids, and re-tokenised text is not the model's own",
    ):
        make_sampler().sample(4, seed=0)
    assert len(vllm_server.completions) == 1
    # As clear where the server lists other models, or none, as `transformers serve` does.
    vllm_server.cards = []
    why = "serves nothing" if status == 404 else f"answers {status} to a prompt of token ids"
    with pytest.raises(RunError, match=why):
        make_sampler().sample(4, seed=0)


def test_the_model_is_found_by_name_or_by_where_it_was_loaded_from(
    make_sampler: Callable[..., ServerSampler], vllm_server: Any, llama: Any
) -> None:
    (card,) = vllm_server.cards
    vllm_server.cards = [{**card, "id": "other", "root": "other"}, {**card, "id": "mine"}]
    make_sampler().sample(2, seed=0)
    assert {body["model"] for body in vllm_server.completions} == {"mine"}
    vllm_server.cards = [{"id": "other"}, {"id": "third"}]
    with pytest.raises(RunError, match=r"serves other, third, and not the experiment's model .*server_model"):
        make_sampler().sample(2, seed=0)
    make_sampler(server_model="third").sample(2, seed=0)
    assert vllm_server.completions[-1]["model"] == "third"
    with pytest.raises(RunError, match=r"serves other, third, and no 'fourth' \(server_model\)"):
        make_sampler(server_model="fourth").sample(2, seed=0)


def test_a_server_without_room_for_a_sample_is_refused(
    make_sampler: Callable[..., ServerSampler], vllm_server: Any
) -> None:
    vllm_server.cards[0]["max_model_len"] = 15
    with pytest.raises(RunError, match=r"takes 15 tokens, and a sample may have 16.*--max-model-len"):
        make_sampler().sample(2, seed=0)


def test_no_server(make_sampler: Callable[..., ServerSampler]) -> None:
    with pytest.raises(RunError, match=r"127.0.0.1:9/v1 is not there \(Connection refused; 4 tries\)"):
        make_sampler(server_url="http://127.0.0.1:9/v1").sample(2, seed=0)


# The key


def test_the_key_goes_to_the_server_and_nowhere_else(
    vllm_server: Any, make_request: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", SECRET)
    vllm_server.key = SECRET
    tokens = load(make_request(n_tokens=160), vllm_server.url, server_key_env="MY_KEY")
    sent = [headers.get("Authorization") for path, _, headers in vllm_server.asked]
    assert set(sent) == {f"Bearer {SECRET}"}
    host = vllm_server.url.removeprefix("http://").removesuffix("/v1")
    said = [record for record in caplog.records if "is sent to" in record.getMessage()]
    assert [(one.levelname, one.getMessage()) for one in said] == [
        ("WARNING", f"the key in MY_KEY is sent to {host}")
    ]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 3
    assert not any(SECRET.encode() in one for one in written)
    assert SECRET not in json.dumps(dict(tokens.card)) + caplog.text
    # Another key: refused, without showing it.
    monkeypatch.setenv("MY_KEY", "sk-wrong")
    with pytest.raises(
        RunError, match=r"answers 401 \(unauthorised\): check the key in .* MY_KEY"
    ) as refused:
        load(make_request(n_tokens=160, seed=8), vllm_server.url, server_key_env="MY_KEY")
    assert "sk-wrong" not in str(refused.value)
