"""Sentences of a sample in another order: the model's own words, and no longer its own text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import Detokenizer, RunError, UsageError, derive_seed
from sae_faithful_plugins.self_generated.sampling import stop_ids_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jaxtyping import Bool, Int

    from sae_faithful_plugins.self_generated.sampling import Sampler

ENDS = ".!?\u2026\u3002\uff01\uff1f"
CLOSERS = "\"'\u2019\u201d\u00bb)]}*_"
"""Marks that may stand between the end of a sentence and the space behind it."""
MOST_CLOSERS = 3
"""So many tokens of them."""


class SentenceShuffler:
    """Puts the sentences of each document in another order, token ids as they are.

    A sentence ends where a token ends in `.`, `!`, `?` or `…`, quotes and brackets closed, and the next one begins with
    a space; or with a line. So an abbreviation ends one too. The prompt stays in front, a stop token at the end. A
    document of two or more sentences never keeps its order; one of a single sentence is left as it is.

    Raises:
        UsageError: the tokenizer has no token that ends a sentence.
    """

    def __init__(self, sampler: Sampler, seed: int) -> None:
        model = sampler.model
        text, known = Detokenizer(model.tokenizer), len(model.tokenizer or ())
        # Models have rows for ids that no tokenizer knows.
        words = [text.token(token) if token < known else "" for token in range(model.vocab_size)]
        bare = [word.rstrip() for word in words]
        self._ends = np.array([one.rstrip(CLOSERS).endswith(tuple(ENDS)) for one in bare])
        if not self._ends.any():
            raise UsageError(
                f"self_generated: shuffle_sentences, but no token of {model.name} ends a sentence ({' '.join(ENDS)})"
            )
        # With a space in front a quote opens.
        self._closes = np.array([one != "" and one.strip(CLOSERS) == "" for one in bare])
        self._line = np.array(["\n" in word for word in words])
        begins = np.array([word[:1].isspace() for word in words])
        # A tokenizer of whole words has no spaces in its tokens: each begins behind one.
        self._begins = begins if begins.any() else np.ones(len(words), bool)
        self._given = len(sampler.prompt_ids) - 1
        self._stops = np.array(stop_ids_on_disk(model), np.int32)
        self._rng = np.random.default_rng(derive_seed(seed, "self_generated", "shuffle_sentences"))
        self._model = model.name
        self.documents = self.sentences = self.changed = 0

    def shuffled(self, documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Each document with its sentences in another order; a seed gives the same orders again."""
        for document in documents:
            yield self._shuffle(document)

    @property
    def card(self) -> dict[str, Any]:
        """What was done to the documents so far.

        Raises:
            RunError: nothing, as none had two sentences.
        """
        if not self.changed:
            raise RunError(
                f"self_generated: shuffle_sentences, but none of {self.documents:,} samples of {self._model} has two "
                "sentences; take longer samples (max_new_tokens, context_size)"
            )
        return {
            "documents_changed": round(self.changed / self.documents, 4),
            "sentences_per_document": round(self.sentences / self.documents, 2),
        }

    def _shuffle(self, document: np.ndarray) -> np.ndarray:
        stop = len(document) - int(len(document) > self._given and document[-1] in self._stops)
        given, body, last = np.split(document, [min(self._given, stop), stop])
        sentences = np.split(body, self._boundaries(body))
        order = self._rng.permutation(len(sentences))
        while len(order) > 1 and (order == np.arange(len(order))).all():
            order = self._rng.permutation(len(sentences))
        new = np.concatenate([given, *(sentences[i] for i in order), last])
        self.documents += 1
        self.sentences += len(sentences)
        self.changed += int(not np.array_equal(new, document))
        return new

    def _boundaries(self, body: Int[np.ndarray, " tokens"]) -> Int[np.ndarray, " sentences"]:
        """Where a sentence begins, the first one left out."""
        ended: Bool[np.ndarray, " tokens"] = self._ends[body]
        closes = self._closes[body]
        for _ in range(MOST_CLOSERS):
            ended = ended | (closes & np.roll(ended, 1) & (np.arange(len(body)) > 0))
        line = self._line[body]
        after = (ended[:-1] & self._begins[body[1:]] & ~line[1:]) | (line[:-1] & ~line[1:])
        return np.flatnonzero(after) + 1
