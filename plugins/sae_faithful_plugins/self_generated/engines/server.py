"""The engine `server`: vLLM's completions API over HTTP; token ids in, token ids out, or a refusal."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import urlsplit

from sae_faithful import HttpFailure, JsonClient, Manners, RunError, derive_seed
from sae_faithful_plugins.self_generated.engines.replies import (
    check_reply,
    is_completion,
    is_list,
    model_of,
    no_such_model,
)
from sae_faithful_plugins.self_generated.sampling import Sampler, stop_ids_on_disk

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from sae_faithful import SourceRequest
    from sae_faithful_plugins.self_generated import SelfGenerated

log = logging.getLogger("sae_faithful.self_generated")

KEY_VARIABLE, CONCURRENCY = "OPENAI_API_KEY", 64
TIMEOUT, RETRIES, BACKOFF = 600.0, 6, 1.0
"""Seconds for one sample, which may wait for its turn in the server; tries after the first; seconds before the next."""
NOT_DETERMINED = (
    "the server's release, weights, dtype and batching are its own: a seed goes with every sample, and whether it "
    "gives the same sample again is up to the server"
)
NO_TOKEN_IDS = (
    "re-tokenised text is not the model's own tokens: use a vLLM server (0.10.2 or newer), or engine transformers"
)  # fmt: skip
REASONS = {401: "unauthorised", 403: "forbidden"}
NOT_FOUND = 404


@dataclass(frozen=True)
class ServerSampler(Sampler):
    """Draws by one request a sample. Nothing is asked before the first shard that the cache lacks."""

    url: str = ""
    model_name: str | None = None
    """The model's name at the server; None: found among what it serves."""
    key_variable: str = KEY_VARIABLE
    concurrency: int = CONCURRENCY
    timeout: float = TIMEOUT
    backoff: float = BACKOFF

    batches_itself: ClassVar[bool] = True

    @classmethod
    def of(cls, options: SelfGenerated, request: SourceRequest) -> Self:
        """The sampler of a source's options."""
        return cls.from_options(
            options,
            request,
            url=options.server_url,
            model_name=options.server_model,
            key_variable=options.server_key_env or KEY_VARIABLE,
            concurrency=options.concurrency or CONCURRENCY,
        )

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a sample, as in the engine `transformers`."""
        return stop_ids_on_disk(self.model)

    @property
    def settings(self) -> dict[str, Any]:
        """As `Sampler.settings`: what is asked for, and neither where nor by how many at once."""
        return {
            **super().settings,
            "engine": "server",
            "server_model": self.model_name,
            "stop_ids": list(self.stop_ids),
        }

    @property
    def engine(self) -> dict[str, Any]:
        """As `Sampler.engine`; which release drew is among what was observed."""
        return {"name": "server", "not_determined": NOT_DETERMINED}

    @property
    def observed(self) -> dict[str, Any]:
        """What the server says of itself."""
        return self._served

    def sample(self, n: int, seed: int) -> list[np.ndarray]:
        """As `Sampler.sample`: each sample has a seed of its own, so that their order is of no matter."""
        self.close()  # another server may stand there since the last shard
        name = self._served["model"]
        jobs = [partial(self._draw, name, derive_seed(seed, "sample", place)) for place in range(n)]
        return self._http.together(jobs)

    def close(self) -> None:
        """Forget what was found out: the next use asks again."""
        vars(self).pop("_served", None)

    @cached_property
    def _http(self) -> JsonClient:
        if os.environ.get(self.key_variable):
            # The address is the config's, which may be a stranger's.
            log.warning("the key in %s is sent to %s", self.key_variable, urlsplit(self.url).netloc)
        manners = Manners(self.concurrency, timeout=self.timeout, retries=RETRIES, backoff=self.backoff)
        return JsonClient(lambda: self.url, self.key_variable, manners)

    @cached_property
    def _served(self) -> dict[str, Any]:
        """Which model and release are there, with one short sample as proof that ids go in and come out.

        Raises:
            RunError: no server, no such model, or one that cannot be sampled by ids.
        """
        listed = self._http.ask("models", None, is_list)
        self._refuse(listed, "models", unless=("refused", "server error", "malformed reply"))
        card = model_of(listed, self.model_name, (self.model.name, self.model.files))
        # Before its name is judged: a server that takes no ids may list nothing.
        name = card["id"] if card else self.model_name or self.model.name
        reply = self._probe(name, listed=card is not None)
        if card is None or reply is None:
            raise RunError(f"{self._where} {no_such_model(listed, self.model_name, self.model.name)}")
        room = card.get("max_model_len")
        needed = len(self.prompt_ids) + self.max_new_tokens
        if isinstance(room, int) and room < needed:
            raise RunError(
                f"{self._where} takes {room} tokens, and a sample may have {needed}: start it with a larger "
                "--max-model-len, or lower max_new_tokens"
            )
        return {
            "model": card["id"],
            "root": card.get("root"),
            "owned_by": card.get("owned_by"),
            "version": self._version(),
            "system_fingerprint": reply.get("system_fingerprint"),
        }

    def _probe(self, name: str, *, listed: bool) -> dict[str, Any] | None:
        """One token by the model of this name; None where the server does not list it, and knows none of it either.

        Raises:
            RunError: prompts of ids are refused, or no ids come back.
        """
        reply = self._http.ask("completions", self._body(name, 1, seed=0), is_completion)
        if not listed and isinstance(reply, HttpFailure) and reply.status == NOT_FOUND:
            return None
        if isinstance(reply, HttpFailure) and reply.kind in ("refused", "malformed reply"):
            self._refuse_key(reply)
            said = f"answers {reply.status}" if reply.status else "answers something else"
            raise RunError(f"{self._where} {said} to a prompt of token ids, and {NO_TOKEN_IDS}")
        self._refuse(reply, "completions")
        assert not isinstance(reply, HttpFailure)  # it was refused
        self._check(reply, 1)
        return reply

    def _check(self, reply: Any, max_tokens: int) -> np.ndarray:
        of_model = (self.stop_ids, self.model.vocab_size)
        return check_reply(reply, self.prompt_ids, max_tokens, *of_model, self._where, NO_TOKEN_IDS)

    @property
    def _where(self) -> str:
        return f"self_generated: the server at {self.url}"

    def _draw(self, name: str, seed: int) -> np.ndarray:
        reply = self._http.ask("completions", self._body(name, self.max_new_tokens, seed), is_completion)
        self._refuse(reply, "completions")
        return self.document(self._check(reply, self.max_new_tokens))

    def _body(self, name: str, max_tokens: int, seed: int) -> dict[str, Any]:
        """Everything that a server would else take from the model's generation_config, or from its own settings."""
        return {
            "model": name, "prompt": list(self.prompt_ids), "max_tokens": max_tokens, "n": 1, "seed": seed,
            "temperature": self.temperature, "top_p": self.top_p, "top_k": 0, "min_p": 0.0,
            "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "stop_token_ids": list(self.stop_ids), "add_special_tokens": False, "return_token_ids": True,
            # A server that can watermark does so unless told otherwise, which is another distribution.
            "watermarking": False,
        }  # fmt: skip

    def _refuse(self, reply: Any, path: str, unless: Sequence[str] = ()) -> None:
        """RunError where there is no reply; never in the server's words, which may repeat the key."""
        if not isinstance(reply, HttpFailure):
            return
        if reply.kind == "no server":
            raise RunError(
                f"{self._where} is not there ({reply.why}; {RETRIES + 1} tries); finished shards are kept, and a rerun "
                "goes on after them"
            )
        self._refuse_key(reply)
        if reply.kind in unless:
            return
        said = f"{reply.kind} {reply.status}" if reply.status else reply.kind
        raise RunError(
            f"{self._where} gave no reply to {path} ({said}; {RETRIES + 1} tries at most); finished shards are kept, "
            "and a rerun goes on after them"
        )

    def _refuse_key(self, reply: HttpFailure) -> None:
        if reply.status in REASONS:
            raise RunError(
                f"{self._where} answers {reply.status} ({REASONS[reply.status]}): check the key in the environment "
                f"variable {self.key_variable}"
            )

    def _version(self) -> str | None:
        """vLLM says it one level above its API; other servers need not."""
        root = self.url.rstrip("/").removesuffix("/v1")
        short = Manners(1, timeout=10.0, retries=0)
        said = JsonClient(lambda: root, self.key_variable, short).ask(
            "version", None, lambda reply: isinstance(reply, dict)
        )
        return None if isinstance(said, HttpFailure) else said.get("version")
