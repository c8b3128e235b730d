"""Verdicts on rows written by hand: what is compared with what, what comes out, and what it says."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sae_faithful import EvalResult, ExperimentConfig, run
from sae_faithful.report import write_report
from sae_faithful.report.verdicts import CLAIMS, Verdict, judge, remark
from sae_faithful.run_folder import RunFolder, write_json, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Row = dict[str, Any]
HOOK = "model.layers.3"
MANIFEST = {"sources": ["faithful", "news"], "own_text": ["faithful"]}
# 97.5 % points of Student's t, from a printed table.
T_1, T_2 = 12.706205, 4.302653


def row(metric: str, value: float | None, **fields: Any) -> Row:
    return asdict(
        EvalResult(metric=metric, value=value, **{"unit": "share", "hook": HOOK, "variant": "base", **fields})
    )


def sfr(source: str, pairs: Mapping[tuple[int, int], float], **fields: Any) -> list[Row]:
    """Alive SFR at 0.7 of each pair of seeds."""
    common = {"subset": "alive", "condition": "cosine>0.7", "source": source, **fields}
    return [row("sfr", value, seed=i, other_seed=j, **common) for (i, j), value in pairs.items()]


def contrast(source: str, values: Sequence[float], **fields: Any) -> list[Row]:
    """`ffr_contrast` of alive latents, by seed."""
    common = {"subset": "alive", "condition": "rate>0.1", "source": source, "n": 100_000, **fields}
    return [row("ffr_contrast", value, seed=seed, **common) for seed, value in enumerate(values)]


def accuracy(source: str, task: str, values: Sequence[float], **fields: Any) -> list[Row]:
    common = {"condition": "latents", "dataset": task, "source": source, "n": 500, **fields}
    return [row("probe_accuracy", value, seed=seed, **common) for seed, value in enumerate(values)]


def bounds(verdict: Verdict) -> tuple[float | None, float | None, float | None]:
    return verdict.difference, verdict.ci_low, verdict.ci_high


def by_hand(mean: float, half: float) -> Any:
    return pytest.approx((mean, mean - half, mean + half), abs=1e-5)


# What is compared


def test_an_sfr_is_compared_pair_by_pair_and_one_seed_is_left_out_of_both() -> None:
    # Differences .1, .2, .6: mean .3; without seed 0, 1, 2: .6, .2, .1, squares about .3 sum to .14;
    # SE² = 2/3 · .14, SE = .305505; two degrees.
    rows = [
        *sfr("faithful", {(0, 1): 0.4, (0, 2): 0.4, (1, 2): 0.9}),
        *sfr("news", {(0, 1): 0.3, (0, 2): 0.2, (1, 2): 0.3}),
    ]
    (verdict,) = judge(rows, MANIFEST)
    assert bounds(verdict) == by_hand(0.3, T_2 * 0.305505)
    assert (verdict.claim, verdict.n_seeds, verdict.primary) == ("sfr", 3, True)
    # SD over seeds is .305505 · √3 = .529150, 1.763834 times the mean: t/√S is .567 or less from S = 15
    # (2.1448/3.8730 = .5538; S = 14: 2.1604/3.7417 = .5774).
    assert (verdict.verdict, verdict.would_decide) == ("undecided", "about 15 seeds")
    assert verdict.sentence == (
        "SFR of alive latents (cosine > 0.7) is higher for SAEs on faithful than on news: "
        "+0.3000 [-1.0145, +1.6145], undecided at this budget; about 15 seeds would decide it if the "
        "difference is as found."
    )


def test_pairs_are_matched_whatever_the_order_of_their_seeds() -> None:
    rows = [*sfr("faithful", {(0, 1): 0.4, (0, 2): 0.5, (1, 2): 0.6}),
            *sfr("news", {(2, 1): 0.3, (2, 0): 0.1, (1, 0): 0.2})]  # fmt: skip
    (verdict,) = judge(rows, MANIFEST)
    # .4 - .2, .5 - .1, .6 - .3.
    assert verdict.difference == pytest.approx(0.3)


def test_saes_of_one_seed_are_compared() -> None:
    # .02 - .05, .03 - .05, .04 - .05: mean -.02, SD .01, SE .01/√3 = .0057735. Unpaired it would be larger.
    rows = [*contrast("news", [0.05] * 3), *contrast("faithful", [0.02, 0.03, 0.04])]
    (verdict,) = judge(rows, MANIFEST)
    assert bounds(verdict) == by_hand(-0.02, T_2 * 0.0057735)


def test_tasks_are_averaged_seed_by_seed_and_each_has_a_verdict_of_its_own() -> None:
    # sst2: +.10, +.20, mean .15, SD .0707107, SE .05; cola: -.10, -.06, mean -.08, SD .0282843, SE .02.
    # The mean of both: 0, +.07; mean .035, SD .0494975, SE .035.
    rows = [
        *accuracy("faithful", "sst2", [0.8, 0.9]),
        *accuracy("news", "sst2", [0.7, 0.7]),
        *accuracy("faithful", "cola", [0.5, 0.6]),
        *accuracy("news", "cola", [0.6, 0.66]),
    ]
    mean, sst2, cola = judge(rows, MANIFEST)
    assert bounds(mean) == by_hand(0.035, T_1 * 0.035)
    assert bounds(sst2) == by_hand(0.15, T_1 * 0.05)
    assert bounds(cola) == by_hand(-0.08, T_1 * 0.02)
    assert [one.dataset for one in (mean, sst2, cola)] == [None, "sst2", "cola"]
    assert [one.primary for one in (mean, sst2, cola)] == [True, False, False]
    assert mean.sentence.startswith("Probe accuracy of latents, mean over 2 tasks, is higher for SAEs on")
    assert cola.sentence.startswith("Probe accuracy of latents on cola is higher for SAEs on")


def test_one_task_is_its_own_mean() -> None:
    rows = [*accuracy("faithful", "sst2", [0.8, 0.9]), *accuracy("news", "sst2", [0.7, 0.7])]
    (verdict,) = judge(rows, MANIFEST)
    assert (verdict.dataset, verdict.primary) == ("sst2", True)


def test_only_texts_that_both_were_measured_on_are_averaged() -> None:
    rows = [
        *accuracy("faithful", "sst2", [0.8, 0.9]),
        *accuracy("faithful", "cola", [0.1, 0.1]),
        *accuracy("news", "sst2", [0.7, 0.7]),
    ]
    (verdict,) = judge(rows, MANIFEST)
    assert verdict.difference == pytest.approx(0.15)


def test_ce_differences_are_claimed_lower_on_every_text() -> None:
    rows = [
        row("ce_difference", value, unit="nats/token", source=source, dataset=text, seed=seed)
        for source, values in (("faithful", [0.1, 0.12, 0.11]), ("news", [0.31, 0.32, 0.33]))
        for text in ("faithful", "news", "code")
        for seed, value in enumerate(values)
    ]
    verdicts = judge(rows, MANIFEST)
    assert [one.dataset for one in verdicts] == [None, "faithful", "news", "code"]
    assert {(one.verdict, one.unit) for one in verdicts} == {("supported", "nats/token")}
    assert verdicts[0].sentence.startswith("CE difference, mean over 3 texts, is lower for SAEs on faithful")


@pytest.mark.parametrize(
    ("metric", "fields", "claim", "primary"),
    [
        ("sfr", {"subset": "alive", "condition": "cosine>0.7"}, "sfr", True),
        ("sfr", {"subset": "all", "condition": "cosine>0.7"}, "sfr", False),
        ("ffr_contrast", {"subset": "alive", "condition": "rate>0.1"}, "ffr", True),
        ("ffr", {"subset": "all", "condition": "rate>0.1"}, "ffr", False),
        ("probe_accuracy", {"condition": "latents", "dataset": "sst2"}, "probing", True),
        ("ce_difference", {"dataset": "code"}, "ce_difference", True),
    ],
)
def test_every_number_of_a_claim(metric: str, fields: dict[str, Any], claim: str, primary: bool) -> None:
    keys = [{"seed": i, "other_seed": j} for i, j in combinations(range(3), 2)]
    seeds = keys if metric == "sfr" else [{"seed": seed} for seed in range(3)]
    rows = [
        row(metric, value + 0.01 * i, source=source, **key, **fields)
        for source, value in (("faithful", 0.3), ("news", 0.2))
        for i, key in enumerate(seeds)
    ]
    rows[0]["value"] += 0.001
    (verdict,) = judge(rows, MANIFEST)
    assert (verdict.claim, verdict.metric, verdict.primary) == (claim, metric, primary)
    assert verdict.subset == fields.get("subset", "all")
    # More of it is what is claimed of SFR and probes, less of FFR and CE.
    assert verdict.verdict == ("supported" if claim in ("sfr", "probing") else "contradicted")


@pytest.mark.parametrize(
    "other",
    [
        {"condition": "cosine>0.5"},
        {"subset": "firing_weighted"},
        {"metric": "sfr_null"},
        {"other_seed": None},
        {"source": "elsewhere"},
        {"hook": None},
    ],
)
def test_rows_that_a_claim_is_not_about_do_not_count(other: dict[str, Any]) -> None:
    rows = [
        *sfr("faithful", {(0, 1): 0.4, (0, 2): 0.5, (1, 2): 0.6}),
        *sfr("news", {(0, 1): 0.3, (0, 2): 0.1, (1, 2): 0.2}),
    ]
    assert judge(rows, MANIFEST)
    assert judge([{**one, **other} for one in rows], MANIFEST) == []


# Verdicts


# Differences whose mean is .03 and SD .002: SE .0011547, half width .004968.
DECISIVE = [0.028, 0.030, 0.032]


@pytest.mark.parametrize(
    ("sign", "verdict", "numbers"),
    [
        (-1, "supported", "-0.0300 [-0.0350, -0.0250]"),
        (1, "contradicted", "+0.0300 [+0.0250, +0.0350]"),
    ],
)
def test_an_interval_on_one_side_of_zero_decides(sign: int, verdict: str, numbers: str) -> None:
    rows = [
        *contrast("faithful", [0.1 + sign * difference for difference in DECISIVE]),
        *contrast("news", [0.1] * 3),
    ]
    (found,) = judge(rows, MANIFEST)
    assert (found.verdict, found.would_decide, found.reason) == (verdict, None, None)
    assert found.sentence == (
        "Contrast FFR of alive latents (rate > 0.1) is lower for SAEs on faithful than on news: "
        f"{numbers}, {verdict}."
    )


def test_a_difference_far_below_its_spread_takes_more_than_a_thousand_seeds() -> None:
    rows = [*contrast("faithful", [0.2, 0.4, 0.30001]), *contrast("news", [0.3] * 3)]
    (verdict,) = judge(rows, MANIFEST)
    assert (verdict.verdict, verdict.would_decide) == ("undecided", "more than 1,000 seeds")


def test_tokens_are_named_where_the_saes_own_intervals_are_as_wide_as_the_spread() -> None:
    # Differences .01, .02, .06: mean .03, SD .0264575; t/√S is below .03/.0264575 = 1.1339 from S = 6
    # (2.5706/2.4495 = 1.0494; five 2.7764/2.2361 = 1.2417). Each SAE's SE is .02, so sampling gives
    # .0008 > .0007 = SD², all of it: .0007 · 4.302653²/(3 · .0009) = 4.7997 times as many tokens.
    half = 1.959964 * 0.02
    fields = {"ci_low": 0.3 - half, "ci_high": 0.3 + half}
    rows = [*contrast("faithful", [0.31, 0.32, 0.36], **fields), *contrast("news", [0.3] * 3, **fields)]
    (verdict,) = judge(rows, MANIFEST)
    assert verdict.would_decide == "about 6 seeds, or perhaps 480,000 tokens instead of 100,000,"
    # With intervals far narrower than the spread it is the seeds.
    narrow = {"ci_low": 0.2999, "ci_high": 0.3001}
    rows = [*contrast("faithful", [0.31, 0.32, 0.36], **narrow), *contrast("news", [0.3] * 3, **narrow)]
    (verdict,) = judge(rows, MANIFEST)
    assert verdict.would_decide == "about 6 seeds"


def test_test_texts_of_all_tasks_count_together() -> None:
    # Two tasks alike in everything: the mean's sampling variance is half of one's, .04²/2 = .0008 as above.
    half = 1.959964 * 0.02 * 2**0.5
    rows = [
        one
        for task in ("sst2", "cola")
        for source, values in (("faithful", [0.31, 0.32, 0.36]), ("news", [0.3] * 3))
        for one in accuracy(source, task, values, ci_low=0.3 - half, ci_high=0.3 + half)
    ]
    mean, *_ = judge(rows, MANIFEST)
    assert mean.would_decide == "about 6 seeds, or perhaps 4,800 test texts instead of 1,000,"


# Too little to judge by


def test_one_seed_leaves_an_sfr_without_a_value() -> None:
    reason = "WHERE has one seed; sharing needs at least two"
    rows = [row("sfr", None, source=source, reason=reason) for source in MANIFEST["sources"]]
    verdicts = judge(rows, MANIFEST)
    assert [(one.subset, one.primary) for one in verdicts] == [("alive", True), ("all", False)]
    assert {(one.difference, one.n_seeds, one.verdict, one.reason) for one in verdicts} == {
        (None, 0, "undecided", reason)
    }
    assert verdicts[0].sentence == (
        "SFR of alive latents (cosine > 0.7) is higher for SAEs on faithful than on news: undecided "
        f"({reason}); an interval takes at least 3 seeds of both sources."
    )


def test_two_seeds_give_an_sfr_a_difference_and_no_interval() -> None:
    rows = [*sfr("faithful", {(0, 1): 0.5}), *sfr("news", {(0, 1): 0.3})]
    (verdict,) = judge(rows, MANIFEST)
    assert bounds(verdict) == (pytest.approx(0.2), None, None)
    assert (verdict.verdict, verdict.n_seeds) == ("undecided", 2)
    assert verdict.would_decide == "at least 3 seeds of both sources"
    assert verdict.reason == "fewer than three SAEs: one pair says nothing about the spread over SAEs"


def test_one_seed_gives_an_ffr_a_difference_and_no_interval() -> None:
    (verdict,) = judge([*contrast("faithful", [0.02]), *contrast("news", [0.05])], MANIFEST)
    assert bounds(verdict) == (pytest.approx(-0.03), None, None)
    assert (verdict.n_seeds, verdict.would_decide) == (1, "at least 2 seeds of both sources")


def test_equal_differences_decide_nothing() -> None:
    (verdict,) = judge([*contrast("faithful", [0.0] * 3), *contrast("news", [0.05] * 3)], MANIFEST)
    assert bounds(verdict) == (pytest.approx(-0.05), None, None)
    assert (verdict.verdict, verdict.would_decide) == ("undecided", "at least 4 seeds of both sources")
    assert verdict.reason == "every seed gives the same difference: it shows no spread"


def test_only_seeds_that_both_have_are_compared() -> None:
    rows = [*contrast("faithful", [0.1, 0.2, 0.3, 0.9]), *contrast("news", [0.1, 0.1])]
    (verdict,) = judge(rows, MANIFEST)
    # 0 and .1: mean .05, SD .0707107, SE .05.
    assert verdict.n_seeds == 2
    assert bounds(verdict) == by_hand(0.05, T_1 * 0.05)


def test_sources_without_a_common_seed_are_undecided() -> None:
    rows = [*contrast("faithful", [0.1, 0.2]), *({**one, "seed": 9} for one in contrast("news", [0.1]))]
    (verdict,) = judge(rows, MANIFEST)
    assert verdict.reason == "the two sources have too few SAE seeds in common"
    assert (verdict.verdict, verdict.difference) == ("undecided", None)
    assert verdict.would_decide == "at least 2 seeds of both sources"


def test_a_claim_that_was_not_measured_has_no_verdict_and_is_named() -> None:
    rows = [*contrast("faithful", [0.1, 0.2]), *contrast("news", [0.1, 0.1])]
    verdicts = judge([*rows, *accuracy("faithful", "sst2", [0.8, 0.9])], MANIFEST)
    assert [one.claim for one in verdicts] == ["ffr"]
    said = remark(verdicts, MANIFEST)
    assert said.startswith("Verdicts at 95 % each, 1 in all, 1 primary: were there no differences at all")
    assert said.endswith(
        "Not measured: SFR of alive latents (cosine > 0.7); probe accuracy of latents; CE difference."
    )
    assert remark([], MANIFEST).startswith("No verdicts. Not measured: SFR of alive latents")


# Sources, hooks and variants


def test_own_sources_are_compared_with_every_other_and_not_with_each_other() -> None:
    manifest = {"sources": ["news", "cool", "faithful", "code"], "own_text": ["faithful", "cool"]}
    rows = [one for source in manifest["sources"] for one in contrast(source, [0.1, 0.2])]
    assert [(one.source, one.other) for one in judge(rows, manifest)] == [
        ("cool", "news"), ("cool", "code"), ("faithful", "news"), ("faithful", "code"),
    ]  # fmt: skip


def test_hooks_and_variants_are_judged_apart_and_named() -> None:
    places = [("h0", "base"), ("h0", "wide"), ("h1", "base")]
    rows = [
        one
        for i, (hook, variant) in enumerate(places)
        for source, values in (("faithful", [0.1 * i, 0.1 * i + 0.1]), ("news", [0.0, 0.0]))
        for one in contrast(source, values, hook=hook, variant=variant)
    ]
    verdicts = judge(rows, MANIFEST)
    assert [(one.hook, one.variant) for one in verdicts] == places
    assert [one.difference for one in verdicts] == pytest.approx([0.05, 0.15, 0.25])
    assert "than on news (h0, wide): +0.1500" in verdicts[1].sentence


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({"sources": ["a", "b"]}, "does not say whose text its sources are."),
        ({"sources": ["a", "b"], "own_text": []}, "has no source of the model's own text."),
        ({"sources": [], "own_text": []}, "has no source of the model's own text."),
        ({"sources": ["a", "b"], "own_text": ["a", "b"]}, "has no other source."),
    ],
)
def test_without_two_kinds_of_source_there_are_no_verdicts_and_one_line_why(
    manifest: dict[str, Any], reason: str
) -> None:
    rows = [*contrast("a", [0.1, 0.2]), *contrast("b", [0.1, 0.1])]
    assert judge(rows, manifest) == []
    said = remark([], manifest)
    assert said.startswith("No verdicts: they compare SAEs on the model's own text with SAEs on other text")
    assert said.endswith(reason)


# The file


def write_run(root: Path, rows: Sequence[Row], **manifest: Any) -> RunFolder:
    folder = RunFolder(root)
    write_text(folder.results_file, "".join(json.dumps(one) + "\n" for one in rows))
    common = {"model": "m@1", "versions": {}, "device": "cpu", "threads": 1, "summary": "", "evaluators": []}
    write_json(folder.manifest_file, {**common, **manifest})
    return folder


def test_the_file_has_one_flat_row_a_verdict(tmp_path: Path) -> None:
    rows = [*accuracy("faithful", "sst2", [0.8, 0.9]), *accuracy("news", "sst2", [0.7, 0.7])]
    folder = write_run(tmp_path, rows, **MANIFEST)
    write_report(folder)
    (line,) = folder.verdicts_file.read_text(encoding="utf-8").splitlines()
    (verdict,) = judge(rows, MANIFEST)
    assert json.loads(line) == asdict(verdict)
    assert not any(isinstance(value, list | dict) for value in json.loads(line).values())


def test_a_folder_of_before_has_a_report_and_no_verdicts(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [*contrast("faithful", [0.1]), *contrast("news", [0.1])],
                       sources=["faithful", "news"])  # fmt: skip
    write_report(folder)
    assert folder.verdicts_file.read_text() == ""
    assert "does not say whose text its sources are." in folder.report_file.read_text()


def test_a_run_knows_which_source_its_model_wrote(tiny_config: dict[str, Any], tiny_llama: str) -> None:
    own = {"plugin": "self_generated", "n_tokens": 640, "batch_size": 32}
    # `generator` is another model, even where its weights happen to be the same.
    sources = {"faithful": own, "foreign": {**own, "generator": tiny_llama, "temperature": 1.5}}
    changes = {
        "training_tokens": 640, "typicality_tokens": 100, "evaluators": [{"fake_features": {"n_tokens": 900}}]
    }  # fmt: skip
    folder = run(ExperimentConfig.from_dict({**tiny_config, **changes, "sources": sources}))
    assert json.loads(folder.manifest_file.read_text())["own_text"] == ["faithful"]
    verdicts = [json.loads(line) for line in folder.verdicts_file.read_text().splitlines()]
    assert [(one["metric"], one["source"], one["other"]) for one in verdicts] == [
        ("ffr_contrast", "faithful", "foreign"), ("ffr", "faithful", "foreign"),
    ]  # fmt: skip
    assert verdicts[0]["sentence"] in folder.report_file.read_text()


def test_every_field_and_claim_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/metrics.md").read_text(encoding="utf-8")
    section = text.partition("\n## Verdicts\n")[2].partition("\n## ")[0]
    for name in [entry.name for entry in fields(Verdict)] + [claim.metric for claim in CLAIMS]:
        assert f"`{name}`" in section
    for claim in CLAIMS:
        start = f"| `{claim.name}` | `{claim.metric}`, `{claim.subset}`"
        (line,) = [line for line in section.splitlines() if line.startswith(start)]
        assert ("| higher |" in line, line.endswith("| yes |")) == (claim.higher, claim.primary)
