"""What the differences from baselines say in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_faithful_plugins.autointerp.differences import HEADLINE_SUBSET

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sae_faithful_plugins.autointerp.differences import Difference

READ = {
    "token_set_score": "explanations are sets of tokens, looked up: no language model, and no autointerpretation",
    "autointerp_score": "autointerpretation, by simulation",
    "detection_balanced_accuracy": "autointerpretation, by detection",
    "fuzzing_balanced_accuracy": "autointerpretation, by fuzzing",
}
NOTE = (
    "Higher or lower: the 95 % interval of the difference of means leaves out 0; undecided: it does not, or there is "
    "none. Each interval is for itself: of twenty differences that are truly 0 about one would be left out."
)


def reading(differences: Sequence[Difference]) -> str:
    """For every score, explainer and hook a sentence for each source's SAEs and baseline.

    Args:
        differences: of SAEs and of sources.
    """
    read = [
        one for one in differences if one.kind.metric in READ and one.kind.subset in ("", HEADLINE_SUBSET)
    ]
    lines: list[str] = []
    for kind in dict.fromkeys(one.kind for one in read):
        by = f"; {kind.by}" if kind.by else ""
        for hook in dict.fromkeys(one.row.hook for one in read if one.kind == kind):
            lines += [f"{kind.metric} at {hook} ({READ[kind.metric]}{by}):"]
            lines += [*_sentences([one for one in read if (one.kind, one.row.hook) == (kind, hook)]), ""]
    return "\n".join([*lines, NOTE]) + "\n"


def _sentences(differences: Sequence[Difference]) -> Iterator[str]:
    for one in differences:
        if one.row.seed is not None:
            continue
        # One SAE has no spread over SAEs, but its features have.
        own = [other for other in differences if other.row.value is not None and _is_of(other, one)]
        if one.row.n == 1 and own:
            yield _sentence(own[0], "over features of the one SAE")
        else:
            yield _sentence(one, f"over {one.row.n} SAEs")


def _sentence(one: Difference, over: str) -> str:
    row = one.row
    place = f"- {row.source}, {row.variant}:"
    if row.value is None:
        return f"{place} not compared with {one.baseline}: {row.reason}."
    if row.ci_low is None or row.ci_high is None:
        return f"{place} undecided against {one.baseline}: {row.value:+.3f}, no interval ({row.reason})."
    word = "higher than" if row.ci_low > 0 else "lower than" if row.ci_high < 0 else "undecided against"
    interval = f"95 % interval {row.ci_low:+.3f} to {row.ci_high:+.3f}, {over}"
    return f"{place} {word} {one.baseline}: {row.value:+.3f} ({interval})."


def _is_of(one: Difference, source: Difference) -> bool:
    """Whether a row is of an SAE of that source and variant, against the same baseline."""
    places = [(each.row.source, each.row.variant, each.baseline) for each in (one, source)]
    return one.row.seed is not None and places[0] == places[1]
