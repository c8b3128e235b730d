"""`report.md`: what was run, what came out, for terminals and pull requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_faithful.report.conclusions import definitions_text, distance_text
from sae_faithful.report.definitions import redefined
from sae_faithful.report.distance import trends
from sae_faithful.report.monitoring import monitor_lines
from sae_faithful.report.provenance import resumed
from sae_faithful.report.rows import rows_of
from sae_faithful.report.run_data import read_manifest
from sae_faithful.report.tables import Notes, difference_text, markdown_table, noted, value_text
from sae_faithful.report.texts import evaluator_texts
from sae_faithful.report.verdicts import judge, remark
from sae_faithful.stored import reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful.report.verdicts import Verdict
    from sae_faithful.run_folder import RunFolder

Row = dict[str, Any]

MONITORS = (
    "The same evaluators inside training, on fewer tokens and at most a few steps before its end: a last value outside "
    "the full interval is sampling error, those last steps, or, where a number depends on how many tokens were seen "
    "(`alive` latents, `alive_features`, `firing_shift`), that."
)


def render(folder: RunFolder) -> str:
    """The report as Markdown."""
    rows, manifest = _read(folder)
    parts = [
        f"# {manifest['model'].partition('@')[0]}: SAEs on {_and(manifest['sources'])}",
        _what_was_run(manifest),
        *(f"**{line}.**" for line in manifest.get("remote_code", ())),
        *(f"**Training was resumed {line}.**" for line in [resumed(manifest)] if line),
        "## Verdicts",
        *_verdicts(judge(rows, manifest), manifest, table=True),
        *_section("## By other definitions", definitions_text(redefined(rows, manifest))),
        *_section("## Stability and distance from the model", distance_text(trends(rows, manifest))),
        "## Is the text the model's own?",
        "The typicality gap is how much more surprised the model is than it expects to be, per token: zero in "
        "expectation exactly for text it wrote itself, with |z| of order 1.",
        _typicality_table(rows),
        _doubtful(manifest),
    ]
    for evaluator in manifest["evaluators"]:
        own = [row for row in rows if row["evaluator"] == evaluator]
        parts += [
            f"## {evaluator}",
            *evaluator_texts(folder, evaluator).values(),
            _source_table(_headlines(own), manifest["sources"]),
        ]
    watched = monitor_lines(folder, manifest["sources"], rows)
    if watched:
        parts += ["## Monitors", MONITORS, "\n".join(watched)]
    parts.append(
        "Intervals are 95 %: over SAEs in the rows of a source, over documents in the typicality gap. "
        "The other thresholds and subsets, and every SAE's own rows, are in `results.jsonl`; what each number "
        "means and how its interval is made is in docs/metrics.md. Figures, and a page for every latent, are in "
        "`report.html`."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(heading: str, text: str) -> list[str]:
    """No heading over nothing."""
    return [heading, text] if text else []


def terminal_table(folder: RunFolder) -> str:
    """The primary verdicts and the per-source numbers as text for a terminal.

    Raises:
        UsageError, RunError: the folder holds no finished run, or a damaged one.
    """
    with reading(str(folder.root)):
        return _terminal_table(folder)


def _terminal_table(folder: RunFolder) -> str:
    rows, manifest = _read(folder)
    tables = [
        *_verdicts(judge(rows, manifest), manifest, table=False),
        _typicality_table(rows),
        _doubtful(manifest),
    ]
    for evaluator in manifest["evaluators"]:
        own = [row for row in rows if row["evaluator"] == evaluator]
        tables += [
            evaluator,
            *evaluator_texts(folder, evaluator).values(),
            _source_table(_headlines(own), manifest["sources"]),
        ]
    watched = monitor_lines(folder, manifest["sources"], rows)
    if watched:
        tables += ["monitors", "\n".join(watched)]
    return "\n\n".join(table for table in tables if table)


def _read(folder: RunFolder) -> tuple[list[Row], Row]:
    return rows_of(folder), read_manifest(folder)


def _what_was_run(manifest: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    return (
        f"Model `{manifest['model']}`; {manifest['summary']}. {_baselines(manifest)}"
        f"{manifest['threads']} threads, device {manifest['device']}; {versions}."
    )


def _baselines(manifest: Row) -> str:
    """What stands in tables under the names of baselines, in the place of a variant's."""
    said: list[str] = []
    for name, options in manifest.get("baselines", {}).items():
        given = [f"{key} {value}" for key, value in options.items() if key != "plugin" and value is not None]
        said.append(f"`{name}` ({', '.join([options['plugin'], *given])})")
    return f"Baselines, fitted and not trained: {', '.join(said)}. " if said else ""


def _verdicts(verdicts: Sequence[Verdict], manifest: Row, *, table: bool) -> list[str]:
    """The primary ones as sentences, what to know about them, and the table of all."""
    sentences = "\n".join(f"- {verdict.sentence}" for verdict in verdicts if verdict.primary)
    parts = [sentences, remark(verdicts, manifest)]
    if table and verdicts:
        parts.append(_verdict_table(verdicts))
    return parts


def _verdict_table(verdicts: Sequence[Verdict]) -> str:
    several = len({(verdict.hook, verdict.variant) for verdict in verdicts}) > 1
    columns = ["metric", "condition", "latents", "on", "hook/variant", "sources", "difference", "unit", "seeds",
               "verdict", "would decide"]  # fmt: skip
    body = [
        [
            verdict.metric,
            verdict.condition or "",
            verdict.subset,
            verdict.dataset or "",
            f"{verdict.hook}/{verdict.variant}" if several else "",
            f"{verdict.source} - {verdict.other}",
            "–"
            if verdict.difference is None
            else difference_text(verdict.difference, verdict.ci_low, verdict.ci_high),
            verdict.unit,
            str(verdict.n_seeds),
            verdict.verdict,
            verdict.would_decide or "",
        ]
        for verdict in verdicts
    ]
    return markdown_table(columns, body, drop_empty=True)


def _typicality_table(rows: Sequence[Row]) -> str:
    gaps = {row["dataset"]: row for row in rows if row["metric"] == "typicality_gap"}
    z = {row["dataset"]: row for row in rows if row["metric"] == "typicality_z"}
    if not gaps:
        return ""
    body = [
        [name, value_text(row), f"{z[name]['value']:+.2f}", f"{row['n']:,}"] for name, row in gaps.items()
    ]
    return markdown_table(["text", "typicality gap (nats/token)", "z", "tokens scored"], body)


def _doubtful(manifest: Row) -> str:
    """Texts that are not what they claim to be; the run went on because it was told to."""
    wrong: dict[str, str] = manifest.get("not_its_own", {})
    return "\n".join(f"- **`{name}`: {sentence}.**" for name, sentence in wrong.items())


def _source_table(rows: Sequence[Row], sources: Sequence[str]) -> str:
    """One line a number, one column a source."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    notes: Notes = {}
    several = len({(row["hook"], row["variant"]) for row in rows}) > 1
    for row in rows:
        if row["seed"] is not None or row["source"] not in sources:
            continue
        place = f"{row['hook']}/{row['variant']}" if several else ""
        key = (row["metric"], row["condition"] or "", row["subset"], row["dataset"] or "", place, row["unit"])
        lines.setdefault(key, {})[row["source"]] = value_text(row, notes)
    if not lines:
        return ""
    columns = ["metric", "condition", "latents", "on", "hook/variant", "unit"]
    used = [i for i in range(len(columns)) if any(key[i] for key in lines)]
    body = [
        [*(key[i] for i in used), *(cells.get(source, "") for source in sources)]
        for key, cells in lines.items()
    ]
    return noted(markdown_table([*(columns[i] for i in used), *sources], body), notes)


def _headlines(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows an evaluator marked for the short table, or all where it marked none."""
    return [row for row in rows if row["headline"]] or rows


def _and(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
