"""How well explanations predict activations: scores of each variant and baseline, and the differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_faithful.report.figures.figure import Figure, Trace, make_figure, shown
from sae_faithful.report.figures.numbers import bars, hooks, place_text, rows_of, values
from sae_faithful.report.figures.series import all_series
from sae_faithful.report.figures.style import SYMBOLS, axis, layout, names_axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful.report.figures.numbers import Row, Value
    from sae_faithful.report.figures.series import Series
    from sae_faithful.report.run_data import RunData

DIFFERENCE, SHUFFLED = "_difference", "_shuffled"
COUNTS = ("skipped", "unscored")
FRAGMENTS = {
    "top_and_random": "top and random fragments",
    "top_only": "top fragments only",
    "random_only": "random fragments only",
}
"""What a score's condition says of the fragments it is over."""
MINUS = "minus "


def autointerp_figures(runs: Sequence[RunData]) -> list[Figure]:
    """For each score, kind of fragments and hook: the scores, and their differences from baselines."""
    found: list[Figure] = []
    at_hooks = hooks(runs, "autointerp")
    rows = [row for run in runs for row in run.rows if row["evaluator"] == "autointerp"]
    scores = dict.fromkeys(
        (row["metric"], row["condition"])
        for row in rows
        if row["metric"] not in COUNTS and not row["metric"].endswith((DIFFERENCE, SHUFFLED))
    )
    for metric, fragments in scores:
        for hook in at_hooks:
            made = (
                _scores(runs, metric, fragments, hook, at_hooks),
                _differences(runs, metric, fragments, hook, at_hooks),
            )
            found += [figure for figure in made if figure is not None]
    return found


def _scores(
    runs: Sequence[RunData], metric: str, fragments: str | None, hook: str, at_hooks: Sequence[str]
) -> Figure | None:
    drawn: list[tuple[Series, Value | None, Value | None]] = []
    for series in all_series(runs):
        own = _value(series, metric, fragments, hook)
        if own is not None:
            drawn.append((series, own, _value(series, metric + SHUFFLED, fragments, hook)))
    if not drawn:
        return None
    traces = [_point(at, series, own) for at, (series, own, _) in enumerate(drawn) if own]
    shuffled = [(at, series, null) for at, (series, _, null) in enumerate(drawn) if null]
    traces += [_point(at, series, null, open_mark=True) for at, series, null in shuffled]
    return make_figure(
        parts=("autointerp", metric, fragments, hook if len(at_hooks) > 1 else None),
        title=f"{metric}{_of(fragments)}{place_text(hook, at_hooks)}",
        caption=(
            f"Mean over features of `{metric}`{_of(fragments)}, for each source, variant and baseline. "
            + (
                "Open marks: the same with another feature's explanation or tokens (`"
                + metric
                + SHUFFLED
                + "`). "
            )
            * bool(shuffled)
            + "Intervals are 95 %: over the SAEs of a source, and where there is one SAE over its features; where a "
            "number has none nothing is drawn. What a score means, and what made it, is in docs/metrics.md."
        ),
        section="autointerp",
        data=traces,
        layout=layout(
            x=axis(f"{metric} ({_unit(runs, metric)})", zeroline=True),
            y=names_axis([one.look.name for one, *_ in drawn], range=[len(drawn) - 0.4, -0.6]),
            height=100 + 34 * len(drawn),
            legend=False,
        ),
    )


def _differences(
    runs: Sequence[RunData], metric: str, fragments: str | None, hook: str, at_hooks: Sequence[str]
) -> Figure | None:
    drawn: list[tuple[Series, str, Value]] = []
    for series in all_series(runs):
        rows = [
            row
            for row in rows_of(series.run, "autointerp", metric + DIFFERENCE, hook=hook)
            if series.of(row) and _split(row["condition"])[1] == fragments
        ]
        found = values(rows, lambda row: _split(row["condition"])[0])
        drawn += [(series, baseline, value) for baseline, value in found.items()]
    if not drawn:
        return None
    of_series = list(dict.fromkeys(series for series, *_ in drawn))
    baselines = list(dict.fromkeys(baseline for _, baseline, _ in drawn))
    step = 0.7 / len(baselines)
    traces: list[Trace] = []
    for place, baseline in enumerate(baselines):
        kept = [(series, value) for series, of, value in drawn if of == baseline]
        scores = [value for _, value in kept]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"minus {shown(baseline)}",
                "x": [one.value for one in scores],
                "y": [
                    of_series.index(series) + step * (place - (len(baselines) - 1) / 2) for series, _ in kept
                ],
                "error_x": bars(scores),
                "customdata": [[series.look.name, one.text] for series, one in kept],
                "hovertemplate": "%{customdata[0]}: %{customdata[1]}<extra>%{fullData.name}</extra>",
                "marker": {
                    "color": [series.look.colour for series, _ in kept],
                    "symbol": SYMBOLS[place % len(SYMBOLS)],
                    "size": 8,
                },
            }
        )
    return make_figure(
        parts=("autointerp", metric, "differences", fragments, hook if len(at_hooks) > 1 else None),
        title=f"{metric}: differences from baselines{_of(fragments)}{place_text(hook, at_hooks)}",
        caption=(
            f"`{metric}`{_of(fragments)} of the SAEs minus that of each baseline (mark), as "
            f"`{metric}{DIFFERENCE}`; right of 0 the SAEs score higher. Intervals are 95 %: over the SAEs of a source, "
            "and where there is one SAE over the features of both; an interval that contains 0 decides nothing."
        ),
        section="autointerp",
        data=traces,
        layout=layout(
            x=axis(f"difference ({_unit(runs, metric)})", zeroline=True, zerolinewidth=2),
            y=names_axis([one.look.name for one in of_series], range=[len(of_series) - 0.4, -0.6]),
            height=130 + 18 * len(drawn),
        ),
    )


def _value(series: Series, metric: str, fragments: str | None, hook: str) -> Value | None:
    rows = rows_of(series.run, "autointerp", metric, condition=fragments, hook=hook)
    return values([row for row in rows if series.of(row)], lambda _: "").get("")


def _point(at: int, series: Series, value: Value, *, open_mark: bool = False) -> Trace:
    look = series.look
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{look.name}, another's explanation" if open_mark else look.name,
        "x": [value.value],
        "y": [at + 0.2 * open_mark],
        "error_x": bars([value], look.colour),
        "text": [value.text],
        "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
        "marker": {
            "color": look.colour,
            "symbol": look.symbol + ("-open" if open_mark else ""),
            "size": 7 if open_mark else 10,
        },
    }


def _split(condition: str | None) -> tuple[str, str | None]:
    """`minus pca, top_only` is the baseline `pca` and the fragments `top_only`."""
    baseline, comma, fragments = (condition or "").removeprefix(MINUS).rpartition(", ")
    return (baseline, fragments) if comma else (fragments, None)


def _of(fragments: str | None) -> str:
    return f" over {FRAGMENTS.get(fragments, fragments)}" if fragments else ""


def _unit(runs: Sequence[RunData], metric: str) -> str:
    rows: list[Row] = [row for run in runs for row in rows_of(run, "autointerp", metric)]
    return rows[0]["unit"] if rows else ""
