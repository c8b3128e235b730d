"""FaithfulSAE's question, asked of a tiny model for real: five sources, verdicts, definitions, distance."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sae_faithful.metrics.correlation import SAME_VALUES
from sae_faithful.report.distance import MEASURES, SCORES
from sae_faithful.report.run_data import read_run
from tests.five_sources import SOURCES, five_sources

if TYPE_CHECKING:
    from sae_faithful.run_folder import RunFolder


@pytest.fixture(scope="module")
def folder(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("five")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_FAITHFUL_CACHE", str(root / "cache"))
        return five_sources(tiny_llama, root)


def test_the_sources_lie_at_different_distances(folder: RunFolder) -> None:
    rows = [one for one in read_run(folder.root).rows if one["metric"] == "typicality_gap"]
    gaps = {one["dataset"]: one["value"] for one in rows}
    assert abs(gaps["faithful"]) < 0.2
    assert gaps["faithful"] < gaps["warm"] < gaps["hot"]
    assert min(gaps["words"], gaps["few_words"]) > gaps["warm"]


def test_each_of_its_own_texts_is_held_against_each_other_text(folder: RunFolder) -> None:
    verdicts = read_run(folder.root).verdicts
    pairs = {(one.source, one.other) for one in verdicts}
    assert pairs == {(own, other) for own in SOURCES[:3] for other in SOURCES[3:]}
    assert {one.claim for one in verdicts} == {"sfr", "ffr", "ce_difference"}
    assert all(one.ci_low is not None or one.reason for one in verdicts)


def test_every_definition_has_a_verdict_beside_the_paper_s(folder: RunFolder) -> None:
    run = read_run(folder.root)
    of_one_pair = [one for one in run.redefined if (one.source, one.other) == ("faithful", "few_words")]
    claims = [one.definition.claim for one in of_one_pair]
    assert (claims.count("sfr"), claims.count("ffr"), claims.count("ce_difference")) == (23, 18, 6)
    assert sum(one.definition.paper for one in of_one_pair) == 3
    assert all((one.change is None) == one.definition.paper for one in of_one_pair)
    # The recommended numbers come out as in the verdicts.
    primary = {
        (one.metric, one.subset, one.condition, one.source, one.other): one
        for one in run.verdicts
        if one.primary and one.dataset is None
    }
    same = [
        (one, primary[key])
        for one in run.redefined
        if one.definition.less is None
        and one.definition.texts == "all"
        and (
            key := (
                one.definition.metric,
                one.definition.subset,
                one.definition.condition,
                one.source,
                one.other,
            )
        )
        in primary
    ]
    assert len(same) == len(primary) == 18
    for one, verdict in same:
        assert (one.difference, one.ci_low, one.verdict) == (
            verdict.difference,
            verdict.ci_low,
            verdict.verdict,
        )
    # Five sources of which no two are alike: some conclusion hangs on its definition.
    assert any(one.change != "the same" for one in run.redefined if not one.definition.paper)


def test_every_measure_goes_with_every_score(folder: RunFolder) -> None:
    found = read_run(folder.root).trends
    measured = {one.score for one in found}
    assert measured >= {
        "typicality_gap",
        "first_token_excess",
        "nll_auroc",
        "unigram_js_excess",
        "knn_distance",
    }
    assert measured <= {score.metric for score in SCORES}
    assert len(found) == len(MEASURES) * len(measured)
    for one in found:
        assert one.sources == list(SOURCES)
        if one.spearman is None:
            assert one.reason == SAME_VALUES
            continue
        assert one.pearson is not None
        assert one.spearman_p is not None
        assert -1 <= one.spearman <= 1
        assert 2 / 120 <= one.spearman_p <= 1
        assert (one.spearman_low is None) == (one.reason is not None)
    assert any(one.spearman_low is not None for one in found)
    assert all(one.spearman is not None for one in found if one.primary)


def test_the_report_says_all_of_it(folder: RunFolder) -> None:
    text, page = folder.report_file.read_text(), folder.html_file.read_text()
    for heading in ("## By other definitions", "## Stability and distance from the model"):
        assert heading in text
    lines = [json.loads(line) for line in folder.distance_file.read_text().splitlines()]
    primary = [one for one in lines if one["primary"]]
    assert len(primary) == 2
    for one in primary:
        assert one["sentence"] in text
    assert "figure-distance-sfr" in page
    assert "figure-distance-ffr-contrast" in page
