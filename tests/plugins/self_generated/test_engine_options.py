"""Options of one engine are refused with another, and a key in the wrong place is not repeated."""

from __future__ import annotations

from typing import Any

import pytest

from sae_faithful import UsageError, load_plugins

SECRET = "sk-very-secret"
HERE = {"engine": "server", "server_url": "http://a/v1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**HERE, "server_key_env": SECRET}, "no name of an environment variable"),
        ({"engine": "server", "server_url": f"http://me:{SECRET}@a/v1"}, "an address with a password"),
        ({"engine": "server", "server_url": f"http://a/v1?key={SECRET}"}, "holds more than an address"),
        ({"engine": "server", "server_url": f"{SECRET}"}, "is no address"),
        *(
            ({**HERE, "server_key_env": name}, f"server_key_env {name} is the key of another service")
            for name in (
                "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "WANDB_API_KEY", "GITHUB_TOKEN",
                "GH_TOKEN", "AWS_SECRET_ACCESS_KEY",
            )
        ),
        ({"engine": "server"}, "engine server needs server_url"),
        ({**HERE, "dtype": "float16"}, "dtype float16: a server has weights of"),
        ({"server_url": "http://a/v1"}, "server_url is an option of engine server, and the engine is transformers"),
        ({"concurrency": 3}, "concurrency is an option of engine server"),
        ({"tensor_parallel": 2}, "tensor_parallel is an option of engine vllm"),
        ({**HERE, "tensor_parallel": 2}, "option of engine vllm, and the engine is server"),
        ({**HERE, "continuous_batching": True}, "option of engine transformers"),
        ({**HERE, "concurrency": 0}, "concurrency 0 is not positive"),
        ({"engine": "sglang"}, "engine = 'sglang': .*'transformers', 'vllm' or 'server'"),
    ],
)  # fmt: skip
def test_options_of_other_engines_and_misplaced_keys_are_refused_without_showing_them(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        load_plugins().create("source", "self_generated", options)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)
