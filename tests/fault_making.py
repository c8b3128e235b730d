"""How the faults of tests/fault_trials.py are made: small disks, failing calls, damaged files, servers that fail."""

from __future__ import annotations

import contextlib
import http.server
import random
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Generator[None]:
    """A disk of its own in memory at `place`; for root only."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def remount(place: Path, options: str) -> None:
    """Change the options of a disk."""
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def can_mount() -> bool:
    """Whether this process may."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder), "size=4096"):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def _owner(place: str) -> tuple[Any, str]:
    """The class, and the method's name, of `module:Class.method`."""
    import importlib

    module, _, path = place.partition(":")
    name, _, method = path.partition(".")
    return getattr(importlib.import_module(module), name), method


def raise_at(place: str, call: int) -> None:
    """Let one call of a method fail for lack of memory."""
    import torch

    owner, name = _owner(place)
    method = getattr(owner, name)
    calls = iter(range(10**9))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return method(*args, **kwargs)

    setattr(owner, name, failing)


def nan_from(call: int) -> None:
    """Let a layer of the model give NaN from its `call`-th forward on."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    forward = LlamaDecoderLayer.forward
    calls = iter(range(10**9))

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if next(calls) >= call:
            (output if not isinstance(output, tuple) else output[0]).fill_(float("nan"))
        return output

    LlamaDecoderLayer.forward = spoilt


def reach_for_hub(address: str) -> None:
    """Let the hub's libraries, which have read their environment already, look for it at `address`."""
    import datasets.config
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = False
    datasets.config.HF_HUB_OFFLINE = False
    for module in (huggingface_hub.constants, datasets.config):
        for name in ("ENDPOINT", "HF_ENDPOINT"):
            if hasattr(module, name):
                setattr(module, name, address)


def damage(file: Path, draw: random.Random) -> str:
    """Cut a file short, change a stretch of it, or lose it; says which."""
    content = file.read_bytes()
    how = draw.choice(["cut short", "changed", "lost"])
    place = draw.randrange(len(content)) if content else 0
    if how == "lost" or not content:
        file.unlink()
        return "lost"
    if how == "cut short":
        file.write_bytes(content[:place])
    else:
        length = draw.choice([1, 8, 64])
        changed = bytes(byte ^ draw.randrange(1, 256) for byte in content[place : place + length])
        file.write_bytes(content[:place] + changed + content[place + length :])
    return how


@contextlib.contextmanager
def unreliable_server(draw: random.Random) -> Iterator[tuple[str, str]]:
    """An address where nobody answers well, and in what way."""
    kind = draw.choice(["refused", "closed", "error 500", "no answer", "goes away"])
    begun, lives = time.monotonic(), draw.uniform(0, 4)

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            if kind == "no answer":
                time.sleep(60)
            elif kind == "error 500" or (kind == "goes away" and time.monotonic() < begun + lives):
                self.send_response(500)
                self.end_headers()
            self.connection.close()

        do_GET = do_POST = do_HEAD = answer

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Connections that end in the middle are what it is for."""

    if kind == "refused":
        yield "http://127.0.0.1:9", kind
        return
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", kind
        server.shutdown()
