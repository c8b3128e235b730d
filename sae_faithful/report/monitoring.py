"""What monitors saw inside training, beside what the full evaluators found after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_faithful.monitors import read_monitor_rows, times_fired
from sae_faithful.stored import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sae_faithful.run_folder import RunFolder

Row = dict[str, Any]

SAME = (
    "evaluator", "metric", "subset", "condition", "source", "hook", "variant", "seed", "other_seed", "dataset",
)  # fmt: skip
"""What a monitor's row and a full evaluator's row of the same number agree on."""

FARTHEST_NAMED = 3
"""A line should be read: the others are in `monitors/SOURCE.jsonl`."""


@dataclass(frozen=True)
class LastValue:
    """A monitor's last value of one number, and the full evaluator's."""

    row: Row
    full: Row

    @property
    def inside(self) -> bool:
        """Whether it lies inside the full evaluator's 95 % interval."""
        return self.full["ci_low"] <= self.row["value"] <= self.full["ci_high"]

    @property
    def distance(self) -> float:
        """How far it lies from the interval, in widths of it."""
        low, high = self.full["ci_low"], self.full["ci_high"]
        return max(low - self.row["value"], self.row["value"] - high, 0.0) / ((high - low) or 1e-12)


def last_values(folder: RunFolder, source: str, rows: Sequence[Row]) -> list[LastValue]:
    """The last value of every number that the full evaluators, whose `rows` these are, have an interval for."""
    full = {_key(row): row for row in rows if row["ci_low"] is not None and row["ci_high"] is not None}
    last = {_key(row): row for row in read_monitor_rows(folder.monitors_dir, source)}
    return [LastValue(row, full[key]) for key, row in last.items() if key in full]


def monitor_lines(folder: RunFolder, sources: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """For each source that was watched: what it cost, and how its last values compare."""
    lines: list[str] = []
    for source in sources:
        path = folder.monitors_dir / f"{source}.json"
        if path.exists():
            lines.append(_line(source, read_json(path), last_values(folder, source, rows)))
    return lines


def _line(source: str, cost: Mapping[str, Any], values: Sequence[LastValue]) -> str:
    fired = ", ".join(
        times_fired(name, times, cost["left_out"][name]) for name, times in cost["fired"].items()
    )
    line = f"- {source}: {fired}; {100 * cost['share_of_training_time']:.1f} % of training time."
    if not values:
        return f"{line} No full evaluator has an interval to hold the last values against."
    outside = sorted((value for value in values if not value.inside), key=lambda value: -value.distance)
    inside = len(values) - len(outside)
    line += f" {inside} of {len(values)} last values lie inside the full evaluator's interval"
    if not outside:
        return f"{line}."
    farthest = "; ".join(map(_comparison, outside[:FARTHEST_NAMED]))
    return f"{line}; {'farthest outside' if len(outside) > FARTHEST_NAMED else 'outside'}: {farthest}."


def _comparison(value: LastValue) -> str:
    row, full = value.row, value.full
    which = [row["subset"]] * (row["subset"] != "all") + [
        row[name] for name in ("condition", "dataset") if row[name]
    ]
    which += [f"seed {row['seed']}"] if row["seed"] is not None else []
    name = f"{row['evaluator']}/{row['metric']}" + (f" ({', '.join(which)})" if which else "")
    return (
        f"{name} {row['value']:.4g} against {full['value']:.4g} [{full['ci_low']:.4g}, {full['ci_high']:.4g}]"
    )


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in SAME)
