"""A source of dice throws, and an evaluator of the largest activation: a complete plugin."""
import random
from dataclasses import dataclass

from sae_faithful import EvalResult, hookimpl

@hookimpl
def register_sources(register): register("dice", Dice)

@hookimpl
def register_evaluators(register): register("largest_activation", LargestActivation)

@dataclass
class Dice:
    """Throws of dice, twenty a document."""
    sides: int = 6
    """How many sides a die has."""
    def load(self, request):
        throw = random.Random(request.seed).choice
        throws = (" ".join(f"w{throw(range(4, 4 + self.sides))}" for _ in range(20)) for _ in iter(int, 1))
        return request.pack(request.tokenize(throws))

@dataclass
class LargestActivation:
    """The largest activation of any latent on its SAE's own held-out text."""
    def observers(self, context): return [Seen(one, context.held_out[one.source]) for one in context.handles]
    def evaluate(self, context, observers):
        for seen in observers: yield EvalResult(metric="largest_activation", value=seen.largest, unit="activation",
                                                reason="an extreme has no interval", **seen.handle.identity)
class Seen:
    def __init__(self, handle, tokens): self.handle, self.hook, self.tokens, self.largest = handle, handle.hook, tokens, 0.0
    def update(self, batch): self.largest = max(self.largest, batch.latents(self.handle)[batch.mask].max().item())
