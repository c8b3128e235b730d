"""Trained on × evaluated on: what SAEs of each source keep of each text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_faithful.report.figures.figure import Figure, make_figure, shown
from sae_faithful.report.figures.numbers import OVER_SAES, hooks, place_text, rows_of, values
from sae_faithful.report.figures.series import all_series
from sae_faithful.report.figures.style import CELL_TEXT, LIGHT_TO_DARK, axis, layout, names_axis

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sae_faithful.report.figures.numbers import Value
    from sae_faithful.report.figures.series import Series
    from sae_faithful.report.run_data import RunData


@dataclass(frozen=True)
class _Metric:
    name: str
    title: str
    said: str
    unit: str


METRICS = (
    _Metric("explained_variance", "Explained variance",
            "Share of the activations' variance that reconstructions keep; higher is better.", "share"),
    _Metric("ce_loss_score", "CE loss score",
            "Share of the loss from zeros at the hook that reconstructions recover; higher is better.", "share"),
    _Metric("ce_difference", "CE difference",
            "How much more the model's next-token loss is with reconstructions in place of activations; lower is "
            "better.", "nats/token"),
    _Metric("l0", "L0", "Mean number of active latents a token; lower is sparser.", "latents/token"),
)  # fmt: skip


def heat_map_figures(runs: Sequence[RunData]) -> list[Figure]:
    """A figure for each metric, hook and run; none where there is one text."""
    at_hooks = hooks(runs, "reconstruction")
    return [
        figure
        for metric in METRICS
        for hook in at_hooks
        for run in runs
        if (figure := _heat_map(run, metric, hook, at_hooks, runs)) is not None
    ]


def _heat_map(
    run: RunData, metric: _Metric, hook: str, at_hooks: Sequence[str], runs: Sequence[RunData]
) -> Figure | None:
    # With BOS it is another number.
    rows = rows_of(run, "reconstruction", metric.name, hook=hook, condition=None)
    found: Mapping[Any, Value] = values(rows, lambda row: (row["source"], row["variant"], row["dataset"]))
    # Among all runs, so that names are told apart as in the other figures.
    trained = [
        series
        for series in all_series(runs)
        if series.run is run and any(key[:2] == (series.source, series.variant) for key in found)
    ]
    texts = list(dict.fromkeys(key[2] for key in found))
    if len(texts) < 2:
        return None
    cells = [[found.get((one.source, one.variant, text)) for text in texts] for one in trained]
    of_run = f", {run.label}" if run.label else ""
    return make_figure(
        parts=("heat-map", metric.name, run.label, hook if len(at_hooks) > 1 else None),
        title=f"{metric.title}: trained on × evaluated on{place_text(hook, at_hooks)}{of_run}",
        caption=(
            f"{metric.said} Rows: the source that SAEs were trained on; columns: the held-out text that they were "
            f"measured on (`{metric.name}`, {metric.unit}). Cells are means over the SAEs of a source, darker is a "
            "larger number; hovering shows the interval. " + OVER_SAES
        ),
        section="faithfulness",
        data=[_cells(trained, texts, cells, metric, run)],
        layout=layout(
            x=axis("evaluated on", **names_axis([shown(run.named(text)) for text in texts])),
            y=axis(
                "trained on",
                **names_axis([one.look.name for one in trained], range=[len(trained) - 0.5, -0.5]),
            ),
            height=130 + max(44 * len(trained), 110),
            legend=False,
        ),
    )


def _cells(
    trained: Sequence[Series],
    texts: Sequence[str],
    cells: Sequence[Sequence[Value | None]],
    metric: _Metric,
    run: RunData,
) -> dict[str, Any]:
    return {
        "type": "heatmap",
        "x": list(range(len(texts))),
        "y": list(range(len(trained))),
        "z": [[cell and cell.value for cell in row] for row in cells],
        "text": [[_number(cell.value) if cell else "" for cell in row] for row in cells],
        "texttemplate": "%{text}",
        "customdata": [
            [
                [one.look.name, shown(run.named(text)), cell.text if cell else ""]
                for text, cell in zip(texts, row, strict=True)
            ]
            for one, row in zip(trained, cells, strict=True)
        ],
        "hovertemplate": f"trained on %{{customdata[0]}}<br>evaluated on %{{customdata[1]}}<br>"
        f"%{{customdata[2]}} {metric.unit}<extra></extra>",
        "hoverongaps": False,
        "colorscale": LIGHT_TO_DARK,
        "textfont": {"color": CELL_TEXT},
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
