"""The one adapter to a language model: activations at hooks, logits, and either with an edit."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import model_source, unembedding
from sae_faithful.hashing import derive_seed
from sae_faithful.interfaces import ModelUnreadable, UsageError
from sae_faithful.registry import unknown
from sae_faithful.trust import code_only_as, weights_from, weights_only

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from jaxtyping import Float, Int
    from sae_lens.config import LanguageModelSAERunnerConfig
    from transformer_lens.HookedTransformer import HookedRootModule


OF_REPOSITORY = ("revision", "code_revision", "trust_remote_code")
"""Loading options that mean one repository."""


@dataclass(eq=False)
class LanguageModel:
    """A model that SAELens can load. Names, sizes and tokenizer cost nothing; weights load on first use."""

    name: str
    class_name: str = "AutoModelForCausalLM"
    hooks: tuple[str, ...] = ()
    """Hook points that will be asked for; SAELens fixes those of a Hugging Face model when it loads it."""
    hook_head_index: int | None = None
    device: str = "cpu"
    from_pretrained_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    given: HookedRootModule | None = None
    """A model made by the caller (SAELens's `override_model`), used in place of loading `name`."""
    random_init_seed: int | None = None
    """Weights drawn anew under this seed, in place of the trained ones."""
    autocast: bool = False
    """Read activations under bfloat16 autocast, as SAELens's `autocast_lm`; logits keep the weights' dtype."""

    @classmethod
    def from_config(
        cls,
        config: LanguageModelSAERunnerConfig[Any],
        hooks: Sequence[str] = (),
        given: HookedRootModule | None = None,
    ) -> LanguageModel:
        """The model that a SAELens config names."""
        return cls(
            name=config.model_name,
            class_name=config.model_class_name,
            hooks=tuple(hooks or [config.hook_name]),
            hook_head_index=config.hook_head_index,
            device=str(config.llm_device or config.device),
            from_pretrained_kwargs=dict(config.model_from_pretrained_kwargs or {}),
            given=given,
            random_init_seed=_random_init_seed(config),
            autocast=config.autocast_lm,
        )

    @cached_property
    def model(self) -> HookedRootModule:
        """The model with its weights, loaded by SAELens; what SAELens's runners take as `override_model`."""
        model = self._loaded() if self.given is None else self.given
        if self.random_init_seed is not None:
            model = model if self.given is None else copy.deepcopy(model)
            model_source.reinitialise(model, self.random_init_seed)
        return model

    def unload(self) -> None:
        """Let go of the weights; they are loaded again where they are used again."""
        self.__dict__.pop("model", None)

    def loads_as(self, other: LanguageModel) -> bool:
        """Whether both would have the same weights with the same hooks, so that one can stand for the other."""
        names = [entry.name for entry in fields(self)]
        return all(getattr(self, name) == getattr(other, name) for name in names) and (
            self.given is None and self.identity == other.identity
        )

    def _loaded(self) -> HookedRootModule:
        from sae_lens.load_model import load_model

        options = weights_from(self.class_name, self.from_pretrained_kwargs)
        try:
            with weights_only(), code_only_as(options, self.name):
                model = load_model(
                    self.class_name,
                    model_source.resolve(self.name),
                    device=self.device,
                    model_from_pretrained_kwargs=options,
                    hook_names=list(self.hooks),
                )
        except OSError as error:
            if options.get("use_safetensors") and "safetensors" in str(error):
                raise ModelUnreadable(
                    f"{self.name} has no safetensors; model_from_pretrained_kwargs: {{use_safetensors: false}} "
                    "reads its pickled ones, of which PyTorch then takes tensors only"
                ) from error
            raise
        if _is_proxy(model) and model_source.pins(options):
            # SAELens reads the newest.
            model.tokenizer = self.tokenizer
        return model.eval()

    @cached_property
    def skeleton(self) -> HookedRootModule:
        """The model without weights (on the meta device), or the given model."""
        if self.given is not None:
            return self.given
        return model_source.skeleton(self.name, self.class_name, self.from_pretrained_kwargs)

    @cached_property
    def identity(self) -> str:
        """Name and revision; equal identities mean equal weights."""
        identity = (
            model_source.identity(self.name, self.class_name, self.from_pretrained_kwargs)
            if self.given is None
            else model_source.identity_of_weights(self.name, self.given)
        )
        return (
            identity if self.random_init_seed is None else f"{identity}+random-init-{self.random_init_seed}"
        )

    @property
    def files(self) -> str:
        """What another library loads this model from: a name on the hub, or a folder."""
        return model_source.resolve(self.name)

    @cached_property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        if self.given is not None:
            return getattr(self.given, "tokenizer", None)
        return model_source.load_tokenizer(self.name, self.class_name, self.from_pretrained_kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of token ids the model embeds."""
        config = _config(self.skeleton)
        return int(getattr(config, "d_vocab", None) or getattr(config, "vocab_size", 0))

    @property
    def context_limit(self) -> int | None:
        """Longest sequence the model was built for, where its config says so."""
        config = _config(self.skeleton)
        for name in ("n_ctx", "max_position_embeddings", "n_positions"):
            if getattr(config, name, None):
                return int(getattr(config, name))
        return None

    @property
    def bos_token_id(self) -> int:
        """BOS, or EOS in models without one (they were trained with EOS between documents).

        Raises:
            UsageError: the tokenizer has neither.
        """
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(self.tokenizer, name, None)
            if token is not None:
                return int(token)
        raise UsageError(f"the tokenizer of {self.name} has neither a BOS nor an EOS token")

    @cached_property
    def special_token_ids(self) -> list[int]:
        """Structural special tokens (BOS, EOS, PAD, SEP): they count in no measurement."""
        from sae_lens.util import get_special_token_ids

        return sorted(get_special_token_ids(self.tokenizer))

    def hook_size(self, hook: str) -> int | None:
        """Length of the activation vector at `hook`, heads concatenated unless one is chosen (SAELens's `d_in`).

        None where the model cannot run without its weights (some route tokens by their values).

        Raises:
            UsageError: no such hook; the nearest names are given. Or it has no such head.
        """
        import torch

        if hook not in self.skeleton.hook_dict:
            names = [name for name in self.skeleton.hook_dict if name]
            raise UsageError(_unknown_hook(hook, self.name, names))
        tokens = torch.zeros(1, 2, dtype=torch.long, device=next(self.skeleton.parameters()).device)
        try:
            with torch.no_grad():
                cache = self.skeleton.run_with_cache(tokens, names_filter=[hook], prepend_bos=False)[1]
        except (RuntimeError, NotImplementedError):
            return None
        if hook not in cache:
            raise UsageError(f"hook_name '{hook}' of {self.name} gives no activation tensor")
        self._check_head(hook, cache[hook])
        return self._flat(cache[hook]).shape[-1]

    def activations(
        self, tokens: Int[torch.Tensor, "rows context"], hooks: Sequence[str]
    ) -> dict[str, Float[torch.Tensor, "rows context d_in"]]:
        """Activations at `hooks`, in one forward that stops after the last of them."""
        import torch

        device = torch.device(self.device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            cache = self.model.run_with_cache(
                tokens.to(self.device),
                names_filter=list(hooks),
                stop_at_layer=_stop_after(hooks),
                prepend_bos=False,
            )[1]
        return {hook: self._flat(cache[hook]) for hook in hooks}

    def logits(self, tokens: Int[torch.Tensor, "rows context"]) -> Float[torch.Tensor, "rows context vocab"]:
        """Next-token logits after every position."""
        import torch

        with torch.no_grad():
            return self._run(tokens, [])

    def logits_with_edit(
        self,
        tokens: Int[torch.Tensor, "rows context"],
        hook: str,
        edit: Callable[[torch.Tensor], torch.Tensor],
        *,
        grad: bool = False,
    ) -> Float[torch.Tensor, "rows context vocab"]:
        """Logits when the activations [rows, context, d_in] at `hook` are replaced by `edit(activations)`.

        With `grad` they can be differentiated by what `edit` adds.
        """
        import torch

        with torch.set_grad_enabled(grad):
            return self._run(tokens, [(hook, self._replacing(edit))])

    def activations_with_edit(
        self,
        tokens: Int[torch.Tensor, "rows context"],
        hook: str,
        edit: Callable[[torch.Tensor], torch.Tensor],
        hooks: Sequence[str],
        *,
        grad: bool = False,
    ) -> dict[str, Float[torch.Tensor, "rows context d_in"]]:
        """`activations` at `hooks` when those at `hook` are replaced by `edit(activations)`.

        One forward that stops after the last of `hooks`. Those that run before `hook` are as they would be without
        the edit; at `hook` itself it is what `edit` gave. With `grad` they can be differentiated by what it adds.
        """
        import torch

        found: dict[str, torch.Tensor] = {}

        def record(activations: torch.Tensor, hook: Any) -> None:
            found[str(hook.name)] = self._flat(activations)

        # The recorders come second, so that at the edited hook itself they are shown what the edit gave.
        recorders = [(each, record) for each in dict.fromkeys(hooks)]
        options: dict[str, Any] = {"stop_at_layer": _stop_after(hooks)}
        if _is_proxy(self.model):
            # SAELens's wrapper stops after the last module of these.
            options["_names_filter"] = list(hooks)
        device = torch.device(self.device)
        with torch.set_grad_enabled(grad), torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            self._run(tokens, [(hook, self._replacing(edit)), *recorders], **options)
        return {each: found[each] for each in hooks}

    def unembedding(self) -> Float[torch.Tensor, "vocab d_model"] | None:
        """What each token's logit reads of the residual stream: its output row with the final norm's gain in it.

        float32. The norm divides by a scale of its input besides, so logits are these products up to a factor.
        None where a Hugging Face model's output matrix or final norm is not found.
        """
        if _is_proxy(self.model):
            return unembedding.of_hugging_face(self.model.model)
        return unembedding.of_hooked(self.model)

    def hooks_in_order(self, hooks: Sequence[str]) -> list[str]:
        """`hooks` in the order in which the model runs them; those that it does not run are left out."""
        import torch

        order: list[str] = []

        def note(activations: torch.Tensor, hook: Any) -> None:
            del activations
            order.append(str(hook.name))

        with torch.no_grad():
            self._run(torch.zeros(1, 2, dtype=torch.long), [(each, note) for each in dict.fromkeys(hooks)])
        return list(dict.fromkeys(order))

    def random_rows(
        self, n_rows: int, context_size: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "n_rows context_size"]:
        """Rows of BOS and ids uniform over the vocabulary without its special tokens."""
        ordinary = np.setdiff1d(np.arange(self.vocab_size), self.special_token_ids)
        rows = rng.choice(ordinary, size=(n_rows, context_size))
        rows[:, 0] = self.bos_token_id
        return rows

    def variant(self, name: str | None = None, dtype: str | None = None) -> LanguageModel:
        """Another model (trained, whatever this one is) with the same options, or this one in another dtype.

        What is said of this model's repository, a revision and trust in its code, is not said of the other's.

        Raises:
            UsageError: `name` has another vocabulary, so that its tokens would mean something else here.
        """
        kwargs = dict(self.from_pretrained_kwargs)
        if name not in (None, self.name):
            kwargs = {key: value for key, value in kwargs.items() if key not in OF_REPOSITORY}
        given = self.given if name is None else None
        if dtype is not None:
            import torch

            kwargs["dtype"] = getattr(torch, dtype)
            given = None if given is None else copy.deepcopy(given).to(kwargs["dtype"])
        other = replace(self, name=name or self.name, from_pretrained_kwargs=kwargs, given=given)
        if name is not None:
            other.hooks, other.random_init_seed = (), None
            if other.tokenizer.get_vocab() != self.tokenizer.get_vocab():
                raise UsageError(f"generator '{name}' has another vocabulary than {self.name}")
        return other

    def __getstate__(self) -> dict[str, Any]:
        """To another process goes what the model is; it loads for itself, if it has to."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def _run(self, tokens: torch.Tensor, hooks: list[Any], **options: Any) -> torch.Tensor:
        if not _is_proxy(self.model):
            options["prepend_bos"] = False
        return self.model.run_with_hooks(
            tokens.to(self.device), return_type="logits", fwd_hooks=hooks, **options
        )

    def _replacing(self, edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
        """A hook that puts `edit(activations)` in the place of the activations."""

        def replace_activations(activations: torch.Tensor, hook: object) -> torch.Tensor:
            del hook  # TransformerLens passes it by this name
            flat = self._flat(activations)
            edited = edit(flat).to(activations.dtype)
            if self.hook_head_index is not None:
                whole = activations.clone()
                whole[:, :, self.hook_head_index] = edited
                return whole
            return edited.reshape(activations.shape)

        return replace_activations

    def _check_head(self, hook: str, activations: torch.Tensor) -> None:
        """Heads are the third of four axes; counted from the end, an index is negative, as SAELens takes it."""
        index = self.hook_head_index
        if index is None:
            return
        if activations.ndim != 4:
            raise UsageError(f"hook_head_index = {index}: hook_name '{hook}' of {self.name} has no heads")
        n_heads = activations.shape[2]
        if not -n_heads <= index < n_heads:
            raise UsageError(
                f"hook_head_index = {index}: hook_name '{hook}' of {self.name} has {n_heads} heads"
            )

    def _flat(self, activations: torch.Tensor) -> torch.Tensor:
        if self.hook_head_index is not None:
            return activations[:, :, self.hook_head_index]
        return activations.flatten(start_dim=2) if activations.ndim > 3 else activations


def _random_init_seed(config: LanguageModelSAERunnerConfig[Any]) -> int | None:
    """None for a plain SAELens config, which has no such field."""
    if getattr(config, "model_init", "pretrained") == "pretrained":
        return None
    return derive_seed(config.seed, "model_init")


def _stop_after(hooks: Sequence[str]) -> int | None:
    """The layer that need not run for any of `hooks`, as SAELens counts; None where one stands outside the layers."""
    from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name

    stops = [extract_stop_at_layer_from_tlens_hook_name(hook) for hook in hooks]
    layers = [stop for stop in stops if stop is not None]
    return max(layers) if len(layers) == len(stops) else None


def _is_proxy(model: HookedRootModule) -> bool:
    from sae_lens.load_model import HookedProxyLM

    return isinstance(model, HookedProxyLM)


def _config(model: HookedRootModule) -> Any:
    """TransformerLens's config, or the Hugging Face one inside SAELens's wrapper."""
    inner = getattr(model, "model", model) if _is_proxy(model) else model
    config = getattr(inner, "cfg", None) or getattr(inner, "config", None)
    # Multimodal models keep the language model's config inside.
    return getattr(config, "text_config", None) or config


def _unknown_hook(hook: str, model: str, names: list[str]) -> str:
    """Too many hooks to list: the nearest, or one of each kind with the layer left open."""
    import re

    line = unknown("hook_name", hook, names, f"hooks of {model}")
    kinds = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".N", name) for name in names))
    return line.partition("; hooks of")[0] + f"; hooks of {model}: {', '.join(kinds)}"
