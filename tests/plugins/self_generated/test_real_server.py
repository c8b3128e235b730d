"""A real server that takes strings only is refused, clearly and at once: `transformers serve` with the tiny Llama."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_faithful import RunError
from sae_faithful_plugins.self_generated import SelfGenerated
from sae_faithful_plugins.self_generated.engines import server as server_module

from ...transformers_serve import LACKING, Served  # noqa: TID252 (tests are no package that is installed)

pytestmark = pytest.mark.skipif(
    bool(LACKING),
    reason=f"{', '.join(LACKING)} not installed: pip install 'transformers[serving]' (make install does)",
)


@pytest.fixture
def served(tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    server = Served(tmp_path, tiny_llama)
    try:
        server.wait()
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        yield server
    finally:
        server.stop()


def test_transformers_serve_is_refused_because_it_gives_no_token_ids(
    served: Served, tiny_llama: str, make_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "RETRIES", 0)
    request = make_request()
    for name in (None, tiny_llama):
        source = SelfGenerated(engine="server", server_url=served.url, server_model=name, batch_size=16)
        with pytest.raises(
            RunError,
            match=r"answers 4\d\d to a prompt of token ids, and re-tokenised text is not the model's own tokens",
        ) as refused:
            source.load(request)
        assert "\n" not in str(refused.value)
    assert not list(request.cache_dir.rglob("shard-*"))
