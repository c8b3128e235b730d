"""A transformers model on this machine as explainer and simulator; log-probabilities are its own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from sae_faithful import LanguageModel, Progress, UsageError, derive_seed
from sae_faithful_plugins.autointerp.assistants import MALFORMED, TOO_LONG, Message
from sae_faithful_plugins.autointerp.scoring import Missing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sae_faithful_plugins.autointerp.assistants import Cloze, Question, Weights
    from sae_faithful_plugins.autointerp.cache import ReplyCache

Asked = TypeVar("Asked")
Reply = TypeVar("Reply")


@dataclass(eq=False)
class LocalAssistant:
    """A causal language model, prompted by its chat template where it has one; greedy at the first try."""

    name: str
    model: LanguageModel
    cache: ReplyCache

    @classmethod
    def load(cls, name: str, measured: LanguageModel, cache: ReplyCache) -> LocalAssistant:
        """A model by its name, folder or `package/DISTRIBUTION`; the measured one is not loaded a second time.

        Raises:
            UsageError: there is no such model.
        """
        same = (
            name == measured.name
            and measured.class_name == "AutoModelForCausalLM"
            and measured.random_init_seed is None
        )
        model = measured if same else LanguageModel(name, device=measured.device)
        if model.tokenizer is None:
            raise UsageError(
                f"autointerp: the model '{name}' has no tokenizer, and so cannot read a question"
            )
        return cls(name, model, cache)

    def answer(self, questions: Sequence[Question]) -> list[str | Missing]:
        """See `Assistant`."""
        return _counted("autointerp: answering", self._answer, questions)

    def highest_number(self) -> int | None:
        """See `Assistant`."""
        return self._highest_number

    @cached_property
    def _highest_number(self) -> int | None:
        found = [n for n in range(11) if n in self._number_ids]
        return max(found) if found in (list(range(11)), list(range(10))) else None

    def weigh(self, clozes: Sequence[Cloze]) -> list[Weights | Missing]:
        """See `Assistant`: one forward each."""
        return _counted("autointerp: weighing", self._weigh, clozes)

    @cached_property
    def _number_ids(self) -> dict[int, int]:
        """Tokens that are a number as it stands in a cloze."""
        if not self.model.tokenizer.is_fast:
            return {}  # it does not say which token stands where
        found: dict[int, int] = {}
        for n in range(11):
            encoded = self.model.tokenizer(f"a\t{n}\n", add_special_tokens=False, return_offsets_mapping=True)
            for token, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
                if tuple(span) == (2, 2 + len(str(n))):
                    found[n] = int(token)
        # Tokens that stand for several numbers (an unknown one) are none.
        return {n: token for n, token in found.items() if list(found.values()).count(token) == 1}

    def _answer(self, question: Question) -> str | Missing:
        import torch

        asked = ["local", self.model.identity, [list(m) for m in question.messages], question.max_tokens]
        asked.append(question.attempt)
        kept = self.cache.get(asked)
        if isinstance(kept, str):
            return kept
        ids = self._encode(self._prompt(question.messages))["input_ids"]
        if self._too_long(len(ids) + question.max_tokens):
            return Missing(TOO_LONG)
        prompt = torch.tensor([ids], device=self.model.device)
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if question.attempt > 0:
            sampling = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(derive_seed("autointerp", *asked) % 2**31)
            drawn: Any = self._inner.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=question.max_tokens,
                repetition_penalty=1.0, pad_token_id=self._pad, **sampling,
            )  # fmt: skip
        reply = str(self.model.tokenizer.decode(drawn[0, len(ids) :], skip_special_tokens=True))
        self.cache.put(asked, reply)
        return reply

    def _weigh(self, cloze: Cloze) -> Weights | Missing:
        import torch

        asked = ["local", self.model.identity, [list(m) for m in cloze.messages], cloze.answer]
        kept = self.cache.get(asked)
        if isinstance(kept, list) and len(kept) == len(cloze.places):
            return kept
        prompt = self._prompt(cloze.messages)
        encoded = self._encode(prompt + cloze.answer, offsets=True)
        if self._too_long(len(encoded["input_ids"])):
            return Missing(TOO_LONG)
        first = {
            int(span[0]): i for i, span in reversed(list(enumerate(encoded["offset_mapping"]))) if span[1]
        }
        places = [first.get(len(prompt) + place) for place in cloze.places]
        before = [place - 1 for place in places if place]
        if len(before) < len(places):
            return Missing(MALFORMED)
        ids = torch.tensor([encoded["input_ids"]], device=self.model.device)
        index = torch.tensor(before, device=ids.device)
        with torch.no_grad():
            # All logits of a long prompt may be as large as the model.
            if "logits_to_keep" in inspect.signature(self._inner.forward).parameters:
                logits = self._inner(ids, logits_to_keep=index).logits[0]
            else:
                logits = self._inner(ids).logits[0, index]
        likely = torch.log_softmax(logits.float(), dim=-1).cpu()
        weights = [{str(n): float(place[t]) for n, t in self._number_ids.items()} for place in likely]
        self.cache.put(asked, weights)
        return weights

    @property
    def _inner(self) -> Any:
        model: Any = self.model.model
        return model.model if hasattr(model, "named_modules_dict") else model

    @property
    def _pad(self) -> int | None:
        tokenizer = self.model.tokenizer
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def _too_long(self, n: int) -> bool:
        return self.model.context_limit is not None and n > self.model.context_limit

    def _prompt(self, messages: Sequence[Message]) -> str:
        """A conversation up to where the answer begins."""
        if not self._templated:
            parts = [f"{message.role.capitalize()}:\n{message.content}\n\n" for message in messages]
            return "".join(parts) + "Assistant:\n"
        from jinja2 import TemplateError

        try:
            return self._render(messages)
        except TemplateError:
            # Some templates refuse a system's message: the first user says it then.
            system, first, *rest = messages
            return self._render([Message("user", f"{system.content}\n\n{first.content}"), *rest])

    def _render(self, messages: Sequence[Message]) -> str:
        return str(
            self.model.tokenizer.apply_chat_template(
                [message._asdict() for message in messages], tokenize=False, add_generation_prompt=True
            )
        )

    def _encode(self, text: str, *, offsets: bool = False) -> Any:
        # A template writes the special tokens itself.
        return self.model.tokenizer(
            text, add_special_tokens=not self._templated, return_offsets_mapping=offsets
        )

    @property
    def _templated(self) -> bool:
        return getattr(self.model.tokenizer, "chat_template", None) is not None


def _counted(what: str, ask: Callable[[Asked], Reply], questions: Sequence[Asked]) -> list[Reply]:
    """A reply for each, one after the other."""
    replies: list[Reply] = []
    with Progress(what, len(questions), "replies") as progress:
        for question in questions:
            replies.append(ask(question))
            progress.update()
    return replies
