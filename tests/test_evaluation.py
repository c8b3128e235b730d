"""Evaluators that read what others found: their order, what they are given, when they are done again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from sae_faithful import EvalResult, ExperimentConfig, FeatureTable, UsageError, hookimpl, load_plugins, run
from sae_faithful.evaluation import read_rows


@dataclass
class Numbers:
    """The latents, numbered."""

    first: int = 0
    """The first number."""

    def observers(self, context: Any) -> list[Any]:
        """None."""
        return []

    def evaluate(self, context: Any, observers: Any) -> Any:
        """A column."""
        assert context.features is None
        for handle in context.handles:
            yield FeatureTable(handle=handle, columns={"number": self.first + np.arange(handle.d_sae)})


@dataclass
class Largest:
    """The largest number of all that were read."""

    reads: list[str] = field(default_factory=lambda: ["numbers"])
    """Whose numbers."""

    def observers(self, context: Any) -> list[Any]:
        """None; there are no columns yet."""
        assert context.features is None
        return []

    def evaluate(self, context: Any, observers: Any) -> Any:
        """A row, and a column for those who read this one."""
        columns = [name for name in context.features if "." in name]
        largest = float(context.features[columns].max().max())
        yield EvalResult(metric="largest", value=largest, unit="things", reason="counted")
        for handle in context.handles:
            yield FeatureTable(handle=handle, columns={"number": np.full(handle.d_sae, largest + 1)})


@dataclass
class Perhaps:
    """The largest number of those that are there; -1 where there are none."""

    reads: list[str] = field(default_factory=list)
    """Whose numbers it needs."""
    may_read: list[str] = field(default_factory=lambda: ["numbers", "nobody"])
    """Whose numbers it takes if there are any."""

    def observers(self, context: Any) -> list[Any]:
        """None."""
        return []

    def evaluate(self, context: Any, observers: Any) -> Any:
        """A row."""
        there = context.features
        columns = [] if there is None else [name for name in there if "." in name]
        assert set(columns) <= {"numbers.number", "largest.number"}
        largest = float(there[columns].max().max()) if columns else -1.0
        yield EvalResult(metric="largest", value=largest, unit="things", reason="counted")


class Plugin:
    @hookimpl
    def register_evaluators(self, register: Any) -> None:
        register("numbers", Numbers)
        register("largest", Largest)
        register("larger", Largest)
        register("perhaps", Perhaps)


def largest_of(config: dict[str, Any], name: str = "largest") -> float:
    """What the evaluator `name` found in a run of the config, or of what is left to do of it."""
    manager = load_plugins()
    manager.register(Plugin())
    folder = run(ExperimentConfig.from_dict(config), plugins=manager)
    (row,) = [row for row in read_rows(folder.result_dir(name)) if row["metric"] == "largest"]
    return row["value"]


@pytest.mark.parametrize("evaluators", [["numbers", "largest"], ["largest", "numbers"]])
def test_a_reader_finds_the_columns_wherever_it_stands(
    tiny_config: dict[str, Any], evaluators: list[str]
) -> None:
    config = {**tiny_config, "evaluators": evaluators}
    assert largest_of(config) == tiny_config["sae"]["d_sae"] - 1
    # Again, from what is on disk.
    assert largest_of(config) == tiny_config["sae"]["d_sae"] - 1


def test_readers_may_be_read(tiny_config: dict[str, Any]) -> None:
    chain = [{"larger": {"reads": ["largest"]}}, "largest", "numbers"]
    assert largest_of({**tiny_config, "evaluators": chain}, "larger") == tiny_config["sae"]["d_sae"]


def test_a_reader_added_later_reads_what_is_on_disk(tiny_config: dict[str, Any]) -> None:
    numbers = {"numbers": {"first": 5}}
    manager = load_plugins()
    manager.register(Plugin())
    run(ExperimentConfig.from_dict({**tiny_config, "evaluators": [numbers]}), plugins=manager)
    assert largest_of({**tiny_config, "evaluators": [numbers, "largest"]}) == tiny_config["sae"]["d_sae"] + 4


def test_a_reader_is_done_again_when_what_it_read_is(tiny_config: dict[str, Any], tmp_path: Any) -> None:
    import shutil

    config = {**tiny_config, "evaluators": ["numbers", "largest"]}
    manager = load_plugins()
    manager.register(Plugin())
    folder = run(ExperimentConfig.from_dict(config), plugins=manager)
    shutil.rmtree(folder.result_dir("numbers"))
    again = {**config, "evaluators": [{"numbers": {"first": 100}}, "largest"]}
    assert largest_of(again) == tiny_config["sae"]["d_sae"] + 99


def test_columns_that_may_be_read_are_there_or_not(tiny_config: dict[str, Any]) -> None:
    d_sae = tiny_config["sae"]["d_sae"]
    # Nobody gives any; then somebody does, so that it is done again, wherever it stands; then somebody is gone.
    for evaluators, largest in (
        (["perhaps"], -1),
        (["perhaps", {"numbers": {"first": 5}}], d_sae + 4),
        (["perhaps"], -1),
    ):
        assert largest_of({**tiny_config, "evaluators": evaluators}, "perhaps") == largest


def test_some_are_needed_and_others_may_be_read(tiny_config: dict[str, Any]) -> None:
    both = {"perhaps": {"reads": ["numbers"], "may_read": ["largest", "numbers"]}}
    config = {**tiny_config, "evaluators": [both, "largest", "numbers"]}
    assert largest_of(config, "perhaps") == tiny_config["sae"]["d_sae"]


def test_what_may_be_read_has_an_order_too(tiny_config: dict[str, Any], tmp_path: Any) -> None:
    manager = load_plugins()
    manager.register(Plugin())
    circle = [{"largest": {"reads": ["perhaps"]}}, {"perhaps": {"may_read": ["largest"]}}]
    with pytest.raises(UsageError, match="evaluators read each other's columns: "):
        run(
            ExperimentConfig.from_dict({**tiny_config, "evaluators": circle}),
            plugins=manager,
            output=tmp_path / "none",
        )


@pytest.mark.parametrize(
    ("evaluators", "says"),
    [
        (
            ["largest"],
            "evaluator 'largest' reads columns of 'numbers', which the config does not run; evaluators: largest",
        ),
        (
            [{"largest": {"reads": ["larger"]}}, {"larger": {"reads": ["largest"]}}],
            "evaluators read each other's columns: ",
        ),
    ],
)
def test_readers_of_what_is_not_there_are_refused_before_anything_is_written(
    tiny_config: dict[str, Any], tmp_path: Any, evaluators: list[Any], says: str
) -> None:
    manager = load_plugins()
    manager.register(Plugin())
    config = ExperimentConfig.from_dict({**tiny_config, "evaluators": evaluators})
    with pytest.raises(UsageError, match=says):
        run(config, plugins=manager, output=tmp_path / "none")
    assert not (tmp_path / "none").exists()
