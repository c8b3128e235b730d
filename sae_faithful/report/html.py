"""`report.html`: one run, or several side by side, as a page that needs nothing but itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from sae_faithful.report.conclusions import OTHER_DEFINITIONS, trend_text
from sae_faithful.report.definitions import changed
from sae_faithful.report.differences import HIGHER_IS_BETTER
from sae_faithful.report.distance import HOW_TO_READ, SCORES
from sae_faithful.report.feature_pages import feature_data
from sae_faithful.report.headlines import headlines
from sae_faithful.report.markdown import MONITORS
from sae_faithful.report.monitoring import monitor_lines
from sae_faithful.report.provenance import provenance
from sae_faithful.report.tables import NONE, difference_text, number_text
from sae_faithful.report.texts import blocks_of, evaluator_texts, pieces_of, visible
from sae_faithful.report.verdicts import remark

if TYPE_CHECKING:
    from collections.abc import Sequence

    import jinja2

    from sae_faithful.report.definitions import Redefined
    from sae_faithful.report.run_data import RunData
    from sae_faithful.report.verdicts import Verdict

SECTIONS = {
    "sharing": "How reproducible features are",
    "fakeness": "Features that random tokens excite",
    "distance": "Stability and distance from the model",
    "text": "How far the texts are from the model's own",
    "faithfulness": "What the SAEs keep",
    "probing": "What can be read off the latents",
    "autointerp": "How well features are explained",
    "patching": "Features that carry a task",
    "training": "Monitors over training",
}
"""Of the figures, in the order of the page."""
CLAIMED = {
    "sfr": "More shared features",
    "ffr": "Fewer fake features",
    "probing": "Better probes",
    "ce_difference": "Smaller loss of the model's predictions",
}
"""Titles of the claims; the statement stands below."""
SCRIPTS = ("tables.js", "figures.js", "text.js", "features.js", "feature.js", "page.js")


@dataclass(frozen=True)
class _Bar:
    """Where a difference and its interval lie on a line with zero in its middle, in percent of its width."""

    left: float
    width: float
    point: float


def render_page(runs: Sequence[RunData]) -> str:
    """The page: no file and no address but itself is needed to read it."""
    from plotly.offline import get_plotlyjs

    from sae_faithful.report.figures import figures
    from sae_faithful.report.figures.style import template

    drawn = figures(runs)
    features = feature_data(runs)
    table = headlines(runs)
    return _environment().get_template("page.html").render(
        runs=runs,
        title=_title(runs),
        claimed=CLAIMED,
        remark=remark,
        bar=_bar,
        changed=changed,
        other_definitions=OTHER_DEFINITIONS,
        how_distance_is_read=HOW_TO_READ,
        scores={score.metric: score.label for score in SCORES},
        higher_is_better=HIGHER_IS_BETTER,
        table=table,
        provenance=[provenance(run) for run in runs],
        sections={name: (title, own) for name, title in SECTIONS.items()
                  if (own := [figure for figure in drawn if figure.section == name])},
        texts=[_texts(run) for run in runs],
        monitors=[blocks_of("\n".join(monitor_lines(run.folder, run.sources, run.rows))) for run in runs],
        monitors_note=MONITORS,
        templates_json=_embedded({scheme: template(scheme) for scheme in ("light", "dark")}),
        figures_json=_embedded([asdict(figure) for figure in drawn]),
        features=features,
        features_json=_embedded(features),
        style=_file("page.css"),
        plotly=get_plotlyjs(),
        script="\n".join(_file(name) for name in SCRIPTS),
    )  # fmt: skip


def _title(runs: Sequence[RunData]) -> str:
    if len(runs) > 1:
        return f"Comparison of {len(runs)} runs"
    manifest = runs[0].manifest
    return f"{manifest['model'].partition('@')[0]}: SAEs on {', '.join(manifest['sources']) or 'none'}"


def _texts(run: RunData) -> dict[str, dict[str, Any]]:
    """What each evaluator that says something in words says."""
    texts = {name: evaluator_texts(run.folder, name) for name in run.manifest["evaluators"]}
    return {
        name: {file: blocks_of(text) for file, text in of_one.items()}
        for name, of_one in texts.items()
        if of_one
    }


def _bar(verdict: Verdict) -> _Bar | None:
    """The picture of a verdict's interval; none without one."""
    low, high, mean = verdict.ci_low, verdict.ci_high, verdict.difference
    if low is None or high is None or mean is None:
        return None
    widest = max(abs(low), abs(high)) * 1.08 or 1.0
    place = {"low": 50 + 50 * low / widest, "high": 50 + 50 * high / widest, "mean": 50 + 50 * mean / widest}
    return _Bar(round(place["low"], 2), round(place["high"] - place["low"], 2), round(place["mean"], 2))


def _embedded(value: object) -> str:
    """JSON that may stand inside a `script` element, whatever text is in it: nothing in it ends the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


@cache
def _environment() -> jinja2.Environment:
    """Autoescaped; what an undefined name would hide is an error; text from outside shows its hidden characters."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    filters: dict[str, Any] = {
        "difference": _difference, "correlation": trend_text, "number": number_text, "pieces": pieces_of,
        "thousands": "{:,}".format,
    }  # fmt: skip
    environment.filters.update(filters)
    return environment


def _shown(value: object) -> object:
    # Markup, which is what macros and this page's own files are, has been through this or is no text from outside.
    return visible(value) if type(value) is str else value


def _difference(verdict: Verdict | Redefined) -> str:
    if verdict.difference is None:
        return NONE
    return difference_text(verdict.difference, verdict.ci_low, verdict.ci_high)


def _file(name: str) -> str:
    return (resources.files("sae_faithful.report") / "page" / name).read_text(encoding="utf-8")
