"""Causal trees of planted chains: models whose layers are set by hand, so that every drop is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful import EvalContext, LanguageModel, SAEHandle, TokenSet
from sae_faithful.metrics.intervals import Interval, mean_interval
from sae_faithful_plugins.case_studies.tree import TreeOptions, causal_trees, parent_hooks
from sae_faithful_plugins.case_studies.tree_contexts import Feature, counting, find_contexts
from sae_faithful_plugins.case_studies.tree_effects import ParentAblation
from sae_faithful_plugins.case_studies.tree_nodes import FIRST_HOOK, NEVER_FIRES, NO_PARENT, Edge, Node, Tree

VOCAB, WIDTH, CONTEXT, ROWS, BOS = 64, 16, 12, 60, 0
CONSTANT, A, H, B, C, D1, D2, D3, DEAD, UNREAD = range(10)
"""Directions. Block 1 makes b of 2a − h, block 2 makes c of 3b; d1 to d3 pass by and are read by nothing."""
HOOKS = {
    "HookedTransformer": [f"blocks.{i}.hook_resid_post" for i in range(3)],
    "AutoModelForCausalLM": [f"model.layers.{i}" for i in range(3)],
}
OPTIONS: dict[str, Any] = {
    "n_tokens": ROWS * CONTEXT, "context_tokens": 0, "n_contexts": 10, "candidates": 0, "children": 3, "seed": 1,
}  # fmt: skip


def directions() -> torch.Tensor:
    """Orthonormal, not along the axes, and of entries ±1/4 (Sylvester's), so that nothing is rounded."""
    signs = torch.ones(1, 1)
    while len(signs) < WIDTH:
        signs = torch.cat([torch.cat([signs, signs], dim=1), torch.cat([signs, -signs], dim=1)])
    return signs / 4


def embedding() -> torch.Tensor:
    """[64, 16] in planted directions, in 64ths: each is 0 on many tokens; everything is large at BOS."""
    rng = np.random.default_rng(0)
    codes = np.zeros((VOCAB, WIDTH))
    # Most of the norm, so that a Llama's layers are nearly linear in the rest.
    codes[:, CONSTANT] = 8.0
    codes[:, [A, H, D1, D2, D3]] = rng.uniform(0.5, 2, (VOCAB, 5)) * (rng.random((VOCAB, 5)) < 0.6)
    codes[:, H] *= 0.5
    codes[BOS, [A, H, D1, D2, D3]] = [100, 40, 30, 20, 10]
    return torch.from_numpy(np.round(codes * 64) / 64).float()


def hooked(**changes: Any) -> Any:
    """Three blocks without attention or normalisation: x + relu(2a − h) b, then x + relu(3b) c."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    fields: dict[str, Any] = {
        "n_layers": 3, "d_model": WIDTH, "n_ctx": CONTEXT, "d_head": 8, "n_heads": 1, "d_mlp": 4, "seed": 0,
        "d_vocab": VOCAB, "act_fn": "relu", "normalization_type": None, "device": "cpu",
    }  # fmt: skip
    model = HookedTransformer(HookedTransformerConfig(**{**fields, **changes}))
    f = directions()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E.copy_(embedding() @ f)
        model.blocks[1].mlp.W_in[:, 0] = 2 * f[A] - f[H]
        model.blocks[1].mlp.W_out[0] = f[B]
        model.blocks[2].mlp.W_in[:, 0] = 3 * f[B]
        model.blocks[2].mlp.W_out[0] = f[C]
    return model


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> str:
    """The same of a Llama: x + silu(g) u b, where g reads the constant and u 2a − h, both of x / rms(x)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("planted_llama")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=4, num_hidden_layers=3,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=CONTEXT, rms_norm_eps=1e-6,
            bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=False,
        )
    )  # fmt: skip
    f = directions()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight.copy_(embedding() @ f)
        for layer, read in ((1, 2 * f[A] - f[H]), (2, 3 * f[B])):
            mlp = model.model.layers[layer].mlp
            mlp.gate_proj.weight[0] = f[CONSTANT]
            mlp.up_proj.weight[0] = read
            mlp.down_proj.weight[:, 0] = f[B] if layer == 1 else f[C]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def block(class_name: str, layer: int, x: np.ndarray) -> np.ndarray:
    """What a layer makes of activations [..., 16] in planted directions, in float64, written anew."""
    read, out = (2 * x[..., A] - x[..., H], B) if layer == 1 else (3 * x[..., B], C)
    if class_name == "HookedTransformer":
        added = np.maximum(read, 0)
    else:
        rms = np.sqrt((x**2).mean(axis=-1) + 1e-6)
        gate = x[..., CONSTANT] / rms
        added = gate / (1 + np.exp(-gate)) * read / rms
    after = x.copy()
    after[..., out] += added
    return after


class Scene:
    """A planted model with an SAE at each hook, and text."""

    def __init__(self, class_name: str, folder: str, given: Any = None) -> None:
        from transformers import AutoTokenizer

        self.class_name, self.hooks = class_name, HOOKS[class_name]
        if class_name == "HookedTransformer":
            given = hooked() if given is None else given
            given.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model = LanguageModel("planted", class_name, hooks=tuple(self.hooks), given=given)
        else:
            self.model = LanguageModel(folder, class_name, hooks=tuple(self.hooks))
        rows = np.random.default_rng(3).integers(4, VOCAB, size=(ROWS, CONTEXT))
        rows[:, 0] = BOS
        self.text = TokenSet.from_rows(rows)
        self.latents = [[D1, A, D2, H, DEAD], [D1, B, A, D3], [D2, C, DEAD]]
        """The directions of each SAE's latents, by hook."""
        self.handles = [
            sae(hook, which) for hook, which in zip(self.hooks, self.latents, strict=True)
        ]  # fmt: skip

    def feature(self, layer: int, direction: int) -> Feature:
        return Feature(self.hooks[layer], self.latents[layer].index(direction))

    def context(self, handles: Any = None) -> EvalContext:
        return EvalContext(
            handles=self.handles if handles is None else handles,
            held_out={"faithful": self.text},
            sources=["faithful"],
            language_model=self.model,
            seed=7,
        )

    def trees(self, targets: list[Feature], handles: Any = None, **changes: Any) -> list[Any]:
        context = self.context(handles)
        by_hook = {handle.hook: handle for handle in context.handles}
        wanted = [(by_hook[target.hook], target.latent) for target in targets]
        return list(causal_trees(wanted, context, TreeOptions(**{**OPTIONS, **changes})))

    def drops(self, node: dict[str, Any], layer: int, out: int, parent: int) -> np.ndarray:
        """Closed form: of direction `out` after `layer`, when `parent` is taken away before it, in each context."""
        ids = [self.text.rows()[one["row"], one["position"]] for one in node["contexts"]]
        before = embedding().double().numpy()[ids]
        for earlier in range(1, layer):
            before = block(self.class_name, earlier, before)
        without = before.copy()
        without[:, parent] = 0
        original, ablated = (block(self.class_name, layer, x)[:, out] for x in (before, without))
        return np.maximum(original, 0) - np.maximum(ablated, 0)


def sae(hook: str, which: list[int], *, seed: int = 0, variant: str = "main", **options: Any) -> SAEHandle:
    """A SAELens SAE that reads and writes planted directions; DEAD's bias lets it never fire."""

    def load() -> Any:
        from sae_lens import StandardSAE, StandardSAEConfig

        made = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=len(which), **options))
        f = directions()[which]
        with torch.no_grad():
            made.W_dec.copy_(f)
            made.W_enc.copy_(f.T)
            made.b_enc.copy_(torch.tensor([-100.0 if each == DEAD else 0.0 for each in which]))
            # Along what nothing reads: no feature's, and not to be taken away with one.
            made.b_dec.copy_(2 * directions()[UNREAD])
        return made

    return SAEHandle(source="faithful", hook=hook, variant=variant, seed=seed, load=load)


@pytest.fixture(scope="module", params=list(HOOKS))
def scene(request: pytest.FixtureRequest, llama_folder: str) -> Scene:
    return Scene(request.param, llama_folder)


@pytest.fixture(scope="module")
def plain(llama_folder: str) -> Scene:
    """The planted HookedTransformer, in which what is not planted has no effect at all."""
    return Scene("HookedTransformer", llama_folder)


def node_of(tree: Any, feature: Feature) -> dict[str, Any]:
    (found,) = [node for node in tree.document()["nodes"] if (node["hook"], node["latent"]) == tuple(feature)]
    return found


def features(entries: list[dict[str, Any]]) -> list[Feature]:
    return [Feature(entry["hook"], entry["latent"]) for entry in entries]


def test_a_planted_chain_is_the_tree_and_its_drops_are_known(scene: Scene) -> None:
    a, b, c = scene.feature(0, A), scene.feature(1, B), scene.feature(2, C)
    (tree,) = scene.trees([c])
    document = json.loads(json.dumps(tree.document(), allow_nan=False))
    assert (document["source"], document["hook"], document["variant"], document["seed"]) == (
        "faithful", scene.hooks[2], "main", 0,
    )  # fmt: skip
    assert features(document["nodes"]) == [c, b, a]
    for feature, parent, layer, out, removed in ((c, b, 2, C, B), (b, a, 1, B, A)):
        node = node_of(tree, feature)
        assert features(node["parents"]) == [parent]
        (edge,) = node["parents"]
        expected = scene.drops(node, layer, out, removed)
        assert len(expected) == 10
        assert expected.min() > 0.1
        assert edge["drop"] == pytest.approx(expected.mean(), rel=1e-4)
        low, high, _ = mean_interval(expected.tolist())
        assert (edge["ci_low"], edge["ci_high"]) == pytest.approx((low, high), rel=1e-3)
        assert (edge["reason"], edge["active_contexts"]) == (None, 10)
        mean = np.mean([one["activation"] for one in node["contexts"]])
        assert edge["share"] == pytest.approx(edge["drop"] / mean, rel=1e-4)
    # Of c nothing is left without b, and a is the first hook's.
    assert node_of(tree, c)["parents"][0]["share"] == pytest.approx(1, rel=1e-4)
    assert (node_of(tree, a)["parents"], node_of(tree, a)["reason"]) == ([], FIRST_HOOK)


def test_an_inhibitor_is_reported_apart_and_nothing_grows_from_it(scene: Scene) -> None:
    b, h = scene.feature(1, B), scene.feature(0, H)
    (tree,) = scene.trees([b], n_contexts=40)
    node = node_of(tree, b)
    edges = dict(zip(features(node["inhibitors"]), node["inhibitors"], strict=True))
    expected = scene.drops(node, 1, B, H)
    # Without h, b is more active by h itself, wherever it was active at all.
    assert expected.min() < -0.2
    assert edges[h]["drop"] == pytest.approx(expected.mean(), rel=1e-3)
    assert edges[h]["ci_high"] < 0
    h_at = embedding().numpy()[:, H]
    assert edges[h]["active_contexts"] == sum(
        h_at[scene.text.rows()[one["row"], 1 : one["position"] + 1]].any() for one in node["contexts"]
    )
    assert h not in features(node["parents"]) + features(tree.document()["nodes"])
    if scene.class_name == "HookedTransformer":
        # In a Llama every feature shares in the norm by which all others are divided.
        assert list(edges) == [h]


def test_contexts_lie_in_the_upper_half_one_a_row_and_never_at_bos(scene: Scene) -> None:
    c = scene.feature(2, C)
    ids = scene.text.rows()
    codes = block(scene.class_name, 2, block(scene.class_name, 1, embedding().double().numpy()))[:, C]
    at_tokens = np.where(ids == BOS, 0, codes[ids])
    # BOS would be the maximum by far, if it counted.
    assert codes[BOS] > (20 if scene.class_name == "HookedTransformer" else 0) * at_tokens.max()
    (tree,) = scene.trees([c], n_contexts=25)
    node = node_of(tree, c)
    assert node["maximum"] == pytest.approx(at_tokens.max(), rel=1e-5)
    in_range = at_tokens >= at_tokens.max() / 2 * (1 - 1e-6)
    assert node["tokens_in_range"] == np.count_nonzero(in_range)
    assert len(node["contexts"]) == 25
    for one in node["contexts"]:
        assert node["maximum"] / 2 <= one["activation"] <= node["maximum"]
        assert one["activation"] == pytest.approx(at_tokens[one["row"], one["position"]], rel=1e-4)
        assert one["token"] == f"w{ids[one['row'], one['position']]}"
        assert one["text"].split()[-1] == one["token"]
    assert len({one["row"] for one in node["contexts"]}) == 25
    # As many as there are rows, where there are fewer than asked for; and not always the first.
    (every,) = scene.trees([c], n_contexts=1_000)
    rows = [one["row"] for one in node_of(every, c)["contexts"]]
    assert rows == np.flatnonzero(in_range.any(axis=1)).tolist()
    assert [one["row"] for one in node["contexts"]] != rows[:25]


@pytest.mark.parametrize(("n_tokens", "context_tokens"), [(120, 0), (60, 5), (1, 0)])
def test_only_so_much_of_the_text_is_searched(plain: Scene, n_tokens: int, context_tokens: int) -> None:
    # 120 tokens of rows of 12 are 10 rows; 60 of their first 5 are 12; and one row is the least.
    n_rows, length = {120: (10, 12), 60: (12, 5), 1: (1, 12)}[n_tokens]
    feature = plain.feature(1, B)
    found = find_contexts(
        plain.model, plain.text, {handle.hook: handle for handle in plain.handles}, [feature],
        n_tokens=n_tokens, context_tokens=context_tokens, n_contexts=1_000, seed=0,
    )[feature]  # fmt: skip
    codes = embedding().double().numpy()
    ids = plain.text.rows()[:n_rows, :length]
    values = np.where(ids == BOS, 0, np.maximum(2 * codes[ids, A] - codes[ids, H], 0))
    assert found.maximum == pytest.approx(values.max(), rel=1e-5)
    assert found.rows.tolist() == np.flatnonzero((values >= values.max() / 2).any(axis=1)).tolist()
    assert found.positions.max() < length


def test_a_feature_that_never_fires_has_a_reason_and_no_parents(scene: Scene) -> None:
    dead, c = scene.feature(2, DEAD), scene.feature(2, C)
    tree, alive = scene.trees([dead, c])
    assert tree.latent == dead.latent
    (node,) = tree.document()["nodes"]
    assert (node["maximum"], node["contexts"], node["parents"], node["reason"]) == (0, [], [], NEVER_FIRES)
    assert tree.lines() == [f"{dead}", f"  ({NEVER_FIRES})"]
    # What is beside it is as it is alone.
    assert alive.document() == scene.trees([c])[0].document()


def test_a_feature_that_nothing_makes_has_a_reason(plain: Scene) -> None:
    # d3 is in the text, and the SAE before has no such feature; d1 and others have no part in it.
    d3 = plain.feature(1, D3)
    (tree,) = plain.trees([d3])
    (node,) = tree.document()["nodes"]
    assert node["maximum"] > 0.5
    assert (node["parents"], node["inhibitors"], node["reason"]) == ([], [], NO_PARENT)
    assert node["tested"] == [{"hook": plain.hooks[0], "active": 4, "ablated": 4}]


def test_inactive_parents_are_never_run(plain: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, np.ndarray]] = []
    original = LanguageModel.activations_with_edit

    def count(self: LanguageModel, tokens: Any, hook: str, edit: Any, hooks: Any, **kwargs: Any) -> Any:
        seen: list[torch.Tensor] = []

        def watched(own: torch.Tensor) -> torch.Tensor:
            seen.append(edit(own) - own)
            return own + seen[-1]

        found = original(self, tokens, hook, watched, hooks, **kwargs)
        if tokens.shape[1] != 8:  # not the random text that tells which hooks reach which
            runs.extend((hook, (change.detach() @ directions().T).numpy()) for change in seen[0])
        return found

    monkeypatch.setattr(LanguageModel, "activations_with_edit", count)
    b = plain.feature(1, B)
    (tree,) = plain.trees([b], n_contexts=12)
    node = node_of(tree, b)
    codes = embedding().numpy()
    expected = []
    for one in node["contexts"]:
        words = plain.text.rows()[one["row"], 1 : one["position"] + 1]
        for direction in (D1, A, D2, H):
            if codes[words, direction].any():
                change = np.zeros((one["position"] + 1, WIDTH))
                change[1:, direction] = -codes[words, direction]
                expected.append(change)
    # DEAD is never run, nor is any other where it is not active; and every run takes away one feature, at all tokens
    # but BOS, and changes nothing else.
    assert 12 < len(expected) < 4 * 12
    assert len(runs) == len(expected)
    assert {hook for hook, _ in runs} == {plain.hooks[0]}
    for change in expected:
        padded = [
            np.pad(change, ((0, len(run) - len(change)), (0, 0)))
            for _, run in runs
            if len(run) >= len(change)
        ]
        close = [np.allclose(mine, run, atol=1e-5) for mine, (_, run) in zip(
            padded, [each for each in runs if len(each[1]) >= len(change)], strict=True)]  # fmt: skip
        assert any(close)
    # Whatever is active, not whatever there is, was tested; what has no effect has none at all.
    assert node["tested"] == [{"hook": plain.hooks[0], "active": 4, "ablated": 4}]


def test_where_a_parent_is_inactive_its_drop_is_0(plain: Scene) -> None:
    codes = embedding().numpy()
    ordinary = np.arange(VOCAB) > 3
    silent = np.flatnonzero(ordinary & (codes[:, A] == 0) & (codes[:, H] == 0))[0]
    without = np.flatnonzero(ordinary & (codes[:, A] > 0.5) & (codes[:, H] == 0))[0]
    made = 2 * codes[:, A] - codes[:, H]
    alike = ordinary & (codes[:, H] > 0) & (made > codes[without, A]) & (made < 4 * codes[without, A])
    scene = Scene.__new__(Scene)
    scene.__dict__.update(plain.__dict__)
    words = [without, np.flatnonzero(alike)[0]]
    scene.text = TokenSet.from_rows(np.array([[BOS, silent, words[i % 2]] for i in range(20)]))
    target = scene.feature(1, B).latent
    effects, ablation = ablate(scene, scene.handles[0], scene.handles[1], target)
    drops = dict(zip(effects.latents.tolist(), effects.drops, strict=True))
    h_is_there = ablation.contexts.rows % 2 == 1
    assert len(h_is_there) == 20
    drop = drops[scene.feature(0, H).latent]
    np.testing.assert_array_equal(drop[~h_is_there], 0)
    np.testing.assert_allclose(drop[h_is_there], -codes[words[1], H], rtol=1e-5)
    # What never fires is no candidate at all.
    assert scene.feature(0, DEAD).latent not in drops


def test_what_is_not_read_has_no_effect_to_the_last_bit(plain: Scene) -> None:
    effects, _ = ablate(plain, plain.handles[0], plain.handles[1], plain.feature(1, B).latent)
    drops = dict(zip(effects.latents.tolist(), effects.drops, strict=True))
    # DEAD is the last of the five.
    assert list(drops) == [0, 1, 2, 3]
    for direction in (D1, D2):
        assert np.abs(drops[plain.feature(0, direction).latent]).max() == 0
    assert drops[plain.feature(0, A).latent].min() > 0.1


def ablate(
    scene: Scene, parent: SAEHandle, target: SAEHandle, latent: int, candidates: int = 0
) -> tuple[Any, ParentAblation]:
    feature = Feature(target.hook, latent)
    contexts = find_contexts(
        scene.model, scene.text, {target.hook: target}, [feature],
        n_tokens=ROWS * CONTEXT, context_tokens=0, n_contexts=20, seed=0,
    )[feature]  # fmt: skip
    counted = contexts.counted & torch.from_numpy(counting(scene.model, parent, contexts.tokens.numpy()))
    ablation = ParentAblation(scene.model, target, latent, contexts, parent, counted)
    return ablation.effects(candidates), ablation


def test_the_cap_on_candidates_keeps_the_planted_parent(scene: Scene) -> None:
    a, b, c = scene.feature(0, A), scene.feature(1, B), scene.feature(2, C)
    (capped,), (whole,) = scene.trees([c], candidates=1), scene.trees([c])
    assert features(capped.document()["nodes"]) == [c, b, a]
    for feature in (c, b):
        assert node_of(capped, feature)["parents"] == node_of(whole, feature)["parents"]
        assert [one["ablated"] for one in node_of(capped, feature)["tested"]] == [1]
        assert node_of(capped, feature)["tested"][0]["active"] > 1
    if scene.class_name == "HookedTransformer":
        # The largest of either sign: of two candidates the other is the one that holds b back.
        effects, _ = ablate(scene, scene.handles[0], scene.handles[1], b.latent, candidates=2)
        assert effects.latents.tolist() == sorted([a.latent, scene.feature(0, H).latent])
        assert effects.n_active == 4


def test_first_order_effects_are_the_gradients(plain: Scene) -> None:
    _, ablation = ablate(plain, plain.handles[0], plain.handles[1], plain.feature(1, B).latent)
    codes = embedding().double().numpy()
    contexts = ablation.contexts
    words = plain.text.rows()[contexts.rows, contexts.positions]
    # b = 2a − h wherever it fires: linear there, so that effects are 2a and −h; tokens before have none.
    found = ablation.first_order()
    for direction, weight in ((A, 2), (H, -1), (D1, 0), (D2, 0)):
        expected = weight * codes[words, direction].sum()
        assert found[plain.feature(0, direction).latent] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found[plain.feature(0, DEAD).latent] == 0


def test_codes_without_a_gradient_cannot_be_ranked(plain: Scene) -> None:
    from sae_faithful import RunError

    target = sae(plain.hooks[1], plain.latents[1])
    encode = target.sae.encode
    target.sae.encode = torch.no_grad()(encode)
    latent = plain.feature(1, B).latent
    # Where all are run, nothing need be ranked.
    assert len(ablate(plain, plain.handles[0], target, latent)[0].latents) == 4
    with pytest.raises(
        RunError, match=r"codes of main at blocks\.1\.hook_resid_post cannot be differentiated"
    ):
        ablate(plain, plain.handles[0], target, latent, candidates=1)


def test_a_hook_with_nothing_active_gives_no_parents(plain: Scene) -> None:
    silent = sae(plain.hooks[0], [DEAD, DEAD])
    effects, _ = ablate(plain, silent, plain.handles[1], plain.feature(1, B).latent, candidates=1)
    assert (effects.n_active, effects.drops.shape) == (0, (0, 20))
    (tree,) = plain.trees([plain.feature(1, B)], handles=[silent, plain.handles[1]])
    (node,) = tree.document()["nodes"]
    assert (node["parents"], node["reason"]) == ([], NO_PARENT)
    assert node["tested"] == [{"hook": plain.hooks[0], "active": 0, "ablated": 0}]


@pytest.mark.parametrize("normalised", ["layer_norm", "constant_norm_rescale"])
def test_saes_that_normalise_each_input_are_ablated_by_what_they_add(plain: Scene, normalised: str) -> None:
    parent = sae(plain.hooks[0], [D1, A, D2, H], normalize_activations=normalised)
    effects, ablation = ablate(plain, parent, plain.handles[1], plain.feature(1, B).latent)
    contexts = ablation.contexts
    f = directions()
    words = torch.from_numpy(plain.text.rows()[contexts.rows, contexts.positions])
    x = embedding()[words] @ f
    # The centring of layer_norm lets other latents fire as well; each of the few adds something along its own row.
    scale = x.norm(dim=-1) / WIDTH**0.5 if normalised == "constant_norm_rescale" else x.std(dim=-1)
    added = parent.encode(x)[:, 1] * scale
    original = (2 * embedding()[words, A] - embedding()[words, H]).relu()
    without = x - added[:, None] * f[A]
    expected = original - (without @ (2 * f[A] - f[H])).relu()
    row = effects.latents.tolist().index(1)
    torch.testing.assert_close(torch.from_numpy(effects.drops[row]).float(), expected, rtol=1e-3, atol=1e-4)
    # The first-order effect has the same scale: twice what is taken away.
    assert ablation.first_order()[1] == pytest.approx(2 * float(added.sum()), rel=1e-3)


def test_a_topk_targets_activation_is_its_own_encoders(plain: Scene) -> None:
    from sae_lens import TopKSAE, TopKSAEConfig

    def load() -> Any:
        made = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=2, k=1, rescale_acts_by_decoder_norm=False))
        f = directions()[[A, D1]]
        with torch.no_grad():
            made.W_dec.copy_(f)
            made.W_enc.copy_(f.T)
            made.b_enc.zero_()
            made.b_dec.zero_()
        return made

    target = SAEHandle(source="faithful", hook=plain.hooks[1], variant="main", seed=0, load=load)
    half = sae(plain.hooks[0], [A])
    half.sae.W_enc.data *= 0.5
    effects, ablation = ablate(plain, half, target, 0)
    words = plain.text.rows()[ablation.contexts.rows, ablation.contexts.positions]
    a, d1 = embedding().double().numpy()[words][:, [A, D1]].T
    # Half of a is taken away; where what is left is less than d1, that takes its place, and nothing of it is left.
    lost = a / 2 < d1
    assert 0 < lost.sum() < len(lost)
    np.testing.assert_allclose(effects.drops[0], np.where(lost, a, a / 2), rtol=1e-4)
    # A topk's first-order effect is of a alone: what is taken away, which is half of it.
    assert ablation.first_order()[0] == pytest.approx(a.sum() / 2, rel=1e-4)


@pytest.fixture(scope="module")
def attending(llama_folder: str) -> Scene:
    """b is the mean of a over all tokens so far, BOS among them: block 1 attends to all alike."""
    model = hooked()
    f = directions()
    with torch.no_grad():
        for layer in (1, 2):
            model.blocks[layer].mlp.W_in.zero_()
        model.blocks[1].attn.W_V[0, :, 0] = f[A]
        model.blocks[1].attn.W_O[0, 0] = f[B]
    return Scene("HookedTransformer", llama_folder, model)


def test_a_parent_is_taken_away_at_every_token_that_counts(attending: Scene) -> None:
    scene = attending
    effects, ablation = ablate(scene, scene.handles[0], scene.handles[1], scene.feature(1, B).latent)
    a = embedding().double().numpy()[:, A]
    rows, positions = ablation.contexts.rows, ablation.contexts.positions
    assert len(set(positions.tolist())) > 1
    expected = [
        a[scene.text.rows()[row, 1 : position + 1]].sum() / (position + 1)
        for row, position in zip(rows, positions, strict=True)
    ]
    # Were it taken away at BOS as well, where a is 50 times as large, or at the last token alone, it would show.
    assert a[BOS] > 10 * a[BOS + 1 :].max()
    row = effects.latents.tolist().index(scene.feature(0, A).latent)
    np.testing.assert_allclose(effects.drops[row], expected, rtol=1e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_tree_and_another_other_contexts(scene: Scene) -> None:
    c = scene.feature(2, C)
    (one,), (again,), (other,) = (scene.trees([c], seed=seed) for seed in (1, 1, 2))
    assert one.document() == again.document()
    assert one.lines() == again.lines()
    assert node_of(one, c)["contexts"] != node_of(other, c)["contexts"]
    assert features(other.document()["nodes"]) == features(one.document()["nodes"])


def test_neither_does_the_size_of_batches_change_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_faithful_plugins.case_studies import tree_contexts, tree_effects

    # Rows in the order of their maxima: what is in range is known only at the end.
    made = embedding().numpy()[:, A]
    rows = scene.text.rows()
    rising = Scene.__new__(Scene)
    rising.__dict__.update(scene.__dict__)
    rising.text = TokenSet.from_rows(rows[np.argsort(made[rows[:, 1:]].max(axis=1), kind="stable")])
    c = scene.feature(2, C)
    (one,) = rising.trees([c], candidates=1)
    for module in (tree_contexts, tree_effects):
        monkeypatch.setattr(module, "TOKENS_PER_FORWARD", 30)
    (other,) = rising.trees([c], candidates=1)
    assert features(other.document()["nodes"]) == features(one.document()["nodes"])
    for mine, theirs in zip(one.document()["nodes"], other.document()["nodes"], strict=True):
        assert mine["tokens_in_range"] == theirs["tokens_in_range"]
        places = [[(each["row"], each["position"]) for each in node["contexts"]] for node in (mine, theirs)]
        assert places[0] == places[1]
        assert mine["tested"] == theirs["tested"]
        for edge, again in zip(mine["parents"], theirs["parents"], strict=True):
            assert edge["drop"] == pytest.approx(again["drop"], rel=1e-5)
            assert edge["active_contexts"] == again["active_contexts"]


def test_there_is_no_tree_without_an_sae_at_an_earlier_hook(plain: Scene) -> None:
    first, second, third = plain.handles
    a, c = plain.feature(0, A), plain.feature(2, C)
    # a is at the first hook; d2 at the third has a tree, if an empty one.
    trees = plain.trees([a, plain.feature(2, D2), c])
    assert [(tree.handle, tree.latent) for tree in trees] == [(third, 0), (third, 1)]
    assert plain.trees([c], handles=[third]) == []
    # One of another seed, or variant, is another experiment's.
    other_seed = sae(plain.hooks[1], plain.latents[1], seed=1)
    other_variant = sae(plain.hooks[1], plain.latents[1], variant="wide")
    assert plain.trees([c], handles=[other_seed, other_variant, third]) == []
    # Hooks need not be neighbours: then a is c's parent.
    (tree,) = plain.trees([c], handles=[third, first])
    assert features(tree.document()["nodes"]) == [c, a]
    assert second.hook not in json.dumps(tree.document())


def test_parents_are_at_the_hook_before_and_past_what_the_stream_goes_past(
    scene: Scene, llama_folder: str
) -> None:
    first, second, third = scene.hooks
    # Each place in the residual stream is all that reaches the next.
    assert parent_hooks(scene.model, scene.hooks, 0) == {first: [], second: [first], third: [second]}
    # An MLP is not all that reaches its layer's output, and the next layer's output is reached through that.
    mlp = "blocks.1.hook_mlp_out" if scene.class_name == "HookedTransformer" else "model.layers.1.mlp"
    given = scene.model.given
    model = LanguageModel(
        "planted" if given is not None else llama_folder, scene.class_name,
        hooks=(first, mlp, second, third), given=given,
    )  # fmt: skip
    order = model.hooks_in_order([third, second, mlp, first])
    assert order == [first, mlp, second, third]
    assert parent_hooks(model, order, 0) == {
        first: [], mlp: [first], second: [mlp, first], third: [second],
    }  # fmt: skip


def test_hooks_that_do_not_reach_a_feature_are_no_parents() -> None:
    # Attention and MLP side by side: neither reads the other.
    model = LanguageModel("planted", "HookedTransformer", given=hooked(parallel_attn_mlp=True))
    with torch.no_grad():
        model.model.blocks[1].attn.W_V[0, :, 0] = directions()[D1]
        model.model.blocks[1].attn.W_O[0, 0] = directions()[D2]
    order = model.hooks_in_order(
        [
            "blocks.1.hook_mlp_out",
            "blocks.1.hook_attn_out",
            "blocks.0.hook_resid_post",
            "blocks.1.hook_resid_post",
        ]
    )
    found = parent_hooks(model, order, 0)
    assert found["blocks.1.hook_mlp_out"] == ["blocks.0.hook_resid_post"]
    assert found["blocks.1.hook_attn_out"] == ["blocks.0.hook_resid_post"]
    assert set(found["blocks.1.hook_resid_post"]) == {*order[:3]}


def test_a_features_parents_are_the_strongest_and_a_feature_reached_twice_is_followed_once(
    llama_folder: str,
) -> None:
    # b is made of a, d1 and d2, which all count, and c of b and, past it, of nothing else.
    model = hooked()
    f = directions()
    with torch.no_grad():
        model.blocks[1].mlp.W_in[:, 0] = 2 * f[A] + f[D1] + 0.5 * f[D2]
        # Block 2 makes c of b and of a, so that at the third hook both are its parents.
        model.blocks[2].mlp.W_in[:, 0] = f[B] + f[A]
    scene = Scene("HookedTransformer", llama_folder, model)
    b, c = scene.feature(1, B), scene.feature(2, C)
    (tree,) = scene.trees([b], children=2, n_contexts=40)
    assert features(node_of(tree, b)["parents"]) == [scene.feature(0, A), scene.feature(0, D1)]
    (tree,) = scene.trees([c], children=2)
    document = tree.document()
    # At the second hook both a and b stand above a at the first, which is one node.
    assert features(node_of(tree, c)["parents"]) == [b, scene.feature(1, A)]
    a = scene.feature(0, A)
    assert features(document["nodes"]).count(a) == 1
    lines = tree.lines()
    assert sum(f"<- {a}:" in line for line in lines) == 2
    assert sum("(its own parents: above)" in line for line in lines) == 1
    assert lines[0].startswith(f"{c}: at most ")


def test_what_is_followed_once_stands_in_the_text_once(plain: Scene) -> None:
    def edge(parent: Feature) -> Edge:
        return Edge(
            parent=parent, drop=1.0, share=0.5, interval=Interval(0.5, 1.5), active_contexts=2
        )  # fmt: skip

    root, left, right, shared, last = (
        Feature(hook, i) for hook, i in ((plain.hooks[2], 0), ("d", 1), ("d", 2), ("e", 3), ("f", 4))
    )
    below = {root: [left, right], left: [shared], right: [shared], shared: [last], last: []}
    nodes = {
        feature: Node(
            feature=feature, maximum=2.0, n_in_range=3, contexts=(), parents=[edge(each) for each in parents]
        )
        for feature, parents in below.items()
    }
    lines = Tree(handle=plain.handles[2], latent=0, nodes=nodes).lines()
    said = [line.strip().removeprefix("<- ").partition(":")[0] for line in lines]
    assert said == [str(each) for each in (root, left, shared, last, right, shared)]
    assert [line.index("<-") for line in lines[1:]] == [2, 7, 12, 2, 7]
    assert lines[5].endswith("(its own parents: above)")


def test_the_text_says_drops_intervals_words_and_inhibitors(plain: Scene) -> None:
    b, c = plain.feature(1, B), plain.feature(2, C)
    (tree,) = plain.trees([c], n_contexts=40)
    lines = tree.lines()
    edge = node_of(tree, c)["parents"][0]
    drop, low, high = (f"{edge[name]:.3g}" for name in ("drop", "ci_low", "ci_high"))
    start = f"  <- {b}: drop {drop} [{low}, {high}], 100% of the activation; itself at most "
    assert lines[1].startswith(start)
    assert "contexts, on 'w" in lines[1]
    assert lines[2].startswith(f"       <- {plain.feature(0, A)}: drop ")
    assert any(line.startswith(f"       -| {plain.feature(0, H)}: drop -") for line in lines)


@pytest.mark.parametrize(("n_contexts", "reason"), [(1, "one context"), (5, "the same in every context")])
def test_where_no_interval_can_be_made_there_is_a_reason(
    plain: Scene, n_contexts: int, reason: str, make_same: Callable[[], TokenSet]
) -> None:
    scene = Scene.__new__(Scene)
    scene.__dict__.update(plain.__dict__)
    scene.text = make_same()
    b = scene.feature(1, B)
    (tree,) = scene.trees([b], n_contexts=n_contexts)
    (edge,) = node_of(tree, b)["parents"]
    assert (edge["ci_low"], edge["ci_high"]) == (None, None)
    assert edge["reason"].startswith(reason)
    assert f"no interval: {reason}" in tree.lines()[1]


def test_what_the_contexts_do_not_agree_on_is_no_edge(plain: Scene) -> None:
    codes = embedding().numpy()
    ordinary = np.arange(VOCAB) > 3
    silent = np.flatnonzero(ordinary & (codes[:, A] == 0) & (codes[:, H] == 0))[0]
    made = np.where(ordinary, 2 * codes[:, A] - codes[:, H], 0)
    both = int(np.argmax(np.where(codes[:, H] > 0.3, made, 0)))
    alone = np.flatnonzero((codes[:, H] == 0) & (made > made[both] / 2) & (made < 2 * made[both]))
    rows = np.array([[BOS, silent, last] for last in [*np.resize(alone, 9), both]])
    scene = Scene.__new__(Scene)
    scene.__dict__.update(plain.__dict__)
    scene.text = TokenSet.from_rows(rows)
    b, h = scene.feature(1, B), scene.feature(0, H)
    (tree,) = scene.trees([b])
    node = node_of(tree, b)
    # h is in one context of ten: the mean of its drops has a standard error as large as itself.
    expected = scene.drops(node, 1, B, H)
    assert np.count_nonzero(expected) == 1
    assert len(expected) == 10
    assert (features(node["parents"]), node["inhibitors"]) == ([scene.feature(0, A)], [])
    # With h in all of them it is an edge.
    scene.text = TokenSet.from_rows(np.array([[BOS, silent, both]] * 10))
    assert features(node_of(scene.trees([b])[0], b)["inhibitors"]) == [h]


@pytest.mark.parametrize(
    ("share", "interval", "holds"),
    [
        (0.1, (0.05, 0.2, None), True),
        (-0.1, (-0.2, -0.05, None), True),
        (0.1, (-0.05, 0.2, None), False),
        (-0.1, (-0.2, 0.05, None), False),
        (0.1, (None, None, "one context"), True),
        (0.0, (None, None, "one context"), False),
        # What rounding leaves may be the same in all contexts.
        (1e-7, (0.9e-7, 1.1e-7, None), False),
        (-1e-7, (None, None, "no spread"), False),
    ],
)
def test_an_edge_is_what_excludes_no_effect(
    share: float, interval: tuple[float | None, float | None, str | None], holds: bool
) -> None:
    edge = Edge(
        parent=Feature("hook", 0), drop=share, share=share, interval=Interval(*interval), active_contexts=1
    )
    assert edge.holds is holds


@pytest.fixture
def make_same() -> Callable[[], TokenSet]:
    """Rows that are all alike, with b at their last token alone."""
    a = embedding().numpy()[4:, A]
    silent, speaking = (4 + np.flatnonzero(which)[0] for which in (a == 0, a > 0))
    return lambda: TokenSet.from_rows(np.tile([BOS, silent, silent, speaking], (8, 1)))
