"""Who draws samples: one module an engine, each a `Sampler` with the same settings, shards, card and proof."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from sae_faithful import SourceRequest
    from sae_faithful_plugins.self_generated import SelfGenerated
    from sae_faithful_plugins.self_generated.sampling import Sampler

OWN_OPTIONS = {
    "transformers": ("continuous_batching",),
    "vllm": ("tensor_parallel", "gpu_memory_utilization"),
    "server": ("server_url", "server_model", "server_key_env", "concurrency"),
}
"""Options that one engine alone takes."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OF_OTHERS = re.compile(
    r"HF_TOKEN|HUGGING_?FACE_HUB_TOKEN|WANDB_API_KEY|GITHUB_TOKEN|GH_TOKEN|AWS_.*", re.IGNORECASE
)
"""Variables with keys of other services: a stranger's config could have them sent to an address of its choice."""


def check_engine_options(options: SelfGenerated) -> None:
    """ValueError for options of another engine, or an engine that is not there."""
    for engine, names in OWN_OPTIONS.items():
        given = [name for name in names if getattr(options, name) is not None]
        if given and engine != options.engine:
            raise ValueError(
                f"{given[0]} is an option of engine {engine}, and the engine is {options.engine}"
            )
    if options.engine == "vllm":
        if options.gpu_memory_utilization is not None and not 0 < options.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization {options.gpu_memory_utilization} is not in (0, 1]")
        if find_spec("vllm") is None:
            raise ValueError("engine vllm is not installed: pip install 'sae-faithful[vllm]'")
    if options.engine == "server":
        _check_server(options)


def _check_server(options: SelfGenerated) -> None:
    """No message repeats a value: a key may stand in it by mistake."""
    if options.server_url is None:
        raise ValueError("engine server needs server_url, such as http://127.0.0.1:8000/v1")
    url = urlsplit(options.server_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("server_url is no address such as http://127.0.0.1:8000/v1")
    if url.username or url.password or url.query or url.fragment:
        raise ValueError(
            "server_url holds more than an address; a key belongs into the environment variable that server_key_env "
            "names"
        )
    if options.server_key_env is not None and not VARIABLE.fullmatch(options.server_key_env):
        raise ValueError(
            "server_key_env is no name of an environment variable; the key itself belongs into that variable and into "
            "no config"
        )
    if options.server_key_env is not None and OF_OTHERS.fullmatch(options.server_key_env):
        raise ValueError(
            f"server_key_env {options.server_key_env} is the key of another service, which goes to no server_url; give "
            "the server's own key in a variable of its own"
        )
    if options.dtype is not None:
        raise ValueError(f"dtype {options.dtype}: a server has weights of its own; leave dtype out")


def make_sampler(options: SelfGenerated, request: SourceRequest) -> Sampler:
    """The sampler of `options.engine`; nothing is loaded and nobody asked yet.

    Raises:
        UsageError: see `Sampler.from_options`; or a model that the engine cannot run.
    """
    if options.engine == "vllm":
        from sae_faithful_plugins.self_generated.engines.vllm import VllmSampler as engine
    elif options.engine == "server":
        from sae_faithful_plugins.self_generated.engines.server import ServerSampler as engine
    else:
        from sae_faithful_plugins.self_generated.engines.transformers import TransformersSampler as engine
    return engine.of(options, request)
