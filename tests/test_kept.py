"""What is kept of runs on a machine that will be gone: small files as they are, text in parts, weights not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module; examples are in no package."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    import kept

    return kept


def write(path: Path, content: bytes = b"{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def draw(cache: Path, name: str, indices: range) -> None:
    """Shards as the source writes them, 1,000 bytes each."""
    write(cache / "self_generated" / name / "settings.json")
    for index in indices:
        content = np.random.default_rng(index).bytes(1_000)
        shard = cache / "self_generated" / name / f"shard-{index:06d}.arrow"
        write(shard, content)
        write(shard.with_suffix(".sha256"), hashlib.sha256(content).hexdigest().encode())


def test_a_run_is_kept_without_weights_tokens_and_finished_steps(kept: Any, tmp_path: Path) -> None:
    run, copy = tmp_path / "run", tmp_path / "kept" / "run"
    small = ["results.jsonl", "manifest.json", "data/own/card.json", "results/probing/rows.jsonl"]
    for name in small:
        write(run / name, name.encode())
    for name in (
        "saes/own/hook/base/seed0/cfg.json", "baselines/own/hook/pca/seed0/baseline.json", "checkpoints/own/1/x",
        "data/own/train.arrow", "data/own/step.json", "results/.partial-x/rows.jsonl", ".lock",
    ):  # fmt: skip
        write(run / name)
    write(run / "features.parquet", bytes(kept.LARGEST + 1))
    write(copy / "of_an_earlier_stage.json")
    kept.keep_run(run, copy)
    found = files(copy)
    assert found.pop("left_out.json").decode().split() == [
        "{",
        '"features.parquet":',
        str(kept.LARGEST + 1),
        "}",
    ]
    assert found == {name: name.encode() for name in small}
    assert [path.name for path in copy.parent.iterdir()] == ["run"]


def test_every_stage_s_times_are_kept(kept: Any, tmp_path: Path) -> None:
    run, lines = tmp_path / "layer_9", tmp_path / "kept" / "timings.jsonl"

    def took(**seconds: float) -> None:
        rows = [{"step": step, "seconds": of_step, "expected_seconds": None, "peak_memory_bytes": 1}
                for step, of_step in seconds.items()]  # fmt: skip
        write(run / "timings.json", json.dumps({"steps": rows}).encode())

    def found() -> list[tuple[str, str, str, float]]:
        rows = map(json.loads, lines.read_text().splitlines())
        return [(row["run"], row["stage"], row["step"], row["seconds"]) for row in rows]

    # A call that was stopped before its run had anything.
    kept.keep_timings(run, "layer_9/3_seeds", lines)
    assert not lines.exists()
    took(data=5.0, saes=60.0)
    kept.keep_timings(run, "layer_9/3_seeds", lines)
    # Two more seeds in 40 s; the text is there.
    took(data=5.0, saes=40.0, results=7.0)
    kept.keep_timings(run, "layer_9/5_seeds", lines)
    kept.keep_timings(run, "layer_9/5_seeds", lines)
    expected = [
        ("layer_9", "layer_9/3_seeds", "data", 5.0), ("layer_9", "layer_9/3_seeds", "saes", 60.0),
        ("layer_9", "layer_9/5_seeds", "saes", 40.0), ("layer_9", "layer_9/5_seeds", "results", 7.0),
    ]  # fmt: skip
    assert found() == expected
    # Another run has its own.
    kept.keep_timings(run.rename(tmp_path / "layer_19"), "layer_19/3_seeds", lines)
    assert found() == [
        *expected,
        *(
            ("layer_19", "layer_19/3_seeds", *one)
            for one in (("data", 5.0), ("saes", 40.0), ("results", 7.0))
        ),
    ]


def test_shards_are_packed_once_and_come_back_byte_for_byte(
    kept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "SHARDS_PER_PART", 2_500)
    cache, texts, other = tmp_path / "cache", tmp_path / "texts", tmp_path / "other"
    draw(cache, "aa", range(4))
    draw(cache, "bb", range(1))
    kept.keep_shards(cache, texts)
    # Three shards of 1,000 bytes are the first to reach 2,500.
    assert set(files(texts)) == {
        "aa/000000-000002.tar.xz",
        "aa/000003-000003.tar.xz",
        "bb/000000-000000.tar.xz",
    }
    before = files(texts)
    draw(cache, "aa", range(6))
    # Written, and its checksum not yet: drawn again by whoever reads it.
    write(cache / "self_generated/aa/shard-000006.arrow")
    kept.keep_shards(cache, texts)
    assert set(files(texts)) - set(before) == {"aa/000004-000005.tar.xz"}
    assert before.items() <= files(texts).items()
    kept.restore_shards(texts, other)
    expected = files(cache)
    del expected["self_generated/aa/shard-000006.arrow"]
    assert files(other) == expected


def test_what_is_there_is_not_unpacked_over(kept: Any, tmp_path: Path) -> None:
    cache, texts = tmp_path / "cache", tmp_path / "texts"
    draw(cache, "aa", range(2))
    kept.keep_shards(cache, texts)
    changed = cache / "self_generated/aa/shard-000001.arrow"
    changed.write_bytes(b"drawn here")
    kept.restore_shards(texts, cache)
    assert changed.read_bytes() == b"drawn here"


def test_a_gap_is_not_packed_as_if_it_were_there(kept: Any, tmp_path: Path) -> None:
    cache, texts = tmp_path / "cache", tmp_path / "texts"
    draw(cache, "aa", range(5))
    (cache / "self_generated/aa/shard-000002.sha256").unlink()
    kept.keep_shards(cache, texts)
    assert set(files(texts)) == {"aa/000000-000001.tar.xz", "aa/000003-000004.tar.xz"}


def test_a_folder_comes_back_from_its_parts(
    kept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "PART", 700)
    model, packed = tmp_path / "model", tmp_path / "texts" / "model.tar.xz"
    write(model / "model.safetensors", np.random.default_rng(0).bytes(2_000))
    write(model / "config.json")
    kept.keep_folder(model, packed)
    names = sorted(path.name for path in packed.parent.iterdir())
    assert names[0] == "model.tar.xz.00"
    assert len(names) >= 3
    assert max(path.stat().st_size for path in packed.parent.iterdir()) <= 700
    kept.restore_folder(packed, tmp_path / "back")
    assert files(tmp_path / "back") == files(model)
    # Parts without the first, which is written last, are of a packing that was stopped.
    (packed.parent / "model.tar.xz.00").unlink()
    kept.restore_folder(packed, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_texts_are_linked_once_and_without_what_is_half_written(kept: Any, tmp_path: Path) -> None:
    made, run = tmp_path / "layer_9", tmp_path / "layer_19"
    write(made / "data/own/train.arrow", b"tokens")
    write(made / "data/.partial-code/train.arrow")
    kept.link_texts(made, run)
    assert files(run) == {"data/own/train.arrow": b"tokens"}
    assert (run / "data/own/train.arrow").stat().st_ino == (made / "data/own/train.arrow").stat().st_ino
    kept.link_texts(made, run)
    assert files(run) == {"data/own/train.arrow": b"tokens"}
