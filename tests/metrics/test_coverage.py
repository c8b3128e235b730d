"""95 % intervals hold the truth 93 to 97 times in 100, over 1,000 simulations of every kind of interval.

The simulations are those of `tests/benchmarks/interval_coverage.py`, which has more of them and prints the table
in docs/metrics.md. Here are those that are quick; all seeds are fixed.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SIMULATIONS = 1_000


def load_benchmark() -> Any:
    """The benchmark, which is a script and in no package."""
    path = Path(__file__).parents[1] / "benchmarks" / "interval_coverage.py"
    spec = importlib.util.spec_from_file_location("interval_coverage", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


benchmark = load_benchmark()
CASES = {(case.metric, case.setting, case.units): case for case in benchmark.cases()}
PAIRS = "θ_ij = a_i + a_j + e_ij, Var e = {} Var a"

# Over 1,000 simulations a coverage of .95 has the binomial SE .0069: .93 and .97 are 2.9 of them away.
EXACT = [
    ("mean over SAEs", "normal", "5 SAEs"),
    ("mean over SAEs", "normal", "3 SAEs"),
    ("mean over SAEs", "lognormal, CV .2", "5 SAEs"),
    ("mean over SAEs", "3 % of 1,024 latents", "5 SAEs"),
    ("mean over SAEs", "3 % of 1,024 latents", "3 SAEs"),
    ("sfr", PAIRS.format(0), "5 SAEs"),
    ("sfr", PAIRS.format(0), "3 SAEs"),
    ("sfr", PAIRS.format(1), "5 SAEs"),
    ("sfr", "pool of features, uneven popularity, luck 0", "5 SAEs"),
    ("sfr", "pool of features, uneven popularity, luck 0.1", "5 SAEs"),
    ("sfr", "pool of features, even popularity, luck 0.1", "5 SAEs"),
    ("l0", "sequences differ by 30 %", "50 sequences"),
    ("nll", "documents of 1–128 tokens", "50 sequences"),
    ("typicality_gap", "a Markov chain's own documents", "50 sequences"),
    ("r2_per_dimension", "16 dimensions", "50 sequences"),
    ("fvu_excess", ".3 against .2 of the variance within", "50 sequences"),
]


@pytest.mark.parametrize(("metric", "setting", "units"), EXACT)
def test_intervals_hold_the_truth_95_times_in_100(metric: str, setting: str, units: str) -> None:
    found = benchmark.cover(CASES[metric, setting, units], SIMULATIONS)
    assert 0.93 <= found.share <= 0.97
    assert found.without == 0


@pytest.mark.parametrize(
    ("metric", "setting", "units"),
    [("sfr", PAIRS.format(100), "5 SAEs"), ("sfr", PAIRS.format(100), "3 SAEs")],
)
def test_intervals_known_to_be_wide_are_not_too_narrow(metric: str, setting: str, units: str) -> None:
    # Efron & Stein: the jackknife counts what belongs to a pair alone 2(S−1)/(S−2) times, which is 8/3 for five SAEs.
    assert benchmark.cover(CASES[metric, setting, units], SIMULATIONS).share > 0.97


def test_a_percentile_bootstrap_of_a_mean_is_its_t_interval() -> None:
    # Bounds of 20,000 draws against the exact ones of `ratio_interval`: quantiles at 2 % of so many draws have the
    # standard error √(.02 · .98 / 20,000)/φ(2.05) = .02 SD.
    from sae_faithful.metrics.intervals import bootstrap_interval, ratio_interval

    values = np.random.default_rng(0).normal(size=50)
    drawn = bootstrap_interval(
        lambda weights: weights @ values / 50, 50, np.random.default_rng(1), n_resamples=20_000
    )
    exact = ratio_interval(values, np.ones(50))
    error = values.std(ddof=1) / 50**0.5
    assert exact.low is not None and exact.high is not None
    assert drawn[:2] == pytest.approx(exact[:2], abs=0.08 * error)
    # The plain 2.5 % and 97.5 % would fall .06 SD short of it: z = 1.960 · √(49/50) = 1.940, t = 2.010.
    assert drawn.high is not None and drawn.low is not None
    assert drawn.high - drawn.low > 2 * 1.97 * error


def test_too_narrow_an_interval_would_be_noticed() -> None:
    """The simulation can fail: z in place of t for five SAEs holds the truth 88 times in 100."""
    from sae_faithful.metrics.intervals import Interval

    def draw(rng: np.random.Generator) -> tuple[float, Interval]:
        values = rng.normal(size=5)
        mean, error = values.mean(), values.std(ddof=1) / 5**0.5
        return float(mean), Interval(mean - 1.96 * error, mean + 1.96 * error)

    found = benchmark.cover(benchmark.Case("mean", "z", "5 SAEs", draw, 0.0), SIMULATIONS)
    assert 0.85 < found.share < 0.91
