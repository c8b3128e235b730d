"""Step 1: each source and dataset becomes tokens on disk, with a card that says what they are."""

from __future__ import annotations

import contextlib
import logging
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful.faults import is_out_of_memory, out_of_memory_named
from sae_faithful.hashing import derive_seed
from sae_faithful.interfaces import EvalResult, RunError
from sae_faithful.metrics.typicality import LIMIT, TypicalityGap, beyond, typicality_gap
from sae_faithful.progress import Progress
from sae_faithful.run_folder import Step, cache_dir, write_json
from sae_faithful.source_request import SourceRequest
from sae_faithful.stored import blamed_on, read_json
from sae_faithful.timings import begins, timed
from sae_faithful.tokens import TokenSet

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    from sae_faithful.language_model import LanguageModel
    from sae_faithful.plan import Plan, PlannedText, TextSettings
    from sae_faithful.run_folder import RunFolder

log = logging.getLogger(__name__)

TRAIN_FILE = "train.arrow"
HELD_OUT_FILE = "held_out.arrow"
CARD_FILE = "card.json"
TYPICALITY_FILE = "typicality.json"

RANDOM_TOKENS = "uniform_random_tokens"
RANDOM_ROWS, RANDOM_ROW_TOKENS = 60, 64
"""So far from any model's text that a few short rows settle it."""

HOW_TO_GO_ON = (
    "usual causes: another engine's sampling, another dtype, or another model on the server; the data is kept, and "
    "--set typicality_limit=null (or another number) goes on with it"
)

LONGEST_SCORED = 1_024
TOKENS_PER_FORWARD = 1_024


@dataclass(frozen=True)
class Text:
    """A source or dataset on disk."""

    name: str
    train: TokenSet | None
    """None for datasets."""
    held_out: TokenSet
    card: dict[str, Any]


def prepare_texts(
    plan: Plan, config: TextSettings, model: LanguageModel, folder: RunFolder
) -> dict[str, Text]:
    """Load every source and dataset that is not on disk yet; sources first.

    Raises:
        RunError: a source gives rows the model cannot take, or too few of them.
    """
    texts: dict[str, Text] = {}
    for planned in plan.texts:
        prepare_text(planned, config, model, folder)
        texts[planned.name] = open_text(folder.data_dir(planned.name))
    if plan.texts:
        score_random_tokens(config, model, folder)
    return texts


def prepare_text(planned: PlannedText, config: TextSettings, model: LanguageModel, folder: RunFolder) -> None:
    """Load one source or dataset, if it is not on disk yet.

    Raises:
        RunError: the source gives rows the model cannot take, or too few of them.
    """
    step = planned.step(model.identity)
    if folder.finished(step):
        log.info("data/%s: reused", planned.name)
        return
    begins(f"data/{planned.name}", f"{planned.n_tokens:,} tokens from {planned.plugin}")
    kind = "sources" if planned.trained_on else "datasets"
    advice = (
        f"what is drawn depends on the batch, so it is not made smaller on the way; lower "
        f"{kind}.{planned.name}.batch_size, if {planned.plugin} has one"
    )
    with timed(f"data/{planned.name}"), out_of_memory_named(f"making data/{planned.name}", advice):
        _write_text(planned, config, model, folder, step)


def open_text(folder: Path) -> Text:
    """What step 1 wrote, memory-mapped."""
    card = read_json(folder / CARD_FILE)
    with blamed_on(folder / CARD_FILE):
        name, prompt_length = str(card["name"]), int(card["prompt_length"])
    train = folder / TRAIN_FILE
    return Text(
        name=name,
        train=TokenSet.open(train, prompt_length=prompt_length) if train.exists() else None,
        held_out=TokenSet.open(folder / HELD_OUT_FILE, prompt_length=prompt_length),
        card=card,
    )


def load_tokens(
    planned: PlannedText, config: TextSettings, model: LanguageModel, scratch: Path | None = None
) -> TokenSet:
    """What the source gives, checked; in files in `scratch`, if it is given.

    Raises:
        RunError: rows of the wrong length, ids outside the vocabulary, too few tokens to train on.
    """
    request = SourceRequest(
        name=planned.name,
        n_tokens=planned.n_tokens,
        context_size=config.context_size,
        prepend_bos=config.prepend_bos,
        seed=config.seed,
        cache_dir=cache_dir(),
        language_model=model,
        scratch=scratch,
    )
    tokens = planned.source.load(request)
    owner = f"source plugin '{planned.plugin}' (for '{planned.name}')"
    tokens.check(owner, context_size=config.context_size, vocab_size=model.vocab_size)
    wanted = planned.n_tokens // config.context_size * config.context_size
    if planned.trained_on and tokens.n_tokens < wanted:
        raise RunError(
            f"{owner} gave {tokens.n_tokens:,} distinct tokens of the {wanted:,} that every source must give; "
            f"lower sources.{planned.name}.n_tokens or give it more text"
        )
    return tokens.head(planned.n_tokens // config.context_size)


def typicality_results(
    plan: Plan, config: TextSettings, model: LanguageModel, folder: RunFolder
) -> list[EvalResult]:
    """The typicality gaps on the cards of every text and of uniform random tokens, as rows of results."""
    steps = [text.step(model.identity) for text in plan.texts]
    if steps:
        steps.append(random_tokens_step(config, model))
    rows: list[EvalResult] = []
    for step in steps:
        card = read_json(folder.root / step.path / CARD_FILE)
        name, gap = card["name"], card["typicality"]
        common: dict[str, Any] = {
            "evaluator": "typicality",
            "dataset": name,
            "n": gap["n_tokens"],
            "config_hash": step.hash,
        }
        rows.append(
            EvalResult(
                metric="typicality_gap", value=gap["gap"], unit="nats/token",
                ci_low=gap["ci_low"], ci_high=gap["ci_high"], reason=gap["reason"], **common,
            )
        )  # fmt: skip
        reason = "a standard normal deviate when the text is the model's own"
        rows.append(EvalResult(metric="typicality_z", value=gap["z"], unit="SD", reason=reason, **common))
    return rows


def claims_to_be_own(made: Mapping[str, Any]) -> bool:
    """Whether a source's card says that its text is the model's own, drawn from its whole distribution."""
    return bool(made.get("own_text")) and made.get("temperature", 1) == 1 and made.get("top_p", 1) == 1


def not_its_own(card: Mapping[str, Any], limit: float | None) -> str | None:
    """What is wrong with a text that claims to be the model's own; None if nothing is, or if it claims no such thing.

    Without a `limit` it is held against the default one: who lets a run go on still reads of it in the report.
    """
    limit = LIMIT if limit is None else limit
    gap = card["typicality"]
    if not claims_to_be_own(card["made"]) or not beyond(
        gap["gap"], gap["ci_low"], gap["ci_high"], gap["z"], limit
    ):
        return None
    interval = "" if gap["ci_low"] is None else f" [{gap['ci_low']:+.3f}, {gap['ci_high']:+.3f}]"
    return (
        f"this text is not the model's own, as it claims to be: its typicality gap is {gap['gap']:+.3f}{interval} "
        f"nats/token (z {gap['z']:+.1f}), beyond the limit of ±{limit:g}"
    )


def refuse_what_is_not_its_own(text: Text, limit: float | None) -> None:
    """Stop a run whose text is not the model's own, though it claims to be; what there is stays on disk.

    Raises:
        RunError: its typicality gap is beyond `limit`; None: never.
    """
    if limit is not None and (wrong := not_its_own(text.card, limit)):
        raise RunError(f"data/{text.name}: {wrong}; {HOW_TO_GO_ON}")


def doubtful_texts(texts: Mapping[str, Text], limit: float | None) -> dict[str, str]:
    """For the manifest: `not_its_own` of the texts of which there is something to say."""
    found = {name: not_its_own(text.card, limit) for name, text in texts.items()}
    return {name: wrong for name, wrong in found.items() if wrong}


def measure_typicality(
    documents: Sequence[np.ndarray],
    prompt_length: int,
    model: LanguageModel,
    n_tokens: int,
    seed: int,
    name: str = "a text",
) -> TypicalityGap:
    """Score up to `n_tokens` tokens of whole documents, drawn at random, by fresh forward passes.

    Every token after the prompt counts, EOS too where it was drawn: to leave a token out because of what it
    is would bias the mean. Documents longer than 1,024 tokens are scored up to there.
    """
    limit = min(model.context_limit or LONGEST_SCORED, LONGEST_SCORED)
    order = np.random.default_rng(seed).permutation(len(documents))
    chosen: list[np.ndarray] = []
    scored = 0
    for index in order:
        document = documents[index][:limit]
        if len(document) <= prompt_length:
            continue
        chosen.append(document[: prompt_length + n_tokens - scored])
        scored += len(chosen[-1]) - prompt_length
        if scored >= n_tokens:
            break
    # Similar lengths together waste little on padding; the order does not matter to sums.
    chosen.sort(key=len)
    parts: list[tuple[np.ndarray, ...]] = []
    start, at_once = 0, TOKENS_PER_FORWARD
    progress = Progress(f"typicality of {name}", len(chosen), "documents")
    while start < len(chosen):
        size = max(1, at_once // len(chosen[min(start + 1, len(chosen) - 1)]))
        batch = chosen[start : start + size]
        try:
            scored_batch = _score(batch, prompt_length, model)
        except Exception as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            at_once //= 2
            log.warning("out of memory: scoring %s %d tokens at a time", name, at_once)
            continue
        parts += [(*scores, np.full(len(scores[0]), start + i)) for i, scores in enumerate(scored_batch)]
        start += len(batch)
        progress.update(len(batch))
    progress.close()
    surprise, entropy, variance, document = (np.concatenate(column) for column in zip(*parts, strict=True))
    return typicality_gap(surprise, entropy, variance, document)


def _score(
    documents: Sequence[np.ndarray], prompt_length: int, model: LanguageModel
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Surprise, entropy and variance of every drawn token of each document."""
    import torch

    longest = max(len(document) for document in documents)
    # Padding stands after every scored token, and attention looks back only: its value is of no matter.
    tokens = torch.full((len(documents), longest), model.bos_token_id, dtype=torch.long)
    for row, document in enumerate(documents):
        tokens[row, : len(document)] = torch.from_numpy(document.astype(np.int64))
    logits = model.logits(tokens)[:, :-1].float()
    log_p = torch.log_softmax(logits, dim=-1)
    del logits
    p = log_p.exp()
    surprise = -log_p.gather(-1, tokens[:, 1:, None].to(log_p.device))[..., 0]
    log_p.masked_fill_(p == 0, 0.0)  # tokens a model rules out, at minus infinity, count nothing
    entropy = -(p * log_p).sum(-1)
    variance = (p * log_p.square()).sum(-1) - entropy.square()
    if not bool(torch.isfinite(entropy.sum())):
        raise RunError(
            f"next-token probabilities of {model.name} are not finite; load it in another dtype "
            "(model_from_pretrained_kwargs)"
        )
    columns = [column.double().cpu().numpy() for column in (surprise, entropy, variance)]
    return [
        tuple(column[row, prompt_length - 1 : len(document) - 1] for column in columns)  # pyright: ignore[reportReturnType]
        for row, document in enumerate(documents)
    ]


def _write_text(
    planned: PlannedText, config: TextSettings, model: LanguageModel, folder: RunFolder, step: Step
) -> None:
    with folder.writing(step) as partial, _scratch(partial) as scratch:
        tokens = load_tokens(planned, config, model, scratch)
        if planned.trained_on:
            train, held_out = tokens.split()
            train.save(partial / TRAIN_FILE)
        else:
            train, held_out = None, tokens
        held_out.save(partial / HELD_OUT_FILE)
        # Read back from disk: what is proven is what will be trained on.
        proven = TokenSet.open(
            partial / (TRAIN_FILE if train is not None else HELD_OUT_FILE), card=tokens.card
        )
        log.info("data/%s: measuring the typicality gap", planned.name)
        gap = measure_typicality(
            proven.documents_as_given(model.bos_token_id),
            tokens.prompt_length,
            model,
            config.typicality_tokens,
            derive_seed(config.seed, "typicality", planned.name),
            planned.name,
        )
        card = {
            "name": planned.name,
            "plugin": planned.plugin,
            "options": asdict(planned.source),  # pyright: ignore[reportArgumentType]
            "model": model.identity,
            "context_size": config.context_size,
            "prompt_length": tokens.prompt_length,
            "rows": {"train": len(train) if train is not None else 0, "held_out": len(held_out)},
            "made": dict(tokens.card),
            "typicality": _plain_gap(gap),
        }
        if wrong := not_its_own(card, None):
            card["warning"] = wrong
        write_json(partial / CARD_FILE, card)
        write_json(partial / TYPICALITY_FILE, _by_document(planned.name, gap))


@contextlib.contextmanager
def _scratch(folder: Path) -> Generator[Path]:
    """A folder on the disk that the step's files go to."""
    path = folder / "scratch"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def score_random_tokens(config: TextSettings, model: LanguageModel, folder: RunFolder) -> None:
    """Measure the typicality gap of uniform random tokens, if it is not on disk yet."""
    step = random_tokens_step(config, model)
    if folder.finished(step):
        return
    rng = np.random.default_rng(derive_seed(config.seed, "typicality", RANDOM_TOKENS))
    rows = model.random_rows(
        RANDOM_ROWS, min(RANDOM_ROW_TOKENS, model.context_limit or RANDOM_ROW_TOKENS), rng
    )
    begins(step.path, f"{rows.size:,} tokens")
    with timed(step.path), folder.writing(step) as partial:
        gap = measure_typicality(list(rows), 1, model, rows.size, config.seed, "random tokens")
        write_json(partial / CARD_FILE, {"name": RANDOM_TOKENS, "typicality": _plain_gap(gap)})
        write_json(partial / TYPICALITY_FILE, _by_document(RANDOM_TOKENS, gap))


def random_tokens_step(config: TextSettings, model: LanguageModel) -> Step:
    """The reference beside every text: its typicality gap is measured once a run folder."""
    return Step(f"references/{RANDOM_TOKENS}", {"seed": config.seed}, {"model": model.identity})


def _plain_gap(gap: TypicalityGap) -> dict[str, Any]:
    return {
        "gap": gap.gap,
        "ci_low": gap.interval.low,
        "ci_high": gap.interval.high,
        "reason": gap.interval.reason,
        "z": gap.z,
        "n_tokens": gap.n_tokens,
        "n_documents": gap.n_documents,
    }


def _by_document(name: str, gap: TypicalityGap) -> dict[str, Any]:
    """What a distribution over documents is drawn from; in the order of their lengths."""
    return {
        "name": name,
        "unit": "nats/token",
        "gaps": gap.document_gaps.round(4).tolist(),
        "n_tokens": gap.document_tokens.tolist(),
    }
