"""What a causal tree is made of, and how it is written: features, and edges to the features they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import Detokenizer
from sae_faithful.metrics.intervals import Interval, mean_interval
from sae_faithful_plugins.case_studies.tree_contexts import Feature

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jaxtyping import Float

    from sae_faithful import SAEHandle
    from sae_faithful_plugins.case_studies.tree_contexts import Contexts
    from sae_faithful_plugins.case_studies.tree_effects import Effects

NEVER_FIRES = "it never fires on the text: there is no context to ablate anything in"
NO_PARENT = "no feature of an earlier hook that was ablated lowers it in a way that its contexts agree on"
FIRST_HOOK = "no SAE at an earlier hook"
ONE_CONTEXT = "one context says nothing about the spread between contexts"
NO_SPREAD = "the same in every context: they show no spread"
ROUNDING = 1e-5
"""Changes below this share of the activation are what batches of other shapes make of the same sum."""
TEXT_TOKENS = 12
COMMON_TOKENS = 3


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What taking one feature away does to a later one."""

    parent: Feature
    drop: float
    """Mean over contexts of original minus ablated activation; below 0 where the parent holds it back."""
    share: float
    """Of its mean activation in these contexts."""
    interval: Interval
    """Of the drop, over contexts, for this one parent: not corrected for how many there are."""
    active_contexts: int
    """In how many of the contexts the parent is active."""

    @property
    def holds(self) -> bool:
        """Whether it is an edge: its interval excludes 0.

        A strong mean may come from one context in which the parent happened to be active. Where no interval can be
        made there is but one context, or all say the same.
        """
        low, high, reason = self.interval
        if abs(self.share) <= ROUNDING:
            return False
        return reason is not None or (low is not None and high is not None and (low > 0 or high < 0))

    def document(self) -> dict[str, Any]:
        """Plain JSON."""
        low, high, reason = self.interval
        return {
            "hook": self.parent.hook, "latent": self.parent.latent, "drop": self.drop, "share": self.share,
            "ci_low": low, "ci_high": high, "reason": reason, "active_contexts": self.active_contexts,
        }  # fmt: skip

    def __str__(self) -> str:
        low, high, reason = self.interval
        bounds = f"no interval: {reason}" if low is None or high is None else f"[{low:.3g}, {high:.3g}]"
        return f"{self.parent}: drop {self.drop:.3g} {bounds}, {self.share:.0%} of the activation"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A feature, where it fires, and what it comes from."""

    feature: Feature
    maximum: float
    """M, over the text."""
    n_in_range: int
    """Tokens with an activation in [M/2, M]."""
    contexts: Sequence[Mapping[str, Any]]
    """Those drawn: row, position, activation, the token and the words up to it."""
    tested: Sequence[Mapping[str, Any]] = ()
    """For each earlier hook, how many of its features are active in the contexts, and how many were ablated."""
    parents: Sequence[Edge] = ()
    """Largest drop first."""
    inhibitors: Sequence[Edge] = ()
    """Those without which it is more active, strongest first. The tree is not grown from them."""
    reason: str | None = None
    """Why it has no parents."""

    def document(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "hook": self.feature.hook, "latent": self.feature.latent, "maximum": self.maximum,
            "tokens_in_range": self.n_in_range, "contexts": [dict(one) for one in self.contexts],
            "tested": [dict(one) for one in self.tested],
            "parents": [edge.document() for edge in self.parents],
            "inhibitors": [edge.document() for edge in self.inhibitors],
            "reason": self.reason,
        }  # fmt: skip

    def __str__(self) -> str:
        if not self.contexts:
            return f"{self.feature}"
        words = [str(one["token"]) for one in self.contexts]
        common = sorted(set(words), key=lambda word: (-words.count(word), word))[:COMMON_TOKENS]
        mean = float(np.mean([one["activation"] for one in self.contexts]))
        return (
            f"{self.feature}: at most {self.maximum:.3g}, {mean:.3g} in {len(self.contexts)} contexts, "
            f"on {', '.join(map(repr, common))}"
        )


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A feature and what it comes from, back to the first hook that there are SAEs at."""

    handle: SAEHandle
    latent: int
    nodes: Mapping[Feature, Node]
    """Its own first, then in the order in which they are reached, nearest first; each once."""

    def document(self) -> dict[str, Any]:
        """Plain JSON: the feature, and all nodes with their parents."""
        return {
            **self.handle.identity,
            "latent": self.latent,
            "nodes": [node.document() for node in self.nodes.values()],
        }

    def lines(self) -> list[str]:
        """The tree as text, a line an edge; a feature that is reached twice is followed once."""
        root = Feature(self.handle.hook, self.latent)
        followed: set[Feature] = set()
        return [str(self.nodes[root]), *self._below(root, followed, "  ")]

    def _below(self, feature: Feature, followed: set[Feature], indent: str) -> Iterator[str]:
        node = self.nodes[feature]
        followed.add(feature)
        if node.reason is not None and node.reason != FIRST_HOOK:
            yield f"{indent}({node.reason})"
        for edge in node.parents:
            above = " (its own parents: above)" if edge.parent in followed else ""
            words = str(self.nodes[edge.parent]).removeprefix(str(edge.parent)).removeprefix(": ")
            yield f"{indent}<- {edge}; itself {words}{above}"
            if not above:
                yield from self._below(edge.parent, followed, indent + "     ")
        for edge in node.inhibitors:
            yield f"{indent}-| {edge}: it is held back"


def edges_of(hook: str, effects: Effects, original: Float[np.ndarray, " contexts"]) -> Iterator[Edge]:
    """One for each parent at `hook` that was ablated, whether it holds or not.

    Args:
        hook: of the parents.
        effects: of each.
        original: the later feature's activation in each context.
    """
    activation = float(original.mean())
    for latent, drops, active in zip(effects.latents, effects.drops, effects.active_contexts, strict=True):
        drop = float(drops.mean())
        yield Edge(
            parent=Feature(hook, int(latent)),
            drop=drop,
            share=drop / activation if activation else 0.0,
            interval=_interval(drops, ROUNDING * activation),
            active_contexts=int(active),
        )


def _interval(drops: np.ndarray, rounding: float) -> Interval:
    if len(drops) < 2:
        return Interval(None, None, ONE_CONTEXT)
    if float(np.ptp(drops)) <= rounding:
        return Interval(None, None, NO_SPREAD)
    return mean_interval(drops.tolist())


def described(contexts: Contexts, tokenizer: Any) -> list[dict[str, Any]]:
    """Every context as plain JSON, with words, or token ids where there is no tokenizer."""
    detokenizer = Detokenizer(tokenizer)
    found: list[dict[str, Any]] = []
    for i, position in enumerate(contexts.positions):
        ids = contexts.tokens[i, : position + 1].numpy()
        found.append(
            {
                "row": int(contexts.rows[i]),
                "position": int(position),
                "activation": float(contexts.activations[i]),
                "token": detokenizer.text(ids[-1:]),
                "text": detokenizer.text(ids[-TEXT_TOKENS:]),
            }
        )
    return found
