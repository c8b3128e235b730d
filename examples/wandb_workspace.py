"""Lay out a W&B dashboard for one experiment: `python examples/wandb_workspace.py RUN_DIR ENTITY`.

Needs `pip install "sae-faithful[wandb]"` and `wandb login`; docs/wandb.md says what the keys are.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from sae_faithful import figures, read_run
from sae_faithful_plugins.wandb_results import headline_numbers, verdict_numbers

SECTIONS = {
    "sharing": "Shared features",
    "fakeness": "Fake features",
    "text": "Text",
    "faithfulness": "Faithfulness",
}


def layout(folder: Path, entity: str) -> ws.Workspace:
    """A saved view of the runs of one group: answers first, training last."""
    config = json.loads((folder / "config.json").read_text())
    group = json.loads((folder / "wandb.json").read_text())["group"]
    data = read_run(folder)
    verdicts = verdict_numbers([vars(verdict) for verdict in data.verdicts])
    numbers = headline_numbers(data.rows)
    sections = [
        ws.Section(
            name="Verdicts: own text − other text",
            panels=[bars([key for key in verdicts if key.endswith("/difference")], "paired difference")],
            is_open=True,
        )
    ]
    for evaluator in dict.fromkeys(key.partition("/")[0] for key in numbers):
        metrics: dict[str, list[str]] = {}
        for key in numbers:
            owner, metric, *_ = key.split("/")
            if owner == evaluator:
                metrics.setdefault(metric, []).append(key)
        panels = [bars(keys, metric) for metric, keys in metrics.items()]
        sections.append(ws.Section(name=evaluator, panels=panels, is_open=True))
    drawn: dict[str, list[str]] = {}
    for figure in figures([data]):
        drawn.setdefault(figure.section, []).append(f"figures/{figure.id}")
    for section, keys in drawn.items():
        panels = [wr.MediaBrowser(title=key.partition("/")[2], media_keys=[key]) for key in keys]
        sections.append(ws.Section(name=f"Figures: {SECTIONS.get(section, section)}", panels=panels))
    sections.append(ws.Section(name="Training", panels=training_panels(config)))
    return ws.Workspace(
        entity=entity,
        project=config["logger"]["wandb_project"],
        name=f"sae-faithful {group}",
        sections=sections,
        settings=ws.WorkspaceSettings(group_by_prefix="first"),
        runset_settings=ws.RunsetSettings(filters=[ws.Metric("Group") == group]),
    )


def bars(keys: list[str], title: str) -> wr.BarPlot:
    """One bar a source, or a pair of sources."""
    return wr.BarPlot(title=title, metrics=[wr.SummaryMetric(key) for key in keys])


def training_panels(config: dict[str, object]) -> list[wr.LinePlot]:
    """Loss, explained variance and L0 of every SAE by step."""
    saes = [
        f"{hook}/{variant}/seed{seed}/"
        for hook in config["hook_names"]
        for variant in config["variants"]
        for seed in config["sae_seeds"]
    ]
    places = saes if len(saes) > 1 else [""]
    metrics = ("losses/overall_loss", "metrics/explained_variance", "metrics/l0", "sparsity/dead_features")
    return [wr.LinePlot(title=name, x="Step", y=[place + name for place in places]) for name in metrics]


def main(arguments: list[str]) -> int:
    """Save the view, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a finished run whose logger has log_to_wandb")
    parser.add_argument("entity", help="your name or your team's in W&B")
    given = parser.parse_args(arguments)
    if not (given.folder / "wandb.json").exists():
        parser.error(f"{given.folder} has logged nothing to W&B")
    sys.stdout.write(layout(given.folder, given.entity).save().url + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
