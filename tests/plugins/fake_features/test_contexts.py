"""The most fake latents and their strongest contexts in real text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sae_faithful import TokenSet
from sae_faithful_plugins.fake_features import FakeFeatures

VOCAB, BOS = 64, 0
N_RANDOM = 1_000


def text() -> TokenSet:
    """60 rows of BOS and 30 tokens: w40 all over; w5 once in each row, w6 once in the last but one."""
    rows = np.full((60, 31), 40)
    rows[:, 0] = BOS
    rows[:, 15] = 5
    rows[58, 3] = 6
    return TokenSet.from_rows(rows)


def latents(*given: dict[int, float]) -> np.ndarray:
    encoder = np.zeros((VOCAB, len(given)))
    for column, latent in enumerate(given):
        for token, activation in latent.items():
            encoder[token, column] = activation
    return encoder


HALF, THIRD = range(8, 38), range(8, 28)
# 0: dense; 1: on half of random tokens and once a row; 2: on a third, and on w6; 3: on half, never on text.
FOUR = latents(
    dict.fromkeys(range(3, VOCAB), 2.0),
    {**dict.fromkeys(HALF, 1.0), 5: 3.0},
    {**dict.fromkeys(THIRD, 1.0), 6: 7.0},
    dict.fromkeys(HALF, 1.0),
)


@pytest.fixture
def show(
    plant: Callable[..., Any], measure: Callable[..., Any], one_hot_model: Any
) -> Callable[..., tuple[dict[str, Any], str]]:
    """The artifacts of SAEs with these latents, as JSON and as text."""

    def go(*encoders: np.ndarray, tokenizer: Any = None, n_contexts: int = 10) -> tuple[dict[str, Any], str]:
        one_hot_model.tokenizer = tokenizer
        evaluator = FakeFeatures(N_RANDOM, taus=[0.1, 0.2], baselines=False, n_contexts=n_contexts)
        handles = [plant(encoder, seed=seed) for seed, encoder in enumerate(encoders)]
        folder = measure(evaluator, handles, {"faithful": text()}).folder / "artifacts"
        return json.loads((folder / "fake_latents.json").read_text()), (
            folder / "fake_latents.txt"
        ).read_text()

    return go


def test_the_most_fake_latents_come_first_and_those_without_text_are_counted(
    show: Callable[..., tuple[dict[str, Any], str]],
) -> None:
    content, lines = show(FOUR)
    (sae,) = content["saes"]
    # 1: .49 against max(.1, 2/30): .39 above; 2: .33 against .1; the dense one is far below twice its own rate.
    assert [(one["latent"], one["fake"]) for one in sae["latents"]] == [(1, True), (2, True), (0, False)]
    # 3 is fake as well, but has no place in real text to be judged by.
    assert (sae["n_fake"], sae["n_fake_and_never_on_text"]) == (3, 1)
    assert sae["latents"][0]["rate_own"] == pytest.approx(1 / 30)
    assert "(3 are fake, 1 of them never fire on real text)" in lines


def test_a_latent_comes_with_its_strongest_places_and_ten_tokens_on_each_side(
    show: Callable[..., tuple[dict[str, Any], str]],
) -> None:
    content, _ = show(FOUR)
    first, second, dense = content["saes"][0]["latents"]
    # Once in each of 60 rows, equally strongly: the first five.
    assert [(one["row"], one["position"]) for one in first["contexts"]] == [(row, 15) for row in range(5)]
    assert first["contexts"][0] == {
        "activation": 3.0, "token": " 5", "row": 0, "position": 15,
        "before": " ".join(["40"] * 10), "after": " ".join(["40"] * 10),
    }  # fmt: skip
    # Once in the whole text, near the start of its row: what comes before is cut short.
    assert second["contexts"] == [
        {
            "activation": 7.0, "token": " 6", "row": 58, "position": 3,
            "before": "0 40 40", "after": " ".join(["40"] * 10),
        }
    ]  # fmt: skip
    # BOS counts in no row.
    assert all(one["position"] > 0 for one in dense["contexts"])


def test_tokens_are_decoded_where_there_is_a_tokenizer(
    show: Callable[..., tuple[dict[str, Any], str]], tokenizer: Any
) -> None:
    content, lines = show(FOUR, tokenizer=tokenizer)
    context = content["saes"][0]["latents"][1]["contexts"][0]
    assert (context["before"], context["token"]) == ("<bos> w40 w40", "w6")
    assert "- latent 2 fires on" in lines
    assert "«w6»" in lines


def test_the_text_is_short_and_of_the_first_sae_of_a_source(
    show: Callable[..., tuple[dict[str, Any], str]],
) -> None:
    content, lines = show(FOUR, FOUR, np.tile(FOUR, 5))
    assert [sae["seed"] for sae in content["saes"]] == [0, 1, 2]
    assert lines.count("Most fake latents of") == 1
    assert "faithful, model.layers.0, main, seed 0 " in lines
    assert lines.count("\n- latent ") == 3
    assert len(lines.splitlines()) <= 12


def test_as_many_latents_as_asked_for_are_shown(show: Callable[..., tuple[dict[str, Any], str]]) -> None:
    content, _ = show(np.tile(FOUR, 5), n_contexts=4)
    # Latents 1, 5, 9, ... are alike: five of them, and ties keep their order.
    assert [one["latent"] for one in content["saes"][0]["latents"]] == [1, 5, 9, 13]


def test_where_none_is_fake_the_nearest_to_it_are_shown_and_said_not_to_be(
    show: Callable[..., tuple[dict[str, Any], str]],
) -> None:
    # .033 and .016 of random tokens, both below a tenth.
    content, lines = show(latents({5: 3.0}, {5: 3.0, 10: 1.0}))
    assert [(one["latent"], one["fake"]) for one in content["saes"][0]["latents"]] == [(1, False), (0, False)]
    assert "(0 are fake)" in lines
    assert "- latent 1 (not fake) fires on" in lines


def test_an_sae_that_never_fires_has_nothing_to_show(
    show: Callable[..., tuple[dict[str, Any], str]],
) -> None:
    content, lines = show(np.zeros((VOCAB, 3)))
    assert content["saes"][0]["latents"] == []
    assert "(0 are fake)" in lines
