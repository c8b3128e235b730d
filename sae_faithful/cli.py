"""The command line: parse, call, print."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sae_faithful import __version__, progress
from sae_faithful.faults import fault
from sae_faithful.interfaces import RunError, UsageError
from sae_faithful.redaction import one_line, without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sae_faithful.run_folder import RunFolder

EXIT_RUN, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class _WithoutSecrets(logging.Formatter):
    """Libraries put addresses with passwords, and servers' answers, into what they say."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def _show_without_secrets(*error: Any) -> None:
    """An error of the program, whose traceback matters."""
    sys.stderr.write(without_secrets("".join(traceback.format_exception(*error))))


class OneLineErrors(click.Group):
    """Turns the errors a user can cause into one line and an exit code; `--debug` keeps the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            _close_progress_bars()
            click.echo("\ninterrupted; run the same command again to go on", err=True)
            sys.exit(EXIT_INTERRUPTED)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except Exception as error:
            line = str(error) if isinstance(error, UsageError | RunError) else fault(error)
            if line is None or ctx.params.get("debug"):
                raise
            _close_progress_bars()
            click.echo(f"error: {one_line(line)}", err=True)
            sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_RUN)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.option("--quiet", is_flag=True, help="Say only what went wrong and where the output is.")
def main(debug: bool, quiet: bool) -> None:
    """Train SAEs on text the model itself generates, and measure how faithful they are.

    Example: sae-faithful run examples/quickstart.yaml --output runs/quickstart
    """
    if quiet:
        click.get_current_context().with_resource(_nothing_but_errors())
    handler = logging.StreamHandler()
    handler.setFormatter(_WithoutSecrets("%(asctime)s %(message)s", "%H:%M:%S"))
    sys.excepthook = _show_without_secrets
    logger = logging.getLogger("sae_faithful")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False


def config_arguments(command: Callable[..., None]) -> Callable[..., None]:
    """FILE, --output, --set, --ray and --dry-run: what every command on a config takes."""
    command = click.option(
        "--ray",
        metavar="ADDRESS|local",
        help="Place the work on a Ray cluster, or on worker processes here; the outcome is the same.",
    )(command)
    command = click.option(
        "--dry-run", is_flag=True, help="Print the plan with its estimates of time and memory; do nothing."
    )(command)
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a field; dots reach into nested ones.",
    )(command)
    command = click.option(
        "--output", type=click.Path(path_type=Path), help="Run folder; default: the config's output_path."
    )(command)
    return click.argument("file", type=click.Path(path_type=Path))(command)


@main.command()
@config_arguments
def run(file: Path, output: Path | None, overrides: tuple[str, ...], dry_run: bool, ray: str | None) -> None:
    """Run the whole experiment in FILE: data, SAEs, measurements, report.

    Finished steps are kept: run it again after an interruption, or with more sources, seeds or evaluators.

    Example: sae-faithful run examples/quickstart.yaml --output runs/quickstart --set sae.k=16
    """
    from sae_faithful.report import terminal_table

    folders = _run(file, output, overrides, "results", dry_run, ray)
    for folder in folders:
        if not _quiet():
            click.echo(f"{terminal_table(folder)}\n")
        click.echo(
            f"results: {folder.results_file}\nfeatures: {folder.features_file}\nreport: {folder.report_file}"
            f"\nto look at: {folder.html_file.as_uri()}"
        )
    if len(folders) > 1:
        page = folders[0].root.parent / "comparison.html"
        click.echo(f"side by side: {page.as_uri()}")


@main.command()
@config_arguments
@click.option("--push-to-hub", "repository", metavar="REPO", help="Send the dataset to the Hugging Face hub.")
@click.option("--source", "name", help="Which source to send, where the config has several.")
def generate(
    file: Path,
    output: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    ray: str | None,
    repository: str | None,
    name: str | None,
) -> None:
    """Make just the datasets of FILE.

    Example: sae-faithful generate examples/quickstart.yaml --output runs/data
    """
    from sae_faithful.config import ExperimentConfig
    from sae_faithful.hub import push_source, source_to_push
    from sae_faithful.several_models import models_in_file

    if repository is not None and models_in_file(file, overrides) is not None:
        raise UsageError("--push-to-hub sends the data of one run; FILE has several models")
    if repository is not None and (sources := list(ExperimentConfig.from_file(file, overrides).sources)):
        # Before hours of generation, not after.
        name = source_to_push(sources, name)
    folders = _run(file, output, overrides, "data", dry_run, ray)
    for folder in folders:
        for path in sorted(folder.root.glob("data/*/card.json")):
            click.echo(f"data: {path.parent}")
        if repository is not None:
            click.echo(f"pushed: {push_source(folder, repository, name)}")


@main.command()
@config_arguments
def train(
    file: Path, output: Path | None, overrides: tuple[str, ...], dry_run: bool, ray: str | None
) -> None:
    """Make the datasets and SAEs of FILE, without measuring them.

    Example: sae-faithful train examples/quickstart.yaml --output runs/quickstart
    """
    for folder in _run(file, output, overrides, "saes", dry_run, ray):
        click.echo(f"SAEs: {folder.root / 'saes'}")


@main.command()
@click.option(
    "--sae", "saes", multiple=True, required=True, metavar="PATH|RELEASE/ID", help="An SAE; repeat for more."
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    required=True,
    metavar="NAME[={option: value}]",
    help="A text; the first counts as in-distribution.",
)
@click.option(
    "--evaluator",
    "evaluators",
    multiple=True,
    required=True,
    metavar="NAME[={option: value}]",
    help="What to measure.",
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Run folder.")
@click.option("--seed", default=0, show_default=True, help="Of texts and measurements.")
@click.option("--context-size", type=int, help="Tokens a row; default: what the SAE says.")
@click.option("--device", default="cpu", show_default=True, help="Of model and SAEs.")
def evaluate(
    saes: tuple[str, ...], sources: tuple[str, ...], evaluators: tuple[str, ...], output: Path, seed: int,
    context_size: int | None, device: str,
) -> None:  # fmt: skip
    """Measure SAEs that exist already: folders that SAELens wrote, or releases it knows.

    Example: sae-faithful evaluate --sae runs/saes/a --source self_generated --evaluator fake_features --output out
    """
    from sae_faithful.config import named_options
    from sae_faithful.pretrained import evaluate_saes
    from sae_faithful.report import terminal_table

    folder = evaluate_saes(
        saes,
        {name: {"plugin": name, **options} for name, options in map(named_options, sources)},
        [{name: options} for name, options in map(named_options, evaluators)],
        output,
        seed=seed,
        context_size=context_size,
        device=device,
    )
    click.echo(terminal_table(folder))
    click.echo(f"\n'{named_options(sources[0])[0]}' counted as in-distribution")
    click.echo(f"results: {folder.results_file}\nreport: {folder.report_file}")
    click.echo(f"to look at: {folder.html_file.as_uri()}")


@main.command()
@click.argument(
    "directories", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="DIRECTORY..."
)
@click.option(
    "--format", "form", metavar="json|csv", help="Print every row of the results in this form; write nothing."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The page to write; default: report.html in DIRECTORY, or comparison.html in the first of several.",
)
def report(directories: tuple[Path, ...], form: str | None, output: Path | None) -> None:
    """Write the report of the run in DIRECTORY again, or one page with several runs, or print a run's rows.

    Example: sae-faithful report runs/quickstart runs/longer --output comparison.html
    """
    from sae_faithful.report import rows_as, write_comparison, write_report
    from sae_faithful.run_folder import RunFolder

    folders = [RunFolder(directory) for directory in directories]
    page = None if output is None else output.expanduser().absolute()
    if form is not None:
        if len(folders) > 1 or page is not None:
            raise UsageError("--format prints the rows of one run: give one DIRECTORY, and no --output")
        click.echo(rows_as(folders[0], form), nl=False)
    elif len(folders) > 1:
        click.echo(f"to look at: {write_comparison(folders, page).as_uri()}")
    else:
        page = write_report(folders[0], page)
        click.echo(f"report: {folders[0].report_file}\nto look at: {page.as_uri()}")


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("repository", metavar="REPO")
@click.option("--source", "sources", multiple=True, help="Only SAEs trained on it; repeat for more.")
@click.option("--hook", "hooks", multiple=True, help="Only SAEs at it; repeat for more.")
@click.option("--variant", "variants", multiple=True, help="Only SAEs of it; repeat for more.")
@click.option("--private", is_flag=True, help="Into a private repository.")
@click.option("--license", "licence", metavar="ID", help="The hub's name of a licence, for the card.")
def push(
    directory: Path, repository: str, sources: tuple[str, ...], hooks: tuple[str, ...], variants: tuple[str, ...],
    private: bool, licence: str | None,
) -> None:  # fmt: skip
    """Send the SAEs of the run in DIRECTORY to the Hugging Face hub, with a card that says what was measured.

    REPO is USER/NAME; log in first with hf auth login.

    Example: sae-faithful push runs/quickstart me/saes --source faithful --license apache-2.0
    """
    from sae_faithful.hub import push_saes
    from sae_faithful.run_folder import RunFolder

    names = push_saes(
        RunFolder(directory),
        repository,
        sources=sources,
        hooks=hooks,
        variants=variants,
        private=private,
        licence=licence,
    )
    click.echo(f"pushed: {repository}")
    for name in names:
        click.echo(f'  SAE.from_pretrained("{repository}", "{name}")')


@main.command()
def plugins() -> None:
    """List every installed plugin: kind, name, where it comes from, what it is.

    Example: sae-faithful plugins
    """
    from sae_faithful.registry import KINDS, load_plugins

    manager = load_plugins()
    rows = [
        (one.kind, one.name, f"{one.distribution} {one.version}".strip(), one.summary)
        for kind in KINDS
        for one in manager.registrations(kind).values()
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    for row in rows:
        click.echo(
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]
            ).rstrip()
        )


def _close_progress_bars() -> None:
    """Bars that an error left open would be drawn into the line that says what is wrong, or after it."""
    tqdm: Any = sys.modules.get("tqdm")
    for bar in list(tqdm.tqdm._instances) if tqdm is not None else ():
        bar.close()


def _run(
    file: Path, output: Path | None, overrides: tuple[str, ...], until: str, dry_run: bool, ray: str | None
) -> list[RunFolder]:
    """The folder of what was done, or those of the file's models; none where it was only planned."""
    from sae_faithful import experiment
    from sae_faithful.config import ExperimentConfig
    from sae_faithful.several_models import models_in_file

    configs = models_in_file(file, overrides)
    if configs is not None:
        root = output or next(iter(configs.values())).output_path or "output"
        if dry_run:
            click.echo(experiment.dry_run_models(configs, output=root, until=until))
            return []
        return list(experiment.run_models(configs, output=root, until=until, ray=ray).values())
    config = ExperimentConfig.from_file(file, overrides)
    if dry_run:
        click.echo(experiment.dry_run(config, output=output, until=until))
        return []
    return [experiment.run(config, output=output, until=until, ray=ray)]


def _quiet() -> bool:
    return bool(click.get_current_context().find_root().params["quiet"])


@contextlib.contextmanager
def _nothing_but_errors() -> Generator[None]:
    """What `--quiet` asks for, of every library."""
    disabled, wandb_silent = logging.root.manager.disable, os.environ.get("WANDB_SILENT")
    logging.disable(logging.WARNING)
    os.environ["WANDB_SILENT"] = "true"
    try:
        with progress.silenced(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if wandb_silent is None:
            del os.environ["WANDB_SILENT"]
        else:
            os.environ["WANDB_SILENT"] = wandb_silent
