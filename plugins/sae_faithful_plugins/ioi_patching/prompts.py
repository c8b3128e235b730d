"""Pairs of prompts that differ in what the model should say next: written here, or read from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from sae_faithful import UsageError
from sae_faithful_plugins.ioi_patching.templates import FRAMES, NAMES, PLACES, THINGS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from sae_faithful import LanguageModel

TRIES_PER_PAIR = 100
FIELDS = ("base", "target", "answer", "distractor")


@dataclass(frozen=True)
class Pair:
    """Two prompts, each up to where the model is to go on."""

    base: str
    target: str
    """The same, but for what makes another continuation right."""
    answer: str | None = None
    """The continuation of `base` that is right, as it would stand in the text, its space included."""
    distractor: str | None = None
    """The continuation that one would give who does not know what the sentence says."""


@dataclass(frozen=True)
class TokenPair:
    """A pair as token ids of equal length, without BOS."""

    base: tuple[int, ...]
    target: tuple[int, ...]
    answer: int | None
    distractor: int | None


def read_pairs(path: Path) -> list[tuple[int, Pair]]:
    """Pairs of a JSONL file, each with its line number: `base` and `target`, `answer` and `distractor` if known.

    Raises:
        ValueError: no such file, fewer than two pairs, or a line that is no pair (the line is named).
    """
    if not path.is_file():
        raise ValueError(f"pairs: there is no file {path}")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"pairs: {path} cannot be read: {error}") from None
    pairs = [
        (number, _pair(line, f"{path}, line {number}"))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if len(pairs) < 2:
        raise ValueError(f"{path} has {len(pairs)} pairs; some choose features, others measure: at least 2")
    return pairs


def _pair(line: str, where: str) -> Pair:
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or " ".join(str(error).split())
        raise ValueError(f"{where}: no JSON ({reason})") from None
    if not isinstance(content, dict):
        raise ValueError(f'{where}: not an object {{"base": ..., "target": ...}}')
    for name in content:
        if name not in FIELDS:
            raise ValueError(f"{where}: unknown field '{name}'; fields: {', '.join(FIELDS)}")
    for name in FIELDS:
        value = content.get(name)
        if value is None and name in FIELDS[2:]:
            continue
        if not isinstance(value, str) or not value.strip() or not _is_text(value):
            raise ValueError(f"{where}: '{name}' is not a text")
    pair = Pair(**content)
    if pair.base == pair.target:
        raise ValueError(f"{where}: base and target are identical")
    if (pair.answer is None) != (pair.distractor is None):
        raise ValueError(f"{where}: 'answer' and 'distractor' come together or not at all")
    return pair


def _is_text(value: str) -> bool:
    """JSON can say half of a pair of surrogates, which no tokenizer takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def tokenize_pairs(model: LanguageModel, pairs: Sequence[tuple[int, Pair]], path: Path) -> list[TokenPair]:
    """The pairs as the model's tokens.

    Raises:
        UsageError: prompts of a pair have different lengths or the same tokens, do not fit into the model, or an
            answer is not one token (the line is named).
    """
    found: list[TokenPair] = []
    for number, pair in pairs:
        where = f"{path}, line {number}"
        base, target = token_ids(model, pair.base), token_ids(model, pair.target)
        if len(base) != len(target):
            raise UsageError(
                f"{where}: base has {len(base)} tokens and target {len(target)}; positions must correspond"
            )
        if base == target:
            raise UsageError(f"{where}: base and target are the same tokens")
        # BOS takes a place.
        if model.context_limit is not None and len(base) + 1 > model.context_limit:
            raise UsageError(f"{where}: {len(base)} tokens; the model takes {model.context_limit}")
        ends = [
            None if word is None else _last_token(model, pair.base, word)
            for word in (pair.answer, pair.distractor)
        ]
        for word, token in zip((pair.answer, pair.distractor), ends, strict=True):
            if word is not None and token is None:
                raise UsageError(
                    f"{where}: '{word}' is not one token after base (does it begin with a space?)"
                )
        found.append(TokenPair(base, target, ends[0], ends[1]))
    return found


def draw_ioi(model: LanguageModel, n: int, rng: np.random.Generator) -> tuple[list[Pair], list[TokenPair]]:
    """`n` different pairs of indirect object identification (Wang et al. 2022, arXiv 2211.00593).

    The base sentence names two people, then one of them again who gives something: to the other one, who is the
    answer and is left off. In the target sentence a third name stands for the other one. Both have one length and
    differ in one token. As many name the answer first as second.

    Raises:
        UsageError: the tokenizer has too few of our words as single tokens.
    """
    words = {
        kind: single_tokens(model, every)
        for kind, every in (("names", NAMES), ("places", PLACES), ("things", THINGS))
    }
    if len(words["names"]) < 3 or not words["places"] or not words["things"]:
        counts = ", ".join(f"{len(some)} {kind}" for kind, some in words.items())
        raise UsageError(
            f"the tokenizer of {model.name} has only {counts} as single tokens, too few for sentences; "
            "give your own: pairs: FILE.jsonl"
        )
    pairs: dict[Pair, TokenPair] = {}
    for _, answer_first in product(range(TRIES_PER_PAIR * n), (True, False)):
        if len(pairs) == n:
            break
        pair = _draw(words, rng, answer_first=answer_first)
        tokens = _differing_in_one(model, pair)
        if tokens is not None:
            pairs[pair] = tokens
    if len(pairs) < n:
        raise UsageError(
            f"only {len(pairs)} of {n} sentences could be made with the tokenizer of {model.name}"
        )
    return list(pairs), list(pairs.values())


def _draw(words: dict[str, list[str]], rng: np.random.Generator, *, answer_first: bool) -> Pair:
    answer, subject, other = (str(name) for name in rng.choice(words["names"], 3, replace=False))
    frame, place, thing = (str(rng.choice(some)) for some in (FRAMES, words["places"], words["things"]))
    first, second = ("{answer}", subject) if answer_first else (subject, "{answer}")
    text = frame.format(first=first, second=second, subject=subject, place=place, thing=thing)
    return Pair(
        base=text.format(answer=answer), target=text.format(answer=other),
        answer=f" {answer}", distractor=f" {subject}",
    )  # fmt: skip


def _differing_in_one(model: LanguageModel, pair: Pair) -> TokenPair | None:
    """None where the tokenizer joins a name with its neighbours."""
    base, target = token_ids(model, pair.base), token_ids(model, pair.target)
    if len(base) != len(target) or sum(a != b for a, b in zip(base, target, strict=True)) != 1:
        return None
    answer, distractor = (_last_token(model, pair.base, str(word)) for word in (pair.answer, pair.distractor))
    return None if answer is None or distractor is None else TokenPair(base, target, answer, distractor)


def single_tokens(model: LanguageModel, words: Sequence[str]) -> list[str]:
    """Words that are one token of their own inside a text; what the tokenizer does not know is none."""
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    nothing = {unknown, *model.special_token_ids}
    ids = {word: _last_token(model, "Then", f" {word}") for word in words}
    return [word for word, token in ids.items() if token is not None and token not in nothing]


def token_ids(model: LanguageModel, text: str) -> tuple[int, ...]:
    """Ids of a text, without BOS; a special token that it spells is text."""
    options: dict[str, Any] = {
        "add_special_tokens": False,
        "split_special_tokens": True,
        "verbose": False,
    }
    return tuple(model.tokenizer(text, **options)["input_ids"])


def _last_token(model: LanguageModel, text: str, word: str) -> int | None:
    """The one token that `word` adds to `text`. Judged inside a text: some tokenizers treat its start differently."""
    before, after = token_ids(model, text), token_ids(model, text + word)
    return after[-1] if after[:-1] == before else None
