"""In Markdown: how stability goes with distance, and which conclusions hang on a definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_faithful.report.definitions import changed
from sae_faithful.report.distance import HOW_TO_READ, SCORES, enough_sources
from sae_faithful.report.tables import NONE, difference_text, markdown_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful.report.definitions import Redefined
    from sae_faithful.report.distance import Trend

OTHER_DEFINITIONS = (
    "The paper takes raw numbers of all latents. Of the same claims by other definitions of their numbers (alive "
    "latents, latents weighted by how often they fire, what chance gives taken off, other thresholds, contrast with "
    "real text): how many conclusions stay what they are by the paper's."
)

BY_CHANCE = (
    "Each is at 95 % on its own, and they are of the same SAEs: were there no difference at all, about 1 in 20 would "
    "be decided by chance, and its neighbours with it."
)


def distance_text(trends: Sequence[Trend]) -> str:
    """Primary ones as sentences, how to read them, and a table of all; empty below four sources."""
    if not enough_sources(trends):
        return ""
    sentences = "\n".join(f"- {trend.sentence}" for trend in trends if trend.primary)
    return "\n\n".join([sentences, HOW_TO_READ, distance_table(trends)])


def distance_table(trends: Sequence[Trend]) -> str:
    """A line a number, a column a score: Spearman's correlation, its interval over seeds, and p over sources."""
    names = {score.metric: score.label for score in SCORES}
    scores = [metric for metric in names if any(trend.score == metric for trend in trends)]
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for trend in trends:
        label = trend.statement.partition(" (")[0] + f" ({trend.condition.replace('>', ' > ')})"
        lines.setdefault((label, trend.hook, trend.variant), {})[trend.score] = trend_text(trend)
    several = len({key[1:] for key in lines}) > 1
    return markdown_table(
        ["number", "hook/variant", *(names[score].replace("|", "∣") for score in scores)],
        [
            [label, f"{hook}/{variant}" if several else "", *(cells.get(score, NONE) for score in scores)]
            for (label, hook, variant), cells in lines.items()
        ],
        drop_empty=True,
    )


def trend_text(trend: Trend) -> str:
    """A correlation in a cell."""
    if trend.spearman is None or trend.spearman_p is None:
        return NONE
    low, high = trend.spearman_low, trend.spearman_high
    bounds = f" [{low:+.2f}, {high:+.2f}]" if low is not None and high is not None else ""
    return f"{trend.spearman:+.2f}{bounds}, p = {trend.spearman_p:.3f}"


def definitions_text(found: Sequence[Redefined]) -> str:
    """How many conclusions other definitions change, and those they turn round; empty where nothing is claimed."""
    if not found:
        return ""
    claims = dict.fromkeys(one.definition.claim for one in found)
    counts = {claim: changed([one for one in found if one.definition.claim == claim]) for claim in claims}
    table = markdown_table(
        ["claim", *next(iter(counts.values()))],
        [[claim, *map(str, of_claim.values())] for claim, of_claim in counts.items()],
    )
    turned = "\n".join(f"- {redefined_text(one)}" for one in found if one.change == "turned round")
    return "\n\n".join(part for part in (f"{OTHER_DEFINITIONS} {BY_CHANCE}", table, turned) if part)


def redefined_text(one: Redefined) -> str:
    """A sentence about a conclusion that another definition changes."""
    difference = NONE if one.difference is None else difference_text(one.difference, one.ci_low, one.ci_high)
    return (
        f"`{one.definition.claim}`, {one.definition.label}: {one.source} - {one.other} at {one.hook}/{one.variant} "
        f"{difference} {one.unit}: {one.change}, {one.verdict}."
    )
