"""How often the 95 % intervals hold the true value: simulated, for every kind of interval and metric.

    python tests/benchmarks/interval_coverage.py --simulations 1000
    python tests/benchmarks/interval_coverage.py --only sfr ffr --simulations 4000 --json coverage.json

Every case draws data from a model whose true value is known, and calls the metric itself. Where an interval is
for what samples of one size give (a divergence, say), the truth is the mean over all simulations.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
import sklearn
from scipy import stats

from sae_faithful.metrics.auc import group_units, pair_counts
from sae_faithful.metrics.clusters import ClusterSums
from sae_faithful.metrics.divergence import coverage as vocabulary_coverage
from sae_faithful.metrics.divergence import unigram_divergence, unigram_excess
from sae_faithful.metrics.fake_ratio import Criterion, FakeRatios
from sae_faithful.metrics.firing import Exceedances
from sae_faithful.metrics.intervals import Interval, mean_interval
from sae_faithful.metrics.matching import mean_over_pairs
from sae_faithful.metrics.probing import (
    PROBE_METRICS,
    ProbeMetric,
    draw_texts,
    nested_interval,
    probe_metric,
    resampled_metric,
    texts_interval,
)
from sae_faithful.metrics.reconstruction import (
    ActivationVariance,
    ReconstructionSums,
    ce_loss_score,
    explained_variance,
    l0,
    r2_per_dimension,
)
from sae_faithful.metrics.sae_shift import firing_shift, fvu_excess
from sae_faithful.metrics.surprise import first_token_excess, fpr_at_95, token_mean
from sae_faithful.metrics.two_sample import classifier_auc
from sae_faithful.metrics.typicality import typicality_gap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Rng = np.random.Generator
Drawn = tuple[float, Interval]
"""An estimate and its interval."""

D_SAE = 1_024
TAU = 0.1


@dataclass(frozen=True)
class Case:
    """One metric in one setting."""

    metric: str
    setting: str
    units: str
    """What the interval is over, and how many."""
    draw: Callable[[Rng], Drawn]
    truth: float | None
    """None: the mean of the estimates, where the interval is for what samples of this size give."""


@dataclass(frozen=True)
class Coverage:
    """What came out of many simulations."""

    share: float
    """Share of intervals that hold the truth."""
    below: float
    """Share of intervals that lie wholly below it."""
    above: float
    without: float
    """Share of simulations without an interval; the others are those counted."""
    bias: float
    """(Mean estimate − truth) / SD of the estimates."""
    width: float
    """Mean width of the intervals / (2 · 1.96 · SD of the estimates)."""


def cover(case: Case, simulations: int, seed: int = 0) -> Coverage:
    """Simulate a case."""
    rng = np.random.default_rng(seed)
    drawn = [case.draw(rng) for _ in range(simulations)]
    estimates = np.array([estimate for estimate, _ in drawn])
    truth = float(estimates.mean()) if case.truth is None else case.truth
    bounds = np.array([(i.low, i.high) for _, i in drawn if i.low is not None], np.float64)
    # Bounds and truths that are equal but for the last bits: shares of latents are multiples of 1/d_sae.
    low, high = bounds[:, 0] - 1e-12, bounds[:, 1] + 1e-12
    spread = float(estimates.std(ddof=1))
    return Coverage(
        share=float(((low <= truth) & (truth <= high)).mean()),
        below=float((high < truth).mean()),
        above=float((low > truth).mean()),
        without=1 - len(bounds) / simulations,
        bias=(float(estimates.mean()) - truth) / spread,
        width=float((high - low).mean()) / (2 * 1.96 * spread),
    )


# Over SAEs


def mean_of_saes(rng: Rng, n: int, values: Callable[[Rng, int], np.ndarray]) -> Drawn:
    drawn = values(rng, n)
    return float(drawn.mean()), mean_interval(list(drawn))


def fake_shares(rng: Rng, n: int) -> np.ndarray:
    """SAEs have 3 % of fake latents, give or take a fifth of that; of 1,024 latents each."""
    return rng.binomial(D_SAE, rng.beta(24, 776, n)) / D_SAE


def normal(rng: Rng, n: int) -> np.ndarray:
    return rng.normal(size=n)


def skewed(rng: Rng, n: int, sigma: float) -> np.ndarray:
    """Lognormal with mean 1; `sigma` is the SD of the logarithm."""
    return rng.lognormal(-(sigma**2) / 2, sigma, n)


def pairs_of_saes(rng: Rng, n: int, ratio: float) -> Drawn:
    """θ_ij = a_i + a_j + e_ij, Var e = ratio · Var a."""
    a, e = rng.normal(size=n), np.triu(rng.normal(size=(n, n)), 1) * ratio**0.5
    return over_pairs(a[:, None] + a + e + e.T)


def pool_of_features(rng: Rng, n: int, popularity: np.ndarray, luck: float) -> Drawn:
    """SFRs where each SAE has each feature of a pool with a probability of its own, and some SAEs more than others."""
    odds = np.log(popularity / (1 - popularity)) + luck * rng.normal(size=(n, 1))
    has = (rng.random((n, len(popularity))) < 1 / (1 + np.exp(-odds))).astype(np.float64)
    return over_pairs(has @ has.T / D_SAE)


def over_pairs(theta: np.ndarray) -> Drawn:
    """The mean of the pairs above the diagonal."""
    return mean_over_pairs(
        {(int(i), int(j)): theta[i, j] for i, j in zip(*np.triu_indices(len(theta), 1), strict=True)}
    )


def pool_truth(popularity: np.ndarray, luck: float) -> float:
    """Σ_f P(a feature is in an SAE)², the SAEs' luck integrated out (Gauss–Hermite); over d_sae."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    odds = np.log(popularity / (1 - popularity))[:, None] + luck * nodes
    p = (1 / (1 + np.exp(-odds))) @ weights / weights.sum()
    return float((p**2).sum() / D_SAE)


def probes_of_saes(rng: Rng, n: int, luck: float, n_texts: int = 100) -> Drawn:
    """Accuracy of latents − accuracy of activations, on the same texts, of which some are hard for both."""
    labels = np.arange(n_texts) % 2
    side, hard = 2 * labels - 1, 0.7 * rng.normal(size=n_texts)
    weights = draw_texts(n_texts, rng)
    raw = side + hard + 0.7 * rng.normal(size=n_texts)
    worth = 1 + luck * rng.normal(size=n)
    latents = worth[:, None] * side + hard + 0.7 * rng.normal(size=(n, n_texts))
    of_raw = resampled_metric("accuracy", labels, raw, weights)
    resampled = np.stack([resampled_metric("accuracy", labels, s, weights) - of_raw for s in latents], axis=1)
    values = [probe_metric("accuracy", labels, s) - probe_metric("accuracy", labels, raw) for s in latents]
    return float(np.mean(values)), nested_interval(values, resampled, n_texts)


def probes_truth(luck: float) -> float:
    """E Φ(worth / √.98) − Φ(1 / √.98)."""
    return float(stats.norm.cdf(1 / (0.98 + luck**2) ** 0.5) - stats.norm.cdf(1 / 0.98**0.5))


# Over sequences and documents


def sums_of(values: np.ndarray) -> ClusterSums:
    """One row a cluster, as it stands."""
    sums = ClusterSums(len(values), values.shape[1])
    sums.sums = values.astype(np.float64)
    return sums


def active_latents(rng: Rng, n: int) -> Drawn:
    """128 tokens a sequence of 20 ± 5 latents; sequences differ by a factor (gamma, CV .3)."""
    tokens = np.full((n, 1), 128.0)
    found = ReconstructionSums(n, 1)
    found.tokens = sums_of(tokens)
    found.active = sums_of(rng.gamma(1 / 0.09, 0.09 * 20, (n, 1)) * 128 + rng.normal(0, 5 * 128**0.5, (n, 1)))
    return l0(found)


def reconstruction(rng: Rng, n: int, metric: str) -> Drawn:
    """Sixteen dimensions: each sequence with a mean of its own (variance .5), 128 tokens of variance 1."""
    d, tokens = 16, 128
    means = rng.normal(0, 0.5**0.5, (n, d)) + rng.normal(0, 1 / tokens**0.5, (n, d))
    spread = rng.chisquare(tokens - 1, (n, d))
    variance, errors = ActivationVariance(n, d), ReconstructionSums(n, d)
    variance.tokens = sums_of(np.full((n, 1), float(tokens)))
    variance.sum = sums_of(tokens * means)
    variance.squares = sums_of(spread + tokens * np.square(means))
    # A fifth of the variance within is lost; more of it in some sequences.
    errors.errors = sums_of(0.2 * spread * rng.gamma(1 / 0.09, 0.09, (n, 1)))
    return (
        explained_variance(variance, errors, rng)
        if metric == "explained_variance"
        else r2_per_dimension(variance, errors)
    )


def substituted_losses(rng: Rng, n: int) -> Drawn:
    """Losses 3.5, 4 and 11 nats a token; easy sequences are easy for all three."""
    ease = rng.gamma(1 / 0.04, 0.04, (n, 1))
    clean = 3.5 * ease + rng.normal(0, 0.1, (n, 1))
    sae = clean + 0.5 * rng.gamma(1 / 0.25, 0.25, (n, 1))
    zeroed = 11 + rng.normal(0, 0.5, (n, 1)) + 0.3 * (clean - 3.5)
    return ce_loss_score(sums_of(128 * clean), sums_of(128 * zeroed), sums_of(128 * sae), rng)


def firings(rng: Rng, rates: np.ndarray, n: int, shared: float) -> Exceedances:
    """Firings of latents in sequences of 128 tokens; sequences differ, for all latents alike with `shared`."""
    tokens = 128
    counts = Exceedances(n, len(rates), 0.0)
    own = rng.gamma(4, 1 / 4, (n, len(rates))) if shared == 0 else rng.gamma(1 / shared, shared, (n, 1))
    counts.counts = sums_of(rng.binomial(tokens, np.minimum(rates * own, 1.0)))
    counts.tokens = sums_of(np.full((n, 1), float(tokens)))
    return counts


def fake_latents(rng: Rng, n: int, rates: np.ndarray, shared: float) -> Drawn:
    random = firings(rng, rates, n, shared)
    return fake_share(rng, random, random, None)


def contrasted_latents(rng: Rng, n: int, rates: np.ndarray, own: np.ndarray) -> Drawn:
    return fake_share(rng, firings(rng, rates, n, 0), firings(rng, own, n, 0), 2.0)


def fake_share(rng: Rng, random: Exceedances, own: Exceedances, ratio: float | None) -> Drawn:
    criterion = Criterion("firings", TAU, ratio)
    everything = {"all": np.ones(len(random.rates), dtype=bool)}
    found = FakeRatios({"firings": random}, own, everything).shares([criterion], rng)
    return found[criterion, "all"]


def surprising_documents(rng: Rng, n: int) -> Drawn:
    """Documents of 1 to 128 tokens (geometric, cut), with a level of their own; tokens' surprise is exponential."""
    lengths = np.minimum(rng.geometric(1 / 60, n), 128)
    level = rng.gamma(1 / 0.04, 0.04 * 3.0, n)
    return token_mean(rng.gamma(lengths, 1.0) * level, lengths.astype(np.float64))


def first_tokens(rng: Rng, n: int) -> Drawn:
    """Zipf's law over 1,000 tokens: surprise is skewed."""
    p = 1 / np.arange(1, 1_001)
    p /= p.sum()
    entropy = -(p * np.log(p)).sum()
    return first_token_excess(-np.log(p[rng.choice(1_000, n, p=p)]), np.full(n, entropy))


MODEL = np.random.default_rng(0).dirichlet(np.full(20, 0.3), size=20) * 0.99 + 0.01 / 20
"""A Markov chain with entropies of .5 to 2.5 nats; state 0 ends a document."""


def chain_documents(rng: Rng, n: int, longest: int = 60) -> Drawn:
    """Documents of the chain's own, ended by state 0 or cut at 60 tokens, under the chain."""
    log_p = np.log(MODEL)
    entropy = -(MODEL * log_p).sum(axis=1)
    variance = (MODEL * log_p**2).sum(axis=1) - entropy**2
    cumulative = MODEL.cumsum(axis=1)
    state, going = np.zeros(n, np.int64), np.ones(n, dtype=bool)
    parts: list[tuple[np.ndarray, ...]] = []
    for _ in range(longest):
        drawn = np.minimum((cumulative[state] < rng.random(n)[:, None]).sum(axis=1), 19)
        parts.append(
            (
                -log_p[state, drawn][going],
                entropy[state][going],
                variance[state][going],
                np.flatnonzero(going),
            )
        )
        going = going & (drawn != 0)
        state = drawn
    surprise, expected, spread, document = (np.concatenate(column) for column in zip(*parts, strict=True))
    found = typicality_gap(surprise, expected, spread, document)
    return found.gap, found.interval


def scores_apart(rng: Rng, n: int) -> Drawn:
    counts = pair_counts(
        rng.normal(1, 1, n), group_units(np.arange(n)), rng.normal(0, 1, n), group_units(np.arange(n))
    )
    return counts.auc, counts.interval(rng)


def accepted(rng: Rng, n: int, shift: float) -> Drawn:
    return fpr_at_95(rng.normal(shift, 1, n), rng.normal(0, 1, n), rng)


def told_apart(rng: Rng, n: int, shift: float) -> Drawn:
    """Documents of four vectors with sixteen dimensions; the AUC of the best classifier is not what is estimated."""
    units = np.repeat(np.arange(n), 4)
    vectors, references = (rng.normal(size=(4 * n, 16)).astype(np.float32) for _ in range(2))
    vectors[:, 0] += shift
    return classifier_auc(vectors, units, references, units, rng)


def documents_of(frequencies: np.ndarray, rng: Rng, n: int) -> np.ndarray:
    """Counts of types in documents of 100 tokens, each with its own mixture of them."""
    topics = rng.dirichlet(frequencies * 50 + 1e-3, n)
    return rng.multinomial(100, topics).astype(np.float64)


ZIPF = 1 / np.arange(3, 2_003)
ZIPF = ZIPF / ZIPF.sum()


def divergence(rng: Rng, n: int, other: np.ndarray) -> Drawn:
    return unigram_divergence(documents_of(ZIPF, rng, n), documents_of(other, rng, n))


def divergence_excess(rng: Rng, n: int) -> Drawn:
    shifted = 0.8 * ZIPF + 0.2 * ZIPF[::-1]
    return unigram_excess(*(documents_of(f, rng, n) for f in (shifted, ZIPF, ZIPF)))


def types_seen(rng: Rng, n: int, types: int) -> Drawn:
    frequencies = ZIPF[:types] / ZIPF[:types].sum()
    return vocabulary_coverage(documents_of(frequencies, rng, n), types)


def latent_counts(rng: Rng, rates: np.ndarray, n: int) -> np.ndarray:
    """Number of tokens, then firings: what `firing_shift` takes."""
    found = firings(rng, rates, n, 0)
    return np.concatenate([found.tokens.sums, found.counts.sums], axis=1)


def shifted_firings(rng: Rng, n: int, moved: int) -> Drawn:
    rates = 10 ** np.linspace(-0.5, -3.5, 200)
    return firing_shift(latent_counts(rng, rates, n), latent_counts(rng, np.roll(rates, moved), n))


def errors_of(rng: Rng, n: int, lost: float) -> np.ndarray:
    """Sums of `fvu` over documents of 60 tokens with eight dimensions."""
    means = rng.normal(0, 0.5**0.5, (n, 8)) + rng.normal(0, 1 / 60**0.5, (n, 8))
    spread = rng.chisquare(59 * 8, n)
    squares = spread + 60 * np.square(means).sum(axis=1)
    return np.column_stack(
        [np.full(n, 60.0), lost * spread * rng.gamma(1 / 0.09, 0.09, n), squares, 60 * means]
    )


def lost_variance(rng: Rng, n: int) -> Drawn:
    return fvu_excess(errors_of(rng, n, 0.3), errors_of(rng, n, 0.2))


def one_probe(rng: Rng, n: int, metric: ProbeMetric) -> Drawn:
    """Scores two standard deviations apart; a third of the texts are of class 1."""
    labels = (rng.random(n) < 1 / 3).astype(np.int64)
    scores = 2 * labels - 1 + rng.normal(size=n)
    resampled = resampled_metric(metric, labels, scores, draw_texts(n, rng))
    value = probe_metric(metric, labels, scores)
    return value, texts_interval(metric, value, resampled, labels)


def probe_truth(metric: ProbeMetric) -> float:
    """Of each class Φ(1) = .8413 are told right."""
    hit, positive = float(stats.norm.cdf(1)), 1 / 3
    tp, fn, tn, fp = (share * part for part in (positive, 1 - positive) for share in (hit, 1 - hit))
    if metric == "accuracy":
        return hit
    if metric == "auc":
        return float(stats.norm.cdf(2**0.5))
    if metric == "macro_f1":
        return (2 * tp / (2 * tp + fp + fn) + 2 * tn / (2 * tn + fp + fn)) / 2
    return (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5


def rates_across(low: float, high: float) -> np.ndarray:
    """Rates of latents, evenly over the logarithm."""
    return np.exp(np.linspace(np.log(low), np.log(high), 400))


def cases() -> list[Case]:
    """Every kind of interval."""
    return [
        *(case for n in (5, 3) for case in over_saes(n)),
        *(case for n in (50, 200) for case in over_sequences(n)),
        *(case for n in (50, 200) for case in against_a_reference(n)),
        *(case for n in (50, 200) for case in over_texts(n)),
    ]


def over_saes(n: int) -> Iterator[Case]:
    units = f"{n} SAEs"

    def case(metric: str, setting: str, draw: Callable[..., Drawn], truth: float, /, **fixed: Any) -> Case:
        return Case(metric, setting, units, partial(draw, n=n, **fixed), truth)

    yield case("mean over SAEs", "normal", mean_of_saes, 0.0, values=normal)
    for sigma, cv in ((0.2, ".2"), (0.4, ".42")):
        values = partial(skewed, sigma=sigma)
        yield case("mean over SAEs", f"lognormal, CV {cv}", mean_of_saes, 1.0, values=values)
    yield case("mean over SAEs", "3 % of 1,024 latents", mean_of_saes, 0.03, values=fake_shares)
    for ratio in (0.0, 1.0, 4.0, 100.0):
        setting = f"θ_ij = a_i + a_j + e_ij, Var e = {ratio:g} Var a"
        yield case("sfr", setting, pairs_of_saes, 0.0, ratio=ratio)
    for shape, spread in ((0.5, "uneven"), (2.0, "even")):
        popularity = stats.beta.ppf((np.arange(2 * D_SAE) + 0.5) / (2 * D_SAE), shape, shape)
        for luck in (0.0, 0.1):
            setting = f"pool of features, {spread} popularity, luck {luck:g}"
            truth = pool_truth(popularity, luck)
            yield case("sfr", setting, pool_of_features, truth, popularity=popularity, luck=luck)
    for luck in (0.0, 0.2):
        yield case(
            "probe_difference", f"100 texts, luck {luck:g}", probes_of_saes, probes_truth(luck), luck=luck
        )


def over_sequences(n: int) -> Iterator[Case]:
    def case(metric: str, setting: str, draw: Callable[..., Drawn], truth: float, /, **fixed: Any) -> Case:
        return Case(metric, setting, f"{n} sequences", partial(draw, n=n, **fixed), truth)

    yield case("l0", "sequences differ by 30 %", active_latents, 20.0)
    yield case("nll", "documents of 1–128 tokens", surprising_documents, 3.0)
    yield case("first_token_excess", "Zipf", first_tokens, 0.0)
    yield case("typicality_gap", "a Markov chain's own documents", chain_documents, 0.0)
    for metric in ("explained_variance", "r2_per_dimension"):
        yield case(metric, "16 dimensions", reconstruction, 1 - 0.2 / 1.5, metric=metric)
    yield case("ce_loss_score", "3.5, 4 and 11 nats", substituted_losses, (11 - 4) / (11 - 3.5))
    across, tail = rates_across(0.02, 0.5), rates_across(0.001, 0.2)
    for setting, rates, shared in (
        ("400 latents across τ, independent", across, 0.0),
        ("400 latents mostly below τ, independent", tail, 0.0),
        ("400 latents across τ, moving together", across, 0.1),
    ):
        yield case("ffr", setting, fake_latents, float((rates > TAU).mean()), rates=rates, shared=shared)
    own = np.tile([0.2, 1.0], len(across) // 2) * across
    truth = float(((across > TAU) & (across > 2 * own)).mean())
    yield case("ffr_contrast", "400 latents, half dense", contrasted_latents, truth, rates=across, own=own)


def against_a_reference(n: int) -> Iterator[Case]:
    """Truths that are None: these estimate what samples of this size give."""

    def case(
        metric: str, setting: str, draw: Callable[..., Drawn], truth: float | None = None, /, **fixed: Any
    ) -> Case:
        return Case(metric, setting, f"{n} sequences", partial(draw, n=n, **fixed), truth)

    yield case("nll_auroc", "normal, 1 SD apart", scores_apart, float(stats.norm.cdf(0.5**0.5)))
    yield case("nll_fpr95", "alike", accepted, 0.95, shift=0.0)
    apart = float(stats.norm.cdf(stats.norm.ppf(0.95) - 1))
    yield case("nll_fpr95", "normal, 1 SD apart", accepted, apart, shift=1.0)
    yield case("unigram_js", "2,000 types, alike", divergence, other=ZIPF)
    yield case("unigram_js", "2,000 types, apart", divergence, other=ZIPF[::-1])
    yield case("unigram_js_excess", "a fifth of it other text", divergence_excess)
    for types in (2_000, 400):
        yield case("coverage", f"{types:,} types", types_seen, types=types)
    yield case("fvu_excess", ".3 against .2 of the variance within", lost_variance, 0.1 / 1.5)
    for setting, moved in (("alike", 0), ("shifted", 5)):
        yield case("firing_shift", f"200 latents, {setting}", shifted_firings, moved=moved)
    if n == 50:
        yield case("classifier_auc", "alike", told_apart, 0.5, shift=0.0)
        yield case("classifier_auc", "half an SD apart", told_apart, shift=0.5)


def over_texts(n: int) -> Iterator[Case]:
    for metric in PROBE_METRICS:
        draw = partial(one_probe, n=n, metric=metric)
        yield Case(f"probe_{metric}", "2 SD apart", f"{n} texts", draw, probe_truth(metric))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=1_000)
    parser.add_argument("--only", nargs="+", default=[""], help="metrics whose names begin so")
    parser.add_argument("--units", default="", help="only these, '5 SAEs' say")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    about = {
        "python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__, "simulations": options.simulations,
    }  # fmt: skip
    show(", ".join(f"{name} {value}" for name, value in about.items()))
    show(f"Monte-Carlo SE of a coverage of .95: {(0.95 * 0.05 / options.simulations) ** 0.5:.4f}")
    columns = ("cover", "below", "above", "none", "bias", "width")
    show(f"{'metric':20s} {'setting':52s} {'over':14s} " + " ".join(f"{name:>6s}" for name in columns))
    rows: list[dict[str, Any]] = []
    for case in cases():
        if not case.metric.startswith(tuple(options.only)) or not case.units.startswith(options.units):
            continue
        started = time.perf_counter()
        found = cover(case, options.simulations)
        rows.append({"metric": case.metric, "setting": case.setting, "over": case.units, **vars(found)})
        numbers = " ".join(f"{value:6.3f}" for value in vars(found).values())
        seconds = f"{time.perf_counter() - started:.1f} s"
        show(f"{case.metric:20s} {case.setting:52s} {case.units:14s} {numbers}  {seconds}")
    if options.json:
        options.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1))


def show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
