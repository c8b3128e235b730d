"""A text that claims to be the model's own and is not stops the run; its data is kept, and the proof stays cheap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_faithful import ExperimentConfig, LanguageModel, RunError, UsageError, run
from sae_faithful import data as data_module
from sae_faithful.data import measure_typicality, not_its_own
from sae_faithful.metrics.typicality import beyond
from sae_faithful_plugins.self_generated.engines.transformers import TransformersSampler

BOS, VOCAB = 0, 64


@pytest.fixture
def wrong_engine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An engine that draws uniformly and says that it drew from the model; counts its shards."""
    drawn: list[int] = []

    def sample(self: Any, n: int, seed: int) -> list[np.ndarray]:
        drawn.append(n)
        rng = np.random.default_rng(seed)
        return [rng.integers(3, VOCAB, 15).astype(np.int32) for _ in range(n)]

    monkeypatch.setattr(TransformersSampler, "sample", sample)
    return drawn


def config(tiny_config: dict[str, Any], **changes: Any) -> ExperimentConfig:
    return ExperimentConfig.from_dict({**tiny_config, **changes})


def card(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "data" / "faithful" / "card.json").read_text())


# The rule


@pytest.mark.parametrize(
    ("gap", "low", "high", "z", "expected"),
    [
        (0.30, 0.20, 0.40, 9.0, True),
        (-0.30, -0.40, -0.20, -9.0, True),
        (0.30, 0.04, 0.56, 9.0, False),  # the interval reaches below the limit
        (-0.30, -0.56, -0.04, -9.0, False),
        (0.02, 0.01, 0.03, 20.0, False),  # certain, and too small to matter
        (0.30, 0.20, 0.40, 4.9, False),  # a short interval by chance: z does not agree
        # No interval: 0.12 · (1 ± 1.96 / 6) = [.081, .159]; 0.06 · (1 ± 1.96 / 6) = [.040, .080].
        (0.12, None, None, 6.0, True),
        (0.06, None, None, 6.0, False),
        (-0.12, None, None, -6.0, True),
    ],
)
def test_a_gap_is_beyond_when_all_of_its_interval_is_and_chance_cannot_be(
    gap: float, low: float | None, high: float | None, z: float, expected: bool
) -> None:
    assert beyond(gap, low, high, z, 0.05) is expected


def texts(model: LanguageModel, temperature: float, seeds: range, n: int) -> list[bool]:
    """Which of a few data sets are beyond."""
    sampler = TransformersSampler(model, (BOS,), 15, temperature, 1.0)
    found: list[bool] = []
    for seed in seeds:
        documents = [np.concatenate([[BOS], one]).astype(np.int32) for one in sampler.sample(n, seed)]
        gap = measure_typicality(documents, 1, model, 10_000, seed=0)
        found.append(beyond(gap.gap, gap.interval.low, gap.interval.high, gap.z, 0.05))
    return found


@pytest.mark.parametrize("n", [8, 64])
def test_own_text_is_never_beyond_and_planted_temperatures_are(tiny_llama: str, n: int) -> None:
    model = LanguageModel(tiny_llama, hooks=("model.layers.0",))
    assert not any(texts(model, 1.0, range(40), n))
    assert all(texts(model, 1.4, range(4), 256))
    assert all(texts(model, 0.7, range(4), 256))


def made(**changes: Any) -> dict[str, Any]:
    gap = {"gap": 0.3, "ci_low": 0.2, "ci_high": 0.4, "z": 9.0}
    return {"typicality": gap, "made": {"own_text": True, "temperature": 1.0, "top_p": 1.0, **changes}}


def test_only_a_text_that_claims_to_be_the_models_own_is_judged() -> None:
    assert not_its_own(made(), 0.05)
    for changes in ({"own_text": False}, {"temperature": 1.3}, {"top_p": 0.9}):
        assert not_its_own(made(**changes), 0.05) is None
    assert not_its_own({**made(), "made": {}}, 0.05) is None
    assert not_its_own(made(), 0.25) is None
    # Without a limit nothing stops, but it is said: against the default.
    assert "limit of ±0.05" in str(not_its_own(made(), None))


# The run


def test_a_run_stops_keeps_the_data_and_stops_again_at_no_cost(
    tiny_config: dict[str, Any], tmp_path: Path, wrong_engine: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"other": {"plugin": "self_generated", "n_tokens": 1_600, "temperature": 1.1, "batch_size": 64}}
    sources = {**tiny_config["sources"], **other}
    # 400 tokens would be 27 documents, too few for an interval.
    tiny_config["typicality_tokens"] = 1_000
    with pytest.raises(RunError) as stopped:
        run(config(tiny_config, sources=sources))
    message = str(stopped.value)
    assert "\n" not in message
    gap = card(tmp_path / "run")["typicality"]
    for part in (
        "data/faithful", f"{gap['gap']:+.3f}", f"{gap['ci_low']:+.3f}, {gap['ci_high']:+.3f}", "limit of ±0.05",
        "another dtype", "model on the server", "--set typicality_limit=null",
    ):  # fmt: skip
        assert part in message
    assert (tmp_path / "run" / "data" / "faithful" / "train.arrow").exists()
    assert "not the model's own" in card(tmp_path / "run")["warning"]
    # The next source was not paid for, and nothing trained.
    assert sorted(path.name for path in (tmp_path / "run" / "data").iterdir()) == ["faithful"]
    assert not (tmp_path / "run" / "saes").exists()
    n = len(wrong_engine)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(data_module, "measure_typicality", fail)
    for until in ("data", "saes", "results"):
        with pytest.raises(RunError, match=r"limit of ±0\.05"):
            run(config(tiny_config, sources=sources), until=until)
    assert len(wrong_engine) == n


@pytest.mark.parametrize("limit", [None, 5.0])
def test_a_run_that_is_told_to_goes_on_with_the_same_data_and_says_so(
    tiny_config: dict[str, Any], tmp_path: Path, wrong_engine: list[int], limit: float | None
) -> None:
    with pytest.raises(RunError):
        run(config(tiny_config))
    n, before = len(wrong_engine), (tmp_path / "run" / "data" / "faithful" / "train.arrow").stat()
    folder = run(config(tiny_config, typicality_limit=limit))
    assert len(wrong_engine) == n
    # The limit is part of no step: the file is the very same.
    assert (tmp_path / "run" / "data" / "faithful" / "train.arrow").stat() == before
    manifest = json.loads(folder.manifest_file.read_text())
    pages = [folder.report_file.read_text(), folder.html_file.read_text()]
    if limit is None:
        assert set(manifest["not_its_own"]) == {"faithful"}
        assert all("not the model's own, as it claims to be" in page.replace("&#39;", "'") for page in pages)
    else:
        # Who gives a number has said how much may differ.
        assert manifest["not_its_own"] == {}
        assert not any("as it claims to be" in page for page in pages)


def test_texts_that_claim_nothing_stop_no_run(tiny_config: dict[str, Any], wrong_engine: list[int]) -> None:
    source = {**tiny_config["sources"]["faithful"], "top_p": 0.9}
    folder = run(config(tiny_config, sources={"faithful": source}), until="data")
    assert json.loads(folder.manifest_file.read_text())["not_its_own"] == {}


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_that_is_none_is_refused(tiny_config: dict[str, Any], limit: float) -> None:
    with pytest.raises(UsageError, match=r"typicality_limit .* is not above 0; null stops no run"):
        config(tiny_config, typicality_limit=limit)


# The cost


def test_the_proof_scores_as_many_tokens_of_ten_times_the_data(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LanguageModel(tiny_llama, hooks=("model.layers.0",))
    seen: list[int] = []
    logits = LanguageModel.logits

    def count(self: LanguageModel, tokens: Any) -> Any:
        seen.append(tokens.numel())
        return logits(self, tokens)

    monkeypatch.setattr(LanguageModel, "logits", count)
    rng = np.random.default_rng(0)
    shown: list[int] = []
    for times in (1, 10):
        documents = [
            np.concatenate([[BOS], rng.integers(3, VOCAB, 15)]).astype(np.int32) for _ in range(100 * times)
        ]
        seen.clear()
        # 15 tokens a document: 600 are 40 of the 100, or of the 1,000.
        assert measure_typicality(documents, 1, model, 600, seed=0).n_tokens == 600
        shown.append(sum(seen))
    assert shown == [40 * 16, 40 * 16]
