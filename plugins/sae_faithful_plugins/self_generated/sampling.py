"""What is drawn from a model, whoever draws it: the prompt, the temperature, where a sample ends."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from sae_faithful import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful import LanguageModel, SourceRequest
    from sae_faithful_plugins.self_generated import SelfGenerated

USER_TURN = "\u241fthe user's turn\u241f"
"""Stands for the user's message while the chat template is rendered, and is cut off."""


@dataclass(frozen=True)
class Sampler(ABC):
    """Samples of one model under fixed settings, by one engine. It can be pickled: what it has loaded stays behind."""

    model: LanguageModel
    prompt_ids: tuple[int, ...]
    """Given tokens that every sample starts with; the first is BOS."""
    max_new_tokens: int
    temperature: float
    top_p: float

    batches_itself: ClassVar[bool] = False
    """Whether the engine decides how many samples it draws at once: no batch size is then measured."""

    @classmethod
    def from_options(cls, options: SelfGenerated, request: SourceRequest, **of_engine: Any) -> Self:
        """The sampler that a source's options ask for; `of_engine`: fields of the engine's own.

        Raises:
            UsageError: a prompt that cannot be built, a generator of another vocabulary, samples longer
                than the model takes.
        """
        model = request.language_model
        if options.generator is not None or options.dtype is not None:
            model = model.variant(options.generator, options.dtype)
        prompt_ids = build_prompt(options.prompt, model)
        max_new_tokens = options.max_new_tokens or max(1, request.context_size - len(prompt_ids))
        limit = model.context_limit
        if limit is not None and len(prompt_ids) + max_new_tokens > limit:
            raise UsageError(
                f"self_generated: a prompt of {len(prompt_ids)} tokens and max_new_tokens {max_new_tokens} exceed "
                f"the {limit} tokens that {model.name} takes"
            )
        return cls(model, prompt_ids, max_new_tokens, options.temperature, options.top_p, **of_engine)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the seed and the batch that determines the samples."""
        return {
            "model": self.model.identity,
            "prompt_ids": list(self.prompt_ids),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None,
            "repetition_penalty": None,
        }

    @property
    @abstractmethod
    def engine(self) -> dict[str, Any]:
        """For the card: the engine's `name` and `version`, and what it does not determine."""

    @property
    def observed(self) -> dict[str, Any]:
        """What only drawing shows (a server's version): kept beside the shards, and no part of their settings."""
        return {}

    @abstractmethod
    def sample(self, n: int, seed: int) -> list[np.ndarray]:
        """`n` documents: the prompt without its BOS, then what the model drew, its stop token included."""

    def close(self) -> None:  # noqa: B027 (most engines hold nothing of their own)
        """Let go of what the engine loaded for itself."""

    def document(self, drawn: Sequence[int] | np.ndarray) -> np.ndarray:
        """The document of one sample."""
        return np.concatenate([np.array(self.prompt_ids[1:], np.int32), drawn]).astype(np.int32)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def stop_ids(*configured: int | list[int] | None) -> tuple[int, ...]:
    """Token ids that end a sample, from what models and tokenizers say of them."""
    ids: set[int] = set()
    for one in configured:
        if one is not None:
            ids.update(one if isinstance(one, list) else [one])
    return tuple(sorted(ids))


def stop_ids_on_disk(model: LanguageModel) -> tuple[int, ...]:
    """As `stop_ids` of the loaded model and of its tokenizer, without loading weights."""
    from transformers import GenerationConfig

    inner: Any = getattr(model.skeleton, "model", model.skeleton)
    config = getattr(inner, "generation_config", None)
    if model.given is None and config is not None:
        # Without one of its own: the skeleton's, which transformers makes of the model's config.
        with contextlib.suppress(OSError):
            config = GenerationConfig.from_pretrained(model.files)
    return stop_ids(getattr(config, "eos_token_id", None), getattr(model.tokenizer, "eos_token_id", None))


def build_prompt(prompt: str | list[int], model: LanguageModel) -> tuple[int, ...]:
    """Token ids of a prompt, BOS first.

    Raises:
        UsageError: `chat_user` for a tokenizer without a chat template, or ids outside the vocabulary.
    """
    bos, tokenizer = model.bos_token_id, model.tokenizer
    if prompt == "bos":
        return (bos,)
    if prompt == "chat_user":
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                f"self_generated: prompt chat_user, but the tokenizer of {model.name} has no chat template"
            )
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": USER_TURN}], tokenize=False)
        prompt = str(rendered).partition(USER_TURN)[0]
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    else:
        ids = prompt
        outside = [token for token in ids if not 0 <= token < model.vocab_size]
        if outside:
            raise UsageError(
                f"self_generated: prompt id {outside[0]} is outside the vocabulary of {model.vocab_size}"
            )
    return tuple(ids) if ids and ids[0] == bos else (bos, *ids)
