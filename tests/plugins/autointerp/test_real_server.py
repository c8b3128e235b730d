"""The client against a real OpenAI-compatible server: `transformers serve` with SmolLM2-135M.

Nothing is said of how good its answers are: a model of that size often gives none that can be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_faithful import LanguageModel, RunError, TokenSet
from sae_faithful_plugins.autointerp import Autointerp, assistants, classify, simulate

from ...transformers_serve import LACKING, Served  # noqa: TID252 (tests are no package that is installed)

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        bool(LACKING),
        reason=f"{', '.join(LACKING)} not installed: pip install 'transformers[serving]' (make install does)",
    ),
]

NAME = "smollm2"
BY = f"explainer={NAME}, simulator={NAME}, mode=json"
SUBSETS = ("top_and_random", "top_only", "random_only")
REASONS = ("malformed reply", "refusal", "constant prediction")
"""What a server without faults leaves without a score."""


@pytest.fixture
def shop(smollm2: Path, tmp_path: Path) -> Path:
    """Where the server works: the model under a short name, drawing at random where it is asked to."""
    folder = tmp_path / "shop" / NAME
    folder.mkdir(parents=True)
    for file in smollm2.iterdir():
        (folder / file.name).symlink_to(file)
    settings = json.loads((smollm2 / "generation_config.json").read_text())
    (folder / "generation_config.json").unlink()
    # Without this `transformers serve` takes the likeliest token at any temperature.
    (folder / "generation_config.json").write_text(json.dumps({**settings, "do_sample": True}))
    return folder.parent


@pytest.fixture
def served(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    server = Served(shop, NAME)
    try:
        server.wait()
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        yield server
    finally:
        server.stop()


WORDS = {" cat": 0, " dog": 0, " Paris": 1, " Rome": 1}
"""Each is one token; latent 0 fires on animals, latent 1 on cities."""
TEXTS = (" a cat slept", " my dog ran", " in Paris now", " to Rome again", " he walked home")


class Words(LanguageModel):
    """SmolLM2's tokenizer, with activations that can be told by hand: one number a word of `WORDS`."""

    vocab_size, bos_token_id, context_limit, special_token_ids = 49_152, 1, 64, (0, 1, 2)
    tokenizer: Any = None

    def activations(self, tokens: Any, hooks: Any) -> Any:
        import torch

        rows = torch.zeros(self.vocab_size, 64)
        for place, word in enumerate(WORDS):
            (token,) = self.tokenizer(word)["input_ids"]
            rows[token, place] = 1.0 - 0.1 * place
        return dict.fromkeys(hooks, rows[tokens])


@pytest.fixture
def words(smollm2: Path) -> Words:
    from transformers import AutoTokenizer

    model = Words("words")
    model.tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return model


@pytest.fixture
def animals_and_cities(plant: Callable[..., Any]) -> Any:
    encoder = np.zeros((64, 2))
    for place, latent in enumerate(WORDS.values()):
        encoder[place, latent] = 1.0
    return plant(encoder)


@pytest.fixture
def text(words: Words) -> TokenSet:
    """Five sentences of three tokens, in turn: there is little to ask a server whose answers take seconds."""
    sentences = [words.tokenizer(one)["input_ids"] for one in TEXTS]
    assert {len(one) for one in sentences} == {3}
    return TokenSet.from_rows(np.array([[words.bos_token_id, *sentences[i % 5]] for i in range(100)]))


def check(measured: Any, metric: str, by: str, n: int) -> None:
    """Every feature has a score, or stands among those without one, by a reason; none is 0 for lack of one."""
    row = measured.row(metric, seed=0, condition=by)
    what = f"{metric}, {by}"
    counted = {
        one["condition"].removeprefix(f"{what}: "): one["value"]
        for one in measured.rows
        if one["metric"] == "unscored" and one["condition"].startswith(f"{what}: ")
    }
    assert set(counted) <= set(REASONS)
    assert row["n"] + sum(counted.values()) == n
    assert measured.row("unscored", seed=0, condition=what)["value"] == sum(counted.values())
    (table,) = json.loads((measured.folder / "artifacts" / "features.json").read_text())["saes"]
    found = [one for feature in table["features"] for one in feature["scores"] if one["metric"] == metric]
    scores = [one["scores"][by.split(", ")[0] if by.startswith(SUBSETS) else ""] for one in found]
    assert len(scores) == n
    scored = [score for score in scores if score is not None]
    assert len(scored) == row["n"]
    if scored:
        assert row["value"] == pytest.approx(np.mean(scored))
    else:
        assert (row["value"], row["reason"]) == (None, "no feature could be scored")


def test_a_real_server_explains_and_judges_and_a_rerun_without_it_is_the_same(
    served: Served, words: Words, animals_and_cities: Any, text: TokenSet, measure: Callable[..., Any], cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Room for a true reply and little more, and one more try: at ten tokens a second.
    monkeypatch.setattr(simulate, "REPLY_TOKENS_SPARE", 8)
    monkeypatch.setattr(classify, "REPLY_TOKENS_SPARE", 0)
    monkeypatch.setattr(assistants, "ASK_AGAIN", 1)
    options: dict[str, Any] = {
        "fragment_tokens": 3, "selection": "first", "explainer": NAME, "concurrency": 2, "shuffled": False,
        "retries": 0, "timeout": 300.0,
    }  # fmt: skip
    # It repeats no prompts with log-probabilities, so that `auto` is JSON.
    simulated = Autointerp(**options, scores=["simulation"], mode="auto", n_features=2)
    judged = Autointerp(**options, scores=["detection", "fuzzing"], n_features=1)

    def run(evaluator: Autointerp) -> Any:
        return measure(evaluator, [animals_and_cities], {"faithful": text}, language_model=words)

    first = [run(simulated), run(judged)]
    for subset in SUBSETS:
        check(first[0], "autointerp_score", f"{subset}, {BY}", 2)
    for metric in ("detection_balanced_accuracy", "detection_f1", "fuzzing_balanced_accuracy", "fuzzing_f1"):
        check(first[1], metric, BY, 1)
    replies = sorted(cache.glob("autointerp/*/*.json"))
    # Each was asked for once, the explanation of the feature that is judged twice among them.
    assert len(replies) == served.requests()
    said = [json.loads(file.read_text())["reply"] for file in replies]
    chats = [one for one in said if "message" in one["choices"][0]]
    assert len(chats) == len(said) - 1
    assert all(one["usage"]["completion_tokens"] > 0 for one in chats)

    served.stop()
    again = [run(simulated), run(judged)]
    for one, other in zip(first, again, strict=True):
        assert one.rows == other.rows
        files = [each.folder / "artifacts" / "features.json" for each in (one, other)]
        assert files[0].read_text() == files[1].read_text()
    assert sorted(cache.glob("autointerp/*/*.json")) == replies
    # What it was not asked before ends the run.
    with pytest.raises(RunError, match=r"no server is there at \$OPENAI_BASE_URL"):
        run(Autointerp(**options, scores=["detection"], n_features=2))
