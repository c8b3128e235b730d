"""Stability against distance on rows written by hand: what is correlated with what, what comes out, what is said."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sae_faithful.metrics.correlation import (
    NO_COMMON_SEED,
    SAME_SCORES,
    SAME_SEEDS,
    SAME_VALUES,
    SEEDS_MAKE_THE_SPREAD,
    TOO_FEW_SEEDS,
)
from sae_faithful.report import write_report
from sae_faithful.report.conclusions import distance_table, distance_text
from sae_faithful.report.distance import MEASURES, SCORES, Trend, enough_sources, trends

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = dict[str, Any]
NAMES = ["own", "chat", "news", "code", "shuffled", "other"]


@pytest.fixture
def rows_like(number: Any) -> Any:
    """Gaps of texts, alive SFRs of three pairs of seeds and contrast FFRs of three seeds around these means."""

    def make(
        gaps: Sequence[float], sfrs: Sequence[float], ffrs: Sequence[float] = (), spread: float = 0.001
    ) -> list[Row]:
        rows: list[Row] = []
        for name, gap in zip(NAMES, gaps, strict=False):
            rows.append(number("typicality", "typicality_gap", gap, None, dataset=name, n=900))
            rows.append(number("typicality", "typicality_z", 9 * gap, None, dataset=name, n=900))
        for name, mean in zip(NAMES, sfrs, strict=False):
            for (one, two), by in zip(combinations(range(3), 2), (-spread, 0, spread), strict=True):
                rows.append(
                    number("shared_features", "sfr", mean + by, name, seed=one, other_seed=two,
                           subset="alive", condition="cosine>0.7")
                )  # fmt: skip
        for name, mean in zip(NAMES, ffrs, strict=False):
            for seed, by in enumerate((-spread, 0, spread)):
                rows.append(
                    number("fake_features", "ffr_contrast", mean + by, name, seed=seed, subset="alive",
                           condition="rate>0.1")
                )  # fmt: skip
        return rows

    return make


def of(
    found: Sequence[Trend], metric: str, *, less: str | None = None, score: str = "typicality_gap"
) -> Trend:
    (trend,) = (one for one in found if (one.metric, one.less, one.score) == (metric, less, score))
    return trend


def test_a_planted_order_of_five_sources_supports_the_claim(rows_like: Any) -> None:
    rows = rows_like([0.0, 0.1, 0.5, 0.9, 2.0], [0.5, 0.4, 0.3, 0.2, 0.1], [0.01, 0.02, 0.03, 0.04, 0.05])
    found = trends(rows, {"sources": NAMES})
    sharing, fakeness = of(found, "sfr"), of(found, "ffr_contrast")
    assert (sharing.spearman, sharing.verdict, sharing.primary) == (pytest.approx(-1), "supported", True)
    assert (fakeness.spearman, fakeness.verdict, fakeness.primary) == (pytest.approx(1), "supported", True)
    assert sharing.spearman_p == pytest.approx(2 / 120)
    assert sharing.sources == NAMES[:5]
    assert sharing.values == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    assert sharing.would_decide is None
    assert sharing.sentence == (
        "SFR of alive latents (cosine > 0.7) falls with the |typicality gap| of the text trained on: Spearman's "
        "correlation over 5 sources -1.00 (over seeds -1.00 to -1.00), p = 0.017, supported."
    )


def test_the_opposite_order_contradicts_it(rows_like: Any) -> None:
    rows = rows_like([0.0, 0.1, 0.5, 0.9, 2.0], [0.1, 0.2, 0.3, 0.4, 0.5], [0.05, 0.04, 0.03, 0.02, 0.01])
    found = trends(rows, {"sources": NAMES})
    assert [of(found, metric).verdict for metric in ("sfr", "ffr_contrast")] == ["contradicted"] * 2


def test_text_that_is_too_predictable_is_far_too(rows_like: Any) -> None:
    rows = rows_like([0.0, -0.1, 0.5, -0.9, 2.0], [0.5, 0.4, 0.3, 0.2, 0.1])
    found = of(trends(rows, {"sources": NAMES}), "sfr")
    assert found.distances == pytest.approx([0.0, 0.1, 0.5, 0.9, 2.0])
    assert found.verdict == "supported"


def test_what_is_not_in_order_is_undecided_and_says_how_many_would_decide(rows_like: Any) -> None:
    # Ranks 1 2 3 4 5 against 4 5 2 3 1: Σd² = 9 + 9 + 1 + 1 + 16 = 36, 1 - 6 · 36 / 120 = -.8; 16 of 120 orders.
    rows = rows_like([0.0, 0.1, 0.2, 0.3, 0.4], [0.4, 0.5, 0.2, 0.3, 0.1])
    found = of(trends(rows, {"sources": NAMES}), "sfr")
    assert (found.spearman, found.spearman_p) == pytest.approx((-0.8, 16 / 120))
    assert found.verdict == "undecided"
    # √5 · .8 / .6 = 2.98 > t(.975, 5) = 2.57 with seven sources; 2.67 < 2.78 with six.
    assert found.would_decide == "about 7 sources"
    assert found.sentence.endswith("undecided; about 7 sources would decide it if it is as found.")


def test_what_these_sources_leave_undecided_takes_more_of_them(rows_like: Any) -> None:
    # Ranks 1 2 3 4 5 against 5 4 3 1 2: Σd² = 16 + 4 + 0 + 9 + 9 = 38, -.9; 10 of 120 orders. Student's t would
    # decide with five (√3 · .9 / √.19 = 3.58 > 3.18), but five did not.
    found = of(
        trends(rows_like([0.0, 0.1, 0.2, 0.3, 0.4], [0.5, 0.4, 0.3, 0.1, 0.2]), {"sources": NAMES}), "sfr"
    )
    assert (found.spearman, found.spearman_p) == pytest.approx((-0.9, 10 / 120))
    assert (found.verdict, found.would_decide) == ("undecided", "about 6 sources")


def test_too_few_sources_have_no_correlation_and_say_why(rows_like: Any, write_run: Any) -> None:
    rows = rows_like([0.0, 0.9], [0.5, 0.1])
    found = trends(rows, {"sources": NAMES[:2]})
    (trend,) = found
    assert (trend.spearman, trend.spearman_p, trend.pearson) == (None, None, None)
    assert (trend.reason, trend.verdict) == ("2 sources; a correlation needs at least 4", "undecided")
    assert trend.would_decide == "at least 5 sources"
    assert not enough_sources(found)
    assert distance_text(found) == ""
    folder = write_run(rows, sources=NAMES[:2])
    write_report(folder)
    assert "Stability and distance" not in folder.report_file.read_text()
    assert json.loads(folder.distance_file.read_text())["reason"] == trend.reason


def test_a_source_without_the_score_or_the_number_is_left_out(rows_like: Any) -> None:
    rows = rows_like([0.0, 0.1, 0.5, 0.9, 2.0], [0.5, 0.4, 0.3, 0.2])
    assert of(trends(rows, {"sources": NAMES}), "sfr").sources == NAMES[:4]


def test_baselines_are_no_saes(rows_like: Any) -> None:
    rows = rows_like([0.0, 0.1, 0.5, 0.9, 2.0], [0.5, 0.4, 0.3, 0.2, 0.1])
    fits = [{**row, "variant": "pca"} for row in rows if row["source"] is not None]
    found = trends([*rows, *fits], {"sources": NAMES, "baselines": {"pca": {"plugin": "pca"}}})
    assert {trend.variant for trend in found} == {"base"}


def test_what_chance_gives_is_taken_off_each_source(rows_like: Any, number: Any) -> None:
    rows = rows_like([0.0, 0.1, 0.5, 0.9], [0.5, 0.4, 0.3, 0.2])
    nulls = [
        number("shared_features", "sfr_null", null, name, subset="alive", condition="cosine>0.7")
        for name, null in zip(NAMES, (0.45, 0.3, 0.1, 0.0), strict=False)
    ]
    found = of(trends(rows + nulls, {"sources": NAMES}), "sfr", less="sfr_null")
    assert found.values == pytest.approx([0.05, 0.1, 0.2, 0.2])
    assert found.statement.startswith("SFR of alive latents - null (cosine > 0.7) falls")
    assert not found.primary


def test_scores_of_activations_are_those_of_the_hook(rows_like: Any, number: Any) -> None:
    rows = rows_like([0.0, 0.1, 0.5, 0.9], [0.5, 0.4, 0.3, 0.2])
    scores = [
        number("ood_score", "knn_distance", value, None, dataset=name, hook=hook, condition="reference=own")
        for hook, values in (("model.layers.3", (1, 2, 4, 3)), ("model.layers.9", (9, 9, 9, 9)))
        for name, value in zip(NAMES, values, strict=False)
    ]
    halves = [
        number("ood_score", "nll_auroc", value, None, dataset=name, condition="reference=own")
        for name, value in zip(NAMES, (0.5, 0.4, 0.7, 0.1), strict=False)
    ]
    found = trends([*rows, *scores, *halves], {"sources": NAMES})
    assert of(found, "sfr", score="knn_distance").distances == [1, 2, 4, 3]
    assert of(found, "sfr", score="nll_auroc").distances == pytest.approx([0.0, 0.1, 0.2, 0.4])
    assert [one.primary for one in found] == [True, False, False]
    assert [one.score for one in found] == ["typicality_gap", "nll_auroc", "knn_distance"]
    table = distance_table(found)
    assert "k-NN distance" in table
    assert table.count("p = ") == 3
    assert "-0.80" in table


def test_the_report_has_it_once_there_are_sources_enough(rows_like: Any, write_run: Any) -> None:
    rows = rows_like([0.0, 0.1, 0.5, 0.9, 2.0], [0.5, 0.4, 0.3, 0.2, 0.1])
    folder = write_run(rows, sources=NAMES[:5])
    page = write_report(folder).read_text()
    text = folder.report_file.read_text()
    assert "## Stability and distance from the model" in text
    assert "p = 0.017, supported." in text
    assert 'id="distance"' in page
    assert "Stability and distance from the model" in page
    (line,) = folder.distance_file.read_text().splitlines()
    assert set(json.loads(line)) == {field.name for field in fields(Trend)}


def test_one_measure_each_of_sharing_and_fakeness_is_primary() -> None:
    assert [one.metric for one in MEASURES if one.primary] == ["sfr", "ffr_contrast"]
    assert SCORES[0].metric == "typicality_gap"


def test_every_field_and_reason_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    section = page.partition("## Stability and distance")[2].partition("\n## ")[0]
    first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}
    assert {field.name for field in fields(Trend)} <= documented
    reasons = (NO_COMMON_SEED, SAME_SCORES, SAME_VALUES, SAME_SEEDS, TOO_FEW_SEEDS, SEEDS_MAKE_THE_SPREAD)
    assert [reason for reason in reasons if f"*{reason}*" not in section] == []
