"""Evaluator `top_contexts`: where in real text chosen latents are most active, and what they say to the logits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sae_faithful import Artifact, UsageError, Work, hookimpl, own_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sae_faithful import EvalContext, SAEHandle
    from sae_faithful_plugins.top_contexts.strongest import Strongest


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("top_contexts", TopContexts)


@dataclass
class TopContexts:
    """Chosen latents of every SAE, each with the places in real text where it is most active.

    Chosen are the most fake, the most stable, those without a match in other seeds, and the best of each probing task,
    as far as the evaluators that tell are run; and what matches them in the other seeds.
    """

    may_read: ClassVar[tuple[str, ...]] = ("shared_features", "fake_features", "probing")
    """Whose columns choose."""

    n_latents: int = 8
    """How many latents of each SAE are chosen for each reason; 0: only those of `latents`."""
    n_contexts: int = 5
    """How many rows of text a latent is shown in, at most."""
    window: int = 12
    """So many tokens are shown on each side of the strongest one."""
    n_tokens_promoted: int = 10
    """How many tokens are listed whose logits a latent's direction raises most, and how many that it lowers most."""
    latents: list[int] = field(default_factory=list[int])
    """These latents too, of every SAE."""
    baselines: bool = False
    """Show latents of baselines too."""

    def __post_init__(self) -> None:
        for name in ("n_latents", "window", "n_tokens_promoted"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} is below 0")
        if self.n_contexts < 1:
            raise ValueError(f"n_contexts {self.n_contexts} is not positive")
        for latent in self.latents:
            if latent < 0:
                raise ValueError(f"latents: {latent} is below 0")
        if not self.n_latents and not self.latents:
            raise ValueError("n_latents is 0 and latents is empty: there is nothing to show")

    def work(self, context: EvalContext) -> Work:
        """Each SAE on its text, and the rows that are shown once more: at most all of them."""
        handles = self._shown(context)
        return Work(
            passes=own_texts(replace(context, handles=handles)),
            forward_tokens=sum(
                context.held_out[source].n_tokens for source in {handle.source for handle in handles}
            ),
            encoded_tokens=sum(context.held_out[handle.source].n_tokens for handle in handles),
        )

    def observers(self, context: EvalContext) -> list[Strongest]:
        """Each SAE's strongest activations on the held-out text of its own source.

        Raises:
            UsageError: an SAE has no latent of that number.
        """
        from sae_faithful_plugins.top_contexts.strongest import Strongest

        handles = self._shown(context)
        for handle in handles:
            self._check(handle)
        texts = {handle.source: context.held_out[handle.source] for handle in handles}
        # Which tokens count is the same for all SAEs of a text.
        masks = {
            source: np.zeros((len(tokens), tokens.context_size), bool) for source, tokens in texts.items()
        }
        return [
            Strongest(handle, texts[handle.source], self.n_contexts, masks[handle.source])
            for handle in handles
        ]

    def evaluate(self, context: EvalContext, observers: Sequence[Strongest]) -> Iterator[Artifact]:
        """One document: every chosen latent of every SAE."""
        from sae_faithful_plugins.top_contexts.choosing import choose
        from sae_faithful_plugins.top_contexts.document import document
        from sae_faithful_plugins.top_contexts.windows import Windows, fill

        chosen = choose(self, observers, context.features)
        windows = [Windows.of(one, latents, self.window) for one, latents in chosen.items()]
        fill(windows, context.language_model)
        content = document(self, chosen, windows, context.language_model)
        yield Artifact(name="contexts", kind="json", content=content)

    def _shown(self, context: EvalContext) -> list[SAEHandle]:
        return [one for one in context.handles if self.baselines or one.kind != "baseline"]

    def _check(self, handle: SAEHandle) -> None:
        for latent in self.latents:
            if latent >= handle.d_sae:
                raise UsageError(
                    f"top_contexts: latents: {handle} has no latent {latent}; it has {handle.d_sae}"
                )
