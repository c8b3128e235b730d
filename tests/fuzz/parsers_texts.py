"""Readers of texts, tables and pairs, and of what a language model or its server says."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from parser import Parser, Read, with_file


def of_texts(examples: Path, sandbox: Path) -> list[Parser]:
    import gzip

    import numpy as np
    import pandas as pd
    import zstandard

    from sae_faithful import LanguageModel
    from sae_faithful.registry import build_options
    from sae_faithful.source_request import SourceRequest
    from sae_faithful_plugins.ioi_patching import IOIPatching
    from sae_faithful_plugins.ioi_patching.prompts import read_pairs, tokenize_pairs
    from sae_faithful_plugins.probing.tasks import LocalTask, load_task
    from sae_faithful_plugins.self_generated.shards import ShardCache
    from sae_faithful_plugins.text_files import TextFiles

    model = LanguageModel(name=str(examples / "model"), class_name="AutoModelForCausalLM")
    request = SourceRequest(
        name="words",
        n_tokens=256,
        context_size=16,
        prepend_bos=True,
        seed=0,
        cache_dir=sandbox / "cache",
        language_model=model,
    )
    lines, table = (examples / "texts.jsonl").read_bytes(), (examples / "texts.csv").read_bytes()
    packed = io.BytesIO()
    pd.read_json(io.BytesIO(lines), lines=True).to_parquet(packed)
    pairs = sandbox / "pairs.jsonl"
    drawn = [np.arange(3, 3 + n, dtype=np.int32) for n in (4, 9, 2)]
    sampler: Any = SimpleNamespace(settings={"model": "x"}, observed={}, sample=lambda n, seed: drawn)
    cache = ShardCache(sampler, 3, 0, sandbox / "cache")
    cache.shard(0)
    shard = cache.folder / "shard-000000.arrow"

    def of_shard() -> None:
        # Damaged, it is drawn again.
        assert [one.tolist() for one in cache.shard(0)] == [one.tolist() for one in drawn]

    def of_files(name: str) -> Read:
        path = sandbox / name

        def read(data: bytes) -> None:
            path.write_bytes(data)
            tokens = TextFiles(path=str(path)).load(request)
            tokens.check("words", context_size=16, vocab_size=64)

        return read

    def of_task(name: str) -> Read:
        path = sandbox / name

        def read(data: bytes) -> None:
            path.write_bytes(data)
            load_task("mine", LocalTask(path=str(path)), "hub", 50, 0)

        return read

    def of_pairs() -> None:
        build_options(IOIPatching, "ioi_patching", {"pairs": str(pairs)})
        tokenize_pairs(model, read_pairs(pairs), pairs)

    where = "sae_faithful_plugins.text_files"
    tasks = "sae_faithful_plugins.probing.tasks"
    return [
        Parser(
            "shard.arrow",
            "binary",
            [shard.read_bytes()],
            with_file(shard, of_shard),
            1,
            "sae_faithful_plugins.self_generated.shards",
        ),
        Parser("text_files, .txt", "text", [b" ".join(lines.split()[:90])], of_files("a.txt"), 0.3, where),
        Parser(
            "text_files, .jsonl",
            "lines",
            [lines[: lines.rfind(b"\n", 0, 1_500) + 1]],
            of_files("a.jsonl"),
            0.15,
            where,
        ),
        Parser(
            "text_files, .csv",
            "text",
            [table[: table.rfind(b"\n", 0, 1_500) + 1]],
            of_files("a.csv"),
            0.1,
            where,
        ),
        Parser("text_files, .parquet", "binary", [packed.getvalue()], of_files("a.parquet"), 0.01, where),
        Parser("text_files, .jsonl.gz", "binary", [gzip.compress(lines)], of_files("a.jsonl.gz"), 0.1, where),
        Parser("probing, .csv", "text", [table], of_task("b.csv"), 0.4, tasks),
        Parser("probing, .csv.zst", "binary", [zstandard.compress(table)], of_task("b.csv.zst"), 0.4, tasks),
        Parser("probing, .jsonl", "lines", [lines], of_task("b.jsonl"), 0.4, tasks),
        Parser("probing, .parquet", "binary", [packed.getvalue()], of_task("b.parquet"), 0.3, tasks),
        Parser(
            "ioi_patching, pairs",
            "lines",
            [(examples / "pairs.jsonl").read_bytes()],
            with_file(pairs, of_pairs),
            1.5,
            "sae_faithful_plugins.ioi_patching.prompts",
        ),
    ]


def of_replies(sandbox: Path) -> list[Parser]:
    from sae_faithful_plugins.autointerp import classify, explain, simulate
    from sae_faithful_plugins.autointerp.assistants import Cloze, Message, Question
    from sae_faithful_plugins.autointerp.cache import ReplyCache
    from sae_faithful_plugins.autointerp.client import Client, Manners

    question = Question((Message("user", "What?"),), 10)
    cloze = Cloze((Message("user", "w"),), "a\tunknown\n", (2,))
    chat = {
        "choices": [
            {
                "message": {"content": '{"responses": [{"token": "a", "number": 3}]}', "refusal": None},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5},
    }
    offset = len("User:\nw\n\nAssistant:\n") + 2
    echo = {
        "choices": [
            {
                "text": "x",
                "logprobs": {
                    "tokens": ["a", "\t", "unknown", "\n"],
                    "text_offset": [offset - 2, offset - 1, offset, offset + 7],
                    "top_logprobs": [None, {"b": -1.0}, {"3": -0.5, "10": -2.0}, {}],
                },
            }
        ],
        "usage": None,
    }

    def client(data: bytes, number: list[int] = [0]) -> Client:  # noqa: B006
        number[0] += 1
        made = Client(
            f"model{number[0]}", ReplyCache(sandbox / "replies"), Manners(retries=0, backoff=0, concurrency=1)
        )
        made._http._opener = mock.Mock()
        made._http._opener.open.return_value.__enter__ = lambda _: io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]
        made._http._opener.open.return_value.__exit__ = lambda *_: None
        return made

    def of_chat(data: bytes) -> None:
        (said,) = client(data).answer([question])
        if isinstance(said, str):
            explain.read(said)
            simulate.read_json(said, 1)
            classify.read(said, 5)

    def of_echo(data: bytes) -> None:
        one = client(data)
        (weights,) = one.weigh([cloze])
        if isinstance(weights, list):
            simulate.expectations(weights, 10)
        one.highest_number()

    def of_words(data: bytes) -> None:
        said = data.decode(errors="replace")
        for read in (
            explain.read,
            lambda text: simulate.read_json(text, 2),
            lambda text: classify.read(text, 5),
        ):
            read(said)

    def of_cache(data: bytes) -> None:
        cache = ReplyCache(sandbox / "kept")
        cache.put("asked", {})
        cache._path("asked").write_bytes(data)
        cache.get("asked")

    where = "sae_faithful_plugins.autointerp.replies sae_faithful_plugins.autointerp.simulate"
    replies = [
        b'{"responses": [{"token": "a", "number": 3}, 4]}',
        b"Sure! [1, 0, 1, 0, 1]",
        b"In one sentence, verbs.",
    ]
    return [
        Parser("server's reply, chat", "json", [json.dumps(chat).encode()], of_chat, 1, where),
        Parser("server's reply, echo", "json", [json.dumps(echo).encode()], of_echo, 1, where),
        Parser("words of a model", "text", replies, of_words, 3, where),
        Parser(
            "kept reply",
            "json",
            [json.dumps({"reply": chat}).encode()],
            of_cache,
            1,
            "sae_faithful_plugins.autointerp.cache",
        ),
    ]
