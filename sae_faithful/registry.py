"""Finding plugins, and turning names and options from a config into objects. Imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
from collections import Counter
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pluggy
from pydantic import TypeAdapter, ValidationError

from sae_faithful import hookspecs
from sae_faithful.interfaces import UsageError
from sae_faithful.names import check_name
from sae_faithful.redaction import secret_in
from sae_faithful.stored import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

GROUP = "sae_faithful"
RESTRICT_VARIABLE = "SAE_FAITHFUL_PLUGINS"
MOST_CHOICES_LISTED = 12
KINDS = ("source", "evaluator", "architecture", "baseline")


@dataclasses.dataclass(frozen=True)
class Registration:
    """One name that a plugin offers."""

    kind: str
    name: str
    offered: Any
    """The class, or for an architecture the function that loads it."""
    summary: str
    distribution: str
    version: str


class PluginManager(pluggy.PluginManager):
    """pluggy's manager, which also answers what the plugins registered."""

    def __init__(self) -> None:
        super().__init__(GROUP)
        self.add_hookspecs(hookspecs)
        self.owners: dict[str, tuple[str, str]] = {}
        """Distribution and version by plugin name, for plugins that came from an entry point."""

    def registrations(self, kind: str) -> dict[str, Registration]:
        """Everything offered of one kind (see `KINDS`), by name.

        Raises:
            UsageError: two plugins offer the same name, or one offers something unfit.
        """
        found: dict[str, Registration] = {}
        # Each plugin's hook is called alone, so that a name can be traced to its owner.
        for entry_name, plugin in self.list_name_plugin():
            if plugin is None:
                continue
            owner = self.owners.get(entry_name, ("(registered in code)", ""))

            def register(
                name: str,
                offered: Any,
                summary: str | None = None,
                owner: tuple[str, str] = owner,
                entry_name: str = entry_name,
            ) -> None:
                check_name(name, f"{kind} of {owner[0]}")
                if name in found:
                    raise UsageError(
                        f"{kind} '{name}' is offered by both {found[name].distribution} and {owner[0]}; "
                        f"leave one out with {RESTRICT_VARIABLE} (this one's entry point: '{entry_name}')"
                    )
                if kind != "architecture":
                    _prepare_options_class(kind, name, offered)
                found[name] = Registration(
                    kind, name, offered, summary or _first_line(offered), owner[0], owner[1]
                )

            others = [other for _, other in self.list_name_plugin() if other is not plugin]
            hook = self.subset_hook_caller(f"register_{kind}s", remove_plugins=others)
            hook(register=register)
        return dict(sorted(found.items()))

    def options_class(self, kind: str, name: str) -> type[Any]:
        """The class registered under `name`.

        Raises:
            UsageError: there is none; the message lists those there are.
        """
        offered = self.registrations(kind)
        if name not in offered:
            raise UsageError(unknown(kind, name, list(offered), "installed"))
        return offered[name].offered

    def create(self, kind: str, name: str, options: Mapping[str, Any]) -> Any:
        """An instance of the plugin `name` with `options` checked and coerced to its fields' types.

        Raises:
            UsageError: unknown name, unknown or missing option, or a value of the wrong type.
        """
        return build_options(self.options_class(kind, name), f"{kind} '{name}'", options)


def load_plugins() -> PluginManager:
    """A fresh manager with every installed plugin, or those that `SAE_FAITHFUL_PLUGINS` names.

    Raises:
        UsageError: a plugin cannot be imported or misuses a hook, two entry points have one name, or the
            variable names an entry point that is not installed.
    """
    manager = PluginManager()
    entry_points = list(metadata.entry_points(group=GROUP))
    repeated = [name for name, count in Counter(point.name for point in entry_points).items() if count > 1]
    if repeated:
        owners = ", ".join(
            sorted(_distribution(point)[0] for point in entry_points if point.name in repeated)
        )
        raise UsageError(f"plugin entry point '{repeated[0]}' is declared more than once, by: {owners}")
    chosen = _restrict(entry_points)
    for point in chosen:
        try:
            plugin = point.load()
        # A stranger's module may fail with anything; whose it is and how to go on is what the user needs.
        except Exception as error:
            name, version = _distribution(point)
            rest = ",".join(other.name for other in chosen if other is not point)
            raise UsageError(
                f"plugin '{point.name}' of {name} {version} cannot be imported "
                f"({type(error).__name__}: {error}); leave it out with {RESTRICT_VARIABLE}={rest}"
            ) from error
        try:
            manager.register(plugin, name=point.name)
        except pluggy.PluginValidationError as error:
            name, version = _distribution(point)
            # pluggy's message has several lines.
            reason = " ".join(str(error).split())
            raise UsageError(f"plugin '{point.name}' of {name} {version} misuses a hook: {reason}") from error
        manager.owners[point.name] = _distribution(point)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise UsageError(f"a plugin implements a hook that does not exist: {error}") from error
    return manager


def build_options(cls: type[Any], owner: str, options: Mapping[str, Any]) -> Any:
    """`cls(**options)`, checked by pydantic: no unknown key, every value coerced to its field's type."""
    secret = secret_in(dict(options))
    if secret is not None:
        raise UsageError(
            f"{owner}, {secret}: would be written into configs and results, and holds a secret, or an address with "
            "a password; say it in the environment"
        )
    try:
        return TypeAdapter(cls).validate_python(dict(options))
    except ValidationError as error:
        names = [field.name for field in dataclasses.fields(cls) if field.init]
        raise UsageError(describe_errors(error, owner, names)) from None
    except UnicodeEncodeError as error:
        # pydantic cannot pass on a line that quotes half of a surrogate pair; the line is what it was given.
        line = error.object.encode(errors="backslashreplace").decode()
        raise UsageError(f"{owner}: {line}") from None
    except OSError as error:
        # An option names a file, which is looked at: there may be no permission, or the name is too long for any disk.
        raise UsageError(f"{owner}: {reason_of(error)}") from error


def describe_errors(error: ValidationError, owner: str, names: Sequence[str]) -> str:
    """One line for pydantic's errors: the value, what is wrong, the choices."""
    parts: list[str] = []
    for entry in error.errors(include_url=False):
        where = ".".join(str(part) for part in entry["loc"])
        option = str(entry["loc"][0]) if entry["loc"] else ""
        if entry["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            parts.append(unknown("option", option, names, f"options of {owner}"))
        elif entry["type"] in ("missing", "missing_argument"):
            parts.append(f"{owner} needs the option '{option}'")
        else:
            message = entry["msg"].removeprefix("Value error, ")
            # What is wrong with all options together names what is wrong itself; their values are of no use.
            given = f", {where} = {entry['input']!r}" if where else ""
            parts.append(f"{owner}{given}: {message}")
    # A union reports one line for each of its members.
    return "; ".join(dict.fromkeys(parts))


def unknown(kind: str, name: str, choices: Sequence[str], label: str = "choices") -> str:
    """The line for a name that is not among `choices`: the nearest ones, and all where they are few."""
    near = difflib.get_close_matches(name, choices, n=3)
    line = f"unknown {kind} '{name}'" + (f" (did you mean {', '.join(near)}?)" if near else "")
    if near and len(choices) > MOST_CHOICES_LISTED:
        return line
    return f"{line}; {label}: {', '.join(choices) or 'none'}"


def _prepare_options_class(kind: str, name: str, cls: Any) -> None:
    methods = {"source": ("load",), "evaluator": ("observers", "evaluate"), "baseline": ("fit",)}[kind]
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UsageError(f"{kind} '{name}' must be a dataclass whose fields are its options, not {cls!r}")
    missing = [method for method in methods if not callable(getattr(cls, method, None))]
    if missing:
        raise UsageError(f"{kind} '{name}' ({cls.__qualname__}) lacks the method {missing[0]}()")
    # TypeAdapter refuses `config=` for dataclasses, but reads it from the class.
    if "__pydantic_config__" not in cls.__dict__:
        setattr(cls, "__pydantic_config__", {"extra": "forbid"})  # noqa: B010 (pyright: not declared there)


def _restrict(entry_points: list[metadata.EntryPoint]) -> list[metadata.EntryPoint]:
    wanted = os.environ.get(RESTRICT_VARIABLE)
    if wanted is None:
        return entry_points
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    installed = {point.name: point for point in entry_points}
    for name in names:
        if name not in installed:
            raise UsageError(unknown("plugin", name, sorted(installed), f"{RESTRICT_VARIABLE} may name"))
    return [installed[name] for name in dict.fromkeys(names)]


def _distribution(point: metadata.EntryPoint) -> tuple[str, str]:
    return ("(unknown distribution)", "") if point.dist is None else _name_and_version(point.dist)


@lru_cache(maxsize=8)  # one for all plugins of a distribution: its metadata is parsed anew at every access
def _name_and_version(distribution: metadata.Distribution) -> tuple[str, str]:
    return distribution.name, distribution.version


def _first_line(offered: Callable[..., Any] | type[Any]) -> str:
    doc = inspect.getdoc(offered) or ""
    # A dataclass without a docstring gets its signature as one.
    return "" if doc.startswith(f"{getattr(offered, '__name__', '')}(") else doc.strip().partition("\n")[0]
