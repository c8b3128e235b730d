"""The evaluator: the planted circuit's features are found, rows are right by hand, and a run from a config."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful import ExperimentConfig, TokenSet, UsageError, derive_seed, load_plugins, run
from sae_faithful_plugins.ioi_patching import IOIPatching

from .conftest import CAUSAL, HOOK, WIDTH, Circuit, directions, planted_lines

THRESHOLDS = [0.00001, 0.0001, 0.001]


@pytest.fixture
def pairs_file(tmp_path: Path) -> Callable[..., str]:
    def write(lines: list[dict[str, Any]]) -> str:
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)

    return write


@pytest.fixture
def patch(
    measure: Callable[..., Any], circuit: Circuit, text: TokenSet, pairs_file: Callable[..., str]
) -> Callable[..., Any]:
    """Measure SAEs of the circuit on pairs."""

    def go(
        handles: list[Any], lines: list[dict[str, Any]] | None = None, model: Any = None, **options: Any
    ) -> Any:
        defaults: dict[str, Any] = {"n_pairs": 50, "thresholds": THRESHOLDS}
        evaluator = IOIPatching(
            pairs=pairs_file(planted_lines() if lines is None else lines), **{**defaults, **options}
        )
        held_out = {handle.source: text for handle in handles}
        return measure(evaluator, handles, held_out, language_model=model or circuit)

    return go


def curve_of(measured: Any, variant: str, seed: int | None) -> dict[str, Any]:
    content = json.loads((measured.folder / "artifacts" / "curves.json").read_text())
    (found,) = [one for one in content["curves"] if (one["variant"], one["seed"]) == (variant, seed)]
    return found


def test_the_planted_circuit_is_found_exactly_at_every_small_threshold(
    patch: Callable[..., Any], planted: Any
) -> None:
    measured = patch([planted], orders=3)
    curve = curve_of(measured, "main", 0)
    # All sixteen change in some pair; five are read.
    assert curve["features_changed"] == WIDTH
    for order, thresholds in zip(curve["orders"], curve["thresholds"], strict=True):
        assert [one["features"] for one in thresholds] == [5, 5, 5]
        assert sorted(order[:5]) == CAUSAL
        assert sorted(order) == list(range(WIDTH))
    assert len({tuple(order) for order in curve["orders"]}) == 3
    # With these five the patched model says what the target prompt makes it say; on pairs that chose nothing.
    levels = {point["features"]: point["kl"] for point in curve["points"]}
    assert levels[0] > 0.3
    assert levels[6] == pytest.approx(0, abs=1e-6)
    assert curve["all"]["kl"] == pytest.approx(0, abs=1e-6)
    assert measured.row("kl_patched", condition="all", seed=0)["value"] == pytest.approx(0, abs=1e-6)


def test_features_of_an_sae_without_the_circuit_change_nothing(
    patch: Callable[..., Any], sae_of: Callable[..., Any]
) -> None:
    """The answer 'nothing': directions that are not read, whatever is patched."""
    unread = [i for i in range(WIDTH) if i not in CAUSAL]
    measured = patch([sae_of(directions()[unread])])
    row = measured.row("features_to_half", seed=0)
    assert (row["value"], row["reason"]) == (None, "no measured set brings KL to half")
    unpatched = measured.row("kl_unpatched")["value"]
    assert measured.row("kl_patched", condition="all", seed=0)["value"] == pytest.approx(unpatched)
    assert measured.row("area", seed=0)["value"] == pytest.approx(1)
    source = measured.row("features_to_half", variant="main")
    assert (source["value"], source["reason"]) == (None, "not every SAE brings KL to half")
    assert "faithful, model.layers.0, main: not every SAE brings KL to half" in reading_of(measured)


def test_an_sae_of_shuffled_rows_does_not_give_the_target(
    patch: Callable[..., Any], planted: Any, sae_of: Callable[..., Any]
) -> None:
    """A negative control: codes as they were, each with the direction of another."""
    shuffled = sae_of(directions(), variant="shuffled")
    with torch.no_grad():
        shuffled.sae.W_dec.copy_(directions().roll(1, dims=0))
    measured = patch([planted, shuffled], comparisons=[])
    own, control = (
        measured.row("kl_patched", condition="all", variant=variant, seed=0)["value"]
        for variant in ("main", "shuffled")
    )
    unpatched = measured.row("kl_unpatched")["value"]
    assert own < 1e-5
    assert control > 0.5 * unpatched


def reading_of(measured: Any) -> str:
    return (measured.folder / "artifacts" / "reading.txt").read_text()


def test_the_curve_does_not_increase_and_ends_at_the_closed_form_of_the_edit(
    patch: Callable[..., Any], planted: Any, circuit: Circuit
) -> None:
    curve = curve_of(patch([planted], comparisons=[]), "main", 0)
    levels = [point["kl"] for point in curve["points"]]
    assert levels[0] > levels[1] > levels[2] > levels[-1]
    # Features that are not read come last and leave it as it is, but for the last bits.
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(levels))
    edits = [point["edit"] for point in curve["points"]]
    assert edits[0] == 0
    assert edits == sorted(edits)
    # All features of an orthonormal dictionary: the difference of the two tokens, over the tokens of a prompt.
    drawn = np.random.default_rng(derive_seed(7, "ioi_patching", "pairs")).permutation(60)[8:58]
    whole, n_tokens = 0.0, 0
    for line in (planted_lines()[i] for i in drawn):
        base, target = ([int(word[1:]) for word in line[name].split()] for name in ("base", "target"))
        (different,) = [pair for pair in zip(base, target, strict=True) if pair[0] != pair[1]]
        codes = planted.encode(circuit.embedding[list(different)])
        whole, n_tokens = whole + float((codes[1] - codes[0]).norm()), n_tokens + len(base)
    assert curve["all"]["edit"] == pytest.approx(whole / n_tokens)
    assert edits[-1] == pytest.approx(whole / n_tokens)


def test_principal_components_of_the_same_data_need_at_least_as_many(
    patch: Callable[..., Any], planted: Any
) -> None:
    measured = patch([planted])
    own = measured.row("features_to_half", seed=0)
    for name in ("pca", "pca_split"):
        other = measured.row("features_to_half", variant=name)
        assert other["value"] >= own["value"]
        # Orthonormal: with all of them nothing is left.
        assert measured.row("kl_patched", condition="all", variant=name)["value"] == pytest.approx(
            0, abs=1e-5
        )
        difference = measured.row("area_difference", condition=f"minus {name}", seed=0)
        apart = measured.row("area", seed=0)["value"] - measured.row("area", variant=name)["value"]
        assert difference["value"] == pytest.approx(apart)
        assert difference["ci_high"] < 0
        assert measured.row("area_difference", condition=f"minus {name}")["value"] == pytest.approx(apart)


def test_an_sae_of_the_components_themselves_differs_by_nothing(
    patch: Callable[..., Any], planted: Any, sae_of: Callable[..., Any], circuit: Circuit, text: TokenSet
) -> None:
    from sae_faithful_plugins.ioi_patching.components import Components, Moments

    moments = Moments(HOOK, "faithful", text, 20_000)
    tokens = torch.from_numpy(text.rows())
    moments.update(Batch(tokens, circuit.embedding[tokens]))
    mean, rows = moments.components()
    handle = sae_of(torch.cat([rows, -rows]))
    with torch.no_grad():
        handle.sae.b_dec.copy_(mean)
    assert handle.sae.cfg.apply_b_dec_to_input
    coder = Components("pca_split", mean, rows)
    x = circuit.embedding[20:30]
    torch.testing.assert_close(handle.encode(x), coder.encode(x), rtol=1e-4, atol=1e-5)
    measured = patch([handle], thresholds=[0.001], comparisons=["pca_split"])
    # The same features, in another random order.
    assert measured.row("area_difference", seed=0)["value"] == pytest.approx(0, abs=0.05)
    assert measured.row("kl_patched", condition="all", seed=0)["value"] == pytest.approx(0, abs=1e-5)


class Batch:
    first_row = 0

    def __init__(self, tokens: torch.Tensor, activations: torch.Tensor) -> None:
        self.tokens, self.activations = tokens, activations
        self.mask = tokens > 2


def test_components_are_those_of_the_tokens_that_count(circuit: Circuit, text: TokenSet) -> None:
    from sae_faithful_plugins.ioi_patching.components import Moments

    tokens = torch.from_numpy(text.rows())
    whole, parts, few = (Moments(HOOK, "faithful", text, n) for n in (20_000, 20_000, 100))
    for moments, batches in (
        (whole, [slice(0, 60)]),
        (parts, [slice(0, 7), slice(7, 60)]),
        (few, [slice(0, 60)]),
    ):
        for rows in batches:
            moments.update(Batch(tokens[rows], circuit.embedding[tokens[rows]]))
    vectors = circuit.embedding[tokens[tokens > 2]].double()
    assert (whole.n, few.n) == (len(vectors), 100)
    mean, rows = whole.components()
    torch.testing.assert_close(mean, vectors.mean(dim=0).float())
    # As the singular vectors of the centred data, up to sign.
    other = torch.linalg.svd(vectors - vectors.mean(dim=0), full_matrices=False)[2].float()
    torch.testing.assert_close((rows * other).sum(dim=1).abs(), torch.ones(WIDTH), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows @ rows.T, torch.eye(WIDTH), rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.components()[0], mean)
    assert not torch.allclose(few.components()[0], mean)


def test_columns_of_features(patch: Callable[..., Any], planted: Any) -> None:
    table = patch([planted]).features
    effect, rank = table["it.effect"].to_numpy(), table["it.rank"].to_numpy()
    # What is read has an effect, and the others none; the five that are never removed have the first ranks.
    assert np.abs(effect[CAUSAL]).min() > 0.001
    assert np.abs(np.delete(effect, CAUSAL)).max() < 1e-5
    assert sorted(rank[CAUSAL]) == [1, 2, 3, 4, 5]
    table = patch([planted], candidates=3).features
    assert np.isfinite(table["it.rank"]).sum() == 3
    assert set(np.flatnonzero(np.isfinite(table["it.rank"]))) < set(CAUSAL)


def test_two_seeds_have_a_row_of_their_source(
    patch: Callable[..., Any], planted: Any, sae_of: Callable[..., Any]
) -> None:
    both = [planted, sae_of(directions().flip(0), seed=1)]
    measured = patch(both)
    for metric in ("features_to_half", "edit_to_half", "area"):
        own = [measured.row(metric, seed=seed)["value"] for seed in (0, 1)]
        source = measured.row(metric, variant="main")
        assert source["value"] == pytest.approx(np.mean(own))
        assert source["n"] == 2
        assert not any(measured.row(metric, seed=seed)["headline"] for seed in (0, 1))
    assert measured.row("area", variant="main")["headline"]
    for row in measured.rows:
        assert row["reason"] or row["ci_low"] <= row["value"] <= row["ci_high"], row
    # Intervals over pairs of one SAE.
    assert measured.row("area", seed=0)["ci_low"] < measured.row("area", seed=0)["ci_high"]
    assert measured.row("kl_unpatched")["n"] == 50


def test_a_comparison_that_is_there_already_is_left_out(
    patch: Callable[..., Any], sae_of: Callable[..., Any]
) -> None:
    measured = patch([sae_of(directions(), variant="pca")])
    variants = {row["variant"] for row in measured.rows if row["variant"]}
    assert variants == {"pca", "pca_split"}
    assert {row["condition"] for row in measured.rows if row["metric"] == "area_difference"} == {
        "minus pca_split"
    }


def test_several_hooks_have_components_of_their_own(
    patch: Callable[..., Any], sae_of: Callable[..., Any]
) -> None:
    hooks = (HOOK, "model.layers.1")
    measured = patch([sae_of(directions(), hook=hook) for hook in hooks], comparisons=["pca"])
    for hook in hooks:
        assert measured.row("area", hook=hook, variant="pca")["value"] > 0
        assert measured.row("area_difference", hook=hook, seed=0)["condition"] == "minus pca"


def test_only_the_hooks_and_variants_asked_for_are_patched(
    patch: Callable[..., Any], sae_of: Callable[..., Any]
) -> None:
    saes = [
        sae_of(directions(), hook=hook, variant=variant)
        for hook in (HOOK, "model.layers.1")
        for variant in ("main", "other")
    ]
    measured = patch(saes, comparisons=["pca"], hooks=[HOOK], variants=["other"])
    found = {(row["hook"], row["variant"]) for row in measured.rows if row["metric"] == "area"}
    assert found == {(HOOK, "other"), (HOOK, "pca")}
    for option, name in (("hooks", "model.layers.9"), ("variants", "mine")):
        with pytest.raises(UsageError, match=f"{option} '{name}': there is none in this run; choices: "):
            patch(saes, **{option: [name]})


def test_another_content_of_the_file_of_pairs_is_another_setting(pairs_file: Callable[..., str]) -> None:
    first = IOIPatching(pairs=pairs_file(planted_lines(3)))
    again = IOIPatching(pairs=pairs_file(planted_lines(3)))
    changed = IOIPatching(pairs=pairs_file(planted_lines(4)))
    assert first == again
    assert first.pairs_hash != changed.pairs_hash
    assert IOIPatching().pairs_hash == ""


def test_without_selection_pairs_those_measured_choose(patch: Callable[..., Any], planted: Any) -> None:
    measured = patch([planted], selection_pairs=0)
    content = json.loads((measured.folder / "artifacts" / "curves.json").read_text())
    assert len(content["pairs"]) == 50
    assert all(one["measured"] and one["chooses"] for one in content["pairs"])
    curve = curve_of(measured, "main", 0)
    # What pruning said of its sets is what is measured of them.
    assert curve["thresholds"][0][-1]["kl"] == pytest.approx(0, abs=1e-6)


def test_pairs_that_choose_are_not_measured(patch: Callable[..., Any], planted: Any) -> None:
    measured = patch([planted], planted_lines(12), n_pairs=50, selection_pairs=8)
    content = json.loads((measured.folder / "artifacts" / "curves.json").read_text())
    # Half of a small file is left to be measured.
    assert [one["measured"] for one in content["pairs"]] == [False] * 6 + [True] * 6
    assert not any(one["measured"] and one["chooses"] for one in content["pairs"])
    assert measured.row("area", seed=0)["reason"] == "6 pairs; an interval needs at least 50"
    assert measured.row("features_to_half", seed=0)["reason"] == "6 pairs; an interval needs at least 50"


def with_answers(circuit: Circuit, n_wrong: int) -> list[dict[str, str]]:
    """Pairs whose answer is what the circuit prefers, but for some."""
    lines = planted_lines()
    for i, line in enumerate(lines):
        tokens = torch.tensor([[0, *(int(word[1:]) for word in line["base"].split())]])
        logits = circuit.logits(tokens)[0, -1]
        best, worst = (10 + int(index) for index in (logits[10:15].argmax(), logits[10:15].argmin()))
        answer, distractor = (worst, best) if i < n_wrong else (best, worst)
        line |= {"answer": f" w{answer}", "distractor": f" w{distractor}"}
    return lines


def test_whether_the_model_does_the_task(patch: Callable[..., Any], planted: Any, circuit: Circuit) -> None:
    measured = patch([planted], with_answers(circuit, 0), comparisons=[])
    row = measured.row("task_accuracy")
    assert (row["value"], row["n"], row["ci_high"]) == (1, 50, 1)
    # Clopper–Pearson with all right: the lower bound is .025^(1/n).
    assert row["ci_low"] == pytest.approx(0.025 ** (1 / 50))
    assert measured.row("logit_difference")["ci_low"] > 0
    assert reading_of(measured).startswith("The model does the task: 50 of 50 pairs")
    difference = measured.row("logit_difference")["value"]

    wrong = patch([planted], with_answers(circuit, 60), comparisons=[])
    assert wrong.row("task_accuracy")["value"] == 0
    assert wrong.row("logit_difference")["value"] == pytest.approx(-difference)
    assert reading_of(wrong).startswith("It is not shown that the model does the task: 0 of 50 pairs")
    # The curves are there all the same.
    assert wrong.row("features_to_half", seed=0)["value"] is not None


def test_half_right_is_not_doing_the_task(patch: Callable[..., Any], planted: Any, circuit: Circuit) -> None:
    measured = patch([planted], with_answers(circuit, 30), comparisons=[])
    assert 0.2 < measured.row("task_accuracy")["value"] < 0.8
    assert reading_of(measured).startswith("It is not shown that the model does the task")


def test_pairs_without_answers_do_not_tell(patch: Callable[..., Any], planted: Any) -> None:
    measured = patch([planted], comparisons=[])
    for metric in ("task_accuracy", "logit_difference"):
        row = measured.row(metric)
        assert (row["value"], row["n"]) == (None, 0)
        assert row["reason"] == "the pairs name no answer and distractor"
    assert "Whether the model does the task is not known" in reading_of(measured)


def test_equal_predictions_leave_nothing_to_patch(
    patch: Callable[..., Any], planted: Any, circuit: Circuit
) -> None:
    circuit.unembed = torch.zeros_like(circuit.unembed)
    measured = patch([planted])
    for metric in ("features_to_half", "edit_to_half", "area"):
        row = measured.row(metric, seed=0)
        assert (row["value"], row["reason"]) == (
            None, "base and target prompts have the same prediction: there is nothing to patch",
        )  # fmt: skip
    assert measured.row("kl_unpatched")["value"] == 0
    assert measured.row("area_difference", condition="minus pca", variant="main")["value"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_pairs": 0}, "n_pairs 0 is not positive"),
        ({"candidates": -1}, "candidates -1 is not positive"),
        ({"orders": 0}, "orders 0 is not positive"),
        ({"area_features": 0}, "area_features 0 is not positive"),
        ({"component_tokens": 0}, "component_tokens 0 is not positive"),
        ({"selection_pairs": -1}, "selection_pairs -1 is below 0"),
        ({"thresholds": []}, "at least one"),
        ({"thresholds": [0.0, 0.1]}, "all above 0"),
        ({"thresholds": [0.1, 0.01]}, "do not ascend"),
        ({"comparisons": ["pca", "pca"]}, "named twice"),
        ({"pairs": "sentences"}, "neither 'ioi' nor a FILE.jsonl"),
        ({"pairs": "none.jsonl"}, "there is no file none.jsonl"),
    ],
)
def test_options_are_checked_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IOIPatching(**options)
    with pytest.raises(UsageError, match=message):
        load_plugins().create("evaluator", "ioi_patching", options)


def test_unusable_pairs_fail_before_the_pass(
    patch: Callable[..., Any], planted: Any, circuit: Circuit
) -> None:
    lines = [*planted_lines(3), {"base": "w20 w21", "target": "w20 w21 w22"}]
    with pytest.raises(UsageError, match="line 4: base has 2 tokens and target 3"):
        patch([planted], lines)
    assert circuit.edits == []


@pytest.mark.parametrize("kind", ["AutoModelForCausalLM", "HookedTransformer"])
def test_from_a_config_on_a_tiny_model(
    tiny_config: dict[str, Any],
    tiny_hooked: Any,
    pairs_file: Callable[..., str],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    lines = [
        {"base": f"w{a} w9 w{b} w{c}", "target": f"w{a} w9 w{d} w{c}", "answer": " w10", "distractor": " w11"}
        for a, b, c, d in (rng.choice(np.arange(20, 64), 4, replace=False) for _ in range(56))
    ]
    options = {"pairs": pairs_file(lines), "selection_pairs": 4, "candidates": 6, "thresholds": [0.001, 0.1]}
    changes: dict[str, Any] = {"evaluators": [{"ioi_patching": options}]}
    if kind == "HookedTransformer":
        changes |= {"model_class_name": kind, "hook_name": "blocks.0.hook_resid_post"}
    config = ExperimentConfig.from_dict({**tiny_config, **changes})
    folder = run(config, **({"override_model": tiny_hooked} if kind == "HookedTransformer" else {}))
    rows = [json.loads(line) for line in folder.results_file.read_text().splitlines()]
    rows = [row for row in rows if row["evaluator"] == "ioi_patching"]
    assert {row["metric"] for row in rows} >= {"task_accuracy", "kl_unpatched", "area", "area_difference"}
    for row in rows:
        assert row["reason"] or row["ci_low"] <= row["value"] <= row["ci_high"], row
    (components,) = [
        row
        for row in rows
        if (row["metric"], row["condition"], row["variant"]) == ("kl_patched", "all", "pca")
    ]
    (unpatched,) = [row["value"] for row in rows if row["metric"] == "kl_unpatched"]
    assert abs(components["value"]) < 1e-3 * unpatched
    curves = json.loads((folder.result_dir("ioi_patching") / "artifacts" / "curves.json").read_text())
    assert {(one["variant"], one["seed"]) for one in curves["curves"]} == {
        ("base", 0), ("base", 1), ("pca", None), ("pca_split", None),
    }  # fmt: skip
    assert "ioi_patching" in (folder.root / "report.md").read_text()
