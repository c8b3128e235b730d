"""The document that feature pages are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sae_faithful import Detokenizer
from sae_faithful.metrics.direct_path import DirectPath

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jaxtyping import Float

    from sae_faithful import LanguageModel
    from sae_faithful_plugins.top_contexts import TopContexts
    from sae_faithful_plugins.top_contexts.choosing import Chosen
    from sae_faithful_plugins.top_contexts.strongest import Strongest
    from sae_faithful_plugins.top_contexts.windows import Window, Windows

Document = dict[str, Any]
DIRECTIONS_AT_ONCE = 64


def document(
    options: TopContexts,
    chosen: Mapping[Strongest, Chosen],
    windows: Sequence[Windows],
    model: LanguageModel,
) -> Document:
    """Everything that was found, by SAE."""
    detokenizer = Detokenizer(model.tokenizer)
    n_said = options.n_tokens_promoted
    matrix = model.unembedding() if n_said else None
    saes: list[Document] = []
    for (one, why), shown in zip(chosen.items(), windows, strict=True):
        handle = one.handle
        path = DirectPath.of(matrix, handle.W_dec.shape[1]) if n_said else None
        why_not = path if isinstance(path, str) else None
        latents = list(why)
        said = _said(
            path if isinstance(path, DirectPath) else None, handle.W_dec[latents], n_said, detokenizer
        )
        contexts: dict[int, list[Document]] = {latent: [] for latent in latents}
        for window in shown.windows:
            contexts[window.latent].append(_context(shown, window, detokenizer))
        saes.append(
            {
                **handle.identity,
                "neuronpedia": handle.neuronpedia_id,
                "no_direct_path": why_not,
                "latents": [
                    {
                        "latent": latent,
                        "why": why[latent],
                        "maximum": _short(one.top.values[latent, 0]),
                        "contexts": contexts[latent],
                        **tokens,
                    }
                    for latent, tokens in zip(latents, said, strict=True)
                ],
            }
        )
    return {"text": {one.handle.source: "held-out" for one in chosen}, "saes": saes}


def _context(shown: Windows, window: Window, detokenizer: Detokenizer) -> Document:
    ids = shown.seen.tokens.rows(window.row, window.row + 1)[0, window.start : window.stop]
    activations = shown.activations[window.first : window.first + len(ids)]
    return {
        "row": window.row,
        "position": window.position,
        "tokens": [detokenizer.token(int(token)) for token in ids],
        "activations": [_short(each) for each in activations],
        "peak": window.position - window.start,
    }


def _said(
    path: DirectPath | None, directions: Float[torch.Tensor, "n d_in"], n: int, detokenizer: Detokenizer
) -> Iterator[Document]:
    """The tokens that each direction raises most and lowers most, of those whose unembedding is not outlying."""
    if path is None:
        yield from ({"promoted": [], "suppressed": []} for _ in directions)
        return
    kept = torch.from_numpy(np.flatnonzero(path.kept)).to(path.matrix.device)
    for some in directions.split(DIRECTIONS_AT_ONCE):
        scores = path.scores(some)[:, kept]
        said: list[list[list[list[Any]]]] = []
        for largest in (True, False):
            found = scores.topk(min(n, len(kept)), largest=largest)
            said.append(
                [
                    [
                        [detokenizer.token(token), _short(value)]
                        for token, value in zip(tokens, values, strict=True)
                    ]
                    for tokens, values in zip(
                        kept[found.indices].tolist(), found.values.tolist(), strict=True
                    )
                ]
            )
        for promoted, suppressed in zip(*said, strict=True):
            yield {"promoted": promoted, "suppressed": suppressed}


def _short(value: float) -> float:
    """Three significant figures."""
    return float(f"{value:.3g}")
