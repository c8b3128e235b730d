"""The engine `transformers`: the experiment's own model, by `generate`; on a GPU by continuous batching."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sae_faithful import RunError
from sae_faithful_plugins.self_generated.engines import continuous_batching
from sae_faithful_plugins.self_generated.sampling import Sampler, stop_ids

if TYPE_CHECKING:
    from collections.abc import Generator

    import torch

    from sae_faithful import SourceRequest
    from sae_faithful_plugins.self_generated import SelfGenerated

log = logging.getLogger("sae_faithful.self_generated")


@dataclass(frozen=True)
class TransformersSampler(Sampler):
    """Draws with the model that is measured (or a variant of it), in this process."""

    continuous: bool = False
    """A sample that ends leaves its place to the next one, in place of rows padded to the longest."""

    @classmethod
    def of(cls, options: SelfGenerated, request: SourceRequest) -> Self:
        """The sampler of a source's options."""
        plain = cls.from_options(options, request)
        if options.continuous_batching is False or not plain.on_cuda:
            return plain
        why_not = continuous_batching.why_not(plain.model)
        if why_not:
            log.info("continuous batching is left out: %s", why_not)
            return plain
        return cls.from_options(options, request, continuous=True)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a sample: the model's own stop ids and the tokenizer's EOS."""
        return stop_ids(
            getattr(getattr(self._inner, "generation_config", None), "eos_token_id", None),
            getattr(self.model.tokenizer, "eos_token_id", None),
        )

    @property
    def on_cuda(self) -> bool:
        """Whether the model is on an NVIDIA (or ROCm) GPU."""
        import torch

        return torch.device(self.model.device).type == "cuda"

    @property
    def settings(self) -> dict[str, Any]:
        """As `Sampler.settings`."""
        import torch

        return {
            **super().settings,
            "device": torch.device(self.model.device).type,
            # Another number of threads, or another release, can change the last bit of a logit.
            "threads": torch.get_num_threads(),
            "versions": {
                name: metadata.version(name) for name in ("torch", "transformers", "transformer-lens")
            },
            **({"continuous_batching": continuous_batching.FIXED} if self.continuous else {}),
        }

    @property
    def engine(self) -> dict[str, Any]:
        """As `Sampler.engine`."""
        library = "transformer-lens" if self.model.class_name.startswith("Hooked") else "transformers"
        return {
            "name": "transformers",
            "library": library,
            "version": metadata.version(library),
            "continuous_batching": self.continuous,
        }

    def sample(self, n: int, seed: int) -> list[np.ndarray]:
        """As `Sampler.sample`."""
        import torch
        from sae_lens.util import temporary_seed

        with torch.no_grad(), temporary_seed(seed), _not_finite_named(self.model.name):
            if self.continuous:
                drawn = continuous_batching.draw(
                    self._inner, [list(self.prompt_ids)] * n, self._config(), seed
                )
            else:
                prompt = torch.tensor([self.prompt_ids] * n, device=self.model.device)
                drawn = self._generate(prompt)[:, len(self.prompt_ids) :].cpu().numpy()
        return [self.document(self._cut(np.asarray(row, np.int32))) for row in drawn]

    @property
    def _inner(self) -> Any:
        """The Hugging Face model inside SAELens's wrapper, or TransformerLens's own."""
        model: Any = self.model.model
        return model.model if hasattr(model, "named_modules_dict") else model

    def _config(self) -> Any:
        from transformers import GenerationConfig

        # Built from nothing: a model's own generation_config may hold top_k, a temperature or penalties,
        # and `generate` fills every gap from it.
        return GenerationConfig(
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

    def _generate(self, prompt: torch.Tensor) -> torch.Tensor:
        if not hasattr(self._inner, "generation_config"):
            return self._generate_with_transformer_lens(prompt)
        import torch

        config = self._config()
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


@contextlib.contextmanager
def _generation_config(model: Any, config: Any) -> Generator[None]:
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


@contextlib.contextmanager
def _not_finite_named(model: str) -> Generator[None]:
    """What torch says of drawing from NaN, in a user's words."""
    try:
        yield
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        raise RunError(
            f"self_generated: next-token probabilities of {model} are not finite; load it in another dtype "
            "(model_from_pretrained_kwargs, or dtype of the source)"
        ) from error
