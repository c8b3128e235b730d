"""Writes what was measured on a GPU into docs/performance.md, so that no figure there is typed by hand.

    python docs/gen/gpu_tables.py gpu_sparse_step.json gpu_pipeline.json gpu_sanitize.json
    python docs/gen/gpu_tables.py            writes the tables again, from the results in docs/performance
    python docs/gen/gpu_tables.py --check    says whether they are out of date
    python docs/gen/gpu_tables.py dry_run.json --page elsewhere.md

The files are what tests/benchmarks/gpu_*.py write with --json, any of them; they are kept in docs/performance under
those names. A dry run on a CPU is refused, but for another page, where it is marked.
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
    """Ceilings, decoders, variants, steps."""
    rows: list[Row] = results["rows"]
    shapes = {name: "N={} D={} S={} k={}".format(*sizes) for name, sizes in results["shapes"].items()}
    sizes = "; ".join(f"{name}: {text}" for name, text in shapes.items())
    parts = [f"{sizes}. In milliseconds: medians, in brackets how many times faster than the first row.\n"]
    parts.append("".join(f"- {name}: {what}\n" for name, what in results.get("providers", {}).items()))
    parts.append(ceilings(results["ceilings"]))
    for dtype in ("float32", "bfloat16"):
        decoded = [row for row in rows if row["level"] == "decode" and row["law"] == "uniform"]
        found = [row for row in decoded if row["dtype"] == f"torch.{dtype}"]
        parts += by_shape(f"decode, forward and backward, {dtype}", found, "error")
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
                parts += by_shape(title, found, "memory_mb")
    parts += variants(rows)
    return parts


def by_shape(title: str, rows: list[Row], beside: str) -> list[str]:
    """Providers by shapes, a table for those that ran side by side: the first of them is compared with."""
    parts: list[str] = []
    unit = {"memory_mb": "MB beyond weights, averages and gradients", "error": "relative error"}[beside]
    for kind in ("", "batchtopk", "compiled"):
        here = [row for row in rows if row["shape"] in SHAPES and kind_of_job(row) == kind]
        providers = list(dict.fromkeys(row["provider"] for row in here))
        shapes = [name for name in SHAPES if any(row["shape"] == name for row in here)]
        lines = [
            [
                provider,
                *(cell(of(here, shape, provider), of(here, shape, providers[0]), beside) for shape in shapes),
            ]
            for provider in providers
        ]
        if lines:
            parts.append(table([f"{title} (ms, times, {unit})", *shapes], lines))
    return parts


def kind_of_job(row: Row) -> str:
    """Of jobs that have tables of their own; empty for the others."""
    return next((kind for kind in ("batchtopk", "compiled") if kind in row.get("job", "")), "")


def of(rows: list[Row], shape: str, provider: str) -> Row:
    """The first such row; empty if there is none."""
    return next((row for row in rows if row["shape"] == shape and row["provider"] == provider), {})


def cell(row: Row, base: Row, beside: str) -> str:
    """Milliseconds, how many times faster, and one figure more."""
    if "missing" in row:
        return "missing: " + str(row["missing"]).split(":")[0]
    if "ms" not in row:
        return ""
    text = f"{row['ms']:.3g}"
    if "ms" in base:
        text += f" ({base['ms'] / row['ms']:.3g}×)"
    if beside in row:
        text += f", {row[beside]:.1e}" if beside == "error" else f", {row[beside]:,.0f} MB"
    return text


def variants(rows: list[Row]) -> list[str]:
    """Ours at other sizes and by other laws, beside who else is fast."""
    found = [row for row in rows if row["level"] == "decode" and row["dtype"] == "torch.float32"]
    others = ("F.embedding_bag", "sparsify", "dense autocast")
    settings = [
        key for key in dict.fromkeys((row["shape"], row["law"]) for row in found) if key[0] not in ("A", "C")
    ]
    lines: list[list[str]] = []
    for shape, law in settings:
        here = [row for row in found if (row["shape"], row["law"]) == (shape, law)]
        ours = of(here, shape, "ours")
        if "ms" in ours:
            rate = f"{ours['gb_s']:,.0f}"
            cells = [cell(of(here, shape, name), {}, "") for name in others]
            lines.append([f"{shape}, {law}", f"{ours['ms']:.3g}", rate, *cells])
    laws = [row for row in rows if row["level"] == "laws"]
    by_law = [[f"{row['shape']}, {row['law']}", f"{row['ms']:.3g}", f"{row['gb_s']:,.0f}"] for row in laws]
    parts = (
        [table(["decode, float32, ms", "ours", "GB/s of what it must move", *others], lines)] if lines else []
    )
    return [*parts, table(["ours by the law of indices", "ms", "GB/s"], by_law)] if by_law else parts


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
