"""Pushing SAEs, through SAELens and `huggingface_hub` to a hub on this machine, and loading them from there."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner

from sae_faithful import ExperimentConfig, RunError, UsageError, run
from sae_faithful.hub import push_saes
from sae_faithful.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

HOOKS = ("model.layers.0", "model.layers.1")


def fake_hub_module() -> Any:
    """Beside this file: tests are in no package."""
    path = Path(__file__).with_name("fake_hub.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run: two sources, two hooks, two seeds."""
    root = tmp_path_factory.mktemp("push")
    draw = Random(0)
    words = [" ".join(f"w{draw.randint(4, 63)}" for _ in range(12)) for _ in range(200)]
    (root / "notes.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    config = {
        "model_name": tiny_llama, "model_class_name": "AutoModelForCausalLM", "hook_names": list(HOOKS),
        "context_size": 16, "training_tokens": 640, "train_batch_size_tokens": 64, "n_batches_in_buffer": 16,
        "store_batch_size_prompts": 8, "sae": {"architecture": "sparse_topk", "d_sae": 24, "k": 4},
        "logger": {"log_to_wandb": False}, "verbose": False, "sae_seeds": [0, 1], "typicality_tokens": 400,
        "sources": {
            "faithful": {"plugin": "self_generated", "n_tokens": 1_200, "batch_size": 64},
            "notes": {"plugin": "text_files", "path": str(root / "notes.jsonl")},
        },
        "evaluators": [
            {"shared_features": {"null_draws": 2, "encoder": False, "top1": False}},
            {"fake_features": {"n_tokens": 400, "activation": 0.25, "ratio": 3}},
        ],
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_FAITHFUL_CACHE", str(root / "cache"))
        return run(ExperimentConfig.from_dict(config), output=root / "run")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with fake_hub_module().fake_hub(monkeypatch, tmp_path / "hub_cache") as hub:
        yield hub


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.results_file.read_text().splitlines()]


def card_of(hub: Any, repository: str = "user/saes") -> str:
    return hub.files[repository]["README.md"].decode()


def table_cells(card: str, *, starting: str) -> list[list[str]]:
    """The body of the table whose first heading begins so."""
    lines = card.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"| {starting}"))
    body: list[list[str]] = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        body.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return body


def shown(row: dict[str, Any]) -> str:
    """As the report shows a number below 10 with its interval."""
    return f"{row['value']:.4f} [{row['ci_low']:.4f}, {row['ci_high']:.4f}]"


def test_what_is_pushed_loads_with_saelens_as_the_card_says(folder: RunFolder, hub: Any) -> None:
    from sae_lens import SAE

    names = push_saes(folder, "user/saes")
    # 2 sources × 2 hooks × 2 seeds.
    assert len(names) == 8
    (block,) = re.findall(r"```python\n(.*?)```", card_of(hub), re.S)
    scope: dict[str, Any] = {}
    exec(block, scope)
    assert names[0] in block
    loaded = {name: SAE.from_pretrained("user/saes", name) for name in names}
    loaded[names[0]] = scope["sae"]
    for name, sae in loaded.items():
        stored = SAE.load_from_disk(folder.root / "saes" / name)
        torch.testing.assert_close(dict(sae.state_dict()), dict(stored.state_dict()), rtol=0, atol=0)
        assert sae.cfg.metadata.hook_name == stored.cfg.metadata.hook_name
    # Every SAE of the table is one that can be loaded.
    assert [cells[0].strip("`") for cells in table_cells(card_of(hub), starting="path")] == names
    # The folder that SAELens trained into is in runner_cfg.json, and of nobody's concern.
    assert not [path for path in hub.files["user/saes"] if "runner_cfg" in path]
    assert hub.private["user/saes"] is False


def test_the_card_comes_last_and_replaces_an_older_one(folder: RunFolder, hub: Any) -> None:
    push_saes(folder, "user/saes", sources=["notes"], hooks=[HOOKS[0]])
    first = card_of(hub)
    push_saes(folder, "user/saes", licence="mit")
    assert hub.commits[-1] == "Card"
    assert "license" not in first
    assert "\nlicense: mit\n" in card_of(hub).partition("\n# ")[0]


def test_the_numbers_of_the_card_are_the_rows(folder: RunFolder, hub: Any) -> None:
    push_saes(folder, "user/saes")
    table = {
        (
            row["metric"],
            row["source"],
            f"{row['hook']}/{row['variant']}",
            row["subset"],
            row["condition"] or "",
        ): row
        for row in rows(folder)
        if row["seed"] is None
    }
    checked: list[str] = []
    for evaluator in ("Shared features", "Fake features"):
        part = card_of(hub).partition(f"## {evaluator}")[2]
        for source, place, metric, condition, subset, value, null, n in table_cells(part, starting="SAEs on"):
            name = metric.strip("`")
            row = table[name, source, place, subset, condition]
            if row["ci_low"] is not None:
                assert value == shown(row)
            else:
                # Two seeds have no interval over SAEs, and say why below the table.
                assert re.fullmatch(rf"{row['value']:.4f} \[\d+\]", value)
                assert f"] {row['reason']}" in part
            assert int(n) == row["n"]
            end = "_null" if evaluator == "Shared features" else "_random_sae"
            beside = table.get((name + end, source, place, subset, condition))
            assert (null.partition(" ")[0] == f"{beside['value']:.4f}") if beside else null == ""
            checked.append(name)
    assert {"sfr", "mean_matched_cosine", "ffr", "ffr_contrast"} <= set(checked)
    # sfr: 2 subsets × 2 sources × 2 hooks.
    assert checked.count("sfr") == 8
    # How it was measured is as the run's options were.
    assert "above 0.25 on more than the given share of 400 tokens" in card_of(hub)
    assert "more than 3 times" in card_of(hub)


def test_each_sae_has_its_own_numbers(folder: RunFolder, hub: Any) -> None:
    names = push_saes(folder, "user/saes")
    ffr = {
        f"{row['source']}/{row['hook']}/{row['variant']}/seed{row['seed']}": row
        for row in rows(folder)
        if (row["metric"], row["subset"], row["condition"]) == ("ffr", "all", "rate>0.1")
        and row["seed"] is not None
    }
    for cells in table_cells(card_of(hub), starting="path"):
        assert cells[1] == "24"
        assert cells[3].startswith(f"{ffr[cells[0].strip('`')]['value']:.4f}")
    assert set(ffr) == set(names)


def test_the_card_says_what_the_text_was_and_how_typical(folder: RunFolder, hub: Any) -> None:
    push_saes(folder, "user/saes")
    cells = {line[0]: line for line in table_cells(card_of(hub), starting="source")}
    for name in ("faithful", "notes"):
        card = json.loads((folder.data_dir(name) / "card.json").read_text())
        gap = card["typicality"]
        assert cells[name][1].startswith(f"`{card['plugin']}`")
        assert cells[name][2] == f"{card['rows']['train'] * 16:,}"
        assert cells[name][3].startswith(f"{gap['gap']:.4f}")
        assert cells[name][4:] == [f"{gap['z']:+.2f}", f"{gap['n_tokens']:,}"]
    config = json.loads(re.findall(r"```json\n(.*?)```", card_of(hub), re.S)[0])
    assert config["sae"]["k"] == 4
    assert config["training_tokens"] == 640
    assert "logger" not in config
    versions = json.loads(folder.manifest_file.read_text())["versions"]
    assert f"sae-lens {versions['sae-lens']}, " in card_of(hub)


def test_filters_choose_saes_and_their_rows(folder: RunFolder, hub: Any) -> None:
    names = push_saes(folder, "user/saes", sources=["notes"], hooks=[HOOKS[1]], variants=["base"])
    assert names == [f"notes/{HOOKS[1]}/base/seed{seed}" for seed in (0, 1)]
    assert {path.rpartition("/")[0] for path in hub.files["user/saes"]} == {"", *names}
    measured = table_cells(card_of(hub).partition("## Fake features")[2], starting="SAEs on")
    assert {(cells[0], cells[1]) for cells in measured} == {("notes", f"{HOOKS[1]}/base")}


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"sources": ["note"]}, r"^unknown source 'note' .*--source may be: faithful, notes"),
        ({"hooks": ["model.layers.9"]}, r"^unknown hook 'model.layers.9' .*--hook may be: model.layers.0, "),
        ({"variants": ["wide"]}, r"^unknown variant 'wide'.*--variant may be: base"),
    ],
)
def test_unknown_filters_name_the_choices(
    chosen: dict[str, list[str]], says: str, folder: RunFolder, hub: Any
) -> None:
    with pytest.raises(UsageError, match=says):
        push_saes(folder, "user/saes", **chosen)  # pyright: ignore[reportArgumentType]
    assert hub.files == {}


@pytest.mark.parametrize("name", ["saes", "a/b/c", "user/a b", "user/-a", "user/" + "a" * 100])
def test_a_name_that_no_repository_can_have_is_refused(name: str, folder: RunFolder, hub: Any) -> None:
    with pytest.raises(UsageError) as caught:
        push_saes(folder, name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert hub.files == {}


def test_runs_without_results_or_without_saes_are_refused(
    folder: RunFolder, hub: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"holds no finished run: there is no results\.jsonl$"):
        push_saes(RunFolder(tmp_path / "nothing"), "user/saes")
    bare = RunFolder(tmp_path / "bare")
    bare.root.mkdir()
    for file in (folder.results_file, folder.manifest_file, folder.config_file):
        (bare.root / file.name).write_text(file.read_text())
    with pytest.raises(UsageError, match=r"bare holds no trained SAEs$"):
        push_saes(bare, "user/saes")
    assert hub.files == {}


def test_saes_that_the_config_no_longer_names_stay_here(folder: RunFolder, hub: Any, tmp_path: Path) -> None:
    fewer = RunFolder(tmp_path / "fewer")
    fewer.root.mkdir()
    for path in folder.root.iterdir():
        (fewer.root / path.name).symlink_to(path)
    fewer.config_file.unlink()
    config = json.loads(folder.config_file.read_text())
    fewer.config_file.write_text(json.dumps({**config, "sae_seeds": [1]}))
    assert {name[-5:] for name in push_saes(fewer, "user/saes")} == {"seed1"}


def test_nobody_logged_in_is_one_line(
    folder: RunFolder, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    with pytest.raises(
        RunError, match=r"^cannot push to 'user/saes': nobody is logged in; run hf auth login, or set"
    ):
        push_saes(folder, "user/saes")
    assert hub.files == {}


def test_a_token_that_the_hub_does_not_know_is_one_line(
    folder: RunFolder, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(RunError, match=r"^cannot push to 'user/saes': Invalid user token\.[^\n]*$"):
        push_saes(folder, "user/saes")
    assert hub.files == {}


def test_a_hub_out_of_reach_is_one_line(folder: RunFolder, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    # Port 9 is the discard service, which nobody runs.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match=r"^cannot push to 'user/saes': [^\n]*refused[^\n]*$"):
        push_saes(folder, "user/saes")


def test_offline_mode_is_one_line(folder: RunFolder, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=r"^cannot push to 'user/saes': [^\n]*offline mode is enabled[^\n]*$"):
        push_saes(folder, "user/saes")


def test_a_hub_that_refuses_to_write_is_one_line(folder: RunFolder, hub: Any) -> None:
    hub.refuse_commits = True
    with pytest.raises(RunError, match=r"^cannot push to 'user/saes': [^\n]+$"):
        push_saes(folder, "user/saes", sources=["notes"])
    assert hub.files == {"user/saes": {}}


def test_a_private_repository_is_private_from_the_start(folder: RunFolder, hub: Any) -> None:
    push_saes(folder, "user/saes", sources=["notes"], hooks=[HOOKS[0]], private=True)
    assert hub.private["user/saes"] is True
    # Again into the one that is there.
    push_saes(folder, "user/saes", sources=["notes"], hooks=[HOOKS[0]], private=True)
    hub.files["user/open"], hub.private["user/open"] = {}, False
    with pytest.raises(RunError, match=r"'user/open': --private was given, and it is there and public$"):
        push_saes(folder, "user/open", private=True)
    assert hub.files["user/open"] == {}


def test_the_command_says_how_to_load(folder: RunFolder, hub: Any) -> None:
    from sae_faithful.cli import main

    result = CliRunner().invoke(
        main,
        ["push", str(folder.root), "user/saes", "--source", "notes", "--hook", HOOKS[0], "--license", "mit"],
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "pushed: user/saes",
        f'  SAE.from_pretrained("user/saes", "notes/{HOOKS[0]}/base/seed0")',
        f'  SAE.from_pretrained("user/saes", "notes/{HOOKS[0]}/base/seed1")',
    ]
    failed = CliRunner().invoke(main, ["push", str(folder.root), "saes"])
    assert failed.exit_code == 2
