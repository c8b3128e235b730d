"""The runs behind docs/results.md: which of their files are kept in docs/results/, and how they are read again."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from sae_faithful import EvalResult
from sae_faithful.report import render
from sae_faithful.report.definitions import DEFINITIONS
from sae_faithful.report.distance import MEASURES, SCORES
from sae_faithful.report.run_data import RunData, read_run
from sae_faithful.report.verdicts import CLAIMS
from sae_faithful.run_folder import RunFolder, write_json, write_text
from sae_faithful.timings import read_timings

Row = dict[str, Any]
KEPT = Path(__file__).parents[1] / "results"
COPIED = ("config.json", "manifest.json", "timings.json", "data/*/card.json")
"""As they are; of the rows only those that the page is made of."""
STAGES = "timings.jsonl"
"""What each step took each time that it was done, of runs that were made in stages."""
NUMBERS = (
    {(one.metric, one.subset, one.condition) for one in (*DEFINITIONS, *MEASURES, *CLAIMS)}
    | {(one.less, one.subset, one.condition) for one in (*DEFINITIONS, *MEASURES) if one.less}
    | {("alive", "all", None), ("l0", "all", None)}
    | {("probe_accuracy", "all", condition) for condition in ("raw", "random_sae", "tfidf", "majority")}
    | {("ffr_contrast_random_sae", "alive", "rate>0.1"), ("sfr_null", "alive", "cosine>0.7")}
)  # fmt: skip
TEXTS = {"typicality_gap", "typicality_z", *(score.metric for score in SCORES)}
SCALE_WIDTH, SCALE_TOKENS = 16_384, 10_000_000
"""What a run at scale has: latents, and distinct training tokens of each source."""
DEFAULTS = {field.name: field.default for field in fields(EvalResult)}


class Made(NamedTuple):
    """One run as the page needs it."""

    run: RunData
    date: str
    price: float | None
    """Of an hour of the device, where it was given."""
    currency: str
    calls: list[float]
    """Seconds of every call that the runs were made in, where they were made in pieces."""

    @property
    def name(self) -> str:
        return self.run.folder.root.name

    @property
    def control(self) -> bool:
        """Whether its language model is random."""
        return self.run.config.get("model_init") == "random"

    @property
    def staged(self) -> bool:
        """Whether it is known of every stage what its steps took."""
        return (self.run.folder.root / STAGES).exists()

    @property
    def timings(self) -> list[Row]:
        """A row a step: what it took, and was expected to take, all the times together that it was done."""
        if not self.staged:
            return read_timings(self.run.folder.timings_file)
        found: dict[str, Row] = {}
        for row in map(json.loads, _lines(self.run.folder.root / STAGES)):
            step = found.setdefault(
                row["step"], {"step": row["step"], "seconds": 0.0, "expected_seconds": 0.0}
            )
            step["seconds"] += row["seconds"]
            both = (step["expected_seconds"], row["expected_seconds"])
            step["expected_seconds"] = None if None in both else sum(both)
        return list(found.values())

    @property
    def tokens(self) -> dict[str, int]:
        """Distinct training tokens of every source."""
        cards = {name: _json(self.run.folder.data_dir(name) / "card.json") for name in self.run.sources}
        return {name: card["rows"]["train"] * card["context_size"] for name, card in cards.items()}

    @property
    def at_scale(self) -> bool:
        wide = self.run.config["sae"]["d_sae"] >= SCALE_WIDTH
        return wide and all(tokens >= SCALE_TOKENS for tokens in self.tokens.values())


def take(folder: Path, price: float | None, currency: str, kept: Path = KEPT) -> list[Path]:
    """Put the small files of the run in `folder`, or of every run right below it, in the place of those kept before.

    Raises:
        SystemExit: there is no finished run; or a file names a place of this machine.
    """
    found = [one for one in (folder, *sorted(folder.iterdir())) if (one / "results.jsonl").exists()]
    if not found:
        raise SystemExit(f"{folder} holds no finished run, nor does a folder right below it")
    shutil.rmtree(kept, ignore_errors=True)
    calls = [one["seconds"] for one in map(json.loads, _lines(folder / "calls.jsonl"))]
    if calls:
        write_json(kept / "calls.json", calls)
    return [_take_one(run, kept / run.name, price, currency) for run in found]


def runs_of(kept: Path = KEPT) -> list[Made]:
    """The runs whose files are kept; random-model controls last."""
    made: list[Made] = []
    calls = _json(kept / "calls.json") if (kept / "calls.json").exists() else []
    for path in sorted(kept.glob("*/made.json")):
        about = _json(path)
        run = read_run(path.parent)
        made.append(Made(run, about["date"], about["price_of_an_hour"], about["currency"], calls))
    return sorted(made, key=lambda one: (one.control, not one.at_scale, _natural(one.name)))


def _take_one(run: Path, to: Path, price: float | None, currency: str) -> Path:
    for pattern in COPIED:
        for path in run.glob(pattern):
            _check_places(path)
            write_text(to / path.relative_to(run), path.read_text(encoding="utf-8"))
    rows = [_short(row) for row in map(json.loads, _lines(run / "results.jsonl")) if _is_kept(row)]
    write_text(to / "results.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    stages = [line for line in _lines(run.parent / STAGES) if json.loads(line)["run"] == run.name]
    if stages:
        write_text(to / STAGES, "".join(line + "\n" for line in stages))
    about = {"date": _date(run), "price_of_an_hour": price, "currency": currency}
    write_json(to / "made.json", about)
    # As text: a page of the site it is not. The page with figures is made from the same folder.
    folder = RunFolder(to)
    write_text(to / "report.txt", render(folder))
    return to


def _date(run: Path) -> str:
    """When it was finished: its last stage, where runs were made in stages, or its rows."""
    stages: dict[str, Row] = _json(path) if (path := run.parent / "stages.json").exists() else {}
    ended = [stage["at"] for name, stage in stages.items() if name.startswith(f"{run.name}/")]
    written = datetime.fromtimestamp((run / "results.jsonl").stat().st_mtime, UTC)
    return max(ended)[:10] if ended else f"{written:%Y-%m-%d}"


def _natural(name: str) -> list[tuple[int, str]]:
    """For sorting: layer_9 before layer_19."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _is_kept(row: Row) -> bool:
    if row["metric"] in TEXTS:
        return row["source"] is None
    return (row["metric"], row["subset"], row["condition"]) in NUMBERS


def _short(row: Row) -> Row:
    """Without what every row has unless it says otherwise."""
    return {key: value for key, value in row.items() if key not in DEFAULTS or value != DEFAULTS[key]}


def _check_places(path: Path) -> None:
    def strings(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [one for part in value.values() for one in strings(part)]
        if isinstance(value, list):
            return [one for part in value for one in strings(part)]
        return [value] if isinstance(value, str) else []

    absolute = [one for one in strings(_json(path)) if one.startswith(("/", "~")) and len(one) > 1]
    if absolute:
        raise SystemExit(
            f"{path} names places of this machine, which no reader has: {', '.join(absolute[:3])}"
        )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
