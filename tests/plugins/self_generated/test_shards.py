"""Shards: the same bytes whoever draws them, when, in whatever order, and however often it was interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_faithful import RunError, derive_seed
from sae_faithful_plugins.self_generated import shards as shards_module
from sae_faithful_plugins.self_generated.engines.transformers import TransformersSampler as Sampler
from sae_faithful_plugins.self_generated.shards import (
    BATCH_SIZES,
    ShardCache,
    pick_batch_size,
    resolve_batch_size,
)

BOS = 0


@pytest.fixture
def sampler(llama: Any) -> Sampler:
    return Sampler(llama, (BOS,), 6, 1.0, 1.0)


@pytest.fixture
def make_cache(sampler: Sampler, tmp_path: Path) -> Callable[..., ShardCache]:
    def make(folder: str = "shards", **changes: Any) -> ShardCache:
        return dataclasses.replace(ShardCache(sampler, 8, 7, tmp_path / folder), **changes)

    return make


def shard_bytes(cache: ShardCache) -> dict[str, bytes]:
    """Every file that counts."""
    return {path.name: path.read_bytes() for path in sorted(cache.folder.glob("*")) if path.name[0] != "."}


def take(cache: ShardCache, n_shards: int) -> list[np.ndarray]:
    """The documents of the first shards, through the stream that a source reads."""
    return list(islice(cache.documents(100), n_shards * cache.batch_size))


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_each_shard_is_drawn_under_a_seed_of_its_own(
    sampler: Sampler, make_cache: Callable[..., ShardCache]
) -> None:
    cache = make_cache()
    for index in (0, 1):
        expected = sampler.sample(8, derive_seed(7, "self_generated", index))
        assert same(cache.shard(index), expected)
    assert not same(cache.shard(0), cache.shard(1))


def test_another_experiment_seed_gives_other_shards_in_another_folder(
    make_cache: Callable[..., ShardCache],
) -> None:
    assert make_cache().folder != make_cache(seed=8).folder
    assert not same(make_cache().shard(0), make_cache(seed=8).shard(0))


@pytest.mark.parametrize(
    "change",
    [{"temperature": 1.5}, {"top_p": 0.9}, {"max_new_tokens": 5}, {"prompt_ids": (0, 5)}],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_samples_changes_the_folder(
    sampler: Sampler, make_cache: Callable[..., ShardCache], change: dict[str, Any]
) -> None:
    assert make_cache(sampler=dataclasses.replace(sampler, **change)).folder != make_cache().folder
    assert make_cache(batch_size=9).folder != make_cache().folder


def test_shards_hold_ids_as_sampled(make_cache: Callable[..., ShardCache], sampler: Sampler) -> None:
    cache = make_cache()
    drawn = sampler.sample(8, derive_seed(7, "self_generated", 0))
    read = cache.shard(0)
    assert [document.tolist() for document in read] == [document.tolist() for document in drawn]
    assert {document.dtype for document in read} == {np.dtype(np.int32)}


def test_finished_shards_are_read_and_not_drawn_again(
    make_cache: Callable[..., ShardCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = take(make_cache(), 3)

    def refuse(self: Sampler, n: int, seed: int) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(Sampler, "sample", refuse)
    assert same(take(make_cache(), 3), documents)


def test_shards_are_drawn_only_as_far_as_they_are_needed(make_cache: Callable[..., ShardCache]) -> None:
    cache = make_cache()
    # 9 documents of 8 a shard: two shards.
    list(islice(cache.documents(100), 9))
    assert len(list(cache.folder.glob("shard-*.arrow"))) == 2


@pytest.mark.parametrize("file", ["shard-000001.arrow", "shard-000001.sha256"])
@pytest.mark.parametrize("at", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("damage", ["truncated", "a bit", "a stretch"])
def test_a_damaged_shard_is_named_and_drawn_again(
    make_cache: Callable[..., ShardCache], caplog: pytest.LogCaptureFixture, damage: str, at: float, file: str
) -> None:
    cache = make_cache()
    documents = take(cache, 2)
    before = shard_bytes(cache)
    path = cache.folder / file
    whole = path.read_bytes()
    place = int(at * len(whole))
    if damage == "truncated":
        path.write_bytes(whole[:place])
    else:
        length = 1 if damage == "a bit" else 40
        changed = bytes(byte ^ 16 for byte in whole[place : place + length])
        path.write_bytes(whole[:place] + changed + whole[place + length :])
    caplog.set_level("WARNING", logger="sae_faithful")
    assert same(take(cache, 2), documents)
    assert "shard-000001.arrow does not match its checksum; it is drawn again" in caplog.text
    assert shard_bytes(cache) == before
    assert same(take(cache, 2), documents)


def test_a_shard_whose_writer_died_before_its_checksum_is_drawn_again(
    make_cache: Callable[..., ShardCache],
) -> None:
    cache = make_cache()
    documents = take(cache, 2)
    before = shard_bytes(cache)
    (cache.folder / "shard-000001.sha256").unlink()
    assert same(take(cache, 2), documents)
    assert shard_bytes(cache) == before


def test_a_damaged_note_of_the_batch_size_is_named(
    sampler: Sampler, make_request: Callable[..., Any]
) -> None:
    request = make_request()
    resolve_batch_size("auto", sampler, request)
    [path] = (request.cache_dir / "self_generated").glob("batch-size-*.json")
    path.write_text(path.read_text()[:9])
    with pytest.raises(RunError, match=r"batch-size-.* is damaged .*delete the file"):
        resolve_batch_size("auto", sampler, request)


def test_a_deleted_shard_comes_back_with_the_same_bytes(make_cache: Callable[..., ShardCache]) -> None:
    cache = make_cache()
    take(cache, 4)
    # Nothing that was written aside is left.
    assert not list(cache.folder.glob(".*"))
    before = shard_bytes(cache)
    for index in (0, 2):
        (cache.folder / f"shard-{index:06d}.arrow").unlink()
    take(cache, 4)
    assert shard_bytes(cache) == before
    assert len(before) == 2 * 4 + 1  # their checksums and the settings beside them


def test_shards_drawn_in_another_order_have_the_same_bytes(make_cache: Callable[..., ShardCache]) -> None:
    forwards, backwards = make_cache("a"), make_cache("b")
    take(forwards, 3)
    for index in (2, 0, 1):
        backwards.shard(index)
    take(backwards, 3)
    assert shard_bytes(backwards) == shard_bytes(forwards)


def test_generation_interrupted_between_shards_resumes_to_the_same_bytes(
    make_cache: Callable[..., ShardCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, interrupted = make_cache("a"), make_cache("b")
    take(undisturbed, 4)
    sample = Sampler.sample
    calls = 0

    def interrupt_third(self: Sampler, n: int, seed: int) -> list[np.ndarray]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return sample(self, n, seed)

    monkeypatch.setattr(Sampler, "sample", interrupt_third)
    with pytest.raises(KeyboardInterrupt):
        take(interrupted, 4)
    # Two were finished: the interruption cost no more than the one it was in.
    assert sorted(path.name for path in interrupted.folder.glob("shard-*.arrow")) == [
        "shard-000000.arrow",
        "shard-000001.arrow",
    ]
    take(interrupted, 4)
    # Shards 0 and 1, the interrupted 2, then 2 and 3.
    assert calls == 5
    assert shard_bytes(interrupted) == shard_bytes(undisturbed)


def test_a_shard_cut_off_while_it_is_written_does_not_count(
    make_cache: Callable[..., ShardCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, interrupted = make_cache("a"), make_cache("b")
    take(undisturbed, 3)
    replace = Path.replace

    def cut_off(path: Path, target: Path) -> Path:
        if target.name != "shard-000001.arrow":
            return replace(path, target)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut_off)
        with pytest.raises(KeyboardInterrupt):
            take(interrupted, 3)
    left = {path.name for path in interrupted.folder.iterdir()}
    assert "shard-000001.arrow" not in left
    assert any(name.startswith(".partial-") for name in left)
    take(interrupted, 3)
    assert shard_bytes(interrupted) == shard_bytes(undisturbed)


def test_partial_files_of_a_killed_process_are_no_shards(make_cache: Callable[..., ShardCache]) -> None:
    undisturbed, littered = make_cache("a"), make_cache("b")
    expected = take(undisturbed, 2)
    littered.folder.mkdir(parents=True)
    (littered.folder / ".partial-1-shard-000000.arrow").write_bytes(b"half of it")
    assert same(take(littered, 2), expected)


def test_the_settings_stand_beside_the_shards(make_cache: Callable[..., ShardCache]) -> None:
    cache = make_cache()
    take(cache, 1)
    settings = json.loads((cache.folder / "settings.json").read_text())
    assert settings == json.loads(json.dumps(cache.settings))
    assert (settings["temperature"], settings["top_p"], settings["top_k"]) == (1.0, 1.0, None)
    assert (settings["batch_size"], settings["seed"], settings["repetition_penalty"]) == (8, 7, None)
    # Another number of threads or another release can change the last bit of a logit.
    assert {"threads", "versions", "model", "device"} <= set(settings)


def test_a_model_with_nothing_new_to_say_ends_the_stream(
    make_cache: Callable[..., ShardCache], sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeats are dropped, so an endless stream of them would never fill a request."""
    monkeypatch.setattr(shards_module, "MOST_REPEATS", 16)
    frozen = dataclasses.replace(sampler, temperature=1e-4)
    documents = list(make_cache(sampler=frozen).documents(1_000_000))
    assert len({document.tobytes() for document in documents}) == 1
    # One new document, then 16 repeats, up to the end of the shard: three shards of 8.
    assert len(documents) == 24


# Batch size


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({16: 100.0}, 16),
        # 32 is not 1.1 times as fast.
        ({16: 100.0, 32: 109.0}, 16),
        ({16: 100.0, 32: 111.0}, 32),
        # 64 beats 16 and 32 by more than a tenth; 128 (160 against 165) does not beat it by that.
        ({16: 100.0, 32: 105.0, 64: 150.0, 128: 160.0}, 64),
        # 64 beats 16 (118 > 110), but not 32 (118 < 119.9): 32 is the smallest that nothing beats.
        ({16: 100.0, 32: 109.0, 64: 118.0}, 32),
        # Slower again at the end.
        ({16: 100.0, 32: 200.0, 64: 50.0}, 32),
    ],
)
def test_the_smallest_batch_that_none_beats_by_a_tenth_is_picked(rates: dict[int, float], best: int) -> None:
    assert pick_batch_size(rates) == best


def test_a_batch_size_that_was_asked_for_is_taken_unmeasured(
    sampler: Sampler, make_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "_measure", lambda sizes, sampler: pytest.fail("measured"))
    assert resolve_batch_size(24, sampler, make_request()) == 24


def test_the_batch_size_that_auto_found_is_recorded_and_used_again(
    sampler: Sampler, make_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request()
    monkeypatch.setattr(shards_module, "_measure", lambda sizes, sampler: {16: 100.0, 32: 150.0})
    assert resolve_batch_size("auto", sampler, request) == 32
    # A second measurement on a busier machine would come out otherwise.
    monkeypatch.setattr(shards_module, "_measure", lambda sizes, sampler: {16: 100.0, 32: 90.0})
    assert resolve_batch_size("auto", sampler, request) == 32
    # Samples under other settings may be faster in other batches.
    other = dataclasses.replace(sampler, prompt_ids=(BOS, 5))
    assert resolve_batch_size("auto", other, request) == 16


@pytest.mark.parametrize("links", [True, False])
def test_two_that_measure_at_once_take_what_the_first_one_wrote(
    sampler: Sampler, make_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    request = make_request()

    def slower(sizes: Any, sampler: Sampler) -> dict[int, float]:
        monkeypatch.setattr(shards_module, "_measure", lambda sizes, sampler: {16: 100.0, 32: 150.0})
        assert resolve_batch_size("auto", sampler, request) == 32
        return {16: 100.0, 32: 90.0}

    if not links:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    monkeypatch.setattr(shards_module, "_measure", slower)
    taken = resolve_batch_size("auto", sampler, request)
    assert taken == resolve_batch_size("auto", sampler, request)
    assert taken == (32 if links else 16)
    assert not list((request.cache_dir / "self_generated").glob(".partial-*"))


def test_partials_of_equal_process_numbers_differ_and_old_ones_go(
    make_cache: Callable[..., ShardCache],
) -> None:
    cache = make_cache()
    path = cache.folder / "shard-000000.arrow"
    one, other = shards_module._partial(path), shards_module._partial(path)
    assert one != other
    assert socket.gethostname() in one.name
    cache.folder.mkdir(parents=True)
    one.write_bytes(b"half of it")
    other.write_bytes(b"half of it")
    os.utime(one, (time.time() - 90_000,) * 2)
    take(cache, 1)
    assert list(cache.folder.glob(".partial-*")) == [other]


def test_a_whole_cache_that_can_only_be_read_is_used(
    make_cache: Callable[..., ShardCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache()
    documents = take(cache, 2)
    before = sorted(cache.folder.iterdir())
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(shards_module, "_write_whole", lambda *_: pytest.fail("written"))
    monkeypatch.setattr(shards_module, "_partial", lambda _: pytest.fail("written"))
    assert same(take(cache, 2), documents)
    assert len(list(islice(cache.documents(100), 9))) == 9
    assert sorted(cache.folder.iterdir()) == before


def test_auto_counts_what_a_last_shard_draws_in_vain(
    sampler: Sampler, make_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples of 7 tokens. For 480 tokens 32 samples at once take 3 shards, 672 tokens; 64 take 2, 896 tokens."""
    monkeypatch.setattr(shards_module, "_measure", lambda sizes, sampler: {16: 90.0, 32: 150.0, 64: 190.0})
    # 560 / 90 = 6.2 s, 672 / 150 = 4.5 s, 896 / 190 = 4.7 s.
    assert resolve_batch_size("auto", sampler, make_request(n_tokens=480)) == 32
    # 448 tokens are exactly two shards of 32 or one of 64: 3.0 s and 2.4 s.
    other = make_request(n_tokens=448, cache_dir=Path(make_request().cache_dir) / "b")
    assert resolve_batch_size("auto", sampler, other) == 64


def test_auto_tries_no_batch_that_draws_more_than_was_asked_for(
    sampler: Sampler, make_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[int]] = []

    def measure(sizes: list[int], sampler: Sampler) -> dict[int, float]:
        tried.append(sizes)
        return {16: 1.0}

    monkeypatch.setattr(shards_module, "_measure", measure)
    # Samples of 6 tokens: 480 tokens are 80 samples.
    resolve_batch_size("auto", sampler, make_request(n_tokens=480))
    # Fewer tokens than one smallest batch: that batch all the same.
    resolve_batch_size(
        "auto", sampler, make_request(n_tokens=16, cache_dir=Path(make_request().cache_dir) / "b")
    )
    assert tried == [[16, 32, 64], [16]]


def test_auto_measures_until_memory_runs_out(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    sizes: list[int] = []

    def sample(self: Sampler, n: int, seed: int) -> list[np.ndarray]:
        sizes.append(n)
        if n > 32:
            raise torch.OutOfMemoryError
        return []

    # Two trials of each size, of 3 and 1 seconds: the better counts. At 64 memory runs out.
    clock: Iterator[float] = iter([0.0, 3.0, 3.0, 4.0, 4.0, 7.0, 7.0, 8.0, 8.0])
    monkeypatch.setattr(Sampler, "sample", sample)
    monkeypatch.setattr(shards_module.time, "perf_counter", lambda: next(clock))
    # One second each: 16 and 32 samples of 4 tokens.
    assert shards_module._measure([16, 32, 64, 128], sampler) == {16: 64.0, 32: 128.0}
    assert sizes == [16, 16, 16, 32, 32, 64]  # the first is not measured: it pays for what is set up once


def test_auto_stops_after_two_sizes_in_a_row_that_are_not_worth_it(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 64 and 128 samples take twice as long as half as many: no faster a token than 32.
    seconds = {16: 1.0, 32: 1.0, 64: 2.0, 128: 4.0, 256: 8.0}
    monkeypatch.setattr(Sampler, "sample", lambda self, n, seed: [])
    monkeypatch.setattr(shards_module, "_seconds", lambda sampler, size: seconds[size])
    assert list(shards_module._measure([16, 32, 64, 128, 256], sampler)) == [16, 32, 64, 128]


def test_auto_picks_a_size_by_really_measuring(sampler: Sampler, make_request: Callable[..., Any]) -> None:
    request = make_request(n_tokens=400)
    picked = resolve_batch_size("auto", sampler, request)
    assert picked in BATCH_SIZES
    (record,) = (request.cache_dir / "self_generated").glob("batch-size-*.json")
    recorded = json.loads(record.read_text())
    assert recorded["batch_size"] == picked
    assert str(picked) in recorded["tokens_per_s"]
