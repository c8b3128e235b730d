"""Streamed data sets become documents of token ids. No hub is reached: `load_dataset` is replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sae_faithful import TokenSet, UsageError, load_plugins
from sae_faithful_plugins.hub_dataset import split_at_bos

BOS = 0
THREE = [{"text": "w4 w5 w6"}, {"text": "w7 w8 w9"}, {"text": "w10 w11 w12"}]
THREE_IDS = [[4, 5, 6], [7, 8, 9], [10, 11, 12]]


class Hub:
    """Stands in for `datasets.load_dataset`: streams rows and remembers what it was asked."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.read = 0
        self.asked: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def load_dataset(self, *args: Any, **kwargs: Any) -> Any:
        from datasets import IterableDataset

        self.asked = (args, kwargs)

        def stream() -> Any:
            for row in self.rows:
                self.read += 1
                yield row

        return IterableDataset.from_generator(stream)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    import datasets

    stand_in = Hub()
    monkeypatch.setattr(datasets, "load_dataset", stand_in.load_dataset)
    return stand_in


@pytest.fixture
def load(make_request: Callable[..., Any]) -> Callable[..., TokenSet]:
    """Load all rows, in rows of 4 tokens: three ids after BOS fill one."""

    def go(*, seed: int = 7, n_tokens: int = 400, **options: Any) -> TokenSet:
        options = {"path": "somebody/something", "shuffle": False, **options}
        source = load_plugins().create("source", "hub_dataset", options)
        return source.load(make_request(seed=seed, n_tokens=n_tokens, context_size=4))

    return go


def documents(tokens: TokenSet) -> list[list[int]]:
    return [document[1:].tolist() for document in tokens.documents(BOS)]


def test_each_text_is_a_document(hub: Hub, load: Callable[..., TokenSet]) -> None:
    hub.rows = THREE
    tokens = load()
    assert tokens.rows().tolist() == [[0, 4, 5, 6], [0, 7, 8, 9], [0, 10, 11, 12]]
    assert documents(tokens) == THREE_IDS
    assert (tokens.card["dataset"], tokens.card["split"]) == ("somebody/something", "train")


def test_the_dataset_is_streamed_with_the_options_as_given(hub: Hub, load: Callable[..., TokenSet]) -> None:
    hub.rows = THREE
    load(name="en", split="validation", revision="abc")
    assert hub.asked == (
        ("somebody/something", "en"),
        {"split": "validation", "revision": "abc", "streaming": True},
    )


def test_no_more_is_read_than_the_request_needs(hub: Hub, load: Callable[..., TokenSet]) -> None:
    hub.rows = [{"text": f"w{4 + i % 60} w{4 + i // 60} w5"} for i in range(3_000)]
    assert len(load(n_tokens=8)) == 2
    # Texts go to the tokenizer 64 at a time; one more row is read to see the columns.
    assert hub.read <= 64 + 1


def test_empty_and_missing_texts_are_left_out(hub: Hub, load: Callable[..., TokenSet]) -> None:
    hub.rows = [{"text": None}, {"text": ""}, *THREE]
    assert documents(load()) == THREE_IDS


def test_repeated_texts_are_dropped_and_counted(hub: Hub, load: Callable[..., TokenSet]) -> None:
    hub.rows = [*THREE, THREE[0]]
    tokens = load()
    assert documents(tokens) == THREE_IDS
    assert tokens.card["repeated_documents_dropped"] == 1


def test_the_text_may_be_in_another_column(hub: Hub, load: Callable[..., TokenSet]) -> None:
    hub.rows = [{"text": "w4 w5 w6", "story": "w7 w8 w9"}]
    assert documents(load(column="story")) == [[7, 8, 9]]


@pytest.mark.parametrize("column", ["input_ids", "tokens"])
def test_token_ids_are_taken_where_there_is_no_text(
    hub: Hub, load: Callable[..., TokenSet], column: str
) -> None:
    # Packed rows: BOS (0) stands between documents.
    hub.rows = [{column: [0, 4, 5, 6, 0, 7, 8, 9]}, {column: [10, 11, 12]}]
    assert documents(load()) == THREE_IDS


def test_a_column_of_ids_may_be_named(hub: Hub, load: Callable[..., TokenSet]) -> None:
    hub.rows = [{"input_ids": [4, 5, 6], "ids": [7, 8, 9]}]
    assert documents(load(column="ids")) == [[7, 8, 9]]


def test_text_is_preferred_to_ids(hub: Hub, load: Callable[..., TokenSet]) -> None:
    hub.rows = [{"input_ids": [4, 5, 6], "text": "w7 w8 w9"}]
    assert documents(load()) == [[7, 8, 9]]


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([[0, 4, 5, 0, 6]], [[4, 5], [6]]),
        # A row that starts inside a document: its first part stands alone.
        ([[4, 5, 0, 6, 7]], [[4, 5], [6, 7]]),
        ([[4, 5]], [[4, 5]]),
        # BOS twice or at the end leaves nothing between; empty parts are dropped in packing.
        ([[0, 0, 4, 0]], [[], [], [4], []]),
        ([[0, 4], [0, 5]], [[], [4], [], [5]]),
        ([], []),
    ],
)
def test_rows_are_split_where_a_document_begins(rows: list[list[int]], parts: list[list[int]]) -> None:
    found = [part.tolist() for part in split_at_bos(rows, BOS)]
    assert [part for part in found if part] == [part for part in parts if part]
    assert all(BOS not in part for part in found)


def test_the_order_depends_on_the_seed_alone(hub: Hub, load: Callable[..., TokenSet]) -> None:
    hub.rows = [{"text": f"w{i} w{i + 1} w{i + 2}"} for i in range(4, 44)]
    first, again, other = (documents(load(shuffle=True, seed=seed)) for seed in (1, 1, 2))
    unshuffled = documents(load())
    assert first == again
    assert first != other
    assert unshuffled == [[i, i + 1, i + 2] for i in range(4, 44)]
    assert first != unshuffled
    assert sorted(first) == sorted(other) == unshuffled


def test_a_missing_column_is_an_error_that_lists_the_columns(hub: Hub, load: Callable[..., TokenSet]) -> None:
    hub.rows = [{"title": "w4", "body": "w5"}]
    with pytest.raises(
        UsageError, match="hub_dataset 'somebody/something' has no column 'text' of text; it has: title, body"
    ):
        load()


def test_a_dataset_that_cannot_be_read_is_one_line_for_the_user(
    load: Callable[..., TokenSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("Unknown split 'tset'. Should be one of ['train'].\nMore lines")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UsageError) as caught:
        load(split="tset")
    assert str(caught.value) == (
        "hub_dataset 'somebody/something' cannot be read: Unknown split 'tset'. Should be one of ['train']."
    )


def test_without_a_hub_the_real_loader_fails_in_one_line_that_names_the_dataset(
    load: Callable[..., TokenSet],
) -> None:
    with pytest.raises(UsageError, match=r"hub_dataset 'nobody/nothing-at-all' cannot be read: .+") as caught:
        load(path="nobody/nothing-at-all")
    assert "\n" not in str(caught.value)


def test_several_columns_are_one_text(hub: Hub, load: Callable[..., TokenSet]) -> None:
    hub.rows = [
        {"task": "w4", "inputs": "w5", "targets": "w6"},
        {"task": "w7", "inputs": "", "targets": "w8 w9"},
        {"task": "", "inputs": None, "targets": ""},
        {"task": "w10", "inputs": "w11", "targets": "w12"},
    ]
    # In the order asked for; what is empty leaves nothing, a row of nothing no document. The last fills no row.
    assert documents(load(column=["targets", "task"])) == [[6, 4], [8, 9, 7]]
    assert documents(load(column=["task", "inputs", "targets"])) == [[4, 5, 6], [7, 8, 9], [10, 11, 12]]


def test_each_of_several_columns_must_be_there_and_be_text(hub: Hub, load: Callable[..., TokenSet]) -> None:
    hub.rows = [{"task": "w4", "inputs": [5], "input_ids": [6]}]
    with pytest.raises(UsageError, match="has no column 'goal' of text; it has: task, inputs, input_ids"):
        load(column=["task", "goal"])
    with pytest.raises(UsageError, match="has no column 'task, inputs' of text"):
        load(column=["task", "inputs"])


def test_the_text_between_columns_is_an_empty_line(
    hub: Hub, make_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.rows = [{"inputs": "w4", "targets": "w5 w6"}]
    request = make_request(seed=7, n_tokens=400, context_size=4)
    seen: list[str] = []
    tokenize = type(request).tokenize

    def spy(self: Any, texts: Any) -> Any:
        texts = list(texts)
        seen.extend(texts)
        return tokenize(self, texts)

    monkeypatch.setattr(type(request), "tokenize", spy)
    options = {"path": "somebody/something", "shuffle": False, "column": ["inputs", "targets"]}
    load_plugins().create("source", "hub_dataset", options).load(request)
    assert seen == ["w4\n\nw5 w6"]
