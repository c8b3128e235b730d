"""Tables of docs/results.md that say what a number is worth: controls, precision, cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_faithful.report.tables import NONE, markdown_table, value_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from answer_runs import Made

Row = dict[str, Any]
AIMS = {("sfr", "alive", "cosine>0.7"): 0.03, ("ffr_contrast", "alive", "rate>0.1"): 0.001}
"""Half-widths of intervals that an answer should have."""
CHANCE = {"sfr": "sfr_null", "ffr_contrast": "ffr_contrast_random_sae"}


def controls(one: Made, untrained: Sequence[Made]) -> list[str]:
    """What chance gives, and what SAEs of a language model that knows nothing give."""
    lines: list[list[str]] = []
    for metric, subset, condition in AIMS:
        for row in source_rows(one, metric, subset, condition):
            key = (row["source"], row["hook"], row["variant"])
            null = _same(one, CHANCE[metric], subset, condition, key)
            random = [_same(control, metric, subset, condition, key) for control in untrained]
            lines.append([
                f"`{metric}`, {subset}, {condition.replace('>', ' > ')}", row["source"], row["hook"], value_text(row),
                NONE if null is None else value_text(null),
                "; ".join(value_text(found) for found in random if found is not None) or "not run",
            ])  # fmt: skip
    header = [
        "number",
        "source",
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
    return [
        "## Controls",
        "Beside each number what nothing learned gives (`sfr`: random directions with the decoder's own second "
        "moments; `ffr_contrast`: a randomly initialised SAE), and what SAEs give that were trained on a randomly "
        f"initialised language model.{said}",
        markdown_table(header, lines),
    ]


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
    lines = [
        [one.name, row["step"], _time(row["seconds"]), _time(row.get("expected_seconds"))]
        for one in made
        for row in one.timings
    ]
    steps = sum(row["seconds"] for one in made for row in one.timings)
    first = made[0]
    said = f"Steps, together: {_time(steps)} of one {machine(first.run.manifest)}, each as its last run took."
    if first.calls:
        whole = _time(sum(first.calls))
        said += f" {len(first.calls)} calls, with all that was begun again, loading and packing: {whole}."
    if first.price is not None:
        cost = (sum(first.calls) or steps) / 3600 * first.price
        said += f" At {first.price:g} {first.currency} an hour of the device: {cost:,.2f} {first.currency}."
    return [
        "## Time and cost",
        said,
        markdown_table(["run", "step", "took", "was expected to take"], lines),
    ]


def machine(manifest: Mapping[str, Any]) -> str:
    device = manifest.get("gpu") or manifest["device"]
    return f"{device} ({manifest.get('processor') or 'unknown processor'}, {manifest['threads']} threads)"


def source_rows(one: Made, metric: str, subset: str, condition: str) -> list[Row]:
    """Of sources' SAEs, in the order of the rows."""
    baselines = one.run.manifest.get("baselines", {})
    return [
        row
        for row in one.run.rows
        if (row["metric"], row["subset"], row["condition"], row["seed"]) == (metric, subset, condition, None)
        and row["source"] in one.run.sources
        and row["variant"] not in baselines
    ]


def _same(one: Made, metric: str, subset: str, condition: str, key: tuple[str, ...]) -> Row | None:
    rows = source_rows(one, metric, subset, condition)
    return next((row for row in rows if (row["source"], row["hook"], row["variant"]) == key), None)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not estimated"
    return (
        f"{seconds:.1f} s"
        if seconds < 100
        else f"{seconds / 60:.1f} min"
        if seconds < 6000
        else f"{seconds / 3600:.2f} h"
    )
