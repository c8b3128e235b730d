"""Pictures of docs/results.md, drawn as SVG: they stand in a page of text, and change only when numbers do."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from sae_faithful.report.figures.style import COLOURS, GREY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sae_faithful.report.distance import Trend
    from sae_faithful.report.verdicts import Verdict

WIDTH, LINE, MARGIN, LABELS = 760, 24, 40, 330
VERDICTS = {"supported": COLOURS[2], "contradicted": COLOURS[1], "undecided": GREY}


def forest(verdicts: Sequence[Verdict], title: str) -> str:
    """Differences with their intervals, a line each, in the claimed direction to the right."""
    drawn = [one for one in verdicts if one.ci_low is not None and one.ci_high is not None]
    sides = [1 if _claimed_higher(one) else -1 for one in drawn]
    widest = (
        max((abs(bound or 0) for one in drawn for bound in (one.ci_low, one.ci_high)), default=1.0) or 1.0
    )
    middle, half = LABELS + (WIDTH - LABELS - 20) / 2, (WIDTH - LABELS - 40) / 2
    height = MARGIN + LINE * len(drawn) + MARGIN
    parts = [_line(middle, MARGIN - 8, middle, height - MARGIN + 4, GREY, 1)]
    for number, (one, side) in enumerate(zip(drawn, sides, strict=True)):
        y = MARGIN + LINE * (number + 0.5)
        at = [
            middle + half * side * float(value or 0) / widest
            for value in (one.ci_low, one.ci_high, one.difference)
        ]
        colour = VERDICTS[one.verdict]
        parts += [
            _text(4, y + 4, f"{one.source} - {one.other}, {one.hook.removeprefix('model.')}"),
            _line(at[0], y, at[1], y, colour, 2),
            f'<circle cx="{at[2]:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>',
        ]
    unit = drawn[0].unit if drawn else ""
    parts += [
        _text(4, 20, title, weight="bold"),
        _text(WIDTH - 4, height - 12, "as claimed →", anchor="end"),
        _text(LABELS, height - 12, f"widest bound {widest:.3g} {unit}"),
    ]
    return _picture(height, parts, title)


def scatter(trend: Trend, bounds: Mapping[str, tuple[float, float]], title: str) -> str:
    """Each source's number against how far its text is; `bounds` of its 95 % interval over SAEs, where it has one."""
    height, left, right, top, bottom = 380, 80, WIDTH - 200, 44, 300
    x_most = max(trend.distances) * 1.08 or 1.0
    ends = [*trend.values, *(bound for both in bounds.values() for bound in both)]
    room = (max(ends) - min(ends)) * 0.08 or 0.01
    low, high = min(ends) - room, max(ends) + room

    def height_of(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = [
        _text(4, 20, title, weight="bold"), _line(left, bottom, right, bottom, GREY, 1),
        _line(left, top, left, bottom, GREY, 1),
        _text((left + right) / 2, bottom + 40, "|typicality gap| of the text (nats/token)", anchor="middle"),
        _text(left, bottom + 18, "0", anchor="middle"), _text(right, bottom + 18, f"{x_most:.2g}", anchor="middle"),
        _text(left - 6, bottom, f"{low:.3g}", anchor="end"), _text(left - 6, top + 8, f"{high:.3g}", anchor="end"),
    ]  # fmt: skip
    for number, (source, x, y) in enumerate(zip(trend.sources, trend.distances, trend.values, strict=True)):
        at_x, at_y = left + (right - left) * x / x_most, height_of(y)
        colour = COLOURS[number % len(COLOURS)]
        if source in bounds:
            parts.append(
                _line(at_x, height_of(bounds[source][0]), at_x, height_of(bounds[source][1]), colour, 2)
            )
        parts += [
            f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="6" fill="{colour}"/>',
            _text(at_x + 10, at_y + 4, source),
        ]
    parts.append(
        _text(
            4, height - 10, f"{trend.hook}, {trend.variant}; means over SAE seeds with their 95 % intervals"
        )
    )
    return _picture(height, parts, title)


def _claimed_higher(verdict: Verdict) -> bool:
    return " is higher for " in verdict.statement


def _picture(height: float, parts: Sequence[str], title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="#1f2328" role="img">'
    )
    # A page may be dark: the picture brings its own background.
    background = f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", background, *parts, "</svg>"]) + "\n"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
    )
