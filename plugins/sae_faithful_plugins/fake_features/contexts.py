"""The most fake latents and where in real text they are most active, so that a person can judge them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import Artifact, Detokenizer, marked, name_of_sae

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sae_faithful import EvalContext
    from sae_faithful.metrics.fake_ratio import Criterion
    from sae_faithful_plugins.fake_features.counting import Meaningless, OwnText

LATENTS_IN_TEXT = 3
Document = dict[str, Any]


def fake_latents(
    measured: Sequence[tuple[OwnText, Meaningless]], criterion: Criterion, n: int, context: EvalContext
) -> Iterator[Artifact]:
    """Each SAE's `n` most fake latents with their strongest contexts, and a few of them to read."""
    saes = [_most_fake(own, random, criterion, n, context) for own, random in measured]
    rule = (
        f"fires on more than {criterion.tau:g} of random tokens and on more than {criterion.ratio:g} times "
    )
    rule += "the share of its own held-out text"
    yield Artifact(name="fake_latents", kind="json", content={"fake": rule, "saes": saes})
    # Baselines are dense: they fire on everything, and nothing is learned from reading where.
    trained = [sae for (own, _), sae in zip(measured, saes, strict=True) if own.handle.kind != "baseline"]
    first = {(sae["source"], sae["hook"], sae["variant"]): sae for sae in reversed(trained)}
    lines = [line for sae in reversed(first.values()) for line in _lines(sae)]
    yield Artifact(name="fake_latents", kind="text", content="\n".join(lines) + "\n")


def _most_fake(
    own: OwnText, random: Meaningless, criterion: Criterion, n: int, context: EvalContext
) -> Document:
    """Latents by how far their rate is above what makes it fake; those that never fire on real text apart."""
    rates, own_rates = random.any.rates, own.firings.rates
    # Positive exactly for fake latents; where none is fake, the nearest to it come first.
    margin = rates - np.maximum(criterion.tau, (criterion.ratio or 0) * own_rates)
    shown = [int(j) for j in np.argsort(-margin, kind="stable") if own.alive[j]][:n]
    fake = margin > 0
    latents = [
        {
            "latent": j,
            "fake": bool(fake[j]),
            "rate_random": float(rates[j]),
            "rate_own": float(own_rates[j]),
            "contexts": _contexts(own, j, context),
        }
        for j in shown
    ]
    return {
        **own.handle.identity,
        "n_fake": int(fake.sum()),
        "n_fake_and_never_on_text": int((fake & ~own.alive).sum()),
        "latents": latents,
    }


def _contexts(own: OwnText, latent: int, context: EvalContext) -> list[Document]:
    assert own.strongest is not None
    detokenizer = Detokenizer(context.language_model.tokenizer)
    found: list[Document] = []
    for activation, row, position in zip(
        own.strongest.values[latent], own.strongest.rows[latent], own.strongest.positions[latent], strict=True
    ):
        if activation > 0:
            ids = own.tokens.rows(int(row), int(row) + 1)[0]
            found.append(
                {
                    "activation": float(activation),
                    **detokenizer.around(ids, int(position)),
                    "row": int(row),
                    "position": int(position),
                }
            )
    return found


def _lines(sae: Document) -> list[str]:
    head = f"Most fake latents of {name_of_sae(sae)} ({sae['n_fake']} are fake"
    if sae["n_fake_and_never_on_text"]:
        head += f", {sae['n_fake_and_never_on_text']} of them never fire on real text"
    lines = [head + "), each with its strongest place in real text:", ""]
    for latent in sae["latents"][:LATENTS_IN_TEXT]:
        rates = (
            f"fires on {latent['rate_random']:.1%} of random tokens, {latent['rate_own']:.1%} of real text"
        )
        strongest = latent["contexts"][0]
        verdict = "" if latent["fake"] else " (not fake)"
        lines.append(
            f"- latent {latent['latent']}{verdict} {rates}; {strongest['activation']:.2f} at `{marked(strongest)}`"
        )
    return [*lines, ""]
