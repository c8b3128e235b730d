"""Claims by other definitions of their numbers: what is taken off, what a conclusion becomes."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest

from sae_faithful.report.conclusions import definitions_text
from sae_faithful.report.definitions import DEFINITIONS, Redefined, change, changed, redefined
from sae_faithful.report.differences import HIGHER_IS_BETTER
from sae_faithful.report.verdicts import CLAIMS

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = dict[str, Any]
MANIFEST = {"sources": ["faithful", "news"], "own_text": ["faithful"]}
# 97.5 % points of Student's t, from a printed table.
T_2 = 4.302653


@pytest.fixture
def sfr(number: Any) -> Any:
    """SFRs of three pairs of seeds."""

    def make(source: str, values: Sequence[float], **fields: Any) -> list[Row]:
        where = {"condition": "cosine>0.7", **fields}
        pairs = combinations(range(3), 2)
        return [
            number("shared_features", "sfr", value, source, seed=one, other_seed=two, **where)
            for (one, two), value in zip(pairs, values, strict=True)
        ]

    return make


@pytest.fixture
def single(number: Any) -> Any:
    def make(metric: str, source: str, values: Sequence[float], **fields: Any) -> list[Row]:
        return [number("x", metric, value, source, seed=seed, **fields) for seed, value in enumerate(values)]

    return make


def of(found: Sequence[Redefined], label: str) -> Redefined:
    (one,) = (each for each in found if each.definition.label == label)
    return one


def test_a_conclusion_may_turn_round_be_lost_or_be_found() -> None:
    assert change("supported", "supported") == "the same"
    assert change("supported", "contradicted") == "turned round"
    assert change("contradicted", "undecided") == "no longer decided"
    assert change("undecided", "supported") == "now decided"


def test_dead_latents_alone_made_the_paper_s_difference(sfr: Any) -> None:
    # Over all latents faithful shares more; over alive ones fewer.
    rows = [
        *sfr("faithful", [0.30, 0.31, 0.32]), *sfr("news", [0.20, 0.21, 0.22 + 0.001]),
        *sfr("faithful", [0.30, 0.31, 0.32], subset="alive"), *sfr("news", [0.40, 0.41, 0.42 + 0.001], subset="alive"),
    ]  # fmt: skip
    found = redefined(rows, MANIFEST)
    paper, alive = of(found, "all, cosine > 0.7"), of(found, "alive, cosine > 0.7")
    assert (paper.verdict, paper.change) == ("supported", None)
    assert (alive.verdict, alive.change) == ("contradicted", "turned round")
    assert changed(found) == {"the same": 0, "now decided": 0, "no longer decided": 0, "turned round": 1}
    text = definitions_text(found)
    assert "| claim | the same | now decided | no longer decided | turned round |" in text
    assert "| sfr   | 0        | 0           | 0                 | 1            |" in text
    assert "- `sfr`, alive, cosine > 0.7: faithful - news at model.layers.3/base -0.1003" in text
    assert text.count("\n- ") == 1


def test_a_null_of_a_source_is_taken_off_with_its_own_error(sfr: Any, number: Any) -> None:
    # Differences .1, .2, .6: mean .3, SE .305505 (test_verdicts.py). Nulls .05 ± .02 and .01 ± .03, t with four
    # degrees 2.776445: SEs .007203 and .010805. .3 - (.05 - .01) = .26; SE² = .0933333 + .0000519 + .0001167.
    rows = [
        *sfr("faithful", [0.4, 0.4, 0.9]), *sfr("news", [0.3, 0.2, 0.3]),
        number("shared_features", "sfr_null", 0.05, "faithful", condition="cosine>0.7", ci_low=0.03, ci_high=0.07, n=5),
        number("shared_features", "sfr_null", 0.01, "news", condition="cosine>0.7", ci_low=-0.02, ci_high=0.04, n=5),
    ]  # fmt: skip
    one = of(redefined(rows, MANIFEST), "all, cosine > 0.7, minus the null")
    assert one.difference == pytest.approx(0.26)
    half = T_2 * (0.0933333 + 0.0000519 + 0.0001167) ** 0.5
    assert (one.ci_low, one.ci_high) == pytest.approx((0.26 - half, 0.26 + half), abs=1e-4)


def test_shuffled_text_is_taken_off_sae_by_sae(single: Any) -> None:
    # .03 .04 .05 less .01 .01 .02: .02 .03 .03; .05 .05 .05 less .01 .02 .02: .04 .03 .03; differences -.02 0 0.
    where = {"condition": "rate>0.1"}
    rows = [
        *single("ffr", "faithful", [0.03, 0.04, 0.05], **where), *single("ffr", "news", [0.05] * 3, **where),
        *single("ffr_shuffled", "faithful", [0.01, 0.01, 0.02], **where),
        *single("ffr_shuffled", "news", [0.01, 0.02, 0.02], **where),
    ]  # fmt: skip
    one = of(redefined(rows, MANIFEST), "activation > 1, all, rate > 0.1, minus shuffled text's")
    # SD .0115470, SE .0066667.
    assert one.difference == pytest.approx(-0.02 / 3)
    assert one.ci_low == pytest.approx(-0.02 / 3 - T_2 * 0.0066667, abs=1e-6)


def test_a_random_sae_is_taken_off_where_it_was_measured(single: Any, number: Any) -> None:
    where = {"condition": "rate>0.1"}
    rows = [
        *single("ffr", "faithful", [0.03, 0.04, 0.05], **where), *single("ffr", "news", [0.05] * 3, **where),
    ]  # fmt: skip
    label = "activation > 1, all, rate > 0.1, minus a random SAE's"
    assert not [one for one in redefined(rows, MANIFEST) if one.definition.label == label]
    rows += [number("x", "ffr_random_sae", 0.01, source, **where) for source in ("faithful", "news")]
    assert of(redefined(rows, MANIFEST), label).difference == pytest.approx(-0.01)


def test_texts_that_neither_was_trained_on(single: Any) -> None:
    rows = [
        *single("ce_difference", "faithful", [0.1, 0.11, 0.12], dataset="faithful"),
        *single("ce_difference", "news", [0.9, 0.91, 0.93], dataset="faithful"),
        *single("ce_difference", "faithful", [0.9, 0.91, 0.93], dataset="news"),
        *single("ce_difference", "news", [0.2, 0.21, 0.22], dataset="news"),
        *single("ce_difference", "faithful", [0.5, 0.51, 0.52], dataset="code"),
        *single("ce_difference", "news", [0.4, 0.41, 0.42 + 0.001], dataset="code"),
    ]
    found = redefined(rows, MANIFEST)
    assert of(found, "CE difference, all texts").verdict == "undecided"
    neither = of(found, "CE difference, texts that neither was trained on")
    assert neither.difference == pytest.approx(0.1, abs=1e-3)
    assert (neither.verdict, neither.change) == ("contradicted", "now decided")
    without = [row for row in rows if row["dataset"] != "code"]
    assert len(redefined(without, MANIFEST)) == len(found) - 1


def test_without_a_source_of_its_own_text_nothing_is_claimed(sfr: Any) -> None:
    rows = [*sfr("faithful", [0.3, 0.3, 0.3]), *sfr("news", [0.2, 0.2, 0.2])]
    assert redefined(rows, {"sources": ["faithful", "news"]}) == []
    assert definitions_text([]) == ""


def test_definitions_are_those_of_the_claims_and_have_a_better_side() -> None:
    assert {one.claim for one in DEFINITIONS} == {claim.name for claim in CLAIMS}
    assert all(one.metric in HIGHER_IS_BETTER for one in DEFINITIONS)
    assert len({(one.claim, one.label) for one in DEFINITIONS}) == len(DEFINITIONS)
    papers = [one for one in DEFINITIONS if one.paper]
    assert [one.claim for one in papers] == ["sfr", "ffr", "probing", "ce_difference"]
    # The paper's comes first: the others are held against it.
    for one in papers:
        first = next(each for each in DEFINITIONS if each.claim == one.claim)
        assert first is one
    # The number that a claim is judged by is among them.
    shown = {(one.metric, one.subset, one.condition) for one in DEFINITIONS}
    assert {(claim.metric, claim.subset, claim.condition) for claim in CLAIMS} <= shown
