from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytest
from pluggy import HookimplMarker

from sae_faithful.interfaces import UsageError
from sae_faithful.registry import (
    KINDS,
    RESTRICT_VARIABLE,
    PluginManager,
    build_options,
    load_plugins,
    unknown,
)

if TYPE_CHECKING:
    from pathlib import Path

hookimpl = HookimplMarker("sae_faithful")

SOURCE = """
    import dataclasses
    from sae_faithful import hookimpl

    @dataclasses.dataclass
    class Planted:
        "Tokens planted by a test."

        def load(self, request): ...

    @hookimpl
    def register_sources(register):
        register("{name}", Planted)
"""


@dataclasses.dataclass
class News:
    """Text out of a newspaper.

    More about it.
    """

    path: str
    lr: float = 1.0
    n_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ValueError(f"lr {self.lr} is below 0")

    def load(self, request: Any) -> None: ...


@dataclasses.dataclass
class Counting:
    taus: list[float] = dataclasses.field(default_factory=lambda: [0.1])

    def observers(self, context: Any) -> list[Any]:
        return []

    def evaluate(self, context: Any, observers: Any) -> list[Any]:
        return []


class Offering:
    """A plugin that offers some things of one kind."""

    def __init__(self, kind: str, **offers: Any) -> None:
        def register_all(register: Any) -> None:
            for name, offered in offers.items():
                register(name, offered)

        setattr(self, f"register_{kind}s", hookimpl(register_all))


@pytest.fixture
def manager() -> PluginManager:
    manager = PluginManager()
    manager.register(Offering("source", news=News), name="papers")
    manager.register(Offering("evaluator", counting=Counting), name="counts")
    return manager


@pytest.fixture(autouse=True)
def unrestricted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RESTRICT_VARIABLE, raising=False)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a distribution with one plugin on the path, as an installer would."""
    written: list[str] = []

    def install(distribution: str, entry_point: str, code: str) -> None:
        folder = tmp_path / distribution
        module = f"{distribution.replace('-', '_')}_module"
        info = folder / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[sae_faithful]\n{entry_point} = {module}\n")
        (folder / f"{module}.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(str(folder))
        written.append(module)

    yield install
    for module in written:
        sys.modules.pop(module, None)


# Loading


def test_bundled_plugins_are_found_by_entry_point_like_a_strangers(install: Any) -> None:
    install("planted-plugins", "planted", SOURCE.format(name="planted"))
    sources = load_plugins().registrations("source")
    assert {"self_generated", "hub_dataset", "text_files", "planted"} <= set(sources)
    assert list(sources) == sorted(sources)
    assert sources["text_files"].distribution == "sae-faithful"
    planted = sources["planted"]
    assert (planted.kind, planted.name, planted.distribution, planted.version, planted.summary) == (
        "source", "planted", "planted-plugins", "1.2", "Tokens planted by a test.",
    )  # fmt: skip


def test_every_load_gives_a_fresh_manager() -> None:
    first = load_plugins()
    first.register(Offering("source", news=News))
    second = load_plugins()
    assert first is not second
    assert "news" in first.registrations("source")
    assert "news" not in second.registrations("source")


def test_loading_and_listing_imports_neither_torch_nor_saelens() -> None:
    code = """
        import sys
        import sae_faithful
        plugins = sae_faithful.load_plugins()
        names = [name for kind in sys.argv[1:] for name in plugins.registrations(kind)]
        heavy = [name for name in ("torch", "sae_lens", "transformer_lens", "transformers") if name in sys.modules]
        print("self_generated" in names, "shared_features" in names, heavy)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *KINDS], capture_output=True, text=True, check=True
    )
    assert process.stdout == "True True []\n"


@dataclasses.dataclass(frozen=True)
class Owner:
    """As much of a distribution as is asked for."""

    name: str
    version: str = "1"


def test_two_entry_points_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    points: list[Any] = []
    for owner in ("zebra-plugins", "apple-plugins"):
        point = metadata.EntryPoint("text", "json", "sae_faithful")
        vars(point).update(dist=Owner(owner))
        points.append(point)
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: points if group == "sae_faithful" else [])
    with pytest.raises(UsageError) as error:
        load_plugins()
    assert str(error.value) == (
        "plugin entry point 'text' is declared more than once, by: apple-plugins, zebra-plugins"
    )


def test_a_plugin_that_cannot_be_imported_is_named_with_the_way_to_leave_it_out(
    install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("broken-plugins", "broken", "raise ZeroDivisionError('planted')")
    install("planted-plugins", "planted", SOURCE.format(name="planted"))
    with pytest.raises(UsageError) as error:
        load_plugins()
    message = str(error.value)
    assert message.startswith(
        "plugin 'broken' of broken-plugins 1.2 cannot be imported (ZeroDivisionError: planted); leave it out with "
    )
    # Doing what the message says helps, and leaves out that one alone.
    variable, _, value = message.rpartition(" ")[2].partition("=")
    monkeypatch.setenv(variable, value)
    assert {"planted", "self_generated"} <= set(load_plugins().registrations("source"))
    assert "broken" not in value.split(",")


def test_the_variable_restricts_which_plugins_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESTRICT_VARIABLE, " text_files , fake_features,text_files ")
    manager = load_plugins()
    assert [name for name, _ in manager.list_name_plugin()] == ["text_files", "fake_features"]
    assert list(manager.registrations("source")) == ["text_files"]
    assert list(manager.registrations("evaluator")) == ["fake_features"]


def test_the_variable_set_to_nothing_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESTRICT_VARIABLE, "")
    assert load_plugins().list_name_plugin() == []


def test_the_variable_may_not_name_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESTRICT_VARIABLE, "text_files,text_file")
    with pytest.raises(UsageError) as error:
        load_plugins()
    assert "unknown plugin 'text_file' (did you mean text_files" in str(error.value)


def test_a_restricted_load_does_not_import_the_rest(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install("broken-plugins", "broken", "raise ZeroDivisionError('planted')")
    monkeypatch.setenv(RESTRICT_VARIABLE, "text_files")
    assert list(load_plugins().registrations("source")) == ["text_files"]


def test_a_hook_that_does_not_exist_is_refused(install: Any) -> None:
    code = "from sae_faithful import hookimpl\n@hookimpl\ndef register_sorces(register): ..."
    install("misspelt-plugins", "misspelt", code)
    with pytest.raises(UsageError, match=r"implements a hook that does not exist.*register_sorces"):
        load_plugins()


def test_a_hook_with_an_argument_that_does_not_exist_is_refused(install: Any) -> None:
    code = "from sae_faithful import hookimpl\n@hookimpl\ndef register_sources(registry): ..."
    install("misspelt-plugins", "misspelt", code)
    # In one line, like every usage error: `.` does not match a line's end.
    with pytest.raises(UsageError, match=r"^plugin 'misspelt' of misspelt-plugins 1\.2 .*registry.*$"):
        load_plugins()


# What is registered


def test_a_name_that_two_plugins_offer_is_refused_and_both_owners_named(install: Any) -> None:
    install("apple-plugins", "apples", SOURCE.format(name="fruit"))
    install("zebra-plugins", "zebras", SOURCE.format(name="fruit"))
    with pytest.raises(UsageError) as error:
        load_plugins().registrations("source")
    message = str(error.value)
    assert message.startswith("source 'fruit' is offered by both ")
    assert "apple-plugins" in message
    assert "zebra-plugins" in message
    assert RESTRICT_VARIABLE in message


def test_a_name_may_be_offered_once_as_a_source_and_once_as_an_evaluator(manager: PluginManager) -> None:
    manager.register(Offering("evaluator", news=Counting))
    assert manager.options_class("source", "news") is News
    assert manager.options_class("evaluator", "news") is Counting


def test_only_a_dataclass_can_be_registered(manager: PluginManager) -> None:
    class Plain:
        def load(self, request: Any) -> None: ...

    for offered in (Plain, News("x"), lambda: None):
        fresh = PluginManager()
        fresh.register(Offering("source", plain=offered))
        with pytest.raises(
            UsageError, match="source 'plain' must be a dataclass whose fields are its options"
        ):
            fresh.registrations("source")


@pytest.mark.parametrize(
    ("kind", "offered", "method"), [("source", Counting, "load"), ("evaluator", News, "observers")]
)
def test_a_class_without_its_method_is_refused(kind: str, offered: type, method: str) -> None:
    manager = PluginManager()
    manager.register(Offering(kind, thing=offered))
    message = rf"^{kind} 'thing' \({offered.__name__}\) lacks the method {method}\(\)$"
    with pytest.raises(UsageError, match=message):
        manager.registrations(kind)


def test_the_summary_is_the_first_line_of_the_docstring_and_nothing_where_there_is_none(
    manager: PluginManager,
) -> None:
    assert manager.registrations("source")["news"].summary == "Text out of a newspaper."
    # A dataclass without a docstring is given its signature as one; that is no summary.
    assert manager.registrations("evaluator")["counting"].summary == ""


def test_an_architecture_is_listed_without_being_loaded() -> None:
    def load() -> tuple[Any, Any]:
        raise AssertionError("loaded")

    manager = PluginManager()

    class Plugin:
        @hookimpl
        def register_architectures(self, register: Any) -> None:
            register("planted", load, "An architecture planted by a test.")

    manager.register(Plugin())
    (registration,) = manager.registrations("architecture").values()
    assert (registration.name, registration.offered) == ("planted", load)
    assert registration.summary == "An architecture planted by a test."
    assert registration.distribution == "(registered in code)"


# Names and options


def test_an_unknown_name_lists_the_choices_and_the_near_ones(manager: PluginManager) -> None:
    with pytest.raises(UsageError, match=r"^unknown source 'new' \(did you mean news\?\); installed: news$"):
        manager.create("source", "new", {})
    with pytest.raises(UsageError, match=r"^unknown evaluator 'l00'; installed: counting$"):
        manager.create("evaluator", "l00", {})
    with pytest.raises(UsageError, match=r"^unknown architecture 'topk'; installed: none$"):
        manager.options_class("architecture", "topk")


def test_many_choices_are_listed_only_where_none_is_near() -> None:
    choices = [f"choice_{letter}" for letter in "abcdefghijklm"]
    # Thirteen choices: with a near match they would bury it.
    assert unknown("plugin", "zzz", choices, "there are") == (
        f"unknown plugin 'zzz'; there are: {', '.join(choices)}"
    )
    near = unknown("plugin", "choice_a", [*choices[1:], "other"], "there are")
    assert near.startswith("unknown plugin 'choice_a' (did you mean choice_")
    assert near.endswith("?)")
    # Twelve are listed all the same.
    assert unknown("plugin", "choice_z", choices[:12], "there are").endswith(
        f"; there are: {', '.join(choices[:12])}"
    )


def test_an_unknown_option_names_the_options_there_are(manager: PluginManager) -> None:
    with pytest.raises(UsageError) as error:
        manager.create("source", "news", {"path": "x", "n_token": 5})
    assert str(error.value) == (
        "unknown option 'n_token' (did you mean n_tokens?); options of source 'news': path, lr, n_tokens"
    )


def test_a_missing_option_is_named(manager: PluginManager) -> None:
    with pytest.raises(UsageError, match=r"^source 'news' needs the option 'path'$"):
        manager.create("source", "news", {})


def test_a_value_of_the_wrong_type_is_shown_with_its_option(manager: PluginManager) -> None:
    with pytest.raises(UsageError, match=r"^source 'news', lr = 'fast': .*valid number"):
        manager.create("source", "news", {"path": "x", "lr": "fast"})
    with pytest.raises(UsageError, match=r"^evaluator 'counting', taus\.1 = 'often': .*valid number"):
        manager.create("evaluator", "counting", {"taus": [0.1, "often"]})


def test_all_that_is_wrong_is_said_at_once(manager: PluginManager) -> None:
    with pytest.raises(UsageError) as error:
        manager.create("source", "news", {"lr": "fast", "speed": 1})
    message = str(error.value)
    assert "needs the option 'path'" in message
    assert "lr = 'fast'" in message
    assert "unknown option 'speed'" in message
    assert "\n" not in message


def test_a_value_the_class_refuses_is_told_in_its_own_words(manager: PluginManager) -> None:
    with pytest.raises(UsageError, match=r"^source 'news': lr -2.0 is below 0$"):
        manager.create("source", "news", {"path": "x", "lr": -2})


def test_half_of_a_surrogate_pair_is_shown_as_its_escape() -> None:
    @dataclasses.dataclass
    class Files:
        path: str

        def __post_init__(self) -> None:
            raise ValueError(f"there is no file '{self.path}' für dich")

    # JSON and YAML can say it, and pydantic cannot repeat it.
    with pytest.raises(UsageError) as error:
        build_options(Files, "source 'files'", {"path": "a\ud800.txt"})
    assert str(error.value) == "source 'files': there is no file 'a\\ud800.txt' für dich"


def test_a_number_that_yaml_reads_as_text_becomes_a_number(manager: PluginManager) -> None:
    # PyYAML reads 3e-4, without a point, as a string.
    news = manager.create("source", "news", {"path": "x", "lr": "3e-4"})
    assert (type(news.lr), news.lr) == (float, 0.0003)


def test_options_left_out_have_their_defaults(manager: PluginManager) -> None:
    assert manager.create("source", "news", {"path": "x"}) == News("x", 1.0, None)


def test_a_class_that_sets_its_own_strictness_keeps_it() -> None:
    @dataclasses.dataclass
    class Lenient:
        __pydantic_config__ = {"extra": "ignore"}  # noqa: RUF012
        path: str = ""

        def load(self, request: Any) -> None: ...

    manager = PluginManager()
    manager.register(Offering("source", lenient=Lenient))
    assert manager.create("source", "lenient", {"path": "x", "more": 1}).path == "x"


@pytest.mark.parametrize(
    ("evaluator", "options"),
    [
        ("probing", {"tasks": [{"mine": {"path": "x" * 5_000 + ".csv"}}]}),
        ("ioi_patching", {"pairs": "x" * 5_000 + ".jsonl"}),
    ],
)
def test_a_file_whose_name_no_disk_takes_is_one_short_line(evaluator: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=evaluator) as caught:
        load_plugins().create("evaluator", evaluator, options)
    assert "too long" in str(caught.value) or "cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
