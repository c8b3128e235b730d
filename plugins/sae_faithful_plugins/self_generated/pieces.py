"""Which shards others can draw beforehand, where the work is spread over several processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_faithful_plugins.self_generated.shards import ShardCache


@dataclass(frozen=True)
class ShardPieces:
    """The shards that a text needs, as pieces: drawn one by one wherever there is room, then found in the cache.

    How many tokens a shard has is known only when it is drawn. So first come as many shards as are needed at least;
    then as many more as those that are there let expect.
    """

    shards: ShardCache
    n_tokens: int
    """How many the text wants."""

    def missing(self) -> list[str]:
        """Shards to draw now; none when what is there will do, or nearly. To read them shows what is still missing."""
        there, tokens = self._there()
        sampler = self.shards.sampler
        longest = sampler.max_new_tokens + len(sampler.prompt_ids)
        a_shard = tokens / there if there else self.shards.batch_size * longest
        more = math.ceil((self.n_tokens - tokens) / a_shard)
        if there:
            # Where samples end early nobody knows how early the next ones do.
            more = min(more, there)
        return [name_of(i) for i in range(there, there + more) if not self.shards.drawn(i)]

    def make(self, piece: str) -> None:
        """Draw one shard into the cache."""
        self.shards.shard(index_of(piece))

    def close(self) -> None:
        """Let go of what the engine loaded for itself."""
        self.shards.sampler.close()

    def _there(self) -> tuple[int, int]:
        """How many shards are in the cache, without a gap from the first, and their tokens."""
        index = tokens = 0
        while tokens < self.n_tokens and self.shards.drawn(index):
            # A BOS is put before each.
            tokens += sum(len(document) + 1 for document in self.shards.shard(index))
            index += 1
        return index, tokens


def name_of(index: int) -> str:
    """A shard, for people."""
    return f"shard {index}"


def index_of(name: str) -> int:
    """The shard that `name_of` named."""
    return int(name.removeprefix("shard "))
