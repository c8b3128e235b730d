"""Linear probes by scikit-learn. Whatever is learnt, scales and ranks too, is learnt from training texts alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_faithful import Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float, Int

    from sae_faithful_plugins.probing.representations import Key

Reduction = Literal["none", "select", "pca", "as_is"]
N_FOLDS = 5
MAX_ITERATIONS = 1_000


@dataclass(frozen=True)
class Probe:
    """What a fitted probe says of the test texts."""

    scores: Float[np.ndarray, " texts"]
    """Log odds of class 1."""
    C: float
    """Inverse strength of the L2 penalty that cross-validation chose."""
    columns: list[int] | None = None
    """The latents of a k-sparse probe, best first."""


@dataclass(frozen=True)
class Fit:
    """A probe to be fitted."""

    key: Key
    """Its name."""
    of: Key
    """The representation that it reads."""
    reduction: Reduction = "none"
    k: int = 0
    """Latents or principal components that are left by `reduction`."""


@dataclass(frozen=True)
class Preparation:
    """What is done to rows before the regression: columns picked, scaled, projected."""

    columns: Int[np.ndarray, " k"] | None
    steps: Sequence[Any]

    @classmethod
    def fit(cls, rows: Any, labels: Int[np.ndarray, " texts"], reduction: Reduction, k: int) -> Preparation:
        """Learn it from these rows."""
        from scipy import sparse
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import StandardScaler

        if reduction == "as_is":
            return cls(None, [])
        columns = rank_columns(rows, labels)[:k] if reduction == "select" else None
        picked = rows if columns is None else rows[:, columns]
        # Without centring a CSR stays one; the unpenalised intercept makes up for it exactly.
        scale = StandardScaler(with_mean=not sparse.issparse(rows)).fit(picked)
        if reduction != "pca":
            return cls(columns, [scale])
        # The randomised solver, seeded: a full decomposition in every fold would cost more than all fits.
        components = PCA(min(k, *rows.shape), svd_solver="randomized", random_state=0)
        projected = components.fit_transform(scale.transform(rows))
        # Scaled again: the penalty should not depend on a component's variance.
        return cls(None, [scale, components, StandardScaler().fit(projected)])

    def apply(self, rows: Any) -> Any:
        """Do it to these."""
        rows = rows if self.columns is None else rows[:, self.columns]
        for step in self.steps:
            rows = step.transform(rows)
        return rows


TRIED_TEXTS = 400


def probe_trial(n_texts: int, width: int, cs: Sequence[float], times: float) -> Trial:
    """One probe of random numbers that say a little of the label, in the place of `times` on `n_texts` texts."""
    tried = min(n_texts, TRIED_TEXTS)

    def fit() -> None:
        rng = np.random.default_rng(0)
        labels = np.arange(tried) % 2
        values = rng.standard_normal((2 * tried, width)).astype(np.float32)
        values[:tried, : max(1, width // 20)] += 0.3 * labels[:, None]
        fit_probe(values[:tried], labels, values[tried:], cs=cs, seed=0)

    return Trial(run=fit, times=times * n_texts / tried)


def fit_probe(
    train: Any,
    labels: Int[np.ndarray, " texts"],
    test: Any,
    *,
    cs: Sequence[float],
    seed: int,
    reduction: Reduction = "none",
    k: int = 0,
) -> Probe:
    """Logistic regression with an L2 penalty; C by five-fold cross-validated log loss on the training texts.

    Scales, ranks of latents and principal components are fitted within each fold, and for the final probe
    on all training texts.

    Args:
        train: [texts, width], dense or CSR.
        labels: 0 or 1.
        test: as `train`.
        cs: candidates for C.
        seed: of the folds.
        reduction: keep every column, scaled (`none`) or `as_is`; the `k` that tell the classes apart best
            (`select`); or `k` principal components (`pca`).
        k: how many.
    """
    from threadpoolctl import threadpool_limits

    # The solver multiplies small vectors thousands of times: a second thread doubles the time, or worse.
    with threadpool_limits(1, user_api="blas"):
        chosen = _choose_c(train, labels, cs, seed, reduction, k) if len(cs) > 1 else cs[0]
        preparation = Preparation.fit(train, labels, reduction, k)
        model = _logistic(chosen).fit(preparation.apply(train), labels)
        scores = np.asarray(model.decision_function(preparation.apply(test)), np.float64)
    columns = preparation.columns
    return Probe(scores, chosen, None if columns is None else [int(column) for column in columns])


def fit_probes(
    fits: Sequence[Fit],
    matrix: Callable[[Key], Any],
    labels: Int[np.ndarray, " texts"],
    *,
    cs: Sequence[float],
    seed: int,
    processes: int,
) -> Iterator[Probe]:
    """Each probe of `fits`, in their order, as `fit_probe` gives it, whatever the number of processes.

    Args:
        fits: which.
        matrix: a representation of all texts, those of the training set first.
        labels: of the training set.
        cs: candidates for C.
        seed: of the folds.
        processes: that fit at a time; each probe takes one core.
    """
    from joblib import Parallel, delayed

    def tasks() -> Iterator[Any]:
        for fit in fits:
            rows, n = matrix(fit.of), len(labels)
            options = {"cs": cs, "seed": seed, "reduction": fit.reduction, "k": fit.k}
            yield delayed(fit_probe)(rows[:n], labels, rows[n:], **options)

    # Processes, since filters of warnings and the threads of BLAS, which a fit sets, belong to a whole process.
    probes: Any = Parallel(n_jobs=min(processes, max(1, len(fits))), return_as="generator")(tasks())
    yield from probes


def fit_text_floor(
    train: Sequence[str],
    labels: Int[np.ndarray, " texts"],
    test: Sequence[str],
    *,
    cs: Sequence[float],
    seed: int,
) -> Probe:
    """The same regression on TF-IDF weights of words: what a probe can do without any model.

    Rows have length 1 and are not scaled, as is usual, so that the same penalty is a thousand times larger in C.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Any word, of one letter too: `I` tells reviewers apart.
    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    try:
        train_rows = words.fit_transform(train)
    except ValueError:  # no text has a word
        return majority(labels, len(test))
    larger = [1_000 * c for c in cs]
    return fit_probe(train_rows, labels, words.transform(test), cs=larger, seed=seed, reduction="as_is")


def majority(labels: Int[np.ndarray, " texts"], n_test: int) -> Probe:
    """The class that most training texts have, for every text."""
    share = float(labels.mean())
    # Equal shares predict class 0.
    return Probe(np.full(n_test, 1.0 if share > 0.5 else -1.0), 0.0)


def rank_columns(rows: Any, labels: Int[np.ndarray, " texts"]) -> Int[np.ndarray, " width"]:
    """Columns by their F statistic (`f_statistics`), largest first; constant ones last."""
    statistic = f_statistics(rows, labels)
    return np.argsort(-np.where(np.isnan(statistic), -1.0, statistic), kind="stable")


def f_statistics(rows: Any, labels: Int[np.ndarray, " texts"]) -> Float[np.ndarray, " width"]:
    """Each column's F statistic of a one-way analysis of variance between the classes; NaN where it is constant.

    For two classes that is the squared t of the difference of means; no sign says which class has more. Infinite for
    a column that varies between the classes alone.
    """
    from scipy import sparse
    from sklearn.feature_selection import f_classif
    from sklearn.utils.sparsefuncs import mean_variance_axis

    # Float32 would lose the difference of the sums of squares.
    exact: Any = rows.astype(np.float64)
    sparsely = sparse.issparse(rows)
    variance: np.ndarray = np.asarray(mean_variance_axis(exact, axis=0))[1] if sparsely else exact.var(axis=0)
    statistic = np.full(exact.shape[1], np.nan)
    varying = np.flatnonzero(variance > 0)
    if len(varying):
        # Infinite where nothing varies within the classes: such a column separates them.
        with np.errstate(divide="ignore"):
            statistic[varying] = f_classif(exact[:, varying], labels)[0]
    return statistic


def _choose_c(
    rows: Any, labels: np.ndarray, cs: Sequence[float], seed: int, reduction: Reduction, k: int
) -> float:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    losses = dict.fromkeys(sorted(cs), 0.0)
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed % 2**32)
    for fit, check in folds.split(np.zeros(len(labels)), labels):
        preparation = Preparation.fit(rows[fit], labels[fit], reduction, k)
        fit_rows, check_rows = preparation.apply(rows[fit]), preparation.apply(rows[check])
        # From the strongest penalty on, each solution is close to the next.
        model = _logistic(1.0, tolerance=1e-3, warm_start=True)
        for c in losses:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.set_params(C=c).fit(fit_rows, labels[fit])
            losses[c] += float(log_loss(labels[check], model.predict_proba(check_rows)[:, 1], labels=[0, 1]))
    return min(losses, key=lambda c: losses[c])


def _logistic(c: float, *, tolerance: float = 1e-4, warm_start: bool = False) -> Any:
    """L2 is scikit-learn's default penalty in every version, under whichever name (`penalty`, `l1_ratio`)."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=MAX_ITERATIONS, tol=tolerance, warm_start=warm_start)
