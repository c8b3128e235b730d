"""Source `self_generated`: text that the model itself writes, token ids kept from end to end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from sae_faithful import hookimpl
from sae_faithful_plugins.self_generated.engines import check_engine_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from sae_faithful import SourceRequest, TokenSet, Work
    from sae_faithful_plugins.self_generated.pieces import ShardPieces
    from sae_faithful_plugins.self_generated.shards import ShardCache


@hookimpl
def register_sources(register: Callable[[str, type], None]) -> None:
    register("self_generated", SelfGenerated)


@dataclass
class SelfGenerated:
    """Unconditional samples of the model itself (FaithfulSAE, Cho et al. 2025).

    By default this is the model's own distribution: temperature 1, no truncation, no penalty, whatever the
    model's own generation config says (its stop tokens apart). Shards are kept in the cache; the same options
    give the same bytes, however often generation was interrupted.
    """

    n_tokens: int | None = None
    """Distinct tokens to generate; default: what the experiment's other sources give, or `training_tokens`."""
    temperature: float = 1.0
    """Divides the logits; 1 is the model's own distribution."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this probability; 1 is the model's own distribution."""
    prompt: str | list[int] = "bos"
    """`bos`; `chat_user`, the chat template cut before the user's turn (as in Magpie, arXiv 2406.08464); or
    any text, in which a special token's name is that token, or token ids."""
    generator: str | None = None
    """Another model's name, to train on text a different model wrote; it must have the same vocabulary."""
    max_new_tokens: int | None = None
    """Longest sample; default: what fits a row after the prompt."""
    shuffle_sentences: bool = False
    """Put the sentences of each sample in another order, ids as they were drawn, from the same shards: a control, which
    is not the model's own text."""
    batch_size: int | Literal["auto"] = "auto"
    """Samples drawn at once, one shard; `auto` measures a few sizes and takes the one that has `n_tokens`
    soonest: a shard is drawn whole."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Weights while sampling; default: as the experiment's model."""
    engine: Literal["transformers", "vllm", "server"] = "transformers"
    """Who draws: `transformers`, with the model that is measured; `vllm`, installed beside it (extra `vllm`); or a
    `server` with vLLM's completions API."""
    continuous_batching: bool | None = None
    """`transformers` on a CUDA device: whether a sample that ends leaves its place to the next one; default: where the
    model admits it."""
    tensor_parallel: int | None = None
    """`vllm`: GPUs that one model is spread over; default: 1."""
    gpu_memory_utilization: float | None = None
    """`vllm`: its share of a GPU's memory; default: vLLM's own, which leaves little to the model that is measured."""
    server_url: str | None = None
    """`server`: its address up to `/v1`, such as `http://gpu7:8000/v1`."""
    server_model: str | None = None
    """`server`: the model's name there; default: the one that was loaded from the experiment's model name."""
    server_key_env: str | None = None
    """`server`: the NAME of the environment variable that holds the key; default: `OPENAI_API_KEY`."""
    concurrency: int | None = None
    """`server`: samples asked for at once; default: 64."""

    where_it_runs: ClassVar[tuple[str, ...]] = (
        "server_url",
        "server_key_env",
        "concurrency",
        "gpu_memory_utilization",
    )
    """Options that change no sample: another value of theirs is no other data."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature {self.temperature} is not above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is not in (0, 1]")
        for name in ("n_tokens", "max_new_tokens", "batch_size", "tensor_parallel", "concurrency"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} {value} is not positive")
        if self.shuffle_sentences and self.max_new_tokens == 1:
            raise ValueError("shuffle_sentences of samples of one token (max_new_tokens 1)")
        check_engine_options(self)

    def work(self, request: SourceRequest) -> Work:
        """The shards that are not in the cache, at the speed of a few tokens of as many samples."""
        from sae_faithful_plugins.self_generated.engines import make_sampler
        from sae_faithful_plugins.self_generated.shards import generation_work

        return generation_work(self.batch_size, make_sampler(self, request), request)

    def shards(self, request: SourceRequest) -> ShardCache:
        """The shards that `load` reads, drawn or not; another process gets the same of the same options and request."""
        from sae_faithful_plugins.self_generated.engines import make_sampler
        from sae_faithful_plugins.self_generated.shards import ShardCache, resolve_batch_size

        sampler = make_sampler(self, request)
        batch_size = resolve_batch_size(self.batch_size, sampler, request)
        return ShardCache(sampler, batch_size, request.seed, request.cache_dir)

    def load(self, request: SourceRequest) -> TokenSet:
        """Sample shards until they fill the request, or take them from the cache."""
        from sae_faithful_plugins.self_generated.sentences import SentenceShuffler

        shards = self.shards(request)
        sampler = shards.sampler
        card = {
            **shards.settings,
            "resolved_options": {"batch_size": shards.batch_size},
            "own_text": self.generator is None and not self.shuffle_sentences,
        }
        shuffler = SentenceShuffler(sampler, request.seed) if self.shuffle_sentences else None
        documents = shards.documents(request.n_tokens)
        try:
            tokens = request.pack(
                documents if shuffler is None else shuffler.shuffled(documents),
                card=card,
                prompt_length=len(sampler.prompt_ids),
            )
        finally:
            sampler.close()
        shuffled = {} if shuffler is None else {"shuffled_sentences": shuffler.card}
        return replace(tokens, card={**tokens.card, **shuffled, "engine": shards.engine})

    def pieces(self, request: SourceRequest) -> ShardPieces:
        """The shards, for several processes to draw."""
        from sae_faithful_plugins.self_generated.pieces import ShardPieces

        return ShardPieces(self.shards(request), request.n_tokens)
