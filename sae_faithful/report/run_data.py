"""What a report is made of: all in a run folder that a reader may want to see; no model is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sae_faithful.report.rows import rows_of
from sae_faithful.report.verdicts import judge
from sae_faithful.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from sae_faithful.report.verdicts import Verdict

Row = dict[str, Any]


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
    def rows_of(self) -> Mapping[tuple[str, str], Sequence[Row]]:
        """Its rows by evaluator and metric."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row["evaluator"], row["metric"]), []).append(row)
        return found

    @cached_property
    def features(self) -> pd.DataFrame | None:
        """One row a latent of every SAE."""
        import pandas as pd

        return pd.read_parquet(self.folder.features_file) if self.folder.features_file.exists() else None

    def artifact(self, evaluator: str, name: str) -> Any:
        """A JSON document that an evaluator wrote; None where it wrote none of that name."""
        return _json(self.folder.result_dir(evaluator) / "artifacts" / f"{name}.json")


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
    """
    return [
        RunData(
            folder,
            label if len(folders) > 1 else "",
            rows_of(folder),
            _json(folder.manifest_file),
            _json(folder.config_file) or {},
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


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
