"""Another model for `generator:`: an ordinary folder, the same however often its training was stopped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sae_faithful import LanguageModel, SourceRequest
from sae_faithful_plugins.self_generated import SelfGenerated

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module; examples are in no package."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    import train_small_model

    return train_small_model


@pytest.fixture
def settings(script: Any, byte_llama: str, tmp_path: Path) -> Any:
    import pydoc_data.topics

    for i, text in enumerate(list(pydoc_data.topics.topics.values())[:12]):
        (tmp_path / f"{i}.txt").write_text(text)
    return script.Settings(
        byte_llama, [f"{tmp_path}/*.txt"], "text", tokens=4_096, distinct=3_200, context=32, width=32, layers=1,
        batch=8, lr=1e-2, seed=3,
    )  # fmt: skip


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_an_interrupted_training_ends_as_an_undisturbed_one(
    script: Any, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    assert script.train(settings, tmp_path / "whole", "cpu")
    one_step = script.Training._one_step

    def interrupted_after_5(self: Any) -> None:
        one_step(self)
        self.stopped = self.step == 5

    monkeypatch.setattr(script.Training, "_one_step", interrupted_after_5)
    assert not script.train(settings, tmp_path / "stopped", "cpu")
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["checkpoint.safetensors"]
    assert script.train(settings, tmp_path / "stopped", "cpu")
    # 4,096 tokens in steps of 8 rows of 32.
    reports = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("whole", "stopped")]
    assert [report["steps"] for report in reports] == [16, 16]
    assert reports[0]["held_out_nats_per_token"] == reports[1]["held_out_nats_per_token"]
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert not (tmp_path / "stopped" / "checkpoint.safetensors").exists()


def test_it_learns_and_the_source_takes_it(
    script: Any, settings: Any, byte_llama: str, tmp_path: Path, cache: Path
) -> None:
    folder = tmp_path / "model"
    untrained = script.Training(settings, folder, "cpu").loss_on_held_out()
    assert script.train(dataclasses.replace(settings, tokens=32_768), folder, "cpu")
    assert json.loads((folder / "training.json").read_text())["held_out_nats_per_token"] < untrained - 0.5
    request = SourceRequest(
        name="other_model", n_tokens=800, context_size=16, prepend_bos=True, seed=7, cache_dir=cache,
        language_model=LanguageModel(byte_llama),
    )  # fmt: skip
    tokens = SelfGenerated(generator=str(folder), batch_size=32).load(request)
    assert tokens.card["model"] != request.language_model.identity
    assert not tokens.card["own_text"]


def test_a_folder_of_other_settings_is_refused(script: Any, settings: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert script.train(settings, folder, "cpu")
    assert script.train(settings, folder, "cpu")
    with pytest.raises(SystemExit, match="holds a model of other settings"):
        script.train(dataclasses.replace(settings, seed=4), folder, "cpu")
