"""Writes what was measured on a GPU into docs/performance.md, so that no figure there is typed by hand.

    python docs/gen/gpu_tables.py build/gpu_sparse_step.json build/gpu_pipeline.json build/gpu_sanitize.json
    python docs/gen/gpu_tables.py            writes the tables again, from the results in docs/performance
    python docs/gen/gpu_tables.py --check    says whether they are out of date
    python docs/gen/gpu_tables.py dry_run.json --page elsewhere.md

The files are what tests/benchmarks/gpu_*.py write with --json (`make` has them write into build), any of them; they are
kept in docs/performance under those names. A dry run on a CPU is refused, but for another page, where it is marked.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
PAGE, RESULTS = DOCS / "performance.md", DOCS / "performance"
BEGIN, END = "<!-- written by docs/gen/gpu_tables.py -->\n", "<!-- end of what is written -->\n"
KINDS = ("gpu_sparse_step", "gpu_pipeline", "gpu_sanitize")
NOTHING = "**Not measured: no GPU yet.** None of the commands below has run on one.\n"
DRY_RUN = "**A dry run on a CPU at tiny sizes: no figure means anything.**\n"
SHAPES = ("A", "B", "C")
FAST = ("dense autocast", "F.embedding_bag", "sparsify", "ours")
"""Decoders that are compared at other sizes too."""

COLUMNS = {
    "ms": ("ms", "{ms:.3g}"),
    "p20 – p80": ("p20", "{p20:.3g} – {p80:.3g}"),
    "rounds": ("rounds", "{rounds}"),
    "times faster": ("ms", ""),
    "forward, ms": ("forward_ms", "{forward_ms:.3g}"),
    "backward, ms": ("backward_ms", "{backward_ms:.3g}"),
    "GB/s": ("gb_s", "{gb_s:,.0f}"),
    "MB": ("memory_mb", "{memory_mb:,.0f}"),
    "error": ("error", "{error:.1e}"),
}
"""Of what was timed: the figure that a row must have for it, and how it is written."""

COLUMNS_SAY = (
    "Milliseconds are medians over the rounds, p20 and p80 their 20th and 80th percentiles. Times faster, by the "
    "medians: than the first line of those that took turns with it. GB/s: of the bytes that forward and backward must "
    "move. MB: the peak beyond what was held before and beyond the gradients. Error: the worst of output and "
    "gradients, against float64."
)
Row = dict[str, Any]


def kind_of(results: dict[str, Any]) -> str:
    """Which benchmark wrote them; ValueError if none."""
    found = Path(str(results.get("machine", {}).get("command", "")).split(" ")[0]).stem
    if found not in KINDS:
        raise ValueError(f"written by '{found}', not by one of {', '.join(KINDS)}")
    return found


def is_dry_run(results: dict[str, Any]) -> bool:
    """Whether it is a trial of the logic."""
    return str(results["machine"]["device"]) == "cpu" or bool(results.get("options", {}).get("tiny"))


def tables(results: dict[str, dict[str, Any]]) -> str:
    """All that is there, most important first."""
    if not results:
        return NOTHING
    parts: list[str] = [DRY_RUN] if any(map(is_dry_run, results.values())) else []
    parts += [about(results[kind]) for kind in KINDS if kind in results]
    goals = [goal for one in results.values() for goal in one.get("goals", [])]
    if goals:
        parts.append(goal_table(goals))
    if "gpu_sparse_step" in results:
        parts += sparse_step(results["gpu_sparse_step"])
    if "gpu_pipeline" in results:
        parts += pipeline(results["gpu_pipeline"])
    missing = [kind for kind in KINDS if kind not in results]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.\n")
    left_out = [name for one in results.values() for name in one.get("skipped", [])]
    if left_out:
        parts.append(f"Left out: {'; '.join(left_out)}.\n")
    return "\n".join(parts)


def about(results: dict[str, Any]) -> str:
    """Date, device, driver, versions, command; what was checked."""
    machine = results["machine"]
    names = (
        "date",
        "device",
        "driver",
        "cuda",
        "torch",
        "triton",
        "sae-lens",
        "eai-sparsify",
        "python",
        "model",
    )
    facts = ", ".join(f"{name} {machine[name]}" for name in names if name in machine)
    line = f"`{machine['command']}`: {facts}"
    with_rescaling = "SAELens's COO with rescaling"
    if with_rescaling in machine:
        line += f"; {with_rescaling} {machine[with_rescaling]}"
    if "seconds" in results:
        line += f"; {results['seconds']:.0f} s"
    checks = results.get("checks", [])
    if checks:
        failed = [str(check["check"]) for check in checks if check["passed"] is False]
        line += f". Checks: {len(checks)}, failed: {'; '.join(failed) or 'none'}"
    if "tools" in results:
        line += ". " + "; ".join(f"{name}: {found}" for name, found in results["tools"].items())
    return line + ".\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def goal_table(goals: list[Row]) -> str:
    """Each with what was reached and, where it was missed or not measured, why."""
    rows = [
        [
            goal["goal"], f"{'≤' if goal['at_most'] else '≥'} {goal['limit']:g}",
            "" if goal["value"] is None else f"{goal['value']:.3g}", f"**{goal['verdict']}**",
            str(goal.get("reason", "")).replace("|", "/"),
        ]
        for goal in goals
    ]  # fmt: skip
    met = sum(goal["verdict"] == "met" for goal in goals)
    return f"Goals met: {met} of {len(goals)}.\n\n" + table(["goal", "", "reached", "", "why not"], rows)


def sparse_step(results: dict[str, Any]) -> list[str]:
    """Ceilings, decoders, steps, decoders at other sizes and by other laws."""
    rows: list[Row] = results["rows"]
    shapes = {name: "N={} D={} S={} k={}".format(*sizes) for name, sizes in results["shapes"].items()}
    parts = ["; ".join(f"{name}: {text}" for name, text in shapes.items()) + f". {COLUMNS_SAY}\n"]
    parts.append("".join(f"- {name}: {what}\n" for name, what in results.get("providers", {}).items()))
    parts.append(ceilings(results["ceilings"]))
    decoded = [row for row in rows if row["level"] == "decode"]
    for dtype in ("float32", "bfloat16"):
        found = [row for row in decoded if row["dtype"] == f"torch.{dtype}" and is_main(row)]
        parts += side_by_side(f"decode, {dtype}", found)
    for level, what in (
        ("step", "SAELens's `SAETrainer.step`"),
        ("model", "loss and gradients in plain torch"),
    ):
        for precision in ("autocast", "fp32", "tf32"):
            for dead in (False, True):
                found = [
                    row
                    for row in rows
                    if row["level"] == level
                    and row["precision"] == precision
                    and bool(row.get("dead")) == dead
                ]
                title = f"{what}, {precision}{', 5 % of the latents dead' if dead else ''}"
                parts += side_by_side(title, found)
    for dtype in ("float32", "bfloat16"):
        found = [row for row in decoded if row["dtype"] == f"torch.{dtype}" and not is_main(row)]
        fast = [row for row in found if row["provider"] in FAST]
        parts += side_by_side(f"decode at other sizes and by other laws, {dtype}", fast)
    return parts + side_by_side("decode, ours by the law", [row for row in rows if row["level"] == "laws"])


def is_main(row: Row) -> bool:
    """Whether it is of one of the three shapes, with uniform latents."""
    return row["shape"] in SHAPES and row["law"] == "uniform"


def side_by_side(title: str, rows: list[Row]) -> list[str]:
    """A table for those that ran in one rotation: batchtopk and what is compiled have rotations of their own."""
    parts: list[str] = []
    for kind in ("", "batchtopk", "compiled"):
        here = [row for row in rows if kind_of_job(row) == kind]
        # In the order of the shapes, not of their importance; others as they were measured.
        here.sort(key=lambda row: SHAPES.index(row["shape"]) if row["shape"] in SHAPES else len(SHAPES))
        if here:
            parts.append(figure_table(title, here))
    return parts


def kind_of_job(row: Row) -> str:
    """Of jobs that have tables of their own; empty for the others."""
    return next((kind for kind in ("batchtopk", "compiled") if kind in row.get("job", "")), "")


def figure_table(title: str, rows: list[Row]) -> str:
    """A line for each row, with those columns that some row has a figure for."""
    columns = [name for name, (key, _) in COLUMNS.items() if any(key in row for row in rows)]
    lines: list[list[str]] = []
    for row in rows:
        where = row["shape"] if row.get("law", "uniform") == "uniform" else f"{row['shape']}, {row['law']}"
        first = next(one for one in rows if one.get("job") == row.get("job") and one["shape"] == row["shape"])
        cells = {name: figure(row, key, how) for name, (key, how) in COLUMNS.items()}
        if "missing" in row:
            cells["ms"] = "missing: " + str(row["missing"]).split(":")[0]
        if "ms" in row and "ms" in first:
            cells["times faster"] = f"{first['ms'] / row['ms']:.3g}"
        lines.append([where, row["provider"], *(cells[name] for name in columns)])
    return table([title, "", *columns], lines)


def figure(row: Row, key: str, how: str) -> str:
    """One figure; empty where the row has none."""
    return how.format(**row) if key in row else ""


def ceilings(found: dict[str, float]) -> str:
    """What the device can do."""
    return table(["ceiling, same run", ""], [[name, f"{value:,.4g}"] for name, value in found.items()])


def pipeline(results: dict[str, Any]) -> list[str]:
    """Matching, fake_features, generation."""
    lines: list[list[str]] = []
    for row in results["rows"]:
        head = [str(row["what"]), str(row["setting"])]
        if "missing" in row:
            lines.append([*head, f"missing: {row['missing']}", "", "", ""])
            continue
        least = [f"{row['least_seconds']:.3g}", f"{row['share']:.1%}"] if "least_seconds" in row else ["", ""]
        rate = f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else ""
        proven = "" if "certified" not in row else ", certified" if row["certified"] else ", NOT certified"
        lines.append([*head, f"{row['seconds']:.3g}{proven}", *least, rate])
    head = ["", "", "seconds", "at least", "share", "tokens/s"]
    return [table(head, lines), ceilings(results["ceilings"])]


def stored() -> dict[str, dict[str, Any]]:
    """Results that are kept."""
    files = {kind: RESULTS / f"{kind}.json" for kind in KINDS}
    return {kind: json.loads(file.read_text()) for kind, file in files.items() if file.exists()}


def rewritten(page: str, results: dict[str, dict[str, Any]]) -> str:
    """The page with its tables; ValueError where it has no place for them."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no lines {BEGIN.strip()} and {END.strip()}")
    return head + BEGIN + "\n" + tables(results) + "\n" + END + tail


def main(arguments: list[str] | None = None) -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="*", type=Path, help="JSON files of the benchmarks")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--page", type=Path, help="another page: nothing is kept, and a dry run is admitted")
    options = parser.parse_args(arguments)
    given: dict[str, dict[str, Any]] = {}
    for file in options.results:
        found = json.loads(file.read_text())
        try:
            given[kind_of(found)] = found
        except ValueError as error:
            parser.error(f"{file}: {error}")
        if is_dry_run(found) and options.page is None:
            parser.error(
                f"{file}: a dry run on a CPU does not belong into {PAGE.name}; --page names another page"
            )
    target = options.page or PAGE
    before = target.read_text(encoding="utf-8") if target.exists() else BEGIN + END
    written = rewritten(before, given if options.page else stored() | given)
    if options.check:
        return int(written != before)
    for kind, found in ({} if options.page else given).items():
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{kind}.json").write_text(json.dumps(found, indent=1) + "\n")
    target.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
