"""Labelled texts: read, freed of repeats, then split. Where they come from is what the config says."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_faithful import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sae_faithful.metrics.probing import ProbeMetric

Data = Literal["hub", "sae_probes"]
TEST_SHARE = 0.3
"""Of texts that come without an official split."""
ROWS_READ_PER_EXAMPLE = 3
"""From splits of the hub: some are repeats, and Yelp has half a million."""
FEWEST_PER_CLASS = 5
"""Of training texts: C is chosen by five-fold cross-validation."""


@dataclass(frozen=True)
class KnownTask:
    """Where a task's texts stand, on the hub and in the sae-probes package."""

    hub: tuple[str, str | None, str]
    """Path, configuration and test split (the hub's test sets of GLUE have no labels)."""
    text: str
    file: str
    classes: Mapping[int, int] = field(default_factory=lambda: {0: 0, 1: 1})
    """Class by the file's `target`; rows of other targets are dropped."""
    metric: ProbeMetric = "accuracy"
    """The one for the report's short table: GLUE's own."""


KNOWN = {
    "sst2": KnownTask(("stanfordnlp/sst2", None, "validation"), "sentence", "92_glue_sst2"),
    "cola": KnownTask(("nyu-mll/glue", "cola", "validation"), "sentence", "87_glue_cola", metric="mcc"),
    # The file has stars 0-4; the hub's set has 1-2 against 4-5 of 5.
    "yelp_polarity": KnownTask(
        ("fancyzhx/yelp_polarity", None, "test"), "text", "111_yelp_data", {0: 0, 1: 0, 3: 1, 4: 1}
    ),
}


@dataclass(frozen=True)
class LocalTask:
    """A table of one's own."""

    path: str
    """CSV, JSON lines or Parquet, compressed or not."""
    text: str = "text"
    label: str = "label"
    test_path: str | None = None
    """A second table to test on; without it, 30 % of the first."""


@dataclass(frozen=True)
class Part:
    """Texts and their classes, 0 or 1."""

    texts: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Sequence[int] | np.ndarray) -> Part:
        """Some of the rows, in that order."""
        return Part([self.texts[row] for row in rows], self.labels[np.asarray(rows, np.int64)])


@dataclass(frozen=True)
class Task:
    """Texts of two classes, split so that no text is on both sides."""

    name: str
    train: Part
    test: Part
    metric: ProbeMetric = "accuracy"
    card: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Where the texts come from and how many were dropped."""


def parse_tasks(entries: Sequence[str | Mapping[str, Mapping[str, str]]]) -> dict[str, LocalTask | None]:
    """Tasks by name; those of one's own with where they are.

    Raises:
        ValueError: an unknown name, a name twice, or a wrong key.
    """
    found: dict[str, LocalTask | None] = {}
    for entry in entries:
        for name, options in entry.items() if not isinstance(entry, str) else [(entry, None)]:
            if name in found:
                raise ValueError(f"task '{name}' is named twice")
            if options is None and name not in KNOWN:
                raise ValueError(
                    f"unknown task '{name}'; choices: {', '.join(KNOWN)}, or your own as "
                    "{name: {path: FILE, text: COLUMN, label: COLUMN}}"
                )
            found[name] = None if options is None else _local(name, options)
    return found


def load_task(name: str, local: LocalTask | None, data: Data, max_examples: int, seed: int) -> Task:
    """Read a task, drop repeats, then split, then take at most `max_examples` of each part.

    Never looks anywhere but where `data` says.

    Raises:
        UsageError: the texts cannot be read, or do not make two classes.
    """
    rng = np.random.default_rng(seed)
    metric = "accuracy" if local else KNOWN[name].metric
    train, test, origin = _read(name, local, data, max_examples, rng)
    card: dict[str, Any] = {
        "data": origin,
        "rows_read": len(train) + (len(test) if test else 0),
        "split": "official" if test else "random",
    }
    train, test = split_without_repeats(train, test, rng)
    card["distinct_texts"] = len(train) + len(test)
    train, test = _at_most(train, max_examples, rng), _at_most(test, max_examples, rng)
    for part, which, fewest in ((train, "training", FEWEST_PER_CLASS), (test, "test", 1)):
        counts = np.bincount(part.labels, minlength=2)
        if counts.min() < fewest:
            raise UsageError(
                f"task '{name}' has {counts[0]} + {counts[1]} distinct {which} texts of its two classes; "
                f"at least {fewest} of each are needed"
            )
    card |= {"train": len(train), "test": len(test), "test_share_of_class_1": float(test.labels.mean())}
    return Task(name, train, test, metric, card)


def normalise(text: str) -> str:
    """What makes two texts the same: their characters apart from case and white space."""
    return " ".join(text.casefold().split())


def split_without_repeats(train: Part, test: Part | None, rng: np.random.Generator) -> tuple[Part, Part]:
    """Drop empty texts, repeats, and texts that stand under both classes; only then split.

    With an official test part, training texts that stand in it are dropped as well; without one, 30 % of
    each class are drawn for testing.
    """
    train = train.select(_distinct(train))
    if test is not None:
        test = test.select(_distinct(test))
        tested = {normalise(text) for text in test.texts}
        return train.select([i for i, text in enumerate(train.texts) if normalise(text) not in tested]), test
    chosen = np.zeros(len(train), bool)
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(train.labels == label))
        chosen[rows[: round(TEST_SHARE * len(rows))]] = True
    return train.select(np.flatnonzero(~chosen)), train.select(np.flatnonzero(chosen))


def check_readable(tasks: Mapping[str, LocalTask | None], data: Data) -> None:
    """Find missing files before anything costly is done.

    Raises:
        ValueError: a file or the sae-probes package is not there.
    """
    for name, local in tasks.items():
        for path in (local.path, local.test_path) if local else ():
            if path is not None and not Path(path).expanduser().is_file():
                raise ValueError(f"task '{name}': there is no file {path}")
    if data == "sae_probes" and None in tasks.values():
        sae_probes_folder()


def sae_probes_folder() -> Path:
    """The folder of texts in the installed sae-probes package, which is not imported: it would want pandas of its own.

    Raises:
        ValueError: it is not installed.
    """
    found = importlib.util.find_spec("sae_probes")
    if found is None or found.origin is None:
        raise ValueError(
            "data: sae_probes needs the package 'sae-probes'; pip install --no-deps sae-probes zstandard"
        )
    return Path(found.origin).parent / "data" / "cleaned_data"


def _local(name: str, options: Mapping[str, str]) -> LocalTask:
    choices = [one.name for one in dataclasses.fields(LocalTask)]
    for key in options:
        if key not in choices:
            raise ValueError(f"task '{name}': unknown key '{key}'; choices: {', '.join(choices)}")
    if "path" not in options:
        raise ValueError(f"task '{name}' needs a path")
    return LocalTask(**options)


def _distinct(part: Part) -> list[int]:
    """Rows with a text that is not empty, its first occurrence, and always under one class."""
    first: dict[str, int] = {}
    torn: set[str] = set()
    for row, text in enumerate(part.texts):
        key = normalise(text)
        if key and part.labels[first.setdefault(key, row)] != part.labels[row]:
            torn.add(key)
    return [row for key, row in first.items() if key not in torn]


def _at_most(part: Part, n: int, rng: np.random.Generator) -> Part:
    """A random `n` of the rows, the classes' shares kept."""
    if len(part) <= n:
        return part
    ones = rng.permutation(np.flatnonzero(part.labels == 1))
    zeros = rng.permutation(np.flatnonzero(part.labels == 0))
    n_ones = round(n * len(ones) / len(part))
    return part.select(np.sort(np.concatenate([ones[:n_ones], zeros[: n - n_ones]])))


def _read(
    name: str, local: LocalTask | None, data: Data, max_examples: int, rng: np.random.Generator
) -> tuple[Part, Part | None, str]:
    """All texts, those of an official test split where there is one, and where they come from."""
    if local is not None:
        first = _read_table(name, local.path, local.text, local.label)
        second = _read_table(name, local.test_path, local.text, local.label) if local.test_path else None
        return *_as_classes(name, first, second), local.path
    known = KNOWN[name]
    if data == "sae_probes":
        return _read_sae_probes(name), None, f"sae-probes: {known.file}"
    return *_read_hub(name, max_examples, rng), f"hub: {known.hub[0]}, tested on {known.hub[2]}"


def _read_hub(name: str, max_examples: int, rng: np.random.Generator) -> tuple[Part, Part]:
    from datasets import load_dataset

    path, configuration, test_split = KNOWN[name].hub
    column = KNOWN[name].text
    parts: list[Part] = []
    for split in ("train", test_split):
        try:
            rows: Any = load_dataset(path, configuration, split=split)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(
                f"task '{name}': '{path}' cannot be read from the hub: {reason}; "
                "`data: sae_probes` takes the installed package's texts instead"
            ) from error
        kept = min(len(rows), ROWS_READ_PER_EXAMPLE * max_examples)
        chosen = rows.select(np.sort(rng.permutation(len(rows))[:kept]))
        parts.append(Part([str(text) for text in chosen[column]], np.asarray(chosen["label"], np.int64)))
    return parts[0], parts[1]


def _read_sae_probes(name: str) -> Part:
    path = sae_probes_folder() / f"{KNOWN[name].file}.csv.zst"
    texts, targets = _read_table(name, str(path), "prompt", "target")
    classes = {str(target): label for target, label in KNOWN[name].classes.items()}
    kept = [i for i, target in enumerate(targets) if target in classes]
    return Part([texts[i] for i in kept], np.array([classes[targets[i]] for i in kept], np.int64))


def _read_table(name: str, path: str, text: str, label: str) -> tuple[list[str], list[str]]:
    """Texts and labels, as strings; rows without one of them are dropped."""
    import pandas as pd

    file = Path(path).expanduser()
    suffixes = [suffix for suffix in file.suffixes if suffix not in (".zst", ".gz", ".xz", ".bz2")]
    kind = suffixes[-1] if suffixes else ""
    try:
        if kind == ".csv":
            table: Any = pd.read_csv(file, dtype=str, keep_default_na=False)
        elif kind in (".jsonl", ".json"):
            table = pd.read_json(file, lines=True, dtype=False)
        elif kind == ".parquet":
            table = pd.read_parquet(file)
        else:
            raise UsageError(f"task '{name}': {path} is no .csv, .jsonl, .json or .parquet file")
        for column in (text, label):
            if column not in table.columns:
                raise UsageError(
                    f"task '{name}': {path} has no column '{column}'; it has: {', '.join(table.columns)}"
                )
        # Columns of Arrow are decoded here, where they are used.
        table = table[[text, label]].dropna().astype(str)
        table = table[table[label].str.strip() != ""]
        return list(table[text]), list(table[label].str.strip())
    except UsageError:
        raise
    # Of pandas, pyarrow and whatever unpacks the file, each with errors of its own.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"task '{name}': {path} cannot be read: {reason}") from error


def _as_classes(
    name: str, train: tuple[list[str], list[str]], test: tuple[list[str], list[str]] | None
) -> tuple[Part, Part | None]:
    """Label strings as 0 and 1, in alphabetical order."""
    counts: Counter[str] = Counter([*train[1], *(test[1] if test else [])])
    if len(counts) != 2:
        shown = ", ".join(repr(label) for label, _ in counts.most_common(5))
        raise UsageError(f"task '{name}' has {len(counts)} labels ({shown}); a probe tells two apart")
    numbers = {label: i for i, label in enumerate(sorted(counts))}

    def part(table: tuple[list[str], list[str]]) -> Part:
        return Part(table[0], np.array([numbers[label] for label in table[1]], np.int64))

    return part(train), part(test) if test else None
