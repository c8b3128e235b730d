"""Continuous batching of transformers, made reproducible: the same samples for a seed, whatever else the machine does.

`generate_batch` starts its thread before it has queued its requests and sizes its cache by the memory that is free, so
that which samples share a step, and with them the draws, would be a matter of chance. Here all are queued first, and
every size is fixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_faithful import RunError

if TYPE_CHECKING:
    from sae_faithful import LanguageModel

IN_FLIGHT, PAGE = 256, 64
FIXED = {"in_flight": IN_FLIGHT, "page_size": PAGE, "cuda_graphs": False}
"""Samples at once, tokens a page of the cache: they decide which samples share a step."""
PATIENCE = 1.0
"""Seconds to wait for one result before a look at whether anybody still works."""


def why_not(model: LanguageModel) -> str | None:
    """Why a model cannot be sampled so, told without its weights; None if it can."""
    inner: Any = getattr(model.skeleton, "model", model.skeleton)
    if not hasattr(inner, "init_continuous_batching"):
        return f"{model.name} is no model of transformers, or the installed release has none"
    try:
        from transformers.generation import ContinuousBatchingConfig
    except ImportError:
        return "the installed transformers has no ContinuousBatchingConfig"
    if not hasattr(ContinuousBatchingConfig, "page_size"):
        return "the installed transformers has no pages in ContinuousBatchingConfig: it is older than 5.18"
    config = inner.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(inner, "_is_stateful", False):
        return f"{model.name} has layers other than full attention ({', '.join(sorted(kinds))})"
    return None


def draw(model: Any, prompts: list[list[int]], generation_config: Any, seed: int) -> list[list[int]]:
    """What `model` draws after each prompt, stop token included; the thread's seed is `seed`.

    Raises:
        RunError: a sample failed. Errors of memory come as they are.
    """
    from transformers.generation import ContinuousBatchingConfig

    longest = max(map(len, prompts)) + generation_config.max_new_tokens
    at_once = min(IN_FLIGHT, len(prompts))
    config = ContinuousBatchingConfig(
        seed=seed % 2**63,
        page_size=PAGE,
        # A page more than each needs, and one for what the cache keeps to itself.
        num_blocks=at_once * (-(-longest // PAGE) + 1) + 1,
        max_batch_tokens=max(at_once, longest),
        max_requests_per_batch=at_once,
        allow_block_sharing=False,
        use_async_batching=False,
        use_cuda_graph=False,
        # What is asked for is applied or fails; dropping it would change the distribution.
        drop_unsupported_processors=False,
    )
    manager = model.init_continuous_batching(
        generation_config=generation_config, continuous_batching_config=config
    )
    names = manager.add_requests(inputs=prompts, max_new_tokens=generation_config.max_new_tokens)
    manager.start()
    try:
        found = _results(manager, len(names))
    finally:
        manager.stop(block=True, hard_stop=True)
        manager.destroy()
    return [found[name] for name in names]


def _results(manager: Any, n: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    while len(found) < n:
        result = manager.get_result(timeout=PATIENCE)
        if result is None:
            if manager.is_running():
                continue
            raise _cause(getattr(manager.background_thread_status, "fatal_error", None))
        if result.error is not None:
            raise _cause(
                getattr(manager.background_thread_status, "fatal_error", None) or RuntimeError(result.error)
            )
        if result.is_finished():
            found[result.request_id] = list(result.generated_tokens)
    return found


def _cause(error: BaseException | None) -> BaseException:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return error
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return RunError(
        f"self_generated: continuous batching failed ({reason}); sample without it by `continuous_batching: false`"
    )
