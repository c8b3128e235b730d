"""One vector a text: activations, latents, reconstructions and errors, pooled over the text's own tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_faithful import Progress, derive_seed
from sae_faithful.metrics.random_sae import RandomTopK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from jaxtyping import Float, Int
    from scipy.sparse import csr_matrix

    from sae_faithful import EvalContext, LanguageModel, SAEHandle

Pool = Literal["mean", "last"]
Key = tuple[Any, ...]
"""Names a representation: two SAEs share what has one key."""
TOKENS_PER_FORWARD = 2_048
LATENTS_PER_CHUNK = 2**24
"""At most so many latents (64 MiB in float32) are held at a time."""
TEXTS_PER_BATCH = 1_000


@dataclass(frozen=True)
class TextBatch:
    """Texts of about one length, right-padded. Padding comes after the text, where a causal model cannot see it."""

    rows: Int[np.ndarray, " texts"]
    """Which texts."""
    tokens: Int[np.ndarray, "texts longest"]
    """BOS, then each text's ids, then padding."""
    lengths: Int[np.ndarray, " texts"]
    """Ids of each text, BOS not counted."""

    def positions(self, pool: Pool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which text, at which position and with which weight, for every position that is pooled."""
        place = np.arange(self.tokens.shape[1])
        last = self.lengths[:, None]
        # Position 0 is BOS: it counts in no mean, and is the last one only of a text without tokens.
        mask = (place > 0) & (place <= last) if pool == "mean" else place == last
        owner, position = np.nonzero(mask)
        return owner, position, 1 / mask.sum(axis=1)[owner]


def tokenize(model: LanguageModel, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Each text's first `max_tokens` ids, fewer where the model takes fewer; no BOS among them."""
    longest = min(max_tokens, (model.context_limit or max_tokens + 1) - 1)
    # A text may spell a special token: it is text, not the token.
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    ids: list[list[int]] = []
    for start in range(0, len(texts), TEXTS_PER_BATCH):
        ids += model.tokenizer(list(texts[start : start + TEXTS_PER_BATCH]), **options)["input_ids"]
    return [one[:longest] for one in ids]


def batches(
    ids: Sequence[Sequence[int]], bos_token_id: int, tokens_per_forward: int = TOKENS_PER_FORWARD
) -> Iterator[TextBatch]:
    """Batches of similar lengths, shortest first."""
    lengths = np.array([len(one) for one in ids], np.int64)
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (lengths[order[stop]] + 1) * (stop + 1 - start) <= tokens_per_forward:
            stop += 1
        rows = order[start:stop]
        # Any ordinary id will do for padding: it is never pooled, and never attended to.
        tokens = np.full((len(rows), int(lengths[rows[-1]]) + 1), bos_token_id, np.int64)
        for i, row in enumerate(rows):
            tokens[i, 1 : lengths[row] + 1] = ids[row]
            tokens[i, lengths[row] + 1 :] = ids[row][-1] if len(ids[row]) else bos_token_id
        yield TextBatch(rows, tokens, lengths[rows])
        start = stop


@dataclass(eq=False)
class PooledTexts:
    """Pooled vectors of all texts, by representation. Latents are kept sparse; token vectors are not kept."""

    n_texts: int
    rows: list[np.ndarray] = field(default_factory=list[np.ndarray])
    parts: dict[Key, list[Any]] = field(default_factory=dict["Key", "list[Any]"])
    random: dict[tuple[str, str, str, int], RandomTopK] = field(
        default_factory=dict[tuple[str, str, str, int], RandomTopK]
    )
    """The random counterpart of each SAE, by the SAE's key."""

    def matrix(self, key: Key) -> Float[np.ndarray, "texts width"] | csr_matrix:
        """One representation of all texts, in the texts' own order."""
        from scipy import sparse

        parts = self.parts[key]
        back = np.argsort(np.concatenate(self.rows))
        if sparse.issparse(parts[0]):
            return sparse.csr_matrix(sparse.vstack(parts, format="csr")[back])
        return np.concatenate(parts)[back]

    def keys(self, handle: SAEHandle) -> dict[str, Key]:
        """Representations to compare an SAE by; `raw` is its hook's."""
        own = {name: (name, *handle.key) for name in ("latents", "reconstruction", "residual")}
        return {
            **own,
            "raw": ("raw", handle.hook),
            "random_sae": ("random_sae", handle.hook, *self.random[handle.key].key),
        }

    def add(self, key: Key, pooled: torch.Tensor, *, as_csr: bool = False) -> None:
        """Keep one batch of one representation."""
        from scipy import sparse

        array = pooled.cpu().numpy()
        self.parts.setdefault(key, []).append(sparse.csr_matrix(array) if as_csr else array)


def pool_texts(context: EvalContext, ids: Sequence[Sequence[int]], pool: Pool) -> PooledTexts:
    """One forward of the prefix for all hooks, SAEs and representations; every SAE encodes single tokens."""
    import torch

    model = context.language_model
    hooks = list(dict.fromkeys(handle.hook for handle in context.handles))
    pooled = PooledTexts(len(ids))
    with Progress("probing: texts", len(ids), "texts") as progress:
        for batch in batches(ids, model.bos_token_id):
            activations = model.activations(torch.from_numpy(batch.tokens), hooks)
            owner, position, weight = batch.positions(pool)
            for hook in hooks:
                # Only what is pooled goes on: neither BOS nor padding.
                tokens = activations[hook][torch.from_numpy(owner), torch.from_numpy(position)]
                handles = [handle for handle in context.handles if handle.hook == hook]
                _add_batch(
                    pooled, hook, handles, tokens, Pooling(owner, weight, len(batch.rows)), context.seed
                )
            pooled.rows.append(batch.rows)
            progress.update(len(batch.rows))
    return pooled


@dataclass(frozen=True)
class Pooling:
    """Weighted sums of token vectors over their texts."""

    owner: Int[np.ndarray, " tokens"]
    weight: Float[np.ndarray, " tokens"]
    n_texts: int

    def new(self, width: int, like: torch.Tensor) -> torch.Tensor:
        """Zeros to add to."""
        import torch

        return torch.zeros(self.n_texts, width, device=like.device)

    def add(self, sums: torch.Tensor, vectors: torch.Tensor, tokens: slice) -> None:
        """Add the vectors of some tokens."""
        import torch

        owner = torch.from_numpy(self.owner[tokens]).to(sums.device)
        weight = torch.from_numpy(self.weight[tokens]).to(sums.device, sums.dtype)
        sums.index_add_(0, owner, vectors.to(sums.device, sums.dtype) * weight[:, None])


def _add_batch(
    pooled: PooledTexts,
    hook: str,
    handles: Sequence[SAEHandle],
    tokens: Float[torch.Tensor, "tokens d_in"],
    pooling: Pooling,
    seed: int,
) -> None:
    raw = pooling.new(tokens.shape[-1], tokens)
    pooling.add(raw, tokens, slice(None))
    pooled.add(("raw", hook), raw)
    seen: set[Key] = set()
    for handle in handles:
        _add_sae(pooled, handle, tokens, raw, pooling)
        random = pooled.random.get(handle.key)
        if random is None:
            random = pooled.random[handle.key] = _random_counterpart(handle, tokens, seed)
        key = pooled.keys(handle)["random_sae"]
        if key not in seen:
            seen.add(key)
            sums = pooling.new(random.d_sae, tokens)
            for chunk in _chunks(len(tokens), random.d_sae):
                pooling.add(sums, random.encode(tokens[chunk]), chunk)
            pooled.add(key, sums, as_csr=True)


def _add_sae(
    pooled: PooledTexts, handle: SAEHandle, tokens: torch.Tensor, raw: torch.Tensor, pooling: Pooling
) -> None:
    """Latents, reconstruction and what the reconstruction leaves of the raw activations."""
    latent_sums = pooling.new(handle.d_sae, tokens)
    reconstruction_sums = pooling.new(tokens.shape[-1], tokens)
    for chunk in _chunks(len(tokens), handle.d_sae):
        latents = handle.encode(tokens[chunk])
        pooling.add(latent_sums, latents, chunk)
        pooling.add(reconstruction_sums, handle.decode(latents, tokens[chunk]), chunk)
    pooled.add(("latents", *handle.key), latent_sums, as_csr=True)
    pooled.add(("reconstruction", *handle.key), reconstruction_sums)
    # Pooling is linear: the pooled error is the error of what was pooled.
    pooled.add(("residual", *handle.key), raw - reconstruction_sums)


def _random_counterpart(handle: SAEHandle, tokens: torch.Tensor, seed: int) -> RandomTopK:
    k: Any = getattr(handle.sae.cfg, "k", None)
    if not isinstance(k, int):
        chunk = next(_chunks(len(tokens), handle.d_sae), slice(0))
        k = max(1, round(float((handle.encode(tokens[chunk]) != 0).sum(dim=-1).float().mean())))
    return RandomTopK(
        tokens.shape[-1], handle.d_sae, k, derive_seed(seed, "probing", "random_sae", handle.seed)
    )


def _chunks(n_tokens: int, d_sae: int) -> Iterator[slice]:
    step = max(1, LATENTS_PER_CHUNK // d_sae)
    return (slice(start, start + step) for start in range(0, n_tokens, step))
