"""Writes into the pages what the code knows: options, their defaults, monitors' budgets, lists of plugins.

A page marks a place with `<!-- made by `make docs`: WHAT -->` and `<!-- end -->`; what stands between them is
made here, from the dataclasses and the docstrings under their fields. All else on a page is written by hand,
and nowhere else. An evaluator without a page gets one, to be filled in.

    python docs/gen/reference.py            writes
    python docs/gen/reference.py --check    says which pages are out of date, and writes nothing
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import sys
import textwrap
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from sae_faithful import ExperimentConfig, load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sae_faithful.registry import PluginManager

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DISTRIBUTION = "sae-faithful"
REGION = re.compile(r"(<!-- made by `make docs`: (.+?) -->\n).*?(<!-- end -->\n)", re.S)
SAELENS_OWN = ("metadata",)
"""What SAELens fills in itself."""
NEW_PAGE = """\
# {name}

<!-- made by `make docs`: summary evaluator {name} -->
<!-- end -->

## Options

<!-- made by `make docs`: options evaluator {name} -->
<!-- end -->
"""


def bundled(plugins: PluginManager, kind: str) -> dict[str, Any]:
    """This package's own registrations of a kind, by name."""
    found = plugins.registrations(kind)
    return {name: one for name, one in found.items() if one.distribution == DISTRIBUTION}


def field_docs(cls: type[Any]) -> dict[str, str]:
    """The docstring under each field, those of classes it inherits from included."""
    docs: dict[str, str] = {}
    for one in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(one)))
        body = next(node for node in tree.body if isinstance(node, ast.ClassDef)).body
        for entry, below in pairwise(body):
            if not (isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                docs[entry.target.id] = " ".join(str(below.value.value).split())
    return docs


def default_of(field: dataclasses.Field[Any]) -> str:
    """A field's default as a config writes it."""
    if field.default is not dataclasses.MISSING:
        return f"`{as_yaml(field.default)}`"
    if field.default_factory is not dataclasses.MISSING:
        return f"`{as_yaml(field.default_factory())}`"
    return "required"


def as_yaml(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        # PyYAML takes 1e-05 for a string.
        return format(Decimal(repr(value)), "f") if "e" in repr(value) else repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {as_yaml(one)}' for key, one in value.items())}}}"
    return str(value)


def choices(hint: Any) -> list[Any]:
    """What a type with `Literal` in it allows."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for part in get_args(hint) for choice in choices(part)]


def options_table(cls: type[Any], fields: Iterable[dataclasses.Field[Any]], head: str = "option") -> str:
    """One row a field: name, default, docstring, and choices that the docstring does not name."""
    docs, hints = field_docs(cls), get_type_hints(cls)
    rows = [f"| {head} | default | what it says |", "|---|---|---|"]
    for field in fields:
        text = docs.get(field.name, "")
        allowed = [f"`{one}`" for one in choices(hints[field.name])]
        if not all(one in text for one in allowed):
            text = f"{text} One of {', '.join(allowed)}."
        rows.append(f"| `{field.name}` | {default_of(field)} | {text} |")
    return "\n".join(rows) + "\n"


def plugin_options(plugins: PluginManager, kind: str, name: str) -> str:
    """The options of a source, evaluator or baseline; of an evaluator also how it is as a monitor."""
    found = bundled(plugins, kind)
    if name not in found:
        sys.exit(
            f"a page is for the {kind} '{name}', which is not installed; after a new entry point: make install"
        )
    cls = found[name].offered
    fields = [field for field in dataclasses.fields(cls) if field.init]
    made = options_table(cls, fields)
    if kind == "evaluator":
        budget = getattr(cls, "monitor_budget", None)
        made += "\nIt cannot be a monitor.\n" if budget is None else f"\nAs a monitor: {settings(budget)}.\n"
    return made


def settings(values: dict[str, Any]) -> str:
    return ", ".join(f"`{key}: {as_yaml(value)}`" for key, value in values.items()) or "the same options"


def architecture_options(plugins: PluginManager, name: str) -> str:
    """Fields of an architecture's config; SAELens's own documentation has what is SAELens's."""
    _, cls = bundled(plugins, "architecture")[name].offered()
    docs = field_docs(cls)
    own = [field for field in dataclasses.fields(cls) if field.init and field.name in docs]
    rest = [
        field
        for field in dataclasses.fields(cls)
        if field.init and field.name not in docs and field.name not in SAELENS_OWN
    ]
    made = options_table(cls, own, "field of `sae`") + "\n" if own else ""
    listed = ", ".join(f"`{field.name}` ({default_of(field)})" for field in rest)
    return f"{made}SAELens's fields, with their defaults: {listed}.\n"


def listing(plugins: PluginManager, kind: str) -> str:
    """Every plugin of a kind with its first docstring line."""
    rows = [f"| {kind} | what it is |", "|---|---|"]
    for name, one in bundled(plugins, kind).items():
        target = f"evaluators/{name}.md" if kind == "evaluator" else f"#{name}"
        rows.append(f"| [`{name}`]({target}) | {one.summary} |")
    return "\n".join(rows) + "\n"


def config_fields() -> str:
    """What `ExperimentConfig` adds to SAELens's config."""
    from sae_lens import LanguageModelSAERunnerConfig

    inherited = {field.name for field in dataclasses.fields(LanguageModelSAERunnerConfig)}
    own = [field for field in dataclasses.fields(ExperimentConfig) if field.name not in inherited]
    return options_table(ExperimentConfig, own, "field")


def example(file: Path) -> str:
    """A config of the examples, as a reader is to save it."""
    return f"```yaml\n# experiment.yaml\n{file.read_text(encoding='utf-8')}```\n"


def excerpt(file: Path) -> str:
    """Of a run's report as text: what was run, the verdicts, and whose the text is."""
    begin, *parts = re.split(r"^## (.+)\n\n", file.read_text(encoding="utf-8"), flags=re.M)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    sentences = [line for line in sections["Verdicts"].splitlines() if line.startswith("- ")]
    table = [line for line in sections["Is the text the model's own?"].splitlines() if line.startswith("|")]
    what = begin.strip().splitlines()[-1]
    return "\n\n".join([what, "\n".join(sentences), "\n".join(table)]) + "\n"


def made(plugins: PluginManager, what: str) -> str:
    """What belongs into the region named `what`."""
    verb, *arguments = what.split()
    makers: dict[str, Callable[..., str]] = {
        "options": lambda kind, name: (
            architecture_options(plugins, name)
            if kind == "architecture"
            else plugin_options(plugins, kind, name)
        ),
        "summary": lambda kind, name: bundled(plugins, kind)[name].summary + "\n",
        "list": lambda kind: listing(plugins, kind),
        "fields": lambda _: config_fields(),
        "config": lambda file: example(ROOT / file),
        "excerpt": lambda file: excerpt(ROOT / file),
    }
    return makers[verb](*arguments)


def pages(plugins: PluginManager) -> dict[Path, str]:
    """Every page as it should be: those with regions, and new ones."""
    found = {
        path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
    }
    for name in bundled(plugins, "evaluator"):
        found.setdefault(DOCS / "evaluators" / f"{name}.md", NEW_PAGE.format(name=name))
    return {
        path: REGION.sub(lambda region: f"{region[1]}\n{made(plugins, region[2])}\n{region[3]}", text)
        for path, text in found.items()
    }


def main() -> None:
    stale = {
        path: text
        for path, text in pages(load_plugins()).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    for path, text in stale.items():
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        sys.stderr.write(f"{path.relative_to(ROOT)}\n")
    if stale and "--check" in sys.argv:
        sys.exit("these pages are out of date: run `make docs`")


if __name__ == "__main__":
    main()
