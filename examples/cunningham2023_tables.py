"""The tables of docs/cunningham2023.md from a run folder.

python examples/cunningham2023_tables.py runs/cunningham2023
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def table(header: list[str], lines: list[list[str]]) -> str:
    """Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def cell(row: Row | None, digits: int = 3) -> str:
    """A number with its interval."""
    if row is None or row["value"] is None:
        return "–"
    value = number(row["value"], digits)
    if row["ci_low"] is None:
        return value
    return f"{value} [{number(row['ci_low'], digits)}, {number(row['ci_high'], digits)}]"


def number(value: float, digits: int) -> str:
    """Rounded, and no minus in front of nothing."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def hook_name(hook: str) -> str:
    """As in a sentence: layer 4, layer 4 mlp.act_fn."""
    number, _, rest = hook.removeprefix("model.layers.").partition(".")
    return f"layer {number} {rest}".strip()


class Results:
    """Rows of a run, by what they are of."""

    def __init__(self, folder: Path) -> None:
        lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows: list[Row] = [json.loads(line) for line in lines]
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.hooks: list[str] = config["hook_names"]
        self.variants = list(config["variants"])
        self.baselines = [next(iter(entry)) for entry in config["baselines"]]

    def find(self, metric: str, **where: Any) -> Row | None:
        """The row of one SAE (of the first seed, where there are several); None where there is none."""
        where = {"condition": None, **where}
        found = [
            row
            for row in self.rows
            if row["metric"] == metric and all(row[key] == value for key, value in where.items())
        ]
        of_saes = [row for row in found if row["seed"] is not None]
        return (of_saes or found or [None])[0]

    def by_hook(self, names: list[str], metric: str, digits: int = 3, **where: Any) -> str:
        """A line for every variant or baseline, a column for every hook."""
        lines = [
            [
                name,
                *(cell(self.find(metric, hook=hook, variant=name, **where), digits) for hook in self.hooks),
            ]
            for name in names
        ]
        return table(["", *map(hook_name, self.hooks)], [line for line in lines if set(line[1:]) != {"–"}])

    def numbers(self, names: list[str], metric: str, **where: Any) -> str:
        """The same of what each number is made from, counted."""
        found = {
            (name, hook): self.find(metric, hook=hook, variant=name, **where)
            for name in names
            for hook in self.hooks
        }
        lines = [
            [name, *(str((found[name, hook] or {}).get("n", "–")) for hook in self.hooks)] for name in names
        ]
        return table(["", *map(hook_name, self.hooks)], lines)

    def differences(self, metric: str, others: list[str], *after: str) -> str:
        """A line for every variant and what it is held against, a column for every hook."""
        lines: list[list[str]] = []
        for variant in self.variants:
            for other in others:
                condition = ", ".join([f"minus {other}", *after])
                cells = [
                    cell(self.find(metric, hook=hook, variant=variant, condition=condition))
                    for hook in self.hooks
                ]
                lines.append([f"{variant} − {other}", *cells])
        return table(["", *map(hook_name, self.hooks)], [line for line in lines if set(line[1:]) != {"–"}])


def tables(folder: Path) -> str:
    """All of them, with headings."""
    results = Results(folder)
    every = [*results.variants, *results.baselines]
    parts = ["### Interpretability\n"]
    whole = {"condition": "top_and_random"}
    parts += ["Token-set score, mean over features [95 % interval over features]:\n"]
    parts += [results.by_hook(every, "token_set_score", **whole), "\nDifferences:\n"]
    parts += [results.differences("token_set_score_difference", results.baselines, "top_and_random")]
    parts += ["\nFeatures that were scored, of those sampled; the others are active in too few fragments:\n"]
    parts += [results.numbers(every, "token_set_score", **whole)]
    parts += ["\nOn another feature's explanation (what explanations score that explain nothing):\n"]
    parts += [results.by_hook(every, "token_set_score_shuffled", **whole)]
    parts += ["\n### Token selectivity\n", results.by_hook(every, "token_selectivity", subset="alive")]
    parts += ["\nDifferences:\n", results.differences("token_selectivity_difference", results.baselines)]
    parts += ["\n### Sparsity and fidelity\n"]
    for metric, digits in (("l0", 1), ("fvu", 3), ("alive_features", 0), ("perplexity", 1)):
        parts += [f"\n`{metric}`:\n", results.by_hook(every, metric, digits, subset="all")]
    parts += ["\n### Indirect object identification\n", _task(results)]
    for metric in ("features_to_half", "area", "area_difference"):
        parts += [f"\n`{metric}`:\n", _patching(results, metric)]
    return "\n".join(parts) + "\n"


def artifact(folder: Path, evaluator: str, name: str) -> str:
    """What an evaluator wrote for people."""
    path = folder / "results" / evaluator / "artifacts" / f"{name}.txt"
    return path.read_text(encoding="utf-8").strip()


def conditions(folder: Path) -> str:
    """What it was made with."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return f"{manifest['summary']}.\n"


def curves(folder: Path) -> str:
    """KL and size of the edit over the number of patched features, a table for every hook."""
    path = folder / "results" / "ioi_patching" / "artifacts" / "curves.json"
    found = json.loads(path.read_text(encoding="utf-8"))["curves"]
    parts = ["\nKL(patched ‖ target) in nats, and the size of the edit, over the number of patched features:"]
    for hook in dict.fromkeys(one["hook"] for one in found):
        here = [one for one in found if one["hook"] == hook]
        points = [{point["features"]: point for point in [*one["points"], one["all"]]} for one in here]
        numbers = [n for n in points[0] if all(n in each for each in points)]
        lines = [["all" if n is None else str(n), *(_point(each[n]) for each in points)] for n in numbers]
        parts += [f"\n{hook_name(hook).capitalize()}:\n"]
        parts += [table(["features", *(one["variant"] for one in here)], lines)]
    return "\n".join(parts) + "\n"


def _point(point: Row) -> str:
    return (
        f"{point['kl']:.3f} [{point['kl_ci_low']:.3f}, {point['kl_ci_high']:.3f}], edit {point['edit']:.2f}"
    )


def page(folder: Path) -> str:
    """Everything that the docs quote."""
    parts = [conditions(folder), tables(folder), curves(folder)]
    parts += ["\n### Case studies\n", artifact(folder, "case_studies", "cases")]
    return "\n".join(parts) + "\n"


def _task(results: Results) -> str:
    names = ("task_accuracy", "logit_difference", "kl_unpatched")
    return table(["", "value"], [[f"`{name}`", cell(results.find(name))] for name in names])


def _patching(results: Results, metric: str) -> str:
    rows = [row for row in results.rows if row["metric"] == metric and row["hook"] is not None]
    kept = [row for row in rows if row["seed"] is not None or row["variant"] not in results.variants]
    names = list(dict.fromkeys((row["variant"], row["condition"]) for row in kept))
    lines = [
        [
            " ".join(filter(None, name)),
            *(
                cell(
                    next(
                        (r for r in kept if r["hook"] == hook and (r["variant"], r["condition"]) == name),
                        None,
                    )
                )
                for hook in results.hooks
            ),
        ]
        for name in names
    ]
    return table(["", *map(hook_name, results.hooks)], lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/cunningham2023_tables.py RUN_DIR")
    sys.stdout.write(page(Path(sys.argv[1])))
