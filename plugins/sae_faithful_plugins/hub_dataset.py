"""Source `hub_dataset`: any data set on the Hugging Face hub, streamed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import UsageError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sae_faithful import SourceRequest, TokenSet

ID_COLUMNS = ("input_ids", "tokens")
SHUFFLE_BUFFER = 10_000


@hookimpl
def register_sources(register: Callable[[str, type], None]) -> None:
    register("hub_dataset", HubDataset)


@dataclass
class HubDataset:
    """Any Hugging Face dataset, streamed: text, or already token ids."""

    path: str
    """The dataset's name on the hub, or whatever `datasets.load_dataset` takes."""
    name: str | None = None
    """Its configuration."""
    split: str = "train"
    """Which split."""
    column: str | list[str] = "text"
    """The column with the text; a column of token ids (`input_ids`, `tokens`) is taken when there is no such one.
    Of several columns the texts are joined, an empty line between."""
    revision: str | None = None
    """Branch, tag or commit; default: the newest."""
    shuffle: bool = True
    """Shuffle through a buffer of 10,000 rows, with the experiment's seed."""
    n_tokens: int | None = None
    """Distinct tokens to take; default: as the experiment's other sources."""

    def load(self, request: SourceRequest) -> TokenSet:
        """Stream rows until they fill the request."""
        from datasets import load_dataset

        try:
            dataset: Any = load_dataset(
                self.path, self.name, split=self.split, revision=self.revision, streaming=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"hub_dataset '{self.path}' cannot be read: {str(error).splitlines()[0]}"
            ) from error
        if self.shuffle:
            dataset = dataset.shuffle(seed=request.seed % 2**32, buffer_size=SHUFFLE_BUFFER)
        first: dict[str, Any] = next(iter(dataset.take(1)), {})
        if not first:
            raise UsageError(f"hub_dataset '{self.path}', split '{self.split}', is empty")
        columns = [self.column] if isinstance(self.column, str) else self.column
        if columns and all(name in first and not isinstance(first[name], list) for name in columns):
            documents = request.tokenize(text for row in dataset if (text := _joined(row, columns)))
        else:
            candidates = (*columns, *ID_COLUMNS) if len(columns) == 1 else ()
            column = next((name for name in candidates if name in first), None)
            if column is None:
                missing = next((name for name in columns if name not in first), ", ".join(columns))
                raise UsageError(
                    f"hub_dataset '{self.path}' has no column '{missing}' of text; it has: {', '.join(first)}"
                )
            documents = split_at_bos((row[column] for row in dataset), request.language_model.bos_token_id)
        return request.pack(documents, card={"dataset": self.path, "split": self.split})


def _joined(row: dict[str, Any], columns: Sequence[str]) -> str:
    return "\n\n".join(row[name] for name in columns if row[name])


def split_at_bos(rows: Iterable[list[int]], bos_token_id: int) -> Iterator[np.ndarray]:
    """Documents of rows that were packed with BOS between them; a row's first part may continue another's last."""
    for row in rows:
        ids = np.asarray(row, np.int32)
        for part in np.split(ids, np.flatnonzero(ids == bos_token_id)):
            yield part[part != bos_token_id]
