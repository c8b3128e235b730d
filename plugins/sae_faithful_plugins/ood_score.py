"""Evaluator `ood_score`: how far each text is from one that counts as in-distribution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sae_faithful import Artifact, EvalResult, RunError, UsageError, derive_seed, hookimpl
from sae_faithful.metrics.auc import group_units
from sae_faithful.metrics.divergence import count_types, coverage, unigram_divergence, unigram_excess
from sae_faithful.metrics.intervals import Interval, mean_interval
from sae_faithful.metrics.sae_shift import firing_shift, fvu_excess
from sae_faithful.metrics.surprise import auroc, first_token_excess, fpr_at_95, token_mean
from sae_faithful.metrics.two_sample import FOLDS, classifier_auc, knn_distance, mahalanobis, mean_over_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sae_faithful import ActivationBatch, EvalContext, LanguageModel, SAEHandle, TokenSet

Score = Literal["surprise", "first_token", "unigram", "knn", "classifier", "mahalanobis", "sae"]
ON_VECTORS = {"knn", "classifier", "mahalanobis", "sae"}

TOKENS_PER_FORWARD = 1_024
LATENTS_PER_CHUNK = 2**24
"""At most so many latents (64 MiB in float32) are held at a time."""
NO_DOCUMENT = -1

UNITS = {
    "nll": "nats/token",
    "nll_auroc": "AUC",
    "nll_fpr95": "share of sequences",
    "entropy": "nats/token",
    "entropy_auroc": "AUC",
    "entropy_fpr95": "share of sequences",
    "first_token_excess": "nats",
    "unigram_js": "nats",
    "unigram_js_excess": "nats",
    "coverage": "share of vocabulary",
    "knn_distance": "1 − cosine",
    "classifier_auc": "AUC",
    "mahalanobis": "squared distance/d",
    "fvu_excess": "share",
    "firing_shift": "nats/token",
}
WITHOUT_NULL = {"nll", "entropy", "unigram_js_excess"}
"""Of one text alone, or with the null taken off already."""


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("ood_score", OODScore)


@dataclass
class OODScore:
    """How far every text is from a reference text: surprise, unigrams, activations, and the SAEs' own error and rates.

    Every text's documents are split at random in two. What is scored is the second half of each text against the
    first half of the reference, so that the reference's own second half gives the null (`<metric>_null`).
    """

    monitor_budget: ClassVar[dict[str, Any]] = {"scores": ["sae"], "n_vectors": 250}
    """Inside training: the SAEs' own error and firing rates, which cost no whole forward."""

    reference: str | None = None
    """The source or dataset that counts as in-distribution; none: the first source."""
    scores: list[Score] = field(
        default_factory=lambda: ["surprise", "first_token", "unigram", "knn", "classifier", "sae"]
    )
    """Which to compute; `mahalanobis` is there too."""
    n_tokens: int = 20_000
    """At most so many tokens of each half are scored by whole forwards of the model."""
    n_vectors: int = 10_000
    """At most so many activations of each half, at every hook."""
    n_unigrams: int = 100_000
    """At most so many tokens of each half are counted for the unigram scores."""
    k: int = 10
    """`knn_distance` is to the k-th nearest reference."""

    def __post_init__(self) -> None:
        for name in ("n_tokens", "n_vectors", "n_unigrams", "k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not a positive number")
        if not self.scores:
            raise ValueError("scores: none asked for")

    def observers(self, context: EvalContext) -> list[Vectors]:
        """For each hook and text, activations at tokens drawn at random: the same tokens at every hook."""
        reference = self._reference(context)
        texts = self._texts(context)
        if not ON_VECTORS.intersection(self.scores):
            return []
        n = _common_size(texts, reference, self.n_vectors)
        hooks = dict.fromkeys(handle.hook for handle in context.handles)
        return [Vectors(hook, text, n, name == reference) for hook in hooks for name, text in texts.items()]

    def evaluate(self, context: EvalContext, observers: Sequence[Vectors]) -> Iterator[EvalResult | Artifact]:
        """Every score of every text, the null beside it, and the means over SAEs."""
        reference = self._reference(context)
        place = {"condition": f"reference={reference}"}
        texts = self._texts(context)
        lines: list[str] = []
        for measured in self._of_texts(context, texts, reference):
            yield from _rows(measured, reference, place)
            lines.append(_line(measured, reference, ""))
        for hook in dict.fromkeys(observer.hook for observer in observers):
            vectors = {one.text.name: one for one in observers if one.hook == hook}
            samples = _equal_samples(vectors, reference)
            for measured in self._of_vectors(context.seed, samples):
                yield from _rows(measured, reference, {**place, "hook": hook})
                lines.append(_line(measured, reference, f" at {hook}"))
            if "sae" in self.scores:
                handles = [handle for handle in context.handles if handle.hook == hook]
                yield from _of_saes(handles, samples, reference, place)
        title = f"Compared with the first half of {reference}; (null) is its own second half."
        yield Artifact(name="reading", kind="text", content="\n".join([title, "", *lines]))

    def _reference(self, context: EvalContext) -> str:
        name = self.reference or next(iter([*context.sources, *context.held_out]))
        if name not in context.held_out:
            raise UsageError(f"ood_score: unknown reference '{name}'; choices: {', '.join(context.held_out)}")
        return name

    def _texts(self, context: EvalContext) -> dict[str, Halves]:
        seed = derive_seed(context.seed, "ood_score", "halves")
        return {
            name: Halves(name, tokens, context.language_model, seed)
            for name, tokens in context.held_out.items()
        }

    def _of_texts(
        self, context: EvalContext, texts: Mapping[str, Halves], reference: str
    ) -> Iterator[Measurement]:
        """Scores that need no SAE and no hook."""
        if "surprise" in self.scores:
            yield from _surprise(context, texts, reference, self.n_tokens)
        if "first_token" in self.scores:
            yield _first_tokens(context.language_model, texts)
        if "unigram" in self.scores:
            yield from _unigrams(context.language_model, texts, reference, self.n_unigrams)

    def _of_vectors(self, seed: int, samples: Samples) -> Iterator[Measurement]:
        """Scores at one hook, of activations alone."""
        if "knn" in self.scores:
            yield Measurement("knn_distance", _knn(samples, self.k))
        if "classifier" in self.scores:
            yield Measurement("classifier_auc", _classifier(samples, seed))
        if "mahalanobis" in self.scores:
            yield Measurement("mahalanobis", _mahalanobis(samples))


@dataclass(frozen=True)
class Value:
    """A number with its interval, and how many things it is made from."""

    value: float | None
    interval: Interval
    n: int


NO_SEQUENCE = Value(None, Interval(None, None, "no document begins in a half of some text"), 0)


@dataclass(frozen=True)
class Measurement:
    """One metric, by text."""

    metric: str
    values: Mapping[str, Value]


class Halves:
    """One text with its documents split at random in two: the first half to refer to, the second to compare.

    Where the whole text is one document, rows are split instead. The split depends on the seed and the number
    of documents alone, so that one text under two names is split in one way.
    """

    def __init__(self, name: str, tokens: TokenSet, model: LanguageModel, seed: int) -> None:
        self.name = name
        self.tokens = tokens
        self.seed = seed
        self.special = np.asarray(model.special_token_ids, np.int64)
        ids, owners = tokens.arrays()
        rows = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape).reshape(-1)
        self.ids, owners = ids.reshape(-1), owners.reshape(-1)
        ordinary = ~np.isin(self.ids, self.special) & (owners != NO_DOCUMENT)
        numbers = np.unique(owners[owners != NO_DOCUMENT])
        by_document = len(numbers) >= 2
        self.units = np.searchsorted(numbers, owners) if by_document else rows
        """The document (or row) of each token."""
        order = np.random.default_rng(seed).permutation(len(numbers) if by_document else len(ids))
        # A lone unit is there to be compared.
        self._order = {"second": order[::2], "first": order[1::2]}
        second = np.zeros(len(order), bool)
        second[order[::2]] = True
        of_second = second[self.units]
        self._positions = {
            "first": np.flatnonzero(ordinary & ~of_second),
            "second": np.flatnonzero(ordinary & of_second),
        }
        bos = model.bos_token_id
        self._documents = tokens.documents(bos) if by_document else _with_bos(ids, bos)
        # Held-out text may begin in the middle of a document, which its BOS then does not precede.
        self._cut = by_document and bool(owners[0] == NO_DOCUMENT or self.ids[0] != bos)

    def size(self, half: str) -> int:
        """Ordinary tokens in a half."""
        return len(self._positions[half])

    def sample(self, half: str, n: int) -> np.ndarray:
        """Where `n` ordinary tokens of a half stand in the text, drawn at random, in order."""
        rng = np.random.default_rng(derive_seed(self.seed, half, n))
        return np.sort(rng.choice(self._positions[half], size=n, replace=False))

    def documents(self, half: str) -> list[np.ndarray]:
        """Whole documents of a half in random order, each from its BOS, that go beyond the prompt."""
        chosen = (self._documents[i] for i in self._order[half] if not (self._cut and i == 0))
        return [document for document in chosen if len(document) > self.tokens.prompt_length]

    def sequences(self, half: str) -> list[np.ndarray]:
        """The beginning of each document: as many tokens as a row has, so that all are predicted from as much."""
        return [document[: self.tokens.context_size] for document in self.documents(half)]

    def scored(self, sequence: np.ndarray) -> np.ndarray:
        """Which tokens of a sequence count: ordinary ones after the prompt."""
        counts = ~np.isin(sequence, self.special)
        counts[: self.tokens.prompt_length] = False
        return counts


class Vectors:
    """Activations of one text at one hook, at tokens fixed beforehand."""

    def __init__(self, hook: str, text: Halves, n: int, is_reference: bool) -> None:
        self.hook = hook
        self.text = text
        self.tokens = text.tokens
        halves = ("first", "second") if is_reference else ("second",)
        self._of_half = {half: text.sample(half, n) for half in halves}
        self._wanted = np.sort(np.concatenate(list(self._of_half.values())))
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []

    def update(self, batch: ActivationBatch) -> None:
        """Keep the activations at the wanted tokens of one batch."""
        import torch

        first = batch.first_row * self.tokens.context_size
        start, stop = np.searchsorted(self._wanted, [first, first + batch.tokens.numel()])
        local = torch.from_numpy(self._wanted[start:stop] - first).to(batch.mask.device)
        # The host leaves out positions that the SAEs were not trained on.
        local = local[batch.mask.flatten()[local]]
        kept = batch.activations.flatten(0, 1)[local.to(batch.activations.device)]
        self._seen.append((local.cpu().numpy() + first, kept.float().cpu().numpy()))

    def of_half(self, half: str) -> Sample:
        """The vectors of one half, in reading order."""
        where = np.concatenate([positions for positions, _ in self._seen])
        vectors = np.concatenate([kept for _, kept in self._seen])
        mine = np.isin(where, self._of_half[half])
        return Sample(vectors[mine], self.text.units[where[mine]])


@dataclass(frozen=True)
class Sample:
    """Vectors [n, d], and the document that each one's token stands in."""

    vectors: np.ndarray
    units: np.ndarray

    def drawn(self, n: int, seed: int) -> Sample:
        """`n` of them at random, in order."""
        if n == len(self.units):
            return self
        kept = np.sort(np.random.default_rng(seed).choice(len(self.units), size=n, replace=False))
        return Sample(self.vectors[kept], self.units[kept])


@dataclass(frozen=True)
class Samples:
    """At one hook, as many vectors of the reference's first half as of each text's second half."""

    reference: Sample
    texts: Mapping[str, Sample]

    @property
    def n(self) -> int:
        """Vectors of each."""
        return len(self.reference.units)


def _common_size(texts: Mapping[str, Halves], reference: str, at_most: int) -> int:
    """How many tokens every text can give: the same number of each."""
    sizes = {name: text.size("second") for name, text in texts.items()}
    sizes[reference] = min(sizes[reference], texts[reference].size("first"))
    name = min(sizes, key=lambda name: sizes[name])
    if sizes[name] == 0:
        raise RunError(
            f"ood_score: '{name}' is too little text to compare: a half of it has no token; give more"
        )
    return min(at_most, sizes[name])


def _equal_samples(vectors: Mapping[str, Vectors], reference: str) -> Samples:
    samples = {name: one.of_half("second") for name, one in vectors.items()}
    referred = vectors[reference].of_half("first")
    n = min(len(one.units) for one in [referred, *samples.values()])
    seed = vectors[reference].text.seed
    return Samples(referred.drawn(n, seed), {name: sample.drawn(n, seed) for name, sample in samples.items()})


def _surprise(
    context: EvalContext, texts: Mapping[str, Halves], reference: str, n_tokens: int
) -> Iterator[Measurement]:
    """NLL and entropy per sequence, from one whole forward of each: means, AUROC and FPR@95."""
    wanted = [(texts[reference], "first"), *((text, "second") for text in texts.values())]
    sequences = [(text, text.sequences(half)) for text, half in wanted]
    n = min(n_tokens, *(sum(int(text.scored(one).sum()) for one in group) for text, group in sequences))
    if n == 0:
        for metric in UNITS:
            if metric.startswith(("nll", "entropy")):
                yield Measurement(metric, dict.fromkeys(texts, NO_SEQUENCE))
        return
    first, *scores = (
        score_sequences(_holding(group, text, n), text, context.language_model) for text, group in sequences
    )
    of_text = dict(zip(texts, scores, strict=True))
    for column, metric in enumerate(("nll", "entropy")):
        yield Measurement(
            metric, {name: Value(*token_mean(one[:, column], one[:, 2]), n) for name, one in of_text.items()}
        )
        for suffix, measure in (("auroc", auroc), ("fpr95", fpr_at_95)):
            seed = derive_seed(context.seed, "ood_score", metric, suffix)
            values: dict[str, Value] = {}
            for name, one in of_text.items():
                means = one[:, column] / one[:, 2], first[:, column] / first[:, 2]
                values[name] = Value(*measure(*means, np.random.default_rng(seed)), len(one))
            yield Measurement(f"{metric}_{suffix}", values)


def score_sequences(sequences: Sequence[np.ndarray], text: Halves, model: LanguageModel) -> np.ndarray:
    """Σ −log p, ΣH and number of the scored tokens of each sequence [sequences, 3]; whole forwards."""
    import torch
    from tqdm import tqdm

    scores = np.zeros((len(sequences), 3))
    # Similar lengths together waste little on padding.
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True)
    start = 0
    with tqdm(total=len(order), desc=f"surprise of {text.name}", leave=False) as progress:
        while start < len(order):
            longest = len(sequences[order[start]])
            batch = order[start : start + max(1, TOKENS_PER_FORWARD // longest)]
            # Padding stands after every scored token, and attention looks back only.
            tokens = torch.full((len(batch), longest), model.bos_token_id, dtype=torch.long)
            counts = torch.zeros(len(batch), longest, dtype=torch.bool)
            for row, i in enumerate(batch):
                tokens[row, : len(sequences[i])] = torch.from_numpy(sequences[i].astype(np.int64))
                counts[row, : len(sequences[i])] = torch.from_numpy(text.scored(sequences[i]))
            log_p = torch.log_softmax(model.logits(tokens)[:, :-1].float(), dim=-1).cpu()
            surprise = -log_p.gather(-1, tokens[:, 1:, None])[..., 0].double()
            entropy = -(log_p.exp() * log_p).sum(-1).double()
            for column, values in enumerate((surprise, entropy, torch.ones_like(surprise))):
                scores[batch, column] = values.where(counts[:, 1:], 0).sum(dim=1).numpy()
            start += len(batch)
            progress.update(len(batch))
    return scores


def _holding(sequences: Sequence[np.ndarray], text: Halves, n: int) -> list[np.ndarray]:
    """Sequences that hold exactly the first `n` scored tokens; the last one may be cut. Empty ones are left out."""
    chosen: list[np.ndarray] = []
    for sequence in sequences:
        scored = text.scored(sequence).cumsum()
        if n <= 0:
            break
        if scored[-1] > n:
            sequence = sequence[: int(np.searchsorted(scored, n)) + 1]
        if scored[-1]:
            chosen.append(sequence)
        n -= int(scored[-1])
    return chosen


def _first_tokens(model: LanguageModel, texts: Mapping[str, Halves]) -> Measurement:
    """Each text's first tokens against the model's prediction of them: one forward of its prompt, BOS as a rule."""
    documents = {name: text.documents("second") for name, text in texts.items()}
    n = min(len(group) for group in documents.values())
    predictions: dict[bytes, np.ndarray] = {}
    values: dict[str, Value] = {}
    for name, group in documents.items():
        length = texts[name].tokens.prompt_length
        scores = np.zeros((n, 2))
        for row, document in enumerate(group[:n]):
            key = document[:length].astype(np.int64).tobytes()
            if key not in predictions:
                predictions[key] = _next_token(model, document[:length])
            log_p = predictions[key]
            scores[row] = -log_p[document[length]], -(np.exp(log_p) * log_p).sum()
        values[name] = Value(*first_token_excess(scores[:, 0], scores[:, 1]), n) if n else NO_SEQUENCE
    return Measurement("first_token_excess", values)


def _next_token(model: LanguageModel, prompt: np.ndarray) -> np.ndarray:
    import torch

    logits = model.logits(torch.from_numpy(prompt.astype(np.int64))[None])[0, -1]
    return torch.log_softmax(logits.double(), dim=-1).cpu().numpy()


def _unigrams(
    model: LanguageModel, texts: Mapping[str, Halves], reference: str, n_unigrams: int
) -> Iterator[Measurement]:
    n = _common_size(texts, reference, n_unigrams)
    samples = {name: _tokens(text, "second", n) for name, text in texts.items()}
    referred = _tokens(texts[reference], "first", n)
    vocabulary = model.vocab_size - len(texts[reference].special)
    js: dict[str, Value] = {}
    excess: dict[str, Value] = {}
    covered: dict[str, Value] = {}
    for name, sample in samples.items():
        together = [sample, samples[reference], referred]
        types = np.unique(np.concatenate([tokens for tokens, _ in together]))
        text, null, first = (count_types(tokens, clusters, types) for tokens, clusters in together)
        js[name] = Value(*unigram_divergence(text, first), n)
        covered[name] = Value(*coverage(text, vocabulary), n)
        if name == reference:
            excess[name] = Value(0.0, Interval(None, None, "the reference is its own null"), n)
        else:
            excess[name] = Value(*unigram_excess(text, null, first), n)
    yield Measurement("unigram_js", js)
    yield Measurement("unigram_js_excess", excess)
    yield Measurement("coverage", covered)


def _tokens(text: Halves, half: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and the clusters they stand in."""
    positions = text.sample(half, n)
    return text.ids[positions], group_units(text.units[positions])


def _knn(samples: Samples, k: int) -> dict[str, Value]:
    if samples.n < k:
        return _missing(samples, "fewer reference vectors than k")
    return {
        name: Value(
            *mean_over_tokens(knn_distance(sample.vectors, samples.reference.vectors, k), sample.units),
            samples.n,
        )
        for name, sample in samples.texts.items()
    }


def _classifier(samples: Samples, seed: int) -> dict[str, Value]:
    documents = (len(np.unique(one.units)) for one in [samples.reference, *samples.texts.values()])
    if min(documents) < FOLDS:
        return _missing(samples, f"fewer than {FOLDS} documents in a half: not enough for the folds")
    reference = samples.reference
    return {
        name: Value(
            *classifier_auc(
                sample.vectors, sample.units, reference.vectors, reference.units,
                np.random.default_rng(derive_seed(seed, "ood_score", "classifier_auc")),
            ),
            samples.n,
        )
        for name, sample in samples.texts.items()
    }  # fmt: skip


def _mahalanobis(samples: Samples) -> dict[str, Value]:
    return {
        name: Value(
            *mean_over_tokens(mahalanobis(sample.vectors, samples.reference.vectors), sample.units), samples.n
        )
        for name, sample in samples.texts.items()
    }


def _missing(samples: Samples, reason: str) -> dict[str, Value]:
    return {name: Value(None, Interval(None, None, reason), samples.n) for name in samples.texts}


def _of_saes(
    handles: Sequence[SAEHandle], samples: Samples, reference: str, place: Mapping[str, Any]
) -> Iterator[EvalResult]:
    """`fvu_excess` and `firing_shift` of every SAE, and their means over the SAEs of a source."""
    values: dict[tuple[str, ...], list[float]] = {}
    for handle in handles:
        first = _sae_sums(handle, samples.reference)
        sums = {name: _sae_sums(handle, sample) for name, sample in samples.texts.items()}
        for column, (metric, measure) in enumerate(
            (("fvu_excess", fvu_excess), ("firing_shift", firing_shift))
        ):
            of_text = {
                name: Value(*measure(one[column], first[column]), samples.n) for name, one in sums.items()
            }
            for row in _rows(Measurement(metric, of_text), reference, {**place, **handle.identity}):
                yield row
                assert row.value is not None and row.dataset is not None
                key = (row.metric, row.unit, handle.source, handle.hook, handle.variant, row.dataset)
                values.setdefault(key, []).append(row.value)
    for (metric, unit, source, hook, variant, dataset), seeds in values.items():
        low, high, reason = mean_interval(seeds)
        yield EvalResult(
            metric=metric, value=float(np.mean(seeds)), unit=unit, n=len(seeds), ci_low=low, ci_high=high,
            reason=reason, source=source, hook=hook, variant=variant, dataset=dataset, **place,
        )  # fmt: skip


def _sae_sums(handle: SAEHandle, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Per cluster of documents: the sums `fvu` takes, and the number of tokens before each latent's firings."""
    import torch

    clusters = group_units(sample.units)
    shape = int(clusters[-1]) + 1
    errors = np.zeros((shape, 3 + sample.vectors.shape[1]))
    firings = np.zeros((shape, 1 + handle.d_sae))
    step = max(1, LATENTS_PER_CHUNK // handle.d_sae)
    for start in range(0, len(clusters), step):
        part = torch.from_numpy(sample.vectors[start : start + step])
        latents = handle.encode(part)
        reconstruction = handle.decode(latents, part).to(part.device)
        exact = part.double()
        square = (exact - reconstruction.double()).square().sum(1, keepdim=True)
        one = torch.ones_like(square)
        columns = torch.cat([one, square, exact.square().sum(1, keepdim=True), exact], dim=1)
        where = torch.from_numpy(clusters[start : start + step])
        # Clusters are runs of neighbours: each chunk touches few.
        for cluster in where.unique().tolist():
            mine = where == cluster
            errors[cluster] += columns[mine].sum(0).numpy()
            firings[cluster, 0] += int(mine.sum())
            firings[cluster, 1:] += (latents[mine.to(latents.device)] > 0).sum(0).cpu().numpy()
    return errors, firings


def _rows(measured: Measurement, reference: str, place: Mapping[str, Any]) -> Iterator[EvalResult]:
    """A row for every text, and the null: what the reference's own second half scores."""
    named = [(measured.metric, name, value) for name, value in measured.values.items()]
    if measured.metric not in WITHOUT_NULL:
        named.append((f"{measured.metric}_null", reference, measured.values[reference]))
    for metric, dataset, value in named:
        low, high, reason = value.interval
        yield EvalResult(
            metric=metric, value=value.value, unit=UNITS[measured.metric], n=value.n, ci_low=low, ci_high=high,
            reason=reason, dataset=dataset, **place,
        )  # fmt: skip


def _line(measured: Measurement, reference: str, where: str) -> str:
    """One metric of all texts."""
    cells: list[str] = []
    for name, one in measured.values.items():
        label = f"{name} (null)" if name == reference and measured.metric not in WITHOUT_NULL else name
        value = "none" if one.value is None else f"{one.value:.4g}"
        low, high, _ = one.interval
        bounds = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
        cells.append(f"{label} {value}{bounds}")
    return f"{measured.metric}{where} ({UNITS[measured.metric]}): {'; '.join(cells)}"


def _with_bos(rows: np.ndarray, bos: int) -> list[np.ndarray]:
    """Rows as documents, each beginning with BOS."""
    return [row if row[0] == bos else np.concatenate([np.array([bos], row.dtype), row]) for row in rows]
