"""The patch on the planted circuit, by hand, and on both kinds of tiny models against their own forwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sae_faithful_plugins.ioi_patching.patching as plugin
from sae_faithful import LanguageModel, SAEHandle
from sae_faithful_plugins.ioi_patching.components import Components
from sae_faithful_plugins.ioi_patching.curves import first_order_effects
from sae_faithful_plugins.ioi_patching.patching import (
    Changes,
    PatchedModel,
    Prompts,
    divergence,
    predictions,
)
from sae_faithful_plugins.ioi_patching.prompts import TokenPair

from .conftest import CAUSAL, HOOK, Circuit, directions

PAIRS = [
    TokenPair((20, 21, 22, 23), (20, 30, 22, 23), None, None),
    TokenPair((24, 25, 26, 27, 28, 29, 40), (24, 25, 26, 27, 31, 29, 40), None, None),
    TokenPair((41, 42), (43, 42), None, None),
]
# From the first different token on: 3 of 4, 3 of 7, 2 of 2.
POSITIONS = [3, 3, 2]


def patched_on(model: LanguageModel, hook: str, pairs: Any = PAIRS, bos: int | None = 0) -> PatchedModel:
    prompts = Prompts.of(pairs, bos)
    return PatchedModel(model, hook, prompts, predictions(model, prompts)[1])


def with_both_signs(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows, -rows])


@pytest.fixture(scope="module", params=["AutoModelForCausalLM", "HookedTransformer"])
def tiny(request: pytest.FixtureRequest, llama: LanguageModel, tiny_hooked: Any) -> tuple[LanguageModel, str]:
    """Both kinds of models, each with a hook in its middle."""
    if request.param == "AutoModelForCausalLM":
        return llama, "model.layers.0"
    return LanguageModel("tiny", "HookedTransformer", given=tiny_hooked), "blocks.0.hook_resid_post"


def kl_by_hand(
    model: LanguageModel, base: tuple[int, ...], target: tuple[int, ...], edit: Any = None
) -> float:
    """One pair alone, without padding: KL(patched ‖ target) after the last token."""
    tokens = [torch.tensor([[0, *some]]) for some in (base, target)]
    logits = model.logits(tokens[0]) if edit is None else edit(tokens[0])
    p, q = (one[0, -1].double().log_softmax(0) for one in (logits, model.logits(tokens[1])))
    return float((p.exp() * (p - q)).sum())


def test_no_features_give_the_kl_of_the_model_itself_and_edit_0(tiny: Any) -> None:
    model, hook = tiny
    patched = patched_on(model, hook)
    by_hand = [kl_by_hand(model, pair.base, pair.target) for pair in PAIRS]
    assert min(by_hand) > 0.001
    none = torch.zeros_like(patched.base)
    for kl in (patched.kl(), patched.kl(none)):
        assert kl == pytest.approx(by_hand, rel=1e-3)
    assert patched.prompts.edit_sizes(none).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["pca", "pca_split"])
def test_orthonormal_components_all_patched_give_the_target(tiny: Any, kind: Any) -> None:
    model, hook = tiny
    patched = patched_on(model, hook)
    width = patched.base.shape[1]
    rows = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))[0]
    changes = Changes.of(Components(kind, patched.base.mean(dim=0), rows), patched.base, patched.target)
    assert patched.kl(changes.whole) == pytest.approx([0, 0, 0], abs=1e-5)
    assert patched.kl(changes.edit(np.arange(len(changes.features)))) == pytest.approx([0, 0, 0], abs=1e-5)


def test_the_identity_dictionary_is_the_full_activation_patch(tiny: Any, sae_of: Callable[..., Any]) -> None:
    model, hook = tiny
    patched = patched_on(model, hook)
    handle = sae_of(with_both_signs(torch.eye(patched.base.shape[1])))
    changes = Changes.of(handle, patched.base, patched.target)
    torch.testing.assert_close(changes.whole, patched.target - patched.base)
    assert patched.kl(changes.whole) == pytest.approx([0, 0, 0], abs=1e-5)
    # One feature is one dimension, where it is above 0.
    one = int(np.flatnonzero(changes.features == 5)[0])
    expected = torch.zeros_like(patched.base)
    expected[:, 5] = patched.target[:, 5].relu() - patched.base[:, 5].relu()
    torch.testing.assert_close(changes.edit(np.array([one])), expected)

    # And through the model, pair by pair, without padding: dimension 5 as it is in the target.
    start = 0
    for pair, n, kl in zip(PAIRS, POSITIONS, patched.kl(expected), strict=True):
        added = torch.zeros(1, len(pair.base) + 1, expected.shape[1])
        added[0, -n:] = expected[start : start + n]
        start += n
        by_hand = kl_by_hand(
            model, pair.base, pair.target,
            lambda tokens, added=added: model.logits_with_edit(tokens, hook, lambda own: own + added),
        )  # fmt: skip
        assert kl == pytest.approx(by_hand, rel=1e-3, abs=1e-6)


def test_the_direction_of_kl_on_two_tokens() -> None:
    """Patched (.9, .1), target (.5, .5): .9 log 1.8 + .1 log .2 = .368; the other way round it would be .511."""
    patched, target = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert divergence(patched, target).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert divergence(target, patched).item() == pytest.approx(-0.5 * math.log(0.36), rel=1e-5)
    # And in a whole model of two tokens: base predicts (.9, .1), target (.5, .5).
    embedding = torch.tensor([[0.0], [math.log(9.0)]])
    model = Circuit(embedding, torch.tensor([[1.0, 0.0]]), None)
    pair = [TokenPair((1,), (0,), None, None)]
    assert patched_on(model, HOOK, pair, None).kl()[0] == pytest.approx(0.368, abs=5e-4)


def test_padding_tokens_and_unchanged_positions_get_zero_edit(circuit: Circuit, planted: Any) -> None:
    patched = patched_on(circuit, HOOK)
    changes = Changes.of(planted, patched.base, patched.target)
    patched.kl(changes.whole)
    (added,) = circuit.edits
    assert added.shape == (3, 8, 16)
    touched = added.abs().sum(dim=-1) > 0
    # With BOS first. In this model a token's activation is its own, so only the different one has an edit.
    expected = torch.zeros(3, 8, dtype=torch.bool)
    expected[0, 2] = expected[1, 5] = expected[2, 1] = True
    assert torch.equal(touched, expected)
    # Even where an edit would be: before the first different token, and behind the last.
    assert patched.prompts.changed.tolist() == [
        [False, False, True, True, True, False, False, False],
        [False, False, False, False, False, True, True, True],
        [False, True, True, False, False, False, False, False],
    ]


def test_padding_changes_nothing(tiny: Any) -> None:
    model, hook = tiny
    together = patched_on(model, hook)
    edit = 0.5 * (together.target - together.base)
    alone = [patched_on(model, hook, [pair]) for pair in PAIRS]
    parts = torch.split(edit, POSITIONS)
    assert together.kl(edit) == pytest.approx(
        [float(one.kl(part)[0]) for one, part in zip(alone, parts, strict=True)], rel=1e-3, abs=1e-6
    )
    torch.testing.assert_close(
        together.gradients(edit),
        torch.cat([one.gradients(part) for one, part in zip(alone, parts, strict=True)]),
        rtol=1e-3, atol=1e-5,
    )  # fmt: skip


def test_batches_change_nothing(circuit: Circuit, planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = patched_on(circuit, HOOK)
    edit = Changes.of(planted, whole.base, whole.target).whole
    monkeypatch.setattr(plugin, "TOKENS_PER_FORWARD", 8)
    rows = patched_on(circuit, HOOK)
    assert len(list(plugin._batches(rows.prompts, 64))) == 3
    torch.testing.assert_close(rows.base, whole.base)
    assert rows.kl(edit) == pytest.approx(whole.kl(edit))
    batched = rows.gradients(edit)
    monkeypatch.undo()
    torch.testing.assert_close(batched, whole.gradients(edit))


def test_bos_is_no_token_of_the_prompt(circuit: Circuit) -> None:
    prompts = Prompts.of(PAIRS, bos=0)
    assert prompts.lengths.tolist() == [4, 7, 2]
    assert prompts.last.tolist() == [4, 7, 2]
    assert prompts.base[:, 0].tolist() == [0, 0, 0]
    without = Prompts.of(PAIRS, bos=None)
    assert without.last.tolist() == [3, 6, 1]
    assert without.base[:, 0].tolist() == [20, 24, 41]


def test_the_size_of_an_edit_is_its_closed_form(circuit: Circuit, planted: Any) -> None:
    patched = patched_on(circuit, HOOK)
    changes = Changes.of(planted, patched.base, patched.target)
    some = np.array([2, 5])
    sizes = patched.prompts.edit_sizes(changes.edit(some))
    codes = planted.encode(circuit.embedding)
    for pair, size in zip(PAIRS, sizes, strict=True):
        (place,) = [i for i, (a, b) in enumerate(zip(pair.base, pair.target, strict=True)) if a != b]
        change = (codes[pair.target[place]] - codes[pair.base[place]])[changes.features[some]]
        # ‖Σ Δc f‖; the directions are orthonormal: the root of the sum of squares of Δc.
        assert size == pytest.approx(float(change.norm()), rel=1e-5)


def test_the_size_of_an_edit_along_oblique_directions(circuit: Circuit, sae_of: Callable[..., Any]) -> None:
    patched = patched_on(circuit, HOOK)
    rows = torch.nn.functional.normalize(
        torch.randn(24, 16, generator=torch.Generator().manual_seed(0)), dim=1
    )
    handle = sae_of(rows)
    changes = Changes.of(handle, patched.base, patched.target)
    sizes = patched.prompts.edit_sizes(changes.edit(np.arange(len(changes.features))))
    codes = handle.encode(circuit.embedding)
    for pair, size in zip(PAIRS, sizes, strict=True):
        (place,) = [i for i, (a, b) in enumerate(zip(pair.base, pair.target, strict=True)) if a != b]
        change = codes[pair.target[place]] - codes[pair.base[place]]
        # ‖Σ Δc f‖, which is not the length of Δc.
        assert size == pytest.approx(float((change[:, None] * rows).sum(dim=0).norm()), rel=1e-5)
        assert size != pytest.approx(float(change.norm()), rel=0.05)


def test_the_bases_reconstruction_error_is_kept(circuit: Circuit, sae_of: Callable[..., Any]) -> None:
    """An SAE of four of sixteen directions loses most of an activation; without a change nothing happens to it."""
    patched = patched_on(circuit, HOOK)
    handle = sae_of(directions()[:4])
    changes = Changes.of(handle, patched.base, patched.base)
    assert len(changes.features) == 0
    assert patched.kl(changes.whole) == pytest.approx(patched.kl(), rel=1e-5)
    # All of its features: x + x̂_target − x̂_base, and not x̂_target.
    changes = Changes.of(handle, patched.base, patched.target)
    reconstructions = [handle.decode(handle.encode(x), x) for x in (patched.base, patched.target)]
    torch.testing.assert_close(changes.whole, reconstructions[1] - reconstructions[0])
    assert float((patched.base - reconstructions[0]).norm()) > 1


def test_first_order_effects_are_gradients_times_changes(circuit: Circuit, planted: Any) -> None:
    patched = patched_on(circuit, HOOK)
    changes = Changes.of(planted, patched.base, patched.target)
    effects = first_order_effects(patched, changes)
    everything = changes.edit(np.arange(len(changes.features)))
    expected = np.zeros(len(effects))
    step = 1e-2
    for column in range(len(effects)):
        one = changes.edit(np.array([column]))
        for share in plugin.PATH_POINTS:
            at = [patched.kl(share * everything + sign * step * one).mean() for sign in (1, -1)]
            expected[column] += (at[0] - at[1]) / (2 * step) / len(plugin.PATH_POINTS)
    assert np.abs(expected).max() > 0.1
    assert effects == pytest.approx(expected, abs=0.01 * np.abs(expected).max())
    # Together they are about what the whole patch takes away.
    assert effects.sum() == pytest.approx(-patched.kl().mean(), rel=0.05)


def test_effects_of_features_that_are_not_read_are_0(circuit: Circuit, planted: Any) -> None:
    patched = patched_on(circuit, HOOK)
    changes = Changes.of(planted, patched.base, patched.target)
    effects = first_order_effects(patched, changes)
    unread = ~np.isin(changes.features, CAUSAL)
    assert unread.sum() > 3
    assert np.abs(effects[unread]).max() < 1e-5 < np.abs(effects[~unread]).max()


@pytest.mark.parametrize("norm", ["none", "constant_norm_rescale", "layer_norm"])
def test_features_add_up_to_the_whole_whatever_the_sae_does_to_its_inputs(
    circuit: Circuit, sae_of: Callable[..., Any], norm: str
) -> None:
    patched = patched_on(circuit, HOOK)
    rows = 3.0 * torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    handle = sae_of(rows, normalize_activations=norm)
    changes = Changes.of(handle, patched.base, patched.target)
    assert len(changes.features) > 5
    reconstructions = [handle.decode(handle.encode(x), x) for x in (patched.base, patched.target)]
    torch.testing.assert_close(changes.whole, reconstructions[1] - reconstructions[0])
    rest = changes.whole - changes.edit(np.arange(len(changes.features)))
    if norm == "layer_norm":
        # The inputs' means, which it takes off and adds back.
        means = patched.target.mean(dim=1, keepdim=True) - patched.base.mean(dim=1, keepdim=True)
        rest = rest - means
        assert float(means.abs().max()) > 0.01
    assert float(rest.abs().max()) < 1e-3 * float(changes.whole.abs().max())


def test_topk_that_treats_its_decoder_as_normalised(circuit: Circuit) -> None:
    """Its decoder's rows are not the directions: `decode` divides by their norm."""
    from sae_lens import TopKSAE, TopKSAEConfig

    def load() -> Any:
        sae = TopKSAE(TopKSAEConfig(d_in=16, d_sae=32, k=8, rescale_acts_by_decoder_norm=True))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            sae.W_dec.copy_(4.0 * torch.randn(32, 16, generator=generator))
            sae.W_enc.copy_(torch.randn(16, 32, generator=generator))
        return sae

    handle = SAEHandle(source="faithful", hook=HOOK, variant="main", seed=0, load=load)
    patched = patched_on(circuit, HOOK)
    changes = Changes.of(handle, patched.base, patched.target)
    torch.testing.assert_close(
        changes.edit(np.arange(len(changes.features))), changes.whole, rtol=1e-4, atol=1e-5
    )
    scale = changes.directions.norm(dim=1) / handle.W_dec[torch.from_numpy(changes.features)].norm(dim=1)
    assert float((scale - 1).abs().min()) > 0.5


def test_only_given_features_are_kept_in_their_order(circuit: Circuit, planted: Any) -> None:
    patched = patched_on(circuit, HOOK)
    some = Changes.of(planted, patched.base, patched.target, np.array([3, 1]))
    torch.testing.assert_close(some.directions, directions()[[3, 1]])
    every = Changes.of(planted, patched.base, patched.target)
    at = [int(np.flatnonzero(every.features == one)[0]) for one in (3, 1)]
    torch.testing.assert_close(some.codes, every.codes[:, at])
    torch.testing.assert_close(some.whole, every.whole)


def test_the_adapter_gives_gradients_only_when_asked(tiny: Any, tmp_path: Path) -> None:
    model, hook = tiny
    added = torch.zeros(1, 3, 64, requires_grad=True)
    tokens = torch.tensor([[0, 20, 21]])
    assert not model.logits_with_edit(tokens, hook, lambda own: own + added).requires_grad
    logits = model.logits_with_edit(tokens, hook, lambda own: own + added, grad=True)
    (gradient,) = torch.autograd.grad(logits[0, -1, 5], added)
    assert float(gradient.abs().max()) > 0
    assert not model.logits(tokens).requires_grad
