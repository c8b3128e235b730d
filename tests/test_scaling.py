"""The page about large runs is what its formulas give for the rates that were measured."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SCRIPT = DOCS / "gen" / "scaling.py"
SHARES = {"generated": 0.5, "forward": 0.5, "encode": 0.5, "train": 0.5}


@pytest.fixture(scope="module")
def scaling() -> Any:
    spec = importlib.util.spec_from_file_location("scaling", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date() -> None:
    assert subprocess.run([sys.executable, SCRIPT, "--check"], check=False).returncode == 0


def test_the_measured_shares_are_of_what_the_machine_can_do() -> None:
    measured = json.loads((DOCS / "scaling" / "rates.json").read_text())
    assert all(0 < share < 1 for share in measured["shares"].values())
    for name, (low, high) in measured["spread"].items():
        assert low <= measured["shares"][name] <= high


def test_memory_and_disk_by_hand(scaling: Any) -> None:
    small = scaling.MODELS[0]
    # 2,048 x 65,536 weights, encoder and decoder, four floats of each, five SAEs.
    saes = 2_048 * 65_536 * 2 * 4 * 4 * 5
    needed, of_saes = scaling.memory(small)
    assert of_saes == saes
    # The model, SAELens's buffer of 64 rows of 1,024 twice, and a batch of latents three times.
    assert needed == 2 * 1.236e9 + saes + 2 * 4 * 64 * 1_024 * 2_048 + 3 * 4 * 4_096 * 65_536
    # Three texts, one of them once more while it is made; one in the cache.
    assert scaling.disk(small, 1e8) == (8 * 1e8 * 4 + 4 * 1e8, saes / 4 * 3)


def test_time_grows_as_the_tokens_and_matching_not_at_all(scaling: Any) -> None:
    for model in scaling.MODELS:
        for small, large in zip(
            scaling.steps(model, 1e8, SHARES), scaling.steps(model, 1e10, SHARES), strict=True
        ):
            factor = 1 if small.name.startswith("match") else 100
            assert large.seconds == pytest.approx(factor * small.seconds)
            assert scaling.spread(small, 8) <= small.seconds


def test_a_training_step_by_hand(scaling: Any) -> None:
    (train,) = (one for one in scaling.steps(scaling.MODELS[0], 1e8, SHARES) if one.name.startswith("train"))
    (dense,) = (
        one
        for one in scaling.steps(scaling.MODELS[0], 1e8, SHARES, dense=True)
        if one.name.startswith("train")
    )
    saes, width = 15 * 1e8, 2_048 * 65_536
    # The encoder's product; the rest for 64 active latents only.
    assert train.flop == pytest.approx(saes * (2 * width + 8 * 64 * 2_048))
    assert dense.flop == pytest.approx(saes * (10 * width + 8 * 64 * 2_048))
    # Adam passes seven times over two matrices once in 4,096 tokens; three passes find the largest latents.
    traffic = saes * (7 * 4 * 2 * width / 4_096 + 3 * 4 * 65_536)
    assert train.seconds == pytest.approx(train.flop / 67e12 / 0.5 + traffic / 3.35e12)
