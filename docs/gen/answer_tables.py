"""Tables of docs/results.md that say what a number is worth: controls, precision, cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_faithful.report.tables import NONE, markdown_table, value_text
from sae_faithful.report.verdicts import CLAIMS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from answer_runs import Made

Row = dict[str, Any]
AIMS = {("sfr", "alive", "cosine>0.7"): 0.03, ("ffr_contrast", "alive", "rate>0.1"): 0.001}
"""Half-widths of intervals that an answer should have."""
CHANCE = {
    ("sfr", "cosine>0.7"): ("sfr_null", "cosine>0.7"),
    ("ffr_contrast", "rate>0.1"): ("ffr_contrast_random_sae", "rate>0.1"),
    ("probe_accuracy", "latents"): ("probe_accuracy", "random_sae"),
}
"""Metric and condition of what nothing learned gives; there is none of the CE difference."""


def controls(one: Made, untrained: Sequence[Made]) -> list[str]:
    """What chance gives, and what SAEs of a language model that knows nothing give, beside each number of a claim."""
    lines: list[list[str]] = []
    without: dict[str, int] = {}
    for claim in (one for one in CLAIMS if one.primary):
        which = [claim.subset if claim.subset != "all" else None, claim.condition]
        name = ", ".join([f"`{claim.metric}`", *filter(None, which)]).replace(">", " > ")
        null_metric, null_condition = CHANCE.get((claim.metric, claim.condition or ""), (None, None))
        for row in source_rows(one, claim.metric, claim.subset, claim.condition):
            null = null_metric and _same(one, null_metric, claim.subset, null_condition, row)
            random = [_of_untrained(control, one, row) for control in untrained]
            if not null and not any(random):
                without[name] = without.get(name, 0) + 1
                continue
            lines.append([
                name, row["source"], row["dataset"] or "", row["hook"], value_text(row),
                value_text(null) if null else NONE, "; ".join(filter(None, random)) or "not run",
            ])  # fmt: skip
    header = [
        "number",
        "source",
        "measured on",
        "hook",
        "SAEs",
        "random dictionaries, or a random SAE",
        "SAEs of a random model",
    ]
    said = (
        ""
        if untrained
        else " The random-model control (`--set model_init=random`) has not been run at this size."
    )
    left_out = "; ".join(f"{count} of {name}" for name, count in without.items())
    return [
        "## Controls",
        "Beside each number that a claim is judged by, what nothing learned gives (`sfr`: random directions with the "
        "decoder's own second moments; `ffr_contrast` and `probe_accuracy`: a randomly initialised SAE), and what SAEs "
        f"give that were trained on a randomly initialised language model.{said}",
        f"Numbers that have neither are left out: {left_out}." if without else "",
        markdown_table(header, lines, drop_empty=True),
    ]


def _of_untrained(control: Made, one: Made, row: Row) -> str:
    """The same number of a random model's SAEs, and their budget where it is another one; empty where there is none."""
    found = _same(control, row["metric"], row["subset"], row["condition"], row)
    if found is None:
        return ""
    tokens, own = (made.tokens[row["source"]] for made in (control, one))
    budget = "" if tokens == own else f" (on {tokens:,} distinct tokens, not {own:,})"
    return value_text(found) + budget


def precision(one: Made) -> list[str]:
    lines: list[list[str]] = []
    for (metric, subset, condition), aim in AIMS.items():
        rows = source_rows(one, metric, subset, condition)
        halves = [
            (row["source"], row["hook"], (row["ci_high"] - row["ci_low"]) / 2, "a source's")
            for row in rows
            if row["ci_low"] is not None
        ]
        for verdict in one.run.verdicts:
            if (verdict.metric, verdict.subset, verdict.condition) != (metric, subset, condition):
                continue
            if verdict.ci_low is not None and verdict.ci_high is not None:
                half = (verdict.ci_high - verdict.ci_low) / 2
                halves.append((f"{verdict.source} - {verdict.other}", verdict.hook, half, "a difference's"))
        for source, hook, half, whose in halves:
            met = "met" if half <= aim else "missed"
            lines.append([f"`{metric}`, {subset}", source, hook, whose, f"{half:.4f}", f"{aim:g}", met])
    return [
        "## Precision",
        "Half-widths of the 95 % intervals, and what was aimed at for an answer at scale:",
        markdown_table(["number", "sources", "hook", "interval", "half-width", "aim", ""], lines),
    ]


def cost(made: Sequence[Made]) -> list[str]:
    first = made[0]
    rows = [(one, row) for one in made for row in one.timings]
    lines = [
        [one.name, row["step"], f"{row['seconds']:,.1f}", _expected(row), _price(row["seconds"], one)]
        for one, row in rows
    ]
    steps = sum(row["seconds"] for _, row in rows)
    staged = "as often as it was done" if first.staged else "as its last run took"
    said = f"Steps, together: {_time(steps)} of one {machine(first.run.manifest)}, each {staged}."
    if first.calls:
        whole = _time(sum(first.calls))
        said += f" {len(first.calls)} calls, with all that was begun again, loading and packing: {whole}."
    if first.price is not None:
        price = _price(sum(first.calls) or steps, first)
        said += f" At {first.price:g} {first.currency} an hour of the device: {price} {first.currency}."
    header = ["run", "step", "seconds", "expected seconds", f"cost ({first.currency})"]
    return ["## Time and cost", said, markdown_table(header, lines, drop_empty=True)]


def _expected(row: Row) -> str:
    seconds = row.get("expected_seconds")
    return "not estimated" if seconds is None else f"{seconds:,.1f}"


def _price(seconds: float, one: Made) -> str:
    """What so long costs; empty where no price was given."""
    return "" if one.price is None else f"{seconds / 3600 * one.price:,.2f}"


def machine(manifest: Mapping[str, Any]) -> str:
    device = manifest.get("gpu") or manifest["device"]
    return f"{device} ({manifest.get('processor') or 'unknown processor'}, {manifest['threads']} threads)"


def source_rows(one: Made, metric: str, subset: str, condition: str | None) -> list[Row]:
    """Of sources' SAEs, in the order of the rows."""
    baselines = one.run.manifest.get("baselines", {})
    return [
        row
        for row in one.run.rows
        if (row["metric"], row["subset"], row["condition"], row["seed"]) == (metric, subset, condition, None)
        and row["source"] in one.run.sources
        and row["variant"] not in baselines
    ]


def _same(one: Made, metric: str, subset: str, condition: str | None, row: Row) -> Row | None:
    """Another number of the same source and place, measured on the same."""
    places = ("source", "hook", "variant", "dataset")
    rows = source_rows(one, metric, subset, condition)
    return next((found for found in rows if all(found[key] == row[key] for key in places)), None)


def _time(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds < 100
        else f"{seconds / 60:.1f} min"
        if seconds < 6000
        else f"{seconds / 3600:.2f} h"
    )
