"""Explanation, simulation, detection and fuzzing from end to end, by a server that knows the answers."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_faithful import RunError, TokenSet, UsageError
from sae_faithful_plugins.autointerp import Autointerp

VOCAB, BOS = 64, 0
WORDS = np.arange(10, 22)
OPTIONS: dict[str, Any] = {
    "fragment_tokens": 16, "explainer": "wise", "scores": ["simulation"], "concurrency": 4, "n_features": 5,
    "selection": "first",
}  # fmt: skip
RANDOM_SUBSETS = ("top_and_random", "top_only", "random_only")


def text() -> TokenSet:
    """250 documents; each word is in about a quarter of their fragments."""
    rows = np.random.default_rng(0).integers(3, VOCAB, (250, 21))
    rows[:, 0] = BOS
    return TokenSet.from_rows(rows)


@pytest.fixture
def detectors(plant: Callable[..., Any]) -> Any:
    """Latent i is 1 on word 10 + i, and 0 elsewhere."""
    encoder = np.zeros((VOCAB, len(WORDS)))
    encoder[WORDS, range(len(WORDS))] = 1.0
    return plant(encoder)


def strongest(asked: str) -> str:
    """The token with a 10 in the last explanation prompt."""
    return re.search(r"^ ?(\S+)\t10$", asked, re.M)[1]  # type: ignore[index]


def wise(path: str, body: dict[str, Any], chat: Callable[..., Any]) -> Any:
    """Explains by the strongest token, and knows what that means."""
    if path == "completions":
        return echoed(body["prompt"])
    asked = body["messages"][-1]["content"]
    if asked.startswith("Neuron"):
        return chat(f"the word {strongest(asked)}")
    if asked.startswith("{"):
        given = json.loads(asked)
        word = given["responds to"].split()[-1]
        return chat(
            json.dumps({"responses": [{"number": 10 * (t.strip() == word)} for t in given["tokens"]]})
        )
    head, *texts = asked.splitlines()
    word = head.split()[-1]
    marks = "<<" in asked
    wanted = re.compile(rf"<<[^>]*\b{word}\b[^>]*>>" if marks else rf"\b{word}\b")
    return chat(json.dumps([int(bool(wanted.search(one.partition(". ")[2]))) for one in texts]))


def echoed(prompt: str) -> dict[str, Any]:
    """Word by word; at every place 7 is likely where the word is right, else 1."""
    pieces = re.findall(r"unknown|\S+|\s", prompt)
    offsets = np.cumsum([0, *map(len, pieces)])
    word = (re.findall(r"responds to: the word (\S+)", prompt) or [""])[-1]
    top: list[Any] = [None]
    for piece, offset in list(zip(pieces, offsets, strict=False))[1:]:
        line = prompt[:offset].rpartition("\n")[2].strip()
        right = piece == "unknown" and line == word
        top.append({"7" if right else "1": math.log(0.9), "0": math.log(0.05)})
    logprobs = {"tokens": [*pieces, "."], "text_offset": offsets.tolist(), "top_logprobs": [*top, {}]}
    return {"choices": [{"text": prompt, "logprobs": logprobs}]}


@pytest.fixture
def oracle(server: Any, chat_reply: Callable[..., Any], one_hot_model: Any) -> Any:
    server.answer = lambda path, body: wise(path, body, chat_reply)
    return server


BY = "explainer=wise, simulator=wise, mode="


@pytest.mark.parametrize("mode", ["json", "logprobs", "auto"])
def test_an_explainer_and_simulator_that_know_score_1_and_stand_in_every_row(
    mode: str, oracle: Any, detectors: Any, measure: Callable[..., Any]
) -> None:
    measured = measure(Autointerp(**OPTIONS, mode=mode), [detectors], {"faithful": text()})
    # The server gives log-probabilities, so that `auto` takes them.
    by = BY + ("json" if mode == "json" else "logprobs")
    for subset in RANDOM_SUBSETS:
        row = measured.row("autointerp_score", seed=0, condition=f"{subset}, {by}")
        assert (row["value"], row["n"]) == (pytest.approx(1.0), 5)
        assert measured.row("unscored", seed=0, condition=f"autointerp_score, {subset}, {by}")["value"] == 0
    shuffled = measured.row("autointerp_score_shuffled", seed=0, condition=f"top_and_random, {by}")
    assert -0.15 < shuffled["value"] < 0.05
    headlines = {row["condition"] for row in measured.rows if row["headline"]}
    assert headlines == {f"top_and_random, {by}"}
    assert measured.features["it.autointerp_score.top_only"][:5].tolist() == pytest.approx([1.0] * 5)
    paths = {path for path, *_ in oracle.requests}
    assert paths == ({"chat/completions"} if mode == "json" else {"chat/completions", "completions"})


def test_a_rerun_is_free(oracle: Any, detectors: Any, measure: Callable[..., Any]) -> None:
    options = Autointerp(**OPTIONS, mode="json", shuffled=False)
    first = measure(options, [detectors], {"faithful": text()})
    # One explanation and ten fragments a feature, none asked twice.
    assert len(oracle.requests) == len(set(oracle.answered)) <= 5 * 11
    n = len(oracle.requests)
    again = measure(options, [detectors], {"faithful": text()})
    assert len(oracle.requests) == n
    assert again.rows == first.rows


EVERY: dict[str, Any] = {
    **OPTIONS, "scores": ["simulation", "detection", "fuzzing"], "mode": "json", "shuffled": False,
    "n_features": 3, "concurrency": 40, "timeout": 2.0,
}  # fmt: skip


def test_whatever_the_server_does_at_first_the_rows_are_those_of_a_server_without_faults(
    oracle: Any, detectors: Any, measure: Callable[..., Any], make_fault: Any, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    faults = [
        make_fault(status=429, headers={"Retry-After": "0.02"}, body=b"{}"), make_fault(status=500, body=b"oops"),
        make_fault(delay=2.5), make_fault(drip=0.05), make_fault(cut=True), make_fault(body=b"<html>"),
    ]  # fmt: skip
    oracle.fault = lambda path, body, seen: faults[len(str(body)) % 6] if seen == 0 else None
    measured = measure(Autointerp(**EVERY), [detectors], {"faithful": text()})
    # Every question is answered once, at its second try: none is lost, none answered, or scored, twice.
    assert len(oracle.answered) == len(set(oracle.answered))
    assert len(oracle.requests) == 2 * len(oracle.answered)
    met = {len(str(body)) % 6 for _, body, *_ in oracle.requests}
    assert met == set(range(6))
    oracle.fault = lambda path, body, seen: None
    monkeypatch.setenv("SAE_FAITHFUL_CACHE", str(tmp_path / "another"))
    undisturbed = measure(Autointerp(**EVERY), [detectors], {"faithful": text()})
    assert measured.rows == undisturbed.rows
    row = measured.row("autointerp_score", seed=0, condition=f"top_and_random, {BY}json")
    assert (row["value"], row["n"]) == (pytest.approx(1.0), 3)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 429, "headers": {"Retry-After": "0"}, "body": b"{}"}, "server error"),
        ({"status": 500, "body": b"oops"}, "server error"),
        ({"delay": 2.5}, "time-out"),
        ({"cut": True}, "malformed reply"),
        ({"body": b"<html>"}, "malformed reply"),
    ],
)
def test_what_never_comes_is_one_unscored_feature_and_a_rerun_gets_it(
    fault: dict[str, Any], reason: str, oracle: Any, detectors: Any, measure: Callable[..., Any],
    make_fault: Any,
) -> None:  # fmt: skip
    """The simulation of the word 11 fails at every try; all else is as it is."""

    def fails(path: str, body: dict[str, Any], seen: int) -> Any:
        asked = body["messages"][-1]["content"]
        simulates = asked.startswith("{") and json.loads(asked)["responds to"] == "the word 11"
        return make_fault(**fault) if simulates else None

    oracle.fault = fails
    options = Autointerp(**{**EVERY, "scores": ["simulation", "detection"], "retries": 1})
    measured = measure(options, [detectors], {"faithful": text()})
    by = f"{BY}json"
    for subset in RANDOM_SUBSETS:
        row = measured.row("autointerp_score", seed=0, condition=f"{subset}, {by}")
        assert (row["value"], row["n"]) == (pytest.approx(1.0), 2)
        why = f"autointerp_score, {subset}, {by}: {reason}"
        assert measured.row("unscored", seed=0, condition=why)["value"] == 1
    assert measured.row("detection_balanced_accuracy", seed=0)["n"] == 3
    n_kept = len(oracle.answered)
    oracle.fault = lambda path, body, seen: None
    recovered = measure(options, [detectors], {"faithful": text()})
    row = recovered.row("autointerp_score", seed=0, condition=f"top_and_random, {by}")
    assert (row["value"], row["n"]) == (pytest.approx(1.0), 3)
    # Its ten fragments, and nothing else.
    assert 0 < len(oracle.answered) - n_kept <= 10
    assert len(oracle.answered) == len(set(oracle.answered))


def test_a_server_that_dies_ends_the_run_and_the_rerun_asks_for_the_rest_only(
    oracle: Any, detectors: Any, measure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(path: str, body: dict[str, Any], answer: Any = oracle.answer) -> Any:
        if len(oracle.answered) == 20:
            monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        return answer(path, body)

    oracle.answer = dies
    options = Autointerp(**{**EVERY, "concurrency": 1, "retries": 0})
    with pytest.raises(
        RunError, match=r"no server is there at \$OPENAI_BASE_URL.*a rerun asks for the others"
    ):
        measure(options, [detectors], {"faithful": text()})
    assert len(oracle.answered) == 20
    monkeypatch.setenv("OPENAI_BASE_URL", oracle.url)
    again = measure(options, [detectors], {"faithful": text()})
    assert again.row("autointerp_score", seed=0, condition=f"top_only, {BY}json")["n"] == 3
    assert len(oracle.answered) == len(set(oracle.answered)) > 20


def test_detection_and_fuzzing_by_one_who_knows_are_perfect(
    oracle: Any, detectors: Any, measure: Callable[..., Any]
) -> None:
    options = {**OPTIONS, "scores": ["detection", "fuzzing"], "simulator": "other"}
    measured = measure(Autointerp(**options), [detectors], {"faithful": text()})
    by = "explainer=wise, simulator=other, mode=json"
    for metric, unit in (("balanced_accuracy", "share"), ("f1", "F1")):
        row = measured.row(f"detection_{metric}", seed=0, condition=by)
        assert (row["value"], row["unit"], row["n"]) == (1.0, unit, 5)
    # Random tokens in texts without the word are never the word.
    assert measured.row("fuzzing_balanced_accuracy", seed=0, condition=by)["value"] == 1.0
    assert {body["model"] for _, body, *_ in oracle.requests} == {"wise", "other"}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [("I'm sorry, I cannot do that.", "refusal"), ("", "malformed reply"), (None, "malformed reply")],
)
def test_features_without_an_explanation_are_counted_and_not_scored(
    reply: str | None, reason: str, oracle: Any, detectors: Any, measure: Callable[..., Any],
    chat_reply: Callable[..., Any],
) -> None:  # fmt: skip
    def sometimes(path: str, body: dict[str, Any]) -> Any:
        asked = body["messages"][-1]["content"]
        if asked.startswith("Neuron") and strongest(asked) in ("10", "11", "12"):
            return chat_reply(reply)
        return wise(path, body, chat_reply)

    oracle.answer = sometimes
    options = Autointerp(**{**OPTIONS, "scores": ["simulation", "detection"]}, mode="json", shuffled=False)
    measured = measure(options, [detectors], {"faithful": text()})
    row = measured.row("autointerp_score", seed=0, condition=f"top_and_random, {BY}json")
    # The others' mean is 1: nobody was given a 0.
    assert (row["value"], row["n"]) == (pytest.approx(1.0), 2)
    why = f"autointerp_score, top_and_random, {BY}json: {reason}"
    unscored = measured.row("unscored", seed=0, condition=why)
    assert (unscored["value"], unscored["n"]) == (3, 5)
    assert measured.row("detection_balanced_accuracy", seed=0)["n"] == 2
    assert np.isnan(measured.features["it.autointerp_score.top_and_random"][:3]).all()
    (table,) = json.loads((measured.folder / "artifacts" / "features.json").read_text())["saes"]
    assert table["features"][0]["scores"][0]["explanation"] is None


def test_constant_predictions_of_a_simulator_are_counted(
    oracle: Any, detectors: Any, measure: Callable[..., Any], chat_reply: Callable[..., Any]
) -> None:
    def zeros(path: str, body: dict[str, Any]) -> Any:
        asked = body["messages"][-1]["content"]
        return wise(path, body, chat_reply) if asked.startswith("Neuron") else chat_reply(str([0] * 16))

    oracle.answer = zeros
    measured = measure(Autointerp(**OPTIONS, mode="json", shuffled=False), [detectors], {"faithful": text()})
    row = measured.row("autointerp_score", seed=0, condition=f"top_only, {BY}json")
    assert (row["value"], row["reason"]) == (None, "no feature could be scored")
    why = f"autointerp_score, top_only, {BY}json: constant prediction"
    assert measured.row("unscored", seed=0, condition=why)["value"] == 5


def test_too_dear_a_run_asks_nothing_and_the_estimate_is_said_before(
    oracle: Any, detectors: Any, measure: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    options = {**OPTIONS, "mode": "json", "prices": [2.0, 8.0]}
    with pytest.raises(UsageError, match=r"requests.*more than max_cost 0\.01; choose fewer features"):
        measure(Autointerp(**options, max_cost=0.01), [detectors], {"faithful": text()})
    assert oracle.requests == []
    with caplog.at_level(logging.INFO, logger="sae_faithful.autointerp"):
        measure(Autointerp(**options, max_cost=100.0), [detectors], {"faithful": text()})
    found = re.search(r"at most about (\d+) requests, ([\d,]+) tokens of prompts", caplog.text)
    assert found is not None
    # 5 features: an explanation, ten fragments, and ten more under another's explanation.
    assert int(found[1]) == 5 * 21
    characters = sum(len(m["content"]) for _, body, *_ in oracle.requests for m in body["messages"])
    assert int(found[2].replace(",", "")) == pytest.approx(characters / 3.5, rel=0.2)


def test_log_probabilities_that_nobody_gives_cannot_be_asked_for(
    oracle: Any, detectors: Any, measure: Callable[..., Any], make_fault: Any
) -> None:
    oracle.fault = lambda path, body, seen: (
        make_fault(status=404, body=b"{}") if path == "completions" else None
    )
    with pytest.raises(RunError, match="'wise' gives no log-probabilities"):
        measure(Autointerp(**OPTIONS, mode="logprobs"), [detectors], {"faithful": text()})
    measured = measure(Autointerp(**OPTIONS, mode="auto"), [detectors], {"faithful": text()})
    assert measured.row("autointerp_score", seed=0, condition=f"top_only, {BY}json")[
        "value"
    ] == pytest.approx(1)


def test_a_local_model_that_knows_no_numbers_is_asked_for_json_and_its_babble_is_counted(
    tiny_llama: str, detectors: Any, measure: Callable[..., Any], cache: Path
) -> None:
    options = {**OPTIONS, "backend": "local", "explainer": tiny_llama, "n_features": 2, "shuffled": False}
    measured = measure(Autointerp(**options), [detectors], {"faithful": text()})
    by = f"explainer={tiny_llama}, simulator={tiny_llama}, mode=json"
    row = measured.row("autointerp_score", seed=0, condition=f"top_only, {by}")
    assert (row["value"], row["n"]) == (None, 0)
    # Its context is 64 tokens.
    why = f"autointerp_score, top_only, {by}: prompt longer than the model's context"
    assert measured.row("unscored", seed=0, condition=why)["value"] == 2


def test_a_local_model_simulates_by_its_log_probabilities(
    save_model: Callable[..., str], detectors: Any, measure: Callable[..., Any], cache: Path
) -> None:
    name = save_model([])
    options = {**OPTIONS, "backend": "local", "explainer": name, "n_features": 2, "shuffled": False}
    measured = measure(Autointerp(**options), [detectors], {"faithful": text()})
    by = f"explainer={name}, simulator={name}, mode=logprobs"
    # It knows nothing, but its predictions vary.
    for subset in RANDOM_SUBSETS:
        row = measured.row("autointerp_score", seed=0, condition=f"{subset}, {by}")
        assert row["n"] == 2
        assert abs(row["value"]) < 0.5
    assert len(list(cache.glob("autointerp/*/*.json"))) >= 2 * 11


def test_metrics_units_columns_and_reasons_stand_in_the_docs(
    oracle: Any, detectors: Any, plant: Callable[..., Any], measure: Callable[..., Any]
) -> None:
    scores = ["token_set", "simulation", "detection", "fuzzing"]
    dead = plant(np.zeros((VOCAB, 3)), seed=1)
    same = replace(detectors, kind="baseline", variant="same")
    every = {**OPTIONS, "scores": scores, "n_features": 12}
    alike = measure(Autointerp(**every), [detectors, dead, same], {"faithful": text()})
    few = measure(Autointerp(**{**every, "n_features": 5}), [detectors, same], {"faithful": text()})
    rows = alike.rows + few.rows
    docs = Path(__file__).parents[3] / "docs"
    page = (docs / "metrics.md").read_text(encoding="utf-8")
    section = (docs / "evaluators" / "autointerp.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### (\w+)$", section, re.M)) == {row["metric"] for row in rows}
    for row in rows:
        part = section.partition(f"### {row['metric']}\n")[2].partition("\n###")[0]
        assert f"Unit: {row['unit']}" in part, row["metric"]
    for column in alike.features.columns[5:]:
        assert f"`{column.replace('it.', 'autointerp.', 1)}`" in section, column
    table = page.partition("## Rows without an interval")[2]
    lines = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    listed = {(metric, line[-2].strip()) for line in lines for metric in re.findall(r"`(\w+)`", line[1])}
    lacking = {
        (row["metric"], re.sub(r"^\d+ features", "N features", row["reason"]))
        for row in rows
        if row["ci_low"] is None
    }
    assert lacking - listed == set()
    own = {row["metric"] for row in rows}
    assert {pair for pair in listed if pair[0] in own} - lacking == set()
