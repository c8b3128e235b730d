"""Drawing samples from a model, with nothing between its logits and the draw."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import UsageError

if TYPE_CHECKING:
    from collections.abc import Generator

    import torch

    from sae_faithful import LanguageModel, SourceRequest
    from sae_faithful_plugins.self_generated import SelfGenerated

USER_TURN = "\u241fthe user's turn\u241f"
"""Stands for the user's message while the chat template is rendered, and is cut off."""


@dataclass(frozen=True)
class Sampler:
    """Samples of one model under fixed settings."""

    model: LanguageModel
    prompt_ids: tuple[int, ...]
    """Given tokens that every sample starts with; the first is BOS."""
    max_new_tokens: int
    temperature: float
    top_p: float

    @classmethod
    def from_options(cls, options: SelfGenerated, request: SourceRequest) -> Sampler:
        """The sampler that a source's options ask for.

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
        return cls(model, prompt_ids, max_new_tokens, options.temperature, options.top_p)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a sample: the model's own stop ids and the tokenizer's EOS."""
        ids: set[int] = set()
        for configured in (
            getattr(getattr(self._inner, "generation_config", None), "eos_token_id", None),
            getattr(self.model.tokenizer, "eos_token_id", None),
        ):
            if configured is not None:
                ids.update(configured if isinstance(configured, list) else [configured])
        return tuple(sorted(ids))

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the seed and the batch that determines the samples."""
        import torch

        return {
            "model": self.model.identity,
            "prompt_ids": list(self.prompt_ids),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None,
            "repetition_penalty": None,
            "device": torch.device(self.model.device).type,
            # Another number of threads, or another release, can change the last bit of a logit.
            "threads": torch.get_num_threads(),
            "versions": {
                name: metadata.version(name) for name in ("torch", "transformers", "transformer-lens")
            },
        }

    def sample(self, n: int, seed: int) -> list[np.ndarray]:
        """`n` documents: the prompt without its BOS, then what the model drew, its stop token included."""
        import torch
        from sae_lens.util import temporary_seed

        prompt = torch.tensor([self.prompt_ids] * n, device=self.model.device)
        with torch.no_grad(), temporary_seed(seed):
            drawn = self._generate(prompt)[:, len(self.prompt_ids) :].cpu().numpy()
        given = np.array(self.prompt_ids[1:], np.int32)
        return [np.concatenate([given, self._cut(row)]).astype(np.int32) for row in drawn]

    @property
    def _inner(self) -> Any:
        """The Hugging Face model inside SAELens's wrapper, or TransformerLens's own."""
        model: Any = self.model.model
        return model.model if hasattr(model, "named_modules_dict") else model

    def _generate(self, prompt: torch.Tensor) -> torch.Tensor:
        if not hasattr(self._inner, "generation_config"):
            return self._generate_with_transformer_lens(prompt)
        from transformers import GenerationConfig

        # Built from nothing: a model's own generation_config may hold top_k, a temperature or penalties,
        # and `generate` fills every gap from it.
        config = GenerationConfig(
            do_sample=True,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0,
            repetition_penalty=1.0,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=list(self.stop_ids) or None,
            pad_token_id=self.stop_ids[0] if self.stop_ids else self.prompt_ids[0],
            use_cache=True,
        )
        import torch

        with _generation_config(self._inner, config):
            return self._inner.generate(
                prompt, attention_mask=torch.ones_like(prompt), generation_config=config
            )

    def _generate_with_transformer_lens(self, prompt: torch.Tensor) -> torch.Tensor:
        return self._inner.generate(
            prompt,
            max_new_tokens=self.max_new_tokens,
            stop_at_eos=bool(self.stop_ids),
            eos_token_id=list(self.stop_ids) or None,
            do_sample=True,
            top_k=None,
            top_p=self.top_p if self.top_p < 1 else None,
            temperature=self.temperature,
            prepend_bos=False,
            return_type="tokens",
            verbose=False,
        )

    def _cut(self, row: np.ndarray) -> np.ndarray:
        stops = np.flatnonzero(np.isin(row, self.stop_ids))
        return row[: stops[0] + 1] if len(stops) else row


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


@contextlib.contextmanager
def _generation_config(model: Any, config: Any) -> Generator[None]:
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own
