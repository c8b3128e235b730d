"""What the feature pages show, as one JSON document: columns of every latent, and what was written of chosen ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd

    from sae_faithful.report.run_data import RunData

Key = tuple[str, str, str, int]
"""Source, hook, variant, seed."""
KEYS = ["source", "hook", "variant", "seed", "latent"]

MOST_LATENTS = 200_000
"""With more, columns are only of latents that something was written about: the page would be too large to open."""
FIGURES = 4
"""Significant ones of an embedded number."""
SPARSE = 1 / 3
"""A column with values for fewer latents than this is written as pairs of latent and value."""
MATCH = "shared_features.match.seed"
CASE = ("why", "n_active", "maximum", "top_token", "neuron", "ablation", "unembedding", "tree_text")
"""What a page shows of a case study; its histograms are in `cases.txt`."""


@dataclass
class _SAE:
    """What is known of one SAE."""

    frame: pd.DataFrame | None = None
    neuronpedia: str | None = None
    no_direct_path: str | None = None
    """Why nothing is said of promoted tokens."""
    pages: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])

    def page(self, latent: int) -> dict[str, Any]:
        return self.pages.setdefault(int(latent), {})


def feature_data(runs: Sequence[RunData]) -> dict[str, Any]:
    """All that the feature pages need.

    Returns:
        `complete`: whether columns are of all latents; `columns`: their names; `saes`: of each SAE who it is, `n`
        (latents), `latents` (which, where not all), `columns` (a list of numbers, or `at` and `values`), and `pages`
        by latent: `why` it was chosen, `contexts`, `promoted`, `suppressed`, `snippets`, `explained`, `case`.
    """
    saes = [(run, key, sae) for run in runs for key, sae in _saes(run).items()]
    total = sum(len(sae.frame) for _, _, sae in saes if sae.frame is not None)
    complete = total <= MOST_LATENTS
    columns = dict.fromkeys(
        name for _, _, sae in saes if sae.frame is not None for name in sae.frame.columns if name not in KEYS
    )
    return {
        "complete": complete,
        "total": total,
        "columns": list(columns),
        "saes": [_embedded(run, key, sae, complete) for run, key, sae in saes],
    }


def _saes(run: RunData) -> dict[Key, _SAE]:
    """Every SAE that has columns or that something was written about."""
    saes: dict[Key, _SAE] = {}
    if run.features is not None:
        order = {source: number for number, source in enumerate(run.sources)}
        frames: list[tuple[Any, pd.DataFrame]] = list(
            run.features.groupby(KEYS[:4], sort=False, dropna=False)
        )
        for key, frame in sorted(frames, key=lambda one: order.get(one[0][0], len(order))):
            saes[_key(dict(zip(KEYS, key, strict=False)))] = _SAE(frame.sort_values("latent"))

    def find(entry: Mapping[str, Any]) -> _SAE:
        return saes.setdefault(_key(entry), _SAE())

    for entry in _entries(run, "top_contexts", "contexts"):
        sae = find(entry)
        sae.neuronpedia, sae.no_direct_path = entry.get("neuronpedia"), entry.get("no_direct_path")
        for latent in entry["latents"]:
            sae.page(latent["latent"]).update(
                {name: value for name, value in latent.items() if name != "latent"}
            )
    for entry in _entries(run, "fake_features", "fake_latents"):
        for latent in entry["latents"]:
            _add_snippets(find(entry).page(latent["latent"]), "fake_features", latent)
    for entry in _entries(run, "autointerp", "features"):
        for feature in entry["features"]:
            page = find(entry).page(feature["latent"])
            page["explained"] = feature["scores"]
            _add_snippets(page, "autointerp", feature)
    for entry in _entries(run, "case_studies", "cases"):
        for feature in entry["features"]:
            page = find(entry).page(feature["latent"])
            page["case"] = _case(feature)
            _add_snippets(page, "case_studies", feature)
    return saes


def _entries(run: RunData, evaluator: str, name: str) -> list[dict[str, Any]]:
    document = run.artifact(evaluator, name)
    return [] if document is None else document["saes"]


def _case(feature: Mapping[str, Any]) -> dict[str, Any]:
    case = {name: feature[name] for name in CASE if name in feature}
    if case.get("neuron"):
        case["neuron"] = {name: value for name, value in case["neuron"].items() if name != "histogram"}
    return case


def _add_snippets(page: dict[str, Any], evaluator: str, feature: Mapping[str, Any]) -> None:
    """Places in text without activations of their neighbours; where `top_contexts` wrote better ones, those do."""
    if feature.get("contexts") and not page.get("contexts"):
        page.setdefault("snippets", {})[evaluator] = [
            {name: place[name] for name in ("activation", "before", "token", "after")}
            for place in feature["contexts"]
        ]


def _key(entry: Mapping[str, Any]) -> Key:
    return entry["source"], entry["hook"], entry["variant"], int(entry["seed"])


def _embedded(run: RunData, key: Key, sae: _SAE, complete: bool) -> dict[str, Any]:
    source, hook, variant, seed = key
    frame = sae.frame
    latents: list[int] | None = None
    if frame is not None and not complete:
        frame = frame[frame["latent"].isin(list(sae.pages))]
    if frame is not None:
        ids = [int(latent) for latent in frame["latent"]]
        latents = None if ids == list(range(len(ids))) else ids
    return {
        "source": run.named(source),
        "text": source,
        "hook": hook,
        "variant": variant,
        "seed": seed,
        "baseline": variant in run.manifest.get("baselines", ()),
        "neuronpedia": sae.neuronpedia,
        "no_direct_path": sae.no_direct_path,
        "n": len(sae.frame) if sae.frame is not None else None,
        "latents": latents,
        "columns": {} if frame is None else _columns(frame),
        "pages": {str(latent): _rounded(page) for latent, page in sorted(sae.pages.items())},
    }


def _columns(frame: pd.DataFrame) -> dict[str, Any]:
    """Columns that have a value, the sparse ones as pairs of place and value."""
    columns: dict[str, Any] = {}
    for name in frame.columns:
        if name in KEYS:
            continue
        values = [_number(value) for value in frame[name].astype(float)]
        at = [place for place, value in enumerate(values) if value is not None]
        if not at:
            continue
        sparse = len(at) < SPARSE * len(values)
        columns[str(name)] = {"at": at, "values": [values[place] for place in at]} if sparse else values
    return columns


def _number(value: float) -> float | int | None:
    """Rounded; whole ones, of which latents' indices are, exactly."""
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f"{value:.{FIGURES}g}")


def _rounded(value: Any) -> Any:
    """JSON with its numbers rounded; what is no number in JSON is null."""
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in _items(value)}
    if isinstance(value, list):
        return [_rounded(inner) for inner in _elements(value)]
    return value


def _items(value: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    return value.items()


def _elements(value: list[Any]) -> Iterable[Any]:
    return value
