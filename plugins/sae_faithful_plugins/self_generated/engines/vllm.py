"""The engine `vllm`: the same weights in vLLM, in this process; token ids in, token ids out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from sae_faithful import RunError, UsageError, derive_seed
from sae_faithful_plugins.self_generated.sampling import Sampler, stop_ids_on_disk

if TYPE_CHECKING:
    from sae_faithful import SourceRequest
    from sae_faithful_plugins.self_generated import SelfGenerated

NOT_DETERMINED = (
    "which samples share a step, and the last bits that this changes; a sample's random numbers are its own"
)


@dataclass(frozen=True)
class VllmSampler(Sampler):
    """Draws with vLLM's `LLM`. Nothing of the model's own generation_config is used but its stop ids."""

    tensor_parallel: int = 1
    gpu_memory_utilization: float | None = None

    batches_itself: ClassVar[bool] = True

    @classmethod
    def of(cls, options: SelfGenerated, request: SourceRequest) -> Self:
        """The sampler of a source's options.

        Raises:
            UsageError: a model that exists only in this process.
        """
        sampler = cls.from_options(
            options,
            request,
            tensor_parallel=options.tensor_parallel or 1,
            gpu_memory_utilization=options.gpu_memory_utilization,
        )
        model = sampler.model
        made_here = "made in code" if model.given is not None else "with weights drawn anew (model_init)"
        if model.given is not None or model.random_init_seed is not None:
            raise UsageError(
                f"self_generated: engine vllm loads {model.name} itself and cannot take a model {made_here}; "
                "use engine transformers"
            )
        if model.class_name != "AutoModelForCausalLM":
            raise UsageError(
                f"self_generated: engine vllm loads Hugging Face models by their names, and {model.name} is a "
                f"{model.class_name} here; use engine transformers, or model_class_name AutoModelForCausalLM"
            )
        return sampler

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a sample, as in the engine `transformers`."""
        return stop_ids_on_disk(self.model)

    @cached_property
    def dtype(self) -> str:
        """Of the weights, as the experiment's model: vLLM's own choice for float32 is half of it."""
        given = self.model.from_pretrained_kwargs
        inner: Any = getattr(self.model.skeleton, "model", self.model.skeleton)
        dtype = given.get("dtype") or given.get("torch_dtype") or getattr(inner.config, "dtype", None)
        return "auto" if dtype is None else str(dtype).removeprefix("torch.")

    @property
    def settings(self) -> dict[str, Any]:
        """As `Sampler.settings`."""
        return {
            **super().settings,
            "engine": "vllm",
            "dtype": self.dtype,
            "stop_ids": list(self.stop_ids),
            "tensor_parallel": self.tensor_parallel,
            "versions": {name: metadata.version(name) for name in ("torch", "vllm")},
        }

    @property
    def engine(self) -> dict[str, Any]:
        """As `Sampler.engine`."""
        return {
            "name": "vllm",
            "version": metadata.version("vllm"),
            "tensor_parallel": self.tensor_parallel,
            "not_determined": NOT_DETERMINED,
        }

    @cached_property
    def _llm(self) -> Any:
        memory = self.gpu_memory_utilization
        return _vllm().LLM(
            model=self.model.files,
            dtype=self.dtype,
            tensor_parallel_size=self.tensor_parallel,
            trust_remote_code=bool(self.model.from_pretrained_kwargs.get("trust_remote_code", False)),
            revision=self.model.from_pretrained_kwargs.get("revision"),
            seed=0,
            # Otherwise a model's own top_k, temperature or penalties would become defaults.
            generation_config="vllm",
            **({} if memory is None else {"gpu_memory_utilization": memory}),
        )

    def sample(self, n: int, seed: int) -> list[np.ndarray]:
        """As `Sampler.sample`: each sample has a seed of its own."""
        vllm = _vllm()
        prompts = [vllm.TokensPrompt(prompt_token_ids=list(self.prompt_ids)) for _ in range(n)]
        # top_k is left at its default, which truncates nothing; what means "all" has changed between releases.
        params = [
            vllm.SamplingParams(
                temperature=self.temperature,
                top_p=self.top_p,
                min_p=0.0,
                repetition_penalty=1.0,
                presence_penalty=0.0,
                frequency_penalty=0.0,
                seed=derive_seed(seed, "sample", place),
                max_tokens=self.max_new_tokens,
                stop_token_ids=list(self.stop_ids),
                detokenize=False,
            )
            for place in range(n)
        ]
        replies = self._llm.generate(prompts, params, use_tqdm=False)
        if len(replies) != n:
            raise RunError(f"self_generated: vllm gave {len(replies)} samples in place of {n}")
        return [self._read(reply) for reply in replies]

    def _read(self, reply: Any) -> np.ndarray:
        (output,) = reply.outputs
        if output.finish_reason not in ("stop", "length"):
            raise RunError(f"self_generated: vllm ended a sample by '{output.finish_reason}'")
        if list(reply.prompt_token_ids or ()) != list(self.prompt_ids):
            raise RunError(
                f"self_generated: vllm read the prompt {list(self.prompt_ids)} as {reply.prompt_token_ids}"
            )
        return self.document(np.array(output.token_ids, np.int32))

    def close(self) -> None:
        """Free the GPU: the model that is measured needs it next."""
        if vars(self).pop("_llm", None) is not None:
            import gc

            import torch

            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _vllm() -> Any:
    """The package; this module has its name."""
    return import_module("vllm")
