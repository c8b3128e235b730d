"""What things are called in W&B: numbers and artifacts."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful.interfaces import EvalResult

LONGEST = 100
"""Characters of an artifact's name. W&B takes 128, and SAELens appends `_log_feature_sparsity` to some."""


def logged_names(rows: Sequence[EvalResult]) -> list[str]:
    """`<plugin>/<metric>/<source>/<hook>/<variant>/<seed>` for each row.

    The seed of a pair is `0-1`, that of a mean over the source's SAEs `mean`. What tells rows of one metric
    apart follows the metric: `.alive`, `[rate>0.1]` where there are several conditions, `@DATASET` where it is
    not the source's own text.
    """
    conditions: dict[tuple[str, str], set[str | None]] = {}
    for row in rows:
        conditions.setdefault((row.evaluator, row.metric), set()).add(row.condition)
    return [_logged_name(row, len(conditions[row.evaluator, row.metric]) > 1) for row in rows]


def artifact_name(*parts: str) -> str:
    """`parts` as one name that W&B takes: what it refuses (":" and "/" above all) becomes `_`; long ones are cut."""
    given = "-".join(parts)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", given)
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(given.encode()).hexdigest()[:8]
    return f"{name[: LONGEST - len(digest) - 1]}-{digest}"


def _logged_name(row: EvalResult, name_condition: bool) -> str:
    metric = row.metric
    if row.subset != "all":
        metric += f".{row.subset}"
    if name_condition and row.condition:
        metric += f"[{row.condition}]"
    if row.dataset not in (None, row.source):
        metric += f"@{row.dataset}"
    seed = "mean" if row.seed is None else str(row.seed)
    if row.other_seed is not None:
        seed += f"-{row.other_seed}"
    place = [part for part in (row.source, row.hook, row.variant) if part is not None]
    # "/" parts panels in W&B.
    return "/".join([row.evaluator, metric.replace("/", "|"), *place, seed])
