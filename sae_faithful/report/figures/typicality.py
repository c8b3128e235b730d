"""How typical each text is of the model: the gap of every document, or its mean where that is all there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful.report.figures.figure import Figure, make_figure, shown
from sae_faithful.report.figures.numbers import bars, rows_of, values
from sae_faithful.report.figures.style import COLOURS, GREY, SYMBOLS, axis, faint, layout, names_axis
from sae_faithful.stored import read_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful.report.figures.numbers import Value
    from sae_faithful.report.run_data import RunData

MOST_DOCUMENTS = 2_000
"""Of one text; a box is as good with a sample."""
MEANING = (
    "The gap is how much more surprised the model is than it expects to be, nats per token: 0 in expectation for text "
    "it wrote itself, above 0 where the text surprises it."
)


def typicality_figures(runs: Sequence[RunData]) -> list[Figure]:
    """One figure of all texts of all runs."""
    texts = [(run, row["dataset"]) for run in runs for row in rows_of(run, "typicality", "typicality_gap")]
    if not texts:
        return []
    means = [values(rows_of(run, "typicality", "typicality_gap", dataset=name), _dataset)[name]
             for run, name in texts]  # fmt: skip
    documents = [_documents(run, name) for run, name in texts]
    names = [shown(run.named(name)) for run, name in texts]
    colours = [_colour(runs, run, name) for run, name in texts]
    data: list[dict[str, Any]] = [
        _box(at, name, gaps, colour)
        for at, (name, gaps, colour) in enumerate(zip(names, documents, colours, strict=True))
        if gaps
    ]
    some = bool(data)
    data += [_mean(at, *entry) for at, entry in enumerate(zip(names, means, colours, strict=True))]
    return [
        make_figure(
            parts=("typicality",),
            title="Typicality gap of each text",
            caption=_caption(some=some, sampled=any(len(gaps) > MOST_DOCUMENTS for gaps in documents)),
            section="text",
            data=data,
            layout=layout(
                x=axis("typicality gap (nats/token)", zeroline=True),
                y=names_axis(names, range=[len(names) - 0.4, -0.6]),
                height=120 + 64 * len(names),
                legend=False,
            ),
        )
    ]


def _caption(*, some: bool, sampled: bool) -> str:
    means = (
        "diamonds are means over tokens with 95 % intervals over documents; where a text has too few documents for "
        "an interval there is none."
    )
    if not some:
        return f"{MEANING} {means[0].upper()}{means[1:]}"
    return (
        f"{MEANING} Boxes are of scored documents, each document's mean over its tokens: quartiles, whiskers to the "
        f"farthest within 1.5 times the box; {means} Short documents spread more."
        + (f" Of more than {MOST_DOCUMENTS:,} documents a random sample of so many." if sampled else "")
    )


def _dataset(row: dict[str, Any]) -> str:
    return row["dataset"]


def _documents(run: RunData, name: str) -> list[float]:
    """The gap of every scored document; none where the text was made by an older version."""
    for folder in ("data", "references"):
        path = run.folder.root / folder / name / "typicality.json"
        if path.exists():
            return read_json(path)["gaps"]
    return []


def _colour(runs: Sequence[RunData], run: RunData, name: str) -> str:
    """That of the source, where the text is one's."""
    sources = [(one.label, source) for one in runs for source in one.sources]
    key = (run.label, name)
    return COLOURS[sources.index(key) % len(COLOURS)] if key in sources else GREY


def _box(at: int, name: str, gaps: Sequence[float], colour: str) -> dict[str, Any]:
    if len(gaps) > MOST_DOCUMENTS:
        gaps = np.random.default_rng(0).choice(np.asarray(gaps), MOST_DOCUMENTS, replace=False).tolist()
    return {
        "type": "box",
        "name": name,
        "orientation": "h",
        "x": gaps,
        "y0": at,
        "boxpoints": "outliers",
        "width": 0.5,
        "line": {"color": colour, "width": 1.5},
        "fillcolor": faint(colour, 0.2),
        "marker": {"color": colour, "size": 3, "opacity": 0.6},
        "hoverinfo": "x+name",
    }


def _mean(at: int, name: str, mean: Value, colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [mean.value],
        "y": [at],
        "error_x": bars([mean], colour),
        "text": [mean.text],
        "hovertemplate": "mean %{text} nats/token<extra>%{fullData.name}</extra>",
        "marker": {
            "color": colour,
            "symbol": SYMBOLS[2],
            "size": 11,
            "line": {"color": "#ffffff", "width": 1},
        },
    }
