"""How often intervals of a correlation over a handful of sources hold the truth, and how often p decides.

    python tests/benchmarks/correlation_coverage.py --simulations 1000

Sources have normal scores x and true values ρx + √(1 − ρ²)e; every SAE seed adds normal noise, `noise` times the
spread of the true values, to each source for itself. The interval over seeds is for the correlation of these sources'
true values, which differs from simulation to simulation; the interval over sources is for ρ.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product

import numpy as np

from sae_faithful.metrics.correlation import pearson, spearman

SOURCES, SEEDS, RHOS, NOISES = (5, 7), (3, 5), (0.0, 0.8), (0.1, 0.3, 0.5, 1.0)
HEADER = ("sources", "seeds", "rho", "noise", "with an interval", "Spearman over seeds", "Pearson over seeds",
          "Pearson over sources", "Spearman p < .05")  # fmt: skip


def simulate(
    sources: int, seeds: int, rho: float, noise: float, rng: np.random.Generator
) -> tuple[float, ...]:
    """Whether there is an interval, whether each of three holds the truth (NaN without one), whether p decides."""
    scores = rng.standard_normal(sources)
    truth = rho * scores + (1 - rho**2) ** 0.5 * rng.standard_normal(sources)
    drawn = truth + noise * rng.standard_normal((seeds, sources))
    values = [{(seed,): float(drawn[seed, i]) for seed in range(seeds)} for i in range(sources)]
    exact = [{(0,): float(value)} for value in truth]
    ranks, line = spearman(list(scores), values, rng), pearson(list(scores), values)
    holds = [
        float(low - 1e-9 <= true <= high + 1e-9) if low is not None and high is not None else float("nan")
        for (low, high, _), true in (
            (ranks.over_seeds, spearman(list(scores), exact, rng).value),
            (line.over_seeds, pearson(list(scores), exact).value),
            (line.over_sources, rho),
        )
        if true is not None
    ]
    return float(ranks.over_seeds.low is not None), *holds, float((ranks.p_value or 0) < 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=1_000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    sys.stdout.write(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}\n")
    for setting in product(SOURCES, SEEDS, RHOS, NOISES):
        found = np.array([simulate(*setting, rng) for _ in range(options.simulations)])
        cells = [*map(str, setting), *(f"{value:.3f}".lstrip("0") for value in np.nanmean(found, axis=0))]
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
