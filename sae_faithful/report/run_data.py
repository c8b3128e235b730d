"""What a report is made of: all in a run folder that a reader may want to see; no model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NotRequired

from sae_faithful.names import check_name
from sae_faithful.report.definitions import redefined
from sae_faithful.report.distance import trends
from sae_faithful.report.rows import rows_of
from sae_faithful.report.verdicts import judge
from sae_faithful.run_folder import RunFolder
from sae_faithful.stored import blamed_on, read_features, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from pydantic import TypeAdapter

    from sae_faithful.report.definitions import Redefined
    from sae_faithful.report.distance import Trend
    from sae_faithful.report.verdicts import Verdict

Row = dict[str, Any]
NAMES = ("sources", "datasets", "own_text", "evaluators", "baselines")
"""Of the manifest: names of folders."""


@dataclass(frozen=True)
class RunData:
    """One run, read from its folder."""

    folder: RunFolder
    label: str
    """What tells it from the other runs of the same report; empty where there is only one."""
    rows: Sequence[Row]
    """Of `results.jsonl`."""
    manifest: Row
    config: Row
    """As resolved; empty for runs of older versions and of `evaluate`."""

    @property
    def sources(self) -> Sequence[str]:
        """In the order of the config."""
        return self.manifest["sources"]

    def named(self, source: str) -> str:
        """A source as a report of several runs calls it."""
        return f"{self.label}: {source}" if self.label else source

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Each claim about two of its sources."""
        return judge(self.rows, self.manifest)

    @cached_property
    def trends(self) -> list[Trend]:
        """Its numbers of stability against the distance of the texts from the model."""
        return trends(self.rows, self.manifest)

    @cached_property
    def redefined(self) -> list[Redefined]:
        """Each claim by other definitions of its number."""
        return redefined(self.rows, self.manifest)

    @cached_property
    def rows_of(self) -> Mapping[tuple[str, str], Sequence[Row]]:
        """Its rows by evaluator and metric."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row["evaluator"], row["metric"]), []).append(row)
        return found

    @cached_property
    def features(self) -> pd.DataFrame | None:
        """One row a latent of every SAE."""
        return read_features(self.folder.features_file) if self.folder.features_file.exists() else None

    def artifact(self, evaluator: str, name: str) -> Any:
        """A JSON document that an evaluator wrote; None where it wrote none of that name."""
        path = self.folder.result_dir(evaluator) / "artifacts" / f"{name}.json"
        return read_json(path) if path.exists() else None


def read_run(root: Path | str) -> RunData:
    """The run in one folder, for a plugin that publishes it.

    Raises:
        UsageError: the folder holds no finished run.
    """
    return read_runs([RunFolder(root)])[0]


def read_runs(folders: Sequence[RunFolder]) -> list[RunData]:
    """The runs in `folders`, each with a label of its own if there are several.

    Raises:
        UsageError: a folder holds no finished run.
        RunError: one of its files is damaged.
    """
    return [
        RunData(
            folder,
            label if len(folders) > 1 else "",
            rows_of(folder),
            read_manifest(folder),
            _fields(folder.config_file) if folder.config_file.exists() else {},
        )
        for folder, label in zip(folders, _labels(folders), strict=True)
    ]


def _labels(folders: Sequence[RunFolder]) -> list[str]:
    """The folders' names, longer where that tells two apart."""
    length = 1
    longest = max((len(folder.root.parts) for folder in folders), default=1)
    while True:
        labels = ["/".join(folder.root.parts[-length:]) for folder in folders]
        if len(set(labels)) == len(labels) or length >= longest:
            return labels
        length += 1


def read_manifest(folder: RunFolder) -> Row:
    """What the run was made with.

    Raises:
        RunError: there is no manifest, or one without what every run has; or with names that lead out of the folder.
    """
    manifest = _fields(folder.manifest_file)
    with blamed_on(folder.manifest_file):
        _manifest_adapter().validate_python(manifest, strict=True)
        for key in NAMES:
            for name in manifest.get(key, ()):
                check_name(name, f"{folder.manifest_file}: {key},")
    return manifest


def _fields(path: Path) -> Row:
    value = read_json(path)
    with blamed_on(path):
        if not isinstance(value, dict):
            raise ValueError(f"{type(value).__name__}, not fields")
    return value


@cache
def _manifest_adapter() -> TypeAdapter[Any]:
    from pydantic import TypeAdapter
    from typing_extensions import TypedDict

    # Older runs have fewer fields, `evaluate` has no baselines.
    everywhere: dict[str, Any] = {
        "model": str, "versions": dict[str, str], "device": str, "threads": int, "summary": str, "sources": list[str],
        "evaluators": list[str],
    }  # fmt: skip
    maybe: dict[str, Any] = {
        "own_text": list[str], "remote_code": list[str], "datasets": list[str], "baselines": dict[str, dict[str, Any]],
        "processor": str | None, "gpu": str | None, "machine": str | None, "python": str | None,
        "resumed_inexactly": dict[str, list[int]],
    }  # fmt: skip
    fields: dict[str, Any] = {name: NotRequired[kind] for name, kind in maybe.items()} | everywhere
    return TypeAdapter(TypedDict("Manifest", fields))  # pyright: ignore[reportArgumentType] (made at run time)
