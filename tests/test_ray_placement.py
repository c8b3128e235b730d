"""What the driver tells its workers, and what it does when some of them die: with stand-ins for Ray and its actors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sae_faithful import ray_placement
from sae_faithful.config import ExperimentConfig
from sae_faithful.plan import plan_evaluators
from sae_faithful.ray_placement import RayPlacement
from sae_faithful.registry import load_plugins
from sae_faithful.resources import Resources
from sae_faithful.run_folder import RunFolder


def test_with_a_key_goes_the_address_that_it_is_for(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = {
        "OPENAI_API_KEY": "fake-openai-7f3a91c2",
        "OPENAI_BASE_URL": "http://gpu7:8000/v1",
        "OTHER_AUTH": "what server_key_env names",
        "HTTPS_PROXY": "http://proxy:3128",
        "no_proxy": "gpu7",
        "HF_HOME": "/shared/hf",
    }
    for name, value in {**passed, "UNNAMED_AUTH": "another's", "PROXY_HOUSE": "x"}.items():
        monkeypatch.setenv(name, value)
    plugins = load_plugins()
    drawn = plugins.create(
        "source", "self_generated",
        {"n_tokens": 100, "engine": "server", "server_url": "http://gpu7:8000/v1", "server_key_env": "OTHER_AUTH"},
    )  # fmt: skip
    plan = SimpleNamespace(
        texts=[SimpleNamespace(source=drawn)],
        evaluators=plan_evaluators(["reconstruction"], 0, plugins),
        monitors=[],
        baselines=[],
    )
    experiment: Any = SimpleNamespace(
        config=ExperimentConfig.from_dict(tiny_config), folder=RunFolder(tmp_path), threads=1, plan=plan
    )
    monkeypatch.setattr(ray_placement, "hash_of_steps", lambda one: "")
    each = Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0)
    environment = RayPlacement(None, each, [experiment])._prepare().environment
    assert passed.items() <= environment.items()
    assert not {"UNNAMED_AUTH", "PROXY_HOUSE"} & environment.keys()
