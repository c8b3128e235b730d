"""What a source is asked for, with the tokenising and packing that every source needs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from sae_faithful.tokens import TokenSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from sae_faithful.language_model import LanguageModel

TEXTS_PER_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """What a `Source` is asked for, and all it may use to answer."""

    name: str
    """The source's name in the config."""
    n_tokens: int
    """How many tokens are wanted; a multiple of `context_size` is returned."""
    context_size: int
    """Tokens a row."""
    prepend_bos: bool
    """Whether every row starts with BOS (SAELens's field of that name)."""
    seed: int
    """The experiment's seed."""
    cache_dir: Path
    """A folder for what is costly to make; the same for every run on this machine."""
    language_model: LanguageModel
    """The experiment's model: tokenizer and facts at no cost, weights on first use."""
    scratch: Path | None = None
    """A folder that is gone when the source's tokens are on disk: `pack` writes rows there as they fill. None: it
    holds them in memory."""

    def tokenize(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Token ids of each text, without special tokens; in batches, as tokenizers are fastest."""
        stream = iter(texts)
        # A stranger's text may spell a special token: it is text, not the token.
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        while batch := list(islice(stream, TEXTS_PER_BATCH)):
            yield from self.language_model.tokenizer(batch, **options)["input_ids"]

    def pack(
        self,
        documents: Iterable[Sequence[int] | np.ndarray],
        *,
        card: Mapping[str, Any] | None = None,
        prompt_length: int = 1,
    ) -> TokenSet:
        """Pack documents (token ids, without BOS) into rows until there are `n_tokens`; repeats are dropped.

        Args:
            documents: token ids of one document each; consumed only as far as needed.
            card: what a reader of the data should know about it.
            prompt_length: how many leading tokens of every document, BOS included, were given and not
                drawn; they are not scored for typicality.
        """
        return TokenSet.from_documents(
            documents,
            n_tokens=self.n_tokens,
            context_size=self.context_size,
            bos_token_id=self.language_model.bos_token_id,
            begin_rows_with_bos=self.prepend_bos,
            card=card,
            prompt_length=prompt_length,
            path=self._new_file(),
        )

    def _new_file(self) -> Path | None:
        """A source may pack twice."""
        if self.scratch is None:
            return None
        return self.scratch / f"rows-{sum(1 for _ in self.scratch.iterdir())}.arrow"
