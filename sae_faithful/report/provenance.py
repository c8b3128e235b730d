"""What was run: model, texts, SAEs, versions, machine, and the config to run it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_faithful.report.tables import NONE, value_text
from sae_faithful.stored import read_json

if TYPE_CHECKING:
    from sae_faithful.report.run_data import RunData

Row = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """One token set, and how typical of the model it is."""

    name: str
    plugin: str
    use: str
    """What it was for in this run."""
    own: bool
    """Whether the model wrote it."""
    train_rows: int | None
    held_out_rows: int | None
    context_size: int | None
    gap: str
    gap_value: float | None
    z: str
    z_value: float | None
    scored: int | None
    warning: str
    """Why it is not the model's own text, where it claims to be."""


@dataclass(frozen=True)
class Provenance:
    """What a reader needs to judge the numbers, or to make them again."""

    model: str
    facts: list[tuple[str, str]]
    texts: list[Text]
    config: str
    """YAML; empty where the folder has none."""


def provenance(run: RunData) -> Provenance:
    """From the manifest, the cards of the texts and the resolved config."""
    manifest = run.manifest
    return Provenance(
        model=manifest["model"].partition("@")[0],
        facts=list(_facts(manifest).items()),
        texts=_texts(run),
        config=_yaml(run.config),
    )


def _facts(manifest: Row) -> dict[str, str]:
    """Older runs say less of their machine."""
    machine = [manifest.get("processor"), manifest.get("gpu") or manifest["device"], manifest.get("machine")]
    python = manifest.get("python")
    versions = {**({"Python": python} if python else {}), **manifest["versions"]}
    baselines = [
        f"{name} ({', '.join(_options(options))})" for name, options in manifest.get("baselines", {}).items()
    ]
    facts = {
        "Model": manifest["model"],
        "SAEs": manifest["summary"],
        "Sources": ", ".join(manifest["sources"]),
        "Other texts": ", ".join(manifest.get("datasets", ())),
        "Baselines": "; ".join(baselines),
        "Evaluators": ", ".join(manifest["evaluators"]),
        "Not only data": "; ".join(manifest.get("remote_code", ())),
        "Resumed": resumed(manifest),
        "Machine": ", ".join(str(part) for part in machine if part) + f", {manifest['threads']} threads",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return {name: value for name, value in facts.items() if value}


def resumed(manifest: Row) -> str:
    """Which SAEs are not those of an undisturbed training, in one sentence; empty where all are."""
    marked: dict[str, list[int]] = manifest.get("resumed_inexactly", {})
    named = [f"{path.removeprefix('saes/')} after {_and_tokens(tokens)}" for path, tokens in marked.items()]
    return (
        f"not exactly (`exact_resume: false`), so with other weights than an undisturbed training's: {'; '.join(named)}"
        if named
        else ""
    )


def _and_tokens(numbers: list[int]) -> str:
    return " and ".join(f"{number:,}" for number in numbers) + " tokens"


def _options(options: Row) -> list[str]:
    given = [f"{key} {value}" for key, value in options.items() if key != "plugin" and value is not None]
    return [options["plugin"], *given]


def _texts(run: RunData) -> list[Text]:
    gaps = {row["dataset"]: row for row in run.rows if row["metric"] == "typicality_gap"}
    z = {row["dataset"]: row for row in run.rows if row["metric"] == "typicality_z"}
    names = dict.fromkeys([*run.sources, *run.manifest.get("datasets", ()), *gaps])
    return [_text(run, name, gaps.get(name), z.get(name)) for name in names]


def _text(run: RunData, name: str, gap: Row | None, z: Row | None) -> Text:
    path = run.folder.data_dir(name) / "card.json"
    card: Row = read_json(path) if path.exists() else {}
    rows: Row = card.get("rows", {})
    use = "trained on" if name in run.sources else "measured on" if card else "for comparison"
    return Text(
        name=run.named(name) if name in run.sources else name,
        plugin=card.get("plugin", ""),
        use=use,
        own=name in run.manifest.get("own_text", ()),
        train_rows=rows.get("train"),
        held_out_rows=rows.get("held_out"),
        context_size=card.get("context_size"),
        gap=NONE if gap is None else value_text(gap),
        gap_value=None if gap is None else gap["value"],
        z=NONE if z is None or z["value"] is None else f"{z['value']:+.2f}",
        z_value=None if z is None else z["value"],
        scored=None if gap is None else gap["n"],
        warning=run.manifest.get("not_its_own", {}).get(name, ""),
    )


def _yaml(config: Row) -> str:
    import yaml

    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100) if config else ""
