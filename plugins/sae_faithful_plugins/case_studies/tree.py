"""The causal tree: which features of earlier hooks a feature comes from, and theirs (Cunningham et al. 2023, 5.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sae_faithful import Progress, derive_seed
from sae_faithful_plugins.case_studies.tree_contexts import Feature, counting, find_contexts
from sae_faithful_plugins.case_studies.tree_effects import ParentAblation
from sae_faithful_plugins.case_studies.tree_nodes import (
    FIRST_HOOK,
    NEVER_FIRES,
    NO_PARENT,
    ROUNDING,
    Edge,
    Node,
    Tree,
    described,
    edges_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sae_faithful import EvalContext, LanguageModel, SAEHandle
    from sae_faithful_plugins.case_studies.tree_contexts import Contexts

PROBE_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class TreeOptions:
    """How a tree is made."""

    n_tokens: int
    """Held-out tokens of the source that maxima are taken over and contexts drawn from."""
    context_tokens: int
    """Of each row its first so many tokens; 0: all."""
    n_contexts: int
    """Contexts of each feature, at most one a row."""
    candidates: int
    """Parents that are ablated, of each feature and hook; 0: all that are active."""
    children: int
    """Strongest parents of each feature that are kept, and inhibitors."""
    seed: int


def causal_trees(
    targets: Sequence[tuple[SAEHandle, int]], context: EvalContext, options: TreeOptions
) -> Iterator[Tree]:
    """A tree for every target that has an SAE of its source, variant and seed at an earlier hook.

    A target's contexts are drawn from where it is at least half its maximum; there, every active feature of the
    earlier hook is taken away on its own, and the drop of the target's activation at the context's last token is
    averaged. The strongest are kept and grown in the same way, in contexts of their own: what is said of a feature
    does not depend on the tree that it stands in.

    Costs a pass over the text for each hook of the tree, and for each of its features a forward, up to its hook, of
    every context for every parent that is active in it.

    Args:
        targets: SAEs and latents.
        context: whose handles hold the SAEs at other hooks.
        options: how.
    """
    groups: dict[tuple[str, str, int], dict[str, SAEHandle]] = {}
    for handle in context.handles:
        groups.setdefault(_group(handle), {})[handle.hook] = handle
    parents_of: dict[frozenset[str], dict[str, list[str]]] = {}
    grown: dict[tuple[str, str, int], dict[Feature, Node]] = {}
    for handle, latent in targets:
        handles = groups.get(_group(handle), {})
        if len(handles) < 2:
            continue
        hooks = frozenset(handles)
        if hooks not in parents_of:
            order = context.language_model.hooks_in_order(list(handles))
            parents_of[hooks] = parent_hooks(context.language_model, order, options.seed)
        if not parents_of[hooks].get(handle.hook):
            continue
        if _group(handle) not in grown:
            # All at once: one pass over the text serves them all.
            roots = [
                Feature(other.hook, i)
                for other, i in targets
                if _group(other) == _group(handle) and parents_of[hooks].get(other.hook)
            ]
            grown[_group(handle)] = _Growth(handles, parents_of[hooks], context, options).grow(roots)
        root = Feature(handle.hook, latent)
        yield Tree(handle=handle, latent=latent, nodes=_reached(root, grown[_group(handle)]))


def parent_hooks(model: LanguageModel, order: Sequence[str], seed: int) -> dict[str, list[str]]:
    """For every hook the earlier ones whose features are its features' possible parents, nearest first.

    It is the hook before, as in the paper, if everything that reaches this one goes through that: if, with the
    activations there taken from another text, this hook is as in the other text. That holds for two places in the
    residual stream. It does not hold for an MLP's output, which the residual stream goes past: then the hook before
    that is a parent too, and so on. Hooks that do not reach this one at all (the attention beside an MLP, in models
    that run them in parallel) are left out.

    Args:
        model: a causal language model.
        order: hooks, as they run.
        seed: of the two random texts that are exchanged.
    """
    rng = np.random.default_rng(derive_seed(seed, "parent hooks"))
    drawn = rng.integers(0, model.vocab_size, size=(2, 1, PROBE_TOKENS))
    one, other = (torch.from_numpy(ids) for ids in drawn)
    of_one, of_other = (model.activations(ids, order) for ids in (one, other))
    found: dict[str, list[str]] = {}
    for i, hook in enumerate(order):
        found[hook] = []
        whole = _distance(of_one[hook], of_other[hook])
        for earlier in reversed(order[:i]):
            exchanged = model.activations_with_edit(
                one, earlier, lambda own, earlier=earlier: of_other[earlier].to(own.device), [hook]
            )[hook]
            if _distance(exchanged, of_one[hook]) > ROUNDING * whole:
                found[hook].append(earlier)
            if _distance(exchanged, of_other[hook]) <= ROUNDING * whole:
                break
    return found


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).norm())


def _group(handle: SAEHandle) -> tuple[str, str, int]:
    return (handle.source, handle.variant, handle.seed)


@dataclass(frozen=True)
class _Growth:
    """Trees of one source, variant and seed."""

    handles: Mapping[str, SAEHandle]
    parents_of: Mapping[str, Sequence[str]]
    context: EvalContext
    options: TreeOptions

    def grow(self, roots: Sequence[Feature]) -> dict[Feature, Node]:
        """All nodes that are reached, level by level; each is looked at once."""
        nodes: dict[Feature, Node] = {}
        level = list(dict.fromkeys(roots))
        while level:
            with Progress("case_studies: causal trees", len(level), "features") as progress:
                for feature, contexts in self._contexts(level).items():
                    nodes[feature] = self._node(feature, contexts)
                    progress.update()
            reached = [edge.parent for feature in level for edge in nodes[feature].parents]
            level = [feature for feature in dict.fromkeys(reached) if feature not in nodes]
        return nodes

    def _contexts(self, features: Sequence[Feature]) -> dict[Feature, Contexts]:
        text = self.context.held_out[next(iter(self.handles.values())).source]
        return find_contexts(
            self.context.language_model,
            text,
            self.handles,
            features,
            n_tokens=self.options.n_tokens,
            context_tokens=self.options.context_tokens,
            n_contexts=self.options.n_contexts,
            seed=self.options.seed,
        )

    def _node(self, feature: Feature, contexts: Contexts) -> Node:
        fields: dict[str, Any] = {
            "feature": feature,
            "maximum": contexts.maximum,
            "n_in_range": contexts.n_in_range,
            "contexts": described(contexts, self.context.language_model.tokenizer),
        }
        if not self.parents_of[feature.hook]:
            return Node(**fields, reason=FIRST_HOOK)
        if not len(contexts):
            return Node(**fields, reason=NEVER_FIRES)
        tested: list[dict[str, Any]] = []
        edges: list[Edge] = []
        for hook in self.parents_of[feature.hook]:
            ablation = self._ablation(feature, contexts, hook)
            effects = ablation.effects(self.options.candidates)
            tested.append({"hook": hook, "active": effects.n_active, "ablated": len(effects.latents)})
            edges += edges_of(hook, effects, ablation.original)
        # Of equal ones the nearest hook and the lower number first: sorting keeps their order.
        held = [edge for edge in edges if edge.holds]
        raised = sorted((edge for edge in held if edge.drop > 0), key=lambda edge: -edge.drop)
        lowered = sorted((edge for edge in held if edge.drop < 0), key=lambda edge: edge.drop)
        return Node(
            **fields,
            tested=tested,
            parents=raised[: self.options.children],
            inhibitors=lowered[: self.options.children],
            reason=None if raised else NO_PARENT,
        )

    def _ablation(self, feature: Feature, contexts: Contexts, hook: str) -> ParentAblation:
        model, parent = self.context.language_model, self.handles[hook]
        own = torch.from_numpy(counting(model, parent, contexts.tokens.numpy()))
        return ParentAblation(
            model, self.handles[feature.hook], feature.latent, contexts, parent, contexts.counted & own
        )


def _reached(root: Feature, nodes: Mapping[Feature, Node]) -> dict[Feature, Node]:
    found = {root: nodes[root]}
    waiting = [root]
    for feature in waiting:
        for edge in found[feature].parents:
            if edge.parent not in found:
                found[edge.parent] = nodes[edge.parent]
                waiting.append(edge.parent)
    return found
