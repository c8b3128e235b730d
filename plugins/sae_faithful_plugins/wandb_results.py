"""A finished run's results to W&B: numbers, tables, figures and files, beside the training runs of its group."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from sae_faithful import EvalResult, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from sae_faithful import RunData, WandbRun

Row = dict[str, Any]

FILES = {
    "features": ("features.parquet",),
    "config": ("config.json", "manifest.json"),
    "report": ("report.html", "report.md"),
    "results": ("results.jsonl", "verdicts.jsonl"),
}
"""Files of the run folder by the artifact, and its type, that they are in."""


@hookimpl
def publish(run_folder: Path) -> None:
    """Log the results, where the config's `logger` wants W&B; a run of `evaluate` has no logger."""
    path = run_folder / "config.json"
    config: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not config.get("logger", {}).get("log_to_wandb"):
        return
    from sae_faithful import open_wandb_run, read_run

    run = open_wandb_run(config, job_type="results", part="results", folder=run_folder)
    if run.run is not None:
        try:
            log_results(run, read_run(run_folder), run_folder)
        finally:
            run.finish()


def log_results(run: WandbRun, data: RunData, folder: Path) -> None:
    """Everything in docs/wandb.md that the run of job type `results` has."""
    log_inputs(run, data, folder)
    numbers = {**headline_numbers(data.rows), **verdict_numbers([asdict(one) for one in data.verdicts])}
    run.attempt(lambda wandb_run: wandb_run.summary.update(numbers))
    log_tables(run, data)
    log_figures(run, data)
    for name, files in FILES.items():
        paths = [folder / file for file in files]
        if any(one.exists() for one in paths):
            run.log_files(run.artifact_name(name), name, paths, {"folder": folder.name})


def log_inputs(run: WandbRun, data: RunData, folder: Path) -> None:
    """What the results are of: every text's card, and every SAE that a training run logged."""
    for name in [*data.sources, *data.manifest.get("datasets", [])]:
        run.log_card(name)
    for path in sorted((folder / "saes").glob("*/*/*/seed*")):
        # One trained before W&B was on is not there, and neither are the others then.
        if path.is_dir() and not run.use(run.artifact_name(*path.relative_to(folder / "saes").parts)):
            break


def headline_numbers(rows: Sequence[Row]) -> dict[str, float]:
    """The means over each source's SAEs that evaluators mark for the short table, and where one marks none, all.

    Under the names that monitors use during training.
    """
    numbers: dict[str, float] = {}
    for evaluator in dict.fromkeys(row["evaluator"] for row in rows):
        own = [row for row in rows if row["evaluator"] == evaluator and row["seed"] is None]
        shown = [EvalResult(**row) for row in own if row["headline"]] or [EvalResult(**row) for row in own]
        numbers |= {name: row.value for name, row in _named(shown) if row.value is not None}
    return numbers


def verdict_numbers(verdicts: Iterable[Row]) -> dict[str, Any]:
    """`verdicts/<claim>/<source>-<other>/<hook>/<variant>/...`: what each claim's own number says."""
    numbers: dict[str, Any] = {}
    for row in verdicts:
        if row["primary"]:
            place = f"{row['claim']}/{row['source']}-{row['other']}/{row['hook']}/{row['variant']}"
            numbers[f"verdicts/{place}/verdict"] = row["verdict"]
            if row["difference"] is not None:
                numbers[f"verdicts/{place}/difference"] = row["difference"]
    return numbers


def log_tables(run: WandbRun, data: RunData) -> None:
    """The rows of results and verdicts as they are in the files."""
    columns = [field.name for field in fields(EvalResult)]
    tables: dict[str, Sequence[Row]] = {"tables/results": data.rows}
    verdicts = [asdict(one) for one in data.verdicts]
    if verdicts:
        tables["tables/verdicts"] = verdicts
    for name, rows in tables.items():
        names = columns if name == "tables/results" else list(rows[0])
        run.attempt(
            lambda wandb_run, name=name, names=names, rows=rows: wandb_run.log({name: _table(names, rows)})
        )


def log_figures(run: WandbRun, data: RunData) -> None:
    """The report's figures as `figures/ID`, which W&B draws with plotly."""
    from sae_faithful import figures

    for figure in figures([data]):
        run.attempt(
            lambda wandb_run, figure=figure: wandb_run.log(
                {f"figures/{figure.id}": _panel(figure.title, figure.plotly)}
            )
        )


def _panel(title: str, plotly: Mapping[str, Any]) -> Any:
    """With its title in it: a panel of W&B has only the key's name."""
    import plotly.graph_objects as graph
    import wandb

    return wandb.Plotly(
        graph.Figure(plotly).update_layout(title={"text": html.escape(title), "automargin": True})
    )


def _table(columns: Sequence[str], rows: Sequence[Row]) -> Any:
    import wandb

    return wandb.Table(columns=list(columns), data=[[_cell(row[name]) for name in columns] for row in rows])


def _cell(value: Any) -> Any:
    """A cell of a table holds one thing."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | dict) else value


def _named(rows: Sequence[EvalResult]) -> Iterable[tuple[str, EvalResult]]:
    from sae_faithful import logged_names

    return zip(logged_names(rows), rows, strict=True)
