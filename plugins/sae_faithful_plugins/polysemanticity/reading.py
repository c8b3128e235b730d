"""What the differences say, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_faithful import Artifact
from sae_faithful_plugins.polysemanticity.measuring import SELECTIVITY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sae_faithful import EvalResult


def reading(rows: Sequence[EvalResult], neurons: str) -> Artifact:
    """Whether the SAEs of each source, hook and variant are more monosemantic than the neuron basis.

    Args:
        rows: all of the evaluator's.
        neurons: the name of the neuron basis.
    """
    differences = [
        row
        for row in rows
        if (row.metric, row.condition, row.seed) == (f"{SELECTIVITY}_difference", f"minus {neurons}", None)
    ]
    lines = [line for row in differences for line in _lines(row, rows, neurons)]
    if not lines:
        lines = ["No neurons were measured: there is no basis to compare with."]
    return Artifact(name="reading", kind="text", content="\n".join(lines) + "\n")


def _lines(difference: EvalResult, rows: Sequence[EvalResult], neurons: str) -> Iterator[str]:
    of_saes = [row for row in rows if _place(row) == _place(difference) and row.seed is not None]
    judged = difference
    over = f"over {difference.n} SAEs"
    if len({row.seed for row in of_saes}) == 1:
        # One SAE: its own interval, over its latents.
        judged = next(
            row for row in of_saes if (row.metric, row.condition) == (difference.metric, difference.condition)
        )
        over = "over the latents of one SAE, so of no other seed"
    place = f"{judged.source}, {judged.hook}, {judged.variant}"
    yield f"- {place}: more monosemantic than the neuron basis, by token selectivity: {_verdict(judged)}."
    if judged.value is not None:
        sae = _value(rows, judged, judged.variant)
        basis = _value(rows, judged, neurons)
        interval = (
            f"no interval ({judged.reason})"
            if judged.ci_low is None
            else f"95 % interval {judged.ci_low:+.3f} to {judged.ci_high:+.3f}, {over}"
        )
        yield f"  {sae} against {basis}, difference {judged.value:+.3f}; {interval}."
    unmeasured = [row for row in of_saes if (row.metric, row.condition) == ("unmeasured", SELECTIVITY)]
    lacking, sampled = sum(row.value or 0 for row in unmeasured), sum(row.n or 0 for row in unmeasured)
    yield f"  Without a value: {lacking:.0f} of the {sampled} latents looked at."


def _verdict(row: EvalResult) -> str:
    if row.ci_low is None or row.ci_high is None:
        return "undecided"
    return "yes" if row.ci_low > 0 else "no" if row.ci_high < 0 else "undecided"


def _value(rows: Sequence[EvalResult], judged: EvalResult, variant: str | None) -> str:
    """The mean selectivity of one side of the comparison."""
    for row in rows:
        same = (row.source, row.hook, row.variant) == (judged.source, judged.hook, variant)
        if same and row.metric == SELECTIVITY and row.seed is None and row.value is not None:
            return f"{row.value:.3f}"
    return "no value"


def _place(row: EvalResult) -> tuple[str | None, ...]:
    return (row.source, row.hook, row.variant)
