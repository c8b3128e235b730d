"""Curves over a sweep: what each SAE keeps, beside the settings it was trained with."""

from __future__ import annotations

from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import Artifact
from sae_faithful.metrics.matching import Weights, mean_max_cosine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sae_faithful import SAEHandle
    from sae_faithful_plugins.reconstruction.observing import Measure

Point = dict[str, Any]

MEASURED = ("l0", "fvu", "alive_features", "perplexity")
"""What is drawn: sparsity, fidelity, waste, and what is left of the model (Cunningham et al. 2023)."""
CURVES = (*MEASURED, "mmcs")
"""And how much SAEs of other seeds have of the same dictionary."""
SETTINGS = ("expansion", "l1_coefficient", "alpha", "k")


class Sweep:
    """One point for every SAE on every text, without BOS."""

    def __init__(self) -> None:
        self.points: dict[tuple[tuple[str, str, str, int], str], Point] = {}
        self._handles: dict[tuple[str, str, str, int], SAEHandle] = {}

    def add(self, handle: SAEHandle, dataset: str, measure: Measure) -> None:
        """Put one number with its interval at its SAE's point."""
        if measure.condition is not None or measure.metric not in MEASURED:
            return
        key = (handle.key, dataset)
        if key not in self.points:
            self._handles[handle.key] = handle
            self.points[key] = {**handle.identity, "dataset": dataset, **settings_of(handle)}
        low, high, _ = measure.interval
        name = measure.metric
        self.points[key] |= {name: measure.value, f"{name}_low": low, f"{name}_high": high}

    def artifacts(self) -> Iterator[Artifact]:
        """All points; and, where there are variants to compare, a table of their means on the sources' own texts."""
        # Made when they are written: a monitor would pay for the MMCS at every look.
        yield Artifact(name="sweep", kind="json", content=self._document)
        if len({handle.variant for handle in self._handles.values()}) > 1:
            yield Artifact(name="sweep", kind="text", content=self._table)

    def _document(self) -> dict[str, Any]:
        return {"curves": list(CURVES), "points": self._sorted}

    def _table(self) -> str:
        return _table([point for point in self._sorted if point["dataset"] == point["source"]])

    @cached_property
    def _sorted(self) -> list[Point]:
        similar = _mmcs(list(self._handles.values()))
        points = [
            point | ({"mmcs": similar[key]} if key in similar else {})
            for (key, _), point in self.points.items()
        ]
        return sorted(points, key=_order)


def settings_of(handle: SAEHandle) -> Point:
    """What an SAE's file says of its training: R = d_sae / d_in, L1 coefficient and k, as far as it says so.

    `l1_coefficient` is in SAELens's convention, squared errors summed over dimensions; `alpha` the same in that of
    Cunningham et al. (2023), who average them: divided by d_in.
    """
    cfg, d_in = handle.sae.cfg, handle.W_dec.shape[1]
    details = cfg.metadata.training_architecture_details or {}
    l1 = details.get("l1_coefficient")
    return {
        "architecture": cfg.metadata.training_architecture or cfg.architecture(),
        "d_sae": handle.d_sae,
        "expansion": handle.d_sae / d_in,
        "l1_coefficient": l1,
        "alpha": None if l1 is None else l1 / d_in,
        "k": getattr(cfg, "k", None) or details.get("k"),
    }


def _mmcs(handles: Sequence[SAEHandle]) -> dict[tuple[str, str, str, int], float]:
    """MMCS of every SAE's latents in those of the same variant's other seeds, mean over these; none with one seed."""
    from sae_faithful.ops import nearest_cosines

    found: dict[tuple[str, str, str, int], list[float]] = {}
    for pair in combinations(handles, 2):
        if pair[0].key[:-1] == pair[1].key[:-1]:
            both = nearest_cosines(pair[0].W_dec, pair[1].W_dec)
            for one, nearest in zip(pair, both, strict=True):
                alike = Weights(np.ones(one.d_sae))
                found.setdefault(one.key, []).append(mean_max_cosine(nearest, alike, "all"))
    return {key: float(np.mean(values)) for key, values in found.items()}


def _order(point: Point) -> tuple[Any, ...]:
    place = (point["source"], point["hook"], point["dataset"], point["architecture"])
    settings = [-1.0 if point[name] is None else point[name] for name in SETTINGS]
    return (*place, *settings, point["variant"], point["seed"])


def _table(points: Sequence[Point]) -> str:
    """Markdown: one line a variant of a source at a hook, means over its SAEs."""
    groups: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point["source"], point["hook"], point["variant"]), []).append(point)
    shown = [name for name in SETTINGS if any(point[name] is not None for point in points)]
    curves = [name for name in CURVES if any(name in point for point in points)]
    header = ["source", "hook", "variant", "architecture", *shown, *curves, "SAEs"]
    lines = [header, ["-" * len(name) for name in header]]
    for place, seeds in groups.items():
        first = seeds[0]
        lines.append(
            [
                *place,
                first["architecture"],
                *("" if first[name] is None else f"{first[name]:.4g}" for name in shown),
                *(
                    f"{np.mean([seed[name] for seed in seeds]):.4g}" if name in first else ""
                    for name in curves
                ),
                str(len(seeds)),
            ]
        )
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"Sweep, means over the SAEs of a variant on their source's own held-out text:\n\n{table}"
