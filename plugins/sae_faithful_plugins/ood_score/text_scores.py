"""Scores of texts that need no SAE and no hook: surprise, first tokens, unigrams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_faithful import Progress, derive_seed
from sae_faithful.metrics.auc import group_units
from sae_faithful.metrics.divergence import count_types, coverage, unigram_divergence, unigram_excess
from sae_faithful.metrics.intervals import Interval
from sae_faithful.metrics.surprise import auroc, first_token_excess, fpr_at_95, token_mean
from sae_faithful_plugins.ood_score.halves import common_size
from sae_faithful_plugins.ood_score.results import UNITS, Measurement, Value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sae_faithful import EvalContext, LanguageModel
    from sae_faithful_plugins.ood_score.halves import Halves

TOKENS_PER_FORWARD = 1_024
NO_SEQUENCE = Value(None, Interval(None, None, "no document begins in a half of some text"), 0)


def surprises(
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

    scores = np.zeros((len(sequences), 3))
    # Similar lengths together waste little on padding.
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True)
    start = 0
    with Progress(f"surprise of {text.name}", len(order), "sequences") as progress:
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


def first_tokens(model: LanguageModel, texts: Mapping[str, Halves]) -> Measurement:
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


def unigrams(
    model: LanguageModel, texts: Mapping[str, Halves], reference: str, n_unigrams: int
) -> Iterator[Measurement]:
    """Divergence from the reference, the same above its null, and coverage, from as many tokens of every text."""
    n = common_size(texts, reference, n_unigrams)
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
