"""The nouns that plugins are written in: sources, observers, evaluators, and what they yield."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from sae_faithful.redaction import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    import pandas as pd
    import torch

    from sae_faithful.language_model import LanguageModel
    from sae_faithful.sae_handle import SAEHandle
    from sae_faithful.source_request import SourceRequest
    from sae_faithful.tokens import TokenSet


class UsageError(ValueError):
    """What the user gave is wrong: shown as one line that names the value and the choices; exit code 2.

    The message is made one line, without secrets, whatever it quotes.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class ModelUnreadable(UsageError):
    """A model's files cannot be had: there are none of that name, or no way to them."""


class RunError(RuntimeError):
    """A run cannot go on: shown as one line that names the part at fault; exit code 1. See `UsageError`."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


@runtime_checkable
class Source(Protocol):
    """Where tokens come from. A dataclass whose fields are its options (each with a docstring).

    One with a method `work(request)` says what `load` will cost: a `Work`. One with a method `pieces(request)` can
    have parts of it made by several processes beforehand: `Pieces`.
    """

    def load(self, request: SourceRequest) -> TokenSet:
        """Return `request.n_tokens` tokens in rows of `request.context_size`, or as many as there are."""
        ...


class Pieces(Protocol):
    """What of a text several processes can put into the cache, for the source's `load` to find there.

    One that holds something of its own may have a method `close()`.
    """

    def missing(self) -> Sequence[str]:
        """Pieces to make now, each in any process and any order; asked again when they are there."""
        ...

    def make(self, piece: str) -> None:
        """Make one; a process that dies meanwhile leaves nothing that looks like one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A piece of work that is done once, and timed, to say how long many of it will take."""

    run: Callable[[], object]
    """Takes a second at most; leaves nothing behind. Random numbers may be drawn: the state is put back."""
    times: float
    """How many of it the real work amounts to."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a source or an evaluator will do, in things whose speed is measured when a run begins.

    What a plugin's optional method `work` returns: `Source.work(request)`, `Evaluator.work(context)`.
    """

    passes: Mapping[str, Sequence[SAEHandle]] = field(default_factory=dict[str, "Sequence[SAEHandle]"])
    """Held-out texts that observers see, with the SAEs whose latents they ask for there. What several evaluators
    see counts once."""
    texts: Mapping[str, int] = field(default_factory=dict[str, int])
    """Tokens of texts of its own that observers see, by a name that `passes` may use."""
    forward_tokens: float = 0
    """Tokens of other forwards, up to the last hook."""
    encoded_tokens: float = 0
    """Tokens × SAEs that are encoded apart from `passes`."""
    logit_tokens: float = 0
    """Tokens of whole forwards, with a log-softmax of the logits."""
    trials: Sequence[Trial] = ()
    """What else takes time on this machine."""
    seconds: float = 0
    """What takes its time on any machine: a server's replies, say."""
    at_least: bool = False
    """Whether there is more to it that is known only when it is done."""


Sign = Literal["relu", "split", "signed"]
"""What becomes of the codes below 0 of a baseline: dropped, latents of their own, or kept as they are."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Directions:
    """What a baseline found: one direction a row. The host makes the latents and the reconstruction of it.

    Codes are c = read · (x - mean), the reconstruction is writeᵀ c + mean.
    """

    read: torch.Tensor
    """[n, d_in]: what codes are read along."""
    write: torch.Tensor
    """[n, d_in]: what codes are written along."""
    mean: torch.Tensor
    """[d_in]: subtracted before, added back after; zeros where nothing is centred."""
    sign: Sign = "split"
    """`split` makes 2n latents of them: codes along `read`, then along -`read`, and of both what is above 0."""
    k: int | None = None
    """Only the k largest latents of a token are kept, of which those above 0."""
    card: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What a reader should know about the fit: plain JSON."""


@runtime_checkable
class Baseline(Protocol):
    """Directions that are fitted to activations and not trained. A dataclass whose fields are its options.

    One with an attribute `every_seed` that is true is fitted once for each of the experiment's `sae_seeds`;
    any other once, under the first of them.
    """

    def fit(self, activations: torch.Tensor, seed: int) -> Directions:
        """Directions for activations like these, [n, d_in], float32 on the CPU; not to be changed."""
        ...


class ActivationBatch(Protocol):
    """A few rows of one token set with the model's activations at one hook."""

    tokens: torch.Tensor
    """Token ids [rows, context]."""
    mask: torch.Tensor
    """True [rows, context] where a token counts: BOS and other special tokens do not."""
    activations: torch.Tensor
    """[rows, context, d_in]."""
    first_row: int
    """Index in the token set of this batch's first row."""

    def latents(self, handle: SAEHandle) -> torch.Tensor:
        """The SAE's latents [rows, context, d_sae], computed once however many observers ask."""
        ...


class Observer(Protocol):
    """Sees every batch of one token set at one hook; the host makes one pass for all observers of a pair."""

    hook: str
    tokens: TokenSet

    def update(self, batch: ActivationBatch) -> None:
        """Take in one batch; keep sums, not activations."""
        ...


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """What an evaluator may use."""

    handles: Sequence[SAEHandle]
    """The SAEs to measure."""
    held_out: Mapping[str, TokenSet]
    """Rows nothing was trained on, by source and dataset name; sources first, as in the config."""
    sources: Sequence[str]
    """Names in `held_out` that SAEs were trained on."""
    language_model: LanguageModel
    """The model whose activations are measured."""
    seed: int
    """The experiment's seed; derive your own streams from it with `sae_faithful.derive_seed`."""
    features: pd.DataFrame | None = None
    """In `evaluate`, for an evaluator that has `reads` or `may_read`: the columns of those, as in `features.parquet`.

    None where none of them gave any.
    """

    def handles_at(self, hooks: Sequence[str] = (), variants: Sequence[str] = ()) -> list[SAEHandle]:
        """Those of `handles` at these hooks and of these variants; nothing given means all.

        Raises:
            UsageError: a hook or variant that none of them has.
        """
        asked = {"hook": list(hooks), "variant": list(variants)}
        for name, values in asked.items():
            there = list(dict.fromkeys(getattr(one, name) for one in self.handles))
            for value in values:
                if value not in there:
                    raise UsageError(
                        f"{name}s '{value}': there is none in this run; choices: {', '.join(there)}"
                    )
        return [
            one
            for one in self.handles
            if all(not values or getattr(one, name) in values for name, values in asked.items())
        ]


def own_texts(context: EvalContext) -> dict[str, list[SAEHandle]]:
    """For `Work.passes`: each source's text with the SAEs that were trained on it."""
    texts: dict[str, list[SAEHandle]] = {}
    for handle in context.handles:
        texts.setdefault(handle.source, []).append(handle)
    return texts


@runtime_checkable
class Evaluator(Protocol):
    """What is measured. A dataclass whose fields are its options (each with a docstring).

    One with an attribute or property `reads`, names of other evaluators, comes after those, is done again when they
    are, and finds their per-latent columns in `context.features`. With `may_read` it is the same for those of them that
    the config runs; the others' columns are not there.

    One with a method `work(context)` says what it will cost: a `Work`. Texts of that context are stand-ins that know
    their length and nothing else, and SAEs know their size.
    """

    def observers(self, context: EvalContext) -> Sequence[Observer]:
        """What must be seen; the host drives these before it calls `evaluate`."""
        ...

    def evaluate(
        self, context: EvalContext, observers: Sequence[Any]
    ) -> Iterable[EvalResult | FeatureTable | Artifact]:
        """Turn what the observers saw into results; `observers` are the ones `observers()` returned."""
        ...


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """One number with its unit and its interval: one row of `results.jsonl`.

    Per-SAE rows name a seed and carry intervals over sequences; per-source rows have none and carry
    intervals over SAEs. A row without an interval says why in `reason`.
    """

    metric: str
    value: float | None
    unit: str
    n: int | None = None
    """What the number is made from, counted: tokens, pairs or SAEs; docs/metrics.md says which."""
    ci_low: float | None = None
    ci_high: float | None = None
    """Bounds of the 95 % interval."""
    reason: str | None = None
    """Why there is no interval, or no value."""
    source: str | None = None
    hook: str | None = None
    variant: str | None = None
    seed: int | None = None
    other_seed: int | None = None
    dataset: str | None = None
    """The token set it was measured on, where that is not the source's own."""
    subset: str = "all"
    """Which latents: all, alive, ..."""
    condition: str | None = None
    """A threshold, say: `cosine>0.7`."""
    headline: bool = False
    """Whether the short table shows it; where an evaluator marks none, all of its per-source rows are shown."""
    evaluator: str = ""
    config_hash: str = ""
    """Both filled in by the host."""


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """Columns of one number a latent, for one SAE; they become columns of `features.parquet`."""

    handle: SAEHandle
    columns: Mapping[str, np.ndarray]
    """Arrays [d_sae] by name; in the file each name is preceded by the evaluator's."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A named figure, text or JSON document, for the report and W&B."""

    name: str
    kind: Literal["json", "text", "html"]
    content: Any
    """Or a function without arguments that gives it: called when it is written, and a monitor writes none."""
    card: Mapping[str, Any] = field(default_factory=dict[str, Any])
