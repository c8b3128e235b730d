"""What is shown of a latent: places in the text, and what its direction says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful_plugins.top_contexts import TopContexts, windows

from .conftest import BOS, VOCAB, latents, text

# On w5 3, on w6 1, on w7 5, on w8 2 below 0 (which a ReLU takes off), and on BOS, which does not count.
ENCODER = latents({BOS: 1.0, 5: 3.0, 6: 1.0, 7: 5.0, 8: -2.0}, {9: 0.123456})
# At the start of a row, at its end, and in the middle; one row more in which it does not fire.
TEXT = {"faithful": text({1: 5, 2: 6}, {28: 8, 29: 5}, {15: 7, 16: 6, 3: 5}, {4: 9})}


def only(content: dict[str, Any], latent: int = 0) -> dict[str, Any]:
    """The one SAE's latent."""
    (sae,) = content["saes"]
    (found,) = [one for one in sae["latents"] if one["latent"] == latent]
    return found


def test_contexts_are_the_strongest_rows_cut_at_their_ends(
    plant: Callable[..., Any], show: Callable[..., Any]
) -> None:
    content = show(TopContexts(window=3), [plant(ENCODER)], TEXT)
    assert content["text"] == {"faithful": "held-out"}
    # Without a tokenizer, ids. One place a row: w5 at position 3 of row 2 is a weaker one.
    assert only(content)["contexts"] == [
        {
            "row": 2, "position": 15, "peak": 3, "tokens": [" 40", " 40", " 40", " 7", " 6", " 40", " 40"],
            "activations": [0, 0, 0, 5, 1, 0, 0],
        },
        {
            "row": 0, "position": 1, "peak": 1, "tokens": [" 0", " 5", " 6", " 40", " 40"],
            "activations": [0, 3, 1, 0, 0],
        },
        {
            "row": 1, "position": 29, "peak": 3, "tokens": [" 40", " 40", " 8", " 5"],
            "activations": [0, 0, 0, 3],
        },
    ]  # fmt: skip
    assert only(content)["maximum"] == 5
    # Three significant figures.
    assert (only(content, 1)["maximum"], only(content, 1)["contexts"][0]["activations"][3]) == (0.123, 0.123)


def test_as_many_rows_and_tokens_as_asked_for(plant: Callable[..., Any], show: Callable[..., Any]) -> None:
    (first,) = only(show(TopContexts(window=0, n_contexts=1), [plant(ENCODER)], TEXT))["contexts"]
    assert (first["row"], first["tokens"], first["activations"], first["peak"]) == (2, [" 7"], [5], 0)


def test_tokens_outside_the_slice_do_not_count(plant: Callable[..., Any], show: Callable[..., Any]) -> None:
    content = show(TopContexts(window=3), [plant(ENCODER)], TEXT, seqpos_slice=(2, 16))
    found = {one["row"]: one for one in only(content)["contexts"]}
    # In row 1 nothing is left; in row 0 position 1 is not counted, in row 2 position 16 is not.
    assert sorted(found) == [0, 2]
    assert (found[0]["position"], found[0]["activations"]) == (2, [0, 0, 1, 0, 0, 0])
    assert found[2]["activations"] == [0, 0, 0, 5, 0, 0, 0]


def test_the_model_is_run_once_more_on_the_rows_that_are_shown_for_all_saes_at_once(
    plant: Callable[..., Any], show: Callable[..., Any], one_hot_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = [plant(ENCODER, seed=seed) for seed in (0, 1)] + [plant(ENCODER, hook="model.layers.1")]
    content = show(TopContexts(n_latents=1, window=3), handles, TEXT)
    both = ("model.layers.0", "model.layers.1")
    # Four rows in the pass; of them three are shown, by all three SAEs.
    assert one_hot_model.passes == [(both, 4), (both, 3)]
    assert content["saes"][0]["latents"] == content["saes"][1]["latents"] == content["saes"][2]["latents"]
    # In small batches it is the same: rows 0 and 2, which are read 5 and 19 tokens far, then row 1, all of its 30.
    one_hot_model.passes.clear()
    monkeypatch.setattr(windows, "TOKENS_PER_FORWARD", 60)
    monkeypatch.setattr(windows, "LATENTS_PER_CHUNK", 5)
    assert show(TopContexts(n_latents=1, window=3), handles, TEXT, batch_rows=1) == content
    assert one_hot_model.passes[4:] == [(both, 2), (both, 1)]


def test_each_source_has_its_own_text(
    plant: Callable[..., Any], show: Callable[..., Any], one_hot_model: Any
) -> None:
    held_out = {**TEXT, "web": text({20: 5}), "other": text({20: 7})}
    handles = [plant(ENCODER), plant(ENCODER, source="web")]
    content = show(TopContexts(window=0), handles, held_out)
    assert content["text"] == {"faithful": "held-out", "web": "held-out"}
    assert [sae["latents"][0]["maximum"] for sae in content["saes"]] == [5, 3]
    # Two texts, each twice; the one that nothing is trained on is not read.
    assert [n_rows for _, n_rows in one_hot_model.passes] == [4, 1, 4, 1]


def test_hostile_tokens_stay_as_they_are(plant: Callable[..., Any], show: Callable[..., Any]) -> None:
    strange = {
        5: "\x00", 6: "\U0001f9d1\u200d\U0001f680", 7: "<script>alert(1)</script>", 8: "\u202eabc\u200f",
        9: "&amp;", 10: "\u2028", 11: "x" * 10_000, 12: "\ufffd",
    }  # fmt: skip

    class Strange:
        def decode(self, ids: list[int]) -> str:
            return "".join(strange.get(token, " w") for token in ids)

        def convert_ids_to_tokens(self, token: int) -> str:
            return ""

    held_out = {"faithful": text(dict(enumerate(strange, start=8)))}
    unembedding = torch.eye(VOCAB)
    decoder = np.zeros((1, VOCAB))
    decoder[0, 5:13] = np.arange(8, 0, -1)
    handle = plant(latents({7: 1.0}), decoder)
    content = show(
        TopContexts(n_tokens_promoted=8), [handle], held_out, tokenizer=Strange(), unembedding=unembedding
    )
    (place,) = only(content)["contexts"]
    assert place["tokens"][place["peak"] - 2 : place["peak"] + 6] == list(strange.values())
    assert [token for token, _ in only(content)["promoted"]] == list(strange.values())


def test_what_a_direction_promotes_and_suppresses(
    plant: Callable[..., Any], show: Callable[..., Any]
) -> None:
    # Latent 0's direction is the first axis; what each token's logit reads of it is (token - 40) / 10.
    unembedding = torch.zeros(VOCAB, VOCAB)
    unembedding[:, 0] = (torch.arange(VOCAB) - 40) / 10
    unembedding[:, 1] = 3.0
    # As long as no token that training touched: left out, though nothing is promoted more.
    unembedding[50, 0] = 1_000.0
    options = TopContexts(n_tokens_promoted=2)
    found = only(show(options, [plant(ENCODER)], TEXT, unembedding=unembedding))
    assert found["promoted"] == [[" 63", 2.3], [" 62", 2.2]]
    assert found["suppressed"] == [[" 0", -4.0], [" 1", -3.9]]


@pytest.mark.parametrize(
    ("unembedding", "says"),
    [
        (None, "the model's output matrix or final norm is not found"),
        (torch.zeros(VOCAB, 8), "activations have 64 entries here, what is unembedded has 8"),
    ],
)
def test_why_nothing_is_promoted(
    plant: Callable[..., Any], show: Callable[..., Any], unembedding: Any, says: str
) -> None:
    content = show(TopContexts(), [plant(ENCODER)], TEXT, unembedding=unembedding)
    assert content["saes"][0]["no_direct_path"] == says
    assert (only(content)["promoted"], only(content)["suppressed"]) == ([], [])
    assert show(TopContexts(n_tokens_promoted=0), [plant(ENCODER)], TEXT)["saes"][0]["no_direct_path"] is None


def test_neuronpedia_is_named_where_the_sae_s_file_does(
    plant: Callable[..., Any], show: Callable[..., Any]
) -> None:
    known = plant(ENCODER, seed=1)
    known.sae.cfg.metadata.neuronpedia_id = "gpt2-small/0-res-jb"
    content = show(TopContexts(), [plant(ENCODER), known], TEXT)
    assert [sae["neuronpedia"] for sae in content["saes"]] == [None, "gpt2-small/0-res-jb"]


def test_an_sae_that_never_fires_has_nothing_to_show(
    plant: Callable[..., Any], show: Callable[..., Any], one_hot_model: Any
) -> None:
    (sae,) = show(TopContexts(), [plant(latents({50: 1.0}))], TEXT)["saes"]
    assert sae["latents"] == []
    # The pass that found it out, and no other.
    assert len(one_hot_model.passes) == 1
