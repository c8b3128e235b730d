"""What a figure is, and how numbers and names get into one harmlessly."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Trace = dict[str, Any]

FIGURES_KEPT = 5
"""Significant figures of a drawn number: finer than a screen, and a fraction of the file."""
LONGEST = 60
"""Characters of a name that are shown."""
RIGHT_TO_LEFT = ("R", "AL")
INVISIBLE = ("Cc", "Cf", "Zl", "Zp")
"""Unicode's categories of what acts without being seen: controls, marks of direction, line separators."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the report."""

    id: str
    """Stable, for anchors."""
    title: str
    """Plain text, as `caption`: names from data stand in it as they are."""
    caption: str
    """What it shows and how each number was made."""
    section: str
    """`sharing`, `fakeness`, `distance`, `text`, `faithfulness`, `probing`, `autointerp`, `patching` or `training`."""
    group: str
    """Figures of one group show the same of other latents, texts or places, and may stand side by side."""
    plotly: dict[str, Any]
    """`data` and `layout`, plain JSON."""


def make_figure(
    *, parts: Sequence[str | None], title: str, caption: str, section: str, data: Sequence[Trace],
    layout: Mapping[str, Any],
) -> Figure:  # fmt: skip
    """A figure of JSON alone: numbers rounded, those that are none (NaN, infinity) null.

    Args:
        parts: what the figure is of, the group first; its `id` is made of them.
    """
    group, *of = (part for part in parts if part)
    return Figure(
        id=anchor(group, *of),
        title=title,
        caption=caption,
        section=section,
        group=group,
        plotly={"data": [plain(trace) for trace in data], "layout": plain(layout)},
    )


def anchor(*parts: str) -> str:
    """Parts as one name for an anchor: `model.layers.3` is `model-layers-3`."""
    words = (re.sub(r"[^0-9a-z]+", "-", part.lower()).strip("-") for part in parts)
    return "-".join(word for word in words if word)


def plain(value: Any) -> Any:
    """A value as JSON has it, to five significant figures.

    numpy's arrays and scalars become lists and numbers, and what is not finite null.
    """
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return _rounded(value)
    return value


def _rounded(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{FIGURES_KEPT}g}")
    # 3 for 3.0: two characters fewer, of tens of thousands of numbers.
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def shown(text: str) -> str:
    """Text from data as plotly shows it literally: plotly reads some HTML, and entities, in every text.

    What cannot be seen is written out (`\\u202e`), text with letters from right to left is isolated from what
    stands around it, and of long text there is the beginning and the end.
    """
    if len(text) > LONGEST:
        text = text[: LONGEST * 2 // 3] + "…" + text[-LONGEST // 3 :]
    seen = "".join(f"\\u{ord(one):04x}" if unicodedata.category(one) in INVISIBLE else one for one in text)
    if any(unicodedata.bidirectional(one) in RIGHT_TO_LEFT for one in seen):
        seen = f"\u2068{seen}\u2069"
    return seen.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
