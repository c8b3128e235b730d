"""The made part of docs/results.md: tables and sentences from the rows of runs, and from nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from answer_figures import forest, scatter
from answer_tables import controls, cost, machine, precision, source_rows

from sae_faithful.metrics.correlation import MIN_SOURCES
from sae_faithful.report.conclusions import BY_CHANCE, OTHER_DEFINITIONS, distance_table
from sae_faithful.report.definitions import changed
from sae_faithful.report.distance import HOW_TO_READ, enough_sources
from sae_faithful.report.provenance import provenance
from sae_faithful.report.tables import NONE, difference_text, markdown_table
from sae_faithful.report.verdicts import remark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from answer_runs import Made

    from sae_faithful.report.definitions import Redefined
    from sae_faithful.report.distance import Trend
    from sae_faithful.report.verdicts import Verdict

Row = dict[str, Any]
CLAIMED = {"sfr": "More shared features", "ffr": "Fewer fake features", "probing": "Better probes",
           "ce_difference": "A smaller loss of the model's predictions"}  # fmt: skip
INTRODUCTION = (
    "Cho et al. (2025, arXiv 2506.17673) say of sparse autoencoders (SAEs) trained on text that the model itself "
    "wrote, beside SAEs trained on other text: more of their features are shared between seeds, fewer are excited by "
    "random tokens, probes read more off them, and they change the model's predictions less; and that one thing lies "
    "behind it: text far from the model makes SAEs unstable. This page holds each of these claims against runs of "
    "this package, whichever way it comes out. Its tables and pictures are made by code from the files in "
    "`docs/results/`; [how claims are judged](metrics.md#verdicts), [how correlations are judged]"
    "(metrics.md#stability-and-distance)."
)


def page(made: Sequence[Made]) -> tuple[str, dict[str, str]]:
    """The made part, and the pictures it shows by file name."""
    main = [one for one in made if not one.control]
    untrained = [one for one in made if one.control]
    pictures: dict[str, str] = {}
    parts = [_state(main), INTRODUCTION, *_short(main)]
    for one in main:
        shown = (
            _facts(one), _claims(one, pictures), _distance(one, pictures), _definitions(one), controls(one, untrained),
            precision(one),
        )  # fmt: skip
        # Headings are addresses too: two runs' are told apart.
        whose = f" ({one.name})" if len(main) > 1 else ""
        parts += [
            f"{text}{whose}" if text.startswith("## ") else text for section in shown for text in section
        ]
    parts += cost(made)
    return "\n\n".join(part for part in parts if part) + "\n", pictures


def _state(main: Sequence[Made]) -> str:
    if any(one.at_scale for one in main):
        return ""
    (one, *_) = main
    return (
        "**The run at scale has not been done: it needs a GPU, and none has been at hand.** What follows is what the "
        f"same code makes of the largest run so far, `{one.name}` ({one.run.manifest['summary']}), finished on "
        f"{one.date} on {machine(one.run.manifest)}. It shows the form of the answer, and is none. "
        "[What would answer it](#from-nothing)."
    )


def _short(main: Sequence[Made]) -> list[str]:
    """What became of each claim, run by run."""
    lines: list[list[str]] = []
    for claim, title in CLAIMED.items():
        cells = [
            _counts([one for one in made.run.verdicts if one.primary and one.claim == claim]) for made in main
        ]
        lines.append([title, *cells])
    for metric, title in (("sfr", "SFR falls with distance"), ("ffr_contrast", "FFR rises with distance")):
        found = [[one for one in made.run.trends if one.primary and one.metric == metric] for made in main]
        lines.append(
            [title, *(", ".join(f"{one.verdict} ({_correlation(one)})" for one in own) for own in found)]
        )
    return [
        "## In short",
        "Of the claims: pairs of a source of the model's own text with another source, by verdict. Of the hypothesis: "
        "Spearman's correlation over sources, and p.",
        markdown_table(["claim", *(f"`{made.name}`" for made in main)], lines),
    ]


def _counts(verdicts: Sequence[Verdict]) -> str:
    kinds = ("supported", "contradicted", "undecided")
    counted = [(kind, sum(one.verdict == kind for one in verdicts)) for kind in kinds]
    return ", ".join(f"{number} {kind}" for kind, number in counted if number) or "not measured"


def _correlation(trend: Trend) -> str:
    return (
        trend.reason or "" if trend.spearman is None else f"{trend.spearman:+.2f}, p = {trend.spearman_p:.3f}"
    )


def _facts(one: Made) -> list[str]:
    about = provenance(one.run)
    tokens = one.tokens
    texts = [
        [text.name, text.plugin, "yes" if text.own else "", f"{tokens[text.name]:,}" if text.name in tokens else "",
         text.gap, text.z]
        for text in about.texts
    ]  # fmt: skip
    folder = f"results/{one.name}"
    return [
        "## What was run",
        f"Finished on {one.date}. [The report as text]({folder}/report.txt), [every row that this page is made of]"
        f"({folder}/results.jsonl), [config]({folder}/config.json), [versions and machine]({folder}/manifest.json). "
        "`sae-faithful report` makes the report's page with its figures from a copy of that folder.",
        markdown_table(["what", "which"], [[name, value] for name, value in about.facts]),
        "Texts, and how far each is from the model: the typicality gap is 0 in expectation for text that the model "
        "wrote itself.",
        markdown_table(
            [
                "text",
                "plugin",
                "the model's own",
                "distinct training tokens",
                "typicality gap (nats/token)",
                "z",
            ],
            texts,
        ),
    ]


def _claims(one: Made, pictures: dict[str, str]) -> list[str]:
    verdicts = one.run.verdicts
    primary = [verdict for verdict in verdicts if verdict.primary]
    parts = ["## The claims", remark(verdicts, one.run.manifest)]
    for claim, title in CLAIMED.items():
        of_claim = [verdict for verdict in primary if verdict.claim == claim]
        if not of_claim:
            continue
        name = f"results_{one.name}_{claim}.svg"
        pictures[name] = forest(of_claim, title)
        parts += [
            f"### {title}",
            f"{of_claim[0].statement.partition(' for SAEs')[0]} for SAEs on the model's own text than on other text: "
            f"{_counts(of_claim)}.",
            _verdict_table(of_claim),
            f"![{title}: differences with their 95 % intervals](images/{name})",
        ]
        rest = [verdict for verdict in verdicts if verdict.claim == claim and verdict.dataset is not None]
        if len(rest) > 1:
            parts += ["On each of them:", _by_dataset(rest)]
    return parts


def _by_dataset(verdicts: Sequence[Verdict]) -> str:
    """A line a pair of sources, a column a text or task."""
    columns = list(dict.fromkeys(one.dataset or "" for one in verdicts))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for one in verdicts:
        key = (f"{one.source} - {one.other}", _place(one))
        lines.setdefault(key, {})[one.dataset or ""] = f"{_difference(one)} {one.verdict}"
    return markdown_table(
        ["sources", "hook", *columns],
        [[*key, *(cells.get(column, NONE) for column in columns)] for key, cells in lines.items()],
    )


def _verdict_table(verdicts: Sequence[Verdict]) -> str:
    return markdown_table(
        ["sources", "hook", "of the first", "of the second", "difference", "unit", "seeds", "verdict",
         "what would decide it"],
        [
            [
                f"{one.source} - {one.other}", _place(one),  _number(one.value),
                _number(one.other_value), _difference(one), one.unit, str(one.n_seeds), one.verdict,
                (one.would_decide or one.reason or "").rstrip(","),
            ]
            for one in verdicts
        ],
        drop_empty=True,
    )  # fmt: skip


def _distance(one: Made, pictures: dict[str, str]) -> list[str]:
    trends = one.run.trends
    parts = [
        "## Stability and distance from the model",
        "The paper's central hypothesis: the farther the text is from the model, the less stable are the SAEs.",
    ]
    primary = [trend for trend in trends if trend.primary]
    parts.append("\n".join(f"- {trend.sentence}" for trend in primary))
    if not enough_sources(trends):
        values = [
            [trend.statement.partition(" (")[0], source, f"{distance:.4f}", f"{value:.4f}"]
            for trend in primary
            for source, distance, value in zip(trend.sources, trend.distances, trend.values, strict=True)
        ]
        return [
            *parts,
            f"Through fewer than {MIN_SOURCES} points some line always goes, so here are the points alone:",
            markdown_table(["number", "source", "|typicality gap|", "mean over SAEs"], values),
        ]
    for number, trend in enumerate(trend for trend in primary if trend.spearman is not None):
        name = f"results_{one.name}_distance_{number}.svg"
        title = f"{trend.statement.partition(' (')[0]} against how far the text is from the model"
        rows = source_rows(one, trend.metric, trend.subset, trend.condition)
        bounds = {
            row["source"]: (row["ci_low"], row["ci_high"])
            for row in rows
            if (row["hook"], row["variant"]) == (trend.hook, trend.variant) and row["ci_low"] is not None
        }
        pictures[name] = scatter(trend, bounds, title)
        parts.append(f"![{title}](images/{name})")
    return [*parts, HOW_TO_READ, "Every number and every score:", distance_table(trends)]


def _definitions(one: Made) -> list[str]:
    found = one.run.redefined
    if not found:
        return []
    counts = {claim: changed([row for row in found if row.definition.claim == claim]) for claim in CLAIMED}
    parts = [
        "## What the definition of a number changes",
        f"{OTHER_DEFINITIONS} {BY_CHANCE}",
        markdown_table(
            ["claim", *counts["sfr"]],
            [
                [title, *map(str, counts[claim].values())]
                for claim, title in CLAIMED.items()
                if any(counts[claim].values())
            ],
        ),
    ]
    places = list(dict.fromkeys((row.hook, row.variant) for row in found))
    for claim, title in CLAIMED.items():
        for place in places:
            rows = [
                row for row in found if row.definition.claim == claim and (row.hook, row.variant) == place
            ]
            if rows:
                where = f", {place[0]}/{place[1]}" if len(places) > 1 else ""
                parts += [f"### {title}{where}, by other definitions", _definition_table(rows)]
    return parts


def _definition_table(rows: Sequence[Redefined]) -> str:
    """A line a definition, a column a pair of sources."""
    pairs = list(dict.fromkeys(f"{row.source} - {row.other}" for row in rows))
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        label = row.definition.label + (" (the paper's)" if row.definition.paper else "")
        change = "" if row.change in (None, "the same") else f": **{row.change}**"
        text = f"{_difference(row)} {row.verdict}{change}"
        lines.setdefault(label, {})[f"{row.source} - {row.other}"] = text
    return markdown_table(
        ["", *pairs], [[label, *(cells.get(pair, NONE) for pair in pairs)] for label, cells in lines.items()]
    )


def _place(one: Verdict) -> str:
    return one.hook if one.variant == "base" else f"{one.hook}/{one.variant}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _difference(one: Verdict | Redefined) -> str:
    return NONE if one.difference is None else difference_text(one.difference, one.ci_low, one.ci_high)
