"""From rows of sae-probes, written here by hand, to ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sae_faithful import EvalResult, SAEHandle
from sae_faithful_plugins.sae_probes_benchmark.results import Benchmark

HOOKS = ("model.layers.0", "model.layers.1")


def handle(source: str, hook: str, seed: int) -> SAEHandle:
    return SAEHandle(source=source, hook=hook, variant="base", seed=seed, load=lambda: None)


def raw(auc: float, dataset: str, **where: Any) -> dict[str, Any]:
    return {"test_auc": auc, "test_acc": 0.5, "test_f1": 0.5, "val_auc": 0.5, "dataset": dataset, **where}


def one(rows: list[EvalResult], metric: str, **wanted: Any) -> EvalResult:
    wanted = {"metric": metric, "seed": None, **wanted}
    found = [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]
    assert len(found) == 1
    return found[0]


def test_every_hook_has_its_own_baseline() -> None:
    handles = [handle("faithful", hook, 0) for hook in HOOKS]
    given = [raw(0.9, "1_a", sae=0, k=1, hook_name=HOOKS[0]), raw(0.9, "1_a", sae=1, k=1, hook_name=HOOKS[1])]
    given += [raw(0.8, "1_a", hook_name=HOOKS[0]), raw(0.7, "1_a", hook_name=HOOKS[1])]
    rows = list(Benchmark.of(given, handles, {"1_a": 50}, "normal").rows())
    for hook, difference in zip(HOOKS, (0.1, 0.2), strict=True):
        row = one(rows, "benchmark_auc_difference", hook=hook, dataset="1_a")
        assert row.value == pytest.approx(difference)
        assert row.condition == "k=1 - logreg"
    # SAEs of two hooks are not compared.
    assert not [row for row in rows if row.condition and " of " in row.condition]


def test_scarcity_compares_equal_numbers_of_training_texts() -> None:
    handles = [handle("faithful", HOOKS[0], 0), handle("news", HOOKS[0], 0)]
    given: list[dict[str, Any]] = []
    # The second dataset is too small for 8 training texts.
    for dataset, n_trains in (("1_a", (2, 8)), ("2_b", (2,))):
        for n in n_trains:
            where = {"hook_name": HOOKS[0], "num_train": n}
            given += [
                raw(0.6 + n / 100, dataset, sae=0, k=16, **where),
                raw(0.5 + n / 100, dataset, sae=1, k=16, **where),
                raw(0.5, dataset, **where),
            ]
    rows = list(Benchmark.of(given, handles, {"1_a": 500, "2_b": 105}, "scarcity").rows())
    few = one(rows, "benchmark_auc", source="faithful", dataset="1_a", condition="k=16,n_train=2")
    assert few.value == pytest.approx(0.62)
    many = one(
        rows,
        "benchmark_auc_difference",
        source="faithful",
        dataset="1_a",
        condition="k=16 - logreg,n_train=8",
    )
    assert many.value == pytest.approx(0.18)
    between = one(
        rows,
        "benchmark_auc_difference",
        dataset="mean of 2 datasets",
        condition="k=16 of faithful - k=16 of news,n_train=2",
    )
    assert between.value == pytest.approx(0.1)
    assert between.headline
    # No mean over datasets that leaves one out.
    means = {row.condition for row in rows if row.dataset == "mean of 2 datasets"}
    assert all(condition is not None and condition.endswith("n_train=2") for condition in means)


def test_imbalance_is_in_the_condition() -> None:
    # As sae-probes computes its fractions: 0.05 + 2 × 0.05 is 0.15000000000000002.
    where = {"hook_name": HOOKS[0], "num_train": 900}
    given = [
        raw(0.9, "1_a", sae=0, k=16, frac=0.15000000000000002, **where),
        raw(0.8, "1_a", frac=0.15, **where),
    ]
    rows = list(Benchmark.of(given, [handle("faithful", HOOKS[0], 0)], {"1_a": 50}, "imbalance").rows())
    row = one(rows, "benchmark_auc_difference", dataset="1_a", condition="k=16 - logreg,positive=0.15")
    assert row.value == pytest.approx(0.1)


def test_every_row_without_an_interval_says_why() -> None:
    handles = [handle("faithful", HOOKS[0], seed) for seed in (0, 1)]
    given = [raw(0.9 - i / 10, "1_a", sae=i, k=1, hook_name=HOOKS[0]) for i in (0, 1)]
    given.append(raw(0.8, "1_a", hook_name=HOOKS[0]))
    for row in Benchmark.of(given, handles, {"1_a": 50}, "normal").rows():
        assert (row.ci_low is None) == (row.reason is not None)
        assert (row.source is not None and row.seed is None) == (row.ci_low is not None)


def test_metrics_units_and_reasons_stand_in_the_docs() -> None:
    handles = [handle("faithful", HOOKS[0], 0), handle("faithful", HOOKS[0], 1), handle("news", HOOKS[0], 5)]
    given = [raw(0.9, "1_a", sae=i, k=1, hook_name=HOOKS[0]) for i in range(3)]
    given.append(raw(0.8, "1_a", hook_name=HOOKS[0]))
    rows = list(Benchmark.of(given, handles, {"1_a": 50}, "normal").rows())
    docs = Path(__file__).parents[3] / "docs"
    page = (docs / "metrics.md").read_text(encoding="utf-8")
    section = (docs / "evaluators" / "sae_probes_benchmark.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### (\w+)$", section, re.M)) == {row.metric for row in rows}
    for row in rows:
        assert f"Unit: {row.unit}" in section.partition(f"### {row.metric}\n")[2].partition("\n#")[0]
    gaps = page.partition("## Rows without an interval\n")[2].splitlines()
    for row in rows:
        if row.reason:
            reason = row.reason.replace("faithful and news", "A and B")
            assert any(f"`{row.metric}`" in line and reason in line for line in gaps), (row.metric, reason)
    assert len({row.reason for row in rows}) == 5  # None and the four that are listed
