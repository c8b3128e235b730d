"""Rows as the figures need them: one value with its interval for each series and place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_faithful.report.figures.style import GREY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sae_faithful.report.run_data import RunData

Row = dict[str, Any]

OVER_SAES = (
    "Intervals are 95 %, over the SAEs of a source; where a source has one SAE its own is drawn, and where a "
    "number has none nothing is drawn."
)


@dataclass(frozen=True)
class Value:
    """A number and the bounds of its 95 % interval, where it has one."""

    value: float
    low: float | None
    high: float | None
    n: int | None
    of_one: bool
    """Whether value and interval are one SAE's: the source has no other."""

    @property
    def text(self) -> str:
        """For hovering: the value, its interval and what that is over."""
        said = f"{self.value:.4g}"
        if self.low is None or self.high is None:
            return f"{said}, no interval"
        return f"{said} [{self.low:.4g}, {self.high:.4g}]" + (", one SAE" if self.of_one else "")


def values(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, Value]:
    """The value of each key: the source's own row or, where that has no interval, its only SAE's.

    Rows of pairs, and of one SAE among several, are no values of a source; rows without a value are left out.
    """
    whole: dict[Any, Row] = {}
    single: dict[Any, list[Row]] = {}
    for row in rows:
        if row["value"] is None or row["other_seed"] is not None:
            continue
        if row["seed"] is None:
            whole.setdefault(key(row), row)
        else:
            single.setdefault(key(row), []).append(row)
    found: dict[Any, Value] = {}
    for name in dict.fromkeys((*whole, *single)):
        row, own = whole.get(name), single.get(name, [])
        if len(own) == 1 and (row is None or row["ci_low"] is None):
            found[name] = _value(own[0], of_one=True)
        elif row is not None:
            found[name] = _value(row, of_one=False)
    return found


def _value(row: Row, *, of_one: bool) -> Value:
    return Value(row["value"], row["ci_low"], row["ci_high"], row["n"], of_one)


def rows_of(run: RunData, evaluator: str, metric: str, **fields: Any) -> list[Row]:
    """The rows of one metric that have these values in these fields."""
    return [
        row
        for row in run.rows_of.get((evaluator, metric), ())
        if all(row[name] == value for name, value in fields.items())
    ]


def hooks(runs: Sequence[RunData], evaluator: str) -> list[str]:
    """The hooks that an evaluator has measured at, of all runs."""
    return list(
        dict.fromkeys(
            row["hook"]
            for run in runs
            for row in run.rows
            if row["evaluator"] == evaluator and row["hook"] is not None
        )
    )


def parameter(condition: str | None, name: str) -> float | None:
    """The number of a condition such as `cosine>0.7`; None for any other."""
    before, _, after = (condition or "").partition(">")
    try:
        return float(after) if before == name else None
    except ValueError:
        return None


def bars(found: Sequence[Value], colour: str = GREY) -> dict[str, Any]:
    """Error bars from values to the bounds of their intervals; none where there is no interval."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if one.high is None else one.high - one.value for one in found],
        "arrayminus": [None if one.low is None else one.value - one.low for one in found],
        "color": colour,
        "thickness": 1.5,
        "width": 3,
        "visible": any(one.low is not None for one in found),
    }


def place_text(hook: str | None, hooks: Sequence[str]) -> str:
    """`, at HOOK` where the report has several."""
    return f", at {hook}" if hook is not None and len(hooks) > 1 else ""


def option(runs: Sequence[RunData], evaluator: str, name: str, default: Any) -> Any:
    """What a config set an evaluator's option to: the first run's that set it, or the evaluator's own default."""
    for run in runs:
        for entry in run.config.get("evaluators", ()):
            given = entry.get(evaluator) if isinstance(entry, dict) else None
            if given and name in given:
                return given[name]
    return default
