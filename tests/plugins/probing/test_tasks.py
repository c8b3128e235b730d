"""Labelled texts: where they come from, what is dropped, and what is on which side."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_faithful import UsageError
from sae_faithful_plugins.probing import tasks
from sae_faithful_plugins.probing.tasks import (
    LocalTask,
    Part,
    load_task,
    normalise,
    parse_tasks,
    split_without_repeats,
)


def write(path: Path, texts: list[str], labels: list[Any]) -> LocalTask:
    table = pd.DataFrame({"sentence": texts, "class": labels})
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_json(path, orient="records", lines=True)
    return LocalTask(str(path), text="sentence", label="class")


def load(local: LocalTask | None, name: str = "mine", max_examples: int = 1_000, **options: Any) -> Any:
    return load_task(name, local, options.get("data", "hub"), max_examples, options.get("seed", 0))


def sentences(n: int, start: int = 0) -> list[str]:
    return [f"Text number {i}" for i in range(start, start + n)]


@pytest.mark.parametrize("name", ["mine.csv", "mine.jsonl"])
def test_a_table_of_ones_own(tmp_path: Path, name: str) -> None:
    task = load(write(tmp_path / name, sentences(100), ["ham", "spam"] * 50))
    # 30 % of each class: 15 + 15; alphabetical order makes spam class 1.
    assert (len(task.train), len(task.test)) == (70, 30)
    assert task.test.labels.sum() == 15
    for part in (task.train, task.test):
        assert [int(text.split()[-1]) % 2 for text in part.texts] == part.labels.tolist()


def test_repeats_are_dropped_before_the_split_so_that_none_leaks(tmp_path: Path) -> None:
    # Every text five times, in other cases and spacings.
    changes = (str, str.upper, str.lower, lambda text: f"  {text}\n", lambda text: text.replace(" ", "  "))
    texts = [change(text) for change in changes for text in sentences(60)]
    task = load(write(tmp_path / "mine.csv", texts, [0, 1] * 150))
    train, test = ({normalise(text) for text in part.texts} for part in (task.train, task.test))
    assert not train & test
    assert len(train) == len(task.train)
    assert (len(task.train), len(task.test)) == (42, 18)
    assert task.card["rows_read"] == 300
    assert task.card["distinct_texts"] == 60


def test_texts_of_an_official_test_set_are_not_trained_on() -> None:
    train = Part(["a", "B ", "c", "c", "d"], np.array([0, 1, 0, 0, 1]))
    test = Part(["b", "e", "E", ""], np.array([1, 0, 0, 1]))
    kept, tested = split_without_repeats(train, test, np.random.default_rng(0))
    assert kept.texts == ["a", "c", "d"]
    assert tested.texts == ["b", "e"]


def test_a_text_under_both_classes_is_nobodys() -> None:
    train = Part(["a", "A", "b", "c"], np.array([0, 1, 1, 0]))
    kept, tested = split_without_repeats(train, None, np.random.default_rng(0))
    assert sorted(kept.texts + tested.texts) == ["b", "c"]


def test_parts_are_cut_to_max_examples_with_the_classes_shares(tmp_path: Path) -> None:
    # 1 in 4 of 400 is class 1: 280 train and 120 test.
    task = load(write(tmp_path / "mine.csv", sentences(400), [1, 0, 0, 0] * 100), max_examples=80)
    assert (len(task.train), len(task.test)) == (80, 80)
    assert task.train.labels.sum() == task.test.labels.sum() == 20


def test_a_test_file_is_the_test_part(tmp_path: Path) -> None:
    first = write(tmp_path / "train.csv", sentences(20), [0, 1] * 10)
    second = write(tmp_path / "test.csv", sentences(10, start=15), [1, 0] * 5)
    task = load(LocalTask(first.path, "sentence", "class", second.path))
    assert task.test.texts == sentences(10, start=15)
    assert task.train.texts == sentences(15)
    assert task.card["split"] == "official"


def test_the_seed_decides_the_split(tmp_path: Path) -> None:
    local = write(tmp_path / "mine.csv", sentences(50), [0, 1] * 25)
    assert load(local, seed=1).test.texts == load(local, seed=1).test.texts != load(local, seed=2).test.texts


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2] * 10, r"task 'mine' has 3 labels \('0', '1', '2'\); a probe tells two apart"),
        ([0] * 30, "task 'mine' has 1 labels"),
        ([0] * 26 + [1] * 4, "task 'mine' has 18 . 3 distinct training texts of its two classes; at least 5"),
    ],
)
def test_what_makes_no_two_classes_is_refused(tmp_path: Path, labels: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(write(tmp_path / "mine.csv", sentences(30), labels))


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    local = write(tmp_path / "mine.csv", sentences(4), [0, 1] * 2)
    with pytest.raises(UsageError, match=r"has no column 'text'; it has: sentence, class"):
        load(LocalTask(local.path))


def test_names_and_keys_are_checked() -> None:
    assert parse_tasks(["sst2", {"mine": {"path": "a.csv"}}]) == {"sst2": None, "mine": LocalTask("a.csv")}
    with pytest.raises(
        ValueError, match=r"unknown task 'sst'; choices: sst2, cola, yelp_polarity, or your own"
    ):
        parse_tasks(["sst"])
    with pytest.raises(ValueError, match="task 'cola' is named twice"):
        parse_tasks(["cola", "cola"])
    with pytest.raises(ValueError, match=r"unknown key 'file'; choices: path, text, label, test_path"):
        parse_tasks([{"mine": {"file": "a.csv"}}])
    with pytest.raises(ValueError, match="task 'mine' needs a path"):
        parse_tasks([{"mine": {"text": "a"}}])


def hub(splits: dict[str, tuple[list[str], list[int]]], column: str) -> Any:
    from datasets import Dataset

    def load_dataset(path: str, name: str | None, split: str) -> Dataset:
        texts, labels = splits[split]
        return Dataset.from_dict({column: texts, "label": labels})

    return load_dataset


def test_the_hubs_validation_set_is_the_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"train": (sentences(40), [0, 1] * 20), "validation": (sentences(20, start=30), [0, 1] * 10)}
    monkeypatch.setattr("datasets.load_dataset", hub(splits, "sentence"))
    task = load(None, name="cola")
    assert task.test.texts == sentences(20, start=30)
    assert task.train.texts == sentences(30)
    assert task.metric == "mcc"
    assert task.card["data"] == "hub: nyu-mll/glue, tested on validation"


def test_the_hub_out_of_reach_is_an_error_and_no_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach the hub\nat all")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    monkeypatch.setattr(tasks, "sae_probes_folder", lambda: pytest.fail("looked elsewhere"))
    with pytest.raises(
        UsageError, match=r"cannot be read from the hub: Couldn't reach the hub; `data: sae_probes`"
    ):
        load(None, name="sst2")


def test_sae_probes_missing_is_an_error_and_no_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: pytest.fail("looked elsewhere"))
    with pytest.raises(ValueError, match="data: sae_probes needs the package 'sae-probes'"):
        load(None, name="sst2", data="sae_probes")


def test_yelps_middle_star_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame({"prompt": sentences(100), "target": [0, 1, 2, 3, 4] * 20})
    table.to_csv(tmp_path / "111_yelp_data.csv.zst", index=False)
    monkeypatch.setattr(tasks, "sae_probes_folder", lambda: tmp_path)
    task = load(None, name="yelp_polarity", data="sae_probes")
    for part in (task.train, task.test):
        stars = [int(text.split()[-1]) % 5 for text in part.texts]
        assert 2 not in stars
        assert [int(star > 2) for star in stars] == part.labels.tolist()
    assert len(task.train) + len(task.test) == 80


@pytest.mark.parametrize(("name", "distinct"), [("sst2", 4_828), ("cola", 3_646), ("yelp_polarity", 3_985)])
def test_the_files_of_sae_probes(name: str, distinct: int) -> None:
    pytest.importorskip("zstandard")
    if importlib.util.find_spec("sae_probes") is None:
        pytest.skip("pip install --no-deps sae-probes")
    task = load(None, name=name, data="sae_probes", max_examples=200)
    assert (len(task.train), len(task.test)) == (200, 200)
    # At most so many: texts under both classes are dropped besides.
    assert 0.98 * distinct <= task.card["distinct_texts"] <= distinct


def test_text_in_a_parquet_file_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 2, 4], np.int32)), pa.py_buffer(b"ab\x9a\x9a")]
    )
    path = tmp_path / "broken.parquet"
    parquet.write_table(pa.table({"text": broken, "label": ["a", "b"]}), path)
    # The reason is Arrow's, in words that change with its version.
    with pytest.raises(UsageError, match=r"^task 'mine': .*broken\.parquet cannot be read: .+$"):
        load_task("mine", LocalTask(path=str(path)), "hub", 50, 0)
