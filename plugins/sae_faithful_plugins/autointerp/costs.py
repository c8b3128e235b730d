"""What a run will ask of a language model, before it asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_faithful_plugins.autointerp.assistants import Question

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sae_faithful_plugins.autointerp.assistants import Cloze

CHARACTERS_PER_TOKEN = 3.5
"""Of English text a token has about four; lines of tokens and numbers have fewer."""


@dataclass(frozen=True)
class Estimate:
    """Requests and tokens; replies as long as they may be."""

    requests: int
    prompt_tokens: int
    reply_tokens: int

    @classmethod
    def of(cls, asked: Iterable[Question | Cloze]) -> Estimate:
        """What these would take if the cache had none of them, and none had to be asked again."""
        requests, prompt, reply = 0, 0.0, 0
        for one in asked:
            requests += 1
            prompt += one.n_characters / CHARACTERS_PER_TOKEN
            reply += one.max_tokens if isinstance(one, Question) else 1
        return cls(requests, round(prompt), reply)

    def cost(self, prices: Sequence[float]) -> float:
        """In the unit of the prices, which are of a million tokens of prompts and of replies."""
        return (self.prompt_tokens * prices[0] + self.reply_tokens * prices[1]) / 1e6

    def sentence(self, prices: Sequence[float]) -> str:
        """The line that is shown before anything is asked."""
        text = (
            f"at most about {self.requests:,} requests, {self.prompt_tokens:,} tokens of prompts and "
            f"{self.reply_tokens:,} of replies, less what the cache holds"
        )
        return text + (f": at most about {self.cost(prices):,.2f} at the prices given" if prices else "")
