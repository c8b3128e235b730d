"""The model once more on the rows that are shown: the activations on every token around the strongest one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from sae_faithful import row_batches

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Float, Int

    from sae_faithful import LanguageModel, TokenSet
    from sae_faithful_plugins.top_contexts.strongest import Strongest

TOKENS_PER_FORWARD = 4_096
LATENTS_PER_CHUNK = 2**24
"""At most so many latents (64 MiB in float32) of one SAE are held at a time."""


@dataclass(frozen=True)
class Window:
    """A stretch of a row around a latent's strongest token in it."""

    latent: int
    row: int
    position: int
    start: int
    """First position shown."""
    stop: int
    """The one after the last."""
    first: int
    """Where its tokens begin in `Windows.rows`."""


@dataclass(eq=False)
class Windows:
    """All windows of one SAE's chosen latents; their tokens one after the other."""

    seen: Strongest
    windows: list[Window]
    rows: Int[np.ndarray, " tokens"]
    positions: Int[np.ndarray, " tokens"]
    latents: Int[np.ndarray, " tokens"]
    """Whose activation is wanted there."""
    activations: Float[np.ndarray, " tokens"] = field(init=False)
    """0 until `fill`, and where a token does not count."""

    def __post_init__(self) -> None:
        self.activations = np.zeros(len(self.rows), np.float32)

    @classmethod
    def of(cls, seen: Strongest, latents: Iterable[int], width: int) -> Windows:
        """Of these latents, strongest first, with `width` tokens on each side or as many as the row has."""
        windows: list[Window] = []
        n_tokens = 0
        top = seen.top
        for latent in latents:
            places = zip(top.values[latent], top.rows[latent], top.positions[latent], strict=True)
            for value, row, position in places:
                if value <= 0:
                    break
                start, stop = max(0, position - width), min(seen.tokens.context_size, position + width + 1)
                windows.append(Window(latent, int(row), int(position), int(start), int(stop), n_tokens))
                n_tokens += int(stop - start)
        spans = [np.arange(one.start, one.stop) for one in windows]
        lengths = [len(span) for span in spans]
        return cls(
            seen,
            windows,
            np.repeat(np.array([one.row for one in windows], np.int64), lengths),
            np.concatenate([np.zeros(0, np.int64), *spans]),
            np.repeat(np.array([one.latent for one in windows], np.int64), lengths),
        )

    def encode(
        self, rows: Int[np.ndarray, " some"], activations: Float[torch.Tensor, "some context d_in"]
    ) -> None:
        """Fill in what is wanted of these rows (in order), whose model activations are given."""
        place = np.minimum(np.searchsorted(rows, self.rows), len(rows) - 1)
        counts = self.seen.mask[self.rows, self.positions]
        (wanted,) = np.nonzero((rows[place] == self.rows) & counts)
        context = activations.shape[1]
        tokens, back = np.unique(place[wanted] * context + self.positions[wanted], return_inverse=True)
        flat = activations.flatten(end_dim=1)
        step = max(1, LATENTS_PER_CHUNK // self.seen.handle.d_sae)
        for start in range(0, len(tokens), step):
            some = torch.from_numpy(tokens[start : start + step]).to(flat.device)
            codes = self.seen.handle.encode(flat[some]).float()
            (here,) = np.nonzero((back >= start) & (back < start + step))
            which = torch.from_numpy(back[here] - start).to(codes.device)
            latents = torch.from_numpy(self.latents[wanted[here]]).to(codes.device)
            self.activations[wanted[here]] = codes[which, latents].cpu().numpy()


def fill(windows: Sequence[Windows], model: LanguageModel) -> None:
    """Activations of all windows: one pass of the model over the rows of each text that any SAE is shown in.

    Each row is read only as far as its last window reaches: what comes later changes nothing before it.
    """
    texts: dict[int, list[Windows]] = {}
    for one in windows:
        texts.setdefault(id(one.seen.tokens), []).append(one)
    for group in texts.values():
        _fill(group[0].seen.tokens, group, model)


def _fill(tokens: TokenSet, group: Sequence[Windows], model: LanguageModel) -> None:
    from tqdm import tqdm

    reach = np.zeros(len(tokens), np.int64)
    for one in group:
        np.maximum.at(reach, one.rows, one.positions + 1)
    # Rows that are read equally far together.
    order = np.flatnonzero(reach)
    order = order[np.argsort(reach[order], kind="stable")]
    hooks = list(dict.fromkeys(one.seen.hook for one in group))
    with tqdm(total=len(order), desc="top_contexts: rows", leave=False) as progress:
        for part in row_batches(len(order), tokens.context_size, TOKENS_PER_FORWARD):
            rows = np.sort(order[part])
            ids = np.stack([tokens.rows(int(row), int(row) + 1)[0] for row in rows])
            activations = model.activations(torch.from_numpy(ids[:, : reach[rows].max()]), hooks)
            for one in group:
                one.encode(rows, activations[one.seen.hook])
            progress.update(len(rows))
