"""The card of a run's SAEs on the hub: what they are, what they were trained on, what was measured of them, and how."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_faithful.interfaces import UsageError
from sae_faithful.registry import unknown
from sae_faithful.report.provenance import resumed
from sae_faithful.report.tables import Notes, markdown_table, noted, value_text
from sae_faithful.stored import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sae_faithful.report.run_data import RunData

Row = dict[str, Any]

NULLS = ("_null", "_random_sae")
"""What the name of a metric's null ends with."""
NOT_ON_THE_CARD = ("logger", "sae_lens_version", "sae_lens_training_version")
"""Fields of the config that say nothing about the SAEs, or are said elsewhere."""

SFR_MEASURED = (
    "`sfr` (Cho et al. 2025, arXiv 2506.17673; after Paulo & Belrose 2025, arXiv 2501.16615): the decoder "
    "directions of two SAEs that differ in their seed alone are matched one to one so that the sum of their "
    "cosines is largest; it is the share of pairs whose cosine is above the threshold. `cross_sfr` is the same "
    "between SAEs of two sources, across different seeds. Null: random directions with the second moments of the "
    "decoders'. Intervals are 95 %, jackknife over SAEs; n: pairs of SAEs."
)
FFR_MEASURED = (
    "`ffr` (Cho et al. 2025): the share of latents whose activation is above {activation} on more than the given "
    "share of {n_tokens:,} tokens drawn uniformly from the vocabulary. `ffr_contrast`: of those that fire on more "
    "than that share of them, and on more than {ratio:g} times their share of held-out text of their own source. "
    "Null: a randomly initialised SAE of the same shape. Intervals are 95 %, over SAEs; n: SAEs."
)
GAP_MEASURED = (
    "The typicality gap is how much more surprised the model is by the text than it expects to be: 0 in "
    "expectation exactly for text it wrote itself, with |z| of order 1. Intervals are 95 %, over documents."
)
ALIVE = "`alive`: latents that fire at least once on the held-out text of their own source."


@dataclass(frozen=True)
class StoredSAE:
    """One SAE in a run folder."""

    source: str
    hook: str
    variant: str
    seed: int
    folder: Path
    config: Row
    """SAELens's `cfg.json`."""

    @property
    def name(self) -> str:
        """Its path in a repository: as below the run's `saes`."""
        return f"{self.source}/{self.hook}/{self.variant}/seed{self.seed}"


def stored_saes(
    run: RunData, sources: Sequence[str] = (), hooks: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[StoredSAE]:
    """The SAEs of the run's config that are on disk, of the sources, hooks and variants named, or all.

    Raises:
        UsageError: there are none, or a name is of none of them.
    """
    root = run.folder.root / "saes"
    found: list[StoredSAE] = []
    for path in sorted(root.glob("*/*/*/seed*/cfg.json")):
        source, hook, variant, seed = path.parent.relative_to(root).parts
        sae = StoredSAE(source, hook, variant, int(seed.removeprefix("seed")), path.parent, read_json(path))
        # What an earlier config trained stays on disk, and is in no row.
        if (
            (not run.sources or source in run.sources)
            and hook in run.config.get("hook_names", [hook])
            and variant in run.config.get("variants", [variant])
            and sae.seed in run.config.get("sae_seeds", [sae.seed])
        ):
            found.append(sae)
    if not found:
        raise UsageError(f"{run.folder.root} holds no trained SAEs")
    for kind, names in (("source", sources), ("hook", hooks), ("variant", variants)):
        there = sorted({getattr(sae, kind) for sae in found})
        for name in names:
            if name not in there:
                raise UsageError(unknown(kind, name, there, f"--{kind} may be"))
    chosen = [
        sae
        for sae in found
        if (not sources or sae.source in sources)
        and (not hooks or sae.hook in hooks)
        and (not variants or sae.variant in variants)
    ]
    if not chosen:
        raise UsageError(f"{run.folder.root} holds no SAE of this source, hook and variant together")
    order = list(run.sources)
    return sorted(chosen, key=lambda sae: (order.index(sae.source) if order else 0, sae.name))


def sae_card(
    run: RunData, saes: Sequence[StoredSAE], repository: str, *, base_model: str | None, licence: str | None
) -> str:
    """The card as Markdown, with the header that the hub reads.

    Args:
        run: what they are of.
        saes: those that are in the repository.
        repository: its name on the hub.
        base_model: the hub's name of the language model, where it has one.
        licence: the hub's name of a licence, or None: then none is stated.
    """
    manifest = run.manifest
    model = manifest["model"].partition("@")[0]
    versions = manifest["versions"]
    names = list(dict.fromkeys(sae.source for sae in saes))
    sections = [
        _header(base_model, licence),
        f"# SAEs of {model}, trained on {', '.join(names)}",
        f"{len(saes)} sparse autoencoder{'s' if len(saes) > 1 else ''} ({manifest['summary']}), trained by "
        f"SAELens {versions['sae-lens']} and measured by sae-faithful {versions['sae-faithful']}.",
        _where_the_model_is(model, base_model),
        "## Load",
        f'```python\nfrom sae_lens import SAE\n\nsae = SAE.from_pretrained("{repository}", "{saes[0].name}")\n```',
        _sae_table(run, saes),
        _resumed(run, saes),
        "## Trained on",
        _text_table(run, names),
        GAP_MEASURED,
        "## Shared features: how reproducible they are",
        *_measured(run, saes, "shared_features", SFR_MEASURED),
        "## Fake features: what fires on random tokens",
        *_measured(run, saes, "fake_features", FFR_MEASURED),
        "## Versions and config",
        ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; Python {manifest['python']}, device {manifest['device']}, {manifest['threads']} threads.",
        _config(run),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _resumed(run: RunData, saes: Sequence[StoredSAE]) -> str:
    """A warning where a training went on inexactly; empty where none did."""
    marked = run.manifest.get("resumed_inexactly", {})
    mine = {path: marked[path] for path in (f"saes/{sae.name}" for sae in saes) if path in marked}
    said = resumed({"resumed_inexactly": mine})
    return f"**Training was resumed {said}.**" if said else ""


def _header(base_model: str | None, licence: str | None) -> str:
    lines = ["library_name: saelens", "tags:", "- sparse-autoencoder", "- sae-faithful"]
    lines += [f"base_model: {base_model}"] if base_model else []
    lines += [f"license: {licence}"] if licence else []
    return "\n".join(["---", *lines, "---"])


def _where_the_model_is(model: str, base_model: str | None) -> str:
    if base_model is not None:
        return ""
    package = model.removeprefix("package/")
    if package != model:
        return (
            f"`{model}` is what sae-faithful calls the language model inside the Python package `{package}`; for "
            "another copy of it, put your own name or path in its place."
        )
    return (
        f"`{model}` is a name of SAELens's, or a folder of whoever trained them; put your own in its place."
    )


def _sae_table(run: RunData, saes: Sequence[StoredSAE]) -> str:
    """What to load, and what was measured of each alone."""
    wanted = [
        ("alive", "alive", "all", None),
        ("ffr, rate > 0.1", "ffr", "all", "rate>0.1"),
        ("explained variance on its own text", "explained_variance", "all", None),
    ]
    notes: Notes = {}
    body: list[list[str]] = []
    for sae in saes:
        own = [row for row in run.rows if _of(row, sae) and row["dataset"] in (None, sae.source)]
        cells = [_cell(own, metric, subset, condition, notes) for _, metric, subset, condition in wanted]
        body.append([f"`{sae.name}`", f"{sae.config['d_sae']:,}", *cells])
    header = ["path", "latents", *(label for label, *_ in wanted)]
    return noted(markdown_table(header, body, drop_empty=True), notes)


def _of(row: Row, sae: StoredSAE) -> bool:
    key = (sae.source, sae.hook, sae.variant, sae.seed)
    return (row["source"], row["hook"], row["variant"], row["seed"]) == key and row["other_seed"] is None


def _cell(rows: Sequence[Row], metric: str, subset: str, condition: str | None, notes: Notes) -> str:
    found = [
        row for row in rows if (row["metric"], row["subset"], row["condition"]) == (metric, subset, condition)
    ]
    return value_text(found[0], notes) if found else ""


def _text_table(run: RunData, names: Sequence[str]) -> str:
    body: list[list[str]] = []
    notes: Notes = {}
    for name in names:
        path = run.folder.data_dir(name) / "card.json"
        if not path.exists():  # SAELens's own dataset_path: what it read is not on disk
            body.append([name, f"SAELens: `{run.config.get('dataset_path', '')}`", "", "", "", ""])
            continue
        card = read_json(path)
        gap = card["typicality"]
        options = {key: value for key, value in card["options"].items() if value is not None}
        body.append(
            [
                name,
                f"`{card['plugin']}` {json.dumps(options, ensure_ascii=False)}",
                f"{card['rows']['train'] * card['context_size']:,}",
                value_text({**gap, "value": gap["gap"]}, notes),
                f"{gap['z']:+.2f}",
                f"{gap['n_tokens']:,}",
            ]
        )
    header = [
        "source",
        "plugin and options",
        "distinct tokens",
        "typicality gap (nats/token)",
        "z",
        "tokens scored",
    ]
    wrong: dict[str, str] = run.manifest.get("not_its_own", {})
    warnings = [f"\n\n**`{name}`: {wrong[name]}.**" for name in names if name in wrong]
    return noted(markdown_table(header, body, drop_empty=True), notes) + "".join(warnings)


def _measured(run: RunData, saes: Sequence[StoredSAE], evaluator: str, how: str) -> list[str]:
    """An evaluator's headlines of these SAEs' sources, each beside its null, and how they were made."""
    if evaluator not in run.manifest["evaluators"]:
        return [f"Not measured: the run had no evaluator `{evaluator}`."]
    places = {(sae.source, sae.hook, sae.variant) for sae in saes}
    rows = [
        row
        for row in run.rows
        if row["evaluator"] == evaluator
        and row["seed"] is None
        and (row["source"], row["hook"], row["variant"]) in places
    ]
    by_name = {(row["metric"], *_place(row)): row for row in rows}
    notes: Notes = {}
    body: list[list[str]] = []
    for row in rows:
        if not row["headline"] or row["metric"].endswith(NULLS):
            continue
        null = next(
            (by_name[name] for end in NULLS if (name := (row["metric"] + end, *_place(row))) in by_name), None
        )
        body.append(
            [
                row["source"],
                f"{row['hook']}/{row['variant']}",
                f"`{row['metric']}`",
                row["condition"] or "",
                row["subset"],
                value_text(row, notes),
                value_text(null, notes) if null else "",
                f"{row['n']:,}",
            ]
        )
    if not body:
        return ["Nothing to compare: one seed."]
    header = ["SAEs on", "hook/variant", "metric", "condition", "latents", "value", "null", "n"]
    table = noted(markdown_table(header, body, drop_empty=True), notes)
    return [table, f"{how.format(**_options(run, evaluator))} {ALIVE}"]


def _place(row: Row) -> tuple[str | None, ...]:
    return tuple(row[key] for key in ("source", "hook", "variant", "subset", "condition", "dataset"))


def _options(run: RunData, evaluator: str) -> Mapping[str, Any]:
    """Of the evaluator, by name, as its finished step has them."""
    step = read_json(run.folder.result_dir(evaluator) / "step.json")
    prefix = f"evaluators.{evaluator}."
    return {
        key.removeprefix(prefix): value for key, value in step["settings"].items() if key.startswith(prefix)
    }


def _config(run: RunData) -> str:
    shown = {key: value for key, value in run.config.items() if key not in NOT_ON_THE_CARD}
    return f"```json\n{json.dumps(shown, indent=1, ensure_ascii=False)}\n```"
