"""How often a text of the model's own would be stopped by `typicality_limit`, with surprises as skewed as Zipf's law.

The docs have what it printed (docs/metrics.md, "The limit"). Takes a minute.

    python tests/benchmarks/typicality_limit.py
"""

from __future__ import annotations

import sys

import numpy as np

from sae_faithful.metrics.typicality import LIMIT, beyond, typicality_gap

SHAPES = ((5, 8, 4_000), (20, 16, 4_000), (60, 8, 4_000), (60, 16, 4_000), (1_000, 16, 400))
"""Documents, tokens in each, texts."""
VOCABULARY, EXPONENT = 20_000, 1.2


def main() -> None:
    p = 1 / np.arange(1, VOCABULARY + 1) ** EXPONENT
    p /= p.sum()
    surprise = -np.log(p)
    entropy = float((p * surprise).sum())
    variance = float((p * surprise**2).sum() - entropy**2)
    rng = np.random.default_rng(0)
    for documents, tokens, texts in SHAPES:
        stopped, largest = 0, 0.0
        for _ in range(texts):
            drawn = rng.choice(surprise, size=documents * tokens, p=p)
            owner = np.repeat(np.arange(documents), tokens)
            gap = typicality_gap(drawn, np.full(drawn.shape, entropy), np.full(drawn.shape, variance), owner)
            stopped += beyond(gap.gap, gap.interval.low, gap.interval.high, gap.z, LIMIT)
            largest = max(largest, abs(gap.z))
        sys.stdout.write(
            f"{documents} documents of {tokens}: {stopped} of {texts} stopped, |z| up to {largest:.2f}\n"
        )


if __name__ == "__main__":
    main()
