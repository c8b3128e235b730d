"""What evaluators are asked about before anything exists: texts that know their length, SAEs that know their size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from sae_faithful.interfaces import EvalContext, ModelUnreadable
from sae_faithful.language_model import LanguageModel
from sae_faithful.plan import HELD_OUT
from sae_faithful.sae_handle import SAEHandle
from sae_faithful.source_request import SourceRequest
from sae_faithful.tokens import TokenSet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformer_lens.HookedTransformer import HookedRootModule

    from sae_faithful.config import ExperimentConfig
    from sae_faithful.plan import Plan, PlannedBaseline, PlannedText


@dataclass(frozen=True)
class PlannedTokens(TokenSet):
    """A text that is not there yet."""

    n_rows: int = 0
    width: int = 0

    @classmethod
    def of(cls, n_rows: int, width: int) -> Self:
        """So many rows of so many tokens."""
        return cls(dataset=cast(Any, None), n_rows=n_rows, width=width)

    def __len__(self) -> int:
        return self.n_rows

    @property
    def context_size(self) -> int:
        """Tokens a row."""
        return self.width


class SizesOfSAE:
    """In the place of SAELens's SAE: its config and nothing else."""

    def __init__(self, **sizes: Any) -> None:
        self.cfg = SimpleNamespace(**sizes)

    def eval(self) -> Self:
        """It is not trained."""
        return self

    def turn_off_forward_pass_hook_z_reshaping(self) -> None:
        """It does not run."""


@dataclass(eq=False)
class UnreadableModel(LanguageModel):
    """A model of which nothing is known but its name, so that the rest of a config can be checked."""

    reason: str = ""

    @cached_property
    def skeleton(self) -> HookedRootModule:
        """There is none.

        Raises:
            ModelUnreadable: always.
        """
        raise ModelUnreadable(self.reason)

    @cached_property
    def model(self) -> HookedRootModule:
        """There is none; raises as `skeleton` does."""
        raise ModelUnreadable(self.reason)

    @cached_property
    def tokenizer(self) -> Any:
        """There is none; raises as `skeleton` does."""
        raise ModelUnreadable(self.reason)

    @cached_property
    def identity(self) -> str:
        """Equal to no model's: no step that was done with it is done."""
        return f"{self.name}@unreadable"

    @property
    def context_limit(self) -> int | None:
        """Not known."""
        return None

    def hook_size(self, hook: str) -> int | None:
        """Not known."""
        del hook
        return None


def planned_context(plan: Plan, config: ExperimentConfig, model: LanguageModel) -> EvalContext:
    """The context that the plan's evaluators will have, as far as it is known."""
    metadata = SimpleNamespace(prepend_bos=config.prepend_bos)
    handles: list[SAEHandle] = []
    for text in plan.sources:
        for sae in plan.saes:
            sizes = {**sae.config.to_dict(), "metadata": metadata}
            handles.append(_handle(text.name, sae.hook, sae.variant, sae.seed, sizes))
        for baseline in plan.baselines:
            sizes = {**baseline_sizes(plan, baseline), "metadata": metadata}
            handles.append(
                _handle(text.name, baseline.hook, baseline.name, baseline.seed, sizes, kind="baseline")
            )
    held_out = {
        text.name: PlannedTokens.of(held_out_rows(text, config), config.context_size) for text in plan.texts
    }
    return EvalContext(
        handles=handles,
        held_out=held_out,
        sources=[text.name for text in plan.sources],
        language_model=model,
        seed=config.seed,
    )


def held_out_rows(text: PlannedText, config: ExperimentConfig) -> int:
    """Rows of a text that are measured: all of a dataset's, a tenth of a source's."""
    rows = text.n_tokens // config.context_size
    return math.ceil(rows * HELD_OUT) if text.trained_on else rows


def baseline_sizes(plan: Plan, baseline: PlannedBaseline) -> dict[str, Any]:
    """At most: two latents for each entry of the activation, or for each direction that an option asks for."""
    d_in = next(int(sae.config.d_in) for sae in plan.saes if sae.hook == baseline.hook)
    options = baseline.options
    asked = next((options[name] for name in ("n", "n_components", "dims") if options.get(name)), d_in)
    per_direction = 1 if options.get("sign") in ("relu", "signed") else 2
    return {"d_in": d_in, "d_sae": per_direction * int(asked), "architecture": "standard"}


def request_for(
    text: PlannedText, config: ExperimentConfig, model: LanguageModel, cache: Path
) -> SourceRequest:
    """What the text's source will be asked for."""
    return SourceRequest(
        name=text.name,
        n_tokens=text.n_tokens,
        context_size=config.context_size,
        prepend_bos=config.prepend_bos,
        seed=config.seed,
        cache_dir=cache,
        language_model=model,
    )


def _handle(
    source: str,
    hook: str,
    variant: str,
    seed: int,
    sizes: Mapping[str, Any],
    kind: Literal["trained", "baseline"] = "trained",
) -> SAEHandle:
    return SAEHandle(
        source=source, hook=hook, variant=variant, seed=seed, load=lambda: SizesOfSAE(**sizes), kind=kind
    )
